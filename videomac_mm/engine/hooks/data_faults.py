"""What could not be read is shared among processes, counted and reported."""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.dist import all_gather_object, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log

from videomac_mm.registry import HOOKS

FILE = 'unreadable_videos.jsonl'


@HOOKS.register_module()
class DataFaultsHook(Hook):
    """Share among processes which videos could not be read, and report how many, which and why.

    Every few iterations each process learns what the others found. So ``max_bad_share`` of
    `UnlabelledVideoDataset` holds for all of them together, and all end in the same iteration if
    it is exceeded. The curve ``unusable`` counts videos whose data are at fault, and ``missed``
    readings that were given up for a fault of the moment. The log sums both up by kind of error
    when they grow and at the end of every epoch. ``unreadable_videos.jsonl`` in the work folder
    has a line for each, with the keys ``index``, ``kind`` (``'data'`` or ``'moment'``), ``path``
    and ``reason``.

    Data sets of other kinds are left alone; those in ``ConcatDataset`` and ``RepeatDataset`` are
    found.

    Args:
        interval: iterations, at least 1. Defaults to 20.

    Raises:
        ValueError: if ``interval`` is below 1.
        RuntimeError: while training, if too many videos are unusable.
    """

    def __init__(self, interval: int = 20) -> None:
        if interval < 1:
            raise ValueError(f'interval must be at least 1, got {interval}')
        self.interval = interval
        self._kinds: Counter = Counter()

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Share and count, every ``interval`` iterations."""
        if self.every_n_train_iters(runner, self.interval):
            self._share(runner)

    def after_train_epoch(self, runner: Any) -> None:
        """Share, count and sum up."""
        if not self._share(runner):
            self._report(runner)

    def _share(self, runner: Any) -> bool:
        """Say whether there was something new."""
        datasets = list(_with_faults(runner.train_dataloader.dataset))
        news = all_gather_object([dataset.faults.news() for dataset in datasets])
        found = []
        for number, dataset in enumerate(datasets):
            here = [fault for of_process in news for fault in of_process[number]]
            bad = {fault.index: fault for fault in here if fault.kind == 'data'}
            dataset.remember_bad(list(bad))
            found += [*bad.values(), *(fault for fault in here if fault.kind == 'moment')]
        self._kinds.update((fault.kind, fault.reason.partition(':')[0]) for fault in found)
        missed = sum(number for (kind, _), number in self._kinds.items() if kind == 'moment')
        unusable = sum(dataset.num_bad for dataset in datasets)
        if datasets:
            runner.message_hub.update_scalar('train/unusable', unusable)
            runner.message_hub.update_scalar('train/missed', missed)
        if found:
            self._write(runner, found)
            self._report(runner)
        for dataset in datasets:
            dataset.check_share()
        return bool(found)

    def _write(self, runner: Any, found: list) -> None:
        if is_main_process():
            with open(Path(runner.work_dir) / FILE, 'a') as file:
                file.writelines(json.dumps(fault._asdict()) + '\n' for fault in found)

    def _report(self, runner: Any) -> None:
        datasets = list(_with_faults(runner.train_dataloader.dataset))
        unusable = sum(dataset.num_bad for dataset in datasets)
        if not unusable and not self._kinds:
            return
        total = sum(dataset.num_videos for dataset in datasets)
        print_log(
            f'{unusable} of {total} videos are unusable so far ({self._by_kind("data")}), and '
            f'{self._by_kind("moment")} were passed over once; see {FILE} in {runner.work_dir}',
            logger='current',
            level=logging.WARNING,
        )

    def _by_kind(self, kind: str) -> str:
        counts = [f'{n} {name}' for (of, name), n in self._kinds.most_common() if of == kind]
        return ', '.join(counts) or '0'


def _with_faults(dataset: Any) -> Iterator[Any]:
    """The data sets that keep an account of what could not be read."""
    if hasattr(dataset, 'faults'):
        yield dataset
    for inner in [*getattr(dataset, 'datasets', []), getattr(dataset, 'dataset', None)]:
        if inner is not None:
            yield from _with_faults(inner)
