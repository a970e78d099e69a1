"""What `set_stride` leaves behind; the maps themselves are tested in test_propagator.py."""

import copy
import pickle

import pytest
import torch

from tests.masks import random_mask
from videomac_mm.models.label_propagation.strides import set_stride
from videomac_mm.registry import MODELS

CONVNEXT = dict(
    type='SparseConvNeXt', arch=dict(depths=[1, 1, 1, 1], channels=[8] * 4), stage_norm='inline'
)
RESNET = dict(type='SparseResNet', depth=18, base_channels=8, stem_channels=8)


@pytest.mark.parametrize('dilate', [False, True])
@pytest.mark.parametrize('cfg', [CONVNEXT, RESNET], ids=['convnext', 'resnet'])
def test_backbone__can_be_copied_and_pickled(cfg, dilate):
    backbone = MODELS.build(cfg).eval()
    set_stride(backbone, 8, dilate)
    images = torch.randn(1, 3, 64, 64)
    wanted = backbone(images)[-1]
    assert wanted.shape[-1] == 8
    for other in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert torch.equal(other(images)[-1], wanted)


@pytest.mark.parametrize('by_name', [False, True])
@pytest.mark.parametrize('cfg', [CONVNEXT, RESNET], ids=['convnext', 'resnet'])
def test_mask__after_a_change_of_stride_is_refused_with_the_reason(cfg, by_name):
    backbone, mask = MODELS.build(cfg).eval(), random_mask(1, (2, 2), 2)
    set_stride(backbone, None)
    backbone(torch.randn(1, 3, 64, 64), mask)  # nothing was changed
    set_stride(backbone, 8)
    with pytest.raises(ValueError, match='stride .* was changed from 32 to 8'):
        if by_name:
            backbone(torch.randn(1, 3, 64, 64), mask=mask)
        else:
            backbone(torch.randn(1, 3, 64, 64), mask)
    backbone(torch.randn(1, 3, 64, 64), None)
