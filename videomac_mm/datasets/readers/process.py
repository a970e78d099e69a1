"""A process that decodes for this one: it may hang or crash, and is replaced.

Frames come back through shared memory without being copied again.
"""

import atexit
import contextlib
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import numpy as np

from .base import RawFrame, check_numbers
from .faults import UnusableVideoError
from .frames import upright


class RemoteReader:
    """A video that another process reads; see `open_video`.

    It is a :class:`~videomac_mm.datasets.readers.base.VideoReader`.
    """

    def __init__(
        self,
        path: str,
        backend: str,
        num_threads: int,
        part: tuple[int, int] | None,
        time_limit: float,
    ) -> None:
        self.path = path
        self.time_limit = time_limit
        self._video = path, backend, num_threads, part
        self._length, self.fps, self.times = self._ask('open')

    def __len__(self) -> int:
        return self._length

    @property
    def size(self) -> tuple[int, int]:
        return self._ask('size')

    def read(self, indices: Sequence[int], planar: bool = False) -> list:
        return [upright(frame) for frame in self.read_raw(indices, planar)]

    def read_raw(self, indices: Sequence[int], planar: bool = False) -> list[RawFrame]:
        check_numbers(indices, len(self))
        if not len(indices):
            return []
        return self._ask('read', [int(i) for i in indices], planar)

    def _ask(self, wish: str, *args) -> Any:
        return DecoderProcess.of_this_process().ask(self.time_limit, wish, self._video, *args)


class DecoderProcess:
    """A process that opens and reads videos, started when it is needed.

    It runs the file ``decoder.py`` alone, which takes a fifth of a second: this process is not
    copied, whatever it holds.
    """

    _current: 'DecoderProcess | None' = None

    @classmethod
    def of_this_process(cls) -> 'DecoderProcess':
        """The one decoder process; that of a parent from which this process was forked is left."""
        if cls._current is None or cls._current._owner != os.getpid():
            cls._current = cls()
            atexit.register(cls._current.stop)
        return cls._current

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._process: subprocess.Popen | None = None
        self._connection: Connection | None = None
        self._memory = -1
        self._in_use: list[tuple[weakref.ref, int]] = []

    def _start(self) -> None:
        self._memory = shared_memory()
        self._in_use = []
        self._connection, theirs = Pipe()
        command = [sys.executable, str(Path(__file__).with_name('decoder.py'))]
        self._process = subprocess.Popen(
            [*command, str(theirs.fileno()), str(self._memory), str(os.getpid())],
            pass_fds=(theirs.fileno(), self._memory),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for this process
        )
        theirs.close()

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._process is None or self._owner != os.getpid():
            return
        self._connection.close()
        self._process.kill()
        self._process.wait()
        os.close(self._memory)
        self._process = None

    def ask(self, time_limit: float, wish: str, video: tuple, *args) -> Any:
        """The answer to a wish.

        Raises:
            UnusableVideoError: if it takes longer than ``time_limit`` seconds, or the process
                ends; a new one starts with the next wish.
        """
        if self._process is not None and self._process.poll() is not None:
            self.stop()
        if self._process is None:
            self._start()
        path = video[0]
        try:
            self._connection.send((wish, video, args, self._free_from()))
            if not self._connection.poll(time_limit):
                raise UnusableVideoError(
                    f'{path} took longer than time_limit={time_limit} s to {wish}: the decoder '
                    'was ended'
                )
            kind, answer = self._connection.recv()
        except (EOFError, ConnectionError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            status = self._process.returncode
            self.stop()
            raise UnusableVideoError(
                f'the decoder ended with {_name_of(status)} when it was to {wish} {path}'
            ) from None
        except BaseException:  # an answer that comes late must not be taken for another one
            self.stop()
            raise
        if kind == 'unusable':
            raise UnusableVideoError(answer)
        if kind == 'system':
            raise OSError(*answer)
        if kind == 'mistake':
            raise RuntimeError(f'the decoder failed at {path}:\n{answer}')
        return self._frames(answer) if kind == 'frames' else answer

    def _free_from(self) -> int:
        """Where in the shared memory no frames lie that somebody still has."""
        self._in_use = [(memory, end) for memory, end in self._in_use if memory() is not None]
        return max((end for _, end in self._in_use), default=0)

    def _frames(self, answer: tuple) -> list[RawFrame]:
        start, length, frames = answer
        memory = mmap.mmap(self._memory, length, offset=start)
        self._in_use.append((weakref.ref(memory), start + length))
        result = []
        for planes, *rest in frames:
            arrays = (
                np.frombuffer(memory, np.uint8, int(np.prod(shape)), offset).reshape(shape)
                for offset, shape in planes
            )
            result.append(RawFrame(tuple(arrays), *rest))
        return result


def shared_memory() -> int:
    """A file without a name, to be shared with another process: its number, to be closed."""
    if hasattr(os, 'memfd_create'):
        return os.memfd_create('videomac_mm frames')
    with tempfile.TemporaryFile() as file:  # macOS
        return os.dup(file.fileno())


def _name_of(status: int | None) -> str:
    if status is not None and status < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-status).name
    return f'status {status}'
