"""How long a run takes to its first step, fresh and resumed far inside a list of a million items.

    python tests/reliability/position.py

Prints a table in Markdown: seconds from ``Runner.train()`` to the end of the first step.
"""

import os
import tempfile
import time
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

import videomac_mm.engine
import videomac_mm.models  # noqa: F401
from tests.reliability.small_runs import small_config, start
from videomac_mm.weights.seal import save_sealed

ITEMS = 1_000_000


class OneStep(Hook):
    """Write down how long the first step took to come, and end the process."""

    priority = 'LOWEST'

    def __init__(self, report: Path, begun: float) -> None:
        self.report = report
        self.begun = begun

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        self.report.write_text(str(time.perf_counter() - self.begun))
        raise SystemExit


def first_step(work_dir: Path, by_epoch: bool, workers: int, resume: bool) -> float:
    """Seconds to the first step, in a process of its own, which saves it."""

    def task() -> None:
        cfg = small_config('videomac', work_dir, by_epoch, workers, resume=resume)
        cfg.train_dataloader.dataset.num_videos = ITEMS
        cfg.train_cfg.update(dict(max_epochs=9) if by_epoch else dict(max_iters=10**8))
        cfg.default_hooks.checkpoint.update(interim_minutes=1e-9)
        cfg.custom_hooks = cfg.custom_hooks[:1]
        runner = Runner.from_cfg(cfg)
        runner.register_hook(OneStep(work_dir / 'seconds', time.perf_counter()))
        runner.train()

    os.waitpid(start(task, work_dir.parent / 'log.txt'), 0)
    return float((work_dir / 'seconds').read_text())


def move(work_dir: Path, by_epoch: bool) -> None:
    """Let the checkpoint say that the run is in the middle of its third pass over the list."""
    (path,) = work_dir.glob('interim_*.pth')
    checkpoint = torch.load(path)
    checkpoint['place'].update(epoch=2, items=ITEMS // 2)
    steps = ITEMS + ITEMS // 4  # of two items
    checkpoint['meta'].update(iter=steps, epoch=2 if by_epoch else 0)
    save_sealed(checkpoint, path)


def main() -> None:
    print('| loop | workers | fresh, s | resumed at step 1,250,000, s |')
    print('|---|---|---|---|')
    with tempfile.TemporaryDirectory() as folder:
        for by_epoch in (False, True):
            for workers in (0, 2):
                work_dir = Path(folder) / f'{by_epoch}_{workers}'
                fresh = first_step(work_dir, by_epoch, workers, resume=False)
                move(work_dir, by_epoch)
                resumed = first_step(work_dir, by_epoch, workers, resume=True)
                loop = 'epochs' if by_epoch else 'iterations'
                print(f'| {loop} | {workers} | {fresh:.2f} | {resumed:.2f} |', flush=True)


if __name__ == '__main__':
    main()
