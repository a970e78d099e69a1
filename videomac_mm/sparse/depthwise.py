"""Depth-wise convs straight from packed tiles: no halo, no canvas, no work for hidden tiles."""

import torch
import torch.nn.functional as F
from torch import Tensor

from videomac_mm.sparse import cpu_kernels
from videomac_mm.sparse.patches import VisiblePatches


def is_available(tiles: Tensor, kernel: int) -> bool:
    if tiles.device.type == 'cpu':
        rows = tiles.permute(0, 2, 3, 1)
        fits = kernel == cpu_kernels.SIDE and tiles.shape[-1] in cpu_kernels.TILES
        return fits and cpu_kernels.available(rows)
    return False


def depthwise_conv2d(
    tiles: Tensor, weight: Tensor, bias: Tensor | None, patches: VisiblePatches
) -> Tensor:
    taps = weight.flatten(1).t()
    taps = F.pad(taps, (0, 0, 0, 1)) if bias is None else torch.cat([taps, bias[None]])
    reach = -(-(weight.shape[-1] // 2) // tiles.shape[-1])
    return Convolve.apply(tiles, taps, patches.neighbours(reach))


class Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tiles, taps, neighbours):
        ctx.save_for_backward(tiles, taps, neighbours)
        rows = tiles.permute(0, 2, 3, 1).contiguous()
        return cpu_kernels.convolve(rows, taps.contiguous(), neighbours).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx, grad):
        tiles, taps, neighbours = ctx.saved_tensors
        to_tiles = to_taps = None
        if ctx.needs_input_grad[0]:
            to_tiles = Convolve.apply(grad, _flip(taps), neighbours)
        if ctx.needs_input_grad[1]:
            to_taps = cpu_kernels.correlate(
                tiles.permute(0, 2, 3, 1).contiguous(),
                grad.permute(0, 2, 3, 1).contiguous(),
                neighbours,
            )
        return to_tiles, to_taps, None


def _flip(taps: Tensor) -> Tensor:
    """The taps of the adjoint: neighbours see each other, from opposite sides."""
    return F.pad(taps[:-1].flip(0), (0, 0, 0, 1))
