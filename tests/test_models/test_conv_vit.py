import pytest
import torch
from mmaction.engine.optimizers.layer_decay_optim_wrapper_constructor import get_layer_id_for_vit
from torch import Tensor, nn

from tests.adapters import adapt, assert_hooks_fire
from tests.masks import random_mask
from videomac_mm.models.backbones.conv_vit import ConvBlock, ConvVisionTransformer
from videomac_mm.models.masking import pick
from videomac_mm.registry import MODELS
from videomac_mm.sparse import VisiblePatches

TINY = dict(
    type='ConvVisionTransformer',
    img_size=48,
    embed_dims=(8, 12, 16),
    depths=(2, 1, 2),
    num_heads=4,
    num_frames=6,
    use_mean_pooling=False,
)
GRID = (3, 3, 3)
PRETRAINING = dict(multi_scale_fusion=True)
FINE_TUNING = dict(use_mean_pooling=True)


def build(**kwargs) -> ConvVisionTransformer:
    """A backbone without a zero, or otherwise special, parameter."""
    backbone = MODELS.build({**TINY, **kwargs})
    for param in backbone.parameters():
        nn.init.normal_(param, std=0.3 if param.ndim == 1 else param[0].numel() ** -0.5)
        if param.ndim == 1:
            param.data += 0.5
    return backbone.double()


def clips(num: int = 2, size: tuple[int, int, int] = (6, 48, 48)) -> Tensor:
    return torch.randn(num, 3, *size, dtype=torch.float64)


def tubes(num: int = 2, visible: int = 3) -> Tensor:
    return random_mask(num, GRID[1:], visible)[:, None].expand(-1, GRID[0], -1, -1)


def tubelets(num: int = 2, visible: int = 3) -> Tensor:
    """Another pattern in every time slot."""
    return random_mask(num * GRID[0], GRID[1:], visible, seed=1).unflatten(0, (num, -1))


def masked_dense(backbone: ConvVisionTransformer, x: Tensor, mask: Tensor) -> Tensor:
    """The same tokens from whole maps: only the depth-wise convs are kept from what is hidden,
    as in ConvMAE's code."""

    def hide(conv: nn.Module, args: tuple) -> tuple:
        maps = args[0]  # (B*t, C, H, W) or (B, C, t, H, W)
        side = maps.shape[-1] // mask.shape[-1]
        visible = ~mask.repeat_interleave(side, 2).repeat_interleave(side, 3)
        visible = visible.flatten(0, 1)[:, None] if maps.ndim == 4 else visible[:, None]
        return maps * visible, *args[1:]

    blocks = [module for module in backbone.modules() if isinstance(module, ConvBlock)]
    hooks = [block.depthwise_conv.register_forward_pre_hook(hide) for block in blocks]
    tokens, fused = backbone.patch_embed(x, len(x))
    for hook in hooks:
        hook.remove()
    visible = VisiblePatches(mask).visible
    x = pick(tokens + backbone.positions(list(mask.shape[1:])), visible)
    for block in backbone.blocks:
        x = block(x)
    return backbone.norm(x + pick(fused, visible))


def gradients(backbone: nn.Module, out: Tensor) -> dict[str, Tensor]:
    names, params = zip(*backbone.named_parameters())
    return dict(zip(names, torch.autograd.grad(out.square().mean(), params)))


@pytest.mark.parametrize('kernel', [(1, 5, 5), (1, 3, 3), (1, 7, 7), (3, 5, 5)])
@pytest.mark.parametrize('mask', [tubes(), tubelets(), tubelets(visible=1)])
def test_masked__equals_masked_dense(kernel, mask):
    backbone = build(conv_kernel=kernel, **PRETRAINING)
    x = clips()
    got, want = backbone(x, mask), masked_dense(backbone, x, mask)
    assert got.shape == (2, (~mask[0]).sum(), 16)
    torch.testing.assert_close(got, want)
    grads = gradients(backbone, want)
    for name, grad in gradients(backbone, got).items():
        torch.testing.assert_close(grad, grads[name], rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize('kernel', [(1, 5, 5), (3, 5, 5)])
def test_masked__hidden_pixels_change_nothing(kernel):
    backbone = build(conv_kernel=kernel, **PRETRAINING)
    mask, x = tubelets(), clips()
    hidden = mask.repeat_interleave(2, 1).repeat_interleave(16, 2).repeat_interleave(16, 3)
    hidden = hidden[:, None].expand_as(x)
    first = backbone(x, mask)
    second = backbone(x.masked_fill(hidden, float('nan')), mask)
    assert torch.equal(first, second)
    grads = gradients(backbone, second)
    for name, grad in gradients(backbone, first).items():
        assert torch.equal(grad, grads[name]), name
    assert not torch.equal(first, backbone(x.where(hidden, x + 1), mask))


def test_masked__batch_mates_change_nothing():
    backbone = build(**PRETRAINING)
    mask, x = tubelets(), clips()
    torch.testing.assert_close(backbone(x, mask)[:1], backbone(x[:1], mask[:1]))


@pytest.mark.parametrize('kernel', [(1, 5, 5), (3, 5, 5)])
def test_masked__nothing_hidden_equals_dense(kernel):
    backbone = build(conv_kernel=kernel, return_feat_map=True, **PRETRAINING)
    x = clips()
    tokens = backbone(x, torch.zeros(2, *GRID, dtype=torch.bool))
    torch.testing.assert_close(tokens.transpose(1, 2).unflatten(2, GRID), backbone(x))


@pytest.mark.parametrize('kernel, mixes', [((1, 5, 5), False), ((3, 5, 5), True)])
def test_kernel__decides_whether_convs_mix_time_slots(kernel, mixes):
    embed = build(conv_kernel=kernel).patch_embed
    x = clips(1)
    other = torch.cat([x[:, :, :4], x[:, :, 4:] + 1], 2)  # another last slot
    first, second = (embed(given, 1)[0].unflatten(1, GRID) for given in (x, other))
    assert torch.equal(first[:, :2], second[:, :2]) != mixes
    assert not torch.equal(first[:, 2], second[:, 2])


@pytest.mark.parametrize('kernel', [(1, 5, 5), (3, 5, 5)])
@pytest.mark.parametrize(
    'kwargs, mask',
    [
        (PRETRAINING, tubes()),
        (PRETRAINING, None),
        (FINE_TUNING, None),
    ],
)
def test_gradient__reaches_every_parameter(kernel, kwargs, mask):
    backbone = build(
        conv_kernel=kernel, return_feat_map=not kwargs.get('use_mean_pooling'), **kwargs
    )
    for name, grad in gradients(backbone, backbone(clips(), mask)).items():
        assert (grad != 0).any(), name


@pytest.mark.parametrize('mask', [tubes(), None])
def test_checkpointing__changes_nothing(mask):
    x = clips()
    results = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        backbone = build(with_cp=with_cp, drop_path_rate=0.5, **PRETRAINING).train()
        out = backbone(x, mask)
        results.append([out, *gradients(backbone, out).values()])
    for first, second in zip(*results):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize('kernel', [(1, 5, 5), (3, 5, 5)])
@pytest.mark.parametrize('mask', [tubelets(), None])
def test_hooks__fire_on_every_layer(kernel, mask):
    backbone = build(conv_kernel=kernel, return_feat_map=True, **PRETRAINING)
    assert_hooks_fire(backbone, clips(), mask)


@pytest.mark.parametrize('kernel', [(1, 5, 5), (3, 5, 5)])
@pytest.mark.parametrize('mask', [tubelets(), None])
def test_adapters__take_effect_and_learn(kernel, mask):
    backbone = build(conv_kernel=kernel, return_feat_map=True, **PRETRAINING)
    merged = adapt(backbone)
    x = clips()
    out = backbone(x, mask)
    torch.testing.assert_close(out, merged(x, mask))
    for name, grad in gradients(backbone, out).items():
        assert (grad != 0).any(), name


def test_drop_path__rises_over_all_stages():
    backbone = build(depths=(1, 1, 2), drop_path_rate=0.3)
    blocks = [*backbone.patch_embed.stages[0], *backbone.patch_embed.stages[1], *backbone.blocks]
    assert [block.drop_path.drop_prob for block in blocks] == pytest.approx([0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize('mask', [tubelets(16), None])
def test_drop_path__drops_whole_clips(mask):
    block = build(drop_path_rate=0.9).patch_embed.stages[0][1]
    block.drop_path.drop_prob = 0.5
    x = torch.randn(16 * 3, 8, 12, 12, dtype=torch.float64)
    patches = None if mask is None else VisiblePatches(mask.flatten(0, 1))
    x = x if mask is None else patches.pack(x)
    skipped = (block.train()(x, 16, patches) == x).unflatten(0, (16, -1)).flatten(1)
    assert torch.equal(skipped.all(1), skipped.any(1))  # in all time slots and patches, or none
    assert skipped.any() and not skipped.all()
    assert not (block.eval()(x, 16, patches) == x).all((1, 2, 3)).any()


def test_image__is_a_clip_that_stands_still():
    backbone = build(return_feat_map=True)
    image = clips(2)[:, :, 0]
    maps = backbone(image)
    assert maps.shape == (2, 16, 3, 3)
    still = image[:, :, None].expand(-1, -1, 2, -1, -1)
    torch.testing.assert_close(maps[:, :, None], backbone(still))
    mask = tubes()[:, :1]
    torch.testing.assert_close(backbone(image, mask), backbone(still, mask))


def test_image__of_another_size():
    backbone = build(return_feat_map=True)
    image = torch.randn(1, 3, 80, 64, dtype=torch.float64)
    assert backbone(image).shape == (1, 16, 5, 4)
    odd = nn.functional.pad(image, (0, 15, 0, 15))  # what makes no whole token is left out
    torch.testing.assert_close(backbone(odd), backbone(image))


def test_fine_tuning__takes_weights_of_pretraining():
    pretrained = build(**PRETRAINING)
    backbone = build(**FINE_TUNING)
    missing, unexpected = backbone.load_state_dict(pretrained.state_dict(), strict=False)
    assert missing == ['fc_norm.weight', 'fc_norm.bias']
    assert {name.rsplit('.', 1)[0] for name in unexpected} == {
        'norm',
        'patch_embed.fusion.0',
        'patch_embed.fusion.1',
    }
    x = clips()
    plain = build(return_feat_map=True)
    plain.load_state_dict(pretrained.state_dict(), strict=False)
    plain.norm = nn.Identity()
    want = backbone.fc_norm(plain(x).mean((2, 3, 4)))
    torch.testing.assert_close(backbone(x), want)


def test_layer_decay__counts_the_transformer_alone():
    layers = {
        name: get_layer_id_for_vit(f'backbone.{name}', 2)
        for name, _ in build(**FINE_TUNING).named_parameters()
    }
    for name, layer in layers.items():
        parts = name.split('.')
        want = {'patch_embed': 0, 'blocks': int(parts[1]) + 1 if parts[0] == 'blocks' else None}
        assert layer == want.get(parts[0], 3), name
    assert set(layers.values()) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    'kwargs, millions',
    [
        # ConvMAE's image models, less their position table (0.15 M) and the biases of the keys.
        (dict(num_frames=1, tubelet_size=1, **FINE_TUNING), 84.61),
        (dict(num_frames=1, tubelet_size=1, use_mean_pooling=False, **PRETRAINING), 88.93),
    ],
)
def test_size__is_convmae_base(kwargs, millions):
    backbone = ConvVisionTransformer(**kwargs)
    num = sum(param.numel() for param in backbone.parameters())
    num += 14 * 14 * 768 + 11 * 768
    assert round(num / 1e6, 2) == millions


def test_initialised__convs_keep_their_default_and_linears_follow_init_cfg():
    backbone = MODELS.build({**TINY, 'init_cfg': dict(type='Constant', layer='Linear', val=0.5)})
    conv = backbone.patch_embed.projections[1].weight.clone()
    backbone.init_weights()
    assert torch.equal(backbone.patch_embed.projections[1].weight, conv)
    assert (backbone.patch_embed.linear.weight == 0.5).all()
    assert (backbone.blocks[0].attn.qkv.weight == 0.5).all()


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(embed_dims=(8, 16)), r'3 stages, got \(8, 16\)'),
        (dict(depths=(1, 1, 1, 1)), r'3 stages, .* \(1, 1, 1, 1\)'),
        (dict(conv_kernel=(1, 4, 4)), r'odd .* got \(1, 4, 4\)'),
        (dict(conv_kernel=(1, 3, 5)), r'rows equal to columns, got \(1, 3, 5\)'),
        (dict(conv_kernel=(5, 5)), r'three .* got \(5, 5\)'),
        (dict(num_heads=3), '16 and 3'),
        (dict(img_size=40), '40 of 16'),
        (dict(num_frames=5), '5 of 2'),
    ],
)
def test_arguments__are_checked(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


@pytest.mark.parametrize(
    'mask, message',
    [
        (tubes()[:, :2], r'\(2, 3, 3, 3\).* got \(2, 2, 3, 3\)'),
        (torch.cat([tubes(1, 3), tubes(1, 2)]), r'same number of patches, got \[9, 6\]'),
        (torch.ones(2, *GRID, dtype=torch.bool), 'hides every patch'),
        # As many visible in both clips, yet not in each of their time slots.
        (random_mask(2, (9, 3), 9).unflatten(1, (3, 3)), 'same number of patches'),
    ],
)
def test_mask__is_checked(mask, message):
    with pytest.raises(ValueError, match=message):
        build()(clips(), mask)
