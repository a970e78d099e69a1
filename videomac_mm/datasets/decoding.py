"""Pipeline steps that open videos and decode the frames that were chosen."""

import os
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import cv2
import mmcv
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine import fileio
from torch.utils.data import get_worker_info

from videomac_mm.datasets.kept_frames import BoundedStore, KeptFrames, ResidentFrame
from videomac_mm.datasets.readers import (
    UnusableVideoError,
    VideoReader,
    chosen_backend,
    open_video,
)
from videomac_mm.datasets.shards import OpenShards
from videomac_mm.registry import TRANSFORMS


@TRANSFORMS.register_module()
class OpenVideo(BaseTransform):
    """Open a video file, for :class:`DecodeFrames` to read from.

    The two stand for ``mmaction.DecordInit`` and ``mmaction.DecordDecode``. The file is read in
    a process of its own, one for all videos of a data loader's worker. A decoder that hangs is
    ended after ``time_limit``, and one that crashes ends that process alone; the video is then
    unusable, and the run goes on. A file of a remote backend is downloaded for as long as it
    is used.

    Required keys: ``filename``. Optional key: ``part``, offset and size in bytes of the video
    within the file, a tar archive. Added keys: ``video_reader`` (a
    :class:`~videomac_mm.datasets.readers.VideoReader`), ``total_frames``, ``avg_fps``.

    Args:
        num_threads: decoding threads of one video; 0 lets the library choose. Defaults to None:
            one in a worker of a data loader, else one for each core, at most 4.
        backend_args: of the mmengine file backend. Defaults to None (chosen
            by the path).
        backend: ``'pyav'``; ``'decord'``, which is wrong for some files
            (:class:`~videomac_mm.datasets.readers.decord.DecordReader`); or ``'auto'``: PyAV,
            or decord where there is no PyAV of version 17 or later. Defaults to ``'pyav'``.
        cache_bytes: keep all frames of the videos that were opened first, as the
            backend decodes them (1.5 bytes a pixel with PyAV, 3 with decord),
            until they are so many bytes. A video that fits is decoded to its end
            once and never opened again; damage anywhere in it then makes it
            unusable. Each worker of a data loader keeps its own, so that the
            memory is this times their number. Defaults to 0.
        time_limit: seconds that opening a video may take, and decoding its frames each time.
            None: no limit, and the video is read in the worker's own process. Defaults to 60.

    Raises:
        ImportError: if the backend is not installed.
        UnusableVideoError: if the file is not a video, has no frames, takes too long or crashes
            the decoder.
        OSError: if the file cannot be read.
        ValueError: if an argument is not one of its allowed values.
    """

    def __init__(
        self,
        num_threads: int | None = None,
        backend_args: dict | None = None,
        backend: str = 'pyav',
        cache_bytes: int = 0,
        time_limit: float | None = 60.0,
    ) -> None:
        if time_limit is not None and not time_limit > 0:
            raise ValueError(f'time_limit must be above 0 seconds, or None, got {time_limit!r}')
        self.num_threads = num_threads
        self.shards = OpenShards(max_open=4, backend_args=backend_args)
        self.backend_args = backend_args
        self.backend = chosen_backend(backend)
        self.cache = BoundedStore(cache_bytes)
        self.time_limit = time_limit

    def transform(self, results: dict) -> dict:
        name, part = results['filename'], results.get('part')
        reader = self.cache.get((name, part))
        if reader is None:
            reader = self._keep((name, part), self._open(name, part))
        results['video_reader'] = reader
        results['total_frames'] = len(reader)
        results['avg_fps'] = reader.fps
        return results

    def _open(self, name: str, part: tuple[int, int] | None) -> VideoReader:
        if part is not None:
            return self._read(self.shards.local_path(name), part)
        with ExitStack() as stack:
            path = fileio.get_local_path(name, backend_args=self.backend_args)
            path = stack.enter_context(path)
            reader = self._read(path)
            if path != name:  # a download, to be kept as long as the reader is
                weakref.finalize(reader, stack.pop_all().close)
        return reader

    def _read(self, path: str, part: tuple[int, int] | None = None) -> VideoReader:
        threads = self.num_threads
        if threads is None:  # this process waits while the video is decoded
            threads = 1 if get_worker_info() else min(os.cpu_count() or 1, 4)
        return open_video(path, self.backend, threads, part, self.time_limit)

    def _keep(self, name: tuple, reader: VideoReader) -> VideoReader:
        """The reader, or all its frames if they fit."""
        if not self.cache.max_bytes:
            return reader
        (first,) = reader.read_raw([0], planar=True)
        num_bytes = sum(plane.nbytes for plane in first.planes) * len(reader)
        if not self.cache.fits(num_bytes):
            return reader
        frames = [
            # copies, for the reader's memory is for all videos
            frame._replace(planes=tuple(np.array(plane) for plane in frame.planes))
            for frame in reader.read_raw(range(len(reader)), planar=True)
        ]
        kept = KeptFrames(reader.path, frames, reader.fps, reader.times, reader.size)
        self.cache.add(name, kept, num_bytes)
        return kept


@TRANSFORMS.register_module()
class OpenResidentVideo(OpenVideo):
    """Let the frames of a video be named, not read: they lie on the device already.

    It stands for :class:`OpenVideo` where :class:`CropPreprocessor` holds the frames of the whole
    data set. A video is opened at its first draw only, for its length, times and size.

    Required and added keys, arguments: of :class:`OpenVideo`, without ``cache_bytes``.
    """

    def __init__(
        self,
        num_threads: int | None = None,
        backend_args: dict | None = None,
        backend: str = 'pyav',
        time_limit: float | None = 60.0,
    ) -> None:
        super().__init__(num_threads, backend_args, backend, time_limit=time_limit)
        self.known: dict[str, KeptFrames] = {}

    def _open(self, name: str, part: tuple[int, int] | None) -> KeptFrames:
        if part is not None:  # videos are told apart by their paths alone
            raise ValueError(f'resident videos must be files of their own, got a part of {name}')
        if name not in self.known:
            reader = super()._open(name, part)
            frames = [ResidentFrame(number, reader.size) for number in range(len(reader))]
            self.known[name] = KeptFrames(name, frames, reader.fps, reader.times, reader.size)
        return self.known[name]


def read_once(
    indices: Sequence[int], read: Callable[[list[int]], Sequence[np.ndarray]]
) -> list[np.ndarray]:
    """Pictures at ``indices``, each read once and in the order of time.

    Args:
        indices: in any order, with or without repetitions.
        read: gives the pictures at ascending indices without repetitions.

    Returns:
        As many pictures as indices; repeated ones are copies, for transforms may
        work in place.
    """
    ascending, first, place = np.unique(indices, return_index=True, return_inverse=True)
    imgs = read(ascending.tolist())
    return [imgs[k] if first[k] == i else imgs[k].copy() for i, k in enumerate(place)]


@TRANSFORMS.register_module()
class DecodeFrames(BaseTransform):
    """Read the chosen frames of an open video.

    ``mmaction.DecordDecode`` reads them in the order in which they are wanted:
    for a second clip that overlaps the first it seeks back and decodes the same
    part of the file again, which takes twice the time.

    Required keys: ``video_reader``, which is let go; ``frame_inds``. Added keys:
    ``imgs`` (list of (H, W, 3) uint8 RGB, or :class:`PlanarFrame`), ``img_shape``,
    ``original_shape``.

    Args:
        planar: leave frames as the codec stores them, where PyAV reads them and
            their format is of the usual kind (8 bits, YUV); lazy crops and
            :class:`FuseCrops` must follow. Defaults to False: RGB.

    Raises:
        UnusableVideoError: if the stream is damaged there, or the chosen frames differ in size.
        OSError: if the file cannot be read.
    """

    def __init__(self, planar: bool = False) -> None:
        self.planar = planar

    def transform(self, results: dict) -> dict:
        reader = results.pop('video_reader')

        imgs = read_once(results['frame_inds'], lambda inds: reader.read(inds, self.planar))
        sizes = sorted({img.shape[:2] for img in imgs})
        if len(sizes) > 1:  # concatenated streams; one box cannot cut them alike
            raise UnusableVideoError(
                f'the frames of a video must have one size: those chosen from {reader.path} have '
                f'{" and ".join(map(str, sizes))} (H, W)'
            )
        results['imgs'] = imgs
        results['img_shape'] = results['original_shape'] = imgs[0].shape[:2]
        return results


@TRANSFORMS.register_module()
class FrameFolderDecode(BaseTransform):
    """Read the chosen frames of a folder of pictures.

    ``mmaction.RawFrameDecode`` makes file names from numbers; here the listing
    counts, for stored frames need not be consecutive (YouTube-VOS:
    ``00000.jpg, 00005.jpg``).

    Required keys: ``frame_files`` (paths in the order of time), ``frame_inds``.
    Added keys: ``imgs`` (list of (H, W, 3) uint8 RGB), ``img_shape``,
    ``original_shape``.

    Args:
        backend_args: of the mmengine file backend. Defaults to None (chosen
            by the path).
        cache_bytes: keep the pictures that were read first until they are so
            many bytes (3 a pixel). Each worker of a data loader keeps its own.
            Defaults to 0.

    Raises:
        UnusableVideoError: if a file is not a picture, or the frames differ in
            size; names the file.
        ValueError: if ``cache_bytes`` is no whole number of at least 0.
    """

    def __init__(self, backend_args: dict | None = None, cache_bytes: int = 0) -> None:
        self.backend_args = backend_args
        self.cache = BoundedStore(cache_bytes)

    def transform(self, results: dict) -> dict:
        files = results['frame_files']
        imgs = read_once(results['frame_inds'], lambda inds: self._read([files[i] for i in inds]))
        results['imgs'] = imgs
        results['img_shape'] = results['original_shape'] = imgs[0].shape[:2]
        return results

    def _read(self, files: list[str]) -> list[np.ndarray]:
        imgs: list[np.ndarray] = []
        for file in files:
            img = self.cache.get(file)
            if img is None:
                img = self._decode(file)
                self.cache.add(file, img, img.nbytes)
            if self.cache.max_bytes:
                img = img.copy()  # transforms may work in place
            if imgs and img.shape != imgs[0].shape:
                raise UnusableVideoError(
                    f'the frames of a video must have one size: {file} has '
                    f'{img.shape[:2]}, others {imgs[0].shape[:2]} (H, W)'
                )
            imgs.append(img)
        return imgs

    def _decode(self, file: str) -> np.ndarray:
        data = fileio.get(file, backend_args=self.backend_args)
        try:
            return mmcv.imfrombytes(data, channel_order='rgb')
        except cv2.error as err:  # both for empty and for garbled data
            raise UnusableVideoError(f'cannot decode {file} ({len(data)} bytes)') from err
