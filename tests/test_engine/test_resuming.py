"""A run that was stopped goes on as if it had not been: with shuffled data, crops and masks."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS
from mmengine.runner import Runner

import videomac_mm.engine
import videomac_mm.models  # noqa: F401
from tests.reliability.small_runs import compare, kill_after, small_config, start
from videomac_mm.datasets import SyntheticVideoDataset
from videomac_mm.engine import CheckpointHook
from videomac_mm.engine.stopping import EXIT_STOPPED, StopSignals
from videomac_mm.weights.newest import newest_checkpoint
from videomac_mm.weights.seal import check_whole

pytestmark = pytest.mark.reliability


class Interrupted(Exception):
    pass


class Slow(Hook):
    """Takes its time after the fifth step, so that a signal comes before the end."""

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        if runner.iter >= 5:
            time.sleep(0.5)


class Interrupt(Hook):
    """Ends the run with an error in the middle of an iteration, before its checkpoint."""

    priority = 'LOW'

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        if runner.iter == self.iteration:
            raise Interrupted


def run(cfg, interrupt: int | None = None) -> Runner:
    runner = Runner.from_cfg(cfg)
    if interrupt is not None:
        runner.register_hook(Interrupt(interrupt))
        with pytest.raises(Interrupted):
            runner.train()
    else:
        runner.train()
    return runner


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    """The folder of the uninterrupted run of a method, made when it is first asked for."""
    folder = tmp_path_factory.mktemp('alone')

    def find(method: str, by_epoch: bool) -> Path:
        work_dir = folder / f'{method}_{by_epoch}'
        if not work_dir.exists():
            run(small_config(method, work_dir, by_epoch))
        return work_dir

    return find


@pytest.mark.parametrize('by_epoch', [False, True])
@pytest.mark.parametrize('method', ['videomac', 'videomae', 'motionmae', 'cmae_v'])
def test_resumed_run__is_the_uninterrupted_one(tmp_path, alone, method, by_epoch):
    """Stopped between two checkpoints, and resumed with two workers."""
    work_dir = tmp_path / 'run'
    run(small_config(method, work_dir, by_epoch), interrupt=7)
    run(small_config(method, work_dir, by_epoch, workers=2, resume=True))
    assert compare(work_dir, alone(method, by_epoch)) == []


def test_resumed_run__differs_for_another_seed(tmp_path, alone):
    """So that the test above can fail."""
    run(small_config('videomac', tmp_path / 'run', randomness=dict(seed=1)))
    assert len(compare(tmp_path / 'run', alone('videomac', False))) > 100


def test_resumed_run__goes_on_inside_an_epoch(tmp_path, alone):
    cfg = small_config('videomac', tmp_path / 'run', by_epoch=True)
    cfg.default_hooks.checkpoint.interim_minutes = 1e-9
    run(cfg, interrupt=8)
    assert not (tmp_path / 'run' / 'epoch_3.pth').exists()
    newest = max(tmp_path.glob('run/*.pth'), key=os.path.getmtime)
    assert newest.name == 'interim_8.pth'  # two of the three steps of the third epoch
    assert len(list(tmp_path.glob('run/interim_*'))) == 1
    place = torch.load(newest)['place']
    assert (place['epoch'], place['items']) == (2, 4)
    runner = run(small_config('videomac', tmp_path / 'run', by_epoch=True, resume=True))
    assert compare(tmp_path / 'run', alone('videomac', True)) == []
    assert runner.iter == 12
    assert not list(tmp_path.glob('run/interim_*'))


def test_resumed_run__without_a_seed_goes_on_with_its_own(tmp_path):
    for name, interrupt in (('one', 7), ('two', 9)):
        # The first process draws a seed; the others find it in the checkpoint.
        cfg = small_config('videomac', tmp_path / name, randomness=dict(seed=None))
        if name == 'two':
            seed = torch.load(tmp_path / 'one' / 'iter_12.pth')['meta']['seed']
            cfg.randomness.seed = seed
        run(cfg, interrupt)
        run(small_config('videomac', tmp_path / name, randomness=dict(seed=None), resume=True))
    assert compare(tmp_path / 'one', tmp_path / 'two') == []


def test_resumed_run__decodes_nothing_of_what_is_done(tmp_path, monkeypatch):
    work_dir = tmp_path / 'run'
    run(small_config('videomac', work_dir), interrupt=9)
    asked, prepare = [], SyntheticVideoDataset.prepare_data

    def record(dataset, index: int):
        asked.append(index)
        return prepare(dataset, index)

    monkeypatch.setattr(SyntheticVideoDataset, 'prepare_data', record)
    run(small_config('videomac', work_dir, resume=True))
    assert len(asked) == 2 * (12 - 8)


def test_resumed_run__keeps_the_samples_of_the_panels(tmp_path):
    work_dir = tmp_path / 'run'
    run(small_config('videomac', work_dir), interrupt=7)
    saved = torch.load(work_dir / 'iter_6.pth')['reconstruction_inputs']
    runner = run(small_config('videomac', work_dir, resume=True))
    (hook,) = (h for h in runner.hooks if type(h).__name__ == 'ReconstructionHook')
    assert torch.equal(hook._inputs, saved)


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(batch_size=4), 'items of a step of all processes is 4 and was 2 before'),
        (dict(dataset=dict(num_videos=9)), 'items of the data set is 9 and was 7 before'),
    ],
)
def test_resumed_run__that_cannot_be_the_same_says_so(tmp_path, capsys, change, message):
    work_dir = tmp_path / 'run'
    run(small_config('videomac', work_dir), interrupt=7)
    cfg = small_config('videomac', work_dir, resume=True)
    cfg.merge_from_dict(dict(train_dataloader=change))
    assert run(cfg).iter == 12
    assert message in ''.join(capsys.readouterr())


def test_resumed_run__takes_checkpoints_of_mmengines_hook(tmp_path, alone):
    """They hold no position, but the number of iterations tells it."""
    for by_epoch in (False, True):
        work_dir = tmp_path / str(by_epoch)
        cfg = small_config('videomac', work_dir, by_epoch)
        cfg.default_hooks.checkpoint.type = 'mmengine.CheckpointHook'
        run(cfg, interrupt=7)
        run(small_config('videomac', work_dir, by_epoch, resume=True))
        assert compare(work_dir, alone('videomac', by_epoch)) == []


def test_stock_samplers__resume_as_they_did(tmp_path):
    """The loops throw away what was trained on, or begin the epoch anew."""
    for by_epoch, name in ((False, 'InfiniteSampler'), (True, 'DefaultSampler')):
        cfg = small_config('videomac', tmp_path / name, by_epoch)
        cfg.train_dataloader.sampler = dict(type=name)
        run(cfg, interrupt=7)
        cfg = small_config('videomac', tmp_path / name, by_epoch, resume=True)
        cfg.train_dataloader.sampler = dict(type=name)
        runner = run(cfg)
        assert isinstance(runner.train_dataloader.sampler, DATA_SAMPLERS.get(name))
        assert runner.iter == 12


# ---------------------------------------------------------------------- checkpoints


def test_checkpoint__the_oldest_goes_after_the_new_one_is_written(tmp_path, monkeypatch):
    seen = []
    write = CheckpointHook._write

    def record(hook, runner, name, meta):
        write(hook, runner, name, meta)
        seen.append(sorted(path.name for path in tmp_path.glob('run/*.pth')))

    monkeypatch.setattr(CheckpointHook, '_write', record)
    cfg = small_config('videomac', tmp_path / 'run')
    cfg.default_hooks.checkpoint.update(interval=4, max_keep_ckpts=1)
    run(cfg)
    assert seen == [['iter_4.pth'], ['iter_4.pth', 'iter_8.pth'], ['iter_12.pth', 'iter_8.pth']]
    assert [path.name for path in tmp_path.glob('run/*.pth')] == ['iter_12.pth']
    check_whole(tmp_path / 'run' / 'iter_12.pth')


def test_checkpoint__a_resumed_run_removes_what_was_left_over(tmp_path):
    cfg = small_config('videomac', tmp_path / 'run')
    cfg.default_hooks.checkpoint.max_keep_ckpts = 1
    run(cfg, interrupt=5)
    (tmp_path / 'run' / 'iter_2.pth').write_bytes(b'left by a kill')
    (tmp_path / 'run' / '.iter_6.pth.part').write_bytes(b'half written')
    checkpoint = torch.load(tmp_path / 'run' / 'iter_4.pth')
    assert checkpoint['message_hub']['runtime_info']['keep_ckpt_ids'] == [2, 4]
    cfg = small_config('videomac', tmp_path / 'run', resume=True)
    cfg.default_hooks.checkpoint.max_keep_ckpts = 1
    run(cfg)
    left = {path.name for path in (tmp_path / 'run').iterdir() if '.p' in path.name}
    assert left == {'iter_12.pth', Path(cfg.filename).name}


def test_checkpoint__a_fresh_run_leaves_interim_ones_of_an_earlier_run(tmp_path):
    earlier = tmp_path / 'run' / 'interim_99.pth'
    earlier.parent.mkdir()
    earlier.write_bytes(b'of a run that was started in the same folder')
    cfg = small_config('videomac', tmp_path / 'run')
    cfg.default_hooks.checkpoint.interim_minutes = 1e-9
    run(cfg)
    left = [path.name for path in tmp_path.glob('run/interim_*')]
    assert left == ['interim_99.pth']


def test_checkpoint__a_damaged_one_costs_the_steps_since_the_last(tmp_path, alone):
    cfg = small_config('videomac', tmp_path / 'run')
    cfg.default_hooks.checkpoint.max_keep_ckpts = 3
    run(cfg, interrupt=9)
    newest = tmp_path / 'run' / 'iter_8.pth'
    newest.write_bytes(newest.read_bytes()[:-1000])
    cfg = small_config('videomac', tmp_path / 'run', resume=True)
    cfg.default_hooks.checkpoint.max_keep_ckpts = 3
    runner = run(cfg)
    assert runner.iter == 12
    assert compare(tmp_path / 'run', alone('videomac', False)) == []


@pytest.mark.parametrize('minutes', [0, -1])
def test_checkpoint__bad_minutes_are_named(minutes):
    with pytest.raises(ValueError, match=f'above 0 or None, got {minutes}'):
        CheckpointHook(interim_minutes=minutes)


# -------------------------------------------------------------------------- signals


def wait_for(path: Path, number: int, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until and os.waitpid(number, os.WNOHANG) == (0, 0)
        time.sleep(0.01)


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGINT'])
@pytest.mark.parametrize('workers', [0, 2])
def test_signal__finishes_the_step_saves_and_stops(tmp_path, alone, name, workers):
    def train() -> None:
        os.setpgid(0, 0)
        cfg = small_config('videomac', tmp_path / 'run', workers=workers)
        cfg.default_hooks.checkpoint.interval = 5
        runner = Runner.from_cfg(cfg)
        runner.register_hook(Slow())
        runner.train()

    number = start(train, tmp_path / 'log.txt')
    wait_for(tmp_path / 'run' / 'iter_5.pth', number)
    os.killpg(number, getattr(signal, name))  # as SLURM and the keyboard do: workers, too
    assert os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == EXIT_STOPPED
    log = (tmp_path / 'log.txt').read_text()
    assert f'{name} received' in log and 'Traceback' not in log
    done = torch.load(newest_checkpoint(str(tmp_path / 'run')))['meta']['iter']
    assert 5 <= done < 12
    run(small_config('videomac', tmp_path / 'run', resume=True))
    assert compare(tmp_path / 'run', alone('videomac', False)) == []


def test_signal__the_second_ends_the_process_at_once(tmp_path):
    def task() -> None:
        signals = StopSignals(['SIGTERM'])
        signals.install()
        (tmp_path / 'ready').touch()
        while True:
            time.sleep(0.01)
            if signals.received:
                (tmp_path / 'received').touch()

    number = start(task, tmp_path / 'log.txt')
    wait_for(tmp_path / 'ready', number)
    os.kill(number, signal.SIGTERM)
    wait_for(tmp_path / 'received', number)
    os.kill(number, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == -signal.SIGTERM


def test_signal__handlers_are_those_of_before_after_training(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    run(small_config('videomac', tmp_path / 'run'))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_signal__names_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"got \['SIGSTOPP'\]"):
        CheckpointHook(stop_signals=['SIGTERM', 'SIGSTOPP'])


def test_kill__at_a_random_moment_loses_nothing(tmp_path, alone):
    """One of the kinds of `tests/reliability/kill.py`."""
    killed = 0
    for seconds in (0.3, 0.9, 1.5, 600):
        cfg = small_config('videomac', tmp_path / 'run', workers=1, resume=True)
        number = start(lambda cfg=cfg: run(cfg), tmp_path / 'log.txt')
        killed += kill_after(number, seconds)
        code = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
    assert code == 0 and killed
    assert compare(tmp_path / 'run', alone('videomac', False)) == []
