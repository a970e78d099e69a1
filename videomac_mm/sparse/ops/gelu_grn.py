"""GELU and Global Response Normalization in few passes: the middle of ConvNeXt V2's MLP."""

import torch
import torch.nn.functional as F
from torch import Tensor

from videomac_mm.sparse.ops import library
from videomac_mm.sparse.ops.operator import (
    check_tensor,
    composes,
    contiguous,
    define,
    differentiable_gradients,
    num_chunks,
    sum_type,
)


def grn(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    """Global Response Normalization (arXiv 2301.00808, eq. 1 to 4), in torch's own operations.

    Args:
        x (G, S, C): S sites in each of G groups; responses are pooled over a group.
        gamma, beta (C,): scale and shift.
        eps: added to the mean response.

    Returns:
        (G, S, C). The statistics are float32 at least.
    """
    response = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=sum_type(x))
    normed = response / (response.mean(-1, keepdim=True) + eps)
    return torch.addcmul(beta.to(x.dtype), (gamma * normed + 1).to(x.dtype), x)


def gelu_grn(x: Tensor, bias: Tensor | None, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    """``grn(gelu(x + bias))``, with a kernel for float32 on CPUs (C++, C a multiple of 8).

    GELU is computed again in the backward pass, so that nothing but ``x`` is kept.

    Args:
        x (G, S, C): S sites in each of G groups.
        bias (C,): of the linear layer before; or None.
        gamma, beta, eps: as `grn`.

    Returns:
        (G, S, C)

    Raises:
        TypeError, ValueError: if the arguments do not fit each other.
    """
    if composes(x):
        return _composition(x, bias, gamma, beta, eps)
    return _gelu_grn(x, bias, gamma, beta, eps)[0]


def _composition(x, bias, gamma, beta, eps) -> Tensor:
    x = x if bias is None else x + bias.to(x.dtype)
    return grn(F.gelu(x), gamma, beta, eps)


def _respond(energy: Tensor, gamma: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """From sums of squares (G, 1, C): responses, their mean over channels, and the scale."""
    # `tiny` keeps the gradient of the root finite in a channel that is zero everywhere.
    response = (energy + torch.finfo(energy.dtype).tiny).sqrt()
    mean = response.mean(-1, keepdim=True) + eps
    return response, mean, 1 + gamma * response / mean


def _respond_backward(
    to_scale: Tensor, gamma: Tensor, energy: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The parts of the input's gradient, ``grad * scale + active * slope``, and gamma's."""
    response, mean, scale = _respond(energy, gamma, eps)
    normed, to_normed = response / mean, to_scale * gamma
    # The response of a channel moves the mean of all.
    to_response = (to_normed - (to_normed * normed).mean(-1, keepdim=True)) / mean
    return scale, to_response / response, (to_scale * normed).sum((0, 1))


def _forward(x, bias, gamma, beta, eps) -> tuple[Tensor, Tensor]:
    active = F.gelu(x if bias is None else x + bias.to(x.dtype))
    energy = active.to(sum_type(active)).square().sum(1, keepdim=True)
    scale = _respond(energy, gamma, eps)[-1]
    return torch.addcmul(beta.to(x.dtype), scale.to(x.dtype), active), energy


def _backward(grad, x, bias, gamma, energy, eps) -> tuple[Tensor, ...]:
    shifted = x if bias is None else x + bias.to(x.dtype)
    active = F.gelu(shifted)
    to_scale = (grad * active).sum(1, keepdim=True, dtype=energy.dtype)
    scale, slope, to_gamma = _respond_backward(to_scale, gamma, energy, eps)
    to_active = (grad * scale).addcmul_(active, slope).to(x.dtype)
    to_x = torch.ops.aten.gelu_backward(to_active, shifted)
    to_bias, to_beta = (g.sum((0, 1), dtype=energy.dtype) for g in (to_x, grad))
    return to_x, to_bias, to_gamma, to_beta


def _forward_kernel(x, bias, gamma, beta, eps) -> tuple[Tensor, Tensor]:
    if x.shape[-1] % 8 or not library.takes(x, bias, gamma, beta):
        return NotImplemented
    x, bias = map(contiguous, (x, bias))
    out, (groups, rows, channels) = torch.empty_like(x), x.shape
    chunks = num_chunks(groups, rows)
    energy = x.new_empty(groups, chunks, channels, dtype=torch.float64)
    library.call('gelu_energy', x, bias, out, energy, groups, chunks, rows, channels)
    energy = energy.sum(1, keepdim=True).float()
    return out.mul_(_respond(energy, gamma, eps)[-1]).add_(beta), energy


def _backward_kernel(grad, x, bias, gamma, energy, eps) -> tuple[Tensor, ...]:
    if x.shape[-1] % 8 or not library.takes(x, bias, gamma, energy):
        return NotImplemented
    grad, x, bias = map(contiguous, (grad, x, bias))
    groups, rows, channels = x.shape
    chunks = num_chunks(groups, rows)
    sizes = groups, chunks, rows, channels
    sums = x.new_empty(groups, chunks, 2, channels, dtype=torch.float64)
    library.call('gelu_sums', grad, x, bias, sums, *sizes)
    to_scale, to_beta = sums.sum(1, keepdim=True).unbind(2)  # each (G, 1, C)
    scale, slope, to_gamma = _respond_backward(to_scale.float(), gamma, energy, eps)
    to_x, sums = torch.empty_like(x), x.new_empty(sizes[:2] + sizes[3:], dtype=torch.float64)
    scale, slope = scale.contiguous(), slope.contiguous()
    library.call('gelu_backward', grad, x, bias, scale, slope, to_x, sums, *sizes)
    return to_x, sums.sum((0, 1)).float(), to_gamma, to_beta.sum((0, 1)).float()


def _check(x, bias, gamma, beta, eps) -> None:
    check_tensor('x', x, (None, None, None))
    for name, tensor in (('bias', bias), ('gamma', gamma), ('beta', beta)):
        check_tensor(name, tensor, (x.shape[-1],), like=x)


def _check_backward(grad, x, bias, gamma, energy, eps) -> None:
    _check(x, bias, gamma, None, eps)
    check_tensor('grad', grad, x.shape, like=x)
    check_tensor('energy', energy, (x.shape[0], 1, x.shape[-1]), like=x)


def _fake(x, bias, gamma, beta, eps) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[0], 1, x.shape[-1], dtype=sum_type(x))


def _fake_backward(grad, x, bias, gamma, energy, eps) -> tuple[Tensor, ...]:
    sums = (energy.new_empty(x.shape[-1:]) for _ in range(3))
    return x.new_empty(x.shape), *sums


def _keep(ctx, inputs, output) -> None:
    x, bias, gamma, beta, ctx.eps = inputs
    out, energy = output
    ctx.save_for_backward(x, bias, gamma, beta, energy)
    ctx.mark_non_differentiable(energy)
    ctx.set_materialize_grads(False)


def _gradients(ctx, grad, _) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 5
    *inputs, energy = ctx.saved_tensors
    if torch.is_grad_enabled():
        inputs = *inputs, ctx.eps
        return differentiable_gradients(_composition, inputs, ctx.needs_input_grad, grad)
    x, bias, gamma, beta = inputs
    to_x, to_bias, to_gamma, to_beta = _gelu_grn_backward(grad, x, bias, gamma, energy, ctx.eps)
    to_bias = None if bias is None else to_bias.to(bias.dtype)
    return to_x, to_bias, to_gamma.to(gamma.dtype), to_beta.to(beta.dtype), None


_gelu_grn = define(
    'gelu_grn(Tensor x, Tensor? bias, Tensor gamma, Tensor beta, float eps) -> (Tensor, Tensor)',
    _forward,
    kernel=_forward_kernel,
    check=_check,
    fake=_fake,
    backward=_gradients,
    setup_context=_keep,
)
_gelu_grn_backward = define(
    'gelu_grn_backward(Tensor grad, Tensor x, Tensor? bias, Tensor gamma, Tensor energy, float eps)'
    ' -> (Tensor, Tensor, Tensor, Tensor)',
    _backward,
    kernel=_backward_kernel,
    check=_check_backward,
    fake=_fake_backward,
)
