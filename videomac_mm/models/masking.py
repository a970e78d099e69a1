"""Mask generators. The owner of two rules: True = hidden, and how a ratio becomes a count."""

import torch
from torch import Tensor

from videomac_mm.registry import TASK_UTILS


@TASK_UTILS.register_module()
class RandomPatchMask:
    """Hide the same number of random patches of every image.

    Of L patches ``int(L * (1 - mask_ratio))`` stay visible (as MAE and VideoMAC round).

    Args:
        patch_size: side of a patch in pixels. Defaults to 32.
        mask_ratio: share of hidden patches, in (0, 1). Defaults to 0.75.

    Raises:
        ValueError: if ``mask_ratio`` lies outside (0, 1) or ``patch_size`` is not positive.
    """

    def __init__(self, patch_size: int = 32, mask_ratio: float = 0.75) -> None:
        if not 0 < mask_ratio < 1:
            raise ValueError(f'mask_ratio must lie inside (0, 1), got {mask_ratio}')
        if patch_size < 1:
            raise ValueError(f'patch_size must be at least 1 pixel, got {patch_size}')
        self.patch_size = patch_size
        self.mask_ratio = mask_ratio

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """The patch grid (h, w) of images of ``size`` (H, W) pixels.

        Raises:
            ValueError: if a side is no multiple of the patch; names both.
        """
        height, width = size
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f'image size {height}x{width} is not divisible by the mask patches of '
                f'{self.patch_size} pixels'
            )
        return height // self.patch_size, width // self.patch_size

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw a mask for images.

        Args:
            images (B, C, H, W): only shape and device are read.
            generator: source of randomness; torch's global one if None.

        Returns:
            (B, h, w) bool, True = hidden.

        Raises:
            ValueError: if the size does not fit the patch, or nothing would be visible or
                hidden at it.
        """
        h, w = self.grid(images.shape[-2:])
        num_visible = int(h * w * (1 - self.mask_ratio))
        if not 0 < num_visible < h * w:
            raise ValueError(
                f'mask_ratio {self.mask_ratio} leaves {num_visible} of {h * w} patches '
                f'visible at image size {h * self.patch_size}x{w * self.patch_size}; it must '
                'leave at least one and hide at least one'
            )
        device = images.device if generator is None else generator.device
        noise = torch.rand(len(images), h * w, generator=generator, device=device)
        mask = torch.ones(len(images), h * w, dtype=torch.bool, device=device)
        mask.scatter_(1, noise.argsort(1)[:, :num_visible], False)
        return mask.view(-1, h, w).to(images.device)

    def check(self, mask: Tensor, images: Tensor) -> Tensor:
        """Return a mask given by a user, or say what is wrong with it.

        Args:
            mask: should be (B, h, w) bool for ``images`` (B, C, H, W).

        Raises:
            TypeError, ValueError: naming what was given and what was expected.
        """
        if mask.dtype != torch.bool:
            raise TypeError(f'mask must be bool (True = hidden), got {mask.dtype}')
        expected = (len(images), *self.grid(images.shape[-2:]))
        if tuple(mask.shape) != expected:
            raise ValueError(f'mask must have shape {expected}, got {tuple(mask.shape)}')
        if not mask.any():
            raise ValueError('mask hides no patch; at least one must be hidden')
        return mask.to(images.device)
