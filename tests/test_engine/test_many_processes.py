"""Several processes take the steps of one that has the whole batch."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.runner import Runner

import videomac_mm.engine
import videomac_mm.models  # noqa: F401
from tests.reliability.small_runs import small_config
from tests.test_engine.test_non_finite import Poison
from videomac_mm.engine.unwrap import unwrap

pytestmark = pytest.mark.reliability

METHODS = ['videomac', 'videomae', 'motionmae', 'cmae_v']


class Record(Hook):
    """What each step of all processes together has seen: pictures, masks and losses."""

    def __init__(self) -> None:
        self.steps: list[dict] = []

    def before_run(self, runner) -> None:
        draw = unwrap(runner.model).mask_generator.draw = []
        generator = unwrap(runner.model).mask_generator
        original = type(generator).__call__

        class Recording(type(generator)):
            def __call__(self, *args):
                patches = original(self, *args)
                draw.append(patches.mask.clone())
                return patches

        generator.__class__ = Recording
        self.masks = draw

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        mine = dict(
            inputs=torch.stack(data_batch['inputs']),
            mask=self.masks.pop(),
            losses={key: float(value) for key, value in outputs.items()},
        )
        self.masks.clear()
        all_of_them = all_gather_object(mine)
        losses = [found['losses'] for found in all_of_them]
        self.steps.append(
            dict(
                inputs=torch.cat([found['inputs'] for found in all_of_them]),
                mask=torch.cat([found['mask'] for found in all_of_them]),
                losses={key: sum(x[key] for x in losses) / len(losses) for key in losses[0]},
            )
        )


def train(method: str, work_dir: Path, batch_size: int, **options) -> list[dict]:
    by_epoch = options.pop('by_epoch', False)
    steps, poison = options.pop('steps', 12), options.pop('poison', ())
    cfg = small_config(method, work_dir, by_epoch=by_epoch, **options)
    cfg.train_dataloader.batch_size = batch_size
    cfg.train_dataloader.dataset.num_videos = 11
    cfg.train_dataloader.drop_last = options.get('drop_last', True)
    cfg.train_cfg.update(dict(max_epochs=3) if by_epoch else dict(max_iters=steps))
    cfg.model.backbone.drop_path_rate = 0.0  # its draws are each process's own
    cfg.env_cfg.dist_cfg = dict(backend='nccl', timeout=120)
    cfg.default_hooks.checkpoint.interval = 1 if by_epoch else 2
    # Of momentum and of large steps nothing but rounding would be seen in the end: batch norm of
    # a few samples, as in CMAE-V's heads, makes it much larger.
    lr = 1e-3 if method == 'cmae_v' else 1e-2
    cfg.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=lr))
    runner = Runner.from_cfg(cfg)
    record = Record()
    runner.register_hook(record)
    runner.register_hook(Poison(poison))
    runner.train()
    record.steps[-1]['weights'] = unwrap(runner.model).state_dict()
    return record.steps


def work(rank: int, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    environ = dict(
        RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2, MASTER_ADDR='127.0.0.1', MASTER_PORT=port
    )
    os.environ.update({key: str(value) for key, value in environ.items()})
    folder = Path(folder)
    options = dict(launcher='pytorch')
    found = {name: train(name, folder / name, 2, **options) for name in METHODS}
    found['epochs'] = train('videomac', folder / 'epochs', 2, by_epoch=True, **options)
    found['half'] = train('videomac', folder / 'half', 2, steps=6, **options)
    found['resumed'] = train('videomac', folder / 'resumed', 2, resume=True, **options)
    # Pixels of the second process alone are NaN, in one step.
    found['poisoned'] = train(
        'cmae_v', folder / 'poisoned', 2, steps=4, poison=[2] if rank else [], **options
    )
    torch.save(found, folder / f'found_{rank}.pth')
    torch.distributed.destroy_process_group()


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp('processes')


@pytest.fixture(scope='module')
def one(folder) -> dict[str, list[dict]]:
    """What one process saw in each run; a run of six steps for two to resume."""
    found = {name: train(name, folder / 'one' / name, 4) for name in METHODS}
    found['epochs'] = train('videomac', folder / 'one' / 'epochs', 4, by_epoch=True)
    train('videomac', folder / 'resumed', 4, steps=6)
    return found


@pytest.fixture(scope='module')
def two(one, folder) -> dict[str, list[dict]]:
    """What two processes saw in each run."""
    if not torch.distributed.is_gloo_available():
        pytest.skip('torch without gloo')
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(work, (str(folder), port), nprocs=2)
    return torch.load(folder / 'found_0.pth')


def assert_same_steps(got: list[dict], wanted: list[dict]) -> None:
    assert len(got) == len(wanted) > 0
    for step, (mine, other) in enumerate(zip(got, wanted)):
        assert torch.equal(mine['inputs'], other['inputs']), step
        assert torch.equal(mine['mask'], other['mask']), step
        for key, value in other['losses'].items():
            assert mine['losses'][key] == pytest.approx(value, rel=1e-6, abs=1e-6), (step, key)


@pytest.mark.parametrize('name', [*METHODS, 'epochs'])
def test_two_processes__see_and_learn_what_one_does(one, two, name):
    """Items, crops and masks are equal, losses to 1e-6, for all steps."""
    assert_same_steps(two[name], one[name])


def test_masks__differ_between_processes_and_steps(two):
    steps = two['videomae']
    halves = [half for step in steps for half in step['mask'].chunk(2)]
    assert len({tuple(half.flatten().tolist()) for half in halves}) == len(halves)


def test_resumed_run__of_one_process_goes_on_with_two(one, two):
    assert_same_steps(two['resumed'], one['videomac'][6:])


def test_resumed_run__of_two_processes_goes_on_with_one(one, two, folder):
    """Random numbers of the second process are not needed any more."""
    checkpoint = torch.load(folder / 'half' / 'iter_6.pth')
    assert len(checkpoint['rng']) == 2
    got = train('videomac', folder / 'half', 4, resume=True)
    assert_same_steps(got, one['videomac'][6:])


def test_nan__in_one_process_is_skipped_by_all(two, folder):
    found = [torch.load(folder / f'found_{rank}.pth')['poisoned'] for rank in range(2)]
    assert [step['losses']['loss'] > 0 for step in found[0]] == [True, True, False, True]
    first, second = (steps[-1]['weights'] for steps in found)
    for name, value in first.items():
        assert value.isfinite().all(), name
        # Running statistics differ until `SyncBuffersHook` averages them.
        assert 'running' in name or torch.equal(value, second[name]), name


@pytest.mark.parametrize(
    'what, message',
    [
        ('rank', 'RuntimeError: the error of rank 1'),
        ('killed rank', 'Signal 9'),
        ('worker', 'DataLoader worker .* is killed by signal: Killed'),
    ],
)
def test_death__of_one_ends_all_and_says_why(tmp_path, what, message):
    """Within a minute, of which the start takes most."""
    if not torch.distributed.is_gloo_available():
        pytest.skip('torch without gloo')
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
    command = [*launcher, '-m', 'tests.reliability.dies', what, str(tmp_path)]
    begun = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert re.search(message, done.stdout + done.stderr)
    assert time.monotonic() - begun < 60 + 30  # imports of a busy machine
