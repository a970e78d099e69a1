"""What spconv is given, by its forward pass on one thread: its convs are right on GPUs alone."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from tests.masks import random_mask
from videomac_mm.sparse import PatchConv2d, VisiblePatches, set_backend
from videomac_mm.sparse.ops import conv2d, spconv

needs_spconv = pytest.mark.skipif(importlib.util.find_spec('spconv') is None, reason='needs spconv')
without_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')

CONVS = [
    dict(kernel_size=3, padding=1),
    dict(kernel_size=3, padding=1, stride=2),
    dict(kernel_size=7, padding=3),
    dict(kernel_size=5, padding=2, stride=4),
    dict(kernel_size=4, padding=1, stride=2),
]
MASKS = dict(
    some=random_mask(2, (3, 4), 5),
    alone=random_mask(3, (2, 3), 1),  # at p = 1 a 3×3 window has no neighbours at all
    all=random_mask(1, (3, 3), 9),
)
CASES = [(cfg, side) for cfg in CONVS for side in (1, 2, 4, 8) if side % cfg.get('stride', 1) == 0]


def layer_and_tiles(
    mask: str, cfg: dict, side: int, device: str = 'cpu'
) -> tuple[PatchConv2d, torch.Tensor, VisiblePatches]:
    torch.manual_seed(0)
    patches = VisiblePatches(MASKS[mask].to(device))
    conv = PatchConv2d(4, 6, bias=mask != 'all', **cfg).to(device)
    tiles = torch.randn(patches.num_tiles, 4, side, side, device=device, requires_grad=True)
    return conv, tiles, patches


def check_forward() -> None:
    """All cases on this process' only thread."""
    for mask in MASKS:
        for cfg, side in CASES:
            conv, tiles, patches = layer_and_tiles(mask, cfg, side)
            window = conv.stride[0], conv.padding[0]
            with torch.no_grad():
                found = spconv.conv2d(tiles, conv.weight, conv.bias, patches, *window)
                wanted = conv2d(tiles, conv.weight, conv.bias, patches, *window)
            assert found.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


@needs_spconv
def test_conv__forward_equals_the_operator():
    # spconv's loops on CPUs lose sums on several threads, whose number is set at the start.
    code = f'import {__name__} as tests; tests.check_forward()'
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, '-W', 'ignore', '-c', code]
    subprocess.run(command, check=True, env=environment, timeout=300)


@needs_spconv
@without_gpu
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
@pytest.mark.parametrize('mask', MASKS)
@pytest.mark.parametrize('cfg, side', CASES, ids=str)
def test_conv__on_gpus_equals_the_operator(cfg, side, mask, dtype):
    conv, tiles, patches = layer_and_tiles(mask, cfg, side, 'cuda')
    conv, tiles = conv.to(dtype), tiles.detach().to(dtype).requires_grad_()
    results = []
    for backend in ('spconv', 'torch'):
        set_backend(conv, backend)
        out = conv(tiles, patches)
        upstream = torch.linspace(-1, 1, out.numel(), device='cuda').view_as(out).to(out)
        results.append([out, *torch.autograd.grad(out, [tiles, *conv.parameters()], upstream)])
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for got, want in zip(*results):
        torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance)


@needs_spconv
@pytest.mark.parametrize('threads', [1, 2])
def test_backend__on_cpus_is_the_operator_forward_and_backward(threads):
    conv, tiles, patches = layer_and_tiles('some', CONVS[0], 4)
    results = []
    used = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for backend in ('spconv', 'auto'):
            set_backend(conv, backend)
            out = conv(tiles, patches)
            results.append([out, *torch.autograd.grad(out.sum(), [tiles, *conv.parameters()])])
    finally:
        torch.set_num_threads(used)
    assert all(torch.equal(*pair) for pair in zip(*results))


def test_takes__what_spconv_computes_correctly(monkeypatch):
    from types import SimpleNamespace

    def on(device: str, dtype: torch.dtype) -> SimpleNamespace:
        return SimpleNamespace(is_cuda=device == 'cuda', dtype=dtype)

    assert spconv.takes(on('cuda', torch.float32)) and spconv.takes(on('cuda', torch.float16))
    assert not spconv.takes(on('cuda', torch.bfloat16))
    assert not spconv.takes(on('cuda', torch.float64))
    assert not spconv.takes(on('cpu', torch.float32))
    monkeypatch.setattr(torch, 'is_autocast_enabled', lambda device: True)
    monkeypatch.setattr(torch, 'get_autocast_dtype', lambda device: torch.bfloat16)
    assert not spconv.takes(on('cuda', torch.float32))


@needs_spconv
@pytest.mark.parametrize('side, kernel', [(1, 3), (2, 3), (4, 5)])
def test_pairs__of_stride_one_are_those_of_spconv(side, kernel):
    from spconv.pytorch import ops

    patches = VisiblePatches(MASKS['some'])
    pairs, counts, num_rows = spconv._pairs(patches, side, kernel, 1, kernel // 2)
    assert pairs.dtype == counts.dtype == torch.int32 and pairs.is_contiguous()
    assert spconv._pairs(patches, side, kernel, 1, kernel // 2)[0] is pairs

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


def test_backend__absent_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'spconv.pytorch', None)
    with pytest.raises(ImportError, match=r'pip install "videomac_mm\[spconv\]"'):
        set_backend(PatchConv2d(2, 2, 3, padding=1), 'spconv')
