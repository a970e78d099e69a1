import copy
import pickle

import pytest
import torch
from mmpretrain.models.backbones.resnet import BasicBlock, Bottleneck

from tests.masks import random_mask
from videomac_mm.models.backbones.sparse_convnext import SparseConvNeXtBlock
from videomac_mm.registry import MODELS
from videomac_mm.weights import to_mmaction

SEGMENTS = 4
ARCH = dict(depths=[1, 1, 2, 1], channels=[8, 8, 16, 16])
CONVNEXT = dict(
    type='videomac_mm.SparseConvNeXt',
    arch=ARCH,
    use_grn=True,
    layer_scale_init_value=0.0,
    stage_norm='inline',
)
RESNET = dict(
    type='videomac_mm.SparseResNet', depth=50, variant='videomac', stem_channels=8, base_channels=8
)
BACKBONES = {
    'convnext': CONVNEXT,
    'resnet': RESNET,
    'resnet18': dict(RESNET, depth=18, variant='standard'),
    'mmpretrain-convnext': dict(
        type='mmpretrain.ConvNeXt', arch=ARCH, layer_scale_init_value=0.0,
        gap_before_final_norm=False,
    ),
    'mmpretrain-resnext': dict(
        type='mmpretrain.ResNeXt', depth=50, groups=2, width_per_group=4, stem_channels=8,
        base_channels=8,
    ),
    'sparsified': dict(
        type='videomac_mm.Sparsified',
        backbone=dict(
            type='mmpretrain.RegNet', arch=dict(w0=8, wa=8, wm=2, group_w=4, depth=6, bot_mul=1.0)
        ),
    ),
}  # fmt: skip


def fill(network: torch.nn.Module) -> torch.nn.Module:
    """Random weights and statistics; a fresh block is close to the identity, and hides shifts."""
    for value in network.state_dict().values():
        if value.ndim > 1:
            torch.nn.init.normal_(value, std=(2 / value[0].numel()) ** 0.5)
        elif value.is_floating_point():
            torch.nn.init.uniform_(value, 0.5, 1.5)
    return network


def plain(name: str) -> torch.nn.Module:
    network = fill(MODELS.build(BACKBONES[name]))
    network.eval()
    return network


def shifted(backbone: dict | torch.nn.Module, **kwargs) -> torch.nn.Module:
    kwargs = dict(dict(num_segments=SEGMENTS), **kwargs)
    return MODELS.build(dict(type='videomac_mm.TemporalShifted', backbone=backbone, **kwargs))


def shifted_blocks(network: torch.nn.Module) -> list[int]:
    """Of each stage, how many blocks begin with a shift."""
    kinds = (BasicBlock, Bottleneck, SparseConvNeXtBlock)
    stages = [[x for x in m.children() if isinstance(x, kinds)] for m in network.modules()]
    convs = [[getattr(x, 'conv1', None) or x.depthwise_conv for x in stage] for stage in stages]
    return [sum(len(conv._forward_pre_hooks) for conv in stage) for stage in convs if stage]


@pytest.mark.parametrize(('depth', 'shift_div'), [(18, 8), (50, 4), (101, 8)])
def test_shift__is_that_of_mmaction(depth, shift_div):
    network = fill(MODELS.build(dict(type='videomac_mm.SparseResNet', depth=depth))).double()
    official = MODELS.build(
        dict(
            type='mmaction.ResNetTSM',
            depth=depth,
            num_segments=SEGMENTS,
            shift_div=shift_div,
            pretrained2d=False,
            norm_eval=False,
        )
    ).double()
    weights = to_mmaction({f'backbone.{key}': value for key, value in network.state_dict().items()})
    # Its shifted convs are one level deeper.
    nested = {key.replace('.net.', '.'): key for key in official.state_dict() if '.net.' in key}
    weights = {key.removeprefix('backbone.'): value for key, value in weights.items()}
    official.load_state_dict({nested.get(key, key): value for key, value in weights.items()})
    ours = shifted(copy.deepcopy(network), shift_div=shift_div)
    assert sum(shifted_blocks(ours)) == len(nested)
    frames = torch.randn(2 * SEGMENTS, 3, 32, 32, dtype=torch.float64)
    for training in (False, True):
        for model in (network, ours, official):
            model.train(training)
        with torch.no_grad():
            (got,), expected, (plain_maps,) = ours(frames), official(frames), network(frames)
        scale = expected.abs().max()
        assert (got - expected).abs().max() <= 1e-6 * scale
        assert (plain_maps - expected).abs().max() > 1e-2 * scale


@pytest.mark.parametrize('name', BACKBONES)
def test_state_dict__is_that_of_the_network(name):
    network = plain(name)
    shift = shifted(BACKBONES[name])
    assert list(shift.state_dict()) == list(network.state_dict())
    assert type(shift).__name__ == type(network).__name__
    shift.load_state_dict(network.state_dict())


def test_blocks__all_of_a_convnext_and_every_second_from_resnet101_on():
    assert shifted_blocks(shifted(CONVNEXT)) == [1, 1, 2, 1]
    assert shifted_blocks(shifted(RESNET)) == [3, 4, 6, 3]
    assert shifted_blocks(shifted(dict(RESNET, depth=101))) == [2, 2, 12, 2]


@pytest.mark.parametrize('name', BACKBONES)
def test_features__depend_on_neighbours_only(name):
    """Two stages of one shifted block each: no frame sees farther than two frames."""
    network = plain(name)
    shift = shifted(copy.deepcopy(network), num_segments=8)
    for layer in list(shift.modules()):  # leave two shifts
        hooked = [x for x in layer.modules() if x._forward_pre_hooks]
        if layer is shift:
            for conv in hooked[2:]:
                conv._forward_pre_hooks.clear()
    frames = torch.randn(16, 3, 64, 64)
    other = frames.clone()
    other[4] = torch.randn(3, 64, 64)
    with torch.no_grad():
        changed = (shift(frames)[0] - shift(other)[0]).abs().flatten(1).amax(1) > 0
    assert changed.tolist() == [2 <= t <= 6 for t in range(16)]


@pytest.mark.parametrize('name', BACKBONES)
def test_clips__do_not_see_each_other(name):
    shift = shifted(plain(name))
    frames = torch.randn(2 * SEGMENTS, 3, 64, 64)
    other = frames.clone()
    other[SEGMENTS:] = torch.randn(SEGMENTS, 3, 64, 64)
    with torch.no_grad():
        first, second = shift(frames)[0], shift(other)[0]
    torch.testing.assert_close(first[:SEGMENTS], second[:SEGMENTS])
    assert not torch.allclose(first[SEGMENTS:], second[SEGMENTS:])


@pytest.mark.parametrize('name', BACKBONES)
def test_one_segment__is_the_plain_network(name):
    network = plain(name)
    frames = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        expected = network(frames)[0]
        assert not torch.allclose(
            shifted(copy.deepcopy(network), num_segments=3)(frames)[0], expected
        )
        assert torch.equal(shifted(network, num_segments=1)(frames)[0], expected)


@pytest.mark.parametrize('name', ['convnext', 'resnet'])
def test_shift__survives_copies_modes_and_checkpointing(name):
    network = shifted(plain(name))
    frames = torch.randn(SEGMENTS, 3, 64, 64)
    expected = network(frames)[0]
    expected.square().mean().backward()
    for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(copied(frames)[0], expected)
        assert torch.equal(copied.train().eval()(frames)[0], expected)
    saving = shifted(dict(BACKBONES[name], with_cp=True)).train()
    saving.load_state_dict(network.state_dict())
    out = saving(frames)[0]
    torch.testing.assert_close(out, expected)
    out.square().mean().backward()
    for (key, one), two in zip(network.named_parameters(), saving.parameters()):
        torch.testing.assert_close(one.grad, two.grad, msg=key)


def test_errors():
    with pytest.raises(ValueError, match='VGG has no residual block to shift in'):
        shifted(dict(type='mmpretrain.VGG', depth=11))
    for kwargs in (dict(num_segments=0), dict(shift_div=0)):
        with pytest.raises(ValueError, match='must be at least 1, got'):
            shifted(CONVNEXT, **kwargs)
    network = shifted(CONVNEXT)
    with pytest.raises(ValueError, match='a batch of 6 frames is no multiple of num_segments=4'):
        network(torch.randn(6, 3, 64, 64))
    with pytest.raises(ValueError, match='takes no mask'):
        network(torch.randn(4, 3, 64, 64), random_mask(4, (2, 2), 2))
