"""Labels drawn on the frames of a video, as files that grow frame by frame.

Frames are (H, W, 3) uint8 RGB throughout.
"""

import contextlib
import functools
import io
import math
import os
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from videomac_mm.evaluation.functional import davis_palette

PALETTE = davis_palette()
_BT709, _LIMITED_RANGE = 1, 1  # as FFmpeg numbers them
# Encoders, the best one first, with the options for about the same quality: each has its own.
_ENCODERS = {
    'libx264': {'crf': '18'},
    'libopenh264': {'qmin': '12', 'qmax': '24'},
    'mpeg4': {'qmin': '2', 'qmax': '3'},
}


def draw_mask(
    frame: np.ndarray, mask: np.ndarray, alpha: float = 0.5, contour: bool = True
) -> np.ndarray:
    """Tint everything but the background in the colours of DAVIS.

    Args:
        frame (H, W, 3): the picture, left as it is.
        mask: (h, w) uint8 ids, 0 = background, brought to the size of the frame.
        alpha: share of the colour, in [0, 1]. Defaults to 0.5.
        contour: whether pixels of an object that touch anything else get the full colour.
            Defaults to True.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = frame.shape[:2]
    if mask.shape != (height, width):
        mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
    colours = PALETTE[mask]
    tinted = cv2.addWeighted(frame, 1 - alpha, colours, alpha, 0)
    if contour:
        cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
        border = cv2.dilate(mask, cross) != cv2.erode(mask, cross)
        tinted[border] = colours[border]
    return np.where(mask[..., None] > 0, tinted, frame)


def draw_keypoints(frame: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Draw a dot in a colour of its own for each key-point.

    Args:
        frame (H, W, 3): the picture, left as it is.
        points (2, K): x and y in pixels; those that are NaN are left out.

    Returns:
        (H, W, 3) uint8.
    """
    out = frame.copy()
    radius = max(2, round(min(frame.shape[:2]) / 80))
    for colour, point in zip(PALETTE[1:].tolist(), points.T):
        if np.isfinite(point).all():
            centre = tuple(np.rint(point).astype(int).tolist())
            cv2.circle(out, centre, radius + 1, (0, 0, 0), cv2.FILLED)
            cv2.circle(out, centre, radius, colour, cv2.FILLED)
    return out


def keypoints_in_pixels(
    points: np.ndarray, grid: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """Predicted key-points as they are drawn.

    Args:
        points (2, K): x and y in cells, -1 = lost.
        grid: (h, w) in cells.
        size: (H, W) of the frame.

    Returns:
        (2, K) float32, x and y in pixels, NaN = lost.
    """
    scale = np.array([[size[1] / grid[1]], [size[0] / grid[0]]])
    return np.where(points[0] >= 0, points * scale, np.nan).astype(np.float32)


class VideoWriter:
    """An mp4 file that is written frame after frame, in H.264, which browsers and notebooks play.

    The format takes even sizes only: the last row or column is repeated where needed. To be
    used in a ``with`` block, or closed; players cannot open the file before. An exception that
    leaves the block finishes the film written so far. A film of no frames leaves no file.

    Args:
        path: ends in ``.mp4``; its folder is made.
        fps: frames per second, in [0.001, 65535]. The nearest fraction with a denominator of at
            most 1001 is stored. Defaults to 24, as DAVIS.

    Raises:
        ValueError: if ``path`` ends in something else, or ``fps`` is not positive, not finite or
            out of range.
    """

    def __init__(self, path: str | os.PathLike, fps: float = 24.0) -> None:
        self.path = Path(path)
        if self.path.suffix != '.mp4':
            raise ValueError(f"the name of a video must end in '.mp4', got {str(path)!r}")
        if not 0 < fps < math.inf:
            raise ValueError(f'fps must be positive, got {fps}')
        if not 0.001 <= fps <= 65535:
            # PyAV would take a rate that is rounded to 0 for 24.
            raise ValueError(f'fps must lie in [0.001, 65535], got {fps}')
        self.fps = fps
        self._file: _File | None = None
        self._container: Any = None
        self._shape: tuple[int, ...] = ()

    def write(self, frame: np.ndarray) -> None:
        """Append a frame.

        Args:
            frame (H, W, 3): uint8 RGB, left as it is.

        Raises:
            OSError: if the file cannot be written. It is closed then.
            ValueError: if the frame is not (H, W, 3) uint8, or differs from the first one in size.
        """
        import av

        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
            raise ValueError(
                f'a frame must be (H, W, 3) uint8, got {frame.dtype} of shape {frame.shape}'
            )
        height, width = frame.shape[:2]
        if self._container is None:
            self._shape = frame.shape
            with self._named_errors():
                self._open(width + width % 2, height + height % 2)
        if frame.shape != self._shape:
            raise ValueError(
                f'the frames of {self.path} must have one shape: the first has {self._shape}, '
                f'another {frame.shape}'
            )
        even = cv2.copyMakeBorder(frame, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        # More threads would be started anew for each frame.
        picture = av.VideoFrame.from_ndarray(even, format='rgb24').reformat(
            format='yuv420p', dst_colorspace='ITU709', dst_color_range='MPEG', threads=1
        )
        try:
            with self._named_errors():
                self._container.mux(self._stream.encode(picture))
        except OSError:
            with contextlib.suppress(OSError):
                self.close()
            raise

    def close(self) -> None:
        """Finish the file. A second call does nothing.

        Raises:
            OSError: if the rest of the file cannot be written. It is closed even so.
        """
        container, self._container = self._container, None
        if container is not None:
            with self._named_errors(), self._file, container:
                container.mux(self._stream.encode(None))

    def __enter__(self) -> 'VideoWriter':
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _open(self, width: int, height: int) -> None:
        import av

        encoder = _encoder()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # FFmpeg opens the file once more, by this name, to move the index. A relative name such as
        # a:b.mp4 would be one of protocol a.
        file = _File(os.path.abspath(self.path), 'wb')
        try:
            # The index comes first, so that a browser need not load the whole film.
            options = {'movflags': '+faststart'}
            container = av.open(file, 'w', format='mp4', container_options=options)
            rate = Fraction(float(self.fps)).limit_denominator(1001)
            stream = container.add_stream(encoder, rate=rate, options=_ENCODERS[encoder])
            stream.width, stream.height, stream.pix_fmt = width, height, 'yuv420p'
            context = stream.codec_context
            # Players take large films for BT.709 and small ones for BT.601, unless they are told.
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _LIMITED_RANGE
            container.start_encoding()
        except BaseException:
            file.close()
            raise
        self._file, self._container, self._stream = file, container, stream

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Turn the errors of the system and of FFmpeg into an OSError that names the film."""
        import av

        try:
            yield
        except (OSError, av.FFmpegError) as err:
            height, width = (side + side % 2 for side in self._shape[:2])
            raise OSError(
                f'cannot write {self.path} ({width}x{height} pixels, {self.fps} frames per '
                f'second): {err}'
            ) from err


class _File(io.FileIO):
    """A file that takes all it is given, or raises OSError.

    PyAV takes a write that was cut short, as by a full disk, for a whole one. Where it opens the
    file itself, it leaves it open when the very first write fails.
    """

    def write(self, data: bytes) -> int:
        done = 0
        while done < len(data):
            done += super().write(data[done:])
        return done


@functools.cache
def _encoder() -> str:
    """The best encoder that this PyAV has."""
    import av

    for name in ('libx264', 'libopenh264'):
        if name in av.codecs_available:
            return name
    warnings.warn(
        'this PyAV cannot encode H.264: films are written in MPEG-4, which browsers do not play',
        stacklevel=4,
    )
    return 'mpeg4'


class ContactSheet:
    """Evenly spread frames of a video in one picture, the first one marked as given.

    Args:
        num_frames: length of the video.
        num_pictures: frames to show, the first and the last among them. Defaults to 8.
        columns: pictures in a row. Defaults to 4.
        width: of each, in pixels. Defaults to 320.

    Raises:
        ValueError: if one of them is not positive.
    """

    def __init__(
        self, num_frames: int, num_pictures: int = 8, columns: int = 4, width: int = 320
    ) -> None:
        if min(num_frames, num_pictures, columns, width) < 1:
            raise ValueError(
                'num_frames, num_pictures, columns and width must be positive, got '
                f'{num_frames}, {num_pictures}, {columns} and {width}'
            )
        self.columns = columns
        self.width = width
        shown = np.linspace(0, num_frames - 1, num_pictures)
        self._shown = set(np.rint(shown).astype(int).tolist())
        self._count = 0
        self._pictures: list[np.ndarray] = []

    def add(self, frame: np.ndarray) -> None:
        """Take the next frame: keep a small one if it is to be shown."""
        if self._count in self._shown:
            height = max(1, round(frame.shape[0] * self.width / frame.shape[1]))
            small = cv2.resize(frame, (self.width, height), interpolation=cv2.INTER_AREA)
            self._pictures.append(self._marked(small))
        self._count += 1

    def picture(self) -> np.ndarray:
        """(H, W, 3) uint8: rows of pictures, white where there are too few."""
        columns = min(self.columns, len(self._pictures))
        blanks = -len(self._pictures) % columns
        pictures = [*self._pictures, *[np.full_like(self._pictures[0], 255)] * blanks]
        rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
        return np.concatenate([np.concatenate(row, 1) for row in rows])

    def _marked(self, picture: np.ndarray) -> np.ndarray:
        """With the number of the frame, the given one in a green border."""
        text = str(self._count)
        if self._count == 0:
            text = '0 given'
            height, width = picture.shape[:2]
            cv2.rectangle(picture, (0, 0), (width - 1, height - 1), (0, 255, 0), 5)
        for colour, thickness in ((0, 0, 0), 4), ((255, 255, 255), 1):
            font = cv2.FONT_HERSHEY_SIMPLEX
            cv2.putText(picture, text, (8, 22), font, 0.6, colour, thickness, cv2.LINE_AA)
        return picture
