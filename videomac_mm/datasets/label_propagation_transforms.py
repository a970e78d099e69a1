"""Pipeline steps for label propagation: from the path of a frame to a packed item."""

import cv2
import mmcv
import numpy as np
import torch
from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmengine.structures import BaseDataElement

from videomac_mm.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadFrame(LoadImageFromFile):
    """mmcv's ``LoadImageFromFile``, with an error that always names the file.

    Required keys: ``img_path``. Added keys: ``img`` (H, W, 3) BGR, ``img_shape``,
    ``ori_shape``.

    Args:
        **kwargs: of ``LoadImageFromFile``; ``to_float32=True`` where the protocol
            resizes in float, ``backend_args`` for remote files.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not a picture.
    """

    def transform(self, results: dict) -> dict | None:
        try:
            return super().transform(results)
        except (AssertionError, cv2.error) as err:  # garbled and empty files
            raise ValueError(f'cannot decode frame {results["img_path"]}') from err


@TRANSFORMS.register_module()
class ResizeShortSide(BaseTransform):
    """Bring the short side to a size, the long one to a whole multiple below.

    The long side keeps the aspect ratio and is then rounded down, so shapes are
    squeezed by a few per cent: 480 x 854 becomes 480 x 832. The short side is taken
    as it is; of a square frame the width is the one rounded. Bilinear, without
    antialiasing, in the type of the frame: uint8 stays uint8.

    Source: DINO, ``eval_video_segmentation.py``, ``read_frame``.

    Required keys: ``img``. Modified keys: ``img``, ``img_shape``.

    Args:
        size: of the short side, in pixels. Defaults to 480.
        divisor: of the long side, in pixels. Defaults to 64.

    Raises:
        ValueError: if ``divisor`` is below 1 or above ``size``.
    """

    def __init__(self, size: int = 480, divisor: int = 64) -> None:
        if not 1 <= divisor <= size:
            raise ValueError(f'divisor must lie in [1, size], got {divisor} for size {size}')
        self.size = size
        self.divisor = divisor

    def transform(self, results: dict) -> dict:
        height, width = results['img'].shape[:2]
        if height > width:
            new = self.size, self._long(height, width)  # (W, H)
        else:
            new = self._long(width, height), self.size
        results['img'] = mmcv.imresize(results['img'], new, backend='cv2')
        results['img_shape'] = results['img'].shape[:2]
        return results

    def _long(self, long: int, short: int) -> int:
        return self.size * long // short // self.divisor * self.divisor


@TRANSFORMS.register_module()
class PackFrame(BaseTransform):
    """Make the item that models for label propagation take.

    Required keys: ``img`` (H, W, 3) BGR, uint8 or float32, and the meta keys below.
    Optional keys: ``label``, ``keypoints``.

    Returns ``inputs`` (3, H, W) and ``data_samples``, a ``BaseDataElement``. Its
    metainfo holds ``video``, ``frame_id``, ``num_frames``, ``ori_shape``,
    ``img_shape``, ``img_path``; its fields, where the frame has such a label,
    ``gt_label`` (H, W) uint8 and ``gt_keypoints`` (2, K) float64, both in native size.

    Raises:
        ValueError: if the label differs from the native frame in size.
    """

    meta_keys = ('video', 'frame_id', 'num_frames', 'ori_shape', 'img_shape', 'img_path')

    def transform(self, results: dict) -> dict:
        sample = BaseDataElement(metainfo={key: results[key] for key in self.meta_keys})
        if 'label' in results:
            label, frame = results['label'].shape, tuple(results['ori_shape'])
            if label != frame:
                raise ValueError(
                    f'label and frame must have one size (H, W): {results["label_path"]} has '
                    f'{label}, {results["img_path"]} has {frame}'
                )
            sample.gt_label = results['label']
        if 'keypoints' in results:
            sample.gt_keypoints = results['keypoints']
        inputs = np.ascontiguousarray(results['img'].transpose(2, 0, 1))
        return dict(inputs=torch.from_numpy(inputs), data_samples=sample)
