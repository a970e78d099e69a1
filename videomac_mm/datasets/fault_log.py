"""What of a data set could not be read, and why: one account for all workers of a data loader."""

import json
import os
import tempfile
import weakref
from typing import NamedTuple

import torch


class Fault(NamedTuple):
    """A reading that gave no item.

    Attributes:
        index: of the video.
        kind: ``'data'`` or ``'moment'`` (:func:`~videomac_mm.datasets.readers.fault_of`).
        path: of the video.
        reason: kind of the error and its message.
    """

    index: int
    kind: str
    path: str
    reason: str


class FaultLog:
    """Which videos are unusable, and how many readings were given up for a fault of the moment.

    Numbers lie in memory that processes share, whether forked or spawned. The faults themselves
    are lines of a temporary file, to which every process adds.

    Args:
        size: number of videos.
    """

    def __init__(self, size: int) -> None:
        self.bad = torch.zeros(size, dtype=torch.bool).share_memory_()
        self.missed = torch.zeros(1, dtype=torch.long).share_memory_()
        handle, self.file = tempfile.mkstemp(prefix='videomac_mm_faults_', suffix='.jsonl')
        os.close(handle)
        weakref.finalize(self, _remove, self.file, os.getpid())
        self._read_to = 0

    def add(self, fault: Fault) -> bool:
        """Count a fault; say whether it is new: of data, it counts once a video."""
        if fault.kind == 'moment':
            self.missed += 1
        elif self.bad[fault.index]:
            return False
        else:
            self.bad[fault.index] = True
        # One write a line: lines of several processes do not mix.
        handle = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, (json.dumps(fault) + '\n').encode())
        finally:
            os.close(handle)
        return True

    def news(self) -> list[Fault]:
        """Faults since the last call, of all processes that share this log."""
        with open(self.file, 'rb') as file:
            file.seek(self._read_to)
            text = file.read()
        whole = text[: text.rfind(b'\n') + 1]
        self._read_to += len(whole)
        return [Fault(*json.loads(line)) for line in whole.splitlines()]


def _remove(file: str, owner: int) -> None:
    if os.getpid() == owner and os.path.exists(file):
        os.remove(file)
