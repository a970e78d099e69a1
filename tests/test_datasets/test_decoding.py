import copy
import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine import fileio

from tests.films import encode, in_sequence
from videomac_mm.datasets import (
    DecodeFrames,
    FrameFolderDecode,
    OpenResidentVideo,
    OpenVideo,
    UnusableVideoError,
    open_video,
)
from videomac_mm.datasets.kept_frames import BoundedStore

# --------------------------------------------------------------- reading of frames


def test_decode_frames__reads_each_once_and_in_the_order_of_time(tmp_path, write_video):
    file = str(write_video(tmp_path / 'v.mp4'))
    inds = np.array([4, 6, 8, 8, 5, 6, 7, 7])
    asked = []

    class Reader:
        def read(self, indices: list[int], planar: bool) -> list[np.ndarray]:
            asked.append(indices)
            return open_video(file).read(indices)

    results = DecodeFrames()(dict(video_reader=Reader(), frame_inds=inds))
    assert asked == [[4, 5, 6, 7, 8]] and 'video_reader' not in results
    every = in_sequence(file)
    np.testing.assert_array_equal(results['imgs'], [every[i] for i in inds])
    assert results['img_shape'] == results['original_shape'] == (48, 64)
    results['imgs'][2][:] = 0
    assert results['imgs'][3].any(), 'Flip works in place'


def test_frame_folder_decode__reads_by_index_in_rgb(tmp_path, write_frames):
    imgs = write_frames(tmp_path, ['00000.png', '00005.png', '00015.png'])
    files = [str(file) for file in sorted(tmp_path.iterdir())]
    results = FrameFolderDecode()(dict(frame_files=files, frame_inds=np.array([2, 0, 0])))
    for got, index in zip(results['imgs'], (2, 0, 0)):
        np.testing.assert_array_equal(got, imgs[index])
    assert results['img_shape'] == results['original_shape'] == (48, 64)
    assert results['imgs'][1] is not results['imgs'][2], 'Flip works in place'


def test_frame_folder_decode__reads_each_file_once(tmp_path, write_frames, monkeypatch):
    imgs = write_frames(tmp_path, ['0.png', '1.png', '2.png'])
    read = []
    get = fileio.get
    monkeypatch.setattr(fileio, 'get', lambda file, **kwargs: read.append(file) or get(file))
    files = [str(file) for file in sorted(tmp_path.iterdir())]
    inds = [0, 2, 2, 2, 0, 2]
    results = FrameFolderDecode()(dict(frame_files=files, frame_inds=np.array(inds)))
    assert read == [files[0], files[2]]
    np.testing.assert_array_equal(results['imgs'], [imgs[i] for i in inds])


@pytest.mark.parametrize('content', [b'', b'no picture'])
def test_frame_folder_decode__garbled_file_is_named(tmp_path, content):
    file = tmp_path / '00005.jpg'
    file.write_bytes(content)
    with pytest.raises(UnusableVideoError, match=rf'00005.jpg \({len(content)} bytes\)'):
        FrameFolderDecode()(dict(frame_files=[str(file)], frame_inds=[0]))


def test_frame_folder_decode__size_change_is_named(tmp_path):
    cv2.imwrite(str(tmp_path / '0.png'), np.zeros((8, 9, 3), np.uint8))
    cv2.imwrite(str(tmp_path / '1.png'), np.zeros((9, 8, 3), np.uint8))
    files = [str(tmp_path / '0.png'), str(tmp_path / '1.png')]
    with pytest.raises(UnusableVideoError, match=r'1.png has \(9, 8\), others \(8, 9\)'):
        FrameFolderDecode()(dict(frame_files=files, frame_inds=[0, 1]))


@pytest.mark.parametrize('planar', [False, True])
def test_decode_frames__a_size_that_changes_is_named(tmp_path, planar):
    small, large = (
        encode(tmp_path / f'{size[0]}.ts', num_frames=8, size=size) for size in ((48, 64), (96, 64))
    )
    file = tmp_path / 'both.ts'
    file.write_bytes(Path(small).read_bytes() + Path(large).read_bytes())
    reader = open_video(file)
    shapes = [img.shape[:2] for img in reader]
    assert {*shapes} == {(48, 64), (96, 64)}
    first = shapes.index((96, 64))
    decode = DecodeFrames(planar)
    decode(dict(video_reader=open_video(file), frame_inds=np.array([0, first - 1])))
    with pytest.raises(UnusableVideoError, match=r'both.ts have \(48, 64\) and \(96, 64\)'):
        decode(dict(video_reader=reader, frame_inds=np.array([0, first])))


@pytest.mark.parametrize('backend', ['pyav', 'decord'])
def test_open_video__reads_what_is_there_of_a_file_cut_short(tmp_path, write_video, backend):
    # DecordInit of mmaction2 ends the process on it.
    file = write_video(tmp_path / 'cut.avi', num_frames=30)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    reader = OpenVideo(backend=backend)(dict(filename=str(file)))['video_reader']
    assert reader.read([0])[0].shape == (48, 64, 3)


def test_open_video__odd_sizes(tmp_path: Path):
    frames = np.arange(6, dtype=np.uint8)[:, None] * np.full(3 * 75 * 101, 20, np.uint8)
    file = tmp_path / 'odd.mp4'  # raw frames, which cv2.VideoWriter cannot write in odd sizes
    file.write_bytes(
        b'YUV4MPEG2 W101 H75 F25:1 Ip A1:1 C444\n'
        + b''.join(b'FRAME\n' + frame.tobytes() for frame in frames)
    )
    results = OpenVideo()(dict(filename=str(file)))
    assert results['total_frames'] == 6 and results['avg_fps'] == 25
    assert [img.shape for img in results['video_reader'].read([0, 5])] == [(75, 101, 3)] * 2


# -------------------------------------------------------------------------- cache


@pytest.mark.parametrize('backend, share', [('pyav', 0.5), ('decord', 1)])
def test_cache__keeps_what_came_first_and_fits(tmp_path, monkeypatch, backend, share):
    files = [encode(tmp_path / f'{name}.mp4', num_frames=10) for name in 'abc']
    (frame,) = open_video(files[0], backend).read_raw([0], planar=True)
    size = sum(plane.nbytes for plane in frame.planes)
    assert size == 64 * 48 * 3 * share
    step = OpenVideo(backend=backend, cache_bytes=size * 25)
    opened = []
    real = OpenVideo._open
    monkeypatch.setattr(
        OpenVideo, '_open', lambda s, name, part: opened.append(name) or real(s, name, part)
    )
    decode = DecodeFrames()
    for _ in range(3):
        for file in files:
            results = step(dict(filename=file))
            assert results['total_frames'] == 10 and results['avg_fps'] == 25
            np.testing.assert_allclose(results['video_reader'].times, np.arange(10) / 25, atol=1e-3)
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


def test_open_resident_video__refuses_parts_of_files(tmp_path):
    with pytest.raises(ValueError, match='files of their own, got a part of a.tar'):
        OpenResidentVideo()(dict(filename='a.tar', part=(0, 10)))


WITHOUT_DECORD = """
import pkgutil, sys
sys.modules['decord'] = None
import videomac_mm
from mmengine.config import Config
from mmengine.registry import init_default_scope
for module in pkgutil.walk_packages(videomac_mm.__path__, 'videomac_mm.'):
    if not module.name.endswith('decoder'):  # a script
        __import__(module.name)
init_default_scope('videomac_mm')
config = Config.fromfile(sys.argv[1])
dataset = config.train_dataloader.dataset
dataset.data_root = sys.argv[2]
from videomac_mm.registry import DATASETS
print(DATASETS.build(dataset)[0]['inputs'].shape)
from videomac_mm.datasets import OpenVideo
try:
    OpenVideo(backend='decord')
except ImportError as err:
    print(err)
"""


def test_open_video__does_without_decord(tmp_path, root, write_video):
    write_video(tmp_path / 'v.mp4', num_frames=30)
    config = root / 'configs/_base_/datasets/video_pairs_224.py'
    command = [sys.executable, '-c', WITHOUT_DECORD, str(config), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'torch.Size([1, 3, 2, 224, 224])' in done.stdout
    assert "backend='decord' needs decord (pip install decord)" in done.stdout
