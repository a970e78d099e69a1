"""Masks for tests."""

import math

import torch
from torch import Tensor


def random_mask(batch: int, grid: tuple[int, ...], visible: int, seed: int = 0) -> Tensor:
    """(batch, *grid) bool, True = hidden, ``visible`` patches left in each image or clip."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(batch, math.prod(grid), generator=generator)
    return noise.argsort(1).argsort(1).ge(visible).view(batch, *grid)


def expand(mask: Tensor, size: tuple[int, ...]) -> Tensor:
    """(B, h, w) on the patch grid -> (B, 1, H, W), and (B, t, h, w) -> (B, 1, T, H, W)."""
    for dim, pixels in enumerate(size, 1):
        mask = mask.repeat_interleave(pixels // mask.shape[dim], dim)
    return mask[:, None]
