"""Unlabelled videos: files, or folders of pictures."""

import logging
import posixpath
import re
import traceback
from collections.abc import Callable, Sequence

import torch
from mmengine import fileio
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from videomac_mm.datasets.places import PlacedItems
from videomac_mm.datasets.transforms import SampleFramePair, UnusableVideoError
from videomac_mm.registry import DATASETS

VIDEO_EXTENSIONS = (
    *('.mp4', '.mkv', '.avi', '.webm', '.mov', '.m4v', '.mpg', '.mpeg'),
    *('.flv', '.wmv', '.ts', '.3gp'),
)
IMAGE_EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')


@DATASETS.register_module()
class UnlabelledVideoDataset(PlacedItems, BaseDataset):
    """Unlabelled videos, each item what the pipeline's sampler draws from one of them.

    That is a pair of frames (:class:`SampleFramePair`), a clip (:class:`SampleClips`),
    or several. The pipeline starts from ``filename`` (``source='videos'``) or from
    ``frame_files``, ``total_frames`` (``source='frames'``)::

        videos  OpenVideo → sampler → DecodeFrames → …
        frames  sampler → FrameFolderDecode → …

    and ends in ``inputs`` (V, 3, T, H, W) uint8, V clips of T frames of one video.

    **Unusable videos.** Where a video cannot be read, a random other one takes
    its place. It is named in the log with the reason, once, and the run ends when
    there are too many. It is tried again when it is drawn again: a draw must not
    depend on earlier ones (:class:`PlacedItems`). Unusable means
    :class:`UnusableVideoError` (too few frames …), ``OSError`` (missing,
    no permission …) and what the decoder raises about a file: ``av.FFmpegError``
    of PyAV; of decord ``DECORDError``, and ``RuntimeError`` or ``AssertionError``
    from its own code. Everything else is a mistake in the program and ends the
    run as it is. Counts are shared with
    the workers of a data loader, forked or spawned; under distributed training
    each process counts for itself. In ``test_mode`` the error is raised.

    What becomes of difficult files (decord 0.6, PyAV 18): frames with a rotation flag come
    upright; unordered timestamps are put in order; a variable frame rate keeps
    its timestamps (see :class:`SampleFramePair`); a file of length zero, of
    other content, or whose index is lost (an MP4 file cut short) does not open;
    other files cut short lose their end, or fail there; a stream that is damaged
    further on opens and fails at once where a damaged frame is asked for, so that
    a draw from its sound part still passes.

    Args:
        data_root: folder of the data. Required.
        ann_file: list of the videos (or frame folders) to use, one path per line
            relative to ``data_root/data_prefix``; whole numbers behind it (labels,
            frame counts) are ignored, so are blank lines and lines that start
            with ``#``. Relative to ``data_root``. Defaults to '': all that are
            found, sorted by path.
        data_prefix: sub-folder of ``data_root`` with the videos, searched with
            all folders below it. Defaults to ''.
        source: ``'videos'`` or ``'frames'``, one folder of pictures per video, in
            the order of their names (9.jpg before 10.jpg). Defaults to ``'videos'``.
        index_by: ``'video'``: one item per video, drawn from anywhere in it.
            ``'frame'`` (``source='frames'`` only): one item per stored frame
            that has a partner at the (least) interval of the pipeline's
            SampleFramePair, which is VideoMAC's protocol for YouTube-VOS.
            Defaults to ``'video'``.
        fps: frames per second of the folders, wanted by
            ``SampleFramePair(unit='seconds')``. Defaults to None.
        pipeline: transforms. Defaults to none.
        backend_args: of the mmengine file backend, for listing; OpenVideo and
            FrameFolderDecode take their own. Defaults to None (by the path).
        max_bad_share: share of items in [0, 1] that may turn out unusable; the
            run stops when more are, or all. Defaults to 0.1.
        test_mode: raise for an unusable video instead of replacing it.
            Defaults to False.
        **kwargs: of ``BaseDataset``: ``lazy_init``, ``serialize_data``,
            ``indices``, ``max_refetch``, ``metainfo``.

    Raises:
        ValueError: if an argument is not one of its allowed values, or nothing
            is found; names the folder and the extensions searched.
        FileNotFoundError: if ``data_root`` or ``ann_file`` does not exist.
        RuntimeError: while iterating, if too many videos are unusable.
    """

    def __init__(
        self,
        data_root: str,
        ann_file: str = '',
        data_prefix: str = '',
        source: str = 'videos',
        index_by: str = 'video',
        fps: float | None = None,
        pipeline: Sequence[dict | Callable] = (),
        backend_args: dict | None = None,
        max_bad_share: float = 0.1,
        test_mode: bool = False,
        **kwargs,
    ) -> None:
        if source not in ('videos', 'frames'):
            raise ValueError(f"source must be 'videos' or 'frames', got {source!r}")
        if index_by not in ('video', 'frame'):
            raise ValueError(f"index_by must be 'video' or 'frame', got {index_by!r}")
        if index_by == 'frame' and source != 'frames':
            raise ValueError(f"index_by='frame' needs source='frames', got {source!r}")
        if not 0 <= max_bad_share <= 1:
            raise ValueError(f'max_bad_share must lie in [0, 1], got {max_bad_share}')
        if not data_root:
            raise ValueError(f'data_root must name a folder, got {data_root!r}')
        backend = fileio.get_file_backend(data_root, backend_args=backend_args)
        # the HTTP backend can only read files
        if hasattr(backend, 'exists') and not backend.exists(data_root):
            raise FileNotFoundError(f'data_root does not exist: {data_root}')

        self.source = source
        self.index_by = index_by
        self.fps = fps
        self.max_bad_share = max_bad_share
        self.backend_args = backend_args
        self._bad = torch.zeros(0, dtype=torch.bool)
        super().__init__(
            ann_file=ann_file,
            data_root=data_root,
            data_prefix=dict(root=data_prefix),
            pipeline=pipeline,
            test_mode=test_mode,
            **kwargs,
        )

    # ------------------------------------------------------------ what there is

    def load_data_list(self) -> list[dict]:
        paths = self._read_ann_file() if self.ann_file else self._find()
        if self.source == 'videos':
            return [dict(filename=path) for path in paths]
        if self.index_by == 'video':
            return [dict(frame_dir=path) for path in paths]
        interval = self._least_interval()
        items = [
            dict(frame_dir=path, pair_start=start)
            for path in paths
            for start in range(len(self._list_frames(path)) - interval)
        ]
        if not items:
            raise ValueError(
                f'no frame has a partner at interval {interval} in the '
                f'{len(paths)} folders under {self.data_prefix["root"]}'
            )
        return items

    def _find(self) -> list[str]:
        """Paths of all videos, or of all folders that hold pictures; sorted."""
        root = self.data_prefix['root']
        videos = self.source == 'videos'
        extensions = VIDEO_EXTENSIONS if videos else IMAGE_EXTENSIONS
        files = [
            file
            for file in fileio.list_dir_or_file(
                root, list_dir=False, recursive=True, backend_args=self.backend_args
            )
            if file.lower().endswith(extensions)
        ]
        if not files:
            raise ValueError(
                f'no {self.source} found in {root} or below it; '
                f'extensions searched: {", ".join(extensions)}'
            )
        names = files if videos else {posixpath.dirname(file) for file in files}
        return [self._join(root, name) for name in sorted(names)]

    def _read_ann_file(self) -> list[str]:
        root = self.data_prefix['root']
        try:
            text = fileio.get_text(self.ann_file, backend_args=self.backend_args)
        except OSError as err:
            raise FileNotFoundError(f'cannot read ann_file: {self.ann_file}') from err
        lines = (line.strip() for line in text.splitlines())
        paths = [
            self._join(root, re.sub(r'(\s+-?\d+)+$', '', line))
            for line in lines
            if line and not line.startswith('#')
        ]
        if not paths:
            raise ValueError(f'ann_file lists nothing: {self.ann_file}')
        return paths

    def _list_frames(self, folder: str) -> list[str]:
        names = fileio.list_dir_or_file(folder, list_dir=False, backend_args=self.backend_args)
        return [
            self._join(folder, name)
            for name in sorted(names, key=by_numbers)
            if name.lower().endswith(IMAGE_EXTENSIONS)
        ]

    def _join(self, folder: str, name: str) -> str:
        return fileio.join_path(folder, name, backend_args=self.backend_args)

    def _least_interval(self) -> int:
        steps = self.pipeline.transforms
        sampler = next((s for s in steps if isinstance(s, SampleFramePair)), None)
        if sampler is None or sampler.unit != 'frames':
            raise ValueError(
                "index_by='frame' needs a SampleFramePair with unit='frames' in the "
                f'pipeline, got {sampler and sampler.unit}'
            )
        return sampler.low

    # ------------------------------------------------------- items, good and bad

    def full_init(self) -> None:
        if not self._fully_initialized:
            super().full_init()
            self._forget_bad()

    def get_subset_(self, indices: Sequence[int] | int) -> None:
        super().get_subset_(indices)
        self._forget_bad()

    def get_subset(self, indices: Sequence[int] | int) -> 'UnlabelledVideoDataset':
        subset = super().get_subset(indices)
        subset._forget_bad()
        return subset

    def _copy_without_annotation(self, memo: dict | None = None) -> 'UnlabelledVideoDataset':
        # mmengine 0.10 shares one default memo among all calls: once the copied
        # data sets are gone, it hands out their remains for whatever has their id.
        return super()._copy_without_annotation({} if memo is None else memo)

    def _forget_bad(self) -> None:
        # One flag per item, in memory that all workers share.
        self._bad = torch.zeros(len(self), dtype=torch.bool).share_memory_()

    @property
    def num_bad(self) -> int:
        """Number of items found unusable so far, by all workers together."""
        return int(self._bad.sum())

    @property
    def bad_videos(self) -> list[str]:
        """Paths of the unusable videos or frame folders found so far."""
        infos = (self.get_data_info(int(i)) for i in self._bad.nonzero())
        # by a dict, for the items of one folder share a path
        return list(dict.fromkeys(_path_of(info) for info in infos))

    @property
    def bad_items(self) -> list[int]:
        """Indices of the items found unusable so far, ascending."""
        return self._bad.nonzero().flatten().tolist()

    def remember_bad(self, items: Sequence[int]) -> None:
        """Count items as unusable that an earlier part of the run found so.

        Indices that this data set does not have are left out.
        """
        known = [item for item in items if item < len(self)]
        self._bad[torch.tensor(known, dtype=torch.long)] = True

    def prepare_data(self, idx: int) -> dict | None:
        """The item, or None if its video is unusable (another one is drawn then)."""
        info = self.get_data_info(idx)
        info.update(modality='RGB', start_index=0)
        if self.fps is not None:
            info['fps'] = self.fps
        try:
            if self.source == 'frames':
                info['frame_files'] = self._list_frames(info['frame_dir'])
                info['total_frames'] = len(info['frame_files'])
            return self.pipeline(info)
        except Exception as err:
            if self.test_mode or not _is_about_data(err):
                raise
            self._note_bad(idx, _path_of(info), err)
            return None

    def _note_bad(self, idx: int, path: str, err: Exception) -> None:
        if self._bad[idx]:
            return
        self._bad[idx] = True
        count, total = self.num_bad, len(self)
        reason = ' '.join(f'{type(err).__name__}: {err}'.split())
        print_log(
            f'Skipping unusable video {path} ({count} of {total} so far): {reason}',
            logger='current',
            level=logging.WARNING,
        )
        if count > self.max_bad_share * total or count == total:
            raise RuntimeError(
                f'{count} of {total} items ({count / total:.1%}) are unusable, more '
                f'than max_bad_share={self.max_bad_share:.1%} allows; the first: '
                f'{", ".join(self.bad_videos[:5])}; the last failed with {reason}'
            ) from err


def by_numbers(name: str) -> list[int | str]:
    """Sort key that puts ``9.jpg`` before ``10.jpg``."""
    return [int(s) if s.isdecimal() else s for s in re.split(r'(\d+)', name)]


def _path_of(info: dict) -> str:
    return info.get('filename') or info['frame_dir']


def _is_about_data(err: Exception) -> bool:
    """Whether a file is at fault; see the docstring of UnlabelledVideoDataset."""
    if isinstance(err, (UnusableVideoError, OSError)):
        return True
    # Names instead of types, so that frame folders work without either.
    if type(err).__module__.split('.')[0] in ('av', 'decord'):
        return True
    *_, (frame, _) = traceback.walk_tb(err.__traceback__)
    in_decord = frame.f_globals.get('__name__', '').split('.')[0] == 'decord'
    return in_decord and isinstance(err, (RuntimeError, AssertionError))
