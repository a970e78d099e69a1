"""Open a video file, in this process or in one that may be killed."""

import os
import stat
from typing import Any

from .decord import DecordReader, require_decord
from .faults import UnusableVideoError
from .pyav import PyAVReader, require_pyav

BACKENDS = ('pyav', 'decord')


def chosen_backend(backend: str) -> str:
    """The backend's name; for ``'auto'`` PyAV, or decord where there is no PyAV of 17 or later.

    Raises:
        ValueError: if there is no backend of that name.
        ImportError: if it is not installed.
    """
    if backend not in (*BACKENDS, 'auto'):
        raise ValueError(f"backend must be 'pyav', 'decord' or 'auto', got {backend!r}")
    if backend == 'decord':
        require_decord()
        return backend
    try:
        require_pyav()
        return 'pyav'
    except ImportError:
        if backend == 'pyav':
            raise
    require_decord()
    return 'decord'


def open_video(
    path: str | os.PathLike,
    backend: str = 'pyav',
    num_threads: int = 1,
    part: tuple[int, int] | None = None,
    time_limit: float | None = None,
) -> Any:
    """Open a video file.

    Args:
        path: of the file.
        backend: ``'pyav'`` or ``'decord'``.
        num_threads: decoding threads; 0 lets the backend choose. Defaults to 1.
        part: offset and size in bytes, if the video is a part of the file; with ``'pyav'`` only.
            Defaults to None: all of it.
        time_limit: seconds that opening the file may take, and reading frames each time. The
            video is then read in another process, one for all videos, which is killed if it
            takes longer. If the decoder crashes, that process alone ends. Defaults to None: the
            video is read in this process, without a limit.

    Returns:
        A :class:`~videomac_mm.datasets.readers.base.VideoReader`. In this process it can be
        iterated over, too: (H, W, 3) uint8 RGB each.

    Raises:
        ValueError: if an argument is not one of its allowed values.
        ImportError: if the backend is not installed.
        UnusableVideoError: if the file is no video, has no frames, takes too long or crashes the
            decoder.
        OSError: if the file cannot be read.
    """
    path = os.fspath(path)
    kind = os.stat(path).st_mode
    if not stat.S_ISREG(kind):  # reading a pipe would wait for ever
        raise UnusableVideoError(f'a video must be a file, {path} is another thing')
    if part is not None and backend != 'pyav':
        raise ValueError(f"part of a file can be read with backend='pyav' alone, got {backend!r}")
    if time_limit is not None:
        from .process import RemoteReader

        return RemoteReader(path, backend, num_threads, part, time_limit)
    if backend == 'decord':
        return DecordReader(path, num_threads)
    return PyAVReader(path, num_threads, part)
