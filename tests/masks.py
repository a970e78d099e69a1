"""Masks for tests."""

import torch
from torch import Tensor


def random_mask(batch: int, grid: tuple[int, int], visible: int, seed: int = 0) -> Tensor:
    """(batch, *grid) bool, True = hidden, ``visible`` patches left in each image."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(batch, grid[0] * grid[1], generator=generator)
    return noise.argsort(1).argsort(1).ge(visible).view(batch, *grid)


def expand(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, h, w) on the patch grid -> (B, 1, H, W)."""
    factor = size[0] // mask.shape[1], size[1] // mask.shape[2]
    return mask.repeat_interleave(factor[0], 1).repeat_interleave(factor[1], 2)[:, None]
