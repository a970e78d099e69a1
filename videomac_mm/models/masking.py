"""Mask generators. The owner of two rules: True = hidden, and how a ratio becomes a count."""

import torch
from torch import Tensor

from videomac_mm.randomness import seed_of
from videomac_mm.registry import TASK_UTILS
from videomac_mm.sparse import VisiblePatches


class StepNoise:
    """Random numbers of one step of a run, the same in any number of processes.

    Every patch of the whole batch, that of all processes, has a number which depends on the
    seed, the step and the place of the patch alone. Each process computes the numbers of its own
    rows, on whatever device it works; no generator's state is read or changed.

    Args:
        seed: of the run.
        step: iteration, from 0.
        rank: of this process; ranks before it have batches of the same size.
        device: where `draw` computes. Defaults to the CPU.

    Source: own; the mixing function is one of Chris Wellons' hash prospector (three rounds of
    xor-shift and multiply, 32 bits), applied twice.
    """

    def __init__(
        self, seed: int, step: int, rank: int = 0, device: torch.device | str = 'cpu'
    ) -> None:
        self.rank = rank
        self.key = torch.empty(2, dtype=torch.int64, device=device)
        self.move_to(seed, step)

    def move_to(self, seed: int, step: int) -> None:
        """Go to another step; in place, so that compiled code sees the same tensor."""
        number = seed_of('mask', seed, step)
        self.key[0].fill_(number & 0xFFFFFFFF)
        self.key[1].fill_(number >> 32)

    def draw(self, num_rows: int, num_columns: int) -> Tensor:
        """Numbers (num_rows, num_columns) int64 in [0, 2**32), of this process's rows."""
        first = self.rank * num_rows * num_columns
        last = first + num_rows * num_columns
        places = torch.arange(first, last, device=self.key.device)
        noise = _mix(_mix(places ^ self.key[0]) ^ self.key[1] ^ (places >> 32))
        return noise.view(num_rows, num_columns)


def _mix(x: Tensor) -> Tensor:
    """Scramble numbers of 32 bits. Factors have 31 bits: products fit into int64."""
    x = x & 0xFFFFFFFF
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        x = (x ^ (x >> shift)) * factor & 0xFFFFFFFF
    return x ^ (x >> 15)


class MaskGenerator:
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

    def check(self, mask: Tensor | VisiblePatches, inputs: Tensor) -> VisiblePatches:
        """Return the geometry of a mask given by a user, or say what is wrong with the mask.

        Args:
            mask: bool on the grid of ``inputs``, or its geometry. It must hide something and
                show something, the same number of patches of every sample.
            inputs: as the generator takes them.

        Raises:
            TypeError, ValueError: naming what was given and what was expected.
        """
        expected = (len(inputs), *self.grid(inputs.shape[2:]))
        given = tuple((mask.mask if isinstance(mask, VisiblePatches) else mask).shape)
        if given != expected:
            raise ValueError(f'mask must have shape {expected}, got {given}')
        patches = VisiblePatches.of(mask.to(inputs.device) if isinstance(mask, Tensor) else mask)
        if patches.num_visible == patches.num_patches:
            raise ValueError('mask hides no patch; at least one must be hidden')
        return patches

    def _draw(
        self,
        num_rows: int,
        num_patches: int,
        num_visible: int,
        device: torch.device,
        generator: torch.Generator | StepNoise | None,
    ) -> Tensor:
        """Rows (num_rows, num_patches) that hide all but ``num_visible`` random patches."""
        if not 0 < num_visible < num_patches:
            raise ValueError(
                f'mask_ratio {self.mask_ratio} leaves {num_visible} of {num_patches} patches '
                f'visible, each of {self.patch_size} pixels; it must leave at least one and '
                'hide at least one'
            )
        if isinstance(generator, StepNoise):
            noise = generator.draw(num_rows, num_patches)
        else:
            place = device if generator is None else generator.device
            noise = torch.rand(num_rows, num_patches, generator=generator, device=place)
        mask = torch.ones_like(noise, dtype=torch.bool)
        return mask.scatter_(1, noise.argsort(1)[:, :num_visible], False).to(device)


@TASK_UTILS.register_module()
class RandomPatchMask(MaskGenerator):
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

    def __call__(
        self, images: Tensor, generator: torch.Generator | StepNoise | None = None
    ) -> VisiblePatches:
        """Draw a mask for images.

        Args:
            images (B, C, H, W): only shape and device are read.
            generator: source of randomness. Defaults to None: torch's global one.

        Returns:
            The geometry of a mask (B, h, w). No number is read from the device.

        Raises:
            ValueError: if the size does not fit the patch, or nothing would be visible or
                hidden at it.
        """
        h, w = self.grid(images.shape[2:])
        num_visible = int(h * w * (1 - self.mask_ratio))
        mask = self._draw(len(images), h * w, num_visible, images.device, generator)
        return VisiblePatches.with_count(mask.view(-1, h, w), num_visible)


@TASK_UTILS.register_module()
class RandomTubeletMask(MaskGenerator):
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

    def __call__(
        self, clips: Tensor, generator: torch.Generator | StepNoise | None = None
    ) -> VisiblePatches:
        """Draw a mask for clips.

        Args:
            clips (B, C, T, H, W): only shape and device are read.
            generator: source of randomness. Defaults to None: torch's global one.

        Returns:
            The geometry of a mask (B, t, h, w). No number is read from the device.

        Raises:
            ValueError: if the size does not fit the tubelets, or nothing would be visible or
                hidden at it.
        """
        t, h, w = self.grid(clips.shape[2:])
        num_visible = h * w - int(h * w * self.mask_ratio)
        patterns = self._draw(
            len(clips) * self._patterns(t), h * w, num_visible, clips.device, generator
        )
        mask = patterns.view(len(clips), -1, h, w).expand(-1, t, -1, -1)
        return VisiblePatches.with_count(mask, t * num_visible).with_even_frames()

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


def pick(tokens: Tensor, places: Tensor) -> Tensor:
    """Take tokens (B, N, C) at ``places`` (B * n,), `VisiblePatches.visible` or ``hidden``.

    Returns:
        (B, n, C)
    """
    return tokens.flatten(0, 1).index_select(0, places).unflatten(0, (len(tokens), -1))


def pick_shared(table: Tensor, places: Tensor, num_samples: int) -> Tensor:
    """As `pick`, from a table (1, N, C) that all samples share: (B, n, C)."""
    rows = table[0].index_select(0, places % table.shape[1])
    return rows.unflatten(0, (num_samples, -1))


def hidden_places(pred: Tensor, mask: Tensor | VisiblePatches) -> Tensor:
    """Which of the predictions (B, L, P) are of hidden patches: (B, L) bool.

    Raises:
        TypeError, ValueError: if the mask is not one of B samples of L patches.
    """
    patches = VisiblePatches.of(mask)
    if tuple(pred.shape[:2]) != (patches.batch_size, patches.num_patches):
        raise ValueError(
            f'predictions of shape {tuple(pred.shape)} do not fit a mask of shape '
            f'{tuple(patches.mask.shape)}'
        )
    return patches.mask.flatten(1)
