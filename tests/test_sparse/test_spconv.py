import copy
import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from tests.masks import random_mask
from videomac_mm.sparse import PatchConv2d, VisiblePatches
from videomac_mm.sparse.spconv import _cpu_ops, _ops, _pairs, check_available, conv2d

needs_spconv = pytest.mark.skipif(importlib.util.find_spec('spconv') is None, reason='needs spconv')

CONVS = [
    dict(kernel_size=3, padding=1),
    dict(kernel_size=3, padding=1, stride=2),
    dict(kernel_size=2, stride=2),
    dict(kernel_size=7, padding=3),
    dict(kernel_size=5, padding=2, stride=4),
    dict(kernel_size=4, padding=1, stride=2),
    dict(kernel_size=1),
    dict(kernel_size=1, stride=2),
]
MASKS = dict(
    some=random_mask(2, (3, 4), 5),
    alone=random_mask(3, (2, 3), 1),  # at p = 1 a 3×3 window has no neighbours at all
    all=random_mask(1, (3, 3), 9),
)


def run(conv, tiles, patches):
    """The conv of a module, by spconv."""
    return conv2d(tiles, conv.weight, conv.bias, conv.stride[0], conv.padding[0], patches)


def gradients(out, tiles, conv, upstream):
    return torch.autograd.grad(out, [tiles, *conv.parameters()], upstream)


def small(dtype=torch.float32, **cfg):
    """A 3×3 conv with its tiles and their geometry."""
    conv = PatchConv2d(8, 6, 3, padding=1, dtype=dtype, **cfg)
    patches = VisiblePatches(MASKS['some'])
    tiles = patches.pack(torch.randn(2, 8, 12, 16, dtype=dtype)).requires_grad_()
    return conv, tiles, patches


@needs_spconv
@pytest.mark.parametrize('mask', MASKS)
@pytest.mark.parametrize(
    'cfg, side',
    [(cfg, side) for cfg in CONVS for side in (1, 2, 4, 8) if side % cfg.get('stride', 1) == 0],
    ids=str,
)
def test_conv__equals_patch_conv(cfg, side, mask):
    patches = VisiblePatches(MASKS[mask])
    conv = PatchConv2d(4, 6, dtype=torch.float64, bias=mask != 'all', execution='halo', **cfg)
    num = patches.batch_size * patches.num_visible
    tiles = torch.randn(num, 4, side, side, dtype=torch.float64, requires_grad=True)

    wanted, out = conv(tiles, patches), run(conv, tiles, patches)
    assert_close(out, wanted)
    assert out.is_contiguous(memory_format=torch.channels_last)
    upstream = torch.randn_like(wanted)
    assert_close(gradients(out, tiles, conv, upstream), gradients(wanted, tiles, conv, upstream))


@needs_spconv
@pytest.mark.parametrize('cfg', CONVS[:3], ids=str)
def test_conv__gradcheck(cfg):
    patches = VisiblePatches(random_mask(1, (2, 2), 3))
    conv = PatchConv2d(2, 3, dtype=torch.float64, **cfg)
    tiles = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)

    def function(tiles, weight, bias):
        return conv2d(tiles, weight, bias, conv.stride[0], conv.padding[0], patches)

    assert torch.autograd.gradcheck(function, (tiles, conv.weight, conv.bias))


@needs_spconv
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_conv__in_eval_mode(mode, stride):
    conv, tiles, patches = small(stride=stride)
    wanted = conv(tiles, patches)
    with mode():
        assert_close(run(conv.eval(), tiles, VisiblePatches(patches.mask)), wanted)


@needs_spconv
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('backward_inside', [False, True])
def test_conv__under_autocast_computes_in_float32(dtype, backward_inside):
    conv, tiles, patches = small()
    wanted = run(conv, tiles, patches)
    upstream = torch.randn_like(wanted).to(dtype)
    wanted_grads = gradients(wanted, tiles, conv, upstream.float())
    with torch.autocast('cpu', dtype):
        out, reference = run(conv, tiles, patches), conv(tiles, patches)
        if backward_inside:
            grads = gradients(out, tiles, conv, upstream)
    if not backward_inside:
        grads = gradients(out, tiles, conv, upstream)
    assert out.dtype == reference.dtype == dtype
    assert torch.equal(out, wanted.to(dtype))
    for got, want in zip(grads, wanted_grads):
        assert torch.equal(got, want)


@needs_spconv
def test_conv__of_bfloat16_tensors_is_rounded_once():
    conv, tiles, patches = small(torch.bfloat16)
    wide, wide_tiles = copy.deepcopy(conv).float(), tiles.detach().float().requires_grad_()
    out, wanted = run(conv, tiles, patches), run(wide, wide_tiles, patches)
    assert torch.equal(out, wanted.bfloat16())
    upstream = torch.randn_like(out)
    grads = gradients(out, tiles, conv, upstream)
    wanted = gradients(wanted, wide_tiles, wide, upstream.float())
    for got, want in zip(grads, wanted):
        assert torch.equal(got, want.bfloat16())


@needs_spconv
def test_conv__float64_is_not_autocast():
    conv, tiles, patches = small(torch.float64)
    with torch.autocast('cpu', torch.bfloat16):
        out = run(conv, tiles, patches)
    assert_close(out, conv(tiles, patches))


@needs_spconv
def test_conv__takes_any_memory_format():
    conv, tiles, patches = small()
    wanted = conv(tiles, patches)
    wanted_grads = gradients(wanted, tiles, conv, torch.ones_like(wanted))
    wide = torch.cat([tiles, tiles], 1).contiguous(memory_format=torch.channels_last)
    for weight in (conv.weight, conv.weight.contiguous()):
        for x in (tiles, tiles.contiguous(), wide[:, :8], wide[:, 8:]):
            out = conv2d(x, weight, conv.bias, 1, 1, patches)
            assert_close(out, wanted)
            grads = torch.autograd.grad(out.sum(), [tiles, *conv.parameters()], retain_graph=True)
            assert_close(grads, wanted_grads)  # of an upstream gradient without strides


@needs_spconv
@pytest.mark.parametrize('threads', [1, 2])
def test_conv__repeats_bit_for_bit_with_any_number_of_threads(threads):
    conv, tiles, patches = small()
    wanted = conv(tiles, patches)
    upstream = torch.randn_like(wanted)
    wanted_grads = gradients(wanted, tiles, conv, upstream)
    torch.set_num_threads(threads)
    try:
        outs = [run(conv, tiles, patches) for _ in range(5)]
        grads = [gradients(out, tiles, conv, upstream) for out in outs]
    finally:
        torch.set_num_threads(1)
    assert_close(outs[0], wanted)
    assert_close(grads[0], wanted_grads)
    for out, grad in zip(outs, grads):
        assert all(map(torch.equal, (out, *grad), (outs[0], *grads[0])))


@needs_spconv
def test_conv__keeps_out_of_what_races_and_of_cuda(monkeypatch):
    from spconv.pytorch import ops

    def forbidden(*args):
        raise AssertionError('called')

    _cpu_ops.cache_clear()
    monkeypatch.setattr(ops.SpconvOps, 'scatter_add_cpu', forbidden)
    monkeypatch.setattr(torch.cuda, 'current_stream', forbidden)
    for stride in (1, 2):
        conv, tiles, patches = small(stride=stride)
        run(conv, tiles, patches).sum().backward()


@needs_spconv
def test_conv__leaves_spconv_as_it_is():
    from spconv.core_cc.csrc.sparse.all import SpconvOps
    from spconv.pytorch import cppcore, functional, ops

    before = [dict(vars(module)) for module in (ops, functional, cppcore)]
    conv, tiles, patches = small()
    run(conv, tiles, patches).sum().backward()
    assert before == [vars(module) for module in (ops, functional, cppcore)]
    assert ops.get_current_stream is cppcore.get_current_stream
    assert ops.SpconvOps is SpconvOps
    cuda = SimpleNamespace(device=torch.device('cuda'))  # GPUs take what spconv has
    assert _ops(cuda) == (ops.indice_conv, ops.indice_conv_backward)
    assert set(_ops(tiles)).isdisjoint(_ops(cuda))


@needs_spconv
def test_conv__can_be_compiled_around():
    conv, tiles, patches = small()
    graphs = []

    def layer(x):
        return run(conv, x * 2, patches).relu()

    def backend(graph, inputs):
        graphs.append([node.name for node in graph.graph.nodes if node.op.startswith('call')])
        return graph.forward

    outs = layer(tiles), torch.compile(layer, backend=backend)(tiles)
    assert graphs == [['mul'], ['relu']]
    assert_close(*outs)
    upstream = torch.randn_like(outs[0])
    assert_close(*(gradients(out, tiles, conv, upstream) for out in outs))


@needs_spconv
@pytest.mark.parametrize('side, kernel', [(1, 3), (2, 3), (4, 5)])
def test_pairs__of_stride_one_are_those_of_spconv(side, kernel):
    from spconv.pytorch import ops

    patches = VisiblePatches(MASKS['some'])
    pairs, counts, num_rows, centred = _pairs(patches, side, kernel, 1, kernel // 2)
    assert centred and pairs.dtype == counts.dtype == torch.int32 and pairs.is_contiguous()
    assert _pairs(patches, side, kernel, 1, kernel // 2)[0] is pairs

    # Rows of (image, y, x), as their tiles lie in memory.
    grid = torch.stack(torch.meshgrid(*map(torch.arange, (2, 3 * side, 4 * side)), indexing='ij'))
    sites = patches.pack(grid.transpose(0, 1)).permute(0, 2, 3, 1).reshape(-1, 3).int()
    assert len(sites) == num_rows
    _, theirs, their_counts = ops.get_indice_pairs(
        sites.contiguous(), 2, [3 * side, 4 * side], ops.ConvAlgo.Native,
        [kernel] * 2, [1] * 2, [0] * 2, [1] * 2, [0] * 2, subm=True,
    )  # fmt: skip
    half = kernel**2 // 2
    assert counts[:half].tolist() == their_counts[:half].tolist()
    assert counts.tolist() == counts.flip(0).tolist() and counts[half] == their_counts[half] == 0
    for place, count in enumerate(counts.tolist()):
        ours_here, theirs_here = (
            set(zip(*table[:, place, :count].tolist())) for table in (pairs, theirs)
        )
        assert len(ours_here) == count and ours_here == theirs_here


def test_conv__one_by_one_needs_no_spconv(monkeypatch):
    monkeypatch.setitem(sys.modules, 'spconv.pytorch', None)
    patches = VisiblePatches(MASKS['some'])
    conv, tiles = PatchConv2d(8, 6, 1, stride=2), torch.randn(10, 8, 4, 4)
    assert_close(run(conv, tiles, patches), conv(tiles, patches))


def test_conv__absent_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'spconv.pytorch', None)
    with pytest.raises(ImportError, match=r'pip install "videomac_mm\[spconv\]"'):
        check_available()
    conv, tiles, patches = small()
    with pytest.raises(ImportError, match=r'videomac_mm\[spconv\]'):
        run(conv, tiles, patches)


def test_conv__bad_arguments_are_named():
    patches = VisiblePatches(MASKS['some'])
    tiles = torch.randn(10, 8, 4, 4)
    with pytest.raises(ValueError, match='no groups: tiles of 8 channels .* got 1'):
        conv2d(tiles, torch.randn(8, 1, 3, 3), None, 1, 1, patches)
    for shape, stride, padding in [((3, 3), 3, 1), ((3, 3), 1, 0), ((3, 1), 1, 1), ((4, 4), 1, 2)]:
        with pytest.raises(ValueError, match=f'got kernel {shape[0]}×{shape[1]}, stride {stride}'):
            conv2d(tiles, torch.randn(8, 8, *shape), None, stride, padding, patches)
