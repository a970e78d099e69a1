"""Gradients for tests."""

from collections.abc import Sequence

import torch
from torch import Tensor


def gradients(out: Tensor, inputs: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Of a fixed random product of ``out``, for the inputs that are not None."""
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    inputs = [tensor for tensor in inputs if tensor is not None]
    return torch.autograd.grad(out, inputs, upstream.to(out))
