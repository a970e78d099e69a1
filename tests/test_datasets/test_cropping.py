import random

import numpy as np
import pytest
from mmengine.dataset import Compose

from tests.films import encode
from videomac_mm.datasets import DecodeFrames, ForEachClip, FuseCrops, OpenVideo, SampleFramePair

CROP = [
    dict(type='mmaction.RandomResizedCrop', area_range=(0.2, 1.0)),
    dict(type='mmaction.Resize', scale=(32, 32), keep_ratio=False, interpolation='bicubic'),
    dict(type='mmaction.Flip', flip_ratio=0.5),
]


# --------------------------------------------------------------------- ForEachClip


def clips(num_clips: int, clip_len: int = 2) -> dict:
    """The same picture in every frame of every clip."""
    img = np.random.randint(0, 256, (40, 60, 3), dtype=np.uint8)
    return dict(
        imgs=[img.copy() for _ in range(num_clips * clip_len)],
        img_shape=(40, 60),
        num_clips=num_clips,
        clip_len=clip_len,
        modality='RGB',
    )


def test_for_each_clip__frames_alike_clips_not():
    results = ForEachClip(CROP)(clips(num_clips=6))
    imgs = np.stack(results['imgs']).reshape(6, 2, 32, 32, 3)
    assert (imgs[:, 0] == imgs[:, 1]).all()
    assert all((imgs[i, 0] != imgs[i + 1, 0]).any() for i in range(5))
    assert results['img_shape'] == (32, 32) and results['num_clips'] == 6
    assert 'crop_quadruple' not in results and 'flip' not in results


def test_for_each_clip__keeps_the_order_for_any_clip_length():
    results = dict(imgs=list(np.arange(12).reshape(12, 1, 1)), num_clips=3, clip_len=4)

    def reverse(clip: dict) -> dict:
        assert clip['num_clips'] == 1 and len(clip['imgs']) == 4
        return {**clip, 'imgs': clip['imgs'][::-1]}

    imgs = ForEachClip([reverse])(results)['imgs']
    assert np.ravel(imgs).tolist() == [3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8]


def test_for_each_clip__repeats_draw_other_crops_of_the_same_clip():
    results = ForEachClip(CROP, repeats=3)(clips(num_clips=2))
    imgs = np.stack(results['imgs']).reshape(2, 3, 2, 32, 32, 3)
    assert (imgs[:, :, 0] == imgs[:, :, 1]).all()
    assert (imgs[:, 0] != imgs[:, 1]).any() and (imgs[:, 1] != imgs[:, 2]).any()
    assert results['num_clips'] == 6

    order = ForEachClip([lambda clip: clip], repeats=2)(clips(num_clips=2))['imgs']
    assert order[0] is order[2] and order[1] is order[3] and order[4] is order[6]


@pytest.mark.parametrize('repeats', [0, 1.5])
def test_for_each_clip__bad_repeats_are_named(repeats):
    with pytest.raises(ValueError, match=f'repeats must be .* at least 1, got {repeats}'):
        ForEachClip(CROP, repeats=repeats)


def test_for_each_clip__different_sizes_raise():
    with pytest.raises(ValueError, match='must have one size.*mmaction.Resize'):
        ForEachClip(CROP[:1])(clips(num_clips=4))


def test_for_each_clip__none_asks_for_another_sample():
    assert ForEachClip([lambda clip: None])(clips(num_clips=2)) is None


# ----------------------------------------------------------------------- FuseCrops


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
