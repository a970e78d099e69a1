"""Operations whose gradients cost less than those torch derives; pure functions of tensors."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from videomac_mm.sparse import cpu_kernels

# Work in pieces of this many numbers (4 MiB), which stay in the cache.
_PIECE = 2**20


class Gather(torch.autograd.Function):
    """Sums of rows, ``(R, C) -> (M, C)``, with an adjoint that is one itself.

    Torch's own adjoint of ``index_select`` adds row after row.

    Args:
        rows (R, C): what to take.
        table (M, n): which n rows to add up; R stands for a row of ``fill``.
        adjoint (R, m): in which m rows of the result each row occurs, filled up with M.
        fill: value of the sites that are no row's.
        kernels: whether `cpu_kernels` may be used.

    Source: own.
    """

    @staticmethod
    def forward(
        ctx, rows: Tensor, table: Tensor, adjoint: Tensor, fill: float, kernels: bool
    ) -> Tensor:
        ctx.save_for_backward(table, adjoint)
        ctx.kernels = kernels
        return _take(rows, table, fill, kernels)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        table, adjoint = ctx.saved_tensors
        return Gather.apply(grad, adjoint, table, 0.0, ctx.kernels), None, None, None, None


def _take(rows: Tensor, table: Tensor, fill: float, kernels: bool) -> Tensor:
    rows = rows.contiguous()
    if kernels and cpu_kernels.available(rows):
        return cpu_kernels.take(rows, table, fill)
    rows = torch.cat([rows, rows.new_full((1, rows.shape[1]), fill)])
    taken = rows.index_select(0, table.flatten())
    return taken if table.shape[1] == 1 else taken.view(*table.shape, -1).sum(1)


class PairConv(torch.autograd.Function):
    """A conv that mixes channels, as sums of matrix products over pairs of rows, on the CPU.

    Args:
        rows (R, C): input, for which `cpu_kernels.mixes`.
        weight (C', T, C): a matrix for each of T taps.
        table (M, T): int32, which row each output reads at each tap; -1 for none.
        adjoint (R, T): int32, which output reads each row at each tap; -1 for none.

    Returns:
        (M, C')

    Source: own.
    """

    @staticmethod
    def forward(ctx, rows: Tensor, weight: Tensor, table: Tensor, adjoint: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight, table, adjoint)
        if not weight.permute(2, 1, 0).is_contiguous():
            weight = weight.contiguous()
        return cpu_kernels.convolve_pairs(rows.contiguous(), weight, table)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, table, adjoint = ctx.saved_tensors
        to_rows = to_weight = None
        if ctx.needs_input_grad[0]:
            to_rows = PairConv.apply(grad, weight.permute(2, 1, 0), adjoint, table)
        if ctx.needs_input_grad[1]:
            to_weight = PairCorrelation.apply(rows, grad, table, adjoint)
        return to_rows, to_weight, None, None


class PairCorrelation(torch.autograd.Function):
    """The gradient of `PairConv` with respect to its weight; each is the other's adjoint.

    Args:
        rows (R, C): input.
        grads (M, C'): gradient of the output.
        table (M, T), adjoint (R, T): as `PairConv`.

    Returns:
        (C', T, C)
    """

    @staticmethod
    def forward(ctx, rows: Tensor, grads: Tensor, table: Tensor, adjoint: Tensor) -> Tensor:
        ctx.save_for_backward(rows, grads, table, adjoint)
        return cpu_kernels.correlate_pairs(rows.contiguous(), grads.contiguous(), table)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, grads, table, adjoint = ctx.saved_tensors
        to_rows = to_grads = None
        if ctx.needs_input_grad[0]:
            to_rows = PairConv.apply(grads, grad.permute(2, 1, 0), adjoint, table)
        if ctx.needs_input_grad[1]:
            to_grads = PairConv.apply(rows, grad, table, adjoint)
        return to_rows, to_grads, None, None


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
        wide = torch.promote_types(x.dtype, torch.float32)
        energy = x.to(wide).square().sum(1, keepdim=True)  # (G, 1, C)
        response, mean, scale = _respond(energy, gamma, eps)
        ctx.save_for_backward(x, gamma, response, mean)
        return torch.addcmul(beta.to(x.dtype), scale.to(x.dtype), x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, gamma, response, mean = ctx.saved_tensors
        to_scale = (grad * x).sum(1, keepdim=True, dtype=response.dtype)  # (G, 1, C)
        scale, slope, to_gamma = _respond_backward(to_scale, gamma, response, mean)
        to_x = (grad * scale).addcmul_(x, slope).to(x.dtype)
        return to_x, to_gamma, grad.sum((0, 1), dtype=response.dtype), None


def _respond(energy: Tensor, gamma: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """From sums of squares (G, 1, C): responses, their mean over channels, and the scale."""
    # `tiny` keeps the gradient of the root finite in a channel that is zero everywhere.
    response = (energy + torch.finfo(energy.dtype).tiny).sqrt()
    mean = response.mean(-1, keepdim=True) + eps
    return response, mean, 1 + gamma * response / mean


def _respond_backward(
    to_scale: Tensor, gamma: Tensor, response: Tensor, mean: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What the gradient of a GRN's input is made of: ``grad * scale + x * slope``; and gamma's."""
    normed = response / mean
    to_normed = to_scale * gamma
    # The response of a channel moves the mean of all.
    to_response = (to_normed - (to_normed * normed).mean(-1, keepdim=True)) / mean
    return 1 + gamma * normed, to_response / response, (to_scale * normed).sum((0, 1))


class ResponseNormMLP(torch.autograd.Function):
    """Linear layer, GELU, `ResponseNorm` and linear layer on the CPU, the MLP of ConvNeXt V2.

    It takes few passes over the wide tensors in the middle. The result of the norm is not kept
    for the backward pass but computed again.

    Args:
        x (G, S, C): S sites in each of G groups, for which `cpu_kernels` are available.
        weight1 (C', C), bias1 (C',): of the first layer; C' is a multiple of 8.
        gamma, beta (C',), eps: of the norm.
        weight2 (C'', C'), bias2 (C'',): of the second layer.

    Returns:
        (G, S, C'')

    There are no second derivatives.

    Source: own.
    """

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        gamma: Tensor,
        beta: Tensor,
        eps: float,
        weight2: Tensor,
        bias2: Tensor,
    ) -> Tensor:
        wide = x @ weight1.t()  # (G, S, C'), without the bias
        training = any(ctx.needs_input_grad)
        active = torch.empty_like(wide) if training else wide
        energy = cpu_kernels.gelu_energy(wide, bias1, out=active)
        response, mean, scale = _respond(energy, gamma, eps)
        if not training:
            return F.linear(active.mul_(scale).add_(beta), weight2, bias2)
        ctx.save_for_backward(x, weight1, bias1, gamma, beta, weight2, wide, active, response, mean)
        return F.linear(torch.addcmul(beta, scale, active), weight2, bias2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight1, bias1, gamma, beta, weight2, wide, active, response, mean = ctx.saved_tensors
        grad = grad.flatten(0, 1)
        normed = torch.addcmul(beta, 1 + gamma * response / mean, active).flatten(0, 1)
        to_weight2 = grad.t() @ normed
        to_wide = torch.mm(grad, weight2, out=normed).view_as(wide)  # it is no longer needed
        to_scale, to_beta = cpu_kernels.weighted_sums(to_wide, active)
        scale, slope, to_gamma = _respond_backward(to_scale, gamma, response, mean)
        to_wide, to_bias1 = cpu_kernels.gelu_backward_(to_wide, wide, bias1, scale, slope)
        to_weight1 = to_wide.flatten(0, 1).t() @ x.flatten(0, 1)
        to_norm = to_gamma, to_beta.sum((0, 1)), None
        return to_wide @ weight1, to_weight1, to_bias1, *to_norm, to_weight2, grad.sum(0)


class NormGelu(torch.autograd.Function):
    """GELU of layer norm plus residual on the CPU, of maps that `cpu_kernels` can work on.

    Args:
        x (N, C, H, W): input.
        weight, bias (C,): of the norm over channels.
        residual (N, C, H, W): added to the norm; or None.
        eps: of the norm.

    Returns:
        (N, C, H, W), channels-last.

    There are no second derivatives.

    Source: own.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float
    ) -> Tensor:
        ctx.sizes = len(x), *x.shape[2:]
        x, residual = rows_of(x), None if residual is None else rows_of(residual)
        out, *statistics = cpu_kernels.norm_gelu(x, weight, bias, residual, eps)
        ctx.save_for_backward(x, weight, bias, residual, *statistics)
        return maps_of(out, *ctx.sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad = rows_of(grad).contiguous()
        x, weight, bias, residual = cpu_kernels.norm_gelu_backward(grad, *ctx.saved_tensors)
        # Autograd adds in place to what is nobody's view: that of the residual comes first.
        x, residual = (g if g is None else maps_of(g, *ctx.sizes).data for g in (x, residual))
        return x, weight, bias, residual, None


def rows_of(maps: Tensor) -> Tensor:
    """(N, C, H, W) -> (N*H*W, C); a view of channels-last memory."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def maps_of(rows: Tensor, num: int, height: int, width: int) -> Tensor:
    """(N*H*W, C) -> (N, C, H, W), channels-last."""
    return rows.view(num, height, width, rows.shape[1]).permute(0, 3, 1, 2)
