"""Frames of video files through decord."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from .base import RawFrame, check_numbers
from .faults import UnusableVideoError


def require_decord() -> None:
    """Raise ImportError unless decord is installed."""
    try:
        import decord  # noqa: F401
    except ImportError as err:
        raise ImportError(
            "backend='decord' needs decord (pip install decord), which has no wheel for some "
            "platforms; or take backend='pyav'"
        ) from err


class DecordReader:
    """Frames of a video file by their number, as decord gives them.

    Where decord 0.6 errs, `PyAVReader` is right. decord counts packets that an edit list cuts off
    and repeats other frames for them. Near the end of an AVI file it may give the frame before the
    one asked for. In H.264 4:4:4 it gives noise from the second key frame on.

    It is a :class:`~videomac_mm.datasets.readers.base.VideoReader`.

    Args:
        path: of the file.
        num_threads: decoding threads; 0 lets decord choose. Defaults to 1.

    Raises:
        ImportError: without decord.
        UnusableVideoError: if the file is not a video, or has no frames.
        OSError: if the file cannot be read.
    """

    def __init__(self, path: str, num_threads: int = 1) -> None:
        require_decord()
        import decord

        self.path = path
        self._reader = self._try(lambda: decord.VideoReader(path, num_threads=num_threads))
        if not len(self):
            raise UnusableVideoError(f'no frames in {path}')
        self.fps = float(self._reader.get_avg_fps())
        times = self._reader.get_frame_timestamp(np.arange(len(self)))[:, 0].astype(np.float64)
        # Unset timestamps read as -1e17.
        sensible = np.isfinite(times).all() and times.min() > -1e9
        self.times = times - times[0] if sensible else None

    def __len__(self) -> int:
        return len(self._reader)

    @cached_property
    def size(self) -> tuple[int, int]:
        return self.read_raw([0])[0].planes[0].shape[:2]

    def read(self, indices: Sequence[int], planar: bool = False) -> list[np.ndarray]:
        return [frame.planes[0] for frame in self.read_raw(indices)]

    def read_raw(self, indices: Sequence[int], planar: bool = False) -> list[RawFrame]:
        check_numbers(indices, len(self))
        if not len(indices):
            return []
        batch = self._try(lambda: self._reader.get_batch(list(indices)).asnumpy())
        return [RawFrame((frame,)) for frame in batch]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.read([number])[0] for number in range(len(self)))

    def _try(self, action: Callable[[], Any]) -> Any:
        """What decord gives; its errors, which are of many types, in our terms."""
        try:
            return action()
        except Exception as err:
            # decord does not say what the system said: ask again.
            with open(self.path, 'rb') as file:
                file.read(1)
            reason = f'{type(err).__name__}: {str(err).partition(chr(10))[0]}'
            raise UnusableVideoError(f'decord cannot read {self.path}: {reason}') from err
