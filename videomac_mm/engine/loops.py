"""Train loops whose every step is a function of its place in the run."""

import logging
from collections.abc import Iterator
from typing import Any

import mmengine.runner as mmengine_runner
from mmengine.dist import get_rank, get_world_size
from mmengine.logging import print_log
from torch.utils.data import DataLoader

from videomac_mm.datasets.places import ResumableSampler
from videomac_mm.engine.unwrap import unwrap
from videomac_mm.randomness import seed_of, seed_step
from videomac_mm.registry import LOOPS


class _Placed:
    """What both loops do. The position of a run is seed, epoch, and items done in the epoch.

    Before each step, all random numbers are seeded from the seed, the step and the rank; those of
    the masks from the seed and the step (`MaskedAutoencoder.set_step`).
    """

    endless: bool
    epoch_of_items: int  # of the sampler: a loop that counts iterations has no epochs
    items: int  # of that epoch, done by all processes together, this step's among them

    def _build(self, runner: Any, dataloader: DataLoader | dict) -> DataLoader:
        if isinstance(dataloader, dict):
            differ = runner._randomness_cfg.get('diff_rank_seed', False)
            dataloader = runner.build_dataloader(
                dataloader, seed=runner.seed, diff_rank_seed=differ
            )
        sampler = dataloader.sampler
        self.sampler = sampler if isinstance(sampler, ResumableSampler) else None
        if self.sampler is not None:
            if dataloader.batch_size is None:
                raise ValueError('ResumableSampler needs a data loader with batch_size, got None')
            self.sampler.bind(dataloader.batch_size, dataloader.drop_last, self.endless)
        self.batch = (dataloader.batch_size or 1) * get_world_size()
        self.epoch_of_items = self.items = 0
        self._is_placed = False
        return dataloader

    @property
    def seed(self) -> int:
        """The seed of the run, the same for all processes."""
        differ = self.runner._randomness_cfg.get('diff_rank_seed', False)
        return self.runner.seed - (get_rank() if differ else 0)

    def state_dict(self) -> dict[str, int] | None:
        """The position after the step that is being done, for a checkpoint.

        None with a sampler that cannot go back to it.
        """
        if self.sampler is None:
            return None
        place = dict(seed=self.seed, epoch=self.epoch_of_items, items=self.items)
        return dict(place, batch=self.batch, size=len(self.dataloader.dataset))

    def load_state_dict(self, state: dict[str, int] | None) -> None:
        """Take over the position of a checkpoint.

        Args:
            state: of `state_dict`. None for checkpoints of other loops: the number of iterations
                tells the position, if batches were as large as now.
        """
        self._is_placed = True
        if state is None:
            if self.endless:
                self.epoch_of_items, self.items = divmod(
                    self._iter * self.batch, len(self.dataloader.dataset)
                )
            else:
                done = self._iter - self._epoch * len(self.dataloader)
                self.epoch_of_items, self.items = self._epoch, max(done, 0) * self.batch
            return
        self.epoch_of_items, self.items = state['epoch'], state['items']
        for key, now, what in (
            ('batch', self.batch, 'items of a step of all processes'),
            ('size', len(self.dataloader.dataset), 'items of the data set'),
        ):
            if state[key] != now:
                print_log(
                    f'The number of {what} is {now} and was {state[key]} before. The run goes on '
                    'at its place, but its steps are others than in an uninterrupted run.',
                    logger='current',
                    level=logging.WARNING,
                )

    def _start(self) -> None:
        if self._iter and not self._is_placed:  # resumed without a hook that knows the position
            self.load_state_dict(None)
        self._is_placed = True
        self.sampler.start(self.seed, self.epoch_of_items, self.items)

    def _batches(self) -> Iterator[Any]:
        """The batches of the data loader from the position on."""
        batches = iter(self.dataloader)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except Exception:
                # Workers that got the signal to stop, too, may be gone already.
                self.runner.call_hook('after_data_failure')
                raise
            yield batch

    def _seed_step(self) -> None:
        rank, model = get_rank(), unwrap(self.runner.model)
        seed_step(seed_of('step', self.seed, self._iter, rank))
        if hasattr(model, 'set_step'):
            model.set_step(self.seed, self._iter, rank)

    def _forget_step(self) -> None:
        model = unwrap(self.runner.model)
        if hasattr(model, 'forget_step'):
            model.forget_step()


@LOOPS.register_module()
class EpochBasedTrainLoop(_Placed, mmengine_runner.EpochBasedTrainLoop):
    """mmengine's loop of epochs, which goes on inside an epoch exactly where it stopped.

    With `ResumableSampler`, a resumed run takes the steps of an uninterrupted one: the same
    items, masks and random numbers, in O(1), wherever its checkpoint was written. With another
    sampler the epoch begins anew, as in mmengine.

    Arguments are mmengine's: ``max_epochs``, ``val_begin``, ``val_interval``,
    ``dynamic_intervals``.
    """

    endless = False

    def __init__(self, runner: Any, dataloader: DataLoader | dict, *args, **kwargs) -> None:
        super().__init__(runner, self._build(runner, dataloader), *args, **kwargs)

    def run_epoch(self) -> None:
        """Do the steps of an epoch that are left."""
        if self.sampler is not None:
            self._start()
        else:
            self.items = 0
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        first = self.items // self.batch
        for idx, data_batch in enumerate(self._batches(), first):
            self.items += self.batch
            self.run_iter(idx, data_batch)
        self.epoch_of_items, self.items = self._epoch + 1, 0
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: Any) -> None:
        """Seed the step and do it."""
        self._seed_step()
        super().run_iter(idx, data_batch)

    def run(self) -> Any:
        """Train; see the class."""
        model = super().run()
        self._forget_step()
        return model


class _Unopened:
    """A data loader that may be asked for its data set, but starts no worker."""

    def __init__(self, dataloader: DataLoader) -> None:
        self.dataset = dataloader.dataset

    def __iter__(self) -> Iterator:
        return iter(())


@LOOPS.register_module()
class IterBasedTrainLoop(_Placed, mmengine_runner.IterBasedTrainLoop):
    """mmengine's loop of iterations, which a resumed run enters exactly where it stopped.

    With `ResumableSampler`, a resumed run takes the steps of an uninterrupted one: the same
    items, masks and random numbers, in O(1). With another sampler it first draws and throws away
    all batches that were trained on, as in mmengine.

    Arguments are mmengine's: ``max_iters``, ``val_begin``, ``val_interval``,
    ``dynamic_intervals``.
    """

    endless = True

    def __init__(self, runner: Any, dataloader: DataLoader | dict, *args, **kwargs) -> None:
        dataloader = self._build(runner, dataloader)
        # mmengine would start the workers at once, at the wrong place in a resumed run.
        lazy = dataloader if self.sampler is None else _Unopened(dataloader)
        super().__init__(runner, lazy, *args, **kwargs)
        self.dataloader = dataloader

    def run(self) -> Any:
        """Train; see the class."""
        if self.sampler is None:
            model = super().run()
        else:
            model = self._run()
        self._forget_step()
        return model

    def _run(self) -> Any:
        runner = self.runner
        runner.call_hook('before_train')
        runner.call_hook('before_train_epoch')
        self._start()
        self.dataloader_iterator = self._batches()
        while self._iter < self._max_iters and not self.stop_training:
            runner.model.train()
            data_batch = next(self.dataloader_iterator)
            passed, self.items = divmod(self.items + self.batch, len(self.dataloader.dataset))
            self.epoch_of_items += passed
            self.run_iter(data_batch)
            self._decide_current_val_interval()
            is_due = self._iter % self.val_interval == 0 or self._iter == self._max_iters
            if runner.val_loop is not None and self._iter >= self.val_begin and is_due:
                runner.val_loop.run()
        self.dataloader_iterator.close()  # ends the workers
        runner.call_hook('after_train_epoch')
        runner.call_hook('after_train')
        return runner.model

    def run_iter(self, data_batch: Any) -> None:
        """Seed the step and do it."""
        self._seed_step()
        super().run_iter(data_batch)
