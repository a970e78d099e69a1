"""Pictures of what a network in training reconstructs."""

from pathlib import Path

import numpy as np
import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from torch import Tensor

from videomac_mm.engine.unwrap import unwrap
from videomac_mm.registry import HOOKS
from videomac_mm.visualization import VideoWriter


@HOOKS.register_module()
class ReconstructionHook(Hook):
    """Draw what the networks see and reconstruct, every ``interval`` iterations and at the end.

    The panel has a row for each of the model's pictures (original, masked, predicted, and what
    else it shows), and a column for each frame: those of the first sample, then of the next. Of
    clips longer than a pair there is a film as well, ``reconstruction/<iteration>.mp4`` in the
    run's log dir, with a row per sample. Samples and masks are the same throughout, so that
    panels can be compared. Checkpoints hold the samples, for resumed runs.

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
            few = {key: _first(value, self.num_samples) for key, value in data_batch.items()}
            with torch.no_grad():
                inputs = unwrap(runner.model).data_preprocessor(few)['inputs']
            self._inputs = inputs[:, :1]  # one clip per video
        if self.every_n_train_iters(runner, self.interval):
            self._draw(runner, runner.iter + 1)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Put the samples into the checkpoint."""
        if self._inputs is not None:
            checkpoint['reconstruction_inputs'] = self._inputs.cpu()

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Go on with the samples of the run that is resumed."""
        if runner._resume:
            self._inputs = checkpoint.get('reconstruction_inputs')

    @master_only
    def after_train(self, runner) -> None:
        """Draw the last panel, unless the last iteration just did."""
        if self._inputs is not None and runner.iter % self.interval:
            self._draw(runner, runner.iter)

    def _draw(self, runner, step: int) -> None:
        model = unwrap(runner.model)
        inputs = self._inputs.to(next(model.parameters()).device)
        devices = [inputs.device] if inputs.is_cuda else []
        model.eval()
        noise, model.step_noise = model.step_noise, None
        with torch.random.fork_rng(devices):
            torch.manual_seed(0)  # the same masks every time
            pictures = list(model.reconstruct(inputs).values())
        model.step_noise = noise
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


def _first(values: dict | list, num: int) -> dict | list:
    """The first samples of a batch, or of each part of one that is packed as crops."""
    if isinstance(values, dict):
        return {key: part[:num] for key, part in values.items()}
    return values[:num]


def _to_uint8(pictures: Tensor) -> np.ndarray:
    """(B, C, T, H, W) in [0, 1] -> (B, T, H, W, C) in [0, 255]."""
    pictures = (pictures * 255).round().byte()
    return pictures.permute(0, 2, 3, 4, 1).cpu().numpy()
