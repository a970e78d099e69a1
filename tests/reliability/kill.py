"""Kill runs at random moments, resume them until they end, and compare with one left alone.

Prints one line for each kind of run, and a table in Markdown at the end::

    python tests/reliability/kill.py --kills 200
    python tests/reliability/kill.py --kills 40 --stock     # mmengine's own loop, sampler and hook
    python tests/reliability/kill.py --operations           # at every file operation of a save
"""

import argparse
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.runner import Runner

import videomac_mm
import videomac_mm.datasets
import videomac_mm.engine
import videomac_mm.models  # noqa: F401
from tests.reliability.small_runs import (
    STEPS,
    compare,
    kill_after,
    random_moment,
    small_config,
    start,
    use_stock_mmengine,
)

KINDS = [
    (method, by_epoch, workers)
    for method in ('videomac', 'videomae', 'motionmae', 'cmae_v')
    for by_epoch in (False, True)
    for workers in (0, 1, 2)
]


def train(
    cfg: Config, log: Path, stock: bool = False, sabotage: Callable[[], None] | None = None
) -> int:
    """Begin a run in a process of its own, and return the process's number."""

    def task() -> None:
        if stock:
            use_stock_mmengine(cfg)
        runner = Runner.from_cfg(cfg)
        if sabotage is not None:
            sabotage()
        runner.train()

    return start(task, log)


def wait(number: int) -> int:
    """The exit code of a process; negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def reference(folder: Path, kind: tuple, stock: bool) -> tuple[Path, float]:
    """An uninterrupted run, and the time it takes. Of ours, workers must change nothing."""
    method, by_epoch, workers = kind
    workers = workers if stock else 0
    work_dir = folder / f'{method}_{"epochs" if by_epoch else "iterations"}_{workers}_alone'
    begun = time.perf_counter()
    if not work_dir.exists():
        cfg = small_config(method, work_dir, by_epoch, workers)
        code = wait(train(cfg, folder / 'log.txt', stock))
        if code:
            raise RuntimeError(f'the run that was left alone failed, see {folder / "log.txt"}')
        (work_dir / 'seconds').write_text(str(time.perf_counter() - begun))
    return work_dir, float((work_dir / 'seconds').read_text())


def run_killed(folder: Path, kind: tuple, stock: bool, most: int) -> tuple[int, int, str]:
    """One run, killed up to ``most`` times: kills, starts, and 'equal' or what went wrong."""
    method, by_epoch, workers = kind
    alone, seconds = reference(folder, kind, stock)
    work_dir = folder / f'{method}_{by_epoch}_{workers}_{random.getrandbits(40):x}'
    work_dir.mkdir()
    kills = starts = 0
    while True:
        cfg = small_config(method, work_dir, by_epoch, workers, resume=True)
        number = train(cfg, work_dir / 'log.txt', stock)
        starts += 1
        moment = random_moment(0.9 * seconds) if kills < most else 600
        if kill_after(number, moment):
            kills += 1
        code = wait(number)
        if code == 0:
            break
        if code != -signal.SIGKILL:
            lines = (work_dir / 'log.txt').read_text().strip().splitlines()
            return kills, starts, f'failed: {lines[-1][:90] if lines else code}'
    differ = compare(work_dir, alone)
    shutil.rmtree(work_dir)
    return kills, starts, 'equal' if not differ else f'{len(differ)} values differ'


def sabotage_operation(count: int) -> Callable[[], None]:
    """Kill this process right before the ``count``-th file operation of its third save.

    That is the first save after which an older checkpoint goes. Of the hundreds of writes to the
    new file, every fiftieth counts.
    """

    def arm() -> None:
        import videomac_mm.engine.hooks.checkpoint as hook
        import videomac_mm.weights.seal as seal

        left, saves, writes = [count], [0], [0]
        inside = [False]

        def step() -> None:
            if inside[0]:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        def counted(function: Callable) -> Callable:
            def call(*args, **kwargs):
                step()
                return function(*args, **kwargs)

            return call

        class Counted:
            """A file whose every write is an operation; half of it is done when it fails."""

            def __init__(self, file) -> None:
                self.file = file

            def write(self, data) -> int:
                writes[0] += 1
                if writes[0] % 50:
                    return self.file.write(data)
                if inside[0] and left[0] == 1:
                    self.file.write(bytes(data)[: len(data) // 2])
                    self.file.flush()
                step()
                return self.file.write(data)

            def __enter__(self):
                return self

            def __exit__(self, *error) -> None:
                self.file.close()

            def __getattr__(self, name: str):
                return getattr(self.file, name)

        def opened(path, mode='r', *args, **kwargs):
            step()
            file = open(path, mode, *args, **kwargs)
            return Counted(file) if inside[0] and 'w+b' in mode else file

        for name in ('replace', 'fsync'):
            setattr(seal.os, name, counted(getattr(os, name)))
        seal.open = opened
        Path.unlink = counted(Path.unlink)
        os.remove = counted(os.remove)
        write = hook.CheckpointHook._save_checkpoint_with_step

        def save(self, *args, **kwargs) -> None:
            saves[0] += 1
            inside[0] = saves[0] == 3
            write(self, *args, **kwargs)
            inside[0] = False

        hook.CheckpointHook._save_checkpoint_with_step = save

    return arm


def kill_at_operations(folder: Path) -> list[tuple]:
    """One run for each file operation of a save, killed right before it and resumed."""
    kind = ('videomac', False, 0)
    alone, _ = reference(folder, kind, False)
    count, equal, failed = 0, 0, []
    while True:
        count += 1
        work_dir = folder / f'operation_{count}'
        work_dir.mkdir()
        cfg = small_config('videomac', work_dir, resume=True)
        code = wait(train(cfg, folder / 'log.txt', sabotage=sabotage_operation(count)))
        if code == 0:  # there are fewer operations
            return [('videomac, each file operation', count - 1, count - 1, equal, failed)]
        cfg = small_config('videomac', work_dir, resume=True)
        code = wait(train(cfg, folder / 'log.txt'))
        differ = compare(work_dir, alone) if code == 0 else [f'exit code {code}']
        equal += not differ
        failed += [f'operation {count}: {differ[:3]}'] * bool(differ)
        shutil.rmtree(work_dir)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--kills', type=int, default=200, help='at least so many in total')
    parser.add_argument('--most', type=int, default=4, help='kills of one run')
    parser.add_argument('--stock', action='store_true', help="mmengine's parts in place of ours")
    parser.add_argument('--operations', action='store_true', help='at file operations instead')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    random.seed(args.seed)
    torch.set_num_threads(1)
    rows: dict[tuple, list] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.operations:
            table = kill_at_operations(folder)
        else:
            while sum(row[1] for row in rows.values()) < args.kills:
                for kind in KINDS:
                    kills, starts, outcome = run_killed(folder, kind, args.stock, args.most)
                    row = rows.setdefault(kind, [0, 0, 0, []])
                    row[0] += 1
                    row[1] += kills
                    row[2] += outcome == 'equal'
                    row[3] += [outcome] * (outcome != 'equal')
                    print(kind, kills, starts, outcome, flush=True)
                    if sum(row[1] for row in rows.values()) >= args.kills:
                        break
            table = [
                (f'{m}, {"epochs" if e else "iterations"}, {w} workers', *row)
                for (m, e, w), row in rows.items()
            ]
    print(f'\n{STEPS} steps each. | run | runs | kills | equal to the run left alone | others |')
    for title, runs, kills, equal, others in table:
        print(f'| {title} | {runs} | {kills} | {equal} | {"; ".join(others[:3])} |')


if __name__ == '__main__':
    main()
