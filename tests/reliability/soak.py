"""A long run: memory, file descriptors, threads and shared memory must stay flat.

    python tests/reliability/soak.py --steps 20000
    python tests/reliability/soak.py --steps 20000 --full    # the demo as users have it: hours

Prints a table in Markdown.
"""

import argparse
import os
import tempfile
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

import videomac_mm.engine
import videomac_mm.models  # noqa: F401
from tests.reliability.small_runs import DEMOS, ROOT, small_config


def usage() -> tuple[float, int, int, int, float]:
    """Resident MiB, open files, threads and children of this process; MiB of shared memory."""
    status = Path('/proc/self/status').read_text().splitlines()
    fields = dict(line.split(':', 1) for line in status)
    children = sum(
        len((task / 'children').read_text().split()) for task in Path('/proc/self/task').iterdir()
    )
    shared = os.statvfs('/dev/shm')
    return (
        int(fields['VmRSS'].split()[0]) / 1024,
        len(os.listdir('/proc/self/fd')),
        int(fields['Threads']),
        children,
        (shared.f_blocks - shared.f_bfree) * shared.f_frsize / 2**20,
    )


class Watch(Hook):
    """Prints a row every ``interval`` iterations."""

    priority = 'LOWEST'

    def __init__(self, interval: int) -> None:
        self.interval = interval

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        if (runner.iter + 1) % self.interval == 0 or runner.iter + 1 == 100:
            rss, files, threads, children, shared = usage()
            row = f'{runner.iter + 1} | {rss:.0f} | {files} | {threads} | {children} | {shared:.1f}'
            print(f'| {row} |', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--steps', type=int, default=20000)
    parser.add_argument('--workers', type=int, default=2)
    parser.add_argument('--by-epoch', action='store_true', help='workers are started each epoch')
    parser.add_argument('--full', action='store_true', help='not shrunk')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work_dir = Path(folder) / 'run'
        if args.full:
            cfg = Config.fromfile(ROOT / 'configs' / DEMOS['videomac'])
            cfg.work_dir = str(work_dir)
            workers = args.workers
            cfg.train_dataloader.update(num_workers=workers, persistent_workers=workers > 0)
            cfg.train_cfg.max_iters = args.steps
        else:
            torch.set_num_threads(1)
            cfg = small_config('videomac', work_dir, args.by_epoch, args.workers)
            if args.by_epoch:
                cfg.train_cfg.max_epochs = args.steps // 3
                cfg.default_hooks.checkpoint.interval = 100
            else:
                cfg.train_cfg.max_iters = args.steps
                cfg.train_dataloader.persistent_workers = args.workers > 0
                cfg.default_hooks.checkpoint.interval = 200
            cfg.custom_hooks[-1].interval = 1000
        runner = Runner.from_cfg(cfg)
        runner.register_hook(Watch(max(args.steps // 10, 1)))
        print('| steps | resident MiB | open files | threads | children | shared memory MiB |')
        print('|---|---|---|---|---|---|')
        runner.train()


if __name__ == '__main__':
    main()
