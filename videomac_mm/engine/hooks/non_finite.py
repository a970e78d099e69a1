"""Steps whose numbers are not finite are skipped before they reach the weights."""

import logging
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.optim import Optimizer

from videomac_mm.engine.optimizers import optimizers_of
from videomac_mm.engine.unwrap import unwrap
from videomac_mm.randomness import get_rng_state
from videomac_mm.registry import HOOKS
from videomac_mm.weights.seal import save_sealed

_NAMED = 5  # parameters in a warning


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Skip a step whose loss or gradients are inf or NaN; end the run when it cannot go on.

    Right before the optimiser's step the gradients are looked at. If one is not finite, all are
    dropped: weights, running statistics, the optimiser's state and the target stay as they were.
    `MaskedAutoencoder.parse_losses` turns a loss that is not finite into such gradients. All
    processes skip alike. Schedules of learning rates count the iteration.

    The log names each skipped step, and the curve ``non_finite`` counts them. After too many in a
    row, every process saves what it takes to do the step again, and the run ends. ``mim run
    videomac_mm replay_step FILE`` then shows where the first number that is not finite comes from.

    In float16, gradients that overflow are the loss scaler's business: it skips the step and
    lowers its scale, and nothing is counted here. A loss that is not finite counts.

    Args:
        max_in_a_row: skipped steps after which the run ends, at least 1. Defaults to 10.

    Raises:
        ValueError: if ``max_in_a_row`` is below 1.
        FloatingPointError: while training, after ``max_in_a_row`` skipped steps; names the files.
    """

    priority = 'VERY_HIGH'

    def __init__(self, max_in_a_row: int = 10) -> None:
        if max_in_a_row < 1:
            raise ValueError(f'max_in_a_row must be at least 1, got {max_in_a_row}')
        self.max_in_a_row = max_in_a_row
        self.in_a_row = self.total = 0
        self._reason: str | None = None
        self._rng: dict | None = None
        self._handles: list = []
        self._statistics: list[Tensor] = []  # of batch norms, changed by every forward pass
        self._kept: list[Tensor] = []

    def before_train(self, runner: Any) -> None:
        """Look at gradients from now on."""
        model = unwrap(runner.model)

        def look(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
            if getattr(optimizer, 'found_inf', None) is None:  # else a scaler has looked already
                self._look(optimizer, dict(model.named_parameters()))

        optimizers = optimizers_of(runner.optim_wrapper)
        self._handles = [optimizer.register_step_pre_hook(look) for optimizer in optimizers]
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
        self._statistics = [value for norm in norms for value in norm.buffers(recurse=False)]
        self._kept = [value.clone() for value in self._statistics]

    def after_train(self, runner: Any) -> None:
        """Leave the optimiser alone."""
        for handle in self._handles:
            handle.remove()

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Keep what a bad step changes, and the random numbers of one that may be the last."""
        self._reason = None
        if self._kept:
            torch._foreach_copy_(self._kept, self._statistics)
        self._rng = get_rng_state() if self.in_a_row + 1 >= self.max_in_a_row else None

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Count the step if it was skipped; end the run if it was one too many."""
        losses = {key: float(value) for key, value in (outputs or {}).items()}
        if self._reason is None and not torch.tensor(losses.get('loss', 0.0)).isfinite():
            self._reason = 'the loss'  # under a loss scaler, which skipped the step
        if self._reason is None:
            if runner.optim_wrapper.should_update():
                self.in_a_row = 0
            runner.message_hub.update_scalar('train/non_finite', self.total)
            return
        if self._kept:
            torch._foreach_copy_(self._statistics, self._kept)
        self.in_a_row += 1
        self.total += 1
        runner.message_hub.update_scalar('train/non_finite', self.total)
        print_log(
            f'Iteration {runner.iter + 1} is skipped, the {self.in_a_row}. in a row: not finite '
            f'is {self._reason}. Losses: {losses}',
            logger='current',
            level=logging.WARNING,
        )
        if self.in_a_row >= self.max_in_a_row:
            path = self._save(runner, data_batch)
            raise FloatingPointError(
                f'{self.in_a_row} steps in a row were not finite; the last, iteration '
                f'{runner.iter + 1}, is saved in {path}. Look at it with: mim run videomac_mm '
                f'replay_step {path}'
            )

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Keep the counts."""
        checkpoint['non_finite'] = dict(in_a_row=self.in_a_row, total=self.total)

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Go on counting in a run that is resumed."""
        if runner._resume and 'non_finite' in checkpoint:
            self.in_a_row = checkpoint['non_finite']['in_a_row']
            self.total = checkpoint['non_finite']['total']

    def _look(self, optimizer: Optimizer, names: dict[str, Tensor]) -> None:
        """Drop all gradients of an optimiser if one of them is not finite in any process."""
        gradients = [
            p.grad for g in optimizer.param_groups for p in g['params'] if p.grad is not None
        ]
        bad = not all_finite(gradients)
        if get_world_size() > 1:
            flag = torch.tensor(float(bad), device=gradients[0].device if gradients else None)
            all_reduce(flag, op='max')
            bad = bool(flag)
        if not bad:
            return
        found = [n for n, p in names.items() if p.grad is not None and not p.grad.isfinite().all()]
        more = f' and {len(found) - _NAMED} more' if len(found) > _NAMED else ''
        self._reason = f'the gradient of {", ".join(found[:_NAMED]) or "another process"}{more}'
        for group in optimizer.param_groups:
            for param in group['params']:
                param.grad = None

    def _save(self, runner: Any, data_batch: Any) -> Path:
        """Write down the step of this process, and return the file."""
        model, loop = unwrap(runner.model), runner.train_loop
        inputs = data_batch['inputs'] if isinstance(data_batch, dict) else None
        path = Path(runner.work_dir) / f'non_finite_{runner.iter + 1}_rank{get_rank()}.pth'
        noise = getattr(model, 'step_noise', None)
        dtype = getattr(runner.optim_wrapper, 'cast_dtype', None)
        step = dict(
            config=runner.cfg.pretty_text,
            state_dict=model.state_dict(),
            inputs=plain(inputs),
            rng=self._rng,
            mask_key=None if noise is None else noise.key,
            iteration=runner.iter + 1,
            seed=getattr(loop, 'seed', runner.seed),
            rank=get_rank(),
            world_size=get_world_size(),
            amp=hasattr(runner.optim_wrapper, 'loss_scaler'),
            dtype=None if dtype is None else str(dtype).removeprefix('torch.'),
        )
        save_sealed(step, path)
        return path


def all_finite(tensors: list[Tensor]) -> bool:
    """Whether all numbers are finite: one pass, and a second one only if sums overflow."""
    if not tensors:
        return True
    sums = torch.stack([tensor.sum(dtype=torch.float32) for tensor in tensors])
    return bool(sums.sum().isfinite()) or all(bool(x.isfinite().all()) for x in tensors)


def plain(value: Any) -> Any:
    """A batch as tensors, numbers and containers, which a checkpoint may hold."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if hasattr(value, '__array__') and not isinstance(value, Tensor):
        return torch.as_tensor(value)
    return value
