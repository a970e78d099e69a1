"""Pipeline steps that cut crops out of frames, clip by clip, beside the crops of mmaction2."""

from collections.abc import Callable, Sequence
from typing import Any

import mmcv
import numpy as np
import torch
from mmaction.structures import ActionDataSample
from mmcv.image.geometric import cv2_interp_codes
from mmcv.transforms import BaseTransform
from mmengine.dataset import Compose

from videomac_mm.datasets.decoding import ResidentFrame
from videomac_mm.datasets.readers.frames import PlanarFrame
from videomac_mm.registry import TRANSFORMS


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
