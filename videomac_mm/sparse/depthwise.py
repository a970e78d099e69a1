"""Depth-wise convs straight from packed tiles: no halo, no canvas, no work for hidden tiles."""

from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from videomac_mm.sparse import cpu_kernels, triton_depthwise
from videomac_mm.sparse.patches import VisiblePatches


def is_available(tiles: Tensor, kernel: int) -> bool:
    """Whether there is a kernel for tiles (B*K, C, p, p) and a k×k conv: `triton_depthwise` on
    GPUs, `cpu_kernels` on CPUs."""
    if triton_depthwise.is_available(tiles):
        return kernel > 1
    fits = kernel == cpu_kernels.SIDE and tiles.shape[-1] in cpu_kernels.TILES
    return fits and cpu_kernels.available(tiles.permute(0, 2, 3, 1))


def depthwise_conv2d(
    tiles: Tensor, weight: Tensor, bias: Tensor | None, patches: VisiblePatches
) -> Tensor:
    """A depth-wise conv of stride 1 and padding ``k // 2`` on packed tiles, and its gradients.

    It reads neighbouring tiles where they are and skips those that are hidden. Sums are
    float32, or float64 for float64 tiles, and do not depend on the order of execution. Under
    autocast tiles are cast as `torch.nn.functional.conv2d` casts them; weights are not, they
    need no copy in another dtype.

    Args:
        tiles (B*K, C, p, p): as `VisiblePatches.pack` returns them; other memory than
            channels-last is copied. Float16, bfloat16, float32 or float64.
        weight (C, 1, k, k): k odd.
        bias (C,): or None.
        patches: the geometry of the tiles.

    Returns:
        (B*K, C, p, p), in channels-last memory.

    Raises:
        TypeError: for tiles of another dtype.
        ValueError: if tiles, weight and patches do not fit each other, or k is even.

    Source: own.
    """
    num, channels, side, _ = tiles.shape
    kernel = weight.shape[-1]
    if tuple(weight.shape) != (channels, 1, kernel, kernel) or kernel % 2 == 0:
        raise ValueError(
            f'weight must have shape ({channels}, 1, k, k) with k odd, got {tuple(weight.shape)}'
        )
    if tiles.shape[-1] != side or num != patches.batch_size * patches.num_visible:
        raise ValueError(
            f'tiles of shape {tuple(tiles.shape)} are not the square tiles of '
            f'{patches.num_visible} visible patches in each of {patches.batch_size} images'
        )
    device = tiles.device.type
    if torch.is_autocast_enabled(device) and tiles.dtype != torch.float64:
        tiles = tiles.to(torch.get_autocast_dtype(device))
    if tiles.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise TypeError(f'tiles must be float16, bfloat16, float32 or float64, got {tiles.dtype}')
    taps = weight.flatten(1).t()
    taps = F.pad(taps, (0, 0, 0, 1)) if bias is None else torch.cat([taps, bias[None]])
    taps = taps.to(torch.promote_types(tiles.dtype, torch.float32))
    reach = -(-(kernel // 2) // side)
    return _Convolve.apply(tiles, taps, patches.neighbours(reach))


# A kernel is seen as `taps` (k*k + 1, C), row by row and the bias last, so that all that is read
# and written is contiguous in the channels.


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tiles: Tensor, taps: Tensor, neighbours: Tensor) -> Tensor:
        ctx.save_for_backward(tiles, taps, neighbours)
        convolve = _convolve_operator if torch.compiler.is_compiling() else _convolve
        return convolve(tiles, taps, neighbours)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        tiles, taps, neighbours = ctx.saved_tensors
        to_tiles = to_taps = None
        if ctx.needs_input_grad[0]:
            to_tiles = _Convolve.apply(grad, _flip(taps), neighbours)
        if ctx.needs_input_grad[1]:
            to_taps = _Correlate.apply(tiles, grad, neighbours, isqrt(len(taps) - 1))
        return to_tiles, to_taps, None


class _Correlate(torch.autograd.Function):
    """The gradient of `_Convolve` with respect to its taps; each is the other's adjoint."""

    @staticmethod
    def forward(ctx: Any, tiles: Tensor, grads: Tensor, neighbours: Tensor, kernel: int) -> Tensor:
        ctx.save_for_backward(tiles, grads, neighbours)
        correlate = _correlate_operator if torch.compiler.is_compiling() else _correlate
        return correlate(tiles, grads, neighbours, kernel)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        tiles, grads, neighbours = ctx.saved_tensors
        to_tiles = to_grads = None
        if ctx.needs_input_grad[0]:
            to_tiles = _Convolve.apply(grads, _flip(grad), neighbours)
        if ctx.needs_input_grad[1]:
            to_grads = _Convolve.apply(tiles, grad, neighbours)
        return to_tiles, to_grads, None, None


def _flip(taps: Tensor) -> Tensor:
    """The taps of the adjoint: neighbours see each other, from opposite sides."""
    return F.pad(taps[:-1].flip(0), (0, 0, 0, 1))


def _convolve(tiles: Tensor, taps: Tensor, neighbours: Tensor) -> Tensor:
    kernels = triton_depthwise if triton_depthwise.is_available(tiles) else cpu_kernels
    rows = tiles.permute(0, 2, 3, 1).contiguous()
    return kernels.convolve(rows, taps.contiguous(), neighbours).permute(0, 3, 1, 2)


def _correlate(tiles: Tensor, grads: Tensor, neighbours: Tensor, kernel: int) -> Tensor:
    rows, grads = (x.permute(0, 2, 3, 1).contiguous() for x in (tiles, grads))
    if triton_depthwise.is_available(tiles):
        return triton_depthwise.correlate(rows, grads, neighbours, kernel)
    return cpu_kernels.correlate(rows, grads, neighbours)


# Graph compilers see each as one node; without one they would only cost time.
_convolve_operator = torch.library.custom_op(
    'videomac_mm::convolve_tiles', _convolve, mutates_args=()
)
_correlate_operator = torch.library.custom_op(
    'videomac_mm::correlate_tiles', _correlate, mutates_args=()
)


@_convolve_operator.register_fake
def _(tiles: Tensor, taps: Tensor, neighbours: Tensor) -> Tensor:
    return torch.empty_like(tiles.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)


@_correlate_operator.register_fake
def _(tiles: Tensor, grads: Tensor, neighbours: Tensor, kernel: int) -> Tensor:
    dtype = torch.promote_types(tiles.dtype, torch.float32)
    return tiles.new_empty((kernel**2 + 1, tiles.shape[1]), dtype=dtype)
