"""A run of which one process, or one worker of a data loader, dies in its fourth step.

Started by ``torchrun``, with what dies ('rank', 'killed rank' or 'worker') and a folder.
"""

import os
import signal
import sys
from pathlib import Path

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import get_worker_info

import videomac_mm.engine
import videomac_mm.models  # noqa: F401
from tests.reliability.small_runs import small_config
from videomac_mm.datasets import SyntheticVideoDataset


class DiesInRankOne(Hook):
    """Raises an error, or ends the process without one."""

    def __init__(self, by_signal: bool) -> None:
        self.by_signal = by_signal

    def before_train_iter(self, runner, *args, **kwargs) -> None:
        if runner.iter == 3 and get_rank() == 1:
            if self.by_signal:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError('the error of rank 1')


class DiesInWorker(SyntheticVideoDataset):
    """Ends the worker that makes its seventh item."""

    made = 0

    def prepare_data(self, idx: int) -> dict | None:
        self.made += 1
        if self.made == 7 and get_worker_info() is not None and get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().prepare_data(idx)


def main() -> None:
    what, folder = sys.argv[1:]
    torch.set_num_threads(1)
    workers = int(what == 'worker')
    cfg = small_config('videomac', Path(folder) / 'run', workers=workers, launcher='pytorch')
    runner = Runner.from_cfg(cfg)
    if what == 'worker':
        runner.train_loop.dataloader.dataset.__class__ = DiesInWorker
    else:
        runner.register_hook(DiesInRankOne(what == 'killed rank'))
    runner.train()


if __name__ == '__main__':
    main()
