"""Frames of video files through PyAV, beside decord; and what keeps decoded frames."""

import itertools
from bisect import bisect_right
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

# Red's and blue's share of luma by AVFrame.colorspace; swscale takes BT.601 for the rest.
LUMA_SHARES = {1: (0.2126, 0.0722), 7: (0.212, 0.087), 9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
PLANAR_FORMATS = {f'yuv{j}{chroma}p' for j in ('', 'j') for chroma in (420, 422, 444)}
# Decoders of which it was seen that what they pass over leaves the other frames as they are.
SKIPPING_CODECS = {'h264', 'mpeg4'}
FULL_RANGE = 2  # of AVFrame.color_range


class UnusableVideoError(Exception):
    """The data of one video, not the program, is at fault.

    :class:`UnlabelledVideoDataset` answers it with another video.
    """


class PlanarFrame:
    """A decoded frame as the codec stores it: luma and two planes of chroma, no colours yet.

    A crop is scaled plane by plane and only then turned into RGB, so that its cost is that of
    the output's size, not of the video's. Up to rounding that equals scaling the RGB picture,
    except that chroma is interpolated once, and that a crop at an odd pixel takes the whole
    chroma sample there (an error of up to half a sample at that border, in colour alone).

    Args:
        frame: of PyAV, in one of ``PLANAR_FORMATS``.
        quarter_turns: to turn it by, counter-clockwise.
    """

    def __init__(self, frame: Any, quarter_turns: int = 0) -> None:
        planes = [
            np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
            for plane in frame.planes
        ]
        self.planes = [np.rot90(plane, quarter_turns) for plane in planes]
        self.shape = self.planes[0].shape
        full = frame.color_range == FULL_RANGE or frame.format.name.startswith('yuvj')
        self.to_rgb = rgb_matrix(int(frame.colorspace), full)

    def copy(self) -> 'PlanarFrame':
        return self  # nothing writes into it

    def crop_resize(
        self, box: Sequence[int], size: tuple[int, int], interpolation: int
    ) -> np.ndarray:
        """A part of the frame in another size: (H, W, 3) uint8 RGB.

        Args:
            box: left, top, right, bottom in pixels, the latter two outside.
            size: (W, H) in pixels.
            interpolation: of OpenCV.
        """
        height, width = self.shape
        scaled = []
        for plane in self.planes:
            step_x, step_y = round(width / plane.shape[1]), round(height / plane.shape[0])
            left, top = box[0] // step_x, box[1] // step_y
            right, bottom = -(-box[2] // step_x), -(-box[3] // step_y)
            part = plane[top:bottom, left:right]
            if part.strides[1] != 1:  # turned
                part = np.ascontiguousarray(part)
            scaled.append(cv2.resize(part, size, interpolation=interpolation))
        return cv2.transform(cv2.merge(scaled), self.to_rgb)


def rgb_matrix(colorspace: int, full_range: bool) -> np.ndarray:
    """From 8-bit Y, Cb, Cr to RGB: (3, 4), the last column a constant (ITU-T H.273)."""
    red, blue = LUMA_SHARES.get(colorspace, (0.299, 0.114))
    green = 1 - red - blue
    luma, chroma = (1, 1) if full_range else (255 / 219, 255 / 224)
    matrix = np.array(
        [
            [luma, 0, 2 * (1 - red)],
            [luma, -2 * (1 - blue) * blue / green, -2 * (1 - red) * red / green],
            [luma, 2 * (1 - blue), 0],
        ]
    )
    matrix[:, 1:] *= chroma
    constant = matrix @ -np.array([0 if full_range else 16, 128, 128])
    return np.column_stack([matrix, constant])


class PyAVReader:
    """Frames of a video file by their number in the order of time, through PyAV.

    All packets of the file are looked at on opening, none is decoded. :meth:`read` then decodes
    each run of frames from its key frame to the last one that is wanted, in one pass, and lets
    the decoder pass over those that no other one refers to (half of the frames of a usual H.264
    file), which leaves the others as they are. Frames with a rotation flag come upright. Packets
    that an edit list of the file cuts off are no frames.

    An AVI file stores no time of display, so its frames are counted from the start; so are those
    of files whose timestamps repeat.

    Args:
        path: of the file.
        num_threads: decoding threads; 0 lets FFmpeg choose. Defaults to 1.

    Raises:
        ImportError: without PyAV.
        UnusableVideoError: if the file holds no video stream, or one without frames.
        av.FFmpegError: if the file is not a video.
    """

    def __init__(self, path: str, num_threads: int = 1) -> None:
        self.path = path
        self.num_threads = num_threads
        self._open()
        packets = [packet for packet in self.container.demux(self.stream) if packet.size]
        shown = [i for i, packet in enumerate(packets) if not packet.is_discard]
        if not shown:
            raise UnusableVideoError(f'no frames in {path}')
        # What follows is in the order of decoding, except for `order`: where the packet of each
        # frame stands.
        self.pts = [packet.pts for packet in packets]
        self.first_dts = packets[0].dts
        self.keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
        if '4:4:4' in (self.stream.codec_context.profile or ''):
            # H.264: FFmpeg's decoder must have met x264's version, in the first packet, to read
            # later ones right.
            self.keys = self.keys[:1]
        self.counted = 'avi' in self.container.format.name.split(',') or (
            None in self.pts or len(set(self.pts)) < len(self.pts)
        )
        self.order = shown if self.counted else sorted(shown, key=self.pts.__getitem__)
        self.places = {pts: i for i, pts in enumerate(self.pts)}
        self.skips = not self.counted and self.stream.codec_context.name in SKIPPING_CODECS

    def _open(self) -> None:
        try:
            import av  # an extra
        except ImportError as err:
            raise ImportError(
                "backend='pyav' needs PyAV: pip install 'videomac_mm[av]'; or backend='decord'"
            ) from err
        self.container = av.open(self.path)
        if not self.container.streams.video:
            raise UnusableVideoError(f'no video stream in {self.path}')
        self.stream = self.container.streams.video[0]
        self.stream.codec_context.thread_count = self.num_threads
        self.stream.thread_type = 'SLICE' if self.num_threads == 1 else 'AUTO'

    def __len__(self) -> int:
        return len(self.order)

    def get_avg_fps(self) -> float:
        return float(self.stream.average_rate or 0)

    def get_frame_timestamp(self, indices: Sequence[int]) -> np.ndarray:
        """When frames begin and end to be shown: (n, 2) float64, seconds from the first frame's
        beginning; NaN where the file does not say."""
        if self.counted:
            return np.full((len(indices), 2), np.nan)
        pts = np.array([self.pts[i] for i in self.order]) - self.pts[self.order[0]]
        times = np.append(pts * float(self.stream.time_base), np.nan)
        times[-1] = times[-2] + 1 / (self.get_avg_fps() or np.nan)
        return np.stack([times[:-1], times[1:]], 1)[np.asarray(indices)]

    def read(self, indices: Sequence[int], planar: bool = False) -> list:
        """Frames at ascending numbers without repetitions.

        Args:
            indices: from 0 on.
            planar: give a :class:`PlanarFrame` where the format of the file allows.

        Returns:
            (H, W, 3) uint8 RGB each, or :class:`PlanarFrame`.

        Raises:
            IndexError: if a number lies outside the video.
            UnusableVideoError, av.FFmpegError: if the stream is damaged on the way.
        """
        return [picture(frame, planar) for frame in self.read_raw(indices)]

    def read_raw(self, indices: Sequence[int]) -> list:
        """As :meth:`read`, frames of PyAV."""
        if len(indices) and not 0 <= indices[0] <= indices[-1] < len(self):
            raise IndexError(f'frames {indices} of a video of {len(self)}')
        frames: list = []
        for start, run in itertools.groupby(indices, self._key_of):
            frames += self._decode(start, list(run))
        return frames

    def _key_of(self, index: int) -> int:
        """Where decoding begins for a frame: the last key frame that is not shown after it."""
        if self.counted:
            return 0
        place = self.order[index]
        keys = self.keys[: bisect_right(self.keys, place)]
        return next((k for k in reversed(keys) if self.pts[k] <= self.pts[place]), 0)

    def _decode(self, start: int, indices: list[int]) -> list:
        wanted = indices if self.counted else [self.pts[self.order[i]] for i in indices]
        found = self._pass(self._packets_from(start), wanted, self.skips)
        if len(found) < len(wanted):  # the container was searched in vain
            self._open()
            found = self._pass(self.container.demux(self.stream), wanted, skips=False)
        if len(found) < len(wanted):
            missing = [i for i, key in zip(indices, wanted) if key not in found]
            raise UnusableVideoError(f'cannot decode frames {missing} of {self.path}')
        return [found[key] for key in wanted]

    def _pass(self, packets: Iterable, wanted: list[int], skips: bool) -> dict:
        """Frames by number, or by the time they are shown at, of one pass over packets."""
        context, keys = self.stream.codec_context, set(wanted)
        last = len(self.pts) if self.counted else max(self.places[pts] for pts in wanted)
        found, count = {}, 0

        def keep(frames: list) -> None:
            nonlocal count
            for frame in frames:
                key = count if self.counted else frame.pts
                count += 1
                if key in keys:
                    found[key] = frame

        for packet in packets:
            if not packet.size:
                break
            if skips:
                passed = packet.pts in self.places and packet.pts not in keys
                context.skip_frame = 'NONREF' if passed else 'DEFAULT'
            keep(packet.decode())
            if len(found) == len(keys):
                return found
            if not self.counted and self.places.get(packet.pts, 0) >= last:
                break
        keep(context.decode(None))  # those that the decoder holds back until their time
        return found

    def _packets_from(self, start: int) -> Iterator:
        """Packets from the one at ``start``, or from a key frame before it; the decoder empty."""
        self.stream.codec_context.flush_buffers()
        self.container.seek(self.pts[start] or 0, stream=self.stream)
        packets = self.container.demux(self.stream)
        first = next(packets)
        if self.counted:
            found = first.dts == self.first_dts
        else:
            found = first.is_keyframe and self.places.get(first.pts, len(self.pts)) <= start
        if found:
            return itertools.chain([first], packets)
        self._open()
        return self.container.demux(self.stream)


def picture(frame: Any, planar: bool) -> Any:
    """A frame of PyAV, upright: (H, W, 3) uint8 RGB, or :class:`PlanarFrame`."""
    turns = round(frame.rotation / 90) % 4  # counter-clockwise
    if planar and frame.format.name in PLANAR_FORMATS:
        return PlanarFrame(frame, turns)
    img = frame.to_ndarray(format='rgb24')
    return np.ascontiguousarray(np.rot90(img, turns)) if turns else img


def frame_bytes(reader: Any) -> int:
    """Memory that a decoded frame of a reader takes, as the reader's library holds it."""
    if hasattr(reader, 'get_batch'):  # of decord
        return reader.get_batch([0]).asnumpy().nbytes
    return sum(plane.buffer_size for plane in reader.read_raw([0])[0].planes)


class ResidentFrame(NamedTuple):
    """Stands for a frame that lies on the device."""

    number: int
    shape: tuple[int, int]

    def copy(self) -> 'ResidentFrame':
        return self  # nothing writes into it


class KeptFrames:
    """A video whose frames are all in memory; reads as :class:`PyAVReader` does."""

    def __init__(self, frames: list, avg_fps: float, times: np.ndarray) -> None:
        self.frames = frames
        self.avg_fps = avg_fps
        self.times = times

    def __len__(self) -> int:
        return len(self.frames)

    def get_avg_fps(self) -> float:
        return self.avg_fps

    def get_frame_timestamp(self, indices: Sequence[int]) -> np.ndarray:
        return self.times[np.asarray(indices)]

    def read(self, indices: Sequence[int], planar: bool = False) -> list:
        frames = [self.frames[i] for i in indices]
        if isinstance(frames[0], ResidentFrame):
            return frames
        # a copy of what is an array already: transforms may work in place
        return [f.copy() if isinstance(f, np.ndarray) else picture(f, planar) for f in frames]


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
