"""Label propagation on any video."""

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.registry import DefaultScope
from mmengine.runner import autocast, load_checkpoint
from PIL import Image

from videomac_mm.datasets import LoadFrame, open_video
from videomac_mm.datasets.label_propagation import read_ids
from videomac_mm.datasets.unlabelled_videos import IMAGE_EXTENSIONS, by_numbers
from videomac_mm.models import KeypointCodec, LabelPropagator
from videomac_mm.models.label_propagation.codecs import resize_mask
from videomac_mm.registry import MODELS
from videomac_mm.visualization import (
    PALETTE,
    VideoWriter,
    draw_keypoints,
    draw_mask,
    keypoints_in_pixels,
)

Video = str | os.PathLike | Iterable[np.ndarray]
Label = str | os.PathLike | np.ndarray


class LabelPropagationInferencer:
    """Propagate the masks or key-points of a first frame through a video.

    Frames go the way of the config's test pipeline and data preprocessor: predictions are
    those of ``mim test`` on the same frames::

        inferencer = LabelPropagationInferencer(config, checkpoint)
        masks = inferencer('dog.mp4', 'first_mask.png', out_file='dog_masks.mp4')

    Args:
        config: of label propagation, or its file.
        checkpoint: file or URL. Defaults to None (the config's own weights, as in tests).
        device: such as ``'cuda:1'``. Defaults to None (the accelerator, if there is one).

    Raises:
        TypeError: if the model of the config is another one than LabelPropagator.
    """

    def __init__(
        self,
        config: str | os.PathLike | Config,
        checkpoint: str | os.PathLike | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        cfg = config if isinstance(config, Config) else Config.fromfile(config)
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
            self.model = MODELS.build(cfg.model)
            steps = Compose(cfg.test_dataloader.dataset.pipeline).transforms
        if not isinstance(self.model, LabelPropagator):
            raise TypeError(
                'a config of label propagation is needed, one whose model is LabelPropagator, '
                f'got {type(self.model).__name__}'
            )
        checkpoint = checkpoint or cfg.get('load_from')
        if checkpoint:
            load_checkpoint(self.model, str(checkpoint), map_location='cpu')
        self.model.to(device or get_device()).eval()
        self._fp16 = cfg.get('test_cfg', {}).get('fp16', False)
        loads = bool(steps) and isinstance(steps[0], LoadImageFromFile)
        self._load = steps[0] if loads else LoadFrame()
        self._pipeline = Compose(steps[1:] if loads else steps)
        self._current: object | None = None

    def __call__(
        self,
        video: Video,
        first_label: Label,
        out_file: str | os.PathLike | None = None,
        out_dir: str | os.PathLike | None = None,
        alpha: float = 0.5,
        fps: float | None = None,
    ) -> np.ndarray:
        """All frames at once; arguments and errors are those of :meth:`stream`.

        Returns:
            (T, H, W) uint8 masks, or (T, 2, K) float32 key-points.
        """
        return np.stack(list(self.stream(video, first_label, out_file, out_dir, alpha, fps)))

    def stream(
        self,
        video: Video,
        first_label: Label,
        out_file: str | os.PathLike | None = None,
        out_dir: str | os.PathLike | None = None,
        alpha: float = 0.5,
        fps: float | None = None,
    ) -> Iterator[np.ndarray]:
        """Frame by frame: memory does not grow with the length of the video.

        Args:
            video: a video file; a folder of frames, in the order of their names; or frames
                (H, W, 3) uint8 RGB, of any iterable.
            first_label: of the first frame, in its size. Ids (H, W), 0 = background, or the
                file of a palette or grey picture of them; 255 is background, but in a mask of
                0 and 255 alone it is the object, of id 1. Where the config is one of
                key-points: x and y in pixels (2, K).
            out_file: ``.mp4`` file for the frames with the labels drawn in. Defaults to None.
            out_dir: folder for the masks as indexed PNG files, named after the frames of a
                folder, else ``00000.png`` …. Defaults to None.
            alpha: share of a mask's colour in ``out_file``. Defaults to 0.5.
            fps: of ``out_file``. Defaults to None (that of the video file, else 24).

        Yields:
            Mask (H, W) uint8, or key-points (2, K) float32 in pixels, NaN = lost; for every
            frame, the first included, in native size.

        Raises:
            FileNotFoundError: if ``video`` does not exist.
            OSError: if a frame or a label cannot be read, or an output not be written.
            ValueError: if the video cannot be decoded, has no frames or some of several
                sizes; if ``first_label`` is not of the config's kind or the frame's size.
            RuntimeError: if another video has been started in the meantime.
        """
        points = isinstance(self.model.codec, KeypointCodec)
        if points and out_dir is not None:
            raise ValueError('out_dir is for masks, the config propagates key-points')
        frames, own_fps = self._open(video)
        current = self._current = object()
        size = None
        with ExitStack() as stack:
            if out_file is not None:
                writer = stack.enter_context(VideoWriter(out_file, fps or own_fps))
            for frame_id, frame in enumerate(frames):
                image = _to_rgb(frame['img'])
                if size is None:
                    size = image.shape[:2]
                    if points:
                        frame['keypoints'] = _checked_points(first_label)
                    else:
                        frame['label'] = _checked_mask(first_label, size)
                elif image.shape[:2] != size:
                    raise ValueError(
                        f'the frames of a video must have one size: frame {frame_id} has '
                        f'{image.shape[:2]}, the first {size} (H, W)'
                    )
                if self._current is not current:
                    raise RuntimeError(
                        'another video was started before this one ended: an inferencer '
                        'follows one at a time'
                    )
                label = self._predict(frame, frame_id)
                if out_dir is not None:
                    _save_mask(label, Path(out_dir) / f'{Path(frame["img_path"]).stem}.png')
                if out_file is not None:
                    writer.write(
                        draw_keypoints(image, label) if points else draw_mask(image, label, alpha)
                    )
                yield label
        if size is None:
            raise ValueError('the video has no frames')

    def _predict(self, frame: dict, frame_id: int) -> np.ndarray:
        """The label of the next frame, in native size."""
        # How long a stream will be, nobody knows.
        frame.update(video='video', frame_id=frame_id, num_frames=None)
        batch = pseudo_collate([self._pipeline(frame)])
        with torch.no_grad(), autocast(enabled=self._fp16):
            (sample,) = self.model.test_step(batch)
        if 'pred_keypoints' in sample:
            return keypoints_in_pixels(sample.pred_keypoints, sample.grid, sample.ori_shape)
        return resize_mask(sample.pred_label, sample.ori_shape)

    def _open(self, video: Video) -> tuple[Iterator[dict], float]:
        """What the pipeline starts from, frame by frame, and frames per second."""
        if not isinstance(video, (str, os.PathLike)):
            return self._from_arrays(video), 24.0
        path = Path(video)
        if path.is_dir():
            names = [name for name in os.listdir(path) if name.lower().endswith(IMAGE_EXTENSIONS)]
            if not names:
                raise ValueError(f'no frames in {path}: no {", ".join(IMAGE_EXTENSIONS)}')
            files = (str(path / name) for name in sorted(names, key=by_numbers))
            return (self._load(dict(img_path=file)) for file in files), 24.0
        if not path.is_file():
            raise FileNotFoundError(f'no video file or folder of frames: {path}')
        reader = open_video(path, num_threads=0)
        return self._from_arrays(reader), reader.fps if reader.fps > 0 else 24.0

    def _from_arrays(self, frames: Iterable[np.ndarray]) -> Iterator[dict]:
        for number, frame in enumerate(frames):
            frame = np.asarray(frame)
            if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
                raise ValueError(
                    f'frames must be (H, W, 3) uint8, frame {number} is {_describe(frame)}'
                )
            img = np.ascontiguousarray(frame[..., ::-1])
            if self._load.to_float32:
                img = img.astype(np.float32)
            size = img.shape[:2]
            yield dict(img=img, img_shape=size, ori_shape=size, img_path=f'{number:05d}')


def _to_rgb(img: np.ndarray) -> np.ndarray:
    """(H, W, 3) BGR, whole numbers of any type -> uint8 RGB."""
    return np.ascontiguousarray(img[..., ::-1]).astype(np.uint8)


def _checked_points(label: Label) -> np.ndarray:
    points = np.asarray(label)
    if points.dtype.kind not in 'iuf' or points.ndim != 2 or len(points) != 2:
        raise ValueError(
            'the config propagates key-points: first_label must be their x and y in pixels, '
            f'(2, K), got {_describe(label)}'
        )
    if not np.isfinite(points).all():
        raise ValueError('first_label must be finite: leave out key-points that are not seen')
    return points.astype(np.float64)


def _checked_mask(label: Label, size: tuple[int, int]) -> np.ndarray:
    """Ids (H, W) uint8; for 255, see `LabelPropagationInferencer.stream`."""
    ids = read_ids(os.fspath(label)) if isinstance(label, (str, os.PathLike)) else np.asarray(label)
    if ids.dtype.kind not in 'biu' or ids.ndim != 2:
        raise ValueError(
            'the config propagates masks: first_label must be whole numbers (H, W), or the '
            f'file of a mask, got {_describe(label)}'
        )
    if ids.shape != size:
        raise ValueError(f'first_label and frame must have one size: {ids.shape} and {size} (H, W)')
    if ids.min() < 0 or ids.max() > 255:
        raise ValueError(f'ids must lie in [0, 255], got {ids.min()} to {ids.max()}')
    binary = ids.max() == 255 and np.isin(ids, (0, 255)).all()
    return (ids == 255 if binary else np.where(ids == 255, 0, ids)).astype(np.uint8)


def _save_mask(mask: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    img = Image.fromarray(mask)
    img.putpalette(PALETTE.tobytes())
    img.save(path)


def _describe(value: object) -> str:
    if value is None or isinstance(value, (str, os.PathLike)):
        return repr(value)
    array = np.asarray(value)
    return f'{array.dtype} of shape {array.shape}'
