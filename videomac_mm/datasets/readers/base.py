"""What every reader of video files gives."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np


class VideoReader(Protocol):
    """An open video file.

    Attributes:
        path: of the file.
        fps: average frames per second; 0 where the file does not say.
        times: when each frame is shown, (N,) float64, seconds from the first frame on; None
            where the file does not say.
        size: (H, W) of the first frame, upright, in pixels.
    """

    path: str
    fps: float
    times: np.ndarray | None

    @property
    def size(self) -> tuple[int, int]: ...

    def __len__(self) -> int:
        """Number of frames."""

    def read(self, indices: Sequence[int], planar: bool = False) -> list[Any]:
        """Frames at ascending numbers without repetitions, upright.

        Args:
            indices: from 0 on.
            planar: give a `PlanarFrame` where the format of the file allows.

        Returns:
            (H, W, 3) uint8 RGB each, or `PlanarFrame`.

        Raises:
            IndexError: if a number lies outside the video.
            UnusableVideoError: if a frame cannot be decoded.
            OSError: if the file cannot be read.
        """


class RawFrame(NamedTuple):
    """A frame as a decoder gives it, not yet turned upright.

    Attributes:
        planes: (H, W, 3) uint8 RGB; or luma (H, W) and two of chroma, uint8.
        turns: quarter turns, counter-clockwise, that make it upright.
        format: FFmpeg's name of the pixel format.
        colorspace: of planes that are not RGB, as FFmpeg numbers them.
        color_range: of the same.
    """

    planes: tuple[np.ndarray, ...]
    turns: int = 0
    format: str = 'rgb24'
    colorspace: int = 2
    color_range: int = 0


def check_numbers(indices: Sequence[int], num_frames: int) -> None:
    """Raise IndexError if one of ascending numbers lies outside the video."""
    if len(indices) and not 0 <= indices[0] <= indices[-1] < num_frames:
        raise IndexError(f'frames {list(indices)} of a video of {num_frames}')
