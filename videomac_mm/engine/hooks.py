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
from torch.distributed.fsdp import FullyShardedDataParallel

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
        """Announce itself to the target; refuse models without one that can follow.

        Raises:
            TypeError, ValueError: for models without a target, and as `TargetNetwork.check`.
        """
        model = _unwrap(runner.model)
        if not hasattr(model, 'target'):
            raise TypeError(
                f'TargetEMAHook needs a model with a target network, got {type(model).__name__}'
            )
        if isinstance(runner.model, FullyShardedDataParallel):
            raise TypeError(
                'TargetEMAHook cannot move the target of a model that FSDP shards: the target '
                'holds whole tensors; use MMDistributedDataParallel'
            )
        model.target.check(model)
        model.target.mover = type(self).__name__

    def after_train(self, runner) -> None:
        """Withdraw: the model may be trained again without this hook."""
        _unwrap(runner.model).target.mover = None

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

    The panel has a row for each of the model's pictures (original, masked, predicted, and what
    else it shows), and a column for each frame: those of the first sample, then of the next. Of
    clips longer than a pair there is a film as well, ``reconstruction/<iteration>.mp4`` in the
    run's log dir, with a row per sample. Samples and masks are the same throughout, so that
    panels can be compared.

    Args:
        interval: iterations. Defaults to 1000.
        num_samples: clips of the first batch. Defaults to 4.
        num_frames: frames of a clip in the panel, evenly spread. Defaults to 4.
        fps: frames per second of the film. Defaults to 8.

    Raises:
        ValueError: if one of them is not positive.
    """

    def __init__(
        self, interval: int = 1000, num_samples: int = 4, num_frames: int = 4, fps: float = 8.0
    ) -> None:
        if min(interval, num_samples, num_frames) < 1 or fps <= 0:
            raise ValueError(
                'interval, num_samples and num_frames must be at least 1 and fps positive, got '
                f'{interval}, {num_samples}, {num_frames} and {fps}'
            )
        self.interval = interval
        self.num_samples = num_samples
        self.num_frames = num_frames
        self.fps = fps
        self._inputs: Tensor | None = None

    @master_only
    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Keep samples of the first batch; draw when it is time."""
        if self._inputs is None:
            few = {key: value[: self.num_samples] for key, value in data_batch.items()}
            with torch.no_grad():
                inputs = _unwrap(runner.model).data_preprocessor(few)['inputs']
            self._inputs = inputs[:, :1]  # one clip per video
        if self.every_n_train_iters(runner, self.interval):
            self._draw(runner, runner.iter + 1)

    @master_only
    def after_train(self, runner) -> None:
        """Draw the last panel, unless the last iteration just did."""
        if self._inputs is not None and runner.iter % self.interval:
            self._draw(runner, runner.iter)

    def _draw(self, runner, step: int) -> None:
        model = _unwrap(runner.model)
        devices = [self._inputs.device] if self._inputs.is_cuda else []
        model.eval()
        with torch.random.fork_rng(devices):
            torch.manual_seed(0)  # the same masks every time
            pictures = list(model.reconstruct(self._inputs).values())
        model.train()
        rows = [_to_uint8(picture) for picture in pictures]  # each (B, T, H, W, C)
        num_frames = rows[0].shape[1]
        chosen = np.linspace(0, num_frames - 1, min(num_frames, self.num_frames)).round()
        panel = [np.concatenate(np.concatenate(row[:, chosen.astype(int)]), 1) for row in rows]
        runner.visualizer.add_image('reconstruction', np.concatenate(panel), step)
        if num_frames > 2:
            path = Path(runner.log_dir) / 'reconstruction' / f'{step}.mp4'
            with VideoWriter(path, self.fps) as film:
                for t in range(num_frames):
                    columns = [np.concatenate(row[:, t]) for row in rows]
                    film.write(np.concatenate(columns, 1))


def _to_uint8(pictures: Tensor) -> np.ndarray:
    """(B, C, T, H, W) in [0, 1] -> (B, T, H, W, C) in [0, 255]."""
    pictures = (pictures * 255).round().byte()
    return pictures.permute(0, 2, 3, 4, 1).cpu().numpy()


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
