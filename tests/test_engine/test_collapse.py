"""Statistics that tell of collapse, and the hook that logs them in real runs."""

import copy
import json
import math
import os
import re
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import Runner
from torch import Tensor, nn

from tests.masks import random_mask
from tests.test_engine.test_training import config
from tests.test_models import test_cmae_v, test_target_network, test_videomae
from videomac_mm.engine import CollapseHook, effective_rank, prediction_spread
from videomac_mm.models import VideoMAC
from videomac_mm.sparse import VisiblePatches

NAMES = ['effective_rank', 'effective_rank_share', 'prediction_spread', 'target_distance']


# ------------------------------------------------------------------------- effective rank


def test_rank__of_orthogonal_directions_is_their_number():
    features = torch.eye(5, 8).repeat(7, 1)
    assert effective_rank(features) == pytest.approx(5, abs=1e-4)
    assert effective_rank(features.T) == pytest.approx(5, abs=1e-4)


@pytest.mark.parametrize('value', [0.0, 3.0])
def test_rank__of_the_same_vector_for_all_is_one(value):
    assert effective_rank(torch.full((40, 6), value)) == pytest.approx(1, abs=1e-4)


def test_rank__is_the_entropy_of_singular_values():
    # 1/2, 1/4, 1/4
    features = torch.diag(torch.tensor([2.0, 1.0, 1.0]))
    assert effective_rank(features) == pytest.approx(math.exp(1.5 * math.log(2)))

    features = torch.randn(50, 12)
    share = torch.linalg.svdvals(features.double())
    share = share / share.sum()
    expected = (-(share * share.log()).sum()).exp()
    torch.testing.assert_close(effective_rank(features), expected)


@pytest.mark.parametrize('scale', [1e-30, 1e30])
def test_rank__does_not_depend_on_scale(scale):
    features = torch.randn(20, 6)
    torch.testing.assert_close(effective_rank(features * scale), effective_rank(features))


def test_rank__of_what_is_not_finite_is_nan():
    for value in (math.nan, math.inf):
        features = torch.randn(20, 6)
        features[3, 2] = value
        assert effective_rank(features).isnan()


@pytest.mark.parametrize('shape', [(3,), (2, 3, 4), (0, 4)])
def test_rank__other_shapes_are_named(shape):
    with pytest.raises(ValueError, match=re.escape(f'got {shape}')):
        effective_rank(torch.zeros(shape))


# ---------------------------------------------------------------------- prediction spread


def test_spread__is_zero_for_one_prediction_and_one_for_perfect_ones():
    targets = torch.randn(30, 5) + 4
    assert prediction_spread(torch.randn(1, 5).expand(30, 5), targets) < 1e-6
    assert prediction_spread(targets, targets) == 1
    assert prediction_spread(3 - targets / 2, targets) == pytest.approx(0.5)


def test_spread__of_the_best_predictor_is_the_root_of_what_it_explains():
    x = torch.randn(4000, 3)
    targets = 0.6 * x + 0.8 * torch.randn(4000, 3)
    preds = x @ torch.linalg.lstsq(x, targets).solution
    explained = 1 - (targets - preds).var() / targets.var()
    assert prediction_spread(preds, targets) == pytest.approx(explained.sqrt().item(), abs=0.01)


def test_spread__is_in_float32():
    targets = torch.randn(30, 5)
    spread = prediction_spread(targets.bfloat16(), targets)
    assert spread.dtype == torch.float32
    assert spread == pytest.approx(1, abs=0.01)


def test_spread__undefined_ones_are_nan():
    preds, targets = torch.randn(2, 30, 5)
    preds[0, 0] = math.nan
    assert prediction_spread(preds, targets).isnan()
    assert prediction_spread(torch.ones(4, 2), torch.ones(4, 2)).isnan()


def test_spread__different_shapes_are_named():
    with pytest.raises(ValueError, match=r'got \(3, 2\) and \(3, 4\)'):
        prediction_spread(torch.zeros(3, 2), torch.zeros(3, 4))


# ------------------------------------------------------------------ what the hook measures


def watch(hook: CollapseHook, model: nn.Module, inputs: Tensor, mask: Tensor) -> dict[str, float]:
    """The values that one step leaves in the message hub."""
    hub = MessageHub.get_instance('collapse')
    hub.log_scalars.clear()
    runner = SimpleNamespace(model=model, iter=0, max_iters=1, message_hub=hub)
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)
    inner = model.module if isinstance(model, MMDistributedDataParallel) else model
    sum(inner.loss(inputs, mask=mask).values()).backward()
    hook.after_train_iter(runner, 0)
    return {name: buffer.current() for name, buffer in hub.log_scalars.items()}


def videomac() -> VideoMAC:
    return test_target_network.randomise(test_target_network.build())


def with_resnet() -> VideoMAC:
    backbone = dict(
        type='videomac_mm.SparseResNet',
        depth=18,
        variant='videomac',
        base_channels=4,
        stem_channels=4,
    )
    neck = dict(type='videomac_mm.MaskTokenDecoder', in_channels=32, embed_dims=4, patch_size=32)
    return VideoMAC(backbone, neck, dict(type='videomac_mm.PixelHead', patch_size=32))


def rank_and_share(features: Tensor) -> list[float]:
    rank = effective_rank(features).item()
    return [rank, rank / min(features.shape)]


@pytest.mark.parametrize('build, patch', [(videomac, 8), (with_resnet, 32)])
def test_hook__sees_visible_sites_and_hidden_patches_of_videomac(build, patch):
    model, mask = build(), random_mask(3, (3, 4), 5)
    inputs = torch.randn(3, 1, 3, 2, 3 * patch, 4 * patch)
    found = watch(CollapseHook(interval=1), model, inputs, mask)
    assert list(found) == [f'train/{name}' for name in NAMES]

    frame = inputs[:, 0, :, 0]
    features = model.backbone(frame, mask)[-1]
    pred = model.neck(features, VisiblePatches(mask))
    visible = features.permute(0, 2, 3, 1)[
        ~mask.repeat_interleave(features.shape[2] // 3, 1).repeat_interleave(
            features.shape[3] // 4, 2
        )
    ]
    spread = prediction_spread(
        pred[mask.flatten(1)], model.head.construct_target(frame)[mask.flatten(1)]
    )
    pairs = [(value, model.target.state_dict()[name]) for name, value in model.named_parameters()]
    apart, whole = (
        torch.cat([x.flatten() for x in part]).norm()
        for part in ([a - b for a, b in pairs], [a for a, _ in pairs])
    )
    expected = [*rank_and_share(visible), spread.item(), (apart / whole).item()]
    assert list(found.values()) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize('variant', test_videomae.VARIANTS)
def test_hook__sees_tokens_and_every_target_of_videomae_and_motionmae(variant):
    model, mask = test_videomae.build(variant), random_mask(2, test_videomae.GRID, 5)
    inputs = torch.randn(2, 1, 3, 4, 24, 24, dtype=torch.float64)
    found = watch(CollapseHook(interval=1), model, inputs, mask)
    names = ['_pixel', '_motion'] if variant.startswith('Motion') else ['']
    assert list(found)[2:] == [f'train/prediction_spread{name}' for name in names]
    tokens = model.backbone(inputs[:, 0], mask).flatten(0, 1)
    assert list(found.values())[:2] == pytest.approx(rank_and_share(tokens), rel=1e-4)
    assert all(0 < value < math.inf for value in found.values())


def test_hook__sees_the_first_clip_of_cmae_v():
    model, mask = test_cmae_v.build(), random_mask(3, test_videomae.GRID, 5)
    inputs = torch.randn(3, 2, 3, 4, 24, 24, dtype=torch.float64)
    found = watch(CollapseHook(interval=1), model, inputs, mask)
    assert list(found) == [f'train/{name}' for name in NAMES]
    tokens = model.backbone(inputs[:, 0], mask).flatten(0, 1)
    assert list(found.values())[:2] == pytest.approx(rank_and_share(tokens), rel=1e-4)


def test_hook__looks_at_as_many_samples_as_it_may():
    model, mask = videomac(), random_mask(3, (3, 4), 5)
    inputs = torch.randn(3, 1, 3, 2, 24, 32)
    found = watch(CollapseHook(interval=1, num_samples=2), model, inputs, mask)
    assert 1 <= found['train/effective_rank'] <= 2
    assert found['train/effective_rank_share'] == found['train/effective_rank'] / 2


def test_hook__leaves_no_hook_behind():
    model, mask = videomac(), random_mask(3, (3, 4), 5)
    watch(CollapseHook(interval=1), model, torch.randn(3, 1, 3, 2, 24, 32), mask)
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_hook__leaves_out_what_other_hooks_show_the_network():
    model, mask = videomac(), random_mask(3, (3, 4), 5)
    inputs = torch.randn(3, 1, 3, 2, 24, 32)
    expected = watch(CollapseHook(interval=1), model, inputs, mask)
    loss = model.loss

    def with_picture(*args, **kwargs) -> dict[str, Tensor]:
        losses = loss(*args, **kwargs)
        model.reconstruct(torch.zeros_like(inputs), mask)
        return losses

    model.loss = with_picture
    assert watch(CollapseHook(interval=1), model, inputs, mask) == expected


def test_distance__is_that_of_all_weights():
    model = videomac()
    model.target.copy_from(model)
    assert model.target.distance(model) == 0
    with torch.no_grad():
        for param in model.parameters():
            param.mul_(2)
    assert model.target.distance(model) == pytest.approx(0.5)


# ------------------------------------------------------------------------------- real runs

EMA = dict(type='TargetEMAHook', momentum=0.5)


def run(tmp_path, model: dict | None = None, change=None, ema: dict = EMA, **kwargs) -> Runner:
    """Six iterations with the hook at every second; ``change`` alters the model before."""
    options = dict(dict(interval=2, warm_up=0, min_distance=None), **kwargs.pop('hook', {}))
    optim = kwargs.pop('optim', {})
    cfg = config(tmp_path, **dict(dict(log_level='INFO'), **kwargs))
    cfg.optim_wrapper.update(optim)
    hooks = [dict(type='CollapseHook', **options)] if options['interval'] else []
    cfg.custom_hooks = [ema, *hooks]
    cfg.default_hooks.logger = dict(type='LoggerHook', interval=1)
    cfg.experiment_name = f'collapse_{tmp_path}'  # message hubs are shared by name
    if model is not None:
        cfg.model = model
        clips = dict(type='SampleClips', clip_len=4, frame_interval=1)
        if model['type'] == 'CMAEV':
            clips.update(max_shift=1)
        else:
            cfg.custom_hooks = hooks
        cfg.train_dataloader.dataset.update(size=(24, 24), num_frames=6)
        cfg.train_dataloader.dataset.pipeline[0] = clips
    runner = Runner.from_cfg(cfg)
    if change is not None:
        runner.register_hook(Change(change))
    runner.train()
    return runner


class Change(Hook):
    """Alter the model after initialisation, before the first step."""

    def __init__(self, change) -> None:
        self.change = change

    @torch.no_grad()
    def before_train(self, runner) -> None:
        self.change(runner.model)


def rows(tmp_path) -> list[dict]:
    """What goes to the backends of the visualizer, one of which may be TensorBoard's."""
    (path,) = tmp_path.rglob('vis_data/scalars.json')
    return [json.loads(line) for line in path.read_text().splitlines()]


def warnings(tmp_path) -> list[str]:
    """The names of values that were found low, in order."""
    text = ''.join(path.read_text() for path in sorted(tmp_path.rglob('*.log')))
    return re.findall(r'WARNING - (\w+) is [\d.e+-]+(?:nan)? at iteration \d+', text)


def collapse(model: nn.Module) -> None:
    """The encoder and the decoder say the same of everything."""
    model.backbone.norm1.weight.zero_()
    model.backbone.norm1.bias.fill_(1.0)
    model.neck.pred.weight.zero_()


def enliven(model: nn.Module) -> None:
    """Features and predictions differ from patch to patch; at first they hardly do."""
    for param in model.parameters():
        param.normal_(std=0.3)


def test_run__logs_at_the_right_iterations(tmp_path):
    runner = run(tmp_path)
    for name in NAMES:
        history, _ = runner.message_hub.get_scalar(f'train/{name}').data
        assert len(history) == 3, name
    logged = rows(tmp_path)
    assert [row['step'] for row in logged] == [1, 2, 3, 4, 5, 6]
    ranks = [row.get('effective_rank') for row in logged]
    assert ranks[0] is None
    assert ranks[1] == ranks[2] != ranks[3] == ranks[4] != ranks[5]
    assert all(0 < row['effective_rank_share'] <= 1 for row in logged[1:])
    # Online weights move by half of their way ahead each time.
    assert all(row['target_distance'] > 0 for row in logged[1:])
    assert 'effective_rank: ' in next(tmp_path.rglob('*.log')).read_text()


MODELS = dict(
    videomac=None,
    videomae=dict(type='VideoMAE', **test_videomae.parts()),
    cmae_v=dict(type='CMAEV', **test_cmae_v.parts()),
)


@pytest.mark.parametrize('amp', [False, True])
@pytest.mark.parametrize('name', MODELS)
def test_run__trains_the_same_network_as_without_the_hook(tmp_path, name, amp):
    optim = dict(type='AmpOptimWrapper', dtype='bfloat16') if amp else {}
    found = []
    for interval in (0, 2):
        runner = run(
            tmp_path / str(interval),
            copy.deepcopy(MODELS[name]),
            hook=dict(interval=interval),
            optim=optim,
        )
        found.append((runner.model.state_dict(), runner.message_hub.log_scalars))
    (without, _), (with_hook, scalars) = found
    for key, value in without.items():
        assert torch.equal(value, with_hook[key]), key
    assert math.isfinite(scalars['train/effective_rank'].current())
    assert 0 < scalars['train/prediction_spread'].current() < math.inf


def test_run__of_a_compiled_network_is_seen_too(tmp_path):
    states = []
    for interval in (0, 2):
        runner = run(
            tmp_path / str(interval),
            copy.deepcopy(MODELS['videomae']),
            hook=dict(interval=interval),
            compile=dict(backend='eager'),
        )
        states.append(runner.model.state_dict())
    for key, value in states[0].items():  # steps that are seen are not compiled
        torch.testing.assert_close(states[1][key], value)
    if hasattr(torch.compiler, 'set_stance'):
        assert len(runner.message_hub.get_scalar('train/effective_rank').data[0]) == 3


def test_run__warns_once_of_a_collapsed_network(tmp_path):
    run(tmp_path, change=collapse, optim=dict(optimizer=dict(type='SGD', lr=0.0)), hook=LOW)
    assert warnings(tmp_path) == ['effective_rank', 'prediction_spread']


LOW = dict(min_rank=1.2)  # the small encoder has six channels


def test_run__does_not_warn_of_a_healthy_network_nor_during_warm_up(tmp_path):
    run(tmp_path / 'healthy', change=enliven, hook=LOW)
    assert warnings(tmp_path) == []
    still = dict(optimizer=dict(type='SGD', lr=0.0))
    run(tmp_path / 'early', change=collapse, optim=still, hook=dict(LOW, warm_up=1.0))
    assert warnings(tmp_path) == []


def test_run__warns_of_a_target_that_equals_the_online_network(tmp_path):
    ema = dict(EMA, momentum=0, end_momentum=0)
    runner = run(tmp_path, change=enliven, ema=ema, hook=dict(min_rank=None, min_distance=1e-6))
    assert runner.message_hub.get_scalar('train/target_distance').current() == 0
    assert warnings(tmp_path) == ['target_distance']


def test_run__survives_nan_and_reports_it_at_once(tmp_path):
    def spoil(model: nn.Module) -> None:
        model.backbone.norm1.weight.fill_(math.nan)

    # Ours would not write such weights, and end the run.
    stock = dict(checkpoint=dict(type='mmengine.CheckpointHook', interval=1))
    run(tmp_path, change=spoil, hook=dict(warm_up=1.0), default_hooks=stock)
    text = next(tmp_path.rglob('*.log')).read_text()
    assert len(re.findall('WARNING - effective_rank is nan at iteration 2', text)) == 1
    assert len(re.findall('is nan at iteration', text)) == 2  # and prediction_spread


def test_run__that_is_resumed_does_not_warn_again(tmp_path):
    still = dict(optimizer=dict(type='SGD', lr=0.0))
    run(tmp_path, change=collapse, optim=still, hook=LOW)
    known = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)['collapse_warned']
    assert known == ['effective_rank', 'prediction_spread']
    (tmp_path / 'epoch_3.pth').unlink()
    run(tmp_path, resume=True, load_from=str(tmp_path / 'epoch_2.pth'), optim=still, hook=LOW)
    assert warnings(tmp_path) == known
    # Weights alone are a new run.
    new = tmp_path / 'new'
    run(new, load_from=str(tmp_path / 'epoch_2.pth'), optim=still, hook=LOW)
    assert warnings(new) == known


def test_run__warns_of_clips_that_show_nothing(tmp_path):
    def blind(model: nn.Module) -> None:
        enliven(model)
        model.data_preprocessor.std.fill_(1e9)

    run(tmp_path, change=blind, hook=dict(min_rank=None))
    assert warnings(tmp_path) == ['prediction_spread']
    assert 'expected at most 3' in next(tmp_path.rglob('*.log')).read_text()


@pytest.fixture
def said(caplog) -> pytest.LogCaptureFixture:
    """What the current logger says."""
    logger = MMLogger.get_instance('test_collapse', log_level='INFO')
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def test_hook__warns_again_after_recovery(said):
    model, mask = videomac(), random_mask(3, (3, 4), 5)
    inputs = torch.randn(3, 1, 3, 2, 24, 32)
    hook = CollapseHook(interval=1, warm_up=0, min_rank=None, min_distance=None)
    weight = model.neck.pred.weight.detach() / 10
    texts = []
    for factor in (1, 0, 0, 1, 1e6, 1):
        with torch.no_grad():
            model.neck.pred.weight.copy_(factor * weight)
        said.clear()
        watch(hook, model, inputs, mask)
        texts.append(' '.join(record.getMessage() for record in said.records))
    assert [bool(text) for text in texts] == [False, True, False, True, True, True]
    pattern = r'prediction_spread is [\d.e-]+ at iteration 1, expected at least 0.005: all hidden'
    assert re.match(pattern, texts[1])
    assert 'prediction_spread has come back to' in texts[3]
    assert 'expected at most 3: predictions differ' in texts[4]
    assert texts[5] == texts[3]


def test_hook__looks_inside_a_distributed_wrapper(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / 'store'), 1)
    torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    try:
        model = MMDistributedDataParallel(videomac(), broadcast_buffers=False)
        found = watch(
            CollapseHook(interval=1),
            model,
            torch.randn(3, 1, 3, 2, 24, 32),
            random_mask(3, (3, 4), 5),
        )
    finally:
        torch.distributed.destroy_process_group()
    assert list(found) == [f'train/{name}' for name in NAMES]


def train_one_of_two(rank: int, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    environ = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2, MASTER_ADDR='127.0.0.1')
    os.environ.update(
        {key: str(value) for key, value in (environ | dict(MASTER_PORT=port)).items()}
    )
    found = []
    for interval in (0, 1):
        runner = run(
            Path(folder) / str(interval),
            hook=dict(interval=interval),
            launcher='pytorch',
            env_cfg=dict(dist_cfg=dict(backend='gloo', timeout=300)),
        )
        found.append((runner.model.module.state_dict(), [*runner.message_hub.log_scalars]))
    torch.save(found, f'{folder}/{rank}.pth')
    torch.distributed.destroy_process_group()


def test_two_processes__train_as_without_the_hook_and_the_first_measures(tmp_path):
    if not torch.distributed.is_gloo_available():
        pytest.skip('torch without gloo')
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(train_one_of_two, (str(tmp_path), port), nprocs=2)
    for rank in range(2):
        (without, _), (with_hook, names) = torch.load(tmp_path / f'{rank}.pth')
        for key, value in without.items():
            assert torch.equal(value, with_hook[key]), key
        assert all((f'train/{name}' in names) == (rank == 0) for name in NAMES)


@pytest.mark.parametrize(
    'bad, said',
    [
        (dict(interval=0), 'got 0, 512 and 0.1'),
        (dict(warm_up=100), 'got 100, 512 and 100'),
        (dict(num_samples=1), 'got 100, 1 and 0.1'),
        (dict(min_spread=-0.5), 'min_spread must be None or not negative, got -0.5'),
        (dict(max_spread=-1), 'max_spread must be None or not negative, got -1'),
        (dict(min_rank=math.nan), 'min_rank must be None or not negative, got nan'),
    ],
)
def test_hook__bad_numbers_are_named(bad, said):
    with pytest.raises(ValueError, match=said):
        CollapseHook(**bad)


def test_hook__other_models_are_named():
    with pytest.raises(TypeError, match='got Linear'):
        CollapseHook().before_train(SimpleNamespace(model=nn.Linear(1, 1)))
