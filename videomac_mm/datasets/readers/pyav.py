"""Frames of video files through PyAV."""

import errno
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, wraps
from typing import Any

import numpy as np

from .base import RawFrame, check_numbers
from .faults import TEMPORARY, UnusableVideoError
from .index import IndexStore, scan

PLANAR_FORMATS = {f'yuv{j}{chroma}p' for j in ('', 'j') for chroma in (420, 422, 444)}
# Decoders of which it was seen that what they pass over leaves the other frames as they are.
SKIPPING_CODECS = {'h264', 'mpeg4'}
MIN_VERSION = 17  # before, all colours are taken for BT.601
# Of FFmpeg's errors, those that are about the file as the system sees it, not about its content.
OF_THE_SYSTEM = TEMPORARY - {errno.EAGAIN, errno.EINTR} | {
    *(errno.ENOENT, errno.EACCES, errno.ELOOP, errno.ENOTDIR, errno.EISDIR),
    errno.ENAMETOOLONG,
}
# Of FFmpeg's formats, those that are one file. A list of other files, such as a playlist, may name
# itself, or an address.
FORMATS = (
    *('mov', 'matroska', 'avi', 'mpeg', 'mpegts', 'mpegvideo', 'flv', 'asf', 'ogg', 'mxf', 'rm'),
    *('nut', 'ivf', 'dv', 'wtv', 'swf', 'gxf', 'nsv', 'm4v', 'h264', 'hevc', 'av1', 'obu', 'vc1'),
    *('mjpeg', 'yuv4mpegpipe', 'gif', 'apng', 'jpeg_pipe', 'png_pipe', 'webp_pipe'),
)
OPTIONS = {'format_whitelist': ','.join(FORMATS), 'protocol_whitelist': 'file,subfile'}
INDICES = IndexStore()


def require_pyav() -> None:
    """Raise ImportError unless a PyAV is installed that reads colours right."""
    try:
        import av
    except ImportError as err:
        raise ImportError(
            f"backend='pyav' needs PyAV: pip install 'av>={MIN_VERSION}'; or take backend='decord'"
        ) from err
    if int(av.__version__.split('.')[0]) < MIN_VERSION:
        raise ImportError(
            f"backend='pyav' needs PyAV {MIN_VERSION} or later, found {av.__version__}, which "
            f"gives wrong colours: pip install 'av>={MIN_VERSION}'; or take backend='decord'"
        )


def in_our_terms(method: Callable) -> Callable:
    """Turn FFmpeg's errors into OSError, of the system, or UnusableVideoError, of the data."""

    @wraps(method)
    def checked(self: 'PyAVReader', *args, **kwargs) -> Any:
        import av

        try:
            return method(self, *args, **kwargs)
        except av.FFmpegError as err:
            if err.errno == errno.EIO:  # FFmpeg's word for a file that ends too early, too
                read_through(self.path, self.part)
            elif err.errno in OF_THE_SYSTEM:
                raise OSError(err.errno, err.strerror, self.path) from err
            reason = f'{type(err).__name__}: {err.strerror}'
            raise UnusableVideoError(f'FFmpeg cannot read {self.path}: {reason}') from err

    return checked


class PyAVReader:
    """Frames of a video file by their number in the order of time.

    The file's packets are looked at when it is opened for the first time, without decoding, and
    what was found is kept (:mod:`~videomac_mm.datasets.readers.index`). :meth:`read` decodes
    each run of frames from its key frame to the last one that is wanted, in one pass. The decoder
    passes over frames to which no other one refers (half of the frames of a usual H.264 file);
    this leaves the others as they are. Frames with a rotation flag come upright. Packets that an
    edit list of the file cuts off are no frames.

    An AVI file stores no time of display, so its frames are counted from the start. So are those
    of files whose timestamps repeat.

    It is a :class:`~videomac_mm.datasets.readers.base.VideoReader`.

    Args:
        path: of the file.
        num_threads: decoding threads; 0 lets FFmpeg choose. Defaults to 1.
        part: offset and size in bytes, if the video is a part of the file, as in a tar archive.
            Defaults to None: all of it.

    Raises:
        ImportError: without PyAV, or with one before 17.
        UnusableVideoError: if the file is not a video, or has no frames.
        OSError: if the file cannot be read.
    """

    def __init__(
        self, path: str, num_threads: int = 1, part: tuple[int, int] | None = None
    ) -> None:
        require_pyav()
        self.path = path
        self.num_threads = num_threads
        self.part = part
        self.container: Any = None
        self._start()

    def __del__(self) -> None:
        # A container of PyAV lies in a cycle: its file and its decoder's frames would stay until
        # Python looks for cycles, dozens of videos later.
        if getattr(self, 'container', None) is not None:
            self.container.close()

    @in_our_terms
    def _start(self) -> None:
        key = INDICES.key(self.path, self.part)
        self._open()
        index = INDICES.get(key)
        if index is None:
            index = scan(self.container, self.stream)
            INDICES.add(key, index)
        if not len(index.order):
            raise UnusableVideoError(f'no frames in {self.path}')
        self.index = index
        self.keys = index.keys
        if '4:4:4' in (self.stream.codec_context.profile or ''):
            # H.264: FFmpeg's decoder must have met x264's version, in the first packet, to read
            # later ones right.
            self.keys = self.keys[:1]
        self.skips = not index.counted and self.stream.codec_context.name in SKIPPING_CODECS
        self.fps = float(self.stream.average_rate or 0)
        self.times = None
        if not index.counted:
            pts = index.pts[index.order]
            self.times = (pts - pts[0]) * float(self.stream.time_base)

    def _open(self) -> None:
        import av

        url = self.path
        if self.part is not None:
            url = part_url(self.path, *self.part)
        if self.container is not None:
            self.container.close()
        # A title need not be UTF-8.
        self.container = av.open(url, container_options=OPTIONS, metadata_errors='replace')
        if not self.container.streams.video:
            raise UnusableVideoError(f'no video stream in {self.path}')
        self.stream = self.container.streams.video[0]
        if self.stream.codec_context is None:
            raise UnusableVideoError(f'FFmpeg has no decoder for {self.path}')
        self.stream.codec_context.thread_count = self.num_threads
        self.stream.thread_type = 'SLICE' if self.num_threads == 1 else 'AUTO'

    def __len__(self) -> int:
        return len(self.index.order)

    @cached_property
    def size(self) -> tuple[int, int]:
        (frame,) = self.read_raw([0])
        height, width = frame.planes[0].shape[:2]
        return (width, height) if frame.turns % 2 else (height, width)

    def read(self, indices: Sequence[int], planar: bool = False) -> list:
        from .frames import upright

        return [upright(frame) for frame in self.read_raw(indices, planar)]

    @in_our_terms
    def read_raw(self, indices: Sequence[int], planar: bool = False) -> list[RawFrame]:
        """As :meth:`read`, frames as the decoder gives them."""
        check_numbers(indices, len(self))
        frames: list[RawFrame] = []
        for start, run in itertools.groupby(indices, self._key_of):
            frames += [raw(frame, planar) for frame in self._decode(start, list(run))]
        return frames

    def __iter__(self) -> Iterator[np.ndarray]:
        """All frames in order, each decoded once: (H, W, 3) uint8 RGB.

        Raises:
            UnusableVideoError, OSError: where the file is damaged, after the frames before.
        """
        from .frames import upright

        apart = PyAVReader(self.path, self.num_threads, self.part)  # reads may come in between
        return (upright(raw(frame, planar=False)) for frame in apart._one_pass())

    def _one_pass(self) -> Iterator:
        index, number = self.index, 0
        shown = None if index.counted else set(index.pts[index.order].tolist())
        frames = self._all_frames()
        while True:
            try:
                frame = self._next(frames)
            except UnusableVideoError as err:
                raise UnusableVideoError(f'cannot decode frame {number}: {err}') from err
            if frame is None:
                break
            if shown is None or frame.pts in shown:
                number += 1
                yield frame
        if number < len(self):
            missing = f'frames {number} to {len(self) - 1}'
            raise UnusableVideoError(f'cannot decode {missing} of {self.path}')

    def _all_frames(self) -> Iterator:
        self._open()
        yield from self.container.decode(self.stream)

    @in_our_terms
    def _next(self, frames: Iterator) -> Any:
        return next(frames, None)

    def _key_of(self, number: int) -> int:
        """Where decoding begins for a frame: the last key frame that is not shown after it."""
        index = self.index
        if index.counted:
            return 0
        place = index.order[number]
        keys = self.keys[: np.searchsorted(self.keys, place, side='right')]
        return next((int(k) for k in keys[::-1] if index.pts[k] <= index.pts[place]), 0)

    def _decode(self, start: int, numbers: list[int]) -> list:
        index = self.index
        wanted = numbers if index.counted else index.pts[index.order[numbers]].tolist()
        found = self._pass(self._packets_from(start), wanted, self.skips)
        if len(found) < len(wanted):  # the container was searched in vain
            self._open()
            found = self._pass(self.container.demux(self.stream), wanted, skips=False)
        if len(found) < len(wanted):
            missing = [i for i, key in zip(numbers, wanted) if key not in found]
            raise UnusableVideoError(f'cannot decode frames {missing} of {self.path}')
        return [found[key] for key in wanted]

    def _pass(self, packets: Iterable, wanted: list[int], skips: bool) -> dict:
        """Frames by number, or by the time they are shown at, of one pass over packets."""
        context, index, keys = self.stream.codec_context, self.index, set(wanted)
        num_packets = len(index.pts)
        last = num_packets if index.counted else max(map(index.place_of, wanted))
        found, count = {}, 0

        def keep(frames: list) -> None:
            nonlocal count
            for frame in frames:
                key = count if index.counted else frame.pts
                count += 1
                if key in keys:
                    found[key] = frame

        for packet in packets:
            if not packet.size:
                break
            place = index.place_of(packet.pts)
            if skips:
                passed = place < num_packets and packet.pts not in keys
                context.skip_frame = 'NONREF' if passed else 'DEFAULT'
            keep(packet.decode())
            if len(found) == len(keys):
                return found
            if last <= place < num_packets:
                break
        keep(context.decode(None))  # those that the decoder holds back until their time
        return found

    def _packets_from(self, start: int) -> Iterator:
        """Packets from the one at ``start``, or from a key frame before it; the decoder empty."""
        index = self.index
        self.stream.codec_context.flush_buffers()
        self.container.seek(int(index.pts[start]), stream=self.stream)
        packets = self.container.demux(self.stream)
        first = next(packets)
        if index.counted:
            found = first.dts == index.first_dts
        else:
            found = first.is_keyframe and index.place_of(first.pts) <= start
        if found:
            return itertools.chain([first], packets)
        self._open()
        return self.container.demux(self.stream)


def read_through(path: str, part: tuple[int, int] | None) -> None:
    """Read a file, or a part of one, for the system's own errors."""
    offset, left = part or (0, os.path.getsize(path))
    with open(path, 'rb') as file:
        file.seek(offset)
        while left > 0 and (data := file.read(min(left, 2**20))):
            left -= len(data)


def part_url(path: str, offset: int, size: int) -> str:
    """FFmpeg's name of a part of a local file, which it reads in place.

    Raises:
        UnusableVideoError: if the part is empty.
    """
    if size < 1:
        raise UnusableVideoError(f'a video of {size} bytes at {offset} of {path}')
    # Without "file:" a relative path such as a:b.tar would be one of protocol a.
    return f'subfile,,start,{offset},end,{offset + size},,:file:{path}'


def raw(frame: Any, planar: bool) -> RawFrame:
    """A frame of PyAV; its planes as the codec stores them where ``planar`` and the format is of
    the usual kind (8 bits, YUV), else RGB."""
    turns = round(frame.rotation / 90) % 4  # counter-clockwise
    if not planar or frame.format.name not in PLANAR_FORMATS:
        return RawFrame((frame.to_ndarray(format='rgb24'),), turns)
    planes = tuple(
        np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
        for plane in frame.planes
    )
    return RawFrame(planes, turns, frame.format.name, int(frame.colorspace), int(frame.color_range))


def to_rgb(frame: RawFrame) -> np.ndarray:
    """The picture of planar data, as FFmpeg computes it: (H, W, 3) uint8 RGB, not turned."""
    import av

    height, width = frame.planes[0].shape
    made = av.VideoFrame(width, height, frame.format)
    made.colorspace, made.color_range = frame.colorspace, frame.color_range
    for target, plane in zip(made.planes, frame.planes):
        rows = np.zeros((target.height, target.line_size), np.uint8)
        rows[:, : target.width] = plane
        target.update(rows)
    return made.to_ndarray(format='rgb24')
