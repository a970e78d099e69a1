import time

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope

from videomac_mm.datasets import SyntheticVideo, SyntheticVideoDataset

SEEDS = range(12)  # all four shapes are among the objects of these


def bilinear(img: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Colours (n, 3) of a picture at x, y (n, 2)."""
    x, y = points.T
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    fx, fy = (x - left)[:, None], (y - top)[:, None]
    img = img.astype(float)
    upper = (1 - fx) * img[top, left] + fx * img[top, left + 1]
    lower = (1 - fx) * img[top + 1, left] + fx * img[top + 1, left + 1]
    return (1 - fy) * upper + fy * lower


@pytest.mark.parametrize('size', [(64, 64), (75, 101), (32, 224), (8, 8)])
def test_video__shapes_and_types(size):
    video = SyntheticVideo(1, num_frames=5, size=size, num_objects=4)
    points, visible = video.keypoints(4)
    assert len(video) == 5
    assert video.frame(0).shape == (*size, 3) and video.frame(0).dtype == np.uint8
    assert video.mask(0).shape == size and video.mask(0).dtype == np.uint8
    assert points.shape == (4, 5, 2) and points.dtype == np.float64
    assert visible.shape == (4, 5) and visible.dtype == bool


def test_video__no_objects():
    video = SyntheticVideo(0, num_objects=0)
    assert video.frame(0).std() > 1 and not video.mask(0).any()
    assert video.keypoints(0)[0].shape == (0, 5, 2)


def test_video__objects_of_a_class_share_their_texture():
    """Colours of an object's pixels, over many videos: near those of its class, not of others."""
    colours = {0: [], 1: [], 2: []}
    for seed in range(60):
        video = SyntheticVideo(seed, 1, size=(64, 64), num_objects=1, num_classes=3)
        (label,) = video.labels
        colours[label].append(video.frame(0)[video.mask(0) == 1].mean(0))
    means = np.array([np.mean(colours[label], 0) for label in colours])
    for label, samples in colours.items():
        distances = np.linalg.norm(np.array(samples)[:, None] - means, axis=-1)
        assert len(samples) > 10 and (distances.argmin(1) == label).mean() > 0.9
    plain = SyntheticVideo(0, 1, size=(64, 64), num_objects=1)
    assert plain.labels == []
    with pytest.raises(ValueError, match='num_classes must be at least 1, got 0'):
        SyntheticVideo(0, num_classes=0)
    classified = SyntheticVideo(0, 1, size=(64, 64), num_objects=1, num_classes=3)
    np.testing.assert_array_equal(plain.mask(0), classified.mask(0))
    outside = plain.mask(0) == 0
    assert (plain.frame(0)[outside] == classified.frame(0)[outside]).mean() > 0.95


def test_video__same_seed_same_frames_in_any_order():
    first, again, other = (SyntheticVideo(seed, 9) for seed in (3, 3, 4))
    late = again.frame(8)
    for t in (0, 8):
        np.testing.assert_array_equal(first.frame(t), again.frame(t))
        np.testing.assert_array_equal(first.mask(t), again.mask(t))
    np.testing.assert_array_equal(late, again.frame(8))
    assert (first.frame(0) != other.frame(0)).mean() > 0.9
    assert (first.frame(0) != late).mean() > 0.5, 'it must move'


def test_video__colours_stay_in_range():
    # A colour beyond [0, 255] would wrap around to the other end.
    for seed in SEEDS:
        img = SyntheticVideo(seed, 1, (96, 96), num_objects=0).frame(0).astype(int)
        for axis in (0, 1):
            assert np.abs(np.diff(img, axis=axis)).max() < 128


def share_of(number: int, t: int, **arguments) -> np.ndarray:
    """How much of each pixel shows one object, by painting it black and white."""
    painted = []
    for level in (0, 255):
        video = SyntheticVideo(**arguments)
        texture = video._objects[number - 1].texture
        texture.colours, texture.base = 0 * texture.colours, 0 * texture.base + level
        painted.append(video.frame(t).astype(float))
    return (painted[1] - painted[0]).mean(-1) / 255


@pytest.mark.parametrize('seed', SEEDS)
def test_mask__is_where_the_picture_shows_the_object(seed):
    arguments = dict(seed=seed, num_frames=30, size=(80, 96))
    mask = SyntheticVideo(**arguments).mask(13)
    for number in (1, 2, 3):
        share, seen = share_of(number, 13, **arguments), mask == number
        # Where three edges meet, the one in front shows half, the others less.
        assert share[seen].min(initial=1) > 0.12 and share[~seen].max() < 0.51
        assert ((share > 0.5) == seen).mean() > 0.99


@pytest.mark.parametrize('seed', SEEDS)
def test_mask__of_a_single_object_is_exact(seed):
    arguments = dict(seed=seed, num_frames=30, size=(80, 96), num_objects=1)
    share, mask = share_of(1, 7, **arguments), SyntheticVideo(**arguments).mask(7) == 1
    sure = np.abs(share - 0.5) > 0.01  # the picture is rounded
    assert (mask[sure] == (share > 0.5)[sure]).all()
    edge = (share > 0.01) & (share < 0.99)
    assert 20 < edge.sum() < mask.sum(), 'edges are anti-aliased'


def test_mask__objects_are_large():
    areas = [np.bincount(SyntheticVideo(s, 1, (224, 224)).mask(0).ravel())[1:] for s in SEEDS]
    # The whole of a large one covers several patches of 32 x 32 pixels.
    assert np.median(np.concatenate(areas)) > 3 * 32 * 32


def test_mask__higher_ids_are_in_front():
    seen_overlap = 0
    for seed in SEEDS:
        both = SyntheticVideo(seed, 1, (64, 64), num_objects=2)
        alone = SyntheticVideo(seed, 1, (64, 64), num_objects=2)
        back, front = both._objects
        alone._objects = [back]
        whole_back = alone.mask(0) == 1
        alone._objects = [front]
        whole_front = alone.mask(0) == 1
        ids = both.mask(0)
        np.testing.assert_array_equal(ids == 2, whole_front)
        np.testing.assert_array_equal(ids == 1, whole_back & ~whole_front)
        seen_overlap += (whole_back & whole_front).any()
    assert seen_overlap >= 2


def test_keypoints__lie_in_their_object_where_visible_and_only_hidden_otherwise():
    num_visible = 0
    for seed in SEEDS:
        video = SyntheticVideo(seed, 40, (64, 80))
        for t in (0, 13, 39):
            ids = video.mask(t)
            points, visible = video.keypoints(t)
            for number, (own, seen) in enumerate(zip(points, visible), start=1):
                x, y = np.rint(own).astype(int).T
                inside = (x >= 0) & (x < 80) & (y >= 0) & (y < 64)
                assert (ids[y[seen], x[seen]] == number).all()
                # never on the background or on an object behind
                hidden = inside & ~seen
                assert (ids[y[hidden], x[hidden]] > number).all()
                num_visible += seen.sum()
    assert num_visible > 0.6 * len(SEEDS) * 3 * 3 * 5


def test_keypoints__see_the_same_colour_in_every_frame():
    # Picture and key-points move together: translation, turning and scale.
    errors, controls = [], []
    for seed in SEEDS:
        video = SyntheticVideo(seed, 20, (160, 160), num_objects=1)
        (start, seen), (end, still_seen) = video.keypoints(0), video.keypoints(19)
        both = (seen & still_seen)[0] & ((end > 2) & (end < 157)).all(-1)[0]
        both &= ((start > 2) & (start < 157)).all(-1)[0]
        colours = bilinear(video.frame(0), start[0][both])
        errors.append(np.abs(colours - bilinear(video.frame(19), end[0][both])).ravel())
        controls.append(np.abs(colours - bilinear(video.frame(19), start[0][both])).ravel())
    assert np.concatenate(errors).size > 100
    assert np.quantile(np.concatenate(errors), 0.95) < 4
    assert np.quantile(np.concatenate(controls), 0.95) > 20


def test_keypoints__move_as_the_mask_does():
    for seed in SEEDS:
        video = SyntheticVideo(seed, 6, (160, 160), num_objects=1)
        centres, areas, spreads = [], [], []
        for t in (0, 5):
            points, _ = video.keypoints(t)
            rows, columns = np.nonzero(video.mask(t))
            if min(rows.min(), columns.min()) == 0 or max(rows.max(), columns.max()) == 159:
                break  # cut by the border
            centres.append((points[0, 0], [columns.mean(), rows.mean()]))
            areas.append(len(rows))
            spreads.append(np.linalg.norm(points[0, 1] - points[0, 0]))
        else:
            (before, mask_before), (after, mask_after) = centres
            moved = np.subtract(after, before)
            np.testing.assert_allclose(moved, np.subtract(mask_after, mask_before), atol=0.3)
            ratio = (spreads[1] / spreads[0]) ** 2
            assert areas[1] / areas[0] == pytest.approx(ratio, rel=0.02)


def test_motion__is_smooth_and_stays_in_the_frame():
    for seed in SEEDS:
        video = SyntheticVideo(seed, 500, (64, 64))
        centres = np.array([video.keypoints(t)[0][:, 0] for t in range(0, 500, 7)])
        assert centres.min() >= 0 and centres.max() <= 63
        steps = [video.keypoints(t + 1)[0] - video.keypoints(t)[0] for t in range(0, 100, 9)]
        lengths = np.linalg.norm(steps, axis=-1)
        assert lengths.max() < 0.06 * 64 and lengths.mean() > 0.005 * 64


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(num_frames=0), 'num_frames must be at least 1, got 0'),
        (dict(size=(64, 4)), r'size must be \(H, W\) of at least 8 pixels, got \(64, 4\)'),
        (dict(num_objects=300), r'num_objects must lie in \[0, 255\], got 300'),
    ],
)
def test_video__bad_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        SyntheticVideo(0, **arguments)
    with pytest.raises(ValueError, match=message):
        SyntheticVideoDataset(2, **arguments)


@pytest.mark.parametrize('t', [-1, 5])
def test_video__time_outside_raises(t):
    video = SyntheticVideo(0, num_frames=5)
    for method in (video.frame, video.mask, video.keypoints):
        with pytest.raises(IndexError, match=rf't must lie in \[0, 5\), got {t}'):
            method(t)


def test_video__is_fast_enough_to_train_on():
    video = SyntheticVideo(0, size=(64, 64))
    best = np.inf
    for t in range(20):
        start = time.perf_counter()
        video.frame(t)
        best = min(best, time.perf_counter() - start)
    assert best < 0.01  # about 1 ms; a busy machine has ten


def test_dataset__item_i_is_video_seed_plus_i():
    render = [
        dict(type='videomac_mm.SampleFramePair', frame_interval=3),
        dict(type='videomac_mm.RenderFrames'),
    ]
    dataset = SyntheticVideoDataset(4, num_frames=7, size=(32, 48), seed=10, pipeline=render)
    assert len(dataset) == 4
    item = dataset[2]
    first, second = item['frame_inds']
    assert second == first + 3 and item['img_shape'] == (32, 48)
    video = SyntheticVideo(12, num_frames=7, size=(32, 48))
    np.testing.assert_array_equal(item['imgs'][1], video.frame(second))


def test_dataset__needs_a_video():
    with pytest.raises(ValueError, match='num_videos must be at least 1, got 0'):
        SyntheticVideoDataset(0)


@pytest.mark.parametrize(
    'name, shape',
    [('synthetic_pairs', (1, 3, 2, 160, 160)), ('synthetic_clips', (1, 3, 16, 96, 96))],
)
def test_configs__give_the_batch_that_models_take(root, name, shape):
    init_default_scope('videomac_mm')
    config = Config.fromfile(root / 'configs' / '_base_' / 'datasets' / f'{name}.py')
    dataset = DATASETS.build(config.train_dataloader.dataset)
    batch = pseudo_collate([dataset[i] for i in range(4)])
    inputs = MODELS.build(config.data_preprocessor)(batch, training=True)['inputs']
    assert inputs.shape == (4, *shape) and inputs.dtype == torch.float32
    assert inputs.abs().max() < 3 and inputs.std() > 0.3


def test_dataset__gives_two_clips():
    sampler = dict(type='videomac_mm.SampleClips', clip_len=4, frame_interval=2, max_shift=3)
    render = [sampler, dict(type='videomac_mm.RenderFrames')]
    item = SyntheticVideoDataset(1, num_frames=20, size=(32, 48), pipeline=render)[0]
    assert item['num_clips'] == 2 and len(item['imgs']) == 8
    video = SyntheticVideo(0, num_frames=20, size=(32, 48))
    for img, t in zip(item['imgs'], item['frame_inds']):
        np.testing.assert_array_equal(img, video.frame(t))
