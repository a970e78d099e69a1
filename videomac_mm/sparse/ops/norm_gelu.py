"""GELU of layer norm plus residual in one pass: what follows the convs of VideoMAC's ResNets."""

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


def norm_gelu(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float
) -> Tensor:
    """``gelu(layer_norm(x) + residual)``, with a kernel for float32 on CPUs (C++).

    Args:
        x (M, C): rows, normalised over C each. The kernel takes multiples of 8.
        weight, bias (C,): of the norm.
        residual (M, C): added to the norm; or None.
        eps: of the norm.

    Returns:
        (M, C)

    Raises:
        TypeError, ValueError: if the arguments do not fit each other.
    """
    if composes(x):
        return _composition(x, weight, bias, residual, eps)
    return _norm_gelu(x, weight, bias, residual, eps)[0]


def _composition(x, weight, bias, residual, eps) -> Tensor:
    wide = sum_type(x)
    normed = F.layer_norm(x.to(wide), x.shape[-1:], weight.to(wide), bias.to(wide), eps)
    return F.gelu(normed if residual is None else normed + residual).to(x.dtype)


def _forward(x, weight, bias, residual, eps) -> tuple[Tensor, Tensor, Tensor]:
    var, mean = torch.var_mean(x.to(sum_type(x)), 1, correction=0)
    return _composition(x, weight, bias, residual, eps), mean, (var + eps).rsqrt()


def _backward(grad, x, weight, bias, residual, mean, rstd) -> tuple[Tensor, ...]:
    wide = sum_type(x)
    centre, scale = mean[:, None], rstd[:, None]
    normed = (x.to(wide) - centre) * scale
    active = normed * weight + bias
    active = active if residual is None else active + residual
    to_sum = torch.ops.aten.gelu_backward(grad.to(wide), active)
    to_normed = to_sum * weight
    products = (to_normed * normed).mean(1, keepdim=True)
    to_x = (to_normed - to_normed.mean(1, keepdim=True) - normed * products) * scale
    to_residual = _like_residual(x, residual) if residual is None else to_sum.to(x.dtype)
    return to_x.to(x.dtype), (to_sum * normed).sum(0), to_sum.sum(0), to_residual


def _forward_kernel(x, weight, bias, residual, eps) -> tuple[Tensor, Tensor, Tensor]:
    if x.shape[-1] % 8 or not library.takes(x, weight, bias, residual):
        return NotImplemented
    x, weight, bias, residual = map(contiguous, (x, weight, bias, residual))
    out, mean, rstd = torch.empty_like(x), x.new_empty(len(x)), x.new_empty(len(x))
    library.call('norm_gelu', x, weight, bias, residual, eps, out, mean, rstd, *x.shape)
    return out, mean, rstd


def _backward_kernel(grad, x, weight, bias, residual, mean, rstd) -> tuple[Tensor, ...]:
    if x.shape[-1] % 8 or not library.takes(x, grad, weight, bias, residual):
        return NotImplemented
    chunks = num_chunks(1, len(x))
    inputs = [contiguous(tensor) for tensor in (grad, x, weight, bias, residual, mean, rstd)]
    out, to_residual = torch.empty_like(inputs[1]), _like_residual(x, residual)
    sums = x.new_empty(chunks, 2, x.shape[1], dtype=torch.float64)
    library.call('norm_gelu_backward', *inputs, out, to_residual, sums, chunks, *x.shape)
    to_weight, to_bias = sums.sum(0).float()
    return out, to_weight.clone(), to_bias.clone(), to_residual


def _like_residual(x: Tensor, residual: Tensor | None) -> Tensor:
    """Memory for the residual's gradient; none where there is no residual."""
    return x.new_empty((0, x.shape[1]) if residual is None else x.shape)


def _check(x, weight, bias, residual, *_) -> None:
    check_tensor('x', x, (None, None))
    check_tensor('weight', weight, x.shape[1:], like=x)
    check_tensor('bias', bias, x.shape[1:], like=x)
    check_tensor('residual', residual, x.shape, like=x)


def _check_backward(grad, x, weight, bias, residual, mean, rstd) -> None:
    _check(x, weight, bias, residual)
    check_tensor('grad', grad, x.shape, like=x)
    check_tensor('mean', mean, x.shape[:1], like=x)
    check_tensor('rstd', rstd, x.shape[:1], like=x)


def _fake(x, weight, bias, residual, eps) -> tuple[Tensor, Tensor, Tensor]:
    statistics = (x.new_empty(x.shape[0], dtype=sum_type(x)) for _ in range(2))
    return x.new_empty(x.shape), *statistics


def _fake_backward(grad, x, weight, bias, residual, mean, rstd) -> tuple[Tensor, ...]:
    sums = (x.new_empty(x.shape[1], dtype=sum_type(x)) for _ in range(2))
    return x.new_empty(x.shape), *sums, _like_residual(x, residual)


def _keep(ctx, inputs, output) -> None:
    x, weight, bias, residual, ctx.eps = inputs
    out, *statistics = output
    ctx.save_for_backward(x, weight, bias, residual, *statistics)
    ctx.mark_non_differentiable(*statistics)
    ctx.set_materialize_grads(False)


def _gradients(ctx, grad, *_) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 5
    x, weight, bias, residual, mean, rstd = ctx.saved_tensors
    if torch.is_grad_enabled():
        inputs = x, weight, bias, residual, ctx.eps
        return differentiable_gradients(_composition, inputs, ctx.needs_input_grad, grad)
    to_x, to_weight, to_bias, to_residual = _norm_gelu_backward(
        grad, x, weight, bias, residual, mean, rstd
    )
    to_residual = None if residual is None else to_residual.to(residual.dtype)
    return to_x, to_weight.to(weight.dtype), to_bias.to(bias.dtype), to_residual, None


_norm_gelu = define(
    'norm_gelu(Tensor x, Tensor weight, Tensor bias, Tensor? residual, float eps)'
    ' -> (Tensor, Tensor, Tensor)',
    _forward,
    kernel=_forward_kernel,
    check=_check,
    fake=_fake,
    backward=_gradients,
    setup_context=_keep,
)
_norm_gelu_backward = define(
    'norm_gelu_backward(Tensor grad, Tensor x, Tensor weight, Tensor bias, Tensor? residual,'
    ' Tensor mean, Tensor rstd) -> (Tensor, Tensor, Tensor, Tensor)',
    _backward,
    kernel=_backward_kernel,
    check=_check_backward,
    fake=_fake_backward,
)
