"""Convs on packed tiles by the spconv library, an extra: ``videomac_mm[spconv]``."""

import types
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from videomac_mm.sparse.patches import VisiblePatches


def check_available() -> None:
    """Raise ImportError, which names the extra, if spconv cannot be imported."""
    try:
        import spconv.pytorch  # noqa: F401
    except ImportError as err:
        raise ImportError(
            'spconv convs need an extra: pip install "videomac_mm[spconv]"; on GPUs '
            'spconv-cu126, or what fits your CUDA, takes its place'
        ) from err


@torch.compiler.disable  # spconv reads memory by address
def conv2d(
    tiles: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    patches: VisiblePatches,
) -> Tensor:
    """A conv that computes the existing pairs of sites alone; equals `PatchConv2d` on tiles.

    spconv is handed our own pairs, not the set of sites that its modules would derive: a
    strided 3×3 of theirs lets the set grow beyond the visible patches. Kernels of 1×1 are a
    plain matrix product. There are no second derivatives.

    Computes in float32, in float64 if the tiles are, and on GPUs in float16 if tiles or
    autocast are. Bfloat16, which spconv lacks, and float16 on CPUs are cast to float32 and the
    result back: the dtype is that of `torch.nn.functional.conv2d`, the time is float32's.

    CPU tensors are run by spconv's reference loop, correct with any number of threads. A 3×3
    takes 1.3 times as long as by `PairConv`, 0.6 to 0.9 times as long as by torch (one thread, 12
    of 49 patches visible, forward and backward). CUDA tensors take spconv's ``Native``
    algorithm; that has never been run.

    Args:
        tiles (B*K, C, p, p): as `VisiblePatches.pack` returns them; other memory than
            channels-last is copied.
        weight (C', C, k, k): as in `torch.nn.Conv2d`; other memory than channels-last is
            copied.
        bias (C',): or None.
        stride: divides p.
        padding: such that ``k - stride <= 2*padding < k``.
        patches: the geometry of the tiles.

    Returns:
        (B*K, C', p/stride, p/stride), in channels-last memory.

    Raises:
        ImportError: if spconv is not installed and k is above 1.
        ValueError: for groups, a window that is not square or does not map p sites to
            p/stride, or a stride that does not divide p.

    Source: own; `spconv <https://github.com/traveller59/spconv>`_ 2.3.8, ``pytorch/ops.py``.
    """
    num_out, channels, kernel, width = weight.shape
    side = tiles.shape[-1]
    if channels != tiles.shape[1]:
        raise ValueError(
            f'spconv has no groups: tiles of {tiles.shape[1]} channels need a weight of as many, '
            f'got {channels}'
        )
    if width != kernel or not kernel - stride <= 2 * padding < kernel or side % stride:
        raise ValueError(
            'a conv on tiles takes a k×k kernel, kernel - stride <= 2*padding < kernel and a '
            f'side that the stride divides; got kernel {kernel}×{width}, stride {stride}, '
            f'padding {padding}, side {side}'
        )
    if kernel == 1:  # spconv would read this weight as (C, C')
        sites = tiles[:, :, ::stride, ::stride].permute(0, 2, 3, 1)
        return F.linear(sites, weight.flatten(1), bias).permute(0, 3, 1, 2)

    check_available()
    device, dtype = tiles.device.type, tiles.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    native = dtype == torch.float64 or (dtype == torch.float16 and device == 'cuda')
    computed = dtype if native else torch.float32
    # Else the matrix products of spconv are cast, but not the memory that they write to.
    with torch.autocast(device, enabled=False):
        rows = tiles.permute(0, 2, 3, 1).reshape(-1, channels).to(computed)
        weight = weight.permute(0, 2, 3, 1).contiguous().to(computed)
        out = _Conv.apply(rows, weight, *_pairs(patches, side, kernel, stride, padding))
        if bias is not None:  # spconv's own needs a GPU
            out = out.add_(bias.to(computed))
    num = side // stride
    return out.to(dtype).view(-1, num, num, num_out).permute(0, 3, 1, 2)


class _Conv(torch.autograd.Function):
    """Rows (R, C), weight (C', k, k, C) -> (M, C'), over pairs of rows.

    Calls what spconv's own Functions call. Those cast to float16 under autocast on GPUs, and
    in their backward nothing could be set around it.
    """

    @staticmethod
    def forward(
        ctx, rows: Tensor, weight: Tensor, pairs: Tensor, counts: Tensor, num: int, centred: bool
    ) -> Tensor:
        ctx.save_for_backward(rows, weight, pairs, counts)
        ctx.centred = centred
        return _ops(rows)[0](rows, weight, pairs, counts, num, subm=centred)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, pairs, counts = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            to_rows, to_weight = _ops(grad)[1](
                rows, weight, grad.contiguous(), pairs, counts, subm=ctx.centred
            )
        return to_rows, to_weight, None, None, None, None


def _pairs(
    patches: VisiblePatches, side: int, kernel: int, stride: int, before: int
) -> tuple[Tensor, Tensor, int, bool]:
    """Which row each output row reads at each place of the kernel, as spconv wants it.

    Returns:
        (2, k², m) int32 rows read and written, filled up with -1; (k²,) int32 on the CPU, how
        many of them are real; the number of output rows; whether each output lies on the row
        that the centre of its window reads.
    """
    key = 'spconv', side, kernel, stride, before
    if key not in patches._tables:
        table = patches.pairs(side, kernel, stride, before)[0].t()
        place, written = (table >= 0).nonzero().unbind(1)
        read = table[place, written]
        counts = place.bincount(minlength=kernel**2)
        start = counts.cumsum(0) - counts
        column = torch.arange(len(place), device=place.device) - start[place]
        size = 2, kernel**2, int(counts.max())
        pairs = torch.full(size, -1, dtype=torch.int32, device=place.device)
        pairs[:, place, column] = torch.stack([read, written]).int()
        centred = stride == 1 and kernel == 2 * before + 1
        counts = counts.int().cpu()  # spconv reads them there
        if centred:  # no pairs: spconv multiplies all rows by the centre of the kernel
            counts[kernel**2 // 2] = 0
        patches._tables[key] = pairs, counts, table.shape[1], centred
    return patches._tables[key]


def _ops(rows: Tensor) -> tuple[Callable, Callable]:
    """spconv's conv and its backward, for the device of ``rows``."""
    if rows.device.type == 'cpu':
        return _cpu_ops()
    from spconv.pytorch import ops

    return ops.indice_conv, ops.indice_conv_backward


@cache
def _cpu_ops() -> tuple[Callable, Callable]:
    """spconv's functions, copied to see other globals; spconv itself stays as it is.

    Its backward asks for a CUDA stream, and its ``scatter_add_cpu`` loses sums if run by more
    than one thread (2.3.8, ``csrc/sparse/gather.py``: all threads share two pointers).
    """
    from spconv.pytorch import ops

    loops = types.SimpleNamespace(gather_cpu=ops.SpconvOps.gather_cpu, scatter_add_cpu=_scatter_add)
    scope = dict(vars(ops), GEMM_CPP=None, SpconvOps=loops, get_current_stream=lambda: 0)
    return tuple(
        types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__)
        for function in (ops.indice_conv, ops.indice_conv_backward)
    )


def _scatter_add(out, rows, indices) -> None:
    """Add ``rows`` to those rows of ``out``; all are spconv's views of CPU tensors."""
    out, rows, indices = (torch.from_numpy(x.numpy_view()) for x in (out, rows, indices))
    out.index_add_(0, indices.long(), rows[: len(indices)])  # int32 takes three times as long
