"""Frames that are kept in memory, so that a video need not be decoded again."""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from videomac_mm.datasets.readers import RawFrame
from videomac_mm.datasets.readers.frames import upright
from videomac_mm.datasets.readers.pyav import to_rgb


class ResidentFrame(NamedTuple):
    """Stands for a frame that lies on the device."""

    number: int
    shape: tuple[int, int]

    def copy(self) -> 'ResidentFrame':
        return self  # nothing writes into it


class KeptFrames:
    """A video whose frames are all in memory.

    It is a :class:`~videomac_mm.datasets.readers.VideoReader`.

    Args:
        path: of the video.
        frames: all of them, as a decoder gave them; or `ResidentFrame`.
        fps: average frames per second.
        times: when each is shown, (N,) seconds, or None.
        size: (H, W) of the first frame, in pixels.
    """

    def __init__(
        self,
        path: str,
        frames: list[RawFrame] | list[ResidentFrame],
        fps: float,
        times: np.ndarray | None,
        size: tuple[int, int],
    ) -> None:
        self.path = path
        self.frames = frames
        self.fps = fps
        self.times = times
        self.size = size

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, indices: Sequence[int], planar: bool = False) -> list:
        return [self._picture(self.frames[i], planar) for i in indices]

    @staticmethod
    def _picture(frame: RawFrame | ResidentFrame, planar: bool) -> Any:
        if isinstance(frame, ResidentFrame):
            return frame
        if len(frame.planes) > 1:
            return upright(frame if planar else RawFrame((to_rgb(frame),), frame.turns))
        # a copy, for transforms may work in place
        return upright(frame).copy()


class BoundedStore:
    """What came first, until so many bytes are reached; nothing makes room for later things.

    Under random access to more than fits, whatever is dropped to make room would be wanted as
    soon as what takes its place. Copies, pickled ones too, begin empty: each process keeps its
    own.

    Args:
        max_bytes: at least 0.

    Raises:
        ValueError: if ``max_bytes`` is no whole number of at least 0.
    """

    def __init__(self, max_bytes: int) -> None:
        if not isinstance(max_bytes, int) or max_bytes < 0:
            raise ValueError(f'cache_bytes must be a whole number of at least 0, got {max_bytes!r}')
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.items: dict = {}

    def __reduce__(self) -> tuple:
        return BoundedStore, (self.max_bytes,)

    def get(self, key: Hashable) -> Any:
        return self.items.get(key)

    def fits(self, num_bytes: int) -> bool:
        return self.num_bytes + num_bytes <= self.max_bytes

    def add(self, key: Hashable, item: Any, num_bytes: int) -> None:
        if key not in self.items and self.fits(num_bytes):
            self.items[key] = item
            self.num_bytes += num_bytes
