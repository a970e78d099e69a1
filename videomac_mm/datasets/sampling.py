"""Pipeline steps that choose frames: pairs and clips, beside ``mmaction.SampleFrames``."""

from collections.abc import Sequence

import numpy as np
from mmcv.transforms import BaseTransform

from videomac_mm.datasets.readers import UnusableVideoError
from videomac_mm.registry import TRANSFORMS


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
            raise UnusableVideoError(  # frames have vanished since they were listed
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
        times = getattr(reader, 'times', None)
        if times is not None:
            share = (times[-1] - times[0]) * fps / (total - 1)
            # Files exist whose times make no sense: then nothing agrees with the rate.
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
