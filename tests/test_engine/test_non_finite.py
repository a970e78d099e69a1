"""Steps with inf or NaN reach neither weights nor checkpoints."""

import subprocess
import sys

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import Runner
from torch import nn

from tests.reliability.small_runs import differences
from tests.test_engine.test_training import config
from videomac_mm.engine import NonFiniteHook, TargetEMAHook
from videomac_mm.engine.hooks.non_finite import all_finite
from videomac_mm.engine.unwrap import unwrap

pytestmark = pytest.mark.reliability


class Poison(Hook):
    """Puts NaN into the pixels of some iterations, or a loss of inf beside the others."""

    def __init__(self, iterations, kind: str = 'pixels') -> None:
        self.iterations = iterations
        self.kind = kind

    def before_train(self, runner) -> None:
        model = unwrap(runner.model)
        loss = model.loss

        def poisoned(inputs, *args, **kwargs):
            bad = runner.iter in self.iterations
            if bad and self.kind == 'pixels':
                inputs = torch.full_like(inputs, torch.nan)
            losses = loss(inputs, *args, **kwargs)
            if bad and self.kind == 'loss':
                losses['loss_other'] = torch.tensor(torch.inf)
            return losses

        model.loss = poisoned


class Snapshots(Hook):
    """Weights, target and optimiser after each iteration."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.states: list[dict] = []

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        model = {k: v.clone() for k, v in runner.model.state_dict().items()}
        optimizer = runner.optim_wrapper.optimizer.state_dict()
        state = {
            i: {k: torch.as_tensor(v).clone() for k, v in s.items()}
            for i, s in optimizer['state'].items()
        }
        self.states.append(dict(model=model, optimizer=state))


def train(tmp_path, iterations=(), kind='pixels', max_in_a_row=10, optim=None, **kwargs):
    cfg = config(tmp_path, **kwargs)
    cfg.optim_wrapper = dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.1, fused=True),
        **(optim or {}),
    )
    cfg.train_cfg = dict(type='videomac_mm.IterBasedTrainLoop', max_iters=8)
    cfg.train_dataloader.sampler = dict(type='ResumableSampler')
    cfg.default_hooks = dict(
        checkpoint=dict(type='videomac_mm.CheckpointHook', by_epoch=False, interval=1),
        non_finite=dict(type='NonFiniteHook', max_in_a_row=max_in_a_row),
    )
    cfg.custom_hooks = cfg.custom_hooks[:1]
    runner = Runner.from_cfg(cfg)
    runner.register_hook(Poison(iterations, kind))
    snapshots = Snapshots()
    runner.register_hook(snapshots)
    runner.train()
    return runner, snapshots.states


def counts(runner: Runner) -> list[int]:
    return list(runner.message_hub.log_scalars['train/non_finite'].data[0])


@pytest.mark.parametrize('kind', ['pixels', 'loss'])
def test_bad_step__changes_nothing_and_training_goes_on(tmp_path, kind):
    runner, states = train(tmp_path, iterations=[3], kind=kind)
    assert differences(states[3], states[2]) == []
    assert len(differences(states[4], states[3])) > 10
    assert counts(runner) == [0, 0, 0, 1, 1, 1, 1, 1]
    for path in tmp_path.glob('iter_*.pth'):
        state = torch.load(path)['state_dict']
        assert all(value.isfinite().all() for value in state.values()), path


def test_bad_step__is_one_even_in_the_first_part_of_an_accumulated_one(tmp_path):
    _, states = train(tmp_path, iterations=[2], optim=dict(accumulative_counts=2))
    assert differences(states[3], states[1]) == []
    assert len(differences(states[5], states[3])) > 10


def test_bad_step__leaves_running_statistics(tmp_path):
    model = dict(config(tmp_path).model)
    model['backbone'] = dict(
        type='SparseResNet', depth=18, variant='videomac', base_channels=4, stem_channels=4,
        norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU'),
    )  # fmt: skip
    model['neck'] = dict(model['neck'], in_channels=32, patch_size=32)
    model['head'] = dict(model['head'], patch_size=32)
    model['mask_generator'] = dict(model['mask_generator'], patch_size=32)
    loader = config(tmp_path).train_dataloader
    loader.dataset.size = (64, 64)
    _, states = train(tmp_path, iterations=[3], model=model, train_dataloader=loader)
    names = [name for name in states[3]['model'] if 'running_mean' in name]
    assert names
    assert differences(states[3], states[2]) == []


def test_without_the_hook__one_bad_step_destroys_all(tmp_path):
    """So that the tests above can fail."""
    cfg = config(tmp_path)
    cfg.custom_hooks = cfg.custom_hooks[:1]
    cfg.default_hooks.checkpoint.type = 'mmengine.CheckpointHook'
    runner = Runner.from_cfg(cfg)
    runner.register_hook(Poison([2]))
    runner.train()
    assert not all_finite([p.detach() for p in runner.model.parameters()])


def test_too_many_in_a_row__end_the_run_and_can_be_replayed(tmp_path, root):
    with pytest.raises(FloatingPointError, match='3 steps in a row were not finite') as caught:
        train(tmp_path, iterations=[1, 4, 5, 6], max_in_a_row=3)
    (path,) = tmp_path.glob('non_finite_*.pth')
    assert path.name == 'non_finite_7_rank0.pth' and str(path) in str(caught.value)
    step = torch.load(path)  # holds no code
    assert step['iteration'] == 7 and len(step['inputs']) == 2
    command = [sys.executable, str(root / 'tools' / 'replay_step.py'), str(path)]
    # The pixels were poisoned behind the preprocessor: the step itself is sound.
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert 'inputs are finite' in done.stdout and 'loss_online: ' in done.stdout
    # A weight that is not finite is found.
    name = 'neck.mask_token'
    step['state_dict'][name] = torch.full_like(step['state_dict'][name], torch.nan)
    torch.save(step, path)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'first module with an output that is not finite: neck' in done.stdout
    assert '  backbone.' in done.stdout


def test_replay__is_the_step_itself(tmp_path, root):
    """Losses of the replay are those of the run: same pictures and same masks."""

    class Same(Hook):
        priority = 'HIGHEST'

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
            (hook,) = (h for h in runner.hooks if isinstance(h, NonFiniteHook))
            self.losses = {key: float(value) for key, value in outputs.items()}
            self.path = hook._save(runner, data_batch)

    cfg = config(tmp_path)
    cfg.optim_wrapper.optimizer.lr = 0.0  # weights are saved after the step
    cfg.train_cfg = dict(type='videomac_mm.IterBasedTrainLoop', max_iters=2)
    cfg.train_dataloader.sampler = dict(type='ResumableSampler')
    cfg.custom_hooks = cfg.custom_hooks[:1]
    cfg.default_hooks.non_finite = dict(type='NonFiniteHook', max_in_a_row=1)
    runner, same = Runner.from_cfg(cfg), Same()
    runner.register_hook(same)
    runner.train()
    command = [sys.executable, str(root / 'tools' / 'replay_step.py'), str(same.path)]
    printed = subprocess.run(command, capture_output=True, text=True).stdout
    for key, value in same.losses.items():
        found = printed.split(f'\n{key}: ')[1].split('\n')[0]
        assert float(found) == pytest.approx(value, rel=1e-6)


def test_weights__that_are_not_finite_are_not_saved(tmp_path):
    """However they became so: the checkpoints of before must stay."""

    class Break(Hook):
        def after_train_iter(self, runner, *args, **kwargs) -> None:
            if runner.iter == 3:
                runner.model.neck.mask_token.data.fill_(torch.nan)

    cfg = config(tmp_path)
    cfg.custom_hooks = cfg.custom_hooks[:1]
    cfg.train_cfg = dict(type='videomac_mm.IterBasedTrainLoop', max_iters=8)
    cfg.default_hooks.checkpoint = dict(
        type='videomac_mm.CheckpointHook', by_epoch=False, interval=1, max_keep_ckpts=1
    )
    runner = Runner.from_cfg(cfg)
    runner.register_hook(Break())
    with pytest.raises(FloatingPointError, match='first is neck.mask_token. iter_4.pth is not'):
        runner.train()
    assert [path.name for path in tmp_path.glob('*.pth')] == ['iter_3.pth']


def test_counts__survive_a_resume(tmp_path):
    cfg = config(tmp_path)
    cfg.custom_hooks = cfg.custom_hooks[:1]
    hook = NonFiniteHook()
    hook.in_a_row, hook.total = 2, 5
    checkpoint = {}
    hook.before_save_checkpoint(None, checkpoint)
    resumed = NonFiniteHook()

    class Resuming:
        _resume = True

    resumed.after_load_checkpoint(Resuming, checkpoint)
    assert (resumed.in_a_row, resumed.total) == (2, 5)


# ------------------------------------------------------------------ loss scalers


class Scaled(AmpOptimWrapper):
    """float16's loss scaler on the CPU, where mmengine has none."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=4.0)


class Overflow(Hook):
    """Gradients of some iterations overflow, while the loss is finite."""

    def __init__(self, iterations) -> None:
        self.iterations = iterations

    def before_train_iter(self, runner, *args, **kwargs) -> None:
        if runner.iter in self.iterations:
            weight = next(runner.model.parameters())
            handle = weight.register_hook(lambda grad: grad * torch.inf)
            self.handle = handle

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        if runner.iter in self.iterations:
            self.handle.remove()


def train_scaled(tmp_path, fused: bool, fault: Hook) -> tuple[Runner, list[dict]]:
    """The runner, and its states after each iteration."""
    cfg = config(tmp_path)
    cfg.custom_hooks = cfg.custom_hooks[:1]
    cfg.default_hooks.non_finite = dict(type='NonFiniteHook')
    runner, snapshots = Runner.from_cfg(cfg), Snapshots()
    params = runner.model.parameters()
    runner.optim_wrapper = Scaled(optimizer=torch.optim.AdamW(params, lr=0.01, fused=fused))
    for hook in (fault, snapshots):
        runner.register_hook(hook)
    runner.train()
    return runner, snapshots.states


@pytest.mark.parametrize('fused', [False, True])
def test_scaler__its_skipped_steps_are_its_own_and_leave_the_target(tmp_path, fused):
    runner, states = train_scaled(tmp_path, fused, Overflow([3]))
    models = [state['model'] for state in states]
    assert differences(models[3], models[2]) == []
    assert len(differences(models[4], models[3])) > 10
    assert counts(runner)[-1] == 0
    assert runner.optim_wrapper.loss_scaler.get_scale() == 2.0


@pytest.mark.parametrize('fused', [False, True])
def test_scaler__a_loss_that_is_not_finite_counts(tmp_path, fused):
    runner, _ = train_scaled(tmp_path, fused, Poison([3]))
    assert counts(runner)[-1] == 1
    assert all_finite([p.detach() for p in runner.model.parameters()])


def test_target__follows_without_this_hook_and_stands_after_a_skip():
    """Of the optimiser alone: whether it stepped."""
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    hook = TargetEMAHook()
    optimizer.register_step_post_hook(hook._note_step)
    optimizer.step()
    assert not hook._stepped
    weight.grad = torch.ones(2)
    optimizer.step()
    assert hook._stepped


# -------------------------------------------------------------------------- parts


@pytest.mark.parametrize('value', [torch.inf, -torch.inf, torch.nan])
def test_all_finite__finds_one_value(value):
    tensors = [torch.ones(1000), torch.ones(3, 3)]
    assert all_finite(tensors)
    tensors[1][1, 2] = value
    assert not all_finite(tensors)


def test_all_finite__large_numbers_are_finite():
    assert all_finite([torch.full((10,), 3e38), torch.full((10,), -3e38)])
    assert all_finite([])


@pytest.mark.parametrize('number', [0, -1])
def test_hook__bad_numbers_are_named(number):
    with pytest.raises(ValueError, match=f'at least 1, got {number}'):
        NonFiniteHook(number)
