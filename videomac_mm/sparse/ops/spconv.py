"""Convs on packed tiles by the spconv library, an extra: ``videomac_mm[spconv]``."""

import torch
from torch import Tensor

from videomac_mm.sparse.geometry import VisiblePatches, maps_of, rows_of, window_rows


def check_available() -> None:
    """Raise ImportError, which names the extra, if spconv cannot be imported."""
    try:
        import spconv.pytorch  # noqa: F401
    except ImportError as err:
        raise ImportError(
            'spconv convs need an extra: pip install "videomac_mm[spconv]"; on GPUs '
            'spconv-cu126, or what fits your CUDA, takes its place'
        ) from err


def takes(tiles: Tensor) -> bool:
    """Whether spconv 2.3.8 convolves these tiles correctly, forward and backward.

    That is float32 and float16 on GPUs. On CPUs its backward pass asks for a CUDA stream, and its
    forward pass loses sums if it runs on several threads. It has no bfloat16, and under autocast
    it casts to float16, whatever the type of autocast.
    """
    dtype = tiles.dtype
    if tiles.is_cuda and torch.is_autocast_enabled('cuda'):
        dtype = torch.get_autocast_dtype('cuda')
    return tiles.is_cuda and dtype in (torch.float16, torch.float32)


@torch.compiler.disable  # spconv reads memory by address
def conv2d(
    tiles: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    patches: VisiblePatches,
    stride: int,
    before: int,
) -> Tensor:
    """A conv that computes the existing pairs of sites alone; equals `ops.conv2d`.

    spconv is handed our own pairs, not the set of sites that its modules would derive: a
    strided 3×3 of theirs lets the set grow beyond the visible patches. There are no second
    derivatives.

    Args:
        tiles (B*K, C, p, p): as `VisiblePatches.pack` returns them, which `takes`.
        weight (C', C, k, k): as in `torch.nn.Conv2d`.
        bias (C',): or None.
        patches: the geometry of the tiles.
        stride, before: as `ops.conv2d`.

    Returns:
        (B*K, C', p/stride, p/stride), in channels-last memory.

    Source: `spconv <https://github.com/traveller59/spconv>`_, its functional interface.
    """
    from spconv.core import ConvAlgo
    from spconv.pytorch.functional import indice_conv, indice_subm_conv

    side, kernel = tiles.shape[-1], weight.shape[-1]
    centred = stride == 1 and kernel == 2 * before + 1
    pairs, counts, num = _pairs(patches, side, kernel, stride, before)
    convolve = indice_subm_conv if centred else indice_conv
    filters = weight.permute(0, 2, 3, 1).contiguous()
    rows = rows_of(tiles).contiguous()
    out = convolve(rows, filters, pairs, counts, num, ConvAlgo.Native)
    out = maps_of(out, side // stride)
    return out if bias is None else out + bias[:, None, None].to(out.dtype)


def _pairs(
    patches: VisiblePatches, side: int, kernel: int, stride: int, before: int
) -> tuple[Tensor, Tensor, int]:
    """Which row each output row reads at each place of the kernel, as spconv wants it.

    Returns:
        (2, k², m) int32 rows read and written, filled up with -1; (k²,) int32 on the CPU, how
        many of them are real; the number of output rows.
    """
    key = 'spconv', side, kernel, stride, before
    if key not in patches._tables:
        near = patches.neighbours_within(max(before, kernel - stride - before), side)
        table = window_rows(near, side, kernel, stride, before).t()
        place, written = (table >= 0).nonzero().unbind(1)
        read = table[place, written]
        counts = place.bincount(minlength=kernel**2)
        start = counts.cumsum(0) - counts
        column = torch.arange(len(place), device=place.device) - start[place]
        size = 2, kernel**2, int(counts.max())
        pairs = torch.full(size, -1, dtype=torch.int32, device=place.device)
        pairs[:, place, column] = torch.stack([read, written]).int()
        counts = counts.int().cpu()  # spconv reads them there
        if stride == 1 and kernel == 2 * before + 1:
            counts[kernel**2 // 2] = 0  # spconv multiplies all rows by the centre of the kernel
        patches._tables[key] = pairs, counts, table.shape[1]
    return patches._tables[key]
