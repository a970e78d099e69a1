"""Pipeline steps for pairs of frames and for clips, beside the ones of mmaction2."""

from collections.abc import Callable, Sequence

import cv2
import mmcv
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine import fileio
from mmengine.dataset import Compose

from videomac_mm.registry import TRANSFORMS


class UnusableVideoError(Exception):
    """The data of one video, not the program, is at fault.

    :class:`UnlabelledVideoDataset` answers it with another video.
    """


@TRANSFORMS.register_module()
class OpenVideo(BaseTransform):
    """Open a video file with decord, for :class:`DecodeFrames` to read from.

    It stands for ``mmaction.DecordInit``, which hands decord the bytes of the
    whole file: decord 0.6 ends the process (SIGSEGV) on an AVI file cut short
    in memory, opens the same file by its path without harm, and by path reads
    no more of a long video than it needs. A file of a remote backend is
    downloaded for as long as it is being opened.

    Required keys: ``filename``. Added keys: ``video_reader``,
    ``total_frames``, ``avg_fps``.

    Args:
        num_threads: decoding threads of one video; 0 lets decord choose.
            Defaults to 1, which is right with several data loader workers.
        backend_args: of the mmengine file backend. Defaults to None (chosen
            by the path).

    Raises:
        RuntimeError: by decord, if the file is not a video.
    """

    def __init__(self, num_threads: int = 1, backend_args: dict | None = None) -> None:
        self.num_threads = num_threads
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict:
        import decord  # no wheel for some platforms, and frames do not need it

        with fileio.get_local_path(results['filename'], backend_args=self.backend_args) as path:
            reader = decord.VideoReader(path, num_threads=self.num_threads)
        results['video_reader'] = reader
        results['total_frames'] = len(reader)
        results['avg_fps'] = reader.get_avg_fps()
        return results


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
            (an AVI file with B-frames has none) or there is no decord reader,
            it comes from the average frame rate. Defaults to ``'frames'``.
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
    ``clip_len``. Modified keys: ``imgs``, ``img_shape``, ``num_clips``. What
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
        starts = range(0, len(imgs), clip_len)
        for first in (start for start in starts for _ in range(self.repeats)):
            clip = {**results, 'imgs': imgs[first : first + clip_len], 'num_clips': 1}
            clip = self.transforms(clip)
            if clip is None:  # the transform's way to ask for another sample
                return None
            joined.extend(clip['imgs'])
        shapes = sorted({img.shape[:2] for img in joined})
        if len(shapes) > 1:
            raise ValueError(
                f'the clips must have one size to be joined, got {shapes} (H, W); '
                'end the inner transforms with mmaction.Resize(keep_ratio=False)'
            )
        results['imgs'] = joined
        results['img_shape'] = shapes[0]
        results['num_clips'] = len(joined) // clip_len
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
    ``imgs`` (list of (H, W, 3) uint8 RGB), ``img_shape``, ``original_shape``.

    Raises:
        DECORDError: by decord, if the stream is damaged there.
    """

    def transform(self, results: dict) -> dict:
        reader = results.pop('video_reader')
        imgs = read_once(results['frame_inds'], lambda inds: reader.get_batch(inds).asnumpy())
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

    Raises:
        UnusableVideoError: if a file is not a picture, or the frames differ in
            size; names the file.
    """

    def __init__(self, backend_args: dict | None = None) -> None:
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict:
        files = results['frame_files']
        imgs = read_once(results['frame_inds'], lambda inds: self._read([files[i] for i in inds]))
        results['imgs'] = imgs
        results['img_shape'] = results['original_shape'] = imgs[0].shape[:2]
        return results

    def _read(self, files: list[str]) -> list[np.ndarray]:
        imgs: list[np.ndarray] = []
        for file in files:
            data = fileio.get(file, backend_args=self.backend_args)
            try:
                img = mmcv.imfrombytes(data, channel_order='rgb')
            except cv2.error as err:  # both for empty and for garbled data
                raise UnusableVideoError(f'cannot decode {file} ({len(data)} bytes)') from err
            if imgs and img.shape != imgs[0].shape:
                raise UnusableVideoError(
                    f'the frames of a video must have one size: {file} has '
                    f'{img.shape[:2]}, others {imgs[0].shape[:2]} (H, W)'
                )
            imgs.append(img)
        return imgs
