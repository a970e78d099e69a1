import errno
import itertools
import logging
import os
import pickle
import random
import resource
import shutil
import tarfile
from importlib.util import find_spec
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch.utils.data import DataLoader

from videomac_mm.datasets import (
    FsspecBackend,
    Place,
    ResumableSampler,
    UnlabelledVideoDataset,
    UnusableVideoError,
    unlabelled_videos,
)
from videomac_mm.datasets.shards import index_shard

CUT = [
    dict(
        type='videomac_mm.ForEachClip',
        transforms=[
            dict(type='mmaction.RandomResizedCrop', area_range=(0.2, 1.0)),
            dict(type='mmaction.Resize', scale=(32, 32), keep_ratio=False),
            dict(type='mmaction.Flip', flip_ratio=0.5),
        ],
    ),
    dict(type='mmaction.FormatShape', input_format='NCTHW'),
    dict(type='mmaction.PackActionInputs'),
]


BACKENDS = [
    'pyav',
    pytest.param(
        'decord', marks=pytest.mark.skipif(not find_spec('decord'), reason='decord is optional')
    ),
]


def video_pipeline(backend: str = 'pyav', **sampling) -> list[dict]:
    return [
        dict(type='videomac_mm.OpenVideo', backend=backend),
        dict(type='videomac_mm.SampleFramePair', **sampling),
        dict(type='videomac_mm.DecodeFrames'),
        *CUT,
    ]


def frame_pipeline(**sampling) -> list[dict]:
    return [
        dict(type='videomac_mm.SampleFramePair', **sampling),
        dict(type='videomac_mm.FrameFolderDecode'),
        *CUT,
    ]


@pytest.fixture
def log(monkeypatch) -> list[str]:
    """What the data set logs."""
    lines = []
    monkeypatch.setattr(unlabelled_videos, 'print_log', lambda text, **kwargs: lines.append(text))
    return lines


def names(dataset: UnlabelledVideoDataset) -> list[str]:
    infos = [dataset.get_data_info(i) for i in range(dataset.num_videos)]
    root = Path(dataset.data_root)
    return [str(Path(i.get('filename') or i['frame_dir']).relative_to(root)) for i in infos]


def touch(root: Path, *files: str) -> None:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()


# ------------------------------------------------------------------------ listing


def test_videos__are_found_in_all_folders_and_sorted(tmp_path):
    touch(tmp_path, 'b.mkv', 'a/z.MP4', 'a/deep/c.webm', 'a.avi', 'notes.txt', '.hidden.mp4')
    dataset = UnlabelledVideoDataset(str(tmp_path))
    assert names(dataset) == ['a.avi', 'a/deep/c.webm', 'a/z.MP4', 'b.mkv']


def test_videos__behind_links_are_found_once(tmp_path):
    touch(tmp_path, 'root/a/v.mp4', 'root/.hidden.mp4', 'elsewhere/w.mp4', 'root/new\nline ü.mp4')
    (tmp_path / 'root/a/loop').symlink_to(tmp_path / 'root')
    (tmp_path / 'root/self').symlink_to(tmp_path / 'root/self')
    (tmp_path / 'root/linked').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'root/broken.mp4').symlink_to(tmp_path / 'gone.mp4')
    dataset = UnlabelledVideoDataset(str(tmp_path / 'root'))
    assert names(dataset) == ['a/v.mp4', 'broken.mp4', 'linked/w.mp4', 'new\nline ü.mp4']


def test_frames__one_item_per_folder_of_pictures(tmp_path):
    touch(tmp_path, 'x/b/1.jpg', 'x/b/2.jpg', 'x/a/1.PNG', 'x/empty/notes.txt', 'y/1.jpg')
    assert names(UnlabelledVideoDataset(str(tmp_path), source='frames')) == ['x/a', 'x/b', 'y']
    inner = UnlabelledVideoDataset(str(tmp_path), source='frames', data_prefix='x')
    assert names(inner) == ['x/a', 'x/b']


@pytest.mark.parametrize('source', ['videos', 'frames'])
def test_ann_file__paths_only(tmp_path, source):
    (tmp_path / 'in').mkdir()
    (tmp_path / 'list.txt').write_text(
        '# name, label\nin sub/clip 2 b.mp4 17\n\n  plain.mp4\ncounted.mp4 300 5  \n'
    )
    dataset = UnlabelledVideoDataset(
        str(tmp_path), ann_file='list.txt', data_prefix='in', source=source
    )
    assert names(dataset) == ['in/in sub/clip 2 b.mp4', 'in/plain.mp4', 'in/counted.mp4']


def test_index_by_frame__pairs_stored_neighbours(tmp_path, write_frames):
    # not consecutive, and '1000' sorts before '995' as a string
    imgs = write_frames(tmp_path / 'v', ['990.png', '995.png', '1000.png', '1015.png'])
    write_frames(tmp_path / 'w', ['1.png', '2.png'])
    write_frames(tmp_path / 'single', ['1.png'])
    dataset = UnlabelledVideoDataset(
        str(tmp_path),
        source='frames',
        index_by='frame',
        pipeline=frame_pipeline(frame_interval=1)[:2],
    )
    assert names(dataset) == ['v'] * 3 + ['w']
    for i in range(3):
        for got, expected in zip(dataset[i]['imgs'], imgs[i : i + 2]):
            np.testing.assert_array_equal(got, expected)


def test_index_by_frame__only_frames_with_a_partner_at_the_interval(tmp_path):
    touch(tmp_path, *(f'v/{i}.jpg' for i in range(7)), *(f'w/{i}.jpg' for i in range(3)))

    def build(interval):
        return UnlabelledVideoDataset(
            str(tmp_path),
            source='frames',
            index_by='frame',
            pipeline=frame_pipeline(frame_interval=interval),
        )

    assert len(build(2)) == 5 + 1
    assert len(build((3, 6))) == 4
    with pytest.raises(ValueError, match='no frame has a partner at interval 7'):
        build(7)


def test_index_by_frame__needs_to_know_the_interval(tmp_path):
    touch(tmp_path, 'v/0.jpg', 'v/1.jpg')
    with pytest.raises(ValueError, match="needs a SampleFramePair with unit='frames'.*seconds"):
        UnlabelledVideoDataset(
            str(tmp_path),
            source='frames',
            index_by='frame',
            pipeline=frame_pipeline(frame_interval=0.2, unit='seconds'),
        )


@pytest.mark.parametrize(
    'arguments, error, message',
    [
        (dict(data_root=None), ValueError, 'data_root must name a folder, got None'),
        (dict(data_root='/no/such'), FileNotFoundError, 'data_root does not exist: /no/such'),
        (dict(source='video'), ValueError, "'videos', 'frames' or 'shards', got 'video'"),
        (dict(index_by='clip'), ValueError, "'video' or 'frame', got 'clip'"),
        (dict(index_by='frame'), ValueError, "needs source='frames', got 'videos'"),
        (dict(max_bad_share=2), ValueError, r'lie in \[0, 1\], got 2'),
        (dict(), ValueError, r'no videos found in .*empty.*: \.mp4, \.mkv, \.avi'),
        (dict(source='frames'), ValueError, r'no frames found in .*empty.*: \.jpg'),
        (dict(ann_file='no.txt'), FileNotFoundError, 'cannot read ann_file: .*empty/no.txt'),
        (dict(ann_file='blank.txt'), ValueError, 'ann_file lists nothing: .*blank.txt'),
        (dict(data_prefix='gone'), FileNotFoundError, 'gone'),
    ],
)
def test_construction__says_what_is_wrong(tmp_path, arguments, error, message):
    root = tmp_path / 'empty'
    root.mkdir()
    (root / 'blank.txt').write_text('# nothing\n\n')
    with pytest.raises(error, match=message):
        UnlabelledVideoDataset(**{'data_root': str(root), **arguments})


# -------------------------------------------------------------------------- items


@pytest.mark.parametrize('suffix', ['.mp4', '.avi', '.mkv'])
@pytest.mark.parametrize('backend', BACKENDS)
def test_item__is_a_batch_of_pairs(backend, tmp_path, write_video, suffix):
    write_video(tmp_path / f'v{suffix}')
    dataset = UnlabelledVideoDataset(
        str(tmp_path), pipeline=video_pipeline(backend, pairs_per_video=3)
    )
    inputs = dataset[0]['inputs']
    assert inputs.shape == (3, 3, 2, 32, 32) and inputs.dtype == torch.uint8


def test_item__both_frames_cut_alike_pairs_cut_differently(tmp_path, write_frames):
    still = write_frames(tmp_path / 'v', ['0.png'])[0]
    assert still.std() > 10
    for i in range(1, 6):
        (tmp_path / f'v/{i}.png').write_bytes((tmp_path / 'v/0.png').read_bytes())
    dataset = UnlabelledVideoDataset(
        str(tmp_path), source='frames', pipeline=frame_pipeline(pairs_per_video=5)
    )
    inputs = dataset[0]['inputs']  # (V, C, T, H, W)
    assert (inputs[:, :, 0] == inputs[:, :, 1]).all()
    assert all((inputs[i] != inputs[i + 1]).any() for i in range(4))


def test_item__fps_gives_folders_a_time(tmp_path, write_frames):
    write_frames(tmp_path / 'v', [f'{i}.png' for i in range(20)])
    sampling = dict(type='videomac_mm.SampleFramePair', frame_interval=0.5, unit='seconds')
    dataset = UnlabelledVideoDataset(str(tmp_path), source='frames', fps=6, pipeline=[sampling])
    assert dataset[0]['frame_interval'] == 3


DATASET_CONFIGS = [
    ('video_pairs_224', (1, 2)),
    ('ytvos_pairs_224', (1, 2)),
    ('k400_pairs_224', (1, 2)),
    ('video_clips_224', (1, 16)),
    ('k400_clips_224', (1, 16)),
    ('ssv2_clips_224', (1, 16)),
    ('ucf101_clips_224', (1, 16)),
    ('hmdb51_clips_224', (1, 16)),
]


def load_config(root: Path, name: str) -> Config:
    init_default_scope('videomac_mm')
    return Config.fromfile(root / 'configs' / '_base_' / 'datasets' / f'{name}.py')


@pytest.mark.parametrize('name, shape', DATASET_CONFIGS)
def test_configs__give_the_batch_that_models_take(
    tmp_path, root, write_video, write_frames, name, shape
):
    config = load_config(root, name)
    arguments = config.train_dataloader.dataset
    folder = tmp_path / arguments.get('data_prefix', '')
    if arguments.source == 'frames':
        write_frames(folder / 'v', ['00000.png', '00005.png', '00010.png'])
    else:
        write_video(folder / 'sub' / 'v.mp4')
    if 'ann_file' in arguments:
        (tmp_path / arguments.ann_file).write_text('sub/v.mp4 3\n')
    dataset = DATASETS.build({**arguments, 'data_root': str(tmp_path)})
    batch = pseudo_collate([dataset[0], dataset[len(dataset) - 1]])
    inputs = MODELS.build(config.data_preprocessor)(batch, training=True)['inputs']
    views, length = shape
    assert inputs.shape == (2, views, 3, length, 224, 224) and inputs.dtype == torch.float32
    assert inputs.abs().max() < 3 and inputs.std() > 0.1


def test_configs__resident_frames_give_the_same_batch(tmp_path, root, write_video):
    write_video(tmp_path / 'v.mp4')
    inputs = []
    for name in ('video_pairs_224', 'video_pairs_224_resident'):
        config = load_config(root, name)
        if name.endswith('resident'):
            config.data_preprocessor.resident.data_root = str(tmp_path)
        arguments = {**config.train_dataloader.dataset, 'spread_pairs': False}
        if name == 'video_pairs_224':
            arguments['pipeline'][2].planar = False
        dataset = DATASETS.build({**arguments, 'data_root': str(tmp_path)})
        random.seed(0)
        np.random.seed(0)
        batch = pseudo_collate([dataset[0]])
        inputs.append(MODELS.build(config.data_preprocessor)(batch, training=True)['inputs'])
    # in units of the normalisation: one level of 255 is 0.018
    assert inputs[0].shape == inputs[1].shape == (1, 8, 3, 2, 224, 224)
    assert (inputs[0] - inputs[1]).abs().max() < 0.02


# -------------------------------------------------------------------------- clips


def clip_pipeline(root: Path, **sampling) -> list[dict]:
    """As our configs read clips, at 32 pixels."""
    pipeline = load_config(root, 'clips_224').train_dataloader.dataset.pipeline
    pipeline[1].update(sampling)
    pipeline[3].input_size = 32
    pipeline[4].scale = (32, 32)
    return pipeline


@pytest.mark.parametrize('suffix', ['.mp4', '.avi', '.mkv'])
def test_clips__of_files(tmp_path, root, write_video, suffix):
    write_video(tmp_path / f'v{suffix}', num_frames=40)
    pipeline = clip_pipeline(root, frame_interval=2, max_shift=4)
    inputs = UnlabelledVideoDataset(str(tmp_path), pipeline=pipeline)[0]['inputs']
    assert inputs.shape == (2, 3, 16, 32, 32) and inputs.dtype == torch.uint8
    assert (inputs[:, :, 1:] != inputs[:, :, :-1]).any((1, 3, 4)).all(), 'it must move'


@pytest.mark.skipif(not find_spec('decord'), reason='decord is optional')
def test_clips__read_by_mmaction_are_the_same(tmp_path, root, write_video):
    write_video(tmp_path / 'v.mp4', num_frames=30)
    opened, sampler, ours, *cut = clip_pipeline(root, clip_len=8, frame_interval=2, max_shift=4)
    items = []
    theirs = [dict(type='mmaction.DecordInit'), dict(type='mmaction.DecordDecode')]
    for reading in ([opened, ours], theirs):
        random.seed(0)
        np.random.seed(0)
        pipeline = [reading[0], sampler, reading[1], *cut]
        items.append(UnlabelledVideoDataset(str(tmp_path), pipeline=pipeline)[0]['inputs'])
    assert torch.equal(*items)
    assert torch.equal(items[0][0, :, 2:], items[0][1, :, :-2]), 'the clips must overlap'


def test_clips__all_frames_of_both_are_cut_alike(tmp_path, root, write_frames):
    assert write_frames(tmp_path / 'v', ['0.png'])[0].std() > 10
    for i in range(1, 40):  # a still
        (tmp_path / f'v/{i}.png').write_bytes((tmp_path / 'v/0.png').read_bytes())
    _, *steps = clip_pipeline(root, frame_interval=2, max_shift=4)
    steps[1] = dict(type='videomac_mm.FrameFolderDecode')
    dataset = UnlabelledVideoDataset(str(tmp_path), source='frames', pipeline=steps)
    pictures = set()
    for _ in range(20):
        inputs = dataset[0]['inputs']
        assert inputs.shape == (2, 3, 16, 32, 32)
        assert (inputs == inputs[:1, :, :1]).all()
        pictures.add(inputs[0, :, 0].numpy().tobytes())
    assert len(pictures) > 5, 'the box must be drawn'


def test_clips__bad_videos_are_replaced(tmp_path, root, write_video, log):
    for i in range(3):
        write_video(tmp_path / f'good{i}.mp4')
    write_video(tmp_path / 'single.avi', num_frames=1)  # one frame is enough
    (tmp_path / 'empty.mp4').touch()
    dataset = UnlabelledVideoDataset(
        str(tmp_path), pipeline=clip_pipeline(root, max_shift=1), max_bad_share=0.2
    )
    for i in range(len(dataset)):
        assert dataset[i]['inputs'].shape == (2, 3, 16, 32, 32)
    assert [Path(path).name for path in dataset.bad_videos] == ['empty.mp4'] and len(log) == 1


def test_clips__folder_without_frames_is_replaced(tmp_path, root, write_frames, log):
    write_frames(tmp_path / 'good', ['0.png', '1.png'])
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'list.txt').write_text('good\nempty\n')
    _, sampler, *_ = clip_pipeline(root)
    dataset = UnlabelledVideoDataset(
        str(tmp_path), 'list.txt', source='frames', pipeline=[sampler], max_bad_share=0.5
    )
    assert dataset[1]['frame_inds'].tolist() == [0] * 16
    assert 'a clip needs a frame, the video has 0' in log[0]


@pytest.mark.parametrize('name', ['k400', 'ssv2', 'ucf101', 'hmdb51', 'video'])
def test_clips__configs_can_be_told_to_draw_two(tmp_path, root, name):
    # As a config of CMAE-V does; numbers in the path of a pipeline step are for --cfg-options.
    path = root / 'configs' / '_base_' / 'datasets' / f'{name}_clips_224.py'
    (tmp_path / 'delta.py').write_text(
        f"_base_ = '{path}'\n"
        'train_dataloader = _base_.train_dataloader\n'
        'train_dataloader.dataset.pipeline[1].max_shift = 8\n'
    )
    plain, delta = Config.fromfile(path), Config.fromfile(tmp_path / 'delta.py')
    interval = 2 if name == 'ssv2' else 4
    sampler = dict(type='videomac_mm.SampleClips', clip_len=16, frame_interval=interval)
    assert plain.train_dataloader.dataset.pipeline[1] == sampler
    assert delta.train_dataloader.dataset.pipeline[1] == {**sampler, 'max_shift': 8}
    plain.merge_from_dict({'train_dataloader.dataset.pipeline.1.max_shift': 8})
    assert plain.train_dataloader == delta.train_dataloader


# ------------------------------------------------------------------------ bad ones


@pytest.fixture
def with_bad(tmp_path, write_video) -> Path:
    """Five good videos and three that no pair can be drawn from."""
    for i in range(5):
        write_video(tmp_path / f'good{i}.mp4')
    (tmp_path / 'empty.mp4').touch()
    (tmp_path / 'garbage.mkv').write_bytes(b'\x01\x00no video' * 50)
    write_video(tmp_path / 'single.avi', num_frames=1)
    return tmp_path


@pytest.mark.parametrize('backend', BACKENDS)
def test_bad__are_replaced_counted_and_named_once(backend, with_bad, log):
    dataset = UnlabelledVideoDataset(
        str(with_bad), pipeline=video_pipeline(backend, frame_interval=2), max_bad_share=0.5
    )
    for _ in range(2):  # epochs
        for i in range(len(dataset)):
            assert dataset[i]['inputs'].shape == (1, 3, 2, 32, 32)
    assert dataset.num_bad == 3
    bad = [str(with_bad / name) for name in ('empty.mp4', 'garbage.mkv', 'single.avi')]
    assert sorted(dataset.bad_videos) == bad
    assert len(log) == 3
    for i, line in enumerate(log, start=1):
        assert f'({i} of 8 so far)' in line and '\n' not in line
    assert sum('empty.mp4' in line for line in log) == 1
    assert any('single.avi' in line and 'a pair needs 2 frames' in line for line in log)


def test_bad__too_many_stop_the_run(with_bad, log):
    dataset = UnlabelledVideoDataset(str(with_bad), pipeline=video_pipeline(), max_bad_share=0.3)
    with pytest.raises(RuntimeError, match=r'3 of 8 items \(37.5%\).*max_bad_share=30.0%') as info:
        for i in range(len(dataset)):
            dataset[i]
    for name in ('empty.mp4', 'garbage.mkv', 'single.avi'):
        assert name in str(info.value)


def test_bad__all_stop_the_run_whatever_the_share(tmp_path, log):
    touch(tmp_path, 'a.mp4', 'b.mp4')
    dataset = UnlabelledVideoDataset(str(tmp_path), pipeline=video_pipeline(), max_bad_share=1)
    with pytest.raises(RuntimeError, match='2 of 2 items'):
        dataset[0]


def test_bad__test_mode_raises(tmp_path, log):
    touch(tmp_path, 'a.mp4')
    dataset = UnlabelledVideoDataset(str(tmp_path), pipeline=video_pipeline(), test_mode=True)
    with pytest.raises(UnusableVideoError, match='cannot read .*a.mp4'):
        dataset[0]
    assert dataset.num_bad == 0


def test_bad__frame_folders(tmp_path, write_frames, log):
    write_frames(tmp_path / 'good', ['0.png', '1.png', '2.png'])
    write_frames(tmp_path / 'single', ['0.png'])
    write_frames(tmp_path / 'torn', ['0.png', '1.png'])
    (tmp_path / 'torn' / '1.png').write_bytes(b'')
    (tmp_path / 'list.txt').write_text('good\nsingle\ntorn\ngone\n')
    dataset = UnlabelledVideoDataset(
        str(tmp_path),
        ann_file='list.txt',
        source='frames',
        pipeline=frame_pipeline(),
        max_bad_share=0.8,
    )
    for i in range(4):
        assert dataset[i] is not None
    assert [Path(path).name for path in dataset.bad_videos] == ['single', 'torn', 'gone']
    assert any('torn/1.png (0 bytes)' in line for line in log)


def raising(error: Exception):
    def transform(results: dict) -> dict:
        raise error

    return transform


@pytest.mark.parametrize(
    'error',
    [TypeError('x'), KeyError('x'), RuntimeError('x'), ValueError('x'), AssertionError('x')],
)
def test_mistakes_in_the_program__are_not_taken_for_bad_videos(tmp_path, error):
    touch(tmp_path, 'a.mp4', 'b.mp4')
    dataset = UnlabelledVideoDataset(str(tmp_path), pipeline=[raising(error)], max_bad_share=1)
    with pytest.raises(type(error)):
        dataset[0]
    assert dataset.num_bad == 0


@pytest.mark.parametrize('backend', BACKENDS)
def test_mistakes_in_the_program__index_beyond_the_video(backend, tmp_path, write_video):
    write_video(tmp_path / 'a.mp4', num_frames=3)
    opened, _, decoded, *_ = video_pipeline(backend)

    def choose(results: dict) -> dict:
        return {**results, 'frame_inds': np.array([0, 3])}

    dataset = UnlabelledVideoDataset(str(tmp_path), pipeline=[opened, choose, decoded])
    with pytest.raises(IndexError):  # by the reader, but our fault
        dataset[0]


@pytest.mark.parametrize('error', [OSError('x'), UnusableVideoError('x')])
def test_data_errors__from_anywhere_count(tmp_path, error, log):
    touch(tmp_path, 'a.mp4', 'b.mp4')
    dataset = UnlabelledVideoDataset(str(tmp_path), pipeline=[raising(error)], max_bad_share=1)
    with pytest.raises(RuntimeError, match=f'{type(error).__name__}: x'):
        dataset[0]
    assert dataset.num_bad == 2


class Flaky:
    """A transform that fails so many times, and then lets samples pass."""

    def __init__(self, error: Exception, times: int) -> None:
        self.error, self.times = error, times
        self.drawn = []

    def __call__(self, results: dict) -> dict:
        self.drawn.append(np.random.rand())
        if self.times:
            self.times -= 1
            raise self.error
        return results


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """How long was waited."""
    seconds = []
    monkeypatch.setattr(unlabelled_videos.time, 'sleep', seconds.append)
    return seconds


BUSY = OSError(errno.EMFILE, 'Too many open files')


def test_faults_of_the_moment__are_tried_again(tmp_path, log, waits):
    """The item is then what it would have been."""
    touch(tmp_path, 'a.mp4', 'b.mp4')
    flaky = Flaky(BUSY, times=3)
    dataset = UnlabelledVideoDataset(str(tmp_path), pipeline=[flaky])
    assert dataset[Place(1, 0, 0)]['filename'].endswith('b.mp4')
    assert waits == [0.1, 0.5, 2.5] and len(set(flaky.drawn)) == 1
    assert dataset.num_bad == dataset.num_missed == 0 and not log


def test_faults_of_the_moment__that_last_pass_over_a_video_once(tmp_path, log, waits):
    touch(tmp_path, *(f'{i}.mp4' for i in range(5)))
    flaky = Flaky(BUSY, times=4)
    dataset = UnlabelledVideoDataset(str(tmp_path), pipeline=[flaky], max_bad_share=0)
    other = dataset[Place(1, 0, 0)]['filename']
    assert not other.endswith('1.mp4')
    assert (dataset.num_bad, dataset.num_missed) == (0, 1)
    (line,) = log
    assert '1.mp4 this once, after 4 tries: OSError: [Errno 24] Too many open files' in line
    assert dataset[Place(1, 0, 1)]['filename'].endswith('1.mp4'), 'it stays usable'
    assert [fault.kind for fault in dataset.faults.news()] == ['moment']
    assert dataset.faults.news() == []


def test_faults_of_the_moment__without_end_stop_the_run(tmp_path, log, waits):
    touch(tmp_path, 'a.mp4', 'b.mp4')
    dataset = UnlabelledVideoDataset(str(tmp_path), pipeline=[Flaky(BUSY, times=10**6)])
    with pytest.raises(RuntimeError, match='50 videos in a row .* each tried 4 times.*Too many'):
        dataset[Place(0, 0, 0)]
    assert dataset.num_missed == 50


def test_faults_of_the_moment__of_the_system_itself(tmp_path, write_video, waits):
    """No file descriptors are left, for PyAV in this process."""
    write_video(tmp_path / 'v.mp4')
    pipeline = video_pipeline()
    pipeline[0]['time_limit'] = None
    dataset = UnlabelledVideoDataset(str(tmp_path), pipeline=pipeline)
    assert dataset[0] is not None
    taken, limit = [], resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, limit[1]))
        with pytest.raises(OSError, match='Too many open files'):
            while True:
                taken.append(open(os.devnull))
        unlabelled_videos.time.sleep = lambda seconds: (
            waits.append(seconds) or [file.close() for file in taken]
        )
        assert dataset[0] is not None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        for file in taken:
            file.close()
    assert waits == [0.1] and dataset.num_bad == 0


def test_frames__that_vanish_are_the_datas_fault(tmp_path, write_frames, log):
    for name in 'abc':
        write_frames(tmp_path / name, [f'{i}.png' for i in range(4)])
    dataset = UnlabelledVideoDataset(
        str(tmp_path),
        source='frames',
        index_by='frame',
        pipeline=frame_pipeline(),
        max_bad_share=0.5,
    )
    (tmp_path / 'a' / '3.png').unlink()
    shutil.rmtree(tmp_path / 'b')
    for i in range(len(dataset)):
        assert dataset[i] is not None
    assert dataset.num_bad == 1 + 3 and all('FileNotFoundError' in line for line in log)
    # Listed now, the folder is too short for some of the items.
    dataset._listings.clear()
    dataset.faults.bad[:] = False
    assert dataset[2] is not None
    assert any('pair_start must lie in [0, 1]' in line for line in log)


def test_frames__of_a_folder_are_listed_once(tmp_path, write_frames, monkeypatch):
    for name in 'ab':
        write_frames(tmp_path / name, [f'{i}.png' for i in range(4)])
    listed = []
    real = unlabelled_videos.fileio.list_dir_or_file
    monkeypatch.setattr(
        unlabelled_videos.fileio,
        'list_dir_or_file',
        lambda folder, **kwargs: listed.append(folder) or real(folder, **kwargs),
    )
    arguments = dict(source='frames', index_by='frame', pipeline=frame_pipeline())
    dataset = UnlabelledVideoDataset(str(tmp_path), **arguments)
    for _ in range(3):
        for i in range(len(dataset)):
            dataset[i]
    assert [Path(folder).name for folder in listed] == ['a', 'b']
    monkeypatch.setattr(dataset, 'MAX_LISTED', 4)
    listed.clear()
    dataset._listings.clear()
    dataset._num_listed = 0
    for i in (0, 1, 3, 4, 0):
        dataset[i]
    assert [Path(folder).name for folder in listed] == ['a', 'b', 'a']


# ------------------------------------------------------------------------- shards


@pytest.fixture
def packed(tmp_path, write_video) -> Path:
    """Six videos, in a folder and in three archives."""
    for number in range(3):
        (tmp_path / 'shards').mkdir(exist_ok=True)
        with tarfile.open(tmp_path / 'shards' / f'{number}.tar', 'w') as archive:
            for name in 'ab':
                file = write_video(tmp_path / 'files' / f'{number}{name}.mp4', num_frames=15)
                archive.add(file, f'sub/{file.name}')
                archive.add(__file__, f'sub/{number}{name}.txt')
    return tmp_path


def test_shards__give_the_items_of_their_files(packed):
    files, shards = (
        UnlabelledVideoDataset(str(packed / name), source=source, pipeline=video_pipeline())
        for name, source in (('files', 'videos'), ('shards', 'shards'))
    )
    assert len(files) == len(shards) == 6 and shards.group_sizes == [2, 2, 2]
    for i in range(6):
        assert torch.equal(files[Place(i, 0, 0)]['inputs'], shards[Place(i, 0, 0)]['inputs'])


def test_shards__damaged_ones_are_told(packed, log):
    cut = packed / 'shards' / '1.tar'
    index = index_shard(str(cut), ('.mp4',))
    data = bytearray(cut.read_bytes()[: index.members[1].offset + 100])
    start, size = index.members[0][1:]
    data[start : start + size] = bytes(size)
    cut.write_bytes(data)
    dataset = UnlabelledVideoDataset(
        str(packed / 'shards'), source='shards', pipeline=video_pipeline(), max_bad_share=0.5
    )
    assert '1.tar is cut short or damaged: the first 1 videos are used' in log[0]
    assert len(dataset) == 5 and dataset[2] is not None
    assert dataset.bad_videos == [f'{cut}: sub/1a.mp4']


def test_shards__without_videos_are_named(tmp_path):
    with tarfile.open(tmp_path / 'a.tar', 'w') as archive:
        archive.add(__file__, 'a.py')
    with pytest.raises(ValueError, match='no videos found in 1 archives under .*searched: .mp4'):
        UnlabelledVideoDataset(str(tmp_path), source='shards')


def test_shards__of_remote_storage_are_fetched_once(packed, monkeypatch):
    memory = fsspec.filesystem('memory')
    memory.put(str(packed / 'shards'), '/shards', recursive=True)
    dataset = UnlabelledVideoDataset(
        'memory://shards', source='shards', spread_pairs=True, pipeline=video_pipeline()
    )
    fetched = []
    real = FsspecBackend.get_local_path
    monkeypatch.setattr(
        FsspecBackend,
        'get_local_path',
        lambda self, path: fetched.append(Path(path).name) or real(self, path),
    )
    sampler = ResumableSampler(dataset)
    sampler.bind(batch_size=2, drop_last=True, endless=True)
    for place in itertools.islice(sampler, 18):
        assert dataset[place]['inputs'].shape == (1, 3, 2, 32, 32)
    assert sorted(fetched) == ['0.tar', '1.tar', '2.tar']
    memory.rm('/shards', recursive=True)


# ------------------------------------------------------------------------- spread


def spread(root: Path, pairs: int = 4, **options) -> UnlabelledVideoDataset:
    pipeline = video_pipeline(pairs_per_video=pairs)
    return UnlabelledVideoDataset(str(root), pipeline=pipeline, **options)


def test_spread_pairs__are_those_of_the_video_one_by_one(tmp_path, write_video):
    for i in range(3):
        write_video(tmp_path / f'{i}.mp4')
    whole, parts = spread(tmp_path), spread(tmp_path, spread_pairs=True)
    assert (len(whole), len(parts), parts.num_videos) == (3, 12, 3)
    expected = whole[Place(1, 5, 2)]['inputs']
    got = [parts[Place(4 + i, 5, 2)]['inputs'] for i in range(4)]
    assert all(inputs.shape == (1, 3, 2, 32, 32) for inputs in got)
    assert torch.equal(torch.cat(got), expected)
    # in any order, and in another process that has to read the video again
    again = spread(tmp_path, spread_pairs=True)
    assert torch.equal(again[Place(6, 5, 2)]['inputs'], got[2])
    assert torch.equal(again[Place(4, 5, 2)]['inputs'], got[0])
    assert parts[3]['inputs'].shape == (1, 3, 2, 32, 32), 'a plain index draws'


def test_spread_pairs__read_a_video_once(tmp_path, write_video, monkeypatch):
    for i in range(6):
        write_video(tmp_path / f'{i}.mp4')
    dataset = spread(tmp_path, spread_pairs=True)
    read = []
    real = dataset.read_video
    monkeypatch.setattr(dataset, 'read_video', lambda index: read.append(index) or real(index))
    sampler = ResumableSampler(dataset)
    sampler.bind(batch_size=2, drop_last=True, endless=True)
    places = itertools.islice(sampler, 5 * len(dataset))
    for place in places:
        dataset[place]
    # 30 turns of 6 videos, of which some had begun before the first and some are not over
    assert 5 * 6 <= len(read) <= 6 * 6


def test_spread_pairs__of_a_bad_video_are_another_ones(with_bad, log):
    dataset = spread(with_bad, spread_pairs=True, max_bad_share=0.5)
    bad = names(dataset).index('empty.mp4')
    items = [dataset[Place(4 * bad + i, 0, 0)]['inputs'] for i in range(4)]
    assert all(item.shape == (1, 3, 2, 32, 32) for item in items)
    assert dataset.num_bad >= 1 and dataset.bad_items.count(bad) == 1


def test_spread_pairs__says_what_it_needs(tmp_path, write_video):
    write_video(tmp_path / 'v.mp4')
    with pytest.raises(ValueError, match=r"spread_pairs needs a SampleFramePair.*got \['Open"):
        UnlabelledVideoDataset(
            str(tmp_path), pipeline=[dict(type='videomac_mm.OpenVideo')], spread_pairs=True
        )
    pipeline = [*video_pipeline(pairs_per_video=4), lambda r: {**r, 'inputs': r['inputs'][:3]}]
    dataset = UnlabelledVideoDataset(str(tmp_path), pipeline=pipeline, spread_pairs=True)
    with pytest.raises(ValueError, match='ends in the clips of 4 pairs, got 3 clips'):
        dataset[0]


# ------------------------------------------------------------------------- workers


@pytest.mark.parametrize('start', ['fork', 'spawn'])
def test_workers__share_the_count(with_bad, start):
    dataset = UnlabelledVideoDataset(str(with_bad), pipeline=video_pipeline(), max_bad_share=0.5)
    dataset[names(dataset).index('good0.mp4')]  # a decoder before the fork
    loader = DataLoader(
        dataset,
        batch_size=4,
        num_workers=2 if start == 'fork' else 1,
        collate_fn=pseudo_collate,
        multiprocessing_context=start,
        timeout=60,
    )
    batches = list(loader)
    assert [len(batch['inputs']) for batch in batches] == [4, 4]
    assert dataset.num_bad == 3 and len(dataset.bad_videos) == 3


def test_workers__stop_the_run(with_bad):
    dataset = UnlabelledVideoDataset(str(with_bad), pipeline=video_pipeline(), max_bad_share=0.1)
    loader = DataLoader(dataset, num_workers=1, collate_fn=pseudo_collate, timeout=60)
    batches = iter(loader)
    with pytest.raises(RuntimeError, match='more than max_bad_share=10.0% allows'):
        list(batches)
    batches._shutdown_workers()  # now, not while the next test forks


def test_workers__draw_differently(tmp_path, write_video):
    from mmengine.dataset import worker_init_fn

    write_video(tmp_path / 'v.mp4', num_frames=30)
    dataset = UnlabelledVideoDataset(str(tmp_path), pipeline=video_pipeline())
    loader = DataLoader(
        torch.utils.data.ConcatDataset([dataset] * 4),
        num_workers=2,
        collate_fn=pseudo_collate,
        worker_init_fn=lambda i: worker_init_fn(i, num_workers=2, rank=0, seed=0),
        timeout=60,
    )
    inputs = [batch['inputs'][0] for batch in loader]
    assert all((inputs[i] != inputs[j]).any() for i in range(4) for j in range(i))


# -------------------------------------------------------- what BaseDataset promises


def test_lazy_init__lists_later(tmp_path):
    dataset = UnlabelledVideoDataset(str(tmp_path), lazy_init=True)
    assert dataset.num_bad == 0 and dataset.bad_videos == []
    touch(tmp_path, 'a.mp4')
    dataset.full_init()
    assert len(dataset) == 1


@pytest.mark.parametrize('serialize', [True, False])
def test_subset__counts_for_itself(with_bad, log, serialize):
    dataset = UnlabelledVideoDataset(
        str(with_bad), pipeline=video_pipeline(), max_bad_share=0.5, serialize_data=serialize
    )
    empty = names(dataset).index('empty.mp4')
    dataset[empty]
    subset = dataset.get_subset([empty, empty + 2, empty + 3, empty + 4])
    assert dataset.num_bad == 1 and subset.num_bad == 0
    subset[0]
    assert [Path(path).name for path in subset.bad_videos] == ['empty.mp4']
    dataset.get_subset_([0, 1])
    assert dataset.num_bad == 0 and len(dataset) == 2


def test_subset__leaves_nothing_in_mmengine(tmp_path):
    # What stays in the memo that all calls share comes back in a later subset.
    touch(tmp_path, 'a.mp4', 'b.mp4')
    memo = BaseDataset._copy_without_annotation.__defaults__[0]
    before = len(memo or ())
    subset = UnlabelledVideoDataset(str(tmp_path), pipeline=[dict]).get_subset([1])
    assert names(subset) == ['b.mp4'] and subset.pipeline.transforms == [dict]
    assert len(memo or ()) == before


def test_pickle__keeps_everything(tmp_path, write_video):
    write_video(tmp_path / 'v.mp4')
    dataset = pickle.loads(
        pickle.dumps(UnlabelledVideoDataset(str(tmp_path), pipeline=video_pipeline()))
    )
    assert dataset[0]['inputs'].shape == (1, 3, 2, 32, 32)


# ----------------------------------------------------------------------- real files


def test_real__clips_of_short_and_large_videos(data_dir, root):
    dataset = UnlabelledVideoDataset(
        str(data_dir / 'videos'), pipeline=clip_pipeline(root, max_shift=8), max_bad_share=0
    )
    # 36 frames of 240p, fewer than a clip spans; 103 frames of 1080p
    for name in ('imageio_realshort.mp4', 'mmaction_ntu.avi'):
        inputs = dataset[names(dataset).index(name)]['inputs']
        assert inputs.shape == (2, 3, 16, 32, 32) and inputs.float().std() > 5


@pytest.mark.parametrize('backend', BACKENDS)
def test_real__every_container(backend, data_dir):
    dataset = UnlabelledVideoDataset(
        str(data_dir / 'videos'),
        pipeline=video_pipeline(backend, frame_interval=(0.1, 0.3), unit='seconds'),
        max_bad_share=0,
    )
    assert len(dataset) == 50
    for name in ('asl_brother.mkv', 'mmaction_ntu.avi', 'imageio_realshort.mp4'):
        assert dataset[names(dataset).index(name)]['inputs'].float().std() > 5


def broken(data_dir: Path, name: str, backend: str) -> UnlabelledVideoDataset:
    """A data set of one difficult file, the pipeline as far as the pictures."""
    dataset = UnlabelledVideoDataset(
        str(data_dir / 'broken'), pipeline=video_pipeline(backend)[:3], max_bad_share=1
    )
    return dataset.get_subset([names(dataset).index(name)])


@pytest.mark.parametrize('backend', BACKENDS)
def test_real__rotation_flag_gives_an_upright_picture(backend, data_dir):
    assert broken(data_dir, 'rot_90.mov', backend)[0]['img_shape'] == (568, 320)


@pytest.mark.parametrize('backend', BACKENDS)
def test_real__unordered_timestamps_are_put_in_order(backend, data_dir):
    reader = []
    dataset = broken(data_dir, 'unordered.mov', backend)
    dataset.pipeline.transforms.insert(1, lambda r: reader.append(r['video_reader']) or r)
    assert len(dataset[0]['imgs']) == 2
    assert len(reader[0].times) == 4 and (np.diff(reader[0].times) > 0).all()


@pytest.mark.parametrize('backend', BACKENDS)
def test_real__damage_further_on_fails_where_it_is_met(backend, data_dir, log):
    dataset = broken(data_dir, 'corrupted.mp4', backend)
    dataset.pipeline.transforms.insert(0, lambda r: {**r, 'pair_start': 5})
    assert dataset[0]['img_shape'] == (720, 1280)

    dataset = broken(data_dir, 'corrupted.mp4', backend)
    dataset.pipeline.transforms.insert(0, lambda r: {**r, 'pair_start': 40})
    error = '(DECORD|InvalidData)Error'
    with pytest.raises(RuntimeError, match=f'1 of 1 items.*corrupted.mp4.*{error}'):
        dataset[0]


def test_log__goes_to_the_current_logger(tmp_path, write_video, capfd):
    from mmengine.logging import MMLogger

    MMLogger.get_instance('run', logger_name='run', log_level=logging.INFO)
    write_video(tmp_path / 'good.mp4')
    touch(tmp_path, 'bad.mp4')
    UnlabelledVideoDataset(str(tmp_path), pipeline=video_pipeline(), max_bad_share=0.5)[0]
    assert 'Skipping unusable video' in ''.join(capfd.readouterr())
