import random
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import Compose, pseudo_collate

from videomac_mm.datasets import OpenVideo, PackCrops, SampleFramePair, SyntheticVideo
from videomac_mm.models import CropPreprocessor
from videomac_mm.registry import DATASETS, MODELS

NORMALISE = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])


def render(results: dict) -> dict:
    video = SyntheticVideo(results['seed'], results['total_frames'], results['img_shape'])
    imgs = {i: video.frame(i) for i in set(results['frame_inds'].tolist())}
    return {**results, 'imgs': [imgs[i] for i in results['frame_inds']]}


def batch(on_device: bool, interpolation: str = 'bicubic', repeats: int = 2) -> dict:
    """Two videos of different sizes, three pairs of each, the same crops either way."""
    random.seed(0)
    np.random.seed(0)
    crops = [
        dict(type='mmaction.RandomResizedCrop', area_range=(0.2, 1.0), lazy=on_device),
        dict(
            type='mmaction.Resize',
            scale=(32, 24),
            keep_ratio=False,
            interpolation=interpolation,
            lazy=on_device,
        ),
        dict(type='mmaction.Flip', flip_ratio=0.5, lazy=on_device),
    ]
    packed = [dict(type='videomac_mm.PackCrops')]
    if not on_device:
        packed = [
            dict(type='mmaction.FormatShape', input_format='NCTHW'),
            dict(type='mmaction.PackActionInputs'),
        ]
    pipeline = Compose(
        [
            SampleFramePair(2, pairs_per_video=3),
            render,
            dict(type='videomac_mm.ForEachClip', transforms=crops, repeats=repeats),
            *packed,
        ]
    )
    videos = [
        dict(seed=i, total_frames=9, img_shape=size, modality='RGB')
        for i, size in enumerate([(48, 64), (90, 60)])
    ]
    return pseudo_collate([pipeline(video) for video in videos])


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
def test_crop_preprocessor__gives_what_the_cpu_pipeline_gives(interpolation):
    plain = MODELS.build(
        dict(type='mmaction.ActionDataPreprocessor', format_shape='NCTHW', **NORMALISE)
    )
    ours = CropPreprocessor(interpolation, **NORMALISE)
    expected = plain(batch(False, interpolation), training=True)['inputs']
    data = ours(batch(True, interpolation), training=True)
    assert data['inputs'].shape == expected.shape == (2, 6, 3, 2, 24, 32)
    assert len(data['data_samples']) == 2
    # in levels of 255: the CPU interpolates in whole numbers
    difference = (data['inputs'] - expected).abs() * ours.std
    assert difference.max() < 1.01 and difference.mean() < 0.2
    assert (data['inputs'].flip(-1) - expected).abs().mean() > 0.1, 'flips must agree'


def test_pack_crops__packs_each_frame_once():
    inputs = batch(True, repeats=4)['inputs']
    assert [len(places) for places in inputs['places']] == [12, 12]
    for frames, places in zip(inputs['frames'], inputs['places']):
        assert frames.dtype == torch.uint8 and len(frames) == len(np.unique(places)) <= 6


def test_pack_crops__wants_crops_not_yet_made():
    with pytest.raises(ValueError, match='lazy transforms and without FuseCrops'):
        PackCrops()(dict(imgs=[]))


@pytest.fixture
def videos(tmp_path) -> Path:
    """Two videos of different sizes and a file that is none."""
    for name, size in (('a.mp4', (48, 64)), ('b.mp4', (90, 60))):
        fourcc = cv2.VideoWriter_fourcc(*'mp4v')
        writer = cv2.VideoWriter(str(tmp_path / name), fourcc, 25, size[::-1])
        for t in range(12):
            writer.write(SyntheticVideo(0, 12, size).frame(t))
        writer.release()
    (tmp_path / 'c.mp4').touch()
    return tmp_path


def video_set(folder: Path, *steps) -> dict:
    return dict(
        type='videomac_mm.UnlabelledVideoDataset',
        data_root=str(folder),
        max_bad_share=0.5,
        pipeline=list(steps),
    )


def pairs(folder: Path, opener: str) -> dict:
    """A batch of the same draws, whatever opens the videos."""
    random.seed(0)
    np.random.seed(0)
    crops = [
        dict(type='mmaction.RandomResizedCrop', lazy=True),
        dict(type='mmaction.Resize', scale=(32, 24), keep_ratio=False, lazy=True),
        dict(type='mmaction.Flip', lazy=True),
    ]
    dataset = DATASETS.build(
        video_set(
            folder,
            dict(type=f'videomac_mm.{opener}'),
            dict(type='videomac_mm.SampleFramePair', unit='seconds', pairs_per_video=3),
            dict(type='videomac_mm.DecodeFrames'),
            dict(type='videomac_mm.ForEachClip', transforms=crops),
            dict(type='videomac_mm.PackCrops'),
        )
    )
    return pseudo_collate([dataset[0], dataset[1], dataset[0]])


def test_resident__frames_are_those_of_the_files(videos, monkeypatch):
    resident = video_set(videos, dict(type='videomac_mm.OpenVideo'))
    num_bytes = 12 * (48 * 64 + 90 * 60) * 3
    on_device = CropPreprocessor(resident=resident, max_bytes=num_bytes, **NORMALISE)
    batch = pairs(videos, 'OpenResidentVideo')
    assert not any(isinstance(part, torch.Tensor) for part in batch['inputs']['frames'])
    expected = CropPreprocessor(**NORMALISE)(pairs(videos, 'OpenVideo'))['inputs']
    assert torch.equal(on_device(batch)['inputs'], expected)
    assert sum(frames.nbytes for frames in on_device.resident.videos.values()) == num_bytes
    assert not on_device.state_dict()

    # from now on no file is opened
    monkeypatch.setattr(OpenVideo, '_open', None)
    assert torch.equal(on_device(batch)['inputs'], expected)


def test_resident__what_does_not_fit_is_named(videos):
    resident = video_set(videos, dict(type='videomac_mm.OpenVideo'))
    preprocessor = CropPreprocessor(resident=resident, max_bytes=10**5)
    with pytest.raises(ValueError, match='exceed max_bytes=100000: the first 1 of 3 videos'):
        preprocessor(pairs(videos, 'OpenResidentVideo'))
    with pytest.raises(ValueError, match='go together'):
        CropPreprocessor(resident=resident)
    with pytest.raises(ValueError, match='need the argument resident'):
        CropPreprocessor()(pairs(videos, 'OpenResidentVideo'))


def test_crop_preprocessor__bad_interpolation_is_named():
    with pytest.raises(ValueError, match="'bicubic'.*got 'lanczos'"):
        CropPreprocessor('lanczos')
