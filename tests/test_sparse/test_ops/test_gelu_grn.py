import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.gradients import gradients
from videomac_mm.sparse.ops import gelu_grn, grn, library

needs_kernels = pytest.mark.skipif(
    not library.is_available(), reason='no C++ compiler to build the CPU kernels with'
)
EPS = 1e-6


def values(
    groups: int, rows: int, channels: int, with_bias: bool, dtype: torch.dtype = torch.float64
) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(groups, rows, channels), *[(channels,)] * 3]
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    tensors = [tensor.to(dtype).requires_grad_() for tensor in tensors]
    return tensors if with_bias else [tensors[0], None, *tensors[2:]]


def composition(x: Tensor, bias: Tensor | None, gamma: Tensor, beta: Tensor) -> Tensor:
    active = F.gelu(x if bias is None else x + bias)
    response = active.square().sum(1, keepdim=True).sqrt()
    response = response / (response.mean(-1, keepdim=True) + EPS)
    return gamma * (active * response) + beta + active


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('with_bias', [True, False])
@pytest.mark.parametrize('channels', [8, 12, 24, 48])  # with a kernel but for 12
@pytest.mark.parametrize('groups, rows', [(1, 5), (3, 6), (2, 70)])
def test_gelu_grn__equals_its_parts(groups, rows, channels, with_bias, dtype):
    wide = values(groups, rows, channels, with_bias)
    narrow = values(groups, rows, channels, with_bias, dtype)
    found, wanted = gelu_grn(*narrow, EPS), composition(*wide)

    tolerance = dict(atol=2e-5, rtol=1e-5) if dtype == torch.float32 else {}
    torch.testing.assert_close(found.double(), wanted, **tolerance)
    for got, want in zip(gradients(found, narrow), gradients(wanted, wide)):
        scale = want.abs().max()
        torch.testing.assert_close(got.double() / scale, want / scale, **tolerance)
    with torch.no_grad():
        torch.testing.assert_close(gelu_grn(*narrow, EPS).double(), wanted, **tolerance)


@pytest.mark.parametrize('with_bias', [True, False])
def test_gelu_grn__derivatives(with_bias):
    inputs = values(2, 3, 4, with_bias)

    def function(*inputs: Tensor | None) -> Tensor:
        return gelu_grn(*inputs, EPS)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_gelu_grn__of_very_many_rows_is_as_exact_as_of_few():
    rows = 393_216
    wide = values(1, rows, 8, True)
    narrow = [tensor.detach().float().requires_grad_() for tensor in wide]
    wide = [tensor.detach().double().requires_grad_() for tensor in narrow]
    upstream = torch.rand(1, rows, 8)

    def run(inputs: list[Tensor]) -> list[Tensor]:
        out = gelu_grn(*inputs, EPS)
        return [out, *torch.autograd.grad(out, inputs, upstream.to(out))]

    for got, want in zip(run(narrow), run(wide)):
        assert (got - want).abs().max() / want.abs().max() < 1e-6


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_gelu_grn__half_precision_sums_in_single(dtype):
    # The energy of a channel, 2048 * 100, and the gradients' sums exceed float16.
    x = torch.full((1, 2048, 4), 10.0, dtype=dtype, requires_grad=True)
    gamma, beta = torch.ones(4, requires_grad=True), torch.zeros(4, requires_grad=True)

    out = gelu_grn(x, None, gamma, beta, EPS)
    (out.float() * 10).sum().backward()

    assert out.dtype == x.grad.dtype == dtype
    assert (out == 20).all()
    torch.testing.assert_close(gamma.grad, torch.full((4,), 2048 * 100.0))
    torch.testing.assert_close(beta.grad, torch.full((4,), 2048 * 10.0))


@pytest.mark.parametrize('channels', [4, 8])
def test_gelu_grn__gradient_is_finite_where_a_channel_is_zero(channels):
    x = torch.zeros(1, 3, channels, requires_grad=True)
    gamma, beta = torch.ones(channels), torch.zeros(channels)
    for function in (
        lambda x: gelu_grn(x, None, gamma, beta, EPS),
        lambda x: grn(x, gamma, beta, EPS),
    ):
        (grad,) = torch.autograd.grad(function(x).sum(), x)
        assert grad.isfinite().all()


@needs_kernels
def test_gelu__is_exact_everywhere():
    x = torch.cat([torch.linspace(-20, 20, 4001), torch.tensor([0.0, 1e-30, -1e-30, 1e30, 3.4e38])])
    x = F.pad(x, (0, -len(x) % 8)).view(1, -1, 8)
    out, energy = torch.empty_like(x), torch.empty(1, 1, 8, dtype=torch.float64)
    sizes = 1, 1, x.shape[1], 8
    library.call('gelu_energy', x, None, out, energy, *sizes)
    slope, scale = torch.empty_like(x), torch.ones(1, 1, 8)
    ones, zeros = torch.ones_like(x), torch.zeros(1, 1, 8)
    library.call('gelu_backward', ones, x, None, scale, zeros, slope, energy, *sizes)

    wide = x.double().requires_grad_()
    wanted = F.gelu(wide)
    (wanted_slope,) = torch.autograd.grad(wanted.sum(), wide)
    torch.testing.assert_close(out.double(), wanted.detach(), atol=5e-7, rtol=5e-7)
    torch.testing.assert_close(slope.double(), wanted_slope, atol=1e-6, rtol=1e-6)


def test_gelu__lets_nan_through():
    x = torch.zeros(1, 2, 8)
    x[0, 0, 3] = float('nan')
    out = gelu_grn(x, None, torch.zeros(8), torch.zeros(8), EPS)
    assert out.isnan()[0, :, 3].tolist() == [True, False] or out.isnan().all()
    assert out.isnan().any()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('with_bias', [True, False])
def test_operators__are_what_torch_expects(with_bias, dtype):
    inputs = values(2, 3, 8, with_bias, dtype)
    ops = torch.ops.videomac_mm
    torch.library.opcheck(ops.gelu_grn.default, (*inputs, EPS))
    x, bias, gamma, _ = (x if x is None else x.detach() for x in inputs)
    energy = torch.rand(2, 1, 8, dtype=torch.promote_types(dtype, torch.float32))
    torch.library.opcheck(ops.gelu_grn_backward.default, (x, x, bias, gamma, energy, EPS))


@pytest.mark.parametrize(
    'changes, error, message',
    [
        (
            dict(x=torch.ones(2, 8)),
            ValueError,
            r'x must have shape \(any, any, any\), got \(2, 8\)',
        ),
        (dict(x=torch.ones(2, 3, 8).int()), TypeError, 'x must have .*got torch.int32'),
        (dict(bias=torch.ones(1)), ValueError, r'bias must have shape \(8\), got \(1,\)'),
        (dict(gamma=torch.ones(16)), ValueError, r'gamma must have shape \(8\), got \(16,\)'),
        (dict(beta=torch.ones(8, device='meta')), ValueError, 'beta must be on cpu, got meta'),
    ],
)
def test_gelu_grn__refuses_what_does_not_fit(changes, error, message):
    given = dict(x=torch.ones(2, 3, 8), bias=None, gamma=torch.ones(8), beta=torch.ones(8), eps=EPS)
    with pytest.raises(error, match=message):
        gelu_grn(**(given | changes))
