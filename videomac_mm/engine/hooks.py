"""What happens around the steps of masked pre-training."""

import math

import numpy as np
import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from videomac_mm.registry import HOOKS


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
