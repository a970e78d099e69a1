import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.gradients import gradients
from tests.masks import expand, random_mask
from tests.threads import threads_of_torch
from videomac_mm.sparse import VisiblePatches
from videomac_mm.sparse.ops import conv2d, conv2d_on_halos, library
from videomac_mm.sparse.ops.operator import own_maps

needs_kernels = pytest.mark.skipif(
    not library.is_available(), reason='no C++ compiler to build the CPU kernels with'
)
DEPTHWISE = dict(kernel=7, before=3)
# channels, channels of the result, side of the tiles, and the rest: with kernels (depth-wise with
# widest vectors or not, cache lines or not; pairs of more than 384 outputs, 256 pairs at a tap, or
# 256 channels), and without.
CONVS = [
    *((c, c, side, dict(DEPTHWISE, groups=c)) for c in (8, 24, 48) for side in (1, 2, 4, 8)),
    (16, 16, 4, dict(DEPTHWISE, groups=16, bias=False)),
    (16, 32, 8, dict(kernel=3, before=1)),
    (48, 16, 4, dict(kernel=3, before=1, bias=False)),
    (288, 32, 2, dict(kernel=3, before=1)),
    (32, 272, 1, dict(kernel=3, before=1)),
    (64, 96, 8, dict(kernel=3, before=1, stride=2)),
    (32, 48, 2, dict(kernel=3, before=1, stride=2, bias=False)),
    (16, 16, 4, dict(kernel=5, before=2, stride=4)),
    (16, 32, 4, dict(kernel=7, before=3, stride=2)),
    (16, 16, 4, dict(kernel=3, before=0, stride=2)),  # padded below and on the right alone
    (16, 16, 4, dict(kernel=3, before=1, groups=4)),
    (16, 32, 2, dict(kernel=3, before=2, dilation=2)),
    (12, 20, 2, dict(kernel=3, before=1)),
    (12, 12, 3, dict(kernel=5, before=2, groups=12)),
]


def build(
    channels: int, channels_out: int, cfg: dict, dtype: torch.dtype
) -> tuple[list[Tensor], dict]:
    """Weight and, unless ``cfg`` says no, bias of a conv, and its window."""
    cfg = dict(cfg)
    kernel, bias = cfg.pop('kernel'), cfg.pop('bias', True)
    shape = channels_out, channels // cfg.get('groups', 1), kernel, kernel
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64) / kernel
    params = [own_maps(weight)]  # as `PatchConv2d` keeps it
    params += [torch.randn(channels_out, generator=generator, dtype=torch.float64)] * bias
    return [param.to(dtype).requires_grad_() for param in params], cfg


def dense(
    maps: Tensor, params: list[Tensor], mask: Tensor, before: int, stride: int = 1, **cfg
) -> Tensor:
    """The oracle: torch's conv on maps whose hidden sites are zero, and zero where hidden."""
    kernel = cfg.get('dilation', 1) * (params[0].shape[-1] - 1) + 1
    after = max(kernel - stride - before, 0)
    seen = maps.masked_fill(expand(mask, maps.shape[-2:]), 0.0)
    out = F.conv2d(F.pad(seen, (before, after) * 2), *params, stride=stride, **cfg)
    return out.masked_fill(expand(mask, out.shape[-2:]), 0.0)


def run(convolve, maps: Tensor, params: list[Tensor], patches: VisiblePatches, **cfg) -> Tensor:
    bias = params[1] if len(params) > 1 else None
    return patches.unpack(convolve(patches.pack(maps), params[0], bias, patches, **cfg))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('num_visible', [1, 7])  # alone, most taps are without pairs
@pytest.mark.parametrize('channels, channels_out, side, cfg', CONVS, ids=str)
def test_conv__equals_dense_conv_on_zeroed_maps(
    channels, channels_out, side, cfg, num_visible, dtype
):
    mask = random_mask(2, (4, 5), num_visible)
    patches = VisiblePatches(mask)
    params, cfg = build(channels, channels_out, cfg, dtype)
    maps = torch.randn(2, channels, 4 * side, 5 * side, dtype=dtype, requires_grad=True)
    inputs = [maps, *params]
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    wanted = dense(wide[0], wide[1:], mask, **cfg)
    wanted_grads = gradients(wanted, wide)

    for convolve in (conv2d, conv2d_on_halos):
        found = run(convolve, maps, params, patches, **cfg)
        tolerance = dict(atol=1e-5, rtol=1e-5) if dtype == torch.float32 else {}
        scale = wanted.detach().abs().max()
        torch.testing.assert_close(found.double() / scale, wanted / scale, **tolerance)
        for got, want in zip(gradients(found, inputs), wanted_grads):
            scale = want.abs().max()
            torch.testing.assert_close(got.double() / scale, want / scale, **tolerance)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize(
    'channels, channels_out, cfg',
    [
        (8, 8, dict(DEPTHWISE, groups=8)),
        (16, 32, dict(kernel=3, before=1, stride=2)),
        (6, 4, dict(kernel=3, before=1, groups=2)),
    ],
    ids=str,
)
def test_conv__second_derivatives_equal_those_of_torch(channels, channels_out, cfg, dtype):
    mask = random_mask(2, (3, 3), 4)
    patches = VisiblePatches(mask)
    params, cfg = build(channels, channels_out, cfg, dtype)
    maps = torch.randn(2, channels, 6, 6, dtype=dtype, requires_grad=True)
    inputs = [maps, *params]
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]

    def second(out: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        grads = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in grads), inputs)

    found = second(run(conv2d, maps, params, patches, **cfg), inputs)
    wanted = second(dense(wide[0], wide[1:], mask, **cfg), wide)
    for got, want in zip(found, wanted):
        scale = want.abs().max()
        torch.testing.assert_close(got.double() / scale, want / scale, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    'cfg, side',
    [
        (dict(DEPTHWISE, groups=16), 8),
        (dict(DEPTHWISE, groups=16), 4),
        (dict(kernel=3, before=1), 8),
        (dict(kernel=3, before=1), 1),
    ],
    ids=str,
)
def test_conv__of_very_many_sites_is_as_exact_as_of_few(cfg, side):
    sites = 393_216
    mask = random_mask(sites // side**2 // 12, (7, 7), 12)
    patches = VisiblePatches(mask)
    params, cfg = build(16, 16, cfg, torch.float32)
    # Of one sign, so that sums grow and their rounding with them.
    tiles = torch.rand(patches.num_tiles, 16, side, side)
    upstream = torch.rand(patches.num_tiles, 16, side, side)

    def to_params(dtype: torch.dtype) -> tuple[Tensor, ...]:
        wide = [param.detach().to(dtype).requires_grad_() for param in params]
        out = conv2d(tiles.to(dtype), *wide, patches, **cfg)
        return torch.autograd.grad(out, wide, upstream.to(dtype))

    for got, want in zip(to_params(torch.float32), to_params(torch.float64)):
        assert ((got - want).abs() / want.abs()).max() < 1e-6


@needs_kernels
@pytest.mark.parametrize('batch', [1, 3])
@pytest.mark.parametrize(
    'channels, channels_out, cfg',
    [(16, 16, dict(DEPTHWISE, groups=16)), (32, 64, dict(kernel=3, before=1))],
    ids=str,
)
def test_conv__agrees_to_the_bit_run_by_run(batch, channels, channels_out, cfg):
    patches = VisiblePatches(random_mask(batch, (4, 4), 5))
    params, cfg = build(channels, channels_out, cfg, torch.float32)
    maps = torch.randn(batch, channels, 32, 32, requires_grad=True)
    runs = []
    for threads in (1, 1, 2, 2, 3):
        with threads_of_torch(threads):
            out = run(conv2d, maps, params, patches, **cfg)
            runs.append((threads, [out, *gradients(out, [maps, *params])]))

    for threads, results in runs[1:]:
        for number, (first, result) in enumerate(zip(runs[0][1], results)):
            # The weight's gradient of a depth-wise conv is summed in a chunk for each thread.
            if threads == 1 or cfg.get('groups', 1) == 1 or number < 2:
                assert torch.equal(first, result)
            else:
                torch.testing.assert_close(first, result, rtol=1e-6, atol=1e-6)
    assert all(torch.equal(*pair) for pair in zip(runs[2][1], runs[3][1]))


@pytest.mark.parametrize('side', [1, 2, 8])
@pytest.mark.parametrize('channels, groups', [(8, 8), (16, 1), (6, 1)])
def test_conv__takes_tables_that_show_more_than_it_sees(side, channels, groups):
    patches = VisiblePatches(random_mask(2, (4, 4), 6))
    weight = torch.randn(channels, channels // groups, 7, 7, requires_grad=True)
    tiles = torch.randn(12, channels, side, side, requires_grad=True)
    results = []
    for reach in (-(-3 // side), 4):
        near = patches.neighbours(reach)
        out = torch.ops.videomac_mm.conv2d(tiles, weight, None, near, 1, 3, 1, groups)
        results.append([out, *gradients(out, [tiles, weight])])
    for got, want in zip(*results):
        torch.testing.assert_close(got, want)


def test_conv__takes_any_memory():
    patches = VisiblePatches(random_mask(1, (3, 3), 4))
    params, cfg = build(16, 16, dict(kernel=3, before=1), torch.float32)
    tiles = torch.randn(4, 16, 2, 2)
    wanted = conv2d(tiles, *params, patches, **cfg)
    spread = torch.randn(4, 32, 4, 4)[:, ::2, ::2, ::2].copy_(tiles)
    for other in (tiles.contiguous(memory_format=torch.channels_last), spread):
        assert torch.equal(conv2d(other, *params, patches, **cfg), wanted)
    weight = params[0].detach().contiguous()
    assert torch.equal(conv2d(tiles, weight, params[1], patches, **cfg), wanted)


@pytest.mark.parametrize('side', [1, 2])
@pytest.mark.parametrize('channels, groups', [(16, 1), (16, 16), (6, 1)])
def test_conv__can_be_changed_in_place_and_its_gradients_lie_as_the_weight(side, channels, groups):
    patches = VisiblePatches(random_mask(1, (3, 3), 4))
    cfg = dict(kernel=7, before=3, groups=groups)
    (weight, bias), cfg = build(channels, channels, cfg, torch.float32)
    tiles = torch.randn(4, channels, side, side, requires_grad=True)
    wanted = F.relu(conv2d(tiles, weight, bias, patches, **cfg)).square().sum()
    found = F.relu(conv2d(tiles, weight, bias, patches, **cfg), inplace=True).square().sum()
    grads = [torch.autograd.grad(out, [tiles, weight, bias]) for out in (found, wanted)]
    assert all(torch.equal(*pair) for pair in zip(*grads))
    assert grads[0][1].stride() == weight.stride()


@pytest.mark.parametrize('groups', [1, 16])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_conv__under_autocast_casts_tiles(dtype, groups):
    patches = VisiblePatches(random_mask(1, (3, 3), 4))
    params, cfg = build(16, 16, dict(kernel=7, before=3, groups=groups), torch.float32)
    tiles = torch.randn(4, 16, 2, 2, requires_grad=True)
    with torch.autocast('cpu', dtype):
        out = conv2d(tiles, *params, patches, **cfg)
    wanted = conv2d(tiles, *params, patches, **cfg)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), wanted, atol=0.05, rtol=0.05)
    grads = torch.autograd.grad(out.float().sum(), [tiles, *params])
    assert all(grad.dtype == torch.float32 for grad in grads)
    with torch.autocast('cpu', dtype):
        wide = [param.double() for param in params]
        assert conv2d(tiles.double(), *wide, patches, **cfg).dtype == torch.float64


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    'channels, channels_out, side, cfg',
    [
        (8, 8, 2, dict(DEPTHWISE, groups=8)),
        (16, 32, 4, dict(kernel=3, before=1, stride=2, bias=False)),
        (4, 4, 1, dict(kernel=3, before=1, groups=2)),
    ],
    ids=str,
)
def test_operators__are_what_torch_expects(channels, channels_out, side, cfg, dtype):
    patches = VisiblePatches(random_mask(2, (3, 3), 4))
    params, cfg = build(channels, channels_out, cfg, dtype)
    weight, bias = params if len(params) > 1 else (*params, None)
    stride, groups = cfg.get('stride', 1), cfg.get('groups', 1)
    window = stride, cfg['before'], 1, groups
    tiles = torch.randn(8, channels, side, side).to(dtype).requires_grad_()
    grad = torch.randn(8, channels_out, side // stride, side // stride).to(dtype).requires_grad_()
    near, ops = patches.neighbours(3), torch.ops.videomac_mm
    torch.library.opcheck(ops.conv2d.default, (tiles, weight, bias, near, *window))
    torch.library.opcheck(ops.conv2d_input.default, (grad, weight, near, side, *window))
    kernel = weight.shape[-1]
    torch.library.opcheck(ops.conv2d_weight.default, (tiles, grad, near, kernel, *window))


@pytest.mark.parametrize(
    'changes, error, message',
    [
        (dict(tiles=torch.ones(4, 8, 2, 2).long()), TypeError, 'tiles must have .*got torch.int64'),
        (
            dict(tiles=torch.ones(4, 8, 2, 3)),
            ValueError,
            r'tiles must be square, got .*\(4, 8, 2, 3',
        ),
        (dict(tiles=torch.ones(8, 2, 2)), ValueError, r'tiles must have shape \(any, any'),
        (dict(tiles=torch.ones(3, 8, 2, 2)), ValueError, r'neighbours must have shape \(3, any\)'),
        (dict(weight=torch.ones(8, 1, 3, 5)), ValueError, r'got \(8, 1, 3, 5\)'),
        (dict(weight=torch.ones(8, 2, 3, 3)), ValueError, r'got \(8, 2, 3, 3\)'),
        (dict(weight=torch.ones(8, 1, 3, 3, device='meta')), ValueError, 'weight must be on cpu'),
        (dict(bias=torch.ones(7)), ValueError, r'bias must have shape \(8\), got \(7,\)'),
        (dict(bias=torch.ones(8).int()), TypeError, 'bias must have .*got torch.int32'),
        (dict(near=torch.zeros(4, 9).long()), TypeError, 'neighbours must .*got torch.int64'),
        (dict(near=torch.zeros(4, 8).int()), ValueError, r'\(2\*reach \+ 1\)\*\*2.*got \(4, 8\)'),
        (dict(near=torch.zeros(4, 1).int()), ValueError, 'reach . 2 >= 1'),
        (dict(stride=3), ValueError, 'got stride 3'),
        (dict(before=3), ValueError, 'before 3'),
        (dict(before=0), ValueError, 'does not map 2 sites to 2'),
        (dict(groups=3), ValueError, 'groups=3'),
        (dict(dilation=0), ValueError, 'dilation 0'),
    ],
)
def test_conv__refuses_what_does_not_fit(changes, error, message):
    given = dict(tiles=torch.ones(4, 8, 2, 2), weight=torch.ones(8, 1, 3, 3), bias=None)
    given |= dict(near=VisiblePatches(random_mask(1, (3, 3), 4)).neighbours(1))
    given |= dict(stride=1, before=1, dilation=1, groups=8)
    torch.ops.videomac_mm.conv2d(*given.values())
    with pytest.raises(error, match=message):
        torch.ops.videomac_mm.conv2d(*(given | changes).values())


@needs_kernels
@pytest.mark.parametrize('number', [-2, 4, 10**9])
@pytest.mark.parametrize('channels, groups', [(8, 8), (16, 1)])
def test_conv__refuses_tiles_that_do_not_exist(number, channels, groups):
    tiles, weight = torch.ones(4, channels, 2, 2), torch.ones(channels, channels // groups, 7, 7)
    near = VisiblePatches(random_mask(1, (3, 3), 4)).neighbours(2).clone()
    near[2, 3] = number
    window = near, 1, 3, 1, groups
    for run in (
        lambda: torch.ops.videomac_mm.conv2d(tiles, weight, None, *window),
        lambda: torch.ops.videomac_mm.conv2d_input(tiles, weight, near, 2, *window[1:]),
        lambda: torch.ops.videomac_mm.conv2d_weight(tiles, tiles, near, 7, *window[1:]),
    ):
        with pytest.raises(IndexError, match='numbers of tiles'):
            run()


def test_conv__of_no_tiles_gives_none():
    patches = VisiblePatches.with_count(torch.ones(0, 3, 3, dtype=torch.bool), 4)
    for channels, groups in ((8, 8), (16, 1)):
        tiles = torch.zeros(0, channels, 2, 2, requires_grad=True)
        weight = torch.ones(channels, channels // groups, 7, 7, requires_grad=True)
        out = conv2d(tiles, weight, None, patches, before=3, groups=groups)
        out.sum().backward()
        assert out.shape == tiles.shape and not weight.grad.any()
