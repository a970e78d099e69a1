import copy

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import Tensor, nn

from tests.adapters import adapt, assert_hooks_fire
from tests.masks import expand, random_mask
from videomac_mm.models import TargetNetwork, VideoVisionTransformer
from videomac_mm.models.backbones.video_vit import FusedAttention, FusedBlock
from videomac_mm.models.masking import pick
from videomac_mm.registry import MODELS
from videomac_mm.sparse import VisiblePatches

# mmaction2's own, importable only after this package has repaired that one
VisionTransformer = VideoVisionTransformer.__base__
Block, Attention = FusedBlock.__base__, FusedAttention.__base__
TINY = dict(
    img_size=24, patch_size=8, embed_dims=12, depth=2, num_heads=3, num_frames=6, tubelet_size=2
)
GRID = (3, 3, 3)
PRETRAINING = dict(use_mean_pooling=False)
VARIANTS = [
    dict(),
    PRETRAINING,
    dict(PRETRAINING, return_feat_map=True),
    dict(return_feat_map=True),
    dict(PRETRAINING, qkv_bias=False),
    dict(PRETRAINING, qk_scale=0.3, mlp_ratio=2.0),
    dict(PRETRAINING, init_values=0.7),
    dict(PRETRAINING, use_learnable_pos_emb=True),
    dict(PRETRAINING, norm_cfg=dict(type='LN', eps=0.1)),
    dict(PRETRAINING, tubelet_size=3, in_channels=2),
]


def randomise(network: nn.Module) -> nn.Module:
    """No parameter is zero, or otherwise special."""
    for param in network.parameters():
        nn.init.normal_(param, std=0.3 if param.ndim == 1 else param[0].numel() ** -0.5)
        if param.ndim == 1:
            param.data += 0.5
    return network.double()


def build(**kwargs) -> VideoVisionTransformer:
    return randomise(VideoVisionTransformer(**{**TINY, **kwargs}))


def mmaction_twin(backbone: VideoVisionTransformer, **kwargs) -> VisionTransformer:
    """mmaction2's own class with the same weights."""
    twin = VisionTransformer(**{**TINY, **kwargs}).double()
    assert list(twin.state_dict()) == list(backbone.state_dict())
    twin.load_state_dict(backbone.state_dict())
    return twin


def clips(num: int = 2, size: tuple[int, int, int] = (6, 24, 24), channels: int = 3) -> Tensor:
    return torch.randn(num, channels, *size, dtype=torch.float64)


def gradients(network: nn.Module, out: Tensor) -> list[Tensor]:
    return torch.autograd.grad(out.square().mean(), list(network.parameters()))


# ------------------------------------------------------------- without a mask


@pytest.mark.parametrize('variant', VARIANTS)
def test_without_mask__is_mmactions(variant):
    backbone = build(**variant)
    twin = mmaction_twin(backbone, **variant)
    x = clips(channels=variant.get('in_channels', 3))
    got, want = backbone(x), twin(x)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    if not variant.get('return_feat_map'):
        for first, second in zip(gradients(backbone, got), gradients(twin, want)):
            torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('variant', [dict(), dict(PRETRAINING, return_feat_map=True)])
@pytest.mark.parametrize('size', [(6, 32, 16), (6, 40, 40), (7, 30, 25)])
def test_without_mask__other_sizes_are_mmactions_too(variant, size):
    backbone = build(**variant)
    x = clips(size=size)
    want = mmaction_twin(backbone, **variant)(x)
    torch.testing.assert_close(backbone(x), want, rtol=1e-12, atol=1e-12)


def test_arguments__reach_the_layers_as_in_mmaction():
    rates = dict(drop_rate=0.1, attn_drop_rate=0.2, drop_path_rate=0.3, depth=3)
    ours, theirs = build(**rates), VisionTransformer(**{**TINY, **rates})
    kinds = {type(module): module for module in theirs.modules() if not list(module.children())}
    assert len(kinds) > 5
    found = [
        [(name, str(module)) for name, module in network.named_modules() if type(module) in kinds]
        for network in (ours, theirs)
    ]
    assert found[0] == found[1]


def test_dropout__takes_tokens_with_their_positions():
    backbone = build(**PRETRAINING, drop_rate=0.5, depth=0)
    x, mask, seen = clips(), random_mask(2, GRID, 8), []
    backbone.pos_drop.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    out = backbone(x, mask)
    ((tokens, dropped),) = seen
    wanted = backbone.patch_embed(x)[0] + backbone.pos_embed
    torch.testing.assert_close(tokens, wanted[~mask.flatten(1)].view(2, 8, 12))
    assert 0.3 < (dropped == 0).double().mean() < 0.7
    assert torch.equal(out, backbone.norm(dropped))


def test_layer_decay__is_that_of_mmactions_class():
    cfg = dict(
        optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
        paramwise_cfg=dict(decay_rate=0.75, decay_type='layer_wise', num_layers=2),
        constructor='mmaction.LearningRateDecayOptimizerConstructor',
    )
    rates = []
    for kind in (VideoVisionTransformer, VisionTransformer):
        network = nn.Module()  # the constructor goes by names from `backbone.` on
        network.backbone = kind(**TINY)
        groups = build_optim_wrapper(network, copy.deepcopy(cfg)).optimizer.param_groups
        of = {id(param): (g['lr'], g['weight_decay']) for g in groups for param in g['params']}
        rates.append({name: of[id(param)] for name, param in network.named_parameters()})
    assert rates[0] == rates[1]
    assert len(set(rates[0].values())) > 4


# --------------------------------------------------------------- under a mask


@pytest.mark.parametrize('visible', [1, 8, 27])
@pytest.mark.parametrize(
    'variant', [variant for variant in VARIANTS if PRETRAINING.items() <= variant.items()]
)
def test_masked__is_mmactions_on_the_gathered_tokens(variant, visible):
    backbone = build(**variant)
    twin = mmaction_twin(backbone, **variant)
    x = clips(channels=variant.get('in_channels', 3))
    mask = random_mask(2, (6 // variant.get('tubelet_size', 2), 3, 3), min(visible, 18))
    tokens = (twin.patch_embed(x)[0] + twin.pos_embed)[~mask.flatten(1)].view(2, -1, 12)
    for block in twin.blocks:
        tokens = block(tokens)
    want, got = twin.norm(tokens), backbone(x, mask)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    for first, second in zip(gradients(backbone, got), gradients(twin, want)):
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('size', [(6, 32, 16), (6, 30, 25), (4, 24, 24), (7, 24, 24)])
def test_masked__other_sizes_take_the_positions_of_the_dense_path(size):
    backbone = build(**PRETRAINING)
    x, grid = clips(size=size), [size[0] // 2, size[1] // 8, size[2] // 8]
    mask = random_mask(2, tuple(grid), 3)
    visible = VisiblePatches(mask).visible
    tokens = pick(backbone.patch_embed(x)[0] + backbone.positions(grid), visible)
    for block in backbone.blocks:
        tokens = block(tokens)
    want = backbone.norm(tokens)
    torch.testing.assert_close(backbone(x, mask), want, rtol=1e-12, atol=1e-12)


def test_masked__with_nothing_hidden_is_dense():
    backbone = build(**PRETRAINING, return_feat_map=True)
    x = clips()
    want = backbone(x).flatten(2).transpose(1, 2)
    got = backbone(x, torch.zeros(2, *GRID, dtype=torch.bool))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_masked__hidden_pixels_are_never_read():
    backbone = build(**PRETRAINING)
    mask = random_mask(2, GRID, 8)
    x = clips()
    want = backbone(x, mask)
    hidden = expand(mask, x.shape[2:])
    assert torch.equal(backbone(x.masked_fill(hidden, torch.nan), mask), want)
    # ... and every visible tubelet is.
    for token in VisiblePatches(mask).visible.tolist():
        touched = torch.zeros(54, dtype=torch.bool)
        touched[token] = True
        other = x + 3 * expand(touched.view(2, *GRID), x.shape[2:])
        assert not torch.equal(backbone(other, mask)[token // 27], want[token // 27])


def test_masked__samples_do_not_see_each_other():
    backbone = build(**PRETRAINING)
    mask = random_mask(3, GRID, 8)
    x = clips(3)
    together = backbone(x, mask)
    for i in range(3):
        alone = backbone(x[i : i + 1], mask[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-12, atol=1e-12)


def test_masked__dropping_tokens_changes_the_others():
    # Visible tokens see each other: with fewer of them the first ones are different.
    backbone = build(**PRETRAINING)
    x = clips(1)
    mask = torch.ones(1, 27, dtype=torch.bool)
    mask[:, :8] = False
    eight = backbone(x, mask.view(1, *GRID))
    mask[:, 7] = True
    seven = backbone(x, mask.view(1, *GRID))
    assert (eight[:, :7] - seven).abs().amax(2).min() > 1e-6


# -------------------------------------------------------- clips of other length


@pytest.mark.parametrize('learnable', [False, True])
def test_shorter_clips__take_the_first_positions(learnable):
    backbone = build(**PRETRAINING, use_learnable_pos_emb=learnable)
    shorter = build(**PRETRAINING, use_learnable_pos_emb=learnable, num_frames=4)
    state = backbone.state_dict()
    if learnable:
        state['pos_embed'] = state['pos_embed'][:, :18]
    else:
        state['pos_embed'] = shorter.pos_embed
    shorter.load_state_dict(state)
    x, mask = clips(size=(4, 24, 24)), random_mask(2, (2, 3, 3), 5)
    torch.testing.assert_close(backbone(x), shorter(x))
    torch.testing.assert_close(backbone(x, mask), shorter(x, mask))


def test_longer_clips__are_refused():
    with pytest.raises(ValueError, match='8 frames is longer than num_frames=6'):
        build()(clips(size=(8, 24, 24)))


@pytest.mark.parametrize('size', [(24, 24), (32, 48)])
def test_images__are_clips_of_one_tubelet_that_stand_still(size):
    backbone = build(**PRETRAINING, return_feat_map=True)
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    still = images[:, :, None].expand(-1, -1, 2, -1, -1)
    maps = backbone(images)
    assert maps.shape == (2, 12, size[0] // 8, size[1] // 8)
    assert torch.equal(maps, backbone(still)[:, :, 0])
    mask = random_mask(2, (1, size[0] // 8, size[1] // 8), 4)
    assert torch.equal(backbone(images, mask), backbone(still, mask))
    pooling = build()
    assert torch.equal(pooling(images), pooling(still))


# ----------------------------------------------------------------- how it runs


def test_checkpointing__changes_no_gradient():
    plain, frugal = build(**PRETRAINING), build(**PRETRAINING, with_cp=True)
    frugal.load_state_dict(plain.state_dict())
    mask, x = random_mask(2, GRID, 8), clips()
    saved = []

    def count(tensor: Tensor) -> Tensor:
        saved[-1] += tensor.numel()
        return tensor

    results = []
    for network in (plain, frugal):
        saved.append(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            out = network(x, mask)
        results.append([out, *gradients(network, out)])
    for got, want in zip(*results):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert saved[1] < saved[0] / 2
    with torch.no_grad():
        assert torch.equal(frugal(x, mask), plain(x, mask))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast__stays_close_to_float32(dtype):
    backbone = build(**PRETRAINING, return_feat_map=True).float()
    x, mask = clips().float(), random_mask(2, GRID, 8)
    for args in ((x,), (x, mask)):
        wanted = backbone(*args)
        with torch.autocast('cpu', dtype):
            out = backbone(*args)
        error = (out.float() - wanted).norm() / wanted.norm()
        assert 0 < error < 0.05
        backbone.zero_grad()
        out.float().square().sum().backward()
        grads = [param.grad for param in backbone.parameters()]
        assert all(grad.isfinite().all() for grad in grads)
        assert {grad.dtype for grad in grads} == {torch.float32}


def test_compile__gives_the_same_gradients():
    plain = build(**PRETRAINING, depth=1)
    compiled = torch.compile(plain, backend='aot_eager')
    mask, x = random_mask(2, GRID, 8), clips()
    grads = []
    for network in (plain, compiled):
        out = network(x, mask)
        network(x, random_mask(2, GRID, 8, seed=5))  # another mask before backward
        grads.append(gradients(plain, out))
    for got, want in zip(*grads):
        torch.testing.assert_close(got, want)


def test_copies__are_independent_and_compute_the_same():
    backbone = build(**PRETRAINING)
    mask, x = random_mask(2, GRID, 8), clips()
    wanted = backbone(x, mask)
    copied, target = copy.deepcopy(backbone), TargetNetwork(backbone=backbone)
    randomise(backbone)
    assert torch.equal(copied(x, mask), wanted)
    assert torch.equal(target.backbone(x, mask), wanted)
    assert not target.backbone(x, mask).requires_grad
    assert not list(target.parameters())


@pytest.mark.parametrize('mask', [random_mask(2, GRID, 8), None])
def test_hooks__fire_on_every_layer(mask):
    assert_hooks_fire(build(**PRETRAINING), clips(), mask)


@pytest.mark.parametrize('mask', [random_mask(2, GRID, 8), None])
def test_hooks__on_the_attention_see_its_weights(mask):
    backbone, seen = build(**PRETRAINING), []
    backbone.blocks[0].attn.attn_drop.register_forward_hook(lambda *args: seen.append(args[2]))
    backbone(clips(), mask)
    num = 27 if mask is None else 8
    assert seen[0].shape == (2, 3, num, num)
    torch.testing.assert_close(seen[0].sum(-1), torch.ones(2, 3, num, dtype=torch.float64))


@pytest.mark.parametrize('qkv_bias', [True, False])
@pytest.mark.parametrize('mask', [random_mask(2, GRID, 8), None])
def test_adapters__take_effect_and_learn(qkv_bias, mask):
    backbone = build(**PRETRAINING, return_feat_map=True, qkv_bias=qkv_bias)
    merged = adapt(backbone)
    x = clips()
    out = backbone(x, mask)
    torch.testing.assert_close(out, merged(x, mask))
    for grad in gradients(backbone, out):
        assert grad.abs().sum() > 0


def test_patch_embedding__with_a_norm_of_its_own_is_called():
    backbone = build(**PRETRAINING)
    backbone.patch_embed.norm = nn.LayerNorm(12).double()
    x, mask = clips(), random_mask(2, GRID, 8)
    tokens = (backbone.patch_embed(x)[0] + backbone.pos_embed)[~mask.flatten(1)].view(2, -1, 12)
    for block in backbone.blocks:
        tokens = block(tokens)
    torch.testing.assert_close(backbone(x, mask), backbone.norm(tokens))


def test_drop_path__drops_branches_of_whole_samples():
    backbone = build(**PRETRAINING, drop_path_rate=0.5)
    assert isinstance(backbone.blocks[0].drop_path, nn.Identity)  # the rate rises from 0
    assert backbone.blocks[1].drop_path.drop_prob == 0.5
    mask = random_mask(1, GRID, 8).expand(64, -1, -1, -1)
    x = clips(1).expand(64, -1, -1, -1, -1)
    outs = backbone(x, mask).flatten(1)
    # Both branches of the last block, one of them or none.
    assert len(outs.detach().unique(dim=0)) == 4
    backbone.eval()
    assert len(backbone(x, mask).flatten(1).detach().unique(dim=0)) == 1


@pytest.mark.parametrize('qkv_bias', [False, True])
@pytest.mark.parametrize('qk_scale', [None, 0.3])
def test_attention__is_mmactions(qkv_bias, qk_scale):
    ours = randomise(FusedAttention(12, 3, qkv_bias, qk_scale))
    theirs = Attention(12, 3, qkv_bias, qk_scale).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 7, 12, dtype=torch.float64, requires_grad=True)
    results = []
    for attention in (ours, theirs):
        out = attention(x)
        grads = torch.autograd.grad(out.square().sum(), [x, *attention.parameters()])
        results.append([out, *grads])
    for got, want in zip(*results):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_attention__drops_weights_in_training_only():
    attention = randomise(FusedAttention(12, 3, attn_drop_rate=0.5))
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    assert not torch.equal(attention(x), attention(x))
    attention.eval()
    theirs = Attention(12, 3).double()
    theirs.load_state_dict(attention.state_dict())
    torch.testing.assert_close(attention(x), theirs(x))


def test_block__has_mmactions_arguments():
    args = dict(
        embed_dims=12,
        num_heads=3,
        mlp_ratio=2.0,
        qk_scale=0.3,
        drop_rate=0.1,
        attn_drop_rate=0.2,
        drop_path_rate=0.3,
        init_values=0.7,
        act_cfg=dict(type='ReLU'),
        norm_cfg=dict(type='LN', eps=0.1),
    )
    ours, theirs = randomise(FusedBlock(**args)).eval(), Block(**args).double().eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)
    for name in ('attn.attn_drop', 'attn.proj_drop', 'drop_path'):
        assert str(ours.get_submodule(name)) == str(theirs.get_submodule(name))


def test_initialisation__follows_init_cfg_and_leaves_the_embedding_to_torch():
    backbone = MODELS.build(
        dict(
            TINY,
            type='VideoVisionTransformer',
            use_mean_pooling=False,
            init_cfg=[
                dict(type='Xavier', layer='Linear', distribution='uniform', bias=0.0),
                dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
            ],
        )
    )
    before = backbone.patch_embed.projection.weight.clone()
    backbone.init_weights()
    assert torch.equal(backbone.patch_embed.projection.weight, before)
    for module in backbone.blocks.modules():
        if isinstance(module, nn.Linear):
            bound = (6 / sum(module.weight.shape)) ** 0.5
            assert 0.9 * bound < module.weight.abs().max() <= bound
            assert module.bias is None or not module.bias.any()
    assert not backbone.blocks[0].attn.q_bias.any()


def test_bad_arguments__are_named():
    with pytest.raises(ValueError, match='24 of 7 and 6 of 2'):
        build(patch_size=7)
    with pytest.raises(ValueError, match='24 of 8 and 6 of 4'):
        build(tubelet_size=4)
    with pytest.raises(ValueError, match='multiple of num_heads, got 12 and 5'):
        build(num_heads=5)
    with pytest.raises(ValueError, match=r'shape \(2, 3, 3, 3\) .*got \(2, 3, 3\)'):
        build()(clips(), random_mask(2, (3, 3), 4))
    with pytest.raises(ValueError, match=r'shape \(2, 3, 3, 3\) .*got \(1, 3, 3, 3\)'):
        build()(clips(), random_mask(1, GRID, 4))
    mask = random_mask(2, GRID, 4)
    mask[0] = random_mask(1, GRID, 5)
    with pytest.raises(ValueError, match=r'same number of patches, got \[5, 4\]'):
        build()(clips(), mask)
