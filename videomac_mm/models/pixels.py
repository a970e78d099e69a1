"""Pixels of clips: out of normalised ones, and in cubes."""

from collections.abc import Sequence

from torch import Tensor, nn


def to_pixels(images: Tensor, data_preprocessor: nn.Module) -> Tensor:
    """Undo the normalisation of images or clips.

    Args:
        images (B, C, ..., H, W): as ``data_preprocessor`` gave them.
        data_preprocessor: ``mmaction.ActionDataPreprocessor``; without mean and std it only
            made them float.

    Returns:
        The same in [0, 1], where the pixels are in [0, 255].
    """
    if data_preprocessor._enable_normalize:
        shape = (-1, *(1,) * (images.ndim - 2))
        mean, std = (getattr(data_preprocessor, name).view(shape) for name in ('mean', 'std'))
        images = images * std + mean
    return images / 255


def to_cubes(clips: Tensor, size: Sequence[int]) -> Tensor:
    """Cut clips (B, C, T, H, W) into cubes of ``size``: a view (B, t, h, w, C, *size)."""
    for dim, side in zip((4, 3, 2), reversed(size)):
        clips = clips.unflatten(dim, (-1, side))  # at last (B, C, t, p, h, p, w, p)
    return clips.permute(0, 2, 4, 6, 1, 3, 5, 7)
