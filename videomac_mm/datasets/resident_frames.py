"""All frames of a small set of videos, decoded once and kept on a device."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from videomac_mm.registry import DATASETS, TRANSFORMS


class ResidentFrames:
    """The frames of a data set of video files, decoded when the first of them is asked for.

    Args:
        dataset: config of the data set, its pipeline ``OpenVideo`` alone.
        max_bytes: of all frames.
    """

    def __init__(self, dataset: dict, max_bytes: int) -> None:
        self.dataset = dataset
        self.max_bytes = max_bytes
        self.videos: dict[str, Tensor] = {}

    def frames(
        self, video: str, numbers: Sequence[int], device: torch.device | str
    ) -> list[Tensor]:
        """Give frames of a video, (H, W, 3) uint8 each, on the device of the first call.

        Raises:
            ValueError: for a video that is not in the data set, or could not be read; at the
                first call, if the frames take more than ``max_bytes``.
        """
        if not self.videos:
            self.videos = self._load(device)
        if video not in self.videos:
            raise ValueError(f'{video} is not among the {len(self.videos)} resident videos')
        return [self.videos[video][number] for number in numbers]

    def _load(self, device: torch.device | str) -> dict[str, Tensor]:
        """All frames of each video that can be read, (N, H, W, 3) uint8."""
        dataset = DATASETS.build(self.dataset)
        decode = TRANSFORMS.build(dict(type='videomac_mm.DecodeFrames'))
        videos, num_bytes = {}, 0
        for i in range(len(dataset)):
            opened = dataset.prepare_data(i)
            if opened is None:  # unusable, as it will be in training
                continue
            reader, total = opened['video_reader'], opened['total_frames']
            height, width = reader.size
            num_bytes += total * height * width * 3
            if num_bytes > self.max_bytes:
                raise ValueError(
                    f'resident frames exceed max_bytes={self.max_bytes}: the first {i + 1} of '
                    f'{len(dataset)} videos take {num_bytes}'
                )
            frames = decode(dict(video_reader=reader, frame_inds=range(total)))['imgs']
            videos[opened['filename']] = torch.from_numpy(np.stack(frames)).to(device)
        return videos
