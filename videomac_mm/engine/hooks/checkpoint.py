"""Checkpoints from which a run goes on as if it had not stopped."""

import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmengine.hooks
from mmengine.dist import (
    all_gather_object,
    get_rank,
    get_world_size,
    is_main_process,
)
from mmengine.fileio import LocalBackend
from mmengine.logging import print_log

from videomac_mm.engine.hooks.non_finite import all_finite
from videomac_mm.engine.stopping import EXIT_STOPPED, StopSignals
from videomac_mm.engine.unwrap import unwrap
from videomac_mm.randomness import get_rng_state, set_rng_state
from videomac_mm.registry import HOOKS
from videomac_mm.weights.seal import write_text

_AGREE_EVERY = 10  # iterations between the talks of several processes about stopping and saving


@HOOKS.register_module()
class CheckpointHook(mmengine.hooks.CheckpointHook):
    """mmengine's hook, made safe, and exact to resume from.

    - A checkpoint is whole or absent (`save_sealed`). The oldest one goes only after the new one
      and ``last_checkpoint`` are on disk. ``--resume`` takes the newest one that is whole.
    - It holds the position of the run, the state of all random numbers of every process, and
      which items were found unusable.
    - Between the regular ones there is an interim checkpoint every few minutes,
      ``interim_<iteration>.pth``. The next checkpoint takes its place.
    - On a signal to stop, the run finishes its step, saves an interim checkpoint and ends with
      exit code 75. Several processes agree on it within 10 iterations.

    With file backends other than the local one, a checkpoint is as safe as a ``put`` of the
    backend, and has no seal. ``--resume`` then takes what ``last_checkpoint`` names.

    Args:
        interim_minutes: between checkpoints, at the least. Defaults to 15. None: no interim ones.
        stop_signals: names of signals. Defaults to SIGTERM and SIGINT, as SLURM, Kubernetes
            and the keyboard send them. Empty: signals end the run at once.
        **kwargs: as mmengine's.

    Raises:
        ValueError: for ``interim_minutes`` of 0 or less, or an unknown signal.
        FloatingPointError: while training, if weights are inf or NaN. Nothing is written then.
        OSError: while training, if a checkpoint cannot be written, such as on a full disk. The
            earlier ones are still there.
    """

    def __init__(
        self,
        *args: Any,
        interim_minutes: float | None = 15,
        stop_signals: Sequence[str] = ('SIGTERM', 'SIGINT'),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if interim_minutes is not None and interim_minutes <= 0:
            raise ValueError(f'interim_minutes must be above 0 or None, got {interim_minutes}')
        self.interim_minutes = interim_minutes
        self.signals = StopSignals(stop_signals)
        self._position: dict | None = None
        self._saved_at = 0.0
        self._resumed: dict | None = None
        self._interim: list[Path] = []  # of this run

    # ---------------------------------------------------------------- begin and end

    def before_train(self, runner: Any) -> None:
        """Take up the position of a resumed run, listen to signals, clear half-written files."""
        super().before_train(runner)
        self.is_local = isinstance(self.file_backend, LocalBackend)
        if self.is_local and is_main_process():
            for path in Path(self.out_dir).glob('.*.part'):
                path.unlink(missing_ok=True)
        if self._resumed is not None:
            self._go_on(runner, **self._resumed)
            self._resumed = None
            if self.is_local:
                self._interim = list(Path(self.out_dir).glob('interim_*.pth'))
        self._saved_at = time.monotonic()
        self.signals.install()

    def after_train(self, runner: Any) -> None:
        """Publish, as mmengine, and leave signals alone."""
        super().after_train(runner)
        self.signals.uninstall()

    # -------------------------------------------------------------------- when to save

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Save if it is time to, or if a signal came; then stop."""
        before = self._saved_at
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        stop, due = self._agree(runner)
        if self._saved_at == before and (stop or due):
            self._save_interim(runner, runner.iter + 1)
        if stop:
            self._stop(runner)

    def after_data_failure(self, runner: Any) -> None:
        """The data loader failed: stop if a signal came, which may have ended its workers."""
        if self.signals.received is None or get_world_size() > 1:
            return
        if runner.iter % _accumulated(runner) == 0:
            self._save_interim(runner, runner.iter)
        self._stop(runner)

    def _agree(self, runner: Any) -> tuple[bool, bool]:
        """Whether all processes stop now, and whether it is time for an interim checkpoint."""
        stop = self.signals.received is not None
        age = time.monotonic() - self._saved_at
        due = self.interim_minutes is not None and age > 60 * self.interim_minutes
        if get_world_size() > 1:
            if (runner.iter + 1) % _AGREE_EVERY:
                return False, False
            answers = all_gather_object((stop, due))
            stop, due = (any(answer) for answer in zip(*answers))
        # Gradients that are not applied yet are in no checkpoint.
        whole = (runner.iter + 1) % _accumulated(runner) == 0
        return stop and whole, due and whole

    def _stop(self, runner: Any) -> None:
        self.signals.uninstall()
        print_log(
            f'The run stopped on {self.signals.received}. Go on with --resume.',
            logger='current',
        )
        raise SystemExit(EXIT_STOPPED)

    # --------------------------------------------------------------------- how to save

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict) -> None:
        name = self.filename_tmpl.format(step)
        if self.max_keep_ckpts <= 0:
            return self._write(runner, name, meta)
        kept = [number for number in self.keep_ckpt_ids if number != step] + [step]
        # The new checkpoint names the old ones, too: a run that is resumed from it removes them
        # if this one does not come to that.
        runner.message_hub.update_info('keep_ckpt_ids', kept)
        self._write(runner, name, meta)
        kept, old = kept[-self.max_keep_ckpts :], kept[: -self.max_keep_ckpts]
        for number in old:
            self._remove(self.filename_tmpl.format(number))
        self.keep_ckpt_ids = deque(kept)
        runner.message_hub.update_info('keep_ckpt_ids', kept)

    def _save_interim(self, runner: Any, iteration: int) -> None:
        runner.logger.info(f'Saving an interim checkpoint at {iteration} iterations')
        self._write(runner, f'interim_{iteration}.pth', dict(epoch=runner.epoch, iter=iteration))

    def _write(self, runner: Any, name: str, meta: dict) -> None:
        """Write one checkpoint, then the pointer, and remove interim ones."""
        weights = dict(unwrap(runner.model).named_parameters())
        if not all_finite([weight.detach() for weight in weights.values()]):
            bad = [key for key, weight in weights.items() if not weight.isfinite().all()]
            raise FloatingPointError(
                f'{len(bad)} of {len(weights)} weights are not finite, the first is {bad[0]}. '
                f'{name} is not written; earlier checkpoints are kept'
            )
        loop = runner.train_loop
        bad = getattr(runner.train_dataloader.dataset, 'bad_items', [])
        self._position = dict(
            place=loop.state_dict() if hasattr(loop, 'state_dict') else None,
            rng=all_gather_object(get_rng_state()),
            unusable=sorted({i for items in all_gather_object(bad) for i in items}),
        )
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        self._position = None
        self._saved_at = time.monotonic()
        if not is_main_process():
            return
        write_text(self.last_ckpt, Path(runner.work_dir) / 'last_checkpoint')
        if self.is_local:
            written = Path(self.last_ckpt)
            for path in self._interim:
                if path != written:
                    path.unlink(missing_ok=True)
            self._interim = [written] if name.startswith('interim_') else []

    def _remove(self, name: str) -> None:
        path = self.file_backend.join_path(self.out_dir, name)
        if not is_main_process():
            return
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):
            self.file_backend.rmtree(path)

    # -------------------------------------------------------------- what is in it

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Add the position of the run; see the class."""
        if self._position is not None:
            checkpoint.update(self._position)

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Keep the position of the run that is resumed, until the loop begins."""
        if runner._resume:
            self._resumed = {key: checkpoint.get(key) for key in ('place', 'rng', 'unusable')}

    def _go_on(self, runner: Any, place: dict | None, rng: list | None, unusable: list) -> None:
        if hasattr(runner.train_loop, 'load_state_dict'):
            runner.train_loop.load_state_dict(place)
        if rng is not None and get_rank() < len(rng):
            set_rng_state(rng[get_rank()])
        dataset = runner.train_dataloader.dataset
        if unusable and hasattr(dataset, 'remember_bad'):
            dataset.remember_bad(unusable)


def _accumulated(runner: Any) -> int:
    """Iterations of one step of the optimiser."""
    return getattr(runner.optim_wrapper, '_accumulative_counts', 1)
