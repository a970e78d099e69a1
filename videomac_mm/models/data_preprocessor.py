"""Crops of a batch on the device that trains, of frames that come with it or stay there."""

import numpy as np
import torch
import torch.nn.functional as F
from mmaction.models import ActionDataPreprocessor
from torch import Tensor

from videomac_mm.datasets.resident_frames import ResidentFrames
from videomac_mm.registry import MODELS

INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic')


@MODELS.register_module()
class CropPreprocessor(ActionDataPreprocessor):
    """Cut, resize, flip and normalise whole frames with the crops that a pipeline drew.

    Takes what :class:`PackCrops` packs: workers then only decode, and the rest of the work is the
    device's. The result is that of the same crops on the CPU, to a level of 255: both
    interpolate without a low-pass filter, and round. It pays where frames are about as
    small as crops, or several crops come from each: a whole frame of 720p is 18 times the bytes
    of a crop of 224 pixels.

    Args:
        interpolation: ``'nearest'``, ``'bilinear'`` or ``'bicubic'``. Defaults to ``'bicubic'``.
        resident: config of a data set of video files, its pipeline ``OpenVideo`` alone. All frames
            of its videos are decoded at the first batch and stay on the device, (H, W, 3) uint8
            each. The pipeline of training then begins with ``OpenResidentVideo``, over the same
            paths. Defaults to None.
        max_bytes: of resident frames; wanted with ``resident``. Defaults to None.
        **kwargs: of ``mmaction.ActionDataPreprocessor``: ``mean``, ``std`` …; ``format_shape`` is
            ``'NCTHW'``.

    Raises:
        ValueError: if an argument is not one of its allowed values; at the first batch, if the
            resident frames do not fit.
    """

    def __init__(
        self,
        interpolation: str = 'bicubic',
        resident: dict | None = None,
        max_bytes: int | None = None,
        **kwargs,
    ) -> None:
        if interpolation not in INTERPOLATIONS:
            raise ValueError(
                f'interpolation must be one of {INTERPOLATIONS}, got {interpolation!r}'
            )
        if (resident is None) != (max_bytes is None) or (max_bytes or 0) < 0:
            raise ValueError(
                'resident and max_bytes (at least 0) go together, got '
                f'{resident!r} and {max_bytes!r}'
            )
        super().__init__(**{'format_shape': 'NCTHW', **kwargs})
        self.interpolation = interpolation
        self.resident = None if resident is None else ResidentFrames(resident, max_bytes)

    def preprocess(self, inputs: dict, data_samples: list, training: bool = False) -> tuple:
        """Normalised clips (B, V, 3, T, H, W) float, and the samples.

        Args:
            inputs: what :class:`PackCrops` describes, a list of B of each.
            data_samples: B of them.
            training: of ``ActionDataPreprocessor``.
        """
        samples = [dict(zip(inputs, values)) for values in zip(*inputs.values())]
        for sample in samples:
            if 'video' in sample:
                video, numbers = sample.pop('video'), sample['frames'].tolist()
                if self.resident is None:
                    raise ValueError('frames of OpenResidentVideo need the argument resident')
                sample['frames'] = self.resident.frames(video, numbers, self.device)
        clips = [self.cut(**sample) for sample in samples]
        return super().preprocess(clips, data_samples, training)

    def cut(
        self,
        frames: Tensor | list[Tensor],
        places: np.ndarray,
        boxes: np.ndarray,
        flip: np.ndarray,
        size: np.ndarray,
    ) -> Tensor:
        """The clips of one sample: (V, 3, T, H, W) float in whole levels of [0, 255]."""
        clips = []
        smooth = dict(align_corners=False) if self.interpolation != 'nearest' else {}
        for clip, box, flipped in zip(places.tolist(), boxes.tolist(), flip.tolist()):
            left, top, right, bottom = box
            # slices, for an index would have to travel to the device
            part = torch.stack([frames[i][top:bottom, left:right] for i in clip])
            part = part.permute(0, 3, 1, 2).float()  # (T, 3, h, w)
            part = F.interpolate(part, tuple(size.tolist()), mode=self.interpolation, **smooth)
            part = part.clamp(0, 255).round()
            clips.append(part.flip(-1) if flipped else part)
        return torch.stack(clips).transpose(1, 2)
