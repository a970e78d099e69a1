"""What happens around the steps of masked pre-training and of label propagation."""

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from videomac_mm.registry import HOOKS
from videomac_mm.visualization import (
    ContactSheet,
    VideoWriter,
    draw_keypoints,
    draw_mask,
    keypoints_in_pixels,
)


def _unwrap(model: nn.Module) -> nn.Module:
    return model.module if is_model_wrapper(model) else model


@HOOKS.register_module()
class TargetEMAHook(Hook):
    """Let the target network follow the online one, after each optimiser step.

    ``target = m(t) * target + (1 - m(t)) * online``, where t counts optimiser steps from 0
    and m rises over the T of the whole run along a cosine:
    ``m(t) = end - (end - momentum) * (1 + cos(pi * t / T)) / 2``.
    (The official code restarts this schedule every epoch, which the paper does not mention.)

    Args:
        momentum: m(0), the share of the old value, in [0, 1]. Defaults to 0.996.
        end_momentum: m(T), in [momentum, 1]. Defaults to 1.

    Raises:
        ValueError: unless ``0 <= momentum <= end_momentum <= 1``.
    """

    def __init__(self, momentum: float = 0.996, end_momentum: float = 1.0) -> None:
        if not 0 <= momentum <= end_momentum <= 1:
            raise ValueError(
                'TargetEMAHook needs 0 <= momentum <= end_momentum <= 1, got '
                f'momentum={momentum}, end_momentum={end_momentum}'
            )
        self.momentum = momentum
        self.end_momentum = end_momentum

    def before_train(self, runner) -> None:
        """Refuse models that have no target."""
        if not hasattr(_unwrap(runner.model), 'target'):
            raise TypeError(
                'TargetEMAHook needs a model with a target network, got '
                f'{type(_unwrap(runner.model)).__name__}'
            )

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        """Move the target if this iteration ended in an optimiser step."""
        wrapper = runner.optim_wrapper
        if wrapper.should_update():
            # Counted from the runner, so that a resumed run goes on where it stopped.
            accumulated = wrapper._accumulative_counts
            step = runner.iter // accumulated
            momentum = self.momentum_at(step, math.ceil(runner.max_iters / accumulated))
            model = _unwrap(runner.model)
            model.target.follow(model, momentum)

    def momentum_at(self, step: int, num_steps: int) -> float:
        """m(step) of a run of ``num_steps`` optimiser steps."""
        cosine = (1 + math.cos(math.pi * step / num_steps)) / 2
        return self.end_momentum - (self.end_momentum - self.momentum) * cosine


@HOOKS.register_module()
class ReconstructionHook(Hook):
    """Draw what the networks see and reconstruct, every ``interval`` iterations and at the end.

    The panel has a row per sample: original, masked and predicted first frame (online
    network), then the same of the later frame (target network). Samples and masks are those
    of the first batch throughout, so that panels can be compared.

    Args:
        interval: iterations. Defaults to 1000.
        num_samples: rows of the panel. Defaults to 4.

    Raises:
        ValueError: if one of them is not positive.
    """

    def __init__(self, interval: int = 1000, num_samples: int = 4) -> None:
        if interval < 1 or num_samples < 1:
            raise ValueError(
                f'interval and num_samples must be at least 1, got {interval} and {num_samples}'
            )
        self.interval = interval
        self.num_samples = num_samples
        self._inputs: Tensor | None = None
        self._mask: Tensor | None = None

    @master_only
    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Keep samples of the first batch; draw when it is time."""
        if self._inputs is None:
            self._keep(runner, data_batch)
        if self.every_n_train_iters(runner, self.interval):
            self._draw(runner, runner.iter + 1)

    @master_only
    def after_train(self, runner) -> None:
        """Draw the last panel, unless the last iteration just did."""
        if self._inputs is not None and runner.iter % self.interval:
            self._draw(runner, runner.iter)

    def _keep(self, runner, data_batch: dict) -> None:
        model = _unwrap(runner.model)
        few = {key: value[: self.num_samples] for key, value in data_batch.items()}
        with torch.no_grad():
            inputs = model.data_preprocessor(few)['inputs'][:, :1]  # one pair per video
        generator = torch.Generator().manual_seed(0)
        self._inputs = inputs
        self._mask = model.mask_generator(inputs[:, 0, :, 0], generator)

    def _draw(self, runner, step: int) -> None:
        model = _unwrap(runner.model)
        model.eval()
        pictures = model.reconstruct(self._inputs, self._mask)
        model.train()
        names = ('original', 'masked', 'predicted')
        columns = [pictures[name][:, :, frame] for frame in (0, 1) for name in names]
        panel = torch.cat([torch.cat(list(column), -2) for column in columns], -1)
        runner.visualizer.add_image(
            'reconstruction', self._to_uint8(panel, model.data_preprocessor), step
        )

    @staticmethod
    def _to_uint8(panel: Tensor, preprocessor: nn.Module) -> np.ndarray:
        """(C, H, W) as the model sees it -> (H, W, C) uint8 RGB."""
        if preprocessor._enable_normalize:
            panel = panel * preprocessor.std.view(-1, 1, 1) + preprocessor.mean.view(-1, 1, 1)
        return panel.round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()


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
