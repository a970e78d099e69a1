import pytest
import torch
from torch import nn

from tests.masks import expand, random_mask
from videomac_mm.sparse import (
    PatchConv2d,
    PatchDropPath,
    PatchGRN,
    PatchMaxPool2d,
    VisiblePatches,
    set_backend,
)

CONVS = [
    dict(kernel_size=7, padding=3),
    dict(kernel_size=7, padding=3, groups=4),
    dict(kernel_size=3, padding=1),
    dict(kernel_size=3, padding=1, stride=2),
    dict(kernel_size=7, padding=3, stride=2),
    dict(kernel_size=3, padding=2, dilation=2),
    dict(kernel_size=5, padding=2, stride=4),
    dict(kernel_size=1, stride=2),
    dict(kernel_size=2, stride=2),
    dict(kernel_size=1),
]


@pytest.mark.parametrize(
    'cfg, side',
    [(cfg, side) for cfg in CONVS for side in (1, 2, 4, 8) if side % cfg.get('stride', 1) == 0],
    ids=str,
)
@pytest.mark.parametrize('backend', ['auto', 'torch'])
def test_conv__equals_dense_conv_on_zeroed_maps(cfg, side, backend):
    mask = random_mask(2, (3, 4), 5)
    conv = PatchConv2d(4, 8, dtype=torch.float64, **cfg)
    set_backend(conv, backend)
    maps = torch.randn(2, 4, 3 * side, 4 * side, dtype=torch.float64, requires_grad=True)
    patches = VisiblePatches(mask)

    dense = conv(maps.masked_fill(expand(mask, maps.shape[-2:]), 0.0))
    dense = dense.masked_fill(expand(mask, dense.shape[-2:]), 0.0)
    sparse = patches.unpack(conv(patches.pack(maps), patches))
    torch.testing.assert_close(sparse, dense)

    upstream = torch.randn_like(dense)
    wanted = torch.autograd.grad(dense, [maps, *conv.parameters()], upstream)
    grads = torch.autograd.grad(sparse, [maps, *conv.parameters()], upstream)
    for got, want in zip(grads, wanted):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize('backend', ['auto', 'torch'])
def test_conv__second_derivatives(backend):
    patches = VisiblePatches(random_mask(1, (2, 2), 2))
    conv = PatchConv2d(2, 2, 3, padding=1).double()
    set_backend(conv, backend)
    tiles = torch.randn(2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: conv(x, patches), tiles)
    assert torch.autograd.gradgradcheck(lambda x: conv(x, patches).square(), tiles)


def test_conv__follows_a_change_of_its_settings():
    mask = random_mask(2, (3, 3), 4)
    patches, maps = VisiblePatches(mask), torch.randn(2, 4, 12, 12)
    conv = PatchConv2d(4, 4, 3, stride=2, padding=1)
    conv.stride = (1, 1)
    dense = conv(maps.masked_fill(expand(mask, (12, 12)), 0.0))
    sparse = patches.unpack(conv(patches.pack(maps), patches))
    torch.testing.assert_close(sparse, dense.masked_fill(expand(mask, (12, 12)), 0.0))
    down = PatchConv2d(4, 4, 2, stride=2)
    down.stride = (1, 1)  # a row of the result would be missing
    with pytest.raises(ValueError, match='kernel - stride <= .*; got kernel 2, stride 1'):
        down(patches.pack(maps), patches)


@pytest.mark.parametrize('cfg', [dict(kernel_size=3), dict(kernel_size=4, padding=2)], ids=str)
def test_conv__that_changes_the_grid_is_refused(cfg):
    with pytest.raises(ValueError, match='kernel - stride <= 2\\*padding < kernel'):
        PatchConv2d(2, 2, **cfg)


def test_conv__bad_arguments_are_named():
    with pytest.raises(ValueError, match="padding_mode must be 'zeros', got 'reflect'"):
        PatchConv2d(4, 4, 3, padding=1, padding_mode='reflect')
    with pytest.raises(ValueError, match='square windows'):
        PatchConv2d(2, 2, (3, 5), padding=(1, 2))
    conv, patches = PatchConv2d(2, 2, 3, 2, 1), VisiblePatches(random_mask(1, (2, 2), 1))
    with pytest.raises(ValueError, match='side 1 cannot be strided by 2'):
        conv(torch.randn(1, 2, 1, 1), patches)


def test_max_pool__ignores_hidden_sites_even_for_negative_maps():
    mask = random_mask(2, (3, 3), 3)
    maps = -1 - torch.rand(2, 4, 12, 12)
    pool, patches = PatchMaxPool2d(3, 2, 1), VisiblePatches(mask)
    pooled = patches.unpack(pool(patches.pack(maps), patches))
    dense = pool(maps.masked_fill(expand(mask, (12, 12)), float('-inf')))
    torch.testing.assert_close(pooled, dense.masked_fill(expand(mask, (6, 6)), 0.0))
    assert pooled.isfinite().all()


@pytest.mark.parametrize('scope', ['sample', 'batch'])
def test_grn__pools_visible_sites_only(scope):
    mask = random_mask(3, (2, 3), 2)
    grn, patches = PatchGRN(5, scope=scope).double(), VisiblePatches(mask)
    nn.init.normal_(grn.gamma), nn.init.normal_(grn.beta)
    tiles = torch.randn(6, 4, 4, 5, dtype=torch.float64)
    groups = tiles.view(3 if scope == 'sample' else 1, -1, 5)
    response = groups.norm(dim=1, keepdim=True)
    response = response / (response.mean(-1, keepdim=True) + 1e-6)
    wanted = grn.gamma * (groups * response) + grn.beta + groups
    torch.testing.assert_close(grn(tiles, patches), wanted.view_as(tiles))


def test_grn__dense_equals_mmpretrain():
    from mmpretrain.models.utils import GRN

    upstream, grn = GRN(6), PatchGRN(6, scope='batch')
    nn.init.normal_(upstream.gamma), nn.init.normal_(upstream.beta)
    grn.load_state_dict(upstream.state_dict())
    x = torch.randn(2, 5, 4, 6)
    torch.testing.assert_close(grn(x), upstream(x, data_format='channel_last'))


def test_grn__gradient_is_finite_where_a_channel_is_zero():
    grn = PatchGRN(3)
    nn.init.ones_(grn.gamma)
    x = torch.zeros(1, 2, 2, 3, requires_grad=True)
    grn(x).sum().backward()
    assert x.grad.isfinite().all()


def test_grn__dense_is_twice_differentiable():
    grn = PatchGRN(3).double()
    nn.init.normal_(grn.gamma)
    x = torch.randn(2, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(grn, x)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_grn__half_precision_sums_in_single(dtype):
    # The energy of a channel, 2048 * 100, and the gradients' sum exceed float16.
    grn = PatchGRN(4)
    nn.init.ones_(grn.gamma)
    x = torch.full((1, 64, 32, 4), 10.0, dtype=dtype, requires_grad=True)

    out = grn(x)
    out.float().sum().backward()

    assert out.dtype == x.grad.dtype == dtype
    assert (out == 20).all() and x.grad.isfinite().all()


def test_grn__unknown_scope_is_named():
    with pytest.raises(ValueError, match="got 'image'"):
        PatchGRN(3, scope='image')


def test_drop_path__drops_whole_images():
    patches = VisiblePatches(random_mask(64, (2, 2), 2))
    drop = PatchDropPath(0.5)
    kept = drop(torch.ones(128, 3, 2, 2), patches).view(64, -1)
    assert (kept == kept[:, :1]).all()
    assert set(kept[:, 0].tolist()) == {0.0, 2.0}
    assert (drop.eval()(torch.ones(128, 3, 2, 2), patches) == 1).all()
