import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.gradients import gradients
from videomac_mm.sparse.ops import norm_gelu

EPS = 1e-6


def values(rows: int, channels: int, with_residual: bool, dtype=torch.float64) -> list:
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, channels), (channels,), (channels,), (rows, channels)]
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    tensors[0] = tensors[0] * 3 + 5
    tensors = [tensor.to(dtype).requires_grad_() for tensor in tensors]
    return tensors if with_residual else [*tensors[:3], None]


def composition(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
    normed = F.layer_norm(x, x.shape[-1:], weight, bias, EPS)
    return F.gelu(normed if residual is None else normed + residual)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('with_residual', [False, True])
@pytest.mark.parametrize('rows, channels', [(1, 8), (7, 24), (70, 48), (5, 12)])
def test_norm_gelu__equals_its_parts(rows, channels, with_residual, dtype):
    wide = values(rows, channels, with_residual)
    narrow = values(rows, channels, with_residual, dtype)
    found, wanted = norm_gelu(*narrow, EPS), composition(*wide)

    tolerance = dict(atol=1e-5, rtol=1e-5) if dtype == torch.float32 else {}
    torch.testing.assert_close(found.double(), wanted, **tolerance)
    for got, want in zip(gradients(found, narrow), gradients(wanted, wide)):
        scale = want.abs().max()
        torch.testing.assert_close(got.double() / scale, want / scale, **tolerance)


@pytest.mark.parametrize('with_residual', [False, True])
def test_norm_gelu__derivatives(with_residual):
    inputs = values(3, 4, with_residual)

    def function(*inputs: Tensor | None) -> Tensor:
        return norm_gelu(*inputs, EPS)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_norm_gelu__of_very_many_rows_is_as_exact_as_of_few():
    narrow = values(393_216, 8, True, torch.float32)
    wide = [tensor.detach().double().requires_grad_() for tensor in narrow]
    upstream = torch.rand(393_216, 8)

    def run(inputs: list[Tensor]) -> tuple[Tensor, ...]:
        out = norm_gelu(*inputs, EPS)
        return torch.autograd.grad(out, inputs[1:3], upstream.to(out))

    for got, want in zip(run(narrow), run(wide)):
        assert (got - want).abs().max() / want.abs().max() < 1e-6


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('with_residual', [False, True])
def test_operators__are_what_torch_expects(with_residual, dtype):
    inputs = values(5, 8, with_residual, dtype)
    ops = torch.ops.videomac_mm
    torch.library.opcheck(ops.norm_gelu.default, (*inputs, EPS))
    x, weight, bias, residual = (x if x is None else x.detach() for x in inputs)
    statistics = torch.rand(2, 5, dtype=torch.promote_types(dtype, torch.float32)).unbind()
    args = x, x, weight, bias, residual, *statistics
    torch.library.opcheck(ops.norm_gelu_backward.default, args)


@pytest.mark.parametrize(
    'changes, error, message',
    [
        (dict(x=torch.ones(2, 3, 8)), ValueError, r'x must have shape \(any, any\)'),
        (dict(weight=torch.ones(4)), ValueError, r'weight must have shape \(8\), got \(4,\)'),
        (dict(bias=torch.ones(8).long()), TypeError, 'bias must have .*got torch.int64'),
        (dict(residual=torch.ones(1, 8)), ValueError, r'residual .*\(3, 8\), got \(1, 8\)'),
    ],
)
def test_norm_gelu__refuses_what_does_not_fit(changes, error, message):
    given = dict(x=torch.ones(3, 8), weight=torch.ones(8), bias=torch.ones(8))
    with pytest.raises(error, match=message):
        norm_gelu(**(given | dict(residual=None, eps=EPS) | changes))
