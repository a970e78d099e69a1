import pytest
import torch
from torch import nn

from videomac_mm.models.completeness import check_fills
from videomac_mm.registry import MODELS

ARCH = dict(depths=[1, 1, 2, 1], channels=[8, 8, 16, 16])


def convnext(**changes) -> nn.Module:
    cfg = dict(type='SparseConvNeXt', arch=ARCH, use_grn=True, stage_norm='inline')
    return MODELS.build(cfg | changes)


def check(module: nn.Module, weights: dict) -> None:
    check_fills(module, weights, 'the backbone', 'backbone.')


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {f'backbone.{name}': value for name, value in module.state_dict().items()}


def test_check__passes_what_fills_and_what_lies_beside():
    weights = weights_of(convnext())
    check(convnext(), weights)
    check(convnext(), weights | {'neck.proj.weight': torch.zeros(1), 'target.x': torch.zeros(1)})
    fewer = convnext(arch=dict(depths=[1, 1, 2], channels=[8, 8, 16]))
    check(fewer, weights)  # a last stage that is not there


@pytest.mark.parametrize(
    'remove, message',
    [
        ('backbone.stages.3', r'0 unexpected.*0 of another shape'),
        ('backbone.norm1.bias', r'1 missing \(backbone.norm1.bias\)'),
        ('backbone.', 'has no weight of the backbone: expected names such as'),
    ],
)
def test_check__names_what_is_missing(remove, message):
    weights = {k: v for k, v in weights_of(convnext()).items() if not k.startswith(remove)}
    with pytest.raises(ValueError, match=message):
        check(convnext(), weights)


def test_check__names_other_shapes_with_both():
    wide = convnext(arch=dict(ARCH, channels=[8, 8, 16, 24]))
    with pytest.raises(ValueError, match=r'0 missing, 0 unexpected, \d+ of another shape.*instead'):
        check(convnext(), weights_of(wide))


def test_check__refuses_blocks_of_a_deeper_network():
    deeper = convnext(arch=dict(ARCH, depths=[1, 1, 3, 1]))
    with pytest.raises(ValueError, match=r'\d+ unexpected \(backbone.stages.2.2'):
        check(convnext(), weights_of(deeper))


def test_check__batch_norm_may_lack_its_counter():
    resnet = MODELS.build(dict(type='SparseResNet', depth=18, base_channels=8, stem_channels=8))
    weights = {k: v for k, v in weights_of(resnet).items() if 'num_batches' not in k}
    check(resnet, weights)
    del weights['backbone.bn1.running_mean']
    with pytest.raises(ValueError, match=r'1 missing \(backbone.bn1.running_mean\)'):
        check(resnet, weights)
