import gc
import os
import sys
import weakref
from pathlib import Path

import av
import numpy as np
import pytest

from tests.films import encode, in_sequence
from videomac_mm.datasets import OpenVideo, UnusableVideoError, open_video
from videomac_mm.datasets.readers import pyav
from videomac_mm.datasets.readers.index import FrameIndex, IndexStore, scan
from videomac_mm.datasets.readers.pyav import PyAVReader


@pytest.mark.parametrize('suffix', ['.mp4', '.mkv', '.avi', '.ts'])
@pytest.mark.parametrize('options', [{}, {'x264-params': 'open-gop=1'}, {'bf': '0'}])
def test_reader__any_frames_are_those_of_one_pass(tmp_path, suffix, options):
    file = encode(tmp_path / f'v{suffix}', **options)
    every = in_sequence(file)
    reader = PyAVReader(file)
    assert len(reader) == len(every) == 40
    assert reader.skips == (suffix != '.avi')
    rng = np.random.default_rng(0)
    for _ in range(25):
        inds = np.unique(rng.integers(40, size=rng.integers(1, 6))).tolist()
        np.testing.assert_array_equal(reader.read(inds), [every[i] for i in inds])


@pytest.mark.parametrize('suffix', ['.mp4', '.mkv', '.avi'])
def test_reader__frames_and_times_are_decords(tmp_path, write_video, suffix):
    file = str(write_video(tmp_path / f'v{suffix}', num_frames=30))
    decord, ours = open_video(file, 'decord'), open_video(file)
    assert (len(ours), ours.fps) == (len(decord), decord.fps) == (30, 25)
    assert ours.size == decord.size == (48, 64)
    inds = [0, 1, 13, 14, 27]
    np.testing.assert_array_equal(ours.read(inds), decord.read(inds))
    if suffix == '.avi':
        assert ours.times is None
    else:
        np.testing.assert_allclose(ours.times, decord.times, atol=1e-3)


def test_reader__pictures_nobody_refers_to_are_passed_over(tmp_path, monkeypatch):
    class Noted:
        """A packet whose number of decoded frames is noted."""

        def __init__(self, packet) -> None:
            self.size, self.pts = packet.size, packet.pts
            self.packet = packet

        def decode(self) -> list:
            out.append(self.packet.decode())
            return out[-1]

    reader = PyAVReader(encode(tmp_path / 'v.mp4', g='40'))
    packets, out = reader._packets_from, []
    monkeypatch.setattr(reader, '_packets_from', lambda start: map(Noted, packets(start)))
    reader.read([39])
    num_decoded = sum(map(len, out))
    assert 40 / 4 - 4 <= num_decoded <= 40 * 0.6, 'half of the frames are referred to'


def test_reader__wants_frames_of_the_video(tmp_path):
    reader = PyAVReader(encode(tmp_path / 'v.mp4', num_frames=5))
    for inds in ([0, 5], [-1, 2]):
        with pytest.raises(IndexError, match='of a video of 5'):
            reader.read(inds)


def test_reader__sound_without_pictures_is_unusable(tmp_path):
    file = tmp_path / 'sound.mp4'
    with av.open(str(file), 'w') as container:
        stream = container.add_stream('aac', rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), 'fltp', 'mono')
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(UnusableVideoError, match='no video stream in .*sound.mp4'):
        PyAVReader(str(file))


def test_reader__without_pyav_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'av', None)
    with pytest.raises(ImportError, match=r"pip install 'av>=17'; or take backend='decord'"):
        OpenVideo(backend='pyav')
    assert OpenVideo(backend='auto').backend == 'decord'


def test_reader__an_old_pyav_is_refused_for_its_colours(monkeypatch):
    monkeypatch.setattr(av, '__version__', '16.1.0')
    with pytest.raises(ImportError, match='needs PyAV 17 or later, found 16.1.0.*wrong colours'):
        OpenVideo(backend='pyav')
    assert OpenVideo(backend='auto').backend == 'decord'


def test_reader__looks_at_packets_once_and_without_their_data(tmp_path, monkeypatch):
    # 40 packets of 100 kB: key frames of noise
    file = tmp_path / 'v.mkv'
    rng = np.random.default_rng(0)
    write_noise(file, rng.integers(256, size=(40, 256, 256, 3), dtype=np.uint8))
    assert file.stat().st_size > 4_000_000
    alive, most = weakref.WeakSet(), 0

    class Container:
        """Counts the packets that are alive at a time."""

        def __init__(self, container) -> None:
            self.container = container

        def __getattr__(self, name: str):
            return getattr(self.container, name)

        def demux(self, stream):
            nonlocal most
            for packet in self.container.demux(stream):
                held = Held(packet)
                alive.add(held)
                most = max(most, len(alive))
                yield held

    class Held:
        def __init__(self, packet) -> None:
            self.packet = packet

        def __getattr__(self, name: str):
            return getattr(self.packet, name)

    with av.open(str(file)) as container:
        index = scan(Container(container), container.streams.video[0])
    assert len(index.order) == 40 and len(index.keys) == 40
    assert most <= 2

    calls = []
    monkeypatch.setattr(pyav, 'scan', lambda *a: calls.append(a) or scan(*a))
    PyAVReader(str(file)), PyAVReader(str(file))
    assert len(calls) == 1
    write_noise(file, rng.integers(256, size=(3, 256, 256, 3), dtype=np.uint8))
    assert len(PyAVReader(str(file))) == 3, 'the file is another one now'


def write_noise(file: Path, frames: np.ndarray) -> None:
    with av.open(str(file), 'w') as container:
        stream = container.add_stream('libx264', rate=25, options={'qp': '5', 'g': '1'})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = 'yuv420p'
        for frame in frames:
            frame = av.VideoFrame.from_ndarray(frame, format='rgb24')
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_index_store__is_bounded():
    index = FrameIndex(np.zeros(10), np.zeros(1), np.zeros(10), 0, False, np.zeros(10))
    store = IndexStore(max_bytes=3 * index.num_bytes)
    for name in 'abcd':
        store.add(name, index)
        store.get('a')
    assert store.get('b') is None and all(store.get(name) for name in 'acd')
    assert store.num_bytes == 3 * index.num_bytes


@pytest.mark.parametrize('options', [{}, {'x264-params': 'open-gop=1'}])
@pytest.mark.parametrize('suffix', ['.mp4', '.avi'])
def test_reader__goes_through_all_frames_in_one_pass(tmp_path, suffix, options):
    file = encode(tmp_path / f'v{suffix}', **options)
    reader = PyAVReader(file)
    reader.read([20])
    np.testing.assert_array_equal(list(reader), in_sequence(file))


def test_open_video__wants_a_file(tmp_path):
    os.mkfifo(tmp_path / 'pipe.mp4')
    for path in (tmp_path, tmp_path / 'pipe.mp4'):
        with pytest.raises(UnusableVideoError, match='a video must be a file'):
            open_video(path)
    with pytest.raises(FileNotFoundError):
        open_video(tmp_path / 'gone.mp4')
    with pytest.raises(ValueError, match="'pyav', 'decord' or 'auto', got 'cv2'"):
        OpenVideo(backend='cv2')


@pytest.mark.parametrize(
    'text',
    [
        "ffconcat version 1.0\nfile '{path}'\n",
        '#EXTM3U\n#EXTINF:1,\n{path}\n#EXT-X-ENDLIST\n',
        '#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n',
    ],
)
def test_reader__a_list_of_other_files_is_no_video(tmp_path, text):
    """It could name itself, or make this machine ask others for what lies there."""
    path = tmp_path / 'list.mp4'
    path.write_text(text.format(path=path))
    with pytest.raises(UnusableVideoError, match='FFmpeg cannot read .*list.mp4'):
        open_video(path)


def test_reader__a_title_need_not_be_utf8(tmp_path):
    file = Path(encode(tmp_path / 'v.mkv', 4, title='a title of its own'))
    data = file.read_bytes()
    assert b'title of its' in data
    file.write_bytes(data.replace(b'title of its', b't\xeftle \xc3f its'))
    assert len(open_video(file).read([1, 3])) == 2


def test_reader__lets_go_of_its_file_at_once(tmp_path):
    files = [encode(tmp_path / f'{i}.mp4', 4) for i in range(2)]
    gc.disable()
    try:
        before = len(os.listdir('/proc/self/fd'))
        for file in files * 20:
            reader = PyAVReader(file)
            reader.read([1])
        del reader
        assert len(os.listdir('/proc/self/fd')) == before
    finally:
        gc.enable()


def test_reader__reads_while_it_is_iterated_over(tmp_path):
    file = encode(tmp_path / 'v.mp4', 12)
    reader, got = PyAVReader(file), []
    for number, frame in enumerate(reader):
        got.append(frame)
        np.testing.assert_array_equal(reader.read([11 - number])[0], in_sequence(file)[11 - number])
    np.testing.assert_array_equal(got, in_sequence(file))


# decord counts packets that an edit list cuts off: 149 and 142
CUT_OFF = {'cotracker_pillow.mp4': 2, 'cotracker_teddy.mp4': 1}


def test_real__frames_are_decords_in_every_video(data_dir):
    rng = np.random.default_rng(0)
    files = sorted((data_dir / 'videos').iterdir())
    assert len(files) == 50
    for file in files:
        decord, ours = open_video(file, 'decord'), open_video(file)
        assert len(ours) == len(decord) - CUT_OFF.get(file.name, 0)
        assert ours.fps == decord.fps
        inds = np.unique(rng.integers(min(len(ours) - 4, 40), size=3)).tolist()
        np.testing.assert_array_equal(
            ours.read(inds), decord.read(inds), err_msg=f'{file.name}: {inds}'
        )
        if ours.times is not None:
            times = decord.times[: len(ours)]
            np.testing.assert_allclose(ours.times, times, atol=1e-3, err_msg=file.name)


@pytest.mark.parametrize(
    'name, inds',
    [
        ('mmaction_ntu.avi', [90, 100, 102]),  # decord gives frame 100 for 102
        ('cotracker_pillow.mp4', [3, 145, 146]),
        ('imageio_cockatoo.mp4', [150, 155]),  # 4:4:4, where decord gives noise
        ('imageio_realshort.mp4', [7, 19, 35]),
        ('decord_pancake.mkv', [130, 131, 309]),
    ],
)
def test_real__frames_far_on_are_those_of_one_pass(data_dir, name, inds):
    file = str(data_dir / 'videos' / name)
    got = PyAVReader(file).read(inds)
    with av.open(file) as container:
        for i, frame in enumerate(container.decode(video=0)):
            if i in inds:
                expected = frame.to_ndarray(format='rgb24')
                np.testing.assert_array_equal(got[inds.index(i)], expected, err_msg=str(i))
            if i == inds[-1]:
                break


@pytest.mark.parametrize('name, count', [('rot_90.mov', 3), ('unordered.mov', 4)])
def test_real__difficult_files_read_as_decord_reads_them(data_dir, name, count):
    file = str(data_dir / 'broken' / name)
    decord = open_video(file, 'decord')
    ours = PyAVReader(file)
    assert len(ours) == len(decord) == count
    inds = list(range(count))
    np.testing.assert_array_equal(ours.read(inds), decord.read(inds))
    assert ours.read([0], planar=True)[0].shape == decord.size


def test_real__damaged_stream_reads_up_to_the_damage(data_dir):
    file = str(data_dir / 'broken' / 'corrupted.mp4')
    decord = open_video(file, 'decord')
    reader = PyAVReader(file)
    inds = list(range(0, 26, 5))
    np.testing.assert_array_equal(reader.read(inds), decord.read(inds))
    with pytest.raises(UnusableVideoError, match='corrupted.mp4: InvalidDataError'):
        reader.read([40])
    # usable afterwards
    np.testing.assert_array_equal(reader.read([10]), decord.read([10]))
