"""First-frame labels become soft maps on the feature grid, and maps become labels again."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement
from PIL import Image
from torch import Tensor

from videomac_mm.registry import TASK_UTILS


@TASK_UTILS.register_module()
class MaskCodec:
    """Masks of objects or parts, one channel an id.

    Args:
        label_resize: how a mask gets to the grid. 'nearest': the id at the centre of each
            cell, for ids from 0 to the largest that is left (DINO). 'bilinear': the ids
            present, one-hot at the size of the image, then resized; soft at borders (CRW).
        min_max: stretch each channel to [0, 1] before the arg-max, as DINO does: an object
            that fades does not vanish. Defaults to False.
        blend_ids: with 'bilinear', resize the ids themselves bilinearly to the size of the
            image, as CRW's code does by mistake: numbers between two ids appear along
            borders. Defaults to False: nearest.
        output_size: of the predicted mask: 'native', or 'image', the input of the network
            (as CRW leaves VIP's). Defaults to 'native'.

    Raises:
        ValueError: for another ``label_resize`` or ``output_size``.

    Source: DINO's ``eval_video_segmentation.py`` and CRW's ``test.py``.
    """

    def __init__(
        self,
        label_resize: str = 'nearest',
        min_max: bool = False,
        blend_ids: bool = False,
        output_size: str = 'native',
    ) -> None:
        for name, value, known in (
            ('label_resize', label_resize, ('nearest', 'bilinear')),
            ('output_size', output_size, ('native', 'image')),
        ):
            if value not in known:
                raise ValueError(f'{name} must be one of {known}, got {value!r}')
        self.label_resize = label_resize
        self.min_max = min_max
        self.blend_ids = blend_ids
        self.output_size = output_size

    def encode(self, sample: BaseDataElement, grid: tuple[int, int]) -> tuple[Tensor, np.ndarray]:
        """Soft maps of the first label.

        Args:
            sample: with ``gt_label`` (H, W) uint8, and ``img_shape`` of the network's input.
            grid: (h, w) of the features.

        Returns:
            (L, h, w) float32 in [0, 1], and the ids (L,) of the channels.

        Raises:
            ValueError: if there is no label.
        """
        label = _required(sample, 'gt_label')
        if self.label_resize == 'nearest':
            small = resize_mask(label, grid)
            ids = np.arange(small.max() + 1)
            return torch.from_numpy(small[None] == ids[:, None, None]).float(), ids
        size = sample.img_shape
        if self.blend_ids:
            label = cv2.resize(label, size[::-1], interpolation=cv2.INTER_LINEAR)
        else:
            label = resize_mask(label, size)
        ids = np.unique(label)
        one_hot = torch.from_numpy(label[None] == ids[:, None, None]).float()
        return F.interpolate(one_hot[None], grid, mode='bilinear')[0], ids

    def decode(self, labels: Tensor, ids: np.ndarray, sample: BaseDataElement) -> None:
        """Write the mask of a frame into its sample.

        Args:
            labels (L, h, w): soft maps.
            ids (L,): as `encode` returned them.
            sample: with ``img_shape`` and ``ori_shape``. Gets ``pred_label``, (H, W) uint8.
        """
        maps = F.interpolate(labels[None].float(), sample.img_shape, mode='bilinear')[0]
        if self.min_max:
            maps = min_max(maps)
        mask = ids.astype(np.uint8)[maps.argmax(0).cpu().numpy()]
        if self.output_size == 'native':
            mask = resize_mask(mask, sample.ori_shape)
        sample.pred_label = mask

    def decode_first(self, labels: Tensor, ids: np.ndarray, sample: BaseDataElement) -> None:
        """The same for the first frame: its own label (DINO), or what is left of it (CRW)."""
        if self.label_resize == 'nearest' and self.output_size == 'native':
            sample.pred_label = sample.gt_label
        else:
            self.decode(labels, ids, sample)


@TASK_UTILS.register_module()
class KeypointCodec:
    """Key-points, one channel each and one for what is none of them.

    Args:
        sigma: of the Gaussian that a point becomes, in cells. Defaults to 0.5.
        topk: cells whose mean is the place of a point. Defaults to 3.

    Source: CRW's ``data/jhmdb.py`` and ``utils/test_utils.py``.
    """

    def __init__(self, sigma: float = 0.5, topk: int = 3) -> None:
        self.sigma = sigma
        self.topk = topk

    def encode(self, sample: BaseDataElement, grid: tuple[int, int]) -> tuple[Tensor, np.ndarray]:
        """Soft maps of the first frame's points.

        Args:
            sample: with ``gt_keypoints`` (2, K), x and y in pixels of ``ori_shape``.
            grid: (h, w) of the features.

        Returns:
            (1 + K, h, w) float32, the first channel 1 where no point is; and channel numbers.

        Raises:
            ValueError: if there are no key-points.
        """
        points = _required(sample, 'gt_keypoints')
        height, width = sample.ori_shape
        scale = np.array([[grid[1] / width], [grid[0] / height]])
        maps = np.stack([self.draw(point, grid) for point in (points * scale).T])
        ground = (maps == 0).all(0)
        maps = np.concatenate([ground[None], maps]).astype(np.float32)
        return torch.from_numpy(maps), np.arange(len(maps))

    def draw(self, point: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        """A Gaussian of height 1 around a point.

        As in CRW, it is drawn on whole cells, and as integers are cut towards zero, one cell
        off for points close to the left or upper border.

        Args:
            point (2,): x, y in cells.
            grid: (h, w).

        Returns:
            (h, w) float64, 0 beyond three sigma.
        """
        canvas = np.zeros(grid)
        start = np.trunc(point - 3 * self.sigma).astype(int)  # x, y
        stop = np.trunc(point + 3 * self.sigma + 1).astype(int)
        if (start >= grid[::-1]).any() or (stop < 0).any():
            return canvas
        size = 6 * self.sigma + 1
        offset = np.arange(size) - size // 2
        bell = np.exp(-(offset**2 + offset[:, None] ** 2) / (2 * self.sigma**2))
        first, last = start.clip(0), np.minimum(stop, grid[::-1])
        (x, y), (right, bottom) = first, last
        left, top = first - start
        canvas[y:bottom, x:right] = bell[top : top + bottom - y, left : left + right - x]
        return canvas

    def decode(self, labels: Tensor, ids: np.ndarray, sample: BaseDataElement) -> None:
        """Write the points of a frame into its sample.

        Args:
            labels (1 + K, h, w): soft maps.
            ids: unused.
            sample: gets ``pred_keypoints``, (2, K) float32, x and y in cells, -1 for a point
                that no cell has any share of.
        """
        del ids
        maps = labels[1:].float()
        values, index = maps.flatten(1).topk(min(self.topk, maps[0].numel()))  # (K, topk)
        total = values.sum(1)
        weights = values / total[:, None]
        width = maps.shape[2]
        points = torch.stack(
            [(weights * (index % width)).sum(1), (weights * (index // width)).sum(1)]
        )
        sample.pred_keypoints = points.where(total > 0, -1.0).cpu().numpy()

    decode_first = decode


def min_max(maps: Tensor) -> Tensor:
    """Stretch each channel (L, H, W) to [0, 1], as DINO does before the arg-max.

    Channels without a positive value stay. A constant positive one becomes NaN, which wins
    the arg-max: so a frame that only has background is background.
    """
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return torch.where(high > 0, (maps - low) / (high - low), maps)


def _required(sample: BaseDataElement, field: str) -> np.ndarray:
    if field not in sample:
        raise ValueError(
            f'the first frame of {sample.get("video")!r} has no {field}: a first label is '
            'what label propagation starts from'
        )
    return sample.get(field)


def resize_mask(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring ids (H, W) uint8 to a size (H, W) as PIL does: the pixel at the centre counts."""
    if label.shape == tuple(size):
        return label
    return np.asarray(Image.fromarray(label).resize(size[::-1], Image.Resampling.NEAREST))
