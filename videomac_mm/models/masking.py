"""Mask generators. The owner of two rules: True = hidden, and how a ratio becomes a count."""

import torch
from torch import Tensor

from videomac_mm.registry import TASK_UTILS


class _MaskGenerator:
    """What masks of frames and of clips have in common."""

    def __init__(self, patch_size: int, mask_ratio: float) -> None:
        if not 0 < mask_ratio < 1:
            raise ValueError(f'mask_ratio must lie inside (0, 1), got {mask_ratio}')
        if patch_size < 1:
            raise ValueError(f'patch_size must be at least 1 pixel, got {patch_size}')
        self.patch_size = patch_size
        self.mask_ratio = mask_ratio

    def grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
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

    def check(self, mask: Tensor, inputs: Tensor) -> Tensor:
        """Return a mask given by a user, or say what is wrong with it.

        Args:
            mask: should be bool on the grid of ``inputs``, hiding something and showing
                something, as much of every sample.
            inputs: as the generator takes them.

        Raises:
            TypeError, ValueError: naming what was given and what was expected.
        """
        if mask.dtype != torch.bool:
            raise TypeError(f'mask must be bool (True = hidden), got {mask.dtype}')
        expected = (len(inputs), *self.grid(inputs.shape[2:]))
        if tuple(mask.shape) != expected:
            raise ValueError(f'mask must have shape {expected}, got {tuple(mask.shape)}')
        if not mask.any():
            raise ValueError('mask hides no patch; at least one must be hidden')
        return mask.to(inputs.device)

    def _draw(
        self,
        num_rows: int,
        num_patches: int,
        num_visible: int,
        device: torch.device,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Rows (num_rows, num_patches) that hide all but ``num_visible`` random patches."""
        if not 0 < num_visible < num_patches:
            raise ValueError(
                f'mask_ratio {self.mask_ratio} leaves {num_visible} of {num_patches} patches '
                f'visible, each of {self.patch_size} pixels; it must leave at least one and '
                'hide at least one'
            )
        place = device if generator is None else generator.device
        noise = torch.rand(num_rows, num_patches, generator=generator, device=place)
        mask = torch.ones(num_rows, num_patches, dtype=torch.bool, device=place)
        return mask.scatter_(1, noise.argsort(1)[:, :num_visible], False).to(device)


@TASK_UTILS.register_module()
class RandomPatchMask(_MaskGenerator):
    """Hide the same number of random patches of every image.

    Of L patches ``int(L * (1 - mask_ratio))`` stay visible (as MAE and VideoMAC round).

    Args:
        patch_size: side of a patch in pixels. Defaults to 32.
        mask_ratio: share of hidden patches, in (0, 1). Defaults to 0.75.

    Raises:
        ValueError: if ``mask_ratio`` lies outside (0, 1) or ``patch_size`` is not positive.
    """

    def __init__(self, patch_size: int = 32, mask_ratio: float = 0.75) -> None:
        super().__init__(patch_size, mask_ratio)

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
        h, w = self.grid(images.shape[2:])
        num_visible = int(h * w * (1 - self.mask_ratio))
        mask = self._draw(len(images), h * w, num_visible, images.device, generator)
        return mask.view(-1, h, w)


@TASK_UTILS.register_module()
class RandomTubeletMask(_MaskGenerator):
    """Hide random patches of every time slot of a clip, as many in each.

    Of L patches of a slot ``int(L * mask_ratio)`` are hidden (as VideoMAE rounds; at a ratio of
    0.9 on 14x14 patches 20 stay visible, where MAE's rule would leave 19).

    Args:
        patch_size: side of a patch in pixels. Defaults to 16.
        tubelet_size: frames of a time slot. Defaults to 2.
        mask_ratio: share of hidden patches, in (0, 1). Defaults to 0.9.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self, patch_size: int = 16, tubelet_size: int = 2, mask_ratio: float = 0.9
    ) -> None:
        super().__init__(patch_size, mask_ratio)
        if tubelet_size < 1:
            raise ValueError(f'tubelet_size must be at least 1 frame, got {tubelet_size}')
        self.tubelet_size = tubelet_size

    def grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """The grid (t, h, w) of clips of ``size`` (T, H, W) frames and pixels.

        Raises:
            ValueError: if a side is no multiple of the tubelet or the patch; names both.
        """
        num_frames, *size = size
        if num_frames % self.tubelet_size:
            raise ValueError(
                f'{num_frames} frames are not divisible by tubelets of {self.tubelet_size}'
            )
        return num_frames // self.tubelet_size, *super().grid(size)

    def check(self, mask: Tensor, inputs: Tensor) -> Tensor:
        mask = super().check(mask, inputs)
        token_indices(mask)
        return mask

    def __call__(self, clips: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw a mask for clips.

        Args:
            clips (B, C, T, H, W): only shape and device are read.
            generator: source of randomness; torch's global one if None.

        Returns:
            (B, t, h, w) bool, True = hidden.

        Raises:
            ValueError: if the size does not fit the tubelets, or nothing would be visible or
                hidden at it.
        """
        t, h, w = self.grid(clips.shape[2:])
        num_visible = h * w - int(h * w * self.mask_ratio)
        patterns = self._draw(
            len(clips) * self._patterns(t), h * w, num_visible, clips.device, generator
        )
        return patterns.view(len(clips), -1, h, w).expand(-1, t, -1, -1)

    def _patterns(self, t: int) -> int:
        """How many of ``t`` time slots draw for themselves."""
        return t


@TASK_UTILS.register_module()
class TubeMask(RandomTubeletMask):
    """Hide the same random patches in every time slot of a clip.

    What moves little cannot then be copied from another frame (VideoMAE, arXiv 2203.12602,
    §3.2). Arguments and counts as `RandomTubeletMask`.
    """

    def _patterns(self, t: int) -> int:
        return 1


@torch.compiler.disable
def token_indices(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Where the visible and the hidden tokens of a batch are.

    Args:
        mask (B, ...): bool, True = hidden; N places a sample, in the order of tokens.

    Returns:
        Indices (B * n_visible,) and (B * n_hidden,) into the B * N tokens, ascending.

    Raises:
        ValueError: if samples hide different numbers of tokens, or all of theirs.
    """
    mask = mask.flatten(1)
    num_hidden = mask.sum(1)
    # One look at the device's numbers; everything else stays there.
    least, most = torch.stack([num_hidden.min(), num_hidden.max()]).tolist()
    num_samples, num_tokens = mask.shape
    if least != most or most == num_tokens:
        raise ValueError(
            'every sample must hide the same number of tokens and show some, got between '
            f'{least} and {most} hidden of {num_tokens}'
        )
    order = mask.byte().argsort(dim=1, stable=True)  # visible first
    order = order + num_tokens * torch.arange(num_samples, device=mask.device)[:, None]
    return order[:, : num_tokens - most].flatten(), order[:, num_tokens - most :].flatten()


def pick(tokens: Tensor, indices: Tensor) -> Tensor:
    """Take tokens (B, N, C) at ``indices`` (B * n,) of `token_indices`: (B, n, C)."""
    return tokens.flatten(0, 1).index_select(0, indices).unflatten(0, (len(tokens), -1))


def pick_shared(table: Tensor, indices: Tensor, num_samples: int) -> Tensor:
    """As `pick`, out of a table (1, N, C) that all samples share: (B, n, C)."""
    rows = table[0].index_select(0, indices % table.shape[1])
    return rows.unflatten(0, (num_samples, -1))
