"""The target network follows the online one."""

import math

from mmengine.hooks import Hook
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import Optimizer

from videomac_mm.engine.optimizers import optimizers_of
from videomac_mm.engine.unwrap import unwrap
from videomac_mm.registry import HOOKS


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
        self._stepped = False
        self._handles: list = []

    def before_train(self, runner) -> None:
        """Announce itself to the target; refuse models without one that can follow.

        Raises:
            TypeError, ValueError: for models without a target, and as `TargetNetwork.check`.
        """
        model = unwrap(runner.model)
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
        optimizers = optimizers_of(runner.optim_wrapper)
        self._handles = [each.register_step_post_hook(self._note_step) for each in optimizers]

    def after_train(self, runner) -> None:
        """Withdraw: the model may be trained again without this hook."""
        unwrap(runner.model).target.mover = None
        for handle in self._handles:
            handle.remove()

    def _note_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        """Find out whether weights have moved: not if a loss scaler or `NonFiniteHook` skipped."""
        overflow = getattr(optimizer, 'found_inf', None)  # a scaler lets a fused optimiser skip
        if overflow is None or not overflow:
            params = (param for group in optimizer.param_groups for param in group['params'])
            self._stepped |= any(param.grad is not None for param in params)

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        """Move the target if this iteration ended in an optimiser step."""
        wrapper = runner.optim_wrapper
        stepped, self._stepped = self._stepped, False
        if stepped:
            # Counted from the runner, so that a resumed run goes on where it stopped.
            accumulated = wrapper._accumulative_counts
            step = runner.iter // accumulated
            momentum = self.momentum_at(step, math.ceil(runner.max_iters / accumulated))
            model = unwrap(runner.model)
            model.target.follow(model, momentum)

    def momentum_at(self, step: int, num_steps: int) -> float:
        """m(step) of a run of ``num_steps`` optimiser steps."""
        cosine = (1 + math.cos(math.pi * step / num_steps)) / 2
        return self.end_momentum - (self.end_momentum - self.momentum) * cosine
