"""Frames and crops of the official VideoMAE pre-training data, as our configs set them up."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config

from videomac_mm.datasets import SampleClips
from videomac_mm.registry import TRANSFORMS


@pytest.fixture
def pipeline(root) -> list[dict]:
    path = root / 'configs' / '_base_' / 'datasets' / 'clips_224.py'
    return Config.fromfile(path).train_dataloader.dataset.pipeline


def cases(fixtures_dir: Path, name: str) -> list[dict]:
    file = fixtures_dir / 'video_vit' / name
    if not file.is_file():
        pytest.skip(f'no official outputs in {file}')
    return json.loads(file.read_text())


def test_frames(fixtures_dir):
    for case in cases(fixtures_dir, 'videomae_frame_sampling.json'):
        official, total, interval = case['official'], case['num_frames'], case['step']
        np.random.seed(case['seed'])
        results = SampleClips(len(official), interval)(dict(total_frames=total))
        assert results['frame_inds'].tolist() == official, (total, interval)
        # What is drawn next agrees as well.
        following = np.random.randint(1 << 30)
        np.random.seed(case['seed'])
        np.random.randint(max(total - len(official) * interval + 1, 1), size=1)
        assert following == np.random.randint(1 << 30)


def test_crops(fixtures_dir, pipeline):
    crop = TRANSFORMS.build(next(s for s in pipeline if s.type == 'mmaction.MultiScaleCrop'))
    for case in cases(fixtures_dir, 'videomae_multiscale_crop.json'):
        random.seed(case['seed'])
        results = crop(dict(img_shape=(case['h'], case['w'])))
        assert results['crop_bbox'].tolist() == case['official_xyxy'], case


def test_pipeline__does_what_the_official_code_does_and_no_more(pipeline):
    assert [step.type for step in pipeline] == [
        'videomac_mm.OpenVideo',
        'videomac_mm.SampleClips',
        'videomac_mm.DecodeFrames',
        'mmaction.MultiScaleCrop',
        'mmaction.Resize',
        'mmaction.FormatShape',
        'mmaction.PackActionInputs',
    ]
    assert pipeline[3].input_size == 224
    assert pipeline[4].scale == (224, 224) and not pipeline[4].keep_ratio
