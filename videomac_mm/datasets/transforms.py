"""Pipeline steps for pairs of frames and for clips, beside the ones of mmaction2."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmaction.structures import ActionDataSample
from mmcv.image.geometric import cv2_interp_codes
from mmcv.transforms import BaseTransform
from mmengine import fileio
from mmengine.dataset import Compose

from videomac_mm.datasets.video_readers import (
    BoundedStore,
    KeptFrames,
    PlanarFrame,
    PyAVReader,
    ResidentFrame,
    UnusableVideoError,
    frame_bytes,
)
from videomac_mm.registry import TRANSFORMS


@TRANSFORMS.register_module()
class OpenVideo(BaseTransform):
    """Open a video file, for :class:`DecodeFrames` to read from.

    It stands for ``mmaction.DecordInit``, which hands decord the bytes of the
    whole file: decord 0.6 ends the process (SIGSEGV) on an AVI file cut short
    in memory, opens the same file by its path without harm, and by path reads
    no more of a long video than it needs. A file of a remote backend is
    downloaded for as long as it is being opened.

    Both libraries give the same frames, to the bit. PyAV decodes fewer of those
    that nobody asked for, and can hand frames on as the codec stores them
    (``DecodeFrames(planar=True)``). Where decord 0.6 errs, PyAV's are right: it
    counts packets that an edit list cuts off and repeats other frames for them;
    near the end of an AVI file it may give a frame before the one asked for;
    in H.264 4:4:4 it gives noise from the second key frame on.

    Required keys: ``filename``. Added keys: ``video_reader``,
    ``total_frames``, ``avg_fps``.

    Args:
        num_threads: decoding threads of one video; 0 lets the library choose.
            Defaults to 1, which is right with several data loader workers.
        backend_args: of the mmengine file backend. Defaults to None (chosen
            by the path).
        backend: ``'decord'``, ``'pyav'``, or ``'auto'``: PyAV where it is
            installed. ``mmaction.DecordDecode`` reads from decord only.
            Defaults to ``'decord'``.
        cache_bytes: keep all frames of the videos that were opened first, as the
            backend decodes them (1.5 bytes a pixel with PyAV, 3 with decord),
            until they are so many bytes. A video that fits is decoded to its end
            once and never opened again; damage anywhere in it then makes it
            unusable. Each worker of a data loader keeps its own, so that the
            memory is this times their number. Wants ``DecodeFrames``. Defaults
            to 0.

    Raises:
        ImportError: for ``'pyav'`` without PyAV, at the first video.
        UnusableVideoError: with PyAV, if the file has no video in it.
        RuntimeError: by decord, if the file is not a video.
        av.FFmpegError: by PyAV, if the file is not a video.
        ValueError: if an argument is not one of its allowed values.
    """

    def __init__(
        self,
        num_threads: int = 1,
        backend_args: dict | None = None,
        backend: str = 'decord',
        cache_bytes: int = 0,
    ) -> None:
        if backend not in ('decord', 'pyav', 'auto'):
            raise ValueError(f"backend must be 'decord', 'pyav' or 'auto', got {backend!r}")
        if backend == 'auto':
            backend = 'pyav' if find_spec('av') else 'decord'
        self.num_threads = num_threads
        self.backend_args = backend_args
        self.backend = backend
        self.cache = BoundedStore(cache_bytes)

    def transform(self, results: dict) -> dict:
        reader = self.cache.get(results['filename'])
        if reader is None:
            with fileio.get_local_path(results['filename'], backend_args=self.backend_args) as path:
                reader = self._keep(results['filename'], self._open(path))
        results['video_reader'] = reader
        results['total_frames'] = len(reader)
        results['avg_fps'] = reader.get_avg_fps()
        return results

    def _open(self, path: str) -> Any:
        if self.backend == 'pyav':
            return PyAVReader(path, self.num_threads)
        import decord  # no wheel for some platforms, and frames do not need it

        return decord.VideoReader(path, num_threads=self.num_threads)

    def _keep(self, name: str, reader: Any) -> Any:
        """The reader, or all its frames if they fit."""
        if not self.cache.max_bytes or not len(reader):
            return reader
        inds = list(range(len(reader)))
        size = frame_bytes(reader)
        if not self.cache.fits(size * len(inds)):
            return reader
        frames = (
            reader.read_raw(inds) if self.backend == 'pyav' else reader.get_batch(inds).asnumpy()
        )
        kept = KeptFrames(list(frames), reader.get_avg_fps(), reader.get_frame_timestamp(inds))
        self.cache.add(name, kept, size * len(inds))
        return kept


@TRANSFORMS.register_module()
class OpenResidentVideo(OpenVideo):
    """Let the frames of a video be named, not read: they lie on the device already.

    It stands for :class:`OpenVideo` where :class:`CropPreprocessor` holds the frames of the whole
    data set. A video is opened at its first draw only, for its length, times and size.

    Required and added keys, arguments: of :class:`OpenVideo`, without ``cache_bytes``.
    """

    def __init__(
        self, num_threads: int = 1, backend_args: dict | None = None, backend: str = 'decord'
    ) -> None:
        super().__init__(num_threads, backend_args, backend)
        self.known: dict[str, KeptFrames] = {}

    def _keep(self, name: str, reader: Any) -> KeptFrames:
        numbers = list(range(len(reader)))
        if not numbers:
            raise UnusableVideoError(f'no frames in {name}')
        shape = DecodeFrames()(dict(video_reader=reader, frame_inds=[0]))['img_shape']
        frames = [ResidentFrame(number, shape) for number in numbers]
        times = reader.get_frame_timestamp(numbers)
        return KeptFrames(frames, reader.get_avg_fps(), times)

    def transform(self, results: dict) -> dict:
        name = results['filename']
        if name not in self.known:
            self.known[name] = super().transform(dict(results))['video_reader']
        reader = self.known[name]
        return {
            **results,
            'video_reader': reader,
            'total_frames': len(reader),
            'avg_fps': reader.get_avg_fps(),
        }


@TRANSFORMS.register_module()
class SampleFramePair(BaseTransform):
    """Choose pairs of frames: clips of two frames each.

    The interval is drawn per pair, then the first frame, uniformly over all
    that have a partner at that interval. A video shorter than the interval
    gives the largest interval that fits. The pairs are sorted by their first
    frame, which spares the decoder seeking back.

    Required keys: ``total_frames``; for ``unit='seconds'`` one of
    ``video_reader``, ``avg_fps`` or ``fps``. Optional keys: ``start_index``
    (added to the indices) and ``pair_start``, the first frame of all pairs,
    which is drawn where it is absent. Added keys: ``frame_inds``
    (2 * pairs_per_video,), ``frame_interval`` (pairs_per_video,) in frames,
    ``clip_len`` (2), ``num_clips``.

    Args:
        frame_interval: distance of the two frames, or a range (low, high),
            both ends included. Whole numbers of at least 1 for frames, above
            0 for seconds. Defaults to 1.
        unit: ``'frames'``, or ``'seconds'``: then the second frame is the one
            shown nearest to ``frame_interval`` seconds after the first, but
            never the first itself. Time comes from the timestamps of the
            file, so a variable frame rate is right. Where they make no sense
            (an AVI file has none of display) or there is no video reader, it
            comes from the average frame rate. Defaults to ``'frames'``.
        pairs_per_video: number of pairs, drawn independently. Defaults to 1.

    Raises:
        ValueError: if an argument is out of its range; if ``unit='seconds'``
            meets a sample that knows no time.
        UnusableVideoError: if the video has fewer than two frames, or no
            frame rate where one is needed.
    """

    def __init__(
        self,
        frame_interval: float | tuple[float, float] = 1,
        unit: str = 'frames',
        pairs_per_video: int = 1,
    ) -> None:
        if unit not in ('frames', 'seconds'):
            raise ValueError(f"unit must be 'frames' or 'seconds', got {unit!r}")
        if not isinstance(pairs_per_video, int) or pairs_per_video < 1:
            raise ValueError(
                f'pairs_per_video must be a whole number of at least 1, got {pairs_per_video!r}'
            )
        ends = (
            tuple(frame_interval)
            if isinstance(frame_interval, Sequence)
            else (frame_interval, frame_interval)
        )
        kind, least = (int, 'at least 1') if unit == 'frames' else ((int, float), 'above 0')
        if (
            len(ends) != 2
            or not all(isinstance(end, kind) for end in ends)
            or not 0 < ends[0] <= ends[1]
        ):
            raise ValueError(
                f'frame_interval must be a number of {unit} {least}, or a range '
                f'(low, high) of them, got {frame_interval!r}'
            )
        self.low, self.high = ends
        self.unit = unit
        self.pairs_per_video = pairs_per_video

    def transform(self, results: dict) -> dict:
        total = results['total_frames']
        if total < 2:
            raise UnusableVideoError(f'a pair needs 2 frames, the video has {total}')
        start = results.get('pair_start')
        if start is not None and not 0 <= start < total - 1:
            raise ValueError(
                f'pair_start must lie in [0, {total - 2}] for a video of '
                f'{total} frames, got {start}'
            )
        if self.unit == 'frames':
            pairs = [self._by_frames(total, start) for _ in range(self.pairs_per_video)]
        else:
            times = self._frame_times(results)
            pairs = [self._by_seconds(times, start) for _ in range(self.pairs_per_video)]

        inds = np.array(sorted(pairs))
        results['frame_interval'] = inds[:, 1] - inds[:, 0]
        results['frame_inds'] = inds.reshape(-1) + results.get('start_index', 0)
        results['clip_len'] = 2
        results['num_clips'] = self.pairs_per_video
        return results

    def _by_frames(self, total: int, start: int | None) -> tuple[int, int]:
        interval = np.random.randint(self.low, self.high + 1)
        interval = min(interval, total - 1 - (start or 0))
        if start is None:
            start = np.random.randint(total - interval)
        return start, start + interval

    def _by_seconds(self, times: np.ndarray, start: int | None) -> tuple[int, int]:
        interval = np.random.uniform(self.low, self.high)
        if start is None:
            # to a millisecond, for timestamps are rounded
            last = np.searchsorted(times, times[-1] - interval + 1e-3, side='right')
            start = np.random.randint(min(max(last, 1), len(times) - 1))
        distance = np.abs(times[start + 1 :] - (times[start] + interval))
        return start, start + 1 + int(distance.argmin())

    @staticmethod
    def _frame_times(results: dict) -> np.ndarray:
        """When each frame is shown: (total_frames,) float64, seconds."""
        reader, total = results.get('video_reader'), results['total_frames']
        fps = results.get('avg_fps', results.get('fps'))
        if fps is None:
            raise ValueError(
                "unit='seconds' needs a video_reader, avg_fps or fps in the "
                f'sample, which has only {sorted(results)}; set fps of the '
                "dataset or use unit='frames'"
            )
        if not (np.isfinite(fps) and fps > 0):
            raise UnusableVideoError(f'the frame rate must be above 0, the file says {fps}')
        if hasattr(reader, 'get_frame_timestamp'):
            times = reader.get_frame_timestamp(np.arange(total))[:, 0].astype(np.float64)
            share = (times[-1] - times[0]) * fps / (total - 1)
            # Unset timestamps read as -1e17: then nothing agrees with the rate.
            if 0.5 < share < 2 and (np.diff(times) >= 0).all():
                return times
        return np.arange(total) / fps


@TRANSFORMS.register_module()
class SampleClips(BaseTransform):
    """Choose a clip of evenly spaced frames, or two that start at different times.

    Of a video of n frames, a clip starts at one of the first
    ``max(n - clip_len * frame_interval, 0) + 1``, all equally likely. Its frames
    follow at the interval as long as they lie before the last frame of the
    video; then the latest of them is repeated. That happens in videos of fewer
    than ``clip_len * frame_interval`` frames, and at ``frame_interval=1`` at the
    very end of others. Frames and draws are those of the official VideoMAE code
    (arXiv 2203.12602) for the same seed of numpy; ``mmaction.SampleFrames``
    differs in some short videos.

    With ``max_shift`` (the temporal shift of CMAE-V, arXiv 2301.06018) a second
    clip starts ``shift`` frames after the first. ``shift`` is drawn from
    {0 … max_shift}, or from {0 … n - clip_len * frame_interval} where that is
    less; it is 0 in shorter videos. Then the first clip is drawn so that the second
    one starts where a clip may start, all places equally likely.

    Required keys: ``total_frames``. Optional keys: ``start_index`` (added to the
    indices). Added keys: ``frame_inds`` (num_clips * clip_len,), ``clip_len``,
    ``frame_interval``, ``num_clips`` (1, or 2 with ``max_shift``).

    Args:
        clip_len: frames of a clip. Defaults to 16.
        frame_interval: distance of neighbouring frames of a clip, in frames of
            the video. Defaults to 4.
        max_shift: largest distance of the two clips' starts, in frames of the
            video; at least 0. Defaults to None: one clip.

    Raises:
        ValueError: if an argument is out of its range.
        UnusableVideoError: if the video has no frames.
    """

    def __init__(
        self, clip_len: int = 16, frame_interval: int = 4, max_shift: int | None = None
    ) -> None:
        for name, value, least in (
            ('clip_len', clip_len, 1),
            ('frame_interval', frame_interval, 1),
            ('max_shift', 0 if max_shift is None else max_shift, 0),
        ):
            if not isinstance(value, int) or value < least:
                raise ValueError(
                    f'{name} must be a whole number of at least {least}, got {value!r}'
                )
        self.clip_len = clip_len
        self.frame_interval = frame_interval
        self.max_shift = max_shift

    def transform(self, results: dict) -> dict:
        total = results['total_frames']
        if total < 1:
            raise UnusableVideoError(f'a clip needs a frame, the video has {total}')
        room = max(total - self.clip_len * self.frame_interval, 0)
        shifts = [0]
        if self.max_shift is not None:
            shifts.append(np.random.randint(min(self.max_shift, room) + 1))
        start = np.random.randint(room - shifts[-1] + 1)
        inds = np.concatenate([self._clip(start + shift, total) for shift in shifts])
        results['frame_inds'] = inds + results.get('start_index', 0)
        results['clip_len'] = self.clip_len
        results['frame_interval'] = self.frame_interval
        results['num_clips'] = len(shifts)
        return results

    def _clip(self, start: int, total: int) -> np.ndarray:
        """Frames (clip_len,) of the clip that begins at ``start``."""
        steps = max(total - 2 - start, 0) // self.frame_interval
        return start + self.frame_interval * np.minimum(np.arange(self.clip_len), steps)


@TRANSFORMS.register_module()
class ForEachClip(BaseTransform):
    """Apply transforms to each clip of a sample by itself.

    mmaction2's transforms treat all frames of a sample alike. Inside
    ``ForEachClip`` every clip draws its own crop and flip, while the frames of
    one clip are still cut alike.

    Required keys: ``imgs`` (num_clips * clip_len frames), ``num_clips``,
    ``clip_len``. Modified keys: ``imgs``, ``img_shape``, ``num_clips``. Added key,
    where inner transforms are lazy and not fused: ``lazy``, one of each clip. What
    else the inner transforms say about a clip (its ``crop_quadruple`` …) is
    dropped.

    Args:
        transforms: the inner pipeline, of configs or callables.
        repeats: how often each clip is put through it, where decoding costs
            more than training (repeated augmentation, arXiv 1901.09335). The
            sample then holds num_clips * repeats clips. Defaults to 1.

    Raises:
        ValueError: if ``repeats`` is no whole number of at least 1, or the clips
            come out in different sizes.
    """

    def __init__(self, transforms: Sequence[dict | Callable], repeats: int = 1) -> None:
        if not isinstance(repeats, int) or repeats < 1:
            raise ValueError(f'repeats must be a whole number of at least 1, got {repeats!r}')
        self.transforms = Compose(transforms)
        self.repeats = repeats

    def transform(self, results: dict) -> dict | None:
        imgs, clip_len = results['imgs'], results['clip_len']
        joined: list[np.ndarray] = []
        lazy: list[dict] = []
        starts = range(0, len(imgs), clip_len)
        for first in (start for start in starts for _ in range(self.repeats)):
            clip = {**results, 'imgs': imgs[first : first + clip_len], 'num_clips': 1}
            clip = self.transforms(clip)
            if clip is None:  # the transform's way to ask for another sample
                return None
            joined.extend(clip['imgs'])
            if 'lazy' in clip:
                lazy.append({**clip['lazy'], 'size': clip['img_shape']})
        # where they are lazy, what the pictures will become
        sizes = [crop['size'] for crop in lazy] or [img.shape[:2] for img in joined]
        shapes = sorted(set(sizes))
        if len(shapes) > 1:
            raise ValueError(
                f'the clips must have one size to be joined, got {shapes} (H, W); '
                'end the inner transforms with mmaction.Resize(keep_ratio=False)'
            )
        results['imgs'] = joined
        results['img_shape'] = shapes[0]
        results['num_clips'] = len(joined) // clip_len
        if lazy:
            results['lazy'] = lazy
        return results


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
        DECORDError, av.FFmpegError: if the stream is damaged there.
        UnusableVideoError: with PyAV, if a frame does not come out.
    """

    def __init__(self, planar: bool = False) -> None:
        self.planar = planar

    def transform(self, results: dict) -> dict:
        reader = results.pop('video_reader')

        def read(inds: list[int]) -> Sequence:
            if hasattr(reader, 'get_batch'):  # of decord
                return reader.get_batch(inds).asnumpy()
            return reader.read(inds, self.planar)

        imgs = read_once(results['frame_inds'], read)
        results['imgs'] = imgs
        results['img_shape'] = results['original_shape'] = imgs[0].shape[:2]
        return results


@TRANSFORMS.register_module()
class FuseCrops(BaseTransform):
    """Carry out lazy transforms, as ``mmaction.Fuse``, on planar frames too.

    ``mmaction.RandomResizedCrop``, ``Resize`` and ``Flip`` with ``lazy=True``
    draw a crop before there is a picture, so that of a planar frame nothing but
    the crop, in the size wanted, is turned into RGB. The same crops of the same
    seed come out as without ``lazy``; of RGB frames to the bit, of planar ones up
    to interpolation (see :class:`PlanarFrame`).

    Required keys: ``imgs`` (arrays or :class:`PlanarFrame`), ``img_shape``,
    ``lazy``, which is let go. Modified keys: ``imgs`` ((H, W, 3) uint8 RGB).

    Raises:
        ValueError: if no lazy transform came before.
    """

    def transform(self, results: dict) -> dict:
        if 'lazy' not in results:
            raise ValueError(
                'FuseCrops needs transforms with lazy=True before it; '
                f'the sample has only {sorted(results)}'
            )
        lazy = results.pop('lazy')
        box = lazy['crop_bbox'].round().astype(int).tolist()
        size = results['img_shape'][::-1]
        interpolation = lazy['interpolation'] or 'bilinear'
        imgs = [self._cut(img, box, size, interpolation) for img in results['imgs']]
        if lazy['flip']:
            for img in imgs:
                mmcv.imflip_(img, lazy['flip_direction'])
        results['imgs'] = imgs
        return results

    @staticmethod
    def _cut(img: Any, box: list[int], size: tuple[int, int], interpolation: str) -> np.ndarray:
        if isinstance(img, PlanarFrame):
            return img.crop_resize(box, size, cv2_interp_codes[interpolation])
        left, top, right, bottom = box
        return mmcv.imresize(img[top:bottom, left:right], size, interpolation=interpolation)


@TRANSFORMS.register_module()
class PackCrops(BaseTransform):
    """Hand whole frames and the crops drawn from them to :class:`CropPreprocessor`.

    It ends a pipeline whose crops are lazy, in place of ``FuseCrops``,
    ``FormatShape`` and ``PackActionInputs``. Each frame is packed once, however
    many crops it is in.

    Required keys: ``imgs`` ((H, W, 3) uint8 RGB), ``clip_len``, ``lazy`` (of each
    clip, as :class:`ForEachClip` leaves them). Returns ``data_samples`` and
    ``inputs``: ``frames`` (N, H, W, 3) uint8, a tensor; and arrays, which stay
    with the CPU: ``places`` (V, T) of the clips' frames among them, ``boxes``
    (V, 4), left, top, right, bottom in pixels, ``flip`` (V,) bool, ``size``, (H, W)
    of the output. Of :class:`OpenResidentVideo`, ``frames`` are numbers (N,) in
    ``video``, its path.

    Raises:
        ValueError: if the crops are not lazy, or are flipped vertically.
    """

    def transform(self, results: dict) -> dict:
        lazy = results.get('lazy')
        if not isinstance(lazy, list):
            raise ValueError(
                'PackCrops needs ForEachClip with lazy transforms and without FuseCrops '
                f'before it; the sample has only {sorted(results)}'
            )
        if any(crop['flip'] and crop['flip_direction'] != 'horizontal' for crop in lazy):
            raise ValueError("PackCrops knows flips in the direction 'horizontal' only")
        imgs = results['imgs']
        frames = list({id(img): img for img in imgs}.values())
        place_of = {id(img): place for place, img in enumerate(frames)}
        if isinstance(frames[0], ResidentFrame):
            numbers = [frame.number for frame in frames]
            source = dict(video=results['filename'], frames=np.array(numbers))
        else:
            source = dict(frames=torch.from_numpy(np.stack(frames)))
        inputs = dict(
            **source,
            places=np.array([place_of[id(img)] for img in imgs]).reshape(len(lazy), -1),
            boxes=np.stack([crop['crop_bbox'].round().astype(int) for crop in lazy]),
            flip=np.array([crop['flip'] for crop in lazy], dtype=bool),
            size=np.array(lazy[0]['size']),
        )
        return dict(inputs=inputs, data_samples=ActionDataSample())


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
