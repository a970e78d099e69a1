import copy
import pickle
import random
import sys
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.dataset import Compose

from videomac_mm.datasets import (
    DecodeFrames,
    FrameFolderDecode,
    FuseCrops,
    OpenVideo,
    SampleFramePair,
    SyntheticVideo,
    UnusableVideoError,
)
from videomac_mm.datasets.video_readers import (
    BoundedStore,
    PlanarFrame,
    PyAVReader,
    frame_bytes,
    picture,
    rgb_matrix,
)

av = pytest.importorskip('av', reason='an extra')


def encode(path: Path, num_frames: int = 40, pix_fmt: str = 'yuv420p', **options) -> str:
    """H.264 with B-frames that are referred to and such that are not, a key frame every 12."""
    video = SyntheticVideo(0, num_frames, (48, 64))
    options = {'g': '12', 'bf': '3', 'b-pyramid': 'normal', 'sc_threshold': '0', **options}
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        stream.codec_context.time_base = Fraction(1, 25)
        for t in range(num_frames):
            frame = av.VideoFrame.from_ndarray(video.frame(t), format='rgb24')
            frame.pts = t
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


def in_sequence(path: str) -> list[np.ndarray]:
    """All frames in the order in which a decoder gives them out."""
    with av.open(path) as container:
        return [frame.to_ndarray(format='rgb24') for frame in container.decode(video=0)]


# ------------------------------------------------------------------- which frame it is


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
    decord = OpenVideo()(dict(filename=file))
    ours = OpenVideo(backend='pyav')(dict(filename=file))
    assert (ours['total_frames'], ours['avg_fps']) == (30, 25)
    assert (decord['total_frames'], decord['avg_fps']) == (30, 25)
    inds = [0, 1, 13, 14, 27]
    np.testing.assert_array_equal(
        ours['video_reader'].read(inds), decord['video_reader'].get_batch(inds).asnumpy()
    )
    if suffix != '.avi':
        times = [o['video_reader'].get_frame_timestamp(range(29)) for o in (ours, decord)]
        np.testing.assert_allclose(*times, atol=1e-3)


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


def test_reader__without_pyav_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'av', None)
    with pytest.raises(ImportError, match=r'videomac_mm\[av\]'):
        OpenVideo(backend='pyav')(dict(filename=encode_nothing(tmp_path)))


def encode_nothing(folder: Path) -> str:
    (folder / 'v.mp4').touch()
    return str(folder / 'v.mp4')


def test_open_video__auto_takes_what_is_there(monkeypatch):
    assert OpenVideo(backend='auto').backend == 'pyav'
    monkeypatch.setattr('videomac_mm.datasets.transforms.find_spec', lambda name: None)
    assert OpenVideo(backend='auto').backend == 'decord'
    with pytest.raises(ValueError, match="'decord', 'pyav' or 'auto', got 'cv2'"):
        OpenVideo(backend='cv2')


# decord counts packets that an edit list cuts off: 149 and 142
CUT_OFF = {'cotracker_pillow.mp4': 2, 'cotracker_teddy.mp4': 1}


def test_real__frames_are_decords_in_every_video(data_dir):
    rng = np.random.default_rng(0)
    files = sorted((data_dir / 'videos').iterdir())
    assert len(files) == 50
    for file in files:
        decord, ours = (
            OpenVideo(backend=backend)(dict(filename=str(file))) for backend in ('decord', 'pyav')
        )
        assert ours['total_frames'] == decord['total_frames'] - CUT_OFF.get(file.name, 0)
        assert ours['avg_fps'] == decord['avg_fps']
        inds = np.unique(rng.integers(min(ours['total_frames'] - 4, 40), size=3)).tolist()
        np.testing.assert_array_equal(
            ours['video_reader'].read(inds),
            decord['video_reader'].get_batch(inds).asnumpy(),
            err_msg=f'{file.name}: {inds}',
        )
        if not ours['video_reader'].counted:
            times = [
                o['video_reader'].get_frame_timestamp(range(ours['total_frames']))[:, 0]
                for o in (ours, decord)
            ]
            np.testing.assert_allclose(*times, atol=1e-3, err_msg=file.name)


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
    decord = OpenVideo()(dict(filename=file))['video_reader']
    ours = PyAVReader(file)
    assert len(ours) == len(decord) == count
    inds = list(range(count))
    np.testing.assert_array_equal(ours.read(inds), decord.get_batch(inds).asnumpy())
    assert ours.read([0], planar=True)[0].shape == decord[0].shape[:2]


def test_real__damaged_stream_reads_up_to_the_damage(data_dir):
    file = str(data_dir / 'broken' / 'corrupted.mp4')
    decord = OpenVideo()(dict(filename=file))['video_reader']
    reader = PyAVReader(file)
    inds = list(range(0, 26, 5))
    np.testing.assert_array_equal(reader.read(inds), decord.get_batch(inds).asnumpy())
    with pytest.raises(av.FFmpegError):
        reader.read([40])
    # usable afterwards
    np.testing.assert_array_equal(reader.read([10]), decord.get_batch([10]).asnumpy())


# ------------------------------------------------------------------------ planar frames


@pytest.mark.parametrize('colorspace', ['ITU601', 'ITU709'])
@pytest.mark.parametrize('full', [False, True])
def test_rgb_matrix__is_swscales(colorspace, full):
    rng = np.random.default_rng(0)
    levels = (0, 256) if full else (16, 236)
    yuv = rng.integers(*levels, size=(3, 32, 32), dtype=np.uint8)
    yuv[1:] = rng.integers(100, 156, size=(2, 32, 32))
    frame = av.VideoFrame.from_ndarray(yuv, format='yuv444p')
    expected = frame.reformat(
        format='rgb24',
        src_colorspace=colorspace,
        src_color_range='JPEG' if full else 'MPEG',
        dst_color_range='JPEG',
    ).to_ndarray()
    matrix = rgb_matrix({'ITU601': 5, 'ITU709': 1}[colorspace], full)
    got = cv2.transform(np.ascontiguousarray(yuv.transpose(1, 2, 0)), matrix)
    assert np.abs(got.astype(int) - expected).max() <= 2


@pytest.mark.parametrize('pix_fmt', ['yuv420p', 'yuv422p', 'yuv444p', 'yuvj420p'])
@pytest.mark.parametrize('turns', [0, 1, 2, 3])
def test_planar_frame__crop_equals_that_of_the_rgb_picture(pix_fmt, turns):
    # smooth, for chroma is interpolated otherwise
    y, x = np.mgrid[:90, :120]
    img = np.stack([40 + x, 60 + y, 200 - (x + y) / 2], -1).astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(img, format='rgb24').reformat(format=pix_fmt)
    upright = np.rot90(picture(frame, planar=False), turns)
    planar = PlanarFrame(frame, turns)
    assert planar.shape == upright.shape[:2]
    for box in ([0, 0, 90, 90], [11, 7, 80, 66], [4, 20, 85, 89]):
        left, top, right, bottom = box
        got = planar.crop_resize(box, (40, 32), cv2.INTER_CUBIC)
        part = np.ascontiguousarray(upright[top:bottom, left:right])
        expected = cv2.resize(part, (40, 32), interpolation=cv2.INTER_CUBIC)
        assert got.shape == (32, 40, 3) and got.dtype == np.uint8
        difference = np.abs(got.astype(int) - expected)
        assert difference.mean() < 2 and difference.max() <= 6


def test_picture__other_formats_become_rgb(tmp_path):
    reader = PyAVReader(encode(tmp_path / 'v.mkv', num_frames=3, pix_fmt='yuv420p10le'))
    frame = reader.read([1], planar=True)[0]
    assert isinstance(frame, np.ndarray) and frame.shape == (48, 64, 3)


def crops(lazy: bool) -> list:
    steps = [
        dict(type='mmaction.RandomResizedCrop', area_range=(0.2, 1.0)),
        dict(type='mmaction.Resize', scale=(32, 24), keep_ratio=False, interpolation='bicubic'),
        dict(type='mmaction.Flip', flip_ratio=0.5),
    ]
    if lazy:
        steps = [*(dict(step, lazy=True) for step in steps), dict(type='videomac_mm.FuseCrops')]
    return [dict(type='videomac_mm.ForEachClip', transforms=steps)]


def run(file: str, planar: bool, lazy: bool, backend: str = 'pyav') -> np.ndarray:
    random.seed(0)
    np.random.seed(0)
    opened = OpenVideo(backend=backend)
    sampler = SampleFramePair(3, pairs_per_video=6)
    pipeline = Compose([opened, sampler, DecodeFrames(planar), *crops(lazy)])
    return np.stack(pipeline(dict(filename=file, modality='RGB'))['imgs'])


@pytest.mark.parametrize('backend', ['decord', 'pyav'])
def test_fuse_crops__same_crops_as_at_once(tmp_path, backend):
    file = encode(tmp_path / 'v.mp4')
    lazy = run(file, False, True, backend)
    assert lazy.shape == (12, 24, 32, 3)
    np.testing.assert_array_equal(lazy, run(file, False, False))


def test_fuse_crops__planar_frames_give_the_same_up_to_interpolation(data_dir):
    file = str(data_dir / 'videos' / 'mmaction_demo.mp4')
    rgb, planar = run(file, False, False).astype(int), run(file, True, True)
    assert np.abs(rgb - planar).mean() < 2.5
    assert np.abs(rgb - planar[:, :, ::-1]).mean() > 10, 'flips and boxes must agree'


def test_fuse_crops__wants_lazy_transforms():
    with pytest.raises(ValueError, match='lazy=True before it'):
        FuseCrops()(dict(imgs=[], img_shape=(1, 1)))


# -------------------------------------------------------------------------------- cache


@pytest.mark.parametrize('backend, share', [('pyav', 0.5), ('decord', 1)])
def test_cache__keeps_what_came_first_and_fits(tmp_path, monkeypatch, backend, share):
    files = [encode(tmp_path / f'{name}.mp4', num_frames=10) for name in 'abc']
    size = frame_bytes(OpenVideo(backend=backend)(dict(filename=files[0]))['video_reader'])
    assert 64 * 48 * 3 * share <= size <= 64 * 48 * 3 * share * 2, 'rows may be padded'
    step = OpenVideo(backend=backend, cache_bytes=size * 25)
    opened = []
    real = OpenVideo._open
    monkeypatch.setattr(OpenVideo, '_open', lambda s, path: opened.append(path) or real(s, path))
    decode = DecodeFrames()
    for _ in range(3):
        for file in files:
            results = step(dict(filename=file))
            assert results['total_frames'] == 10 and results['avg_fps'] == 25
            times = results['video_reader'].get_frame_timestamp(np.arange(10))[:, 0]
            np.testing.assert_allclose(times, np.arange(10) / 25, atol=1e-3)
            imgs = decode({**results, 'frame_inds': np.array([7, 2, 7])})['imgs']
            every = in_sequence(file)
            np.testing.assert_array_equal(imgs, [every[7], every[2], every[7]])
            for img in imgs:
                img[:] = 0  # as Flip works in place
    assert [opened.count(file) for file in files] == [1, 1, 3]
    assert step.cache.num_bytes == size * 20


def test_cache__of_pictures(tmp_path, write_frames, monkeypatch):
    imgs = write_frames(tmp_path, [f'{i}.png' for i in range(4)])
    files = [str(file) for file in sorted(tmp_path.iterdir())]
    step = FrameFolderDecode(cache_bytes=imgs[0].nbytes * 3)
    read = []
    real = step._decode
    monkeypatch.setattr(step, '_decode', lambda file: read.append(file) or real(file))
    for _ in range(3):
        results = step(dict(frame_files=files, frame_inds=np.array([0, 1, 2, 3])))
        np.testing.assert_array_equal(results['imgs'], imgs)
        results['imgs'][0][:] = 0
    assert [read.count(file) for file in files] == [1, 1, 1, 3]


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_cache__copies_begin_empty(tmp_path, copied):
    step = OpenVideo(backend='pyav', cache_bytes=10**6)
    step(dict(filename=encode(tmp_path / 'v.mp4')))
    assert step.cache.num_bytes > 0
    other = copied(step)
    assert other.cache.num_bytes == 0 and other.cache.max_bytes == 10**6


@pytest.mark.parametrize('max_bytes', [-1, 1.5])
def test_cache__bad_bounds_are_named(max_bytes):
    with pytest.raises(ValueError, match=f'at least 0, got {max_bytes}'):
        BoundedStore(max_bytes)
