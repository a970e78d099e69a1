"""Where the frames of a video file are: its packets, looked at once and never decoded."""

import os
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np

MAX_BYTES = 64 * 2**20  # of all indices that a process keeps


class FrameIndex(NamedTuple):
    """The packets of a video stream. Places are those in the order of decoding.

    Attributes:
        pts: when each packet's frame is shown, (P,) int64, in the time base of the stream.
        keys: places of the key frames, ascending, int64.
        order: places of the frames in the order in which they are shown, (N,) int64. Packets
            that an edit list cuts off are not among them.
        first_dts: of the first packet, or None.
        counted: whether frames can be told by their number only, for the file stores no time of
            display (AVI), or one twice.
        by_time: places in the order of time, (P,) int64, cut off or not.
    """

    pts: np.ndarray
    keys: np.ndarray
    order: np.ndarray
    first_dts: int | None
    counted: bool
    by_time: np.ndarray

    @property
    def num_bytes(self) -> int:
        return self.pts.nbytes + self.keys.nbytes + self.order.nbytes + self.by_time.nbytes

    def place_of(self, pts: int | None) -> int:
        """The place of the packet shown at a time, or the number of packets if there is none."""
        if pts is None or self.counted:
            return len(self.pts)
        rank = int(np.searchsorted(self.pts, pts, sorter=self.by_time))
        if rank == len(self.pts) or self.pts[self.by_time[rank]] != pts:
            return len(self.pts)
        return int(self.by_time[rank])


def scan(container: Any, stream: Any) -> FrameIndex:
    """Look at all packets of a stream.

    Args:
        container: of PyAV, just opened.
        stream: of the container.
    """
    pts, keys, shown, first_dts = [], [], [], None
    for packet in container.demux(stream):
        if not packet.size:
            continue
        if not pts:
            first_dts = packet.dts
        if packet.is_keyframe:
            keys.append(len(pts))
        if not packet.is_discard:
            shown.append(len(pts))
        pts.append(packet.pts)
    avi = 'avi' in container.format.name.split(',')
    counted = avi or None in pts or len(set(pts)) < len(pts)
    times = np.zeros(len(pts), np.int64) if None in pts else np.array(pts, np.int64)
    by_time = np.argsort(times, kind='stable')
    order = np.array(shown, np.int64)
    if not counted:
        order = order[np.argsort(times[order], kind='stable')]
    return FrameIndex(times, np.array(keys, np.int64), order, first_dts, counted, by_time)


class IndexStore:
    """Indices of the files that were opened last, up to so many bytes.

    A file that has changed since in size or time is not found.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.indices: OrderedDict[tuple, FrameIndex] = OrderedDict()

    @staticmethod
    def key(path: str, part: tuple[int, int] | None) -> tuple:
        """What tells a file, or a part of one, from others and from itself in another state."""
        stat = os.stat(path)
        return os.path.abspath(path), part, stat.st_size, stat.st_mtime_ns

    def get(self, key: tuple) -> FrameIndex | None:
        if key in self.indices:
            self.indices.move_to_end(key)
        return self.indices.get(key)

    def add(self, key: tuple, index: FrameIndex) -> None:
        self.indices[key] = index
        self.num_bytes += index.num_bytes
        while self.num_bytes > self.max_bytes and len(self.indices) > 1:
            self.num_bytes -= self.indices.popitem(last=False)[1].num_bytes
