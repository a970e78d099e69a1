"""Damage the newest checkpoint of a run in thousands of ways, and see which one is taken.

    python tests/reliability/damage.py --ways 1000
    python tests/reliability/damage.py --full-disk     # as root: mounts a small tmpfs

Prints a table in Markdown.
"""

import argparse
import os
import random
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.logging import MMLogger
from mmengine.runner import Runner

import videomac_mm.engine
import videomac_mm.models  # noqa: F401
from tests.reliability.small_runs import compare, small_config, start
from videomac_mm.weights.newest import newest_checkpoint
from videomac_mm.weights.seal import save_sealed


def train(work_dir: Path, log: Path, **options) -> int:
    """Run in a process of its own; its exit code."""
    options = dict(dict(interval=4, max_keep_ckpts=3), **options)

    def task() -> None:
        cfg = small_config('videomac', work_dir, resume=True)
        cfg.default_hooks.checkpoint.update(options)
        Runner.from_cfg(cfg).train()

    return os.waitstatus_to_exitcode(os.waitpid(start(task, log), 0)[1])


class Code:
    """What runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f'touch {self.mark}',)


def damaged(whole: bytes, ways: int) -> Iterator[tuple[str, bytes]]:
    """Kinds of damage, and what is left of the file."""
    for length in sorted(random.sample(range(len(whole)), ways)):
        yield 'cut short', whole[:length]
    for place in random.sample(range(len(whole)), ways):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << random.randrange(8)
        yield 'one bit flipped', bytes(flipped)
    for _ in range(ways // 10):
        first = random.randrange(len(whole))
        zeros = bytearray(whole)
        zeros[first : first + 4096] = bytes(len(zeros[first : first + 4096]))
        if bytes(zeros) != whole:
            yield 'a block of zeros', bytes(zeros)
    yield 'empty', b''
    yield 'foreign', b'\x89PNG\r\n' + os.urandom(1000)


def try_damage(folder: Path, ways: int) -> None:
    work_dir = folder / 'run'
    if train(work_dir, folder / 'log.txt'):
        raise RuntimeError(f'the run failed: {(folder / "log.txt").read_text()[-2000:]}')
    newest, good = work_dir / 'iter_12.pth', str(work_dir / 'iter_8.pth')
    whole = newest.read_bytes()
    MMLogger.get_instance('quiet', log_level='ERROR')
    counts: dict[str, list[int]] = {}
    for kind, data in damaged(whole, ways):
        newest.write_bytes(data)
        count = counts.setdefault(kind, [0, 0])
        count[0] += 1
        count[1] += newest_checkpoint(str(work_dir)) == good
    mark = folder / 'mark'
    for kind, save in (('code', torch.save), ('code, sealed', save_sealed)):
        save(dict(meta={}, state_dict=Code(mark), message_hub={}), newest)
        taken = newest_checkpoint(str(work_dir)) == good
        counts[kind] = [1, int(taken and not mark.exists())]
    print('| damage of the newest checkpoint | tried | found, and the one before taken |')
    print('|---|---|---|')
    for kind, (tried, found) in counts.items():
        print(f'| {kind} | {tried} | {found} |')
    newest.write_bytes(whole[: len(whole) // 2])
    alone = folder / 'alone'
    codes = train(work_dir, folder / 'log.txt'), train(alone, folder / 'log.txt')
    print(f'| then resumed: exit codes {codes} | 1 | {int(not compare(work_dir, alone))} |')


def fill_disk(folder: Path) -> None:
    disk = folder / 'disk'
    disk.mkdir()
    alone = folder / 'alone'
    train(alone, folder / 'log.txt')
    size = (alone / 'iter_12.pth').stat().st_size
    subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', f'size={int(2.7 * size)}', 'tmpfs', disk], check=True
    )
    try:
        code = train(disk / 'run', folder / 'log.txt')
        left = sorted(path.name for path in disk.glob('run/*.p*'))
        last = (folder / 'log.txt').read_text().strip().splitlines()[-1]
        print(f'disk full at the third save: exit code {code}, {left}, {last!r}')
        subprocess.run(['mount', '-o', f'remount,size={9 * size}', disk], check=True)
        code = train(disk / 'run', folder / 'log.txt')
        print(f'resumed with room: exit code {code}, differences {compare(disk / "run", alone)}')
    finally:
        subprocess.run(['umount', disk], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--ways', type=int, default=1000)
    parser.add_argument('--full-disk', action='store_true')
    args = parser.parse_args()
    random.seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if args.full_disk:
            fill_disk(Path(folder))
        else:
            try_damage(Path(folder), args.ways)


if __name__ == '__main__':
    main()
