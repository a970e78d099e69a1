"""Videos with labels in their frames: DAVIS, VIP, JHMDB and generated ones.

An item is one frame, however long its video; :class:`VideoSampler` brings the frames
of a video to one process, in order.
"""

import io
import posixpath
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from mmengine import fileio
from mmengine.dataset import BaseDataset
from mmengine.dist import get_dist_info
from mmengine.logging import print_log
from PIL import Image
from torch.utils.data import Sampler

from videomac_mm.datasets.synthetic import SyntheticVideo, SyntheticVideoDataset
from videomac_mm.datasets.unlabelled_videos import IMAGE_EXTENSIONS, by_numbers
from videomac_mm.registry import DATA_SAMPLERS, DATASETS


class LabelledVideos(BaseDataset):
    """Base of the data sets of files.

    Items are ordered by video (as in the list), then by frame (numbers in the names
    count as numbers). The pipeline starts from ``video`` (name), ``frame_id`` (from 0),
    ``num_frames``, ``img_path`` and, where the frame is annotated, ``label`` (H, W)
    uint8 with its ``label_path``, or ``keypoints`` (2, K) float64: x, y in pixels of
    the native frame, the first pixel's centre being 0. First frames always are.
    :class:`PackFrame` ends it.

    Args:
        data_root: folder of the data. Required.
        ann_file: list of the videos, relative to ``data_root``. Blank lines and lines
            that start with ``#`` are ignored, a video counts once.
        pipeline: transforms. Defaults to none.
        backend_args: of the mmengine file backend, for lists and labels; LoadFrame
            takes its own. Defaults to None (by the path).
        **kwargs: of ``BaseDataset``.

    Raises:
        FileNotFoundError: if ``data_root``, the list, the frames of a listed video or
            the label of a first frame do not exist; names what was looked for.
        ValueError: if the list is empty; for an item, if its label is not a picture of
            8-bit ids. Names the file.
    """

    frame_folder: str
    label_folder: str

    def __init__(
        self,
        data_root: str,
        ann_file: str = '',
        pipeline: Sequence[dict | Callable] = (),
        backend_args: dict | None = None,
        **kwargs,
    ) -> None:
        if not data_root:
            raise ValueError(f'data_root must name a folder, got {data_root!r}')
        if not fileio.exists(data_root, backend_args=backend_args):
            raise FileNotFoundError(f'data_root does not exist: {data_root}')
        self.backend_args = backend_args
        # outside of test mode, BaseDataset puts other frames in the place of missing ones
        kwargs.setdefault('test_mode', True)
        super().__init__(ann_file=ann_file, data_root=data_root, pipeline=pipeline, **kwargs)

    def load_data_list(self) -> list[dict]:
        data_list = []
        for video in dict.fromkeys(self._videos()):
            frames = self._frames(video)
            data_list += [
                dict(video=video, frame_id=frame_id, num_frames=len(frames), **frame)
                for frame_id, frame in enumerate(frames)
            ]
        return data_list

    def prepare_data(self, idx: int) -> dict:
        info = self.get_data_info(idx)
        if 'label_path' in info:
            info['label'] = self._label(info)
        return self.pipeline(info)

    def _videos(self) -> list[str]:
        """Names of the videos, by default the last folder of each line of the list."""
        return [_last_folder(line) for line in self._lines(self.ann_file)]

    def _frames(self, video: str) -> list[dict]:
        """What the pipeline starts from, for each frame of a video."""
        labels = self._path(self.label_folder, video)
        labelled = set(self._names(labels))
        frames = []
        for path in self._images(video):
            name = f'{posixpath.splitext(posixpath.basename(path))[0]}.png'
            frame = dict(img_path=path)
            if name in labelled:
                frame['label_path'] = self._join(labels, name)
            elif not frames:
                raise FileNotFoundError(
                    f'the first frame of {video} has no label: {self._join(labels, name)}'
                )
            frames.append(frame)
        return frames

    def _images(self, video: str) -> list[str]:
        folder = self._path(self.frame_folder, video)
        names = [name for name in self._names(folder) if name.lower().endswith(IMAGE_EXTENSIONS)]
        if not names:
            raise FileNotFoundError(f'no frames of {video} in {folder}')
        return [self._join(folder, name) for name in sorted(names, key=by_numbers)]

    def _label(self, info: dict) -> np.ndarray:
        """Ids (H, W) uint8; of a palette picture the indices, not the colours."""
        return read_ids(info['label_path'], self.backend_args)

    # ------------------------------------------------------------------------ files

    def _lines(self, path: str) -> list[str]:
        try:
            text = fileio.get_text(path, backend_args=self.backend_args)
        except OSError as err:
            raise FileNotFoundError(f'cannot read the list of videos: {path}') from err
        lines = [line.strip() for line in text.splitlines()]
        lines = [line for line in lines if line and not line.startswith('#')]
        if not lines:
            raise ValueError(f'the list of videos is empty: {path}')
        return lines

    def _names(self, folder: str, folders: bool = False) -> list[str]:
        """Names of the files (or folders) in a folder, none if it does not exist."""
        try:
            return list(
                fileio.list_dir_or_file(
                    folder,
                    list_dir=folders,
                    list_file=not folders,
                    backend_args=self.backend_args,
                )
            )
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _exists(self, path: str) -> bool:
        return fileio.exists(path, backend_args=self.backend_args)

    def _join(self, folder: str, *names: str) -> str:
        return fileio.join_path(folder, *names, backend_args=self.backend_args)

    def _path(self, *names: str) -> str:
        return self._join(self.data_root, *names)


def _last_folder(line: str) -> str:
    """``name`` of a line of a list.

    Lines are ``name``, ``…/name …/name`` (frames and labels, as CRW's lists) or
    ``…/name/00000.jpg …`` (DAVIS-2016, a line for each frame).
    """
    if '/' not in line:
        return line
    path = line.split()[0]
    if path.lower().endswith(IMAGE_EXTENSIONS):
        path = posixpath.dirname(path)
    return posixpath.basename(path.rstrip('/'))


def read_ids(path: str, backend_args: dict | None = None) -> np.ndarray:
    """Ids (H, W) uint8 of a label: of a palette picture the indices, not the colours.

    Raises:
        ValueError: if the file is not a picture of 8-bit ids; names it.
    """
    data = fileio.get(path, backend_args=backend_args)
    try:
        with Image.open(io.BytesIO(data)) as img:
            mode, ids = img.mode, np.asarray(img)
    except (OSError, SyntaxError) as err:  # PIL's ways to say broken
        raise ValueError(f'cannot decode label {path}') from err
    if mode not in ('P', 'L', '1'):
        raise ValueError(
            'a label must be a picture of 8-bit ids, palette or grey '
            f"(PIL mode 'P', 'L' or '1'), {path} has mode {mode!r}"
        )
    return ids.astype(np.uint8)


@DATASETS.register_module()
class DAVISDataset(LabelledVideos):
    """DAVIS, semi-supervised: the masks of the first frame are given.

    Layout: ``JPEGImages/<resolution>/<video>/*.jpg``,
    ``Annotations/<resolution>/<video>/*.png``, ``ImageSets/<year>/<split>.txt`` (for
    2016 also ``ImageSets/<resolution>/<split>.txt`` of that year's release). Without
    ``ImageSets`` and ``ann_file``, all videos are used. Sources:
    https://arxiv.org/abs/1704.00675 (2017), https://davischallenge.org.

    Ids are 0 for the background, n for the n-th object. 255 (void) is background, as in
    the official evaluation. For 2016, everything that is not 0 is one object, of id 1.

    Args:
        data_root, ann_file, pipeline, backend_args, **kwargs: as in
            :class:`LabelledVideos`. ``ann_file`` holds names, or paths of frames or
            of their folders. Defaults to '', the official list.
        year: 2017 or 2016. Defaults to 2017.
        split: name of the official list. Defaults to ``'val'``.
        resolution: name of a folder. Defaults to ``'480p'``.

    Raises:
        ValueError: if ``year`` is neither, or if the first mask for 2017 is one of 2016.
    """

    def __init__(
        self,
        data_root: str,
        ann_file: str = '',
        year: int = 2017,
        split: str = 'val',
        resolution: str = '480p',
        **kwargs,
    ) -> None:
        if year not in (2016, 2017):
            raise ValueError(f'year must be 2016 or 2017, got {year!r}')
        self.year = year
        self.split = split
        self.resolution = resolution
        self.frame_folder = f'JPEGImages/{resolution}'
        self.label_folder = f'Annotations/{resolution}'
        super().__init__(data_root, ann_file, **kwargs)

    def _videos(self) -> list[str]:
        if self.ann_file:
            return super()._videos()
        if not self._exists(self._path('ImageSets')):
            return self._all_videos()
        folders = [self.year] if self.year == 2017 else [self.year, self.resolution]
        files = [self._path('ImageSets', str(name), f'{self.split}.txt') for name in folders]
        for file in files:
            if self._exists(file):
                return [_last_folder(line) for line in self._lines(file)]
        raise FileNotFoundError(f'no list of videos, looked for {" and ".join(files)}')

    def _all_videos(self) -> list[str]:
        folder = self._path(self.frame_folder)
        videos = sorted(self._names(folder, folders=True))
        if not videos:
            raise FileNotFoundError(f'no videos in {folder}')
        print_log(
            f'{self.data_root} has no ImageSets: all {len(videos)} videos are used', 'current'
        )
        return videos

    def _label(self, info: dict) -> np.ndarray:
        ids = super()._label(info)
        if self.year == 2016:
            return (ids > 0).astype(np.uint8)
        void = ids == 255
        ids[void] = 0
        if info['frame_id'] == 0 and void.any() and not ids.any():
            raise ValueError(
                f'{info["label_path"]} holds no id but 0 and 255: for masks of DAVIS-2016 '
                'set year=2016'
            )
        return ids


@DATASETS.register_module()
class VIPDataset(LabelledVideos):
    """VIP, human parts: the classes of the first frame's pixels are given.

    Layout (VIP_Fine): ``Images/<video>/*.jpg``,
    ``Annotations/Category_ids/<video>/*.png``, ``lists/val_videos.txt``. Ids are
    classes, two persons in a frame share them; those beyond the classes (255) are left
    as they are. Source: https://arxiv.org/abs/1808.00661.

    Args:
        data_root, ann_file, pipeline, backend_args, **kwargs: as in
            :class:`LabelledVideos`. ``ann_file`` defaults to ``'lists/val_videos.txt'``.
    """

    METAINFO = dict(
        classes=(
            *('background', 'hat', 'hair', 'sun-glasses', 'upper-clothes', 'dress', 'coat'),
            *('socks', 'pants', 'gloves', 'scarf', 'skirt', 'torso-skin', 'face', 'right-arm'),
            *('left-arm', 'right-leg', 'left-leg', 'right-shoe', 'left-shoe'),
        )
    )

    frame_folder = 'Images'
    label_folder = 'Annotations/Category_ids'

    def __init__(self, data_root: str, ann_file: str = 'lists/val_videos.txt', **kwargs) -> None:
        super().__init__(data_root, ann_file, **kwargs)


@DATASETS.register_module()
class JHMDBDataset(LabelledVideos):
    """JHMDB, human pose: the 15 joints of the first frame are given.

    Layout: ``Rename_Images/<class>/<video>/*.png``,
    ``joint_positions/<class>/<video>/joint_positions.mat``, and the official
    ``splits/<class>_test_split1.txt`` (``<video>.avi 2`` is a test video). The name of
    a video is ``<class>/<video>``. Frames beyond the annotated ones carry no
    key-points. Source: http://jhmdb.is.tue.mpg.de.

    Args:
        data_root, ann_file, pipeline, backend_args, **kwargs: as in
            :class:`LabelledVideos`. ``ann_file`` is the folder of the official split
            files, or one list of ``<class>/<video>``, ``…/joint_positions.mat`` or
            frame folders, one or both a line (UVC's ``testlist_split1.txt``, with
            any root). Defaults to ``'splits'``.
        split: 1, 2 or 3, of the official split files. Defaults to 1, the one reported.

    Raises:
        ValueError: if ``split`` is another number, or a label file does not hold
            ``pos_img`` (2, K, n) for 1 to as many frames as there are; names the file.
    """

    METAINFO = dict(
        keypoints=(
            *('neck', 'belly', 'face', 'right shoulder', 'left shoulder', 'right hip'),
            *('left hip', 'right elbow', 'left elbow', 'right knee', 'left knee'),
            *('right wrist', 'left wrist', 'right ankle', 'left ankle'),
        )
    )

    frame_folder = 'Rename_Images'
    label_folder = 'joint_positions'

    def __init__(self, data_root: str, ann_file: str = 'splits', split: int = 1, **kwargs) -> None:
        if split not in (1, 2, 3):
            raise ValueError(f'split must be 1, 2 or 3, got {split!r}')
        self.split = split
        super().__init__(data_root, ann_file, **kwargs)

    def _videos(self) -> list[str]:
        if fileio.isdir(self.ann_file, backend_args=self.backend_args):
            return self._official_videos()
        paths = [line.split()[0] for line in self._lines(self.ann_file)]
        paths = [path.removesuffix('/joint_positions.mat').rstrip('/') for path in paths]
        return ['/'.join(path.split('/')[-2:]) for path in paths]

    def _official_videos(self) -> list[str]:
        suffix = f'_test_split{self.split}.txt'
        videos = []
        for file in sorted(name for name in self._names(self.ann_file) if name.endswith(suffix)):
            for line in self._lines(self._join(self.ann_file, file)):
                name, *subset = line.split()
                if subset == ['2']:
                    videos.append(f'{file.removesuffix(suffix)}/{name.removesuffix(".avi")}')
        if not videos:
            raise FileNotFoundError(
                f"no test videos, lines '<video>.avi 2', in {self.ann_file}/*{suffix}"
            )
        return videos

    def _frames(self, video: str) -> list[dict]:
        frames = [dict(img_path=path) for path in self._images(video)]
        path = self._path(self.label_folder, video, 'joint_positions.mat')
        points = self._keypoints(path)  # (n, 2, K)
        if not 1 <= len(points) <= len(frames):
            raise ValueError(f'{path} has {len(points)} frames, {video} has {len(frames)}')
        for frame, keypoints in zip(frames, points):
            frame['keypoints'] = keypoints
        return frames

    def _keypoints(self, path: str) -> np.ndarray:
        from scipy.io import loadmat  # slow to import, and nothing else needs it

        if not self._exists(path):
            raise FileNotFoundError(f'no labels: {path}')
        data = io.BytesIO(fileio.get(path, backend_args=self.backend_args))
        try:
            points = loadmat(data)['pos_img']
        except Exception as err:  # whatever a broken file leads loadmat to
            raise ValueError(f'cannot read pos_img of {path}') from err
        if points.ndim == 2:  # MATLAB drops the last axis of a single frame
            points = points[..., None]
        if points.ndim != 3 or len(points) != 2:
            raise ValueError(f'pos_img must be (2, K, n), {path} has {points.shape}')
        return points.transpose(2, 0, 1).astype(np.float64) - 1  # MATLAB counts from 1


@DATASETS.register_module()
class SyntheticLabelDataset(SyntheticVideoDataset):
    """Generated videos with the labels of each benchmark; needs no files.

    The pipeline starts from the keys of :class:`LabelledVideos` and from ``img``
    (H, W, 3) BGR uint8: no LoadFrame. Every frame is labelled. Ids are objects
    (``'masks'``, as DAVIS) or classes from 1 to 19 (``'parts'``, as VIP);
    ``'keypoints'`` are the five points of each object (15 of three objects, as
    JHMDB), hidden ones too.

    Args:
        num_videos, num_frames, size, num_objects, seed, pipeline, **kwargs: as in
            :class:`SyntheticVideoDataset`.
        form: ``'masks'``, ``'parts'`` or ``'keypoints'``. Defaults to ``'masks'``.

    Raises:
        ValueError: if ``form`` is none of these; else as SyntheticVideoDataset.
    """

    num_classes = 19  # of parts, the background apart

    def __init__(self, num_videos: int, form: str = 'masks', **kwargs) -> None:
        if form not in ('masks', 'parts', 'keypoints'):
            raise ValueError(f"form must be 'masks', 'parts' or 'keypoints', got {form!r}")
        self.form = form
        super().__init__(num_videos, **kwargs)

    def load_data_list(self) -> list[dict]:
        num_frames = self.video_args['num_frames']
        return [
            dict(
                video=f'synthetic_{info["seed"]:04d}',
                frame_id=frame_id,
                num_frames=num_frames,
                img_path=f'synthetic_{info["seed"]:04d}/{frame_id:05d}.png',
                **info,
            )
            for info in super().load_data_list()
            for frame_id in range(num_frames)
        ]

    def prepare_data(self, idx: int) -> dict:
        info = self.get_data_info(idx)
        video, t = SyntheticVideo(info['seed'], **self.video_args), info['frame_id']
        info.update(img=video.frame(t)[..., ::-1], ori_shape=video.size, img_shape=video.size)
        if self.form == 'keypoints':
            info['keypoints'] = video.keypoints(t)[0].reshape(-1, 2).T  # (2, N * K)
        else:
            info['label'] = video.mask(t)
        if self.form == 'parts':
            info['label'] = self._classes(info['seed'])[info['label']]
        return self.pipeline(info)

    def _classes(self, seed: int) -> np.ndarray:
        """The class of each id of a video: not in order, and objects may share one."""
        classes = np.random.default_rng(seed).integers(
            1, self.num_classes + 1, self.video_args['num_objects'] + 1, dtype=np.uint8
        )
        classes[0] = 0
        return classes


@DATA_SAMPLERS.register_module()
class VideoSampler(Sampler):
    """Whole videos to each process, their frames in order.

    Longest first, each video goes to the process with the fewest frames so far. Every
    frame is drawn once over all processes, which may get unequal shares or none. A
    single process gets the plain order.

    Args:
        dataset: with ``video``, ``frame_id`` and ``num_frames`` in its data infos.
        seed: not used; the runner passes it to every sampler.

    Raises:
        ValueError: if the data set does not hold whole videos, one after the other.
    """

    def __init__(self, dataset: BaseDataset, seed: int | None = None) -> None:
        rank, world_size = get_dist_info()
        videos = _whole_videos(dataset)
        shares: list[list[range]] = [[] for _ in range(world_size)]
        for video in sorted(videos, key=len, reverse=True):
            min(shares, key=lambda share: sum(map(len, share))).append(video)
        own = sorted(shares[rank], key=lambda video: video.start)
        self.indices = [index for video in own for index in video]

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def _whole_videos(dataset: BaseDataset) -> list[range]:
    """Indices of the frames of each video."""
    videos: list[range] = []
    start = 0
    while start < len(dataset):
        first = dataset.get_data_info(start)
        video = range(start, start + first['num_frames'])
        for frame_id, index in enumerate(video):
            info = dataset.get_data_info(index) if index < len(dataset) else {}
            if (info.get('video'), info.get('frame_id')) != (first['video'], frame_id):
                raise ValueError(
                    f'frame {frame_id} of {first["video"]} is not in its place: the data set '
                    'must hold whole videos; for fewer of them, shorten the list'
                )
        videos.append(video)
        start = video.stop
    return videos
