import io
import pickle
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner
from PIL import Image
from scipy.io import savemat

from videomac_mm.datasets import (
    DAVISDataset,
    JHMDBDataset,
    LoadFrame,
    PackFrame,
    ResizeShortSide,
    SyntheticLabelDataset,
    SyntheticVideo,
    VideoSampler,
    VIPDataset,
    label_propagation,
)

SIZE = (24, 40)
PIPELINE = [dict(type='videomac_mm.LoadFrame'), dict(type='videomac_mm.PackFrame')]
PALETTE = np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes()


def write_label(path: Path, ids: np.ndarray, mode: str = 'P') -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    img = Image.fromarray(ids)
    if mode == 'P':
        img.putpalette(PALETTE)
    img.save(path)


def ids_of(video: int, frame: int) -> np.ndarray:
    return SyntheticVideo(video, 9, SIZE).mask(frame)


def picture_of(video: int, frame: int) -> np.ndarray:
    """(H, W, 3) BGR."""
    return np.ascontiguousarray(SyntheticVideo(video, 9, SIZE).frame(frame)[..., ::-1])


def write_pictures(folder: Path, video: int, names: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for frame, name in enumerate(names):
        cv2.imwrite(str(folder / name), picture_of(video, frame))


@pytest.fixture
def davis(tmp_path) -> Path:
    """Three videos of 3, 2 and 1 frames; the list names two of them."""
    root = tmp_path / 'DAVIS'
    for video, (name, length) in enumerate([('bear', 3), ('cat', 2), ('ant', 1)]):
        names = [f'{t:05d}' for t in range(length)]
        write_pictures(root / 'JPEGImages/480p' / name, video, [f'{n}.png' for n in names])
        for t, stem in enumerate(names):
            write_label(root / 'Annotations/480p' / name / f'{stem}.png', ids_of(video, t))
    write_list(root / 'ImageSets/2017/val.txt', 'cat', 'bear')
    return root


@pytest.fixture
def vip(tmp_path) -> Path:
    root = tmp_path / 'VIP'
    names = [f'{25 * t:012d}' for t in range(3)]
    write_pictures(root / 'Images/videos7', 0, [f'{n}.png' for n in names])
    for t, stem in enumerate(names):
        ids = ids_of(0, t)
        ids[0, 0] = 255
        write_label(root / 'Annotations/Category_ids/videos7' / f'{stem}.png', ids, 'L')
    write_list(root / 'lists/val_videos.txt', 'videos7')
    return root


@pytest.fixture
def jhmdb(tmp_path) -> Path:
    """A test video with 4 frames of which 3 are annotated, and one without splits."""
    root = tmp_path / 'JHMDB'
    for video, name in enumerate(['jump/a_(b)_jump_0', 'sit/c_sit_1']):
        folder = root / 'Rename_Images' / name
        write_pictures(folder, video, [f'{t + 1:05d}.png' for t in range(4)])
        write_joints(root / 'joint_positions' / name / 'joint_positions.mat', joints(video))
    write_list(root / 'splits/jump_test_split1.txt', 'a_(b)_jump_0.avi 2', 'other_jump.avi 1')
    write_list(root / 'splits/sit_test_split1.txt', 'c_sit_1.avi 0')
    write_list(root / 'splits/sit_test_split2.txt', 'c_sit_1.avi 2')
    return root


def joints(video: int) -> np.ndarray:
    """(2, 15, 3), counted from 1."""
    return np.random.default_rng(video).uniform(1, 40, (2, 15, 3))


def write_joints(path: Path, points: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, dict(pos_img=points, pos_world=points))


def write_list(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(lines) + '\n')


def videos_of(dataset) -> dict[str, int]:
    """Number of items of each video, in order."""
    names = [dataset.get_data_info(i)['video'] for i in range(len(dataset))]
    return {name: names.count(name) for name in names}


# -------------------------------------------------------------------------- items


def test_item__is_a_frame_with_its_label(davis):
    dataset = DAVISDataset(str(davis), pipeline=PIPELINE)
    assert videos_of(dataset) == {'cat': 2, 'bear': 3}, 'the order of the list'
    item = dataset[3]
    inputs, sample = item['inputs'], item['data_samples']
    assert inputs.dtype == torch.uint8
    np.testing.assert_array_equal(inputs.permute(1, 2, 0), picture_of(0, 1))
    path = str(davis / 'JPEGImages/480p/bear/00001.png')
    assert {key: sample.metainfo[key] for key in PackFrame.meta_keys} == dict(
        video='bear', frame_id=1, num_frames=3, ori_shape=SIZE, img_shape=SIZE, img_path=path
    )
    assert sample.gt_label.dtype == np.uint8
    np.testing.assert_array_equal(sample.gt_label, ids_of(0, 1))
    assert 'gt_keypoints' not in sample


def test_item__label_keeps_its_size_when_the_frame_is_resized(davis):
    steps = [PIPELINE[0], dict(type='videomac_mm.ResizeShortSide', size=96), PIPELINE[1]]
    item = DAVISDataset(str(davis), pipeline=steps)[0]
    sample = item['data_samples']
    assert item['inputs'].shape == (3, 96, 128)
    assert sample.img_shape == (96, 128) and sample.ori_shape == SIZE
    assert sample.gt_label.shape == SIZE


def test_item__without_label_where_only_the_first_frame_has_one(davis):
    for name in ('00001', '00002'):
        (davis / f'Annotations/480p/bear/{name}.png').unlink()
    dataset = DAVISDataset(str(davis), pipeline=PIPELINE)
    samples = [dataset[i]['data_samples'] for i in range(2, 5)]
    assert ['gt_label' in sample for sample in samples] == [True, False, False]


def test_items__are_ordered_by_number(tmp_path):
    write_pictures(tmp_path / 'JPEGImages/480p/v', 0, ['9.png', '10.png', '11.png'])
    write_label(tmp_path / 'Annotations/480p/v/9.png', ids_of(0, 0))
    dataset = DAVISDataset(str(tmp_path), pipeline=PIPELINE)
    for t in range(3):
        np.testing.assert_array_equal(dataset[t]['inputs'].permute(1, 2, 0), picture_of(0, t))


def test_items__come_from_any_backend(davis):
    args = dict(backend='local')
    steps = [{**PIPELINE[0], 'backend_args': args}, PIPELINE[1]]
    assert (
        'gt_label' in DAVISDataset(str(davis), pipeline=steps, backend_args=args)[0]['data_samples']
    )


def test_items__survive_workers_and_a_data_preprocessor(davis):
    init_default_scope('videomac_mm')
    loader = Runner.build_dataloader(
        dict(
            batch_size=1,
            num_workers=2,
            persistent_workers=True,
            sampler=dict(type='videomac_mm.VideoSampler'),
            dataset=dict(type='videomac_mm.DAVISDataset', data_root=str(davis), pipeline=PIPELINE),
        ),
        seed=0,
    )
    preprocess = ImgDataPreprocessor([1.0, 2.0, 3.0], [2.0, 2.0, 2.0], bgr_to_rgb=True)
    order = []
    for batch in loader:
        batch = preprocess(batch)
        (sample,) = batch['data_samples']
        order.append((sample.video, sample.frame_id))
        assert sample.gt_label.shape == SIZE
    assert order == [('cat', 0), ('cat', 1), ('bear', 0), ('bear', 1), ('bear', 2)]
    red = picture_of(0, 2)[..., 2]
    np.testing.assert_allclose(batch['inputs'][0, 0], (red - 1.0) / 2, rtol=1e-6)


# -------------------------------------------------------------------------- DAVIS


@pytest.mark.parametrize(
    'line',
    [
        'ant',
        '/JPEGImages/480p/ant/00000.jpg /Annotations/480p/ant/00000.png',
        '/any/JPEGImages/480p/ant /any/Annotations/480p/ant',
        'any/JPEGImages/480p/ant/',
    ],
)
def test_davis__lists_in_use(davis, line):
    write_list(davis / 'mine.txt', '# mine', line, '', line)
    dataset = DAVISDataset(str(davis), ann_file='mine.txt')
    assert videos_of(dataset) == {'ant': 1}, 'a video of one frame, once'


def test_davis__2016_finds_the_list_of_its_release(davis):
    write_list(davis / 'ImageSets/480p/val.txt', '/JPEGImages/480p/bear/00000.jpg /A/b/0.png')
    assert videos_of(DAVISDataset(str(davis), year=2016)) == {'bear': 3}
    write_list(davis / 'ImageSets/2016/val.txt', 'ant')
    assert videos_of(DAVISDataset(str(davis), year=2016)) == {'ant': 1}
    write_list(davis / 'ImageSets/2017/train.txt', 'bear', 'ant')
    assert videos_of(DAVISDataset(str(davis), split='train')) == {'bear': 3, 'ant': 1}


def test_davis__without_lists_all_videos_and_one_line_in_the_log(davis, monkeypatch):
    lines = []
    monkeypatch.setattr(label_propagation, 'print_log', lambda text, *args: lines.append(text))
    for file in davis.glob('ImageSets/*/*'):
        file.unlink()
    with pytest.raises(FileNotFoundError, match='no list of videos.*2017/val.txt'):
        DAVISDataset(str(davis))
    (davis / 'ImageSets/2017').rmdir()
    (davis / 'ImageSets').rmdir()
    dataset = DAVISDataset(str(davis), pipeline=PIPELINE)
    assert videos_of(dataset) == {'ant': 1, 'bear': 3, 'cat': 2}
    for i in range(len(dataset)):
        dataset[i]
    assert len(lines) == 1 and 'all 3 videos' in lines[0]


def test_davis__2016_anything_is_one_object(davis):
    label = davis / 'Annotations/480p/cat/00000.png'
    for ids, mode in ((255 * (ids_of(1, 0) > 1), 'L'), (ids_of(1, 0), 'P')):
        write_label(label, ids.astype(np.uint8), mode)
        write_list(davis / 'mine.txt', 'cat')
        dataset = DAVISDataset(str(davis), ann_file='mine.txt', year=2016, pipeline=PIPELINE)
        np.testing.assert_array_equal(dataset[0]['data_samples'].gt_label, ids > 0)


def test_davis__2017_void_is_background_and_masks_of_2016_are_noticed(davis):
    label = davis / 'Annotations/480p/cat/00000.png'
    ids = ids_of(1, 0)
    ids[ids == 1] = 255
    write_label(label, ids)
    dataset = DAVISDataset(str(davis), pipeline=PIPELINE)
    np.testing.assert_array_equal(dataset[0]['data_samples'].gt_label, np.where(ids > 200, 0, ids))
    write_label(label, np.where(ids, 255, 0).astype(np.uint8), 'L')
    with pytest.raises(ValueError, match=r'cat/00000.png holds no id but 0 and 255.*year=2016'):
        dataset[0]


# ------------------------------------------------------------------- VIP and JHMDB


def test_vip__ids_as_they_are(vip):
    dataset = VIPDataset(str(vip), pipeline=PIPELINE)
    assert videos_of(dataset) == {'videos7': 3} and len(dataset.metainfo['classes']) == 20
    label = dataset[2]['data_samples'].gt_label
    assert label[0, 0] == 255
    np.testing.assert_array_equal(label.flat[1:], ids_of(0, 2).flat[1:])


def test_jhmdb__joints_from_zero_and_frames_beyond_them(jhmdb):
    dataset = JHMDBDataset(str(jhmdb), pipeline=PIPELINE)
    assert videos_of(dataset) == {'jump/a_(b)_jump_0': 4}
    assert len(dataset.metainfo['keypoints']) == 15
    samples = [dataset[t]['data_samples'] for t in range(4)]
    for t in range(3):
        assert samples[t].gt_keypoints.dtype == np.float64
        np.testing.assert_allclose(samples[t].gt_keypoints, joints(0)[..., t] - 1)
    assert 'gt_keypoints' not in samples[3] and samples[3].num_frames == 4


def test_jhmdb__resizing_leaves_joints_in_native_pixels(jhmdb):
    config = Config.fromfile(Path(__file__).parents[2] / 'configs/_base_/datasets/jhmdb.py')
    init_default_scope('videomac_mm')
    item = DATASETS.build({**config.test_dataloader.dataset, 'data_root': str(jhmdb)})[1]
    wanted = cv2.resize(picture_of(0, 1).astype(np.float32) / 255, (320, 320))
    assert item['inputs'].shape == (3, 320, 320) and item['inputs'].dtype == torch.float32
    np.testing.assert_allclose(item['inputs'].permute(1, 2, 0) / 255, wanted, atol=1e-6)
    sample = item['data_samples']
    assert sample.ori_shape == SIZE and sample.img_shape == (320, 320)
    np.testing.assert_allclose(sample.gt_keypoints, joints(0)[..., 1] - 1)


@pytest.mark.parametrize(
    'line',
    [
        '/d/joint_positions/sit/c_sit_1/joint_positions.mat /d/Rename_Images/sit/c_sit_1',
        '../Rename_Images/sit/c_sit_1 ../joint_positions/sit/c_sit_1/joint_positions.mat',
        'sit/c_sit_1',
    ],
)
def test_jhmdb__lists_in_use(jhmdb, line):
    write_list(jhmdb / 'testlist.txt', line)
    assert videos_of(JHMDBDataset(str(jhmdb), ann_file='testlist.txt')) == {'sit/c_sit_1': 4}
    assert videos_of(JHMDBDataset(str(jhmdb), split=2)) == {'sit/c_sit_1': 4}


def test_jhmdb__a_single_annotated_frame(jhmdb):
    path = jhmdb / 'joint_positions/jump/a_(b)_jump_0/joint_positions.mat'
    write_joints(path, joints(0)[..., 0])
    sample = JHMDBDataset(str(jhmdb), pipeline=PIPELINE)[0]['data_samples']
    np.testing.assert_allclose(sample.gt_keypoints, joints(0)[..., 0] - 1)


# ------------------------------------------------------------------------- errors


@pytest.mark.parametrize('kind', [DAVISDataset, VIPDataset, JHMDBDataset])
def test_errors__root_and_list(tmp_path, kind):
    with pytest.raises(ValueError, match="data_root must name a folder, got ''"):
        kind('')
    with pytest.raises(FileNotFoundError, match='data_root does not exist: .*gone'):
        kind(str(tmp_path / 'gone'))
    with pytest.raises(FileNotFoundError, match='cannot read the list of videos: .*gone.txt'):
        kind(str(tmp_path), ann_file='gone.txt')
    write_list(tmp_path / 'list.txt', '# nothing', '')
    with pytest.raises(ValueError, match='the list of videos is empty: .*list.txt'):
        kind(str(tmp_path), ann_file='list.txt')
    write_list(tmp_path / 'list.txt', 'some/video')
    with pytest.raises(FileNotFoundError, match='no frames of .*video in '):
        kind(str(tmp_path), ann_file='list.txt')


def test_errors__arguments(tmp_path):
    with pytest.raises(ValueError, match='year must be 2016 or 2017, got 2018'):
        DAVISDataset(str(tmp_path), year=2018)
    with pytest.raises(ValueError, match='split must be 1, 2 or 3, got 0'):
        JHMDBDataset(str(tmp_path), split=0)
    with pytest.raises(ValueError, match="'parts' or 'keypoints', got 'boxes'"):
        SyntheticLabelDataset(1, form='boxes')
    with pytest.raises(ValueError, match=r'divisor must lie in \[1, size\], got 64 for size 32'):
        ResizeShortSide(32)
    with pytest.raises(FileNotFoundError, match='no videos in .*JPEGImages/480p'):
        DAVISDataset(str(tmp_path))


def test_errors__first_label_missing(davis):
    (davis / 'Annotations/480p/bear/00000.png').unlink()
    with pytest.raises(FileNotFoundError, match='first frame of bear.*480p/bear/00000.png'):
        DAVISDataset(str(davis))


@pytest.mark.parametrize('content', [b'', b'no picture', 'cut short'])
def test_errors__unreadable_frame(davis, content):
    dataset = DAVISDataset(str(davis), pipeline=PIPELINE)
    path = davis / 'JPEGImages/480p/cat/00001.png'
    path.write_bytes(path.read_bytes()[:-400] if content == 'cut short' else content)
    with pytest.raises(ValueError, match='cannot decode frame .*cat/00001.png'):
        dataset[1]
    path.unlink()
    with pytest.raises(FileNotFoundError, match='cat/00001.png'):
        dataset[1]


def test_errors__labels(davis):
    dataset = DAVISDataset(str(davis), pipeline=PIPELINE)
    path = davis / 'Annotations/480p/cat/00001.png'
    colours = np.zeros((*SIZE, 3), np.uint8)
    for ids, mode in ((colours, 'RGB'), (np.full(SIZE, 700, np.uint16), 'I')):
        write_label(path, ids, mode)
        with pytest.raises(ValueError, match=f"8-bit ids.*cat/00001.png has mode '{mode}"):
            dataset[1]
    write_label(path, np.zeros((24, 41), np.uint8))
    size = r'labels?.*cat/00001.png has \(24, 41\), .*cat/00001.png has \(24, 40\)'
    with pytest.raises(ValueError, match=size):
        dataset[1]
    write_label(path, ids_of(1, 1))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match='cannot decode label .*cat/00001.png'):
        dataset[1]


def test_errors__joint_files(jhmdb):
    path = jhmdb / 'joint_positions/jump/a_(b)_jump_0/joint_positions.mat'
    write_joints(path, np.ones((2, 15, 5)))
    with pytest.raises(ValueError, match='joint_positions.mat has 5 frames, jump/.* has 4'):
        JHMDBDataset(str(jhmdb))
    write_joints(path, np.ones((3, 15, 4)))
    with pytest.raises(ValueError, match=r'must be \(2, K, n\), .*mat has \(3, 15, 4\)'):
        JHMDBDataset(str(jhmdb))
    buffer = io.BytesIO()
    savemat(buffer, dict(other=np.ones(3)))
    for content in (b'', b'no matrix' * 99, buffer.getvalue()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match='cannot read pos_img of .*joint_positions.mat'):
            JHMDBDataset(str(jhmdb))
    path.unlink()
    with pytest.raises(FileNotFoundError, match='no labels: .*joint_positions.mat'):
        JHMDBDataset(str(jhmdb))
    write_list(jhmdb / 'splits/sit_test_split3.txt', 'c_sit_1.avi 1')
    with pytest.raises(FileNotFoundError, match=r'no test videos.*splits/\*_test_split3.txt'):
        JHMDBDataset(str(jhmdb), split=3)


# ---------------------------------------------------------------------- generated


@pytest.mark.parametrize('form', ['masks', 'parts', 'keypoints'])
def test_synthetic__labels_are_those_of_the_generator(form):
    dataset = SyntheticLabelDataset(
        2, form, num_frames=3, size=SIZE, seed=5, pipeline=[PackFrame()], num_objects=2
    )
    assert videos_of(dataset) == {'synthetic_0005': 3, 'synthetic_0006': 3}
    item, video = dataset[5], SyntheticVideo(6, 3, SIZE, 2)
    sample = item['data_samples']
    np.testing.assert_array_equal(item['inputs'].flip(0).permute(1, 2, 0), video.frame(2))
    assert sample.frame_id == 2 and sample.num_frames == 3
    assert sample.ori_shape == sample.img_shape == SIZE
    if form == 'keypoints':
        assert sample.gt_keypoints.shape == (2, 10)
        points, _ = video.keypoints(2)
        np.testing.assert_array_equal(sample.gt_keypoints[:, 7], points[1, 2])
        return
    assert sample.gt_label.dtype == np.uint8
    if form == 'masks':
        np.testing.assert_array_equal(sample.gt_label, video.mask(2))
        return
    # one class for each object, the same in all frames, background the background
    classes = {}
    for t in range(3):
        label = dataset[3 + t]['data_samples'].gt_label
        for number in np.unique(video.mask(t)):
            seen = set(label[video.mask(t) == number].tolist())
            assert len(seen) == 1
            classes.setdefault(number, seen)
            assert classes[number] == seen
    assert classes[0] == {0} and all(0 < min(classes[n]) <= 19 for n in classes if n)


def test_synthetic__survives_pickling():
    dataset = SyntheticLabelDataset(1, 'parts', num_frames=2, size=SIZE, pipeline=[PackFrame()])
    again = pickle.loads(pickle.dumps(dataset))
    assert (again[1]['inputs'] == dataset[1]['inputs']).all()


# -------------------------------------------------------------------- resize, sample


@pytest.mark.parametrize(
    'native, resized',
    [
        ((480, 854), (480, 832)),
        ((480, 910), (480, 896)),
        ((854, 480), (832, 480)),
        ((1080, 1920), (480, 832)),
        ((500, 500), (480, 448)),  # as DINO does, so it is no square
    ],
)
def test_resize__short_side_exact_long_side_floored(native, resized):
    img = np.zeros((*native, 3), np.uint8)
    results = ResizeShortSide().transform(dict(img=img))
    assert results['img'].shape[:2] == results['img_shape'] == resized
    assert results['img'].dtype == np.uint8


class Lengths:
    """As much of a data set as a sampler needs."""

    def __init__(self, *lengths: int) -> None:
        self.infos = [
            dict(video=f'v{v}', frame_id=t, num_frames=n)
            for v, n in enumerate(lengths)
            for t in range(n)
        ]

    def __len__(self) -> int:
        return len(self.infos)

    def get_data_info(self, index: int) -> dict:
        return self.infos[index]


def shares(dataset, world_size: int, monkeypatch) -> list[list[int]]:
    out = []
    for rank in range(world_size):
        monkeypatch.setattr(label_propagation, 'get_dist_info', lambda r=rank: (r, world_size))
        sampler = VideoSampler(dataset, seed=rank)
        out.append(list(sampler))
        assert len(sampler) == len(out[-1])
    return out


@pytest.mark.parametrize('world_size', [1, 2, 3, 4, 7])
def test_sampler__every_frame_once_and_videos_whole(world_size, monkeypatch):
    dataset = Lengths(3, 50, 1, 20, 30, 7)
    parts = shares(dataset, world_size, monkeypatch)
    assert sorted(sum(parts, [])) == list(range(len(dataset)))
    homes = {}
    for rank, part in enumerate(parts):
        assert part == sorted(part)
        for index in part:
            assert homes.setdefault(dataset.infos[index]['video'], rank) == rank
    if world_size == 1:
        assert parts == [list(range(len(dataset)))]
    if world_size == 2:
        assert sorted(map(len, parts)) == [54, 57]
    if world_size == 7:
        assert parts[-1] == []


def test_sampler__wants_whole_videos(davis):
    assert list(VideoSampler(DAVISDataset(str(davis)))) == [0, 1, 2, 3, 4]
    for indices in (4, [1, 2, 3, 4], [0, 1, 2, 4, 3]):
        with pytest.raises(ValueError, match='frame . of (cat|bear) is not in its place'):
            VideoSampler(DAVISDataset(str(davis), indices=indices))


# ------------------------------------------------------------------ configs and files


@pytest.mark.parametrize(
    'name, shape',
    [
        ('davis2017_dino', (480, 768)),
        ('davis2017_crw', SIZE),
        ('davis2016_dino', (480, 768)),
        ('davis2016_crw', SIZE),
        ('vip', (560, 560)),
        ('jhmdb', (320, 320)),
        ('synthetic_labels', (128, 192)),
        ('synthetic_labels_parts', (128, 192)),
        ('synthetic_labels_keypoints', (128, 192)),
    ],
)
def test_configs__build_their_loader(root, davis, vip, jhmdb, name, shape):
    init_default_scope('videomac_mm')
    write_list(davis / 'ImageSets/2016/val.txt', 'cat')
    config = Config.fromfile(root / 'configs' / '_base_' / 'datasets' / f'{name}.py')
    loader = config.test_dataloader
    loader.update(num_workers=0, persistent_workers=False)
    for kind, folder in (('davis', davis), ('vip', vip), ('jhmdb', jhmdb)):
        if name.startswith(kind):
            loader.dataset.data_root = str(folder)
    batches = iter(Runner.build_dataloader(loader, seed=0))
    batch = next(batches)
    assert batch['inputs'][0].shape == (3, *shape)
    points = name in ('jhmdb', 'synthetic_labels_keypoints')
    (sample,) = batch['data_samples']
    assert sample.frame_id == 0 and ('gt_keypoints' if points else 'gt_label') in sample
    if points:
        assert sample.gt_keypoints.shape == (2, 15)
    if name.startswith('davis2016'):
        assert set(np.unique(sample.gt_label)) == {0, 1}
    metric = 'PCK' if points else 'VIP' if 'vip' in name or 'parts' in name else 'DAVIS'
    assert config.test_evaluator == dict(type=f'videomac_mm.{metric}Metric')
    assert config.test_cfg == {}


def test_real__davis2016(data_dir):
    dataset = DAVISDataset(str(data_dir / 'davis2016'), year=2016, pipeline=PIPELINE)
    videos = videos_of(dataset)
    assert len(videos) == 10 and len(dataset) == 678 and videos['soapbox'] == 99
    last = dataset[677]
    assert last['inputs'].shape == (3, 480, 854)
    assert last['data_samples'].video == 'soapbox' and last['data_samples'].frame_id == 98
    assert 0.001 < last['data_samples'].gt_label.mean() < 0.5
    batch = pseudo_collate([dataset[0]])
    assert batch['data_samples'][0].img_path.endswith('blackswan/00000.jpg')
    assert len(VideoSampler(dataset)) == 678


def test_load_frame__reads_floats(davis):
    path = str(davis / 'JPEGImages/480p/cat/00000.png')
    img = LoadFrame(to_float32=True)(dict(img_path=path))['img']
    assert img.dtype == np.float32
    np.testing.assert_array_equal(img, picture_of(1, 0))
