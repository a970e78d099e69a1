"""Films of the labels that a test predicts."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import mmcv
import numpy as np
from mmengine.hooks import Hook
from mmengine.structures import BaseDataElement
from torch import Tensor

from videomac_mm.registry import HOOKS
from videomac_mm.visualization import (
    ContactSheet,
    VideoWriter,
    draw_keypoints,
    draw_mask,
    keypoints_in_pixels,
)


@HOOKS.register_module()
class PropagationVisualizationHook(Hook):
    """Draw the labels that a test predicts: ``<video>.mp4``, and ``<video>.jpg`` with some frames.

    Frames are those of the batch, as the network gets them, brought back to their native size.
    They are written on arrival, so videos may be long; each process writes its own videos.

    No config has this hook by itself. From the command line: ``--cfg-options
    default_hooks.visualization.type=videomac_mm.PropagationVisualizationHook``, and options
    as ``default_hooks.visualization.show_gt=True``.

    Args:
        out_dir: folder for the files. Defaults to None (``propagation`` in the run's log dir).
        alpha: share of a mask's colour, in [0, 1]. Defaults to 0.5.
        fps: frames per second of the mp4. Defaults to 24.
        sheet_frames: frames in the jpg, evenly spread. Defaults to 8.
        show_gt: put the ground truth on the right; frames without one stay bare there.
            Defaults to False.

    Raises:
        ValueError: if an argument is out of its range; later, if the model predicts neither
            masks nor key-points.
    """

    def __init__(
        self,
        out_dir: str | None = None,
        alpha: float = 0.5,
        fps: float = 24.0,
        sheet_frames: int = 8,
        show_gt: bool = False,
    ) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f'alpha must lie in [0, 1], got {alpha}')
        if fps <= 0 or sheet_frames < 1:
            raise ValueError(
                f'fps must be positive and sheet_frames at least 1, got {fps} and {sheet_frames}'
            )
        self.out_dir = out_dir
        self.alpha = alpha
        self.fps = fps
        self.sheet_frames = sheet_frames
        self.show_gt = show_gt
        self._video: VideoWriter | None = None
        self._sheet: ContactSheet | None = None

    def after_test_iter(
        self,
        runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Sequence[BaseDataElement] | None = None,
    ) -> None:
        """Draw the frame; finish the files after the last one of a video."""
        for inputs, sample in zip(data_batch['inputs'], outputs):
            path = Path(self.out_dir or Path(runner.log_dir) / 'propagation') / sample.video
            if sample.frame_id == 0:
                self._video = VideoWriter(f'{path}.mp4', self.fps)
                pair = 2 if self.show_gt else 1
                self._sheet = ContactSheet(
                    sample.num_frames, self.sheet_frames, columns=4 // pair, width=320 * pair
                )
            picture = self._draw(inputs, sample)
            self._video.write(picture)
            self._sheet.add(picture)
            if sample.frame_id == sample.num_frames - 1:
                self._video.close()
                sheet = cv2.cvtColor(self._sheet.picture(), cv2.COLOR_RGB2BGR)
                mmcv.imwrite(sheet, f'{path}.jpg')

    def _draw(self, inputs: Tensor, sample: BaseDataElement) -> np.ndarray:
        """(H, W, 3) RGB of a frame (3, H, W) BGR, twice as wide with ground truth."""
        frame = inputs.round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
        height, width = sample.ori_shape
        frame = cv2.resize(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), (width, height))
        if 'pred_label' in sample:
            picture = draw_mask(frame, sample.pred_label, self.alpha)
        elif 'pred_keypoints' in sample:
            points = keypoints_in_pixels(sample.pred_keypoints, sample.grid, sample.ori_shape)
            picture = draw_keypoints(frame, points)
        else:
            raise ValueError(
                'PropagationVisualizationHook needs pred_label or pred_keypoints, the model '
                f'predicts only {sorted(sample.keys())}'
            )
        if not self.show_gt:
            return picture
        if 'gt_label' in sample:
            frame = draw_mask(frame, sample.gt_label, self.alpha)
        elif 'gt_keypoints' in sample:
            frame = draw_keypoints(frame, sample.gt_keypoints)
        return np.concatenate([picture, frame], 1)
