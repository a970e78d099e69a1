"""Unlabelled videos: files, folders of pictures, or files in tar archives."""

import copy
import logging
import os
import posixpath
import random
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from mmengine import fileio
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from videomac_mm.datasets.fault_log import Fault, FaultLog
from videomac_mm.datasets.places import PlacedItems
from videomac_mm.datasets.readers import fault_of
from videomac_mm.datasets.sampling import SampleFramePair
from videomac_mm.datasets.shards import index_shard
from videomac_mm.registry import DATASETS

VIDEO_EXTENSIONS = (
    *('.mp4', '.mkv', '.avi', '.webm', '.mov', '.m4v', '.mpg', '.mpeg'),
    *('.flv', '.wmv', '.ts', '.3gp'),
)
IMAGE_EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')
EXTENSIONS = dict(videos=VIDEO_EXTENSIONS, frames=IMAGE_EXTENSIONS, shards=('.tar',))


@DATASETS.register_module()
class UnlabelledVideoDataset(PlacedItems, BaseDataset):
    """Unlabelled videos, each item what the pipeline's sampler draws from one of them.

    That is a pair of frames (:class:`SampleFramePair`), a clip (:class:`SampleClips`),
    or several. The pipeline starts from ``filename`` (``source='videos'``), from ``filename``
    and ``part``, its offset and size in bytes (``source='shards'``), or from ``frame_files``,
    ``total_frames`` (``source='frames'``)::

        videos, shards  OpenVideo → sampler → DecodeFrames → …
        frames          sampler → FrameFolderDecode → …

    and ends in ``inputs`` (V, 3, T, H, W) uint8, V clips of T frames of one video.

    **What cannot be read.** A video whose data are at fault is unusable: a random other one takes
    its place. The log names it with the reason, once, and the run ends when there are too many.
    It is tried again when it is drawn again: a draw must not depend on earlier ones
    (:class:`PlacedItems`). Data are at fault in :class:`UnusableVideoError` (too few frames,
    damage, a decoder that hangs or crashes) and where the system says so (missing, no
    permission). A fault of the moment, such as too many open files or a connection that was
    reset, is tried again after 0.1, 0.5 and 2.5 seconds. If that does not help, another video
    takes the place this once; the video stays usable, and such readings are counted apart. The
    run ends when ``MAX_MISSED_IN_A_ROW`` readings in a row are given up. Everything else is a
    mistake in the program and ends the run as it is.
    Counts are shared with the workers of a data loader, forked or spawned;
    :class:`~videomac_mm.engine.DataFaultsHook` shares them among the processes of distributed
    training, and reports. In ``test_mode`` the error is raised.

    Difficult files: frames with a rotation flag come upright. Unordered timestamps are put in
    order, and a variable frame rate keeps its timestamps (see :class:`SampleFramePair`). A file
    of length zero, of other content, or whose index is lost (an MP4 file cut short) does not
    open. Other files cut short lose their end, or fail there. A stream that is damaged further on
    fails where a damaged frame is asked for, so that a draw from its sound part still passes.

    Args:
        data_root: folder of the data. Required.
        ann_file: list of the videos (or frame folders) to use, one path per line
            relative to ``data_root/data_prefix``; whole numbers behind it (labels,
            frame counts) are ignored, so are blank lines and lines that start
            with ``#``. Relative to ``data_root``. Defaults to '': all that are
            found, sorted by path.
        data_prefix: sub-folder of ``data_root`` with the videos, searched with
            all folders below it. Defaults to ''.
        source: ``'videos'``; ``'frames'``, one folder of pictures per video, in
            the order of their names (9.jpg before 10.jpg); or ``'shards'``, tar archives of video
            files, not compressed (``ann_file`` then lists archives). Archives are read one after
            the other (:class:`ResumableSampler`). Defaults to ``'videos'``.
        index_by: ``'video'``: one item per video, drawn from anywhere in it.
            ``'frame'`` (``source='frames'`` only): one item per stored frame
            that has a partner at the (least) interval of the pipeline's
            SampleFramePair, which is VideoMAC's protocol for YouTube-VOS.
            Defaults to ``'video'``.
        spread_pairs: make each of the pairs that the pipeline's SampleFramePair draws from a
            video an item of its own; the sampler puts them into different batches
            (:class:`ResumableSampler`). A video is still read once for all of its pairs, but a
            batch holds pairs of more videos. Defaults to False: all pairs are one item.
        fps: frames per second of the folders, wanted by
            ``SampleFramePair(unit='seconds')``. Defaults to None.
        pipeline: transforms. Defaults to none.
        backend_args: of the mmengine file backend, for listing; OpenVideo and
            FrameFolderDecode take their own. Defaults to None (by the path).
        max_bad_share: share of items in [0, 1] that may turn out unusable, in all processes
            together; the run stops when more are, or all. Defaults to 0.1.
        test_mode: raise for an unusable video instead of replacing it.
            Defaults to False.
        **kwargs: of ``BaseDataset``: ``lazy_init``, ``serialize_data``,
            ``indices``, ``max_refetch``, ``metainfo``.

    Raises:
        ValueError: if an argument is not one of its allowed values, or nothing
            is found; names the folder and the extensions searched.
        FileNotFoundError: if ``data_root`` or ``ann_file`` does not exist.
        RuntimeError: while iterating, if too many videos are unusable, or too many readings in a
            row are given up.
    """

    RETRY_WAITS = 0.1, 0.5, 2.5  # seconds
    MAX_MISSED_IN_A_ROW = 50
    MAX_LISTED = 1_000_000  # names of pictures that are kept, of the folders listed last

    def __init__(
        self,
        data_root: str,
        ann_file: str = '',
        data_prefix: str = '',
        source: str = 'videos',
        index_by: str = 'video',
        spread_pairs: bool = False,
        fps: float | None = None,
        pipeline: Sequence[dict | Callable] = (),
        backend_args: dict | None = None,
        max_bad_share: float = 0.1,
        test_mode: bool = False,
        **kwargs,
    ) -> None:
        if source not in EXTENSIONS:
            raise ValueError(f"source must be 'videos', 'frames' or 'shards', got {source!r}")
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
        self._listings: OrderedDict[str, list[str]] = OrderedDict()
        self._num_listed = 0
        self._missed_in_a_row = 0
        self.faults = FaultLog(0)
        # Videos of each archive, which the sampler keeps together; empty if it need not.
        self.group_sizes: list[int] = []
        super().__init__(
            ann_file=ann_file,
            data_root=data_root,
            data_prefix=dict(root=data_prefix),
            pipeline=pipeline,
            test_mode=test_mode,
            **kwargs,
        )
        if spread_pairs:
            self.items_per_video = self._pair_sampler('spread_pairs').pairs_per_video

    # ------------------------------------------------------------ what there is

    def load_data_list(self) -> list[dict]:
        paths = self._read_ann_file() if self.ann_file else self._find()
        if self.source == 'videos':
            return [dict(filename=path) for path in paths]
        if self.source == 'shards':
            return self._list_shards(paths)
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
        extensions = EXTENSIONS[self.source]
        backend = fileio.get_file_backend(root, backend_args=self.backend_args)
        if isinstance(backend, fileio.LocalBackend):
            found = files_below(root)
        else:
            found = backend.list_dir_or_file(root, list_dir=False, recursive=True)
        files = [file for file in found if file.lower().endswith(extensions)]
        if not files:
            raise ValueError(
                f'no {self.source} found in {root} or below it; '
                f'extensions searched: {", ".join(extensions)}'
            )
        frames = self.source == 'frames'
        names = {posixpath.dirname(file) for file in files} if frames else files
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

    def _list_shards(self, paths: list[str]) -> list[dict]:
        items = []
        for path in paths:
            shard = index_shard(path, VIDEO_EXTENSIONS, self.backend_args)
            if not shard.whole:
                print_log(
                    f'{path} is cut short or damaged: the first {len(shard.members)} videos are '
                    'used',
                    logger='current',
                    level=logging.WARNING,
                )
            self.group_sizes.append(len(shard.members))
            items += [
                dict(filename=path, member=name, part=(offset, size))
                for name, offset, size in shard.members
            ]
        if not items:
            raise ValueError(
                f'no videos found in {len(paths)} archives under {self.data_prefix["root"]}; '
                f'extensions searched: {", ".join(VIDEO_EXTENSIONS)}'
            )
        return items

    def _list_frames(self, folder: str) -> list[str]:
        """Paths of a folder's pictures, listed once as long as there is room to keep them."""
        if folder in self._listings:
            self._listings.move_to_end(folder)
            return self._listings[folder]
        files = self._listings[folder] = self._listed_now(folder)
        self._num_listed += len(files)
        while self._num_listed > self.MAX_LISTED and len(self._listings) > 1:
            self._num_listed -= len(self._listings.popitem(last=False)[1])
        return files

    def _listed_now(self, folder: str) -> list[str]:
        names = fileio.list_dir_or_file(folder, list_dir=False, backend_args=self.backend_args)
        return [
            self._join(folder, name)
            for name in sorted(names, key=by_numbers)
            if name.lower().endswith(IMAGE_EXTENSIONS)
        ]

    def _join(self, folder: str, name: str) -> str:
        return fileio.join_path(folder, name, backend_args=self.backend_args)

    def _pair_sampler(self, needed_by: str) -> SampleFramePair:
        steps = self.pipeline.transforms
        sampler = next((step for step in steps if isinstance(step, SampleFramePair)), None)
        if sampler is None:
            kinds = [type(step).__name__ for step in steps]
            raise ValueError(f'{needed_by} needs a SampleFramePair in the pipeline, got {kinds}')
        return sampler

    def _least_interval(self) -> int:
        sampler = self._pair_sampler("index_by='frame'")
        if sampler.unit != 'frames':
            raise ValueError(
                "index_by='frame' needs a SampleFramePair with unit='frames' in the "
                f'pipeline, got {sampler.unit!r}'
            )
        return sampler.low

    # ------------------------------------------------------- items, good and bad

    def full_init(self) -> None:
        if not self._fully_initialized:
            super().full_init()
            self._forget_faults()

    def get_subset_(self, indices: Sequence[int] | int) -> None:
        super().get_subset_(indices)
        self.group_sizes = []
        self._forget_faults()

    def get_subset(self, indices: Sequence[int] | int) -> 'UnlabelledVideoDataset':
        subset = super().get_subset(indices)
        subset.group_sizes = []
        subset._forget_faults()
        return subset

    def _copy_without_annotation(self, memo: dict | None = None) -> 'UnlabelledVideoDataset':
        # mmengine 0.10 shares one default memo among all calls: once the copied
        # data sets are gone, it hands out their remains for whatever has their id.
        return super()._copy_without_annotation({} if memo is None else memo)

    def __len__(self) -> int:
        return self.num_videos * self.items_per_video

    @property
    def num_videos(self) -> int:
        """Number of videos, or of starts with ``index_by='frame'``; each gives
        ``items_per_video`` items."""
        return super().__len__()

    def _forget_faults(self) -> None:
        self.faults = FaultLog(self.num_videos)

    @property
    def num_bad(self) -> int:
        """Number of items found unusable so far, by all workers together."""
        return int(self.faults.bad.sum())

    @property
    def num_missed(self) -> int:
        """Readings given up so far for a fault of the moment, by all workers together."""
        return int(self.faults.missed)

    @property
    def bad_videos(self) -> list[str]:
        """Paths of the unusable videos or frame folders found so far."""
        infos = (self.get_data_info(i) for i in self.bad_items)
        # by a dict, for the items of one folder share a path
        return list(dict.fromkeys(_path_of(info) for info in infos))

    @property
    def bad_items(self) -> list[int]:
        """Indices of the items found unusable so far, ascending."""
        return self.faults.bad.nonzero().flatten().tolist()

    def remember_bad(self, items: Sequence[int]) -> None:
        """Count items as unusable that an earlier part of the run, or another process, found so.

        Indices that this data set does not have are left out.
        """
        known = [item for item in items if item < self.num_videos]
        self.faults.bad[torch.tensor(known, dtype=torch.long)] = True

    def check_share(self) -> None:
        """Raise RuntimeError if more items are unusable than ``max_bad_share`` allows."""
        count, total = self.num_bad, self.num_videos
        if count > self.max_bad_share * total or count == total:
            raise RuntimeError(
                f'{count} of {total} items ({count / total:.1%}) are unusable, more '
                f'than max_bad_share={self.max_bad_share:.1%} allows; the first: '
                f'{", ".join(self.bad_videos[:5])}'
            )

    def prepare_data(self, idx: int) -> dict | None:
        """The item, or None if its video is unusable (another one is drawn then)."""
        if self.items_per_video == 1:
            return self._read(idx)
        video, part = divmod(idx, self.items_per_video)
        items = self.read_video(video)
        return items and items[part]

    def read_video(self, index: int) -> list[dict] | None:
        """The ``items_per_video`` items of a video, or None if it is unusable."""
        sample = self._read(index)
        return sample and divide_clips(sample, self.items_per_video)

    def _read(self, idx: int) -> dict | None:
        """What the pipeline makes of a video, or None if that cannot be had."""
        state = random.getstate(), np.random.get_state(), torch.get_rng_state()
        for wait in (*self.RETRY_WAITS, None):
            info = self.get_data_info(idx)
            try:
                sample = self.pipeline(self._opened(info))
            except Exception as err:
                fault = fault_of(err)
                if fault == 'moment' and wait is not None:
                    time.sleep(wait)
                    random.setstate(state[0])  # the draws are those of the first try
                    np.random.set_state(state[1])
                    torch.set_rng_state(state[2])
                    continue
                if self.test_mode or fault == 'program':
                    raise
                self._note(idx, fault, _path_of(info), err)
                return None
            self._missed_in_a_row = 0
            return sample
        return None

    def _opened(self, info: dict) -> dict:
        """What the pipeline starts from."""
        info.update(modality='RGB', start_index=0)
        if self.fps is not None:
            info['fps'] = self.fps
        if self.source == 'frames':
            info['frame_files'] = self._list_frames(info['frame_dir'])
            info['total_frames'] = len(info['frame_files'])
        return info

    def _note(self, idx: int, kind: str, path: str, err: Exception) -> None:
        """Count and name a video that could not be read.

        Raises:
            RuntimeError: if there are too many.
        """
        reason = ' '.join(f'{type(err).__name__}: {err}'.split())
        new = self.faults.add(Fault(idx, kind, path, reason))
        if kind == 'moment':
            tries = len(self.RETRY_WAITS) + 1
            message = f'Passing over {path} this once, after {tries} tries: {reason}'
            self._missed_in_a_row += 1
        else:
            counts = f'{self.num_bad} of {self.num_videos} so far'
            message = f'Skipping unusable video {path} ({counts}): {reason}'
        if not new:
            return
        print_log(message, logger='current', level=logging.WARNING)
        if self._missed_in_a_row >= self.MAX_MISSED_IN_A_ROW:
            raise RuntimeError(
                f'{self._missed_in_a_row} videos in a row could not be read, each tried {tries} '
                f'times: the storage seems to be out of reach; the last: {path}: {reason}'
            ) from err
        try:
            self.check_share()
        except RuntimeError as too_many:
            raise RuntimeError(f'{too_many}; the last failed with {reason}') from err


def files_below(root: str) -> Iterator[str]:
    """Paths relative to a local folder of all that is no folder, but for hidden files.

    Links to folders are followed, but no folder is entered twice. What cannot be read, such as a
    broken link, is there, to be named when it is drawn.

    Raises:
        OSError: if a folder cannot be listed.
    """
    entered = set()

    def fail(err: OSError) -> None:
        raise err

    for folder, folders, files in os.walk(root, onerror=fail, followlinks=True):
        entered.add(os.path.realpath(folder))
        folders[:] = [
            name for name in folders if os.path.realpath(os.path.join(folder, name)) not in entered
        ]
        inner = os.path.relpath(folder, root)
        for name in files:
            if not name.startswith('.'):
                yield name if inner == '.' else posixpath.join(inner, name)


def divide_clips(sample: dict, parts: int) -> list[dict]:
    """The sample as several, each with its share of the clips.

    Raises:
        ValueError: if the clips do not come as a tensor (V, …), or V cannot be divided.
    """
    clips = sample['inputs']
    if not isinstance(clips, torch.Tensor) or len(clips) % parts:
        what = f'{len(clips)} clips' if isinstance(clips, torch.Tensor) else type(clips).__name__
        raise ValueError(
            f'spread_pairs needs a pipeline that ends in the clips of {parts} pairs, got {what}'
        )
    # copies, for a part of a tensor keeps all of it in memory
    return [
        {**sample, 'inputs': share.clone(), 'data_samples': copy.deepcopy(sample['data_samples'])}
        for share in clips.chunk(parts)
    ]


def by_numbers(name: str) -> list[int | str]:
    """Sort key that puts ``9.jpg`` before ``10.jpg``."""
    return [int(s) if s.isdecimal() else s for s in re.split(r'(\d+)', name)]


def _path_of(info: dict) -> str:
    if 'member' in info:
        return f'{info["filename"]}: {info["member"]}'
    return info.get('filename') or info['frame_dir']
