"""The other end of `DecoderProcess`. It runs as a script, which imports this folder alone.

Arguments: the numbers of the connection and of the shared memory, and the parent's process id.
"""

import ctypes
import importlib
import mmap
import os
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

MAX_OPEN = 2  # videos


class Decoder:
    """Answers wishes about videos, and keeps those that were asked for last open."""

    def __init__(self, package: str, memory: int) -> None:
        self.opening = importlib.import_module(f'{package}.opening')
        self.faults = importlib.import_module(f'{package}.faults')
        self.memory = memory
        self.map: mmap.mmap | None = None
        self.readers: dict[tuple, Any] = {}

    def open(self, video: tuple, start: int) -> tuple:
        self.readers.pop(video, None)  # the file may be another one by now
        reader = self._reader(video)
        return 'value', (len(reader), reader.fps, reader.times)

    def size(self, video: tuple, start: int) -> tuple:
        return 'value', self._reader(video).size

    def read(self, video: tuple, start: int, indices: list[int], planar: bool) -> tuple:
        """Frames, written to the shared memory from ``start`` on."""
        reader = self._reader(video)
        if indices and indices[-1] >= len(reader):  # it had so many frames when it was opened
            raise self.faults.UnusableVideoError(f'{video[0]} is another file than it was')
        frames = reader.read_raw(indices, planar)
        length = sum(plane.size for frame in frames for plane in frame.planes)
        length = -(-length // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        self._grow(start + length)
        offset, described = 0, []
        for planes, *rest in frames:
            places = []
            for plane in planes:
                self._write(start + offset, plane)
                places.append((offset, plane.shape))
                offset += plane.size
            described.append((places, *rest))
        return 'frames', (start, length, described)

    def _reader(self, video: tuple) -> Any:
        if video not in self.readers:
            while len(self.readers) >= MAX_OPEN:
                del self.readers[next(iter(self.readers))]
            path, backend, num_threads, part = video
            self.readers[video] = self.opening.open_video(path, backend, num_threads, part)
        return self.readers[video]

    def _grow(self, size: int) -> None:
        if self.map is None or len(self.map) < size:
            if os.fstat(self.memory).st_size < size:
                os.ftruncate(self.memory, size)
            self.map = mmap.mmap(self.memory, size)

    def _write(self, offset: int, plane: Any) -> None:
        import numpy as np

        target = np.frombuffer(self.map, np.uint8, plane.size, offset)
        target.reshape(plane.shape)[...] = plane


def end_with(parent: int) -> None:
    """Let the system end this process when its parent ends, however that comes about."""
    if sys.platform == 'linux':
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit()


def main() -> None:
    connection, memory, parent = (int(argument) for argument in sys.argv[1:])
    end_with(parent)
    connection = Connection(connection)
    # Not through videomac_mm: that would import torch and OpenMMLab.
    folder = Path(__file__).resolve().parent
    sys.path[0] = str(folder.parent)
    decoder = Decoder(folder.name, memory)
    faults = decoder.faults
    while True:
        try:
            wish, video, args, start = connection.recv()
        except EOFError:
            return
        try:
            answer = getattr(decoder, wish)(video, start, *args)
        except faults.UnusableVideoError as err:
            answer = 'unusable', str(err)
        except MemoryError:
            answer = 'unusable', f'the frames of {video[0]} do not fit into memory'
        except OSError as err:
            answer = 'system', (err.errno, err.strerror, err.filename)
        except Exception:
            answer = 'mistake', traceback.format_exc()
        connection.send(answer)


if __name__ == '__main__':
    main()
