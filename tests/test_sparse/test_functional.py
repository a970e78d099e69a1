import pytest
import torch
import torch.nn.functional as F

from videomac_mm.sparse import functional
from videomac_mm.sparse.functional import DepthwiseConv2d, Gather, ResponseNorm


def test_gather__is_linear_with_its_adjoint():
    rows = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    table = torch.tensor([[2], [0], [3], [0]])  # row 1 is not taken, 3 does not exist
    adjoint = torch.tensor([[1, 3], [4, 4], [0, 4]])

    def gather(rows):
        return Gather.apply(rows, table, adjoint, 7.0, True)

    taken = gather(rows)

    torch.testing.assert_close(taken[[0, 1, 3]], rows[[2, 0, 0]])
    assert (taken[2] == 7).all()
    assert torch.autograd.gradcheck(gather, rows)
    assert torch.autograd.gradgradcheck(lambda x: gather(x).square(), rows)


@pytest.mark.parametrize('padding', [(0, 0), (3, 3)])
@pytest.mark.parametrize('piece', [1, 500, 10**6])
def test_depthwise__gradients_equal_those_of_torch(monkeypatch, padding, piece):
    monkeypatch.setattr(functional, '_PIECE', piece)
    x = torch.randn(5, 3, 9, 8).contiguous(memory_format=torch.channels_last)
    inputs = [x, torch.randn(3, 1, 7, 7), torch.randn(3)]
    inputs = [tensor.requires_grad_() for tensor in inputs]

    out = DepthwiseConv2d.apply(*inputs, padding)
    wanted = F.conv2d(*inputs, padding=padding, groups=3)

    torch.testing.assert_close(out, wanted)
    upstream = torch.randn_like(out)
    grads = torch.autograd.grad(out, inputs, upstream)
    for got, want in zip(grads, torch.autograd.grad(wanted, inputs, upstream)):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-5)


def test_depthwise__without_bias_and_with_second_derivatives():
    x = torch.randn(2, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)

    def convolve(x, weight):
        return DepthwiseConv2d.apply(x, weight, None, (1, 1)).square()

    assert torch.autograd.gradcheck(convolve, (x, weight))
    assert torch.autograd.gradgradcheck(convolve, (x, weight))


def test_response_norm__derivatives():
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    gamma, beta = torch.randn(2, 3, dtype=torch.float64).unbind()
    inputs = x, gamma.requires_grad_(), beta.requires_grad_()

    def normalise(x, gamma, beta):
        return ResponseNorm.apply(x, gamma, beta, 1e-6)

    assert torch.autograd.gradcheck(normalise, inputs)
    (grad,) = torch.autograd.grad(normalise(*inputs).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        grad.sum().backward()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_response_norm__half_precision_sums_in_single(dtype):
    # The energy of a channel, 2048 * 100, and the gradients' sum exceed float16.
    x = torch.full((1, 2048, 4), 10.0, dtype=dtype, requires_grad=True)
    gamma, beta = torch.ones(4, requires_grad=True), torch.zeros(4, requires_grad=True)

    out = ResponseNorm.apply(x, gamma, beta, 1e-6)
    (out.float() * 10).sum().backward()

    assert out.dtype == x.grad.dtype == dtype
    assert (out == 20).all()
    torch.testing.assert_close(gamma.grad, torch.full((4,), 2048 * 100.0))
    torch.testing.assert_close(beta.grad, torch.full((4,), 2048 * 10.0))
