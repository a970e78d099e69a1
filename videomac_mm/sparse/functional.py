"""Operations whose gradients cost less than those torch derives; pure functions of tensors."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Work in pieces of this many numbers (4 MiB), which stay in the cache.
_PIECE = 2**20


class Gather(torch.autograd.Function):
    """Take rows, ``(R, C) -> (M, C)``, with an adjoint that is a gather itself.

    Torch's own adjoint of ``index_select`` adds row after row.

    Args:
        rows (R, C): what to take.
        table (M,): which row to take; R stands for a row of ``fill``.
        adjoint (R, n): where in ``table`` each row occurs, filled up with M.
        fill: value of the sites that are no row's.

    Source: own.
    """

    @staticmethod
    def forward(ctx, rows: Tensor, table: Tensor, adjoint: Tensor, fill: float) -> Tensor:
        ctx.save_for_backward(table, adjoint)
        return _take(rows, table, fill)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        table, adjoint = ctx.saved_tensors
        return _GatherSum.apply(grad, adjoint, table), None, None, None


class _GatherSum(torch.autograd.Function):
    """``(M, C) -> (R, C)``: the sum of the rows ``table[r, :]``; the adjoint of `Gather`."""

    @staticmethod
    def forward(ctx, rows: Tensor, table: Tensor, adjoint: Tensor) -> Tensor:
        ctx.save_for_backward(table, adjoint)
        taken = _take(rows.contiguous(), table.flatten(), 0.0)
        return taken.view(*table.shape, rows.shape[1]).sum(1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        table, adjoint = ctx.saved_tensors
        return Gather.apply(grad.contiguous(), adjoint, table, 0.0), None, None


def _take(rows: Tensor, table: Tensor, fill: float) -> Tensor:
    rows = torch.cat([rows, rows.new_full((1, rows.shape[1]), fill)])
    return rows.index_select(0, table)


class DepthwiseConv2d(torch.autograd.Function):
    """A depth-wise conv of stride 1, whose weight gradient is a depth-wise conv itself.

    The gradient of the output is the kernel, and every image and channel is a group. In
    oneDNN that takes a half to a sixteenth of the time of its own gradient for a 7×7 kernel.

    Args:
        x (N, C, H, W): input.
        weight (C, 1, k, k): k×k kernels.
        bias (C,): or None.
        padding: rows and columns of zeros on each side.

    Source: own.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return F.conv2d(x, weight, bias, padding=padding, groups=len(weight))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        to_x = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_x, _, _ = torch.ops.aten.convolution_backward(
                grad, x, weight, None, (1, 1), ctx.padding, (1, 1), False, (0, 0), len(weight),
                (True, False, False),
            )  # fmt: skip
        if ctx.needs_input_grad[1]:
            num_pieces = -(-x.numel() // _PIECE)
            pieces = zip(x.chunk(num_pieces), grad.chunk(num_pieces))
            to_weight = sum(_correlate(*piece, ctx.padding) for piece in pieces)[:, None]
        if ctx.needs_input_grad[2]:  # apart: with it, oneDNN computes the weight's too
            to_bias = grad.sum((0, 2, 3))
        return to_x, to_weight, to_bias, None


def _correlate(x: Tensor, kernels: Tensor, padding: tuple[int, int]) -> Tensor:
    """(N, C, H, W) with kernels (N, C, k, k) -> (C, H', W'), summed over N."""
    num = x.shape[0] * x.shape[1]
    folded = x.reshape(1, num, *x.shape[2:])
    kernels = kernels.reshape(num, 1, *kernels.shape[2:])
    out = F.conv2d(folded, kernels, padding=padding, groups=num)
    return out.view(*x.shape[:2], *out.shape[2:]).sum(0)


class ResponseNorm(torch.autograd.Function):
    """Global Response Normalization of groups of sites (arXiv 2301.00808, eq. 1 to 4).

    Args:
        x (G, S, C): S sites in each of G groups.
        gamma, beta (C,): scale and shift.
        eps: added to the mean response.

    Statistics are float32 at least. There are no second derivatives.

    Source: own.
    """

    @staticmethod
    def forward(ctx, x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
        # Of a sum over thousands of sites; `tiny` keeps the gradient of the root finite in a
        # channel that is zero everywhere.
        wide = torch.promote_types(x.dtype, torch.float32)
        energy = x.to(wide).square().sum(1, keepdim=True)  # (G, 1, C)
        response = (energy + torch.finfo(wide).tiny).sqrt()
        mean = response.mean(-1, keepdim=True) + eps
        ctx.save_for_backward(x, gamma, response, mean)
        scale = 1 + gamma * response / mean
        return torch.addcmul(beta.to(x.dtype), scale.to(x.dtype), x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, gamma, response, mean = ctx.saved_tensors
        wide = response.dtype
        normed = response / mean
        to_scale = (grad * x).sum(1, keepdim=True, dtype=wide)  # (G, 1, C)
        to_normed = to_scale * gamma
        # The response of a channel moves the mean of all.
        to_response = (to_normed - (to_normed * normed).mean(-1, keepdim=True)) / mean
        to_x = (grad * (1 + gamma * normed)).addcmul_(x, to_response / response).to(x.dtype)
        to_gamma = (to_scale * normed).sum((0, 1))
        return to_x, to_gamma, grad.sum((0, 1), dtype=wide), None
