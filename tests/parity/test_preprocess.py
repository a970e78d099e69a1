"""Frames as the official DINO code reads and resizes them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from mmcv.transforms import Resize
from mmengine.model import ImgDataPreprocessor
from torch import Tensor

from videomac_mm.datasets import LoadFrame, PackFrame, ResizeShortSide

FOLDER = (
    Path(os.environ.get('VIDEOMAC_MM_FIXTURES', Path(__file__).parents[3] / 'shared' / 'fixtures'))
    / 'label_propagation'
    / 'preprocess'
)
PREFIX = 'dino_read_frame_'
NAMES = sorted(path.stem.removeprefix(PREFIX) for path in FOLDER.glob(f'{PREFIX}*.npz'))
MEAN, STD = (0.485, 0.456, 0.406), (0.228, 0.224, 0.225)

pytestmark = pytest.mark.skipif(
    not NAMES, reason=f'no official outputs in {FOLDER}; set VIDEOMAC_MM_FIXTURES'
)


def read(name: str, scale_size: np.ndarray) -> Tensor:
    """(3, H, W) BGR uint8."""
    results = dict(img_path=str(FOLDER / f'in_{name}.png'), video='', frame_id=0, num_frames=1)
    if len(scale_size) == 1:
        resize = ResizeShortSide(int(scale_size[0]))
    else:
        resize = Resize(tuple(int(size) for size in scale_size[::-1]))  # (W, H)
    for step in (LoadFrame(), resize, PackFrame()):
        results = step(results)
    return results['inputs']


@pytest.fixture(params=NAMES)
def frame(request) -> tuple[Tensor, dict]:
    wanted = dict(np.load(FOLDER / f'{PREFIX}{request.param}.npz'))
    inputs = read(request.param, wanted.get('scale_size', np.array([480])))
    assert inputs.dtype == torch.uint8
    return inputs, wanted


def test_frame__bit_exact(frame):
    inputs, wanted = frame
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    check((inputs.flip(0) / 255 - mean) / std, wanted, tolerance=0)


def test_frame__with_the_data_preprocessor(frame):
    inputs, wanted = frame
    mean, std = [255 * value for value in MEAN], [255 * value for value in STD]
    preprocess = ImgDataPreprocessor(mean, std, bgr_to_rgb=True)
    check(preprocess(dict(inputs=[inputs]))['inputs'][0], wanted, tolerance=2e-6)


def check(got: Tensor, wanted: dict, tolerance: float) -> None:
    if 'out' in wanted:
        np.testing.assert_allclose(got, wanted['out'], rtol=0, atol=tolerance)
        return
    assert got.shape == tuple(wanted['shape'])
    np.testing.assert_allclose(got[:, 3::8, 3::8], wanted['out_sub8'], rtol=0, atol=tolerance)
    for key, value in (('mean', got.mean((1, 2))), ('std', got.std((1, 2)))):
        np.testing.assert_allclose(value, wanted[key], atol=1e-5)


def test_sizes():
    for name, sizes in json.loads((FOLDER / 'dino_sizes.json').read_text()).items():
        results = ResizeShortSide().transform(dict(img=np.zeros((*sizes['orig'], 3), np.uint8)))
        assert list(results['img_shape']) == sizes['net'], name
