import copy
import math
import os
import socket
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import mmpretrain.models  # noqa: F401  its classifiers are built below
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModule
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from mmpretrain.registry import MODELS as MMPRETRAIN
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from tests.test_models import test_videomae
from videomac_mm.engine import NonFiniteHook, TargetEMAHook
from videomac_mm.models.masking import RandomPatchMask
from videomac_mm.registry import MODELS

ARCH = dict(depths=[1, 1], channels=[4, 6])


def config(tmp_path, **kwargs) -> Config:
    """VideoMAC on tiny generated videos: four videos, two batches per epoch."""
    preprocessor = dict(
        type='mmaction.ActionDataPreprocessor',
        mean=[120.0] * 3,
        std=[60.0] * 3,
        format_shape='NCTHW',
    )
    pipeline = [
        dict(type='SampleFramePair'),
        dict(type='RenderFrames'),
        dict(type='mmaction.FormatShape', input_format='NCTHW'),
        dict(type='mmaction.PackActionInputs'),
    ]
    cfg = dict(
        default_scope='videomac_mm',
        work_dir=str(tmp_path),
        model=dict(
            type='VideoMAC',
            backbone=dict(type='SparseConvNeXt', arch=ARCH, stage_norm='inline'),
            neck=dict(type='MaskTokenDecoder', in_channels=6, embed_dims=4, patch_size=8),
            head=dict(type='PixelHead', patch_size=8),
            mask_generator=dict(type='RandomPatchMask', patch_size=8),
            data_preprocessor=preprocessor,
        ),
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=True),
            dataset=dict(
                type='SyntheticVideoDataset',
                num_videos=4,
                num_frames=4,
                size=(32, 24),
                pipeline=pipeline,
            ),
        ),
        optim_wrapper=dict(
            type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1), **kwargs.pop('optim', {})
        ),
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=3),
        custom_hooks=[
            dict(type='TargetEMAHook', momentum=0.5),
            dict(type='ReconstructionHook', interval=4, num_samples=2),
        ],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
        visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]),
        experiment_name=tmp_path.name,
        randomness=dict(seed=0),
        log_level='ERROR',
    )
    return Config({**cfg, **kwargs})


class Recorder:
    """Online and target weights around every update, taken at the hook's own call."""

    def __init__(self, monkeypatch) -> None:
        self.steps = []
        after = TargetEMAHook.after_train_iter

        def record(hook, runner, *args, **kwargs):
            before = [p.clone() for p in runner.model.target.buffers()]
            after(hook, runner, *args, **kwargs)
            online = [*runner.model.backbone.parameters(), *runner.model.neck.parameters()]
            now = [p.clone() for p in runner.model.target.buffers()]
            self.steps.append((before, [p.detach().clone() for p in online], now))

        monkeypatch.setattr(TargetEMAHook, 'after_train_iter', record)

    def check(self, momenta: list) -> None:
        assert len(self.steps) == len(momenta)
        for (before, online, now), m in zip(self.steps, momenta):
            for old, new, got in zip(before, online, now):
                wanted = old if m is None else m * old + (1 - m) * new
                torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-7)


def cosine(step: int, num_steps: int) -> float:
    return 1 - 0.5 * (1 + math.cos(math.pi * step / num_steps)) / 2


def test_target_ema__one_cosine_over_all_epochs(tmp_path, monkeypatch):
    recorder = Recorder(monkeypatch)
    Runner.from_cfg(config(tmp_path)).train()
    recorder.check([cosine(step, 6) for step in range(6)])


def test_target_ema__moves_only_when_the_optimiser_has_stepped(tmp_path, monkeypatch):
    recorder = Recorder(monkeypatch)
    Runner.from_cfg(config(tmp_path, optim=dict(accumulative_counts=4))).train()
    # The last two batches end the run, and make a step of their own.
    recorder.check([None, None, None, cosine(0, 2), None, cosine(1, 2)])


def test_target_ema__goes_on_where_the_resumed_run_stopped(tmp_path):
    straight = Runner.from_cfg(config(tmp_path / 'straight'))
    straight.train()
    (tmp_path / 'resumed').mkdir()
    (tmp_path / 'resumed' / 'last_checkpoint').write_text(
        str(tmp_path / 'straight' / 'epoch_2.pth')
    )
    cfg = config(tmp_path / 'resumed', resume=True)
    resumed = Runner.from_cfg(cfg)
    momenta, follow = [], resumed.model.target.follow

    def record(model, momentum):
        momenta.append(momentum)
        follow(model, momentum)

    resumed.model.target.follow = record
    resumed.train()
    # `init_weights` runs before the checkpoint is loaded, and copies (momentum 0).
    assert momenta[-2:] == pytest.approx([cosine(4, 6), cosine(5, 6)])


def test_target_ema__a_run_without_it_is_refused_before_its_first_step(tmp_path):
    runner = Runner.from_cfg(config(tmp_path / 'with'))
    runner.train()
    # The hook of an earlier run does not count.
    cfg = config(tmp_path / 'without', custom_hooks=[])
    cfg.model = runner.model
    runner = Runner(**cfg)
    before = copy.deepcopy(runner.model.state_dict())
    with pytest.raises(RuntimeError, match=r"'videomac_mm\.TargetEMAHook'.* custom_hooks"):
        runner.train()
    for name, value in before.items():
        assert torch.equal(value, runner.model.state_dict()[name]), name


def test_target_ema__weights_in_half_precision_are_refused_at_the_start(tmp_path):
    runner = Runner.from_cfg(config(tmp_path))
    runner.model.bfloat16()
    with pytest.raises(TypeError, match='float32, got torch.bfloat16.*--amp'):
        runner.train()
    assert runner.iter == 0


def test_target_ema__a_wrapper_that_shards_is_refused(tmp_path, monkeypatch):
    runner = Runner.from_cfg(config(tmp_path))
    fsdp = FullyShardedDataParallel.__new__(FullyShardedDataParallel)  # needs no processes
    nn.Module.__init__(fsdp)
    fsdp._fsdp_wrapped_module = runner.model
    runner.model = fsdp
    with pytest.raises(TypeError, match='FSDP shards'):
        TargetEMAHook().before_train(runner)


def test_target__starts_from_loaded_weights_that_have_none(tmp_path):
    cfg = config(tmp_path, load_from=str(tmp_path / 'converted.pth'))
    cfg.optim_wrapper.optimizer.lr = 0.0
    runner = Runner.from_cfg(cfg)
    state = runner.model.state_dict()
    weights = {k: v + 0.1 for k, v in state.items() if not k.startswith('target.')}
    torch.save(dict(state_dict=weights), tmp_path / 'converted.pth')
    runner.train()
    trained = runner.model.state_dict()
    for name, value in trained.items():
        torch.testing.assert_close(value, weights[name.removeprefix('target.')])


def test_target__is_not_in_the_optimiser(tmp_path):
    runner = Runner.from_cfg(config(tmp_path))
    runner.train()
    optimised = {id(p) for g in runner.optim_wrapper.param_groups for p in g['params']}
    assert not optimised & {id(p) for p in runner.model.target.buffers()}


def test_reconstruction__panels_are_written_on_time_and_at_the_end(tmp_path):
    cfg = config(tmp_path)
    runner = Runner.from_cfg(cfg)
    runner.train()
    files = sorted(tmp_path.rglob('vis_image/*.png'))
    assert [path.stem for path in files] == ['reconstruction_4', 'reconstruction_6']
    panels = [cv2.imread(str(path)) for path in files]
    # Three pictures of two frames of two samples.
    assert panels[0].shape == (3 * 32, 4 * 24, 3)
    # Samples and masks stay: what is not predicted agrees.
    assert (panels[0][:64] == panels[1][:64]).all()
    assert (panels[0][64:] != panels[1][64:]).any()
    assert runner.model.training
    assert not list(tmp_path.rglob('*.mp4'))


def test_reconstruction__leaves_the_random_numbers_of_the_run_alone(tmp_path):
    runs = []
    for interval in (1, 100):
        cfg = config(tmp_path / str(interval))
        cfg.custom_hooks[1].interval = interval
        runner = Runner.from_cfg(cfg)
        runner.train()
        runs.append(runner.model.state_dict())
    for name, value in runs[0].items():
        assert torch.equal(value, runs[1][name]), name


def test_reconstruction__of_clips_is_a_film_too(tmp_path):
    cfg = config(tmp_path)
    neck = dict(pred_dims=(384, 192))
    cfg.model = dict(type='MotionMAE', **test_videomae.parts(neck=neck, head=test_videomae.BOTH))
    cfg.train_dataloader.dataset.update(size=(24, 24))
    cfg.train_dataloader.dataset.pipeline[0] = dict(
        type='SampleClips', clip_len=4, frame_interval=1
    )
    cfg.custom_hooks = [dict(type='ReconstructionHook', interval=4, num_samples=2, num_frames=3)]
    Runner.from_cfg(cfg).train()
    panel = cv2.imread(str(next(tmp_path.rglob('vis_image/reconstruction_4.png'))))
    # original, masked, predicted, motion, predicted motion
    assert panel.shape == (5 * 24, 2 * 3 * 24, 3)
    film = cv2.VideoCapture(str(next(tmp_path.rglob('reconstruction/4.mp4'))))
    frames = [film.read() for _ in range(5)]
    assert [good for good, _ in frames] == [True] * 4 + [False]
    assert frames[0][1].shape == (2 * 24, 5 * 24, 3)


def test_reconstruction__of_crops_that_are_cut_on_the_device(tmp_path, root):
    """A batch of them is a dict of lists; a step of it can be saved and replayed, too."""
    cfg = config(tmp_path)
    crop = [
        dict(type='mmaction.RandomResizedCrop', lazy=True),
        dict(type='mmaction.Resize', scale=(24, 24), keep_ratio=False, lazy=True),
        dict(type='mmaction.Flip', lazy=True),
    ]
    pipeline = cfg.train_dataloader.dataset.pipeline
    pipeline[2:] = [dict(type='ForEachClip', transforms=crop), dict(type='PackCrops')]
    cfg.model.data_preprocessor = dict(
        type='CropPreprocessor', mean=[120.0] * 3, std=[60.0] * 3, interpolation='bilinear'
    )
    cfg.default_hooks.non_finite = dict(type='NonFiniteHook', max_in_a_row=1)
    runner = Runner.from_cfg(cfg)
    runner.train()
    panels = sorted(path.stem for path in tmp_path.rglob('vis_image/*.png'))
    assert panels == ['reconstruction_4', 'reconstruction_6']
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, NonFiniteHook))
    path = hook._save(runner, next(iter(runner.train_dataloader)))
    command = [sys.executable, str(root / 'tools' / 'replay_step.py'), str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and 'inputs are finite' in done.stdout, done.stderr


@pytest.mark.parametrize('momentum, end', [(-0.1, 1), (0.9, 0.5), (0.5, 1.1)])
def test_target_ema__bad_momenta_are_named(momentum, end):
    with pytest.raises(ValueError, match=f'momentum={momentum}, end_momentum={end}'):
        TargetEMAHook(momentum, end)


def test_target_ema__needs_a_target(tmp_path):
    class Bare:
        model = torch.nn.Linear(1, 1)

    with pytest.raises(TypeError, match='got Linear'):
        TargetEMAHook().before_train(Bare)


# ------------------------------------------------------------------ layer-wise decay

WITHOUT_VECTORS = dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0)


def groups(model: nn.Module, constructor: str, **paramwise) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter."""
    wrapper = dict(
        optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.1),
        constructor=constructor,
        paramwise_cfg=dict(WITHOUT_VECTORS, layer_decay_rate=0.5, **paramwise),
    )
    param_groups = build_optim_wrapper(model, wrapper).optimizer.param_groups
    return {x['param_name']: (x['lr'], x['weight_decay']) for x in param_groups}


def test_layer_decay__is_that_of_mmpretrain_for_its_classifiers():
    model = MMPRETRAIN.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='ConvNeXt', arch='atto', use_grn=True),
            head=dict(type='LinearClsHead', num_classes=3, in_channels=320),
        )
    )
    ours, upstream = (
        groups(model, constructor)
        for constructor in (
            'videomac_mm.LayerDecayOptimWrapperConstructor',
            'mmpretrain.LearningRateDecayOptimWrapperConstructor',
        )
    )
    assert ours == upstream
    assert len(set(ours.values())) > 8


def test_layer_decay__asks_the_backbone_of_any_model():
    class Segmentor(BaseModule):  # of another toolbox: does not know the depth of its layers
        def __init__(self) -> None:
            super().__init__()
            arch = dict(depths=[1, 2], channels=[4, 8])
            self.backbone = MODELS.build(
                dict(type='SparseConvNeXt', arch=arch, use_grn=True, stage_norm='inline')
            )
            self.decode_head = nn.Conv2d(8, 2, 1)

    model = Segmentor()
    model.backbone.stages[0].requires_grad_(False)
    rates = groups(
        model,
        'videomac_mm.LayerDecayOptimWrapperConstructor',
        layer_decay_type='single',
        custom_keys={'stages.1.1': dict(decay_mult=2.0)},
    )
    expected = {
        'decode_head.weight': (1, 0.1),
        'decode_head.bias': (1, 0),
        'backbone.norm1.weight': (1, 0),
        'backbone.stages.1.1.grn.gamma': (0.5, 0.2),
        'backbone.stages.1.0.pointwise_conv1.weight': (0.25, 0.1),
        'backbone.stages.1.0.grn.gamma': (0.25, 0),
        'backbone.downsample_layers.1.1.weight': (0.25, 0.1),
        'backbone.norm0.weight': (0.125, 0),
        'backbone.downsample_layers.0.0.weight': (0.125, 0.1),
    }
    assert {name: rates[name] for name in expected} == expected
    trainable = {name for name, param in model.named_parameters() if param.requires_grad}
    assert set(rates) == trainable


@pytest.mark.parametrize('backbone', [None, nn.Conv2d(1, 1, 1)])
def test_layer_decay__needs_a_backbone_that_knows_its_layers(backbone):
    model = nn.Module()
    model.backbone = backbone
    with pytest.raises(TypeError, match='whose backbone has get_layer_depth, got Module'):
        groups(model, 'videomac_mm.LayerDecayOptimWrapperConstructor')


# --------------------------------------------------------------------- two processes

ADAMW = dict(type='AdamW', lr=0.01, weight_decay=0.05)
SHARDED = dict(ADAMW, type='ZeroRedundancyOptimizer', optimizer_type='AdamW')
LAYER_DECAY = dict(
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(WITHOUT_VECTORS, layer_decay_rate=0.5),
)
VIEWS = dict(broadcast_buffers=False, gradient_as_bucket_view=True)
RUNS = dict(
    plain=dict(),
    accumulated=dict(batch_size=1, accumulative_counts=2, model_wrapper_cfg=VIEWS),
    broadcasting=dict(model_wrapper_cfg=dict(broadcast_buffers=True)),
    bfloat16=dict(type='AmpOptimWrapper', dtype='bfloat16'),
    adamw=dict(optimizer=ADAMW, paramwise_cfg=WITHOUT_VECTORS),
    sharded=dict(optimizer=SHARDED, paramwise_cfg=WITHOUT_VECTORS),
    resumed=dict(optimizer=SHARDED, paramwise_cfg=WITHOUT_VECTORS, resume='sharded'),
    layers=dict(optimizer=ADAMW, **LAYER_DECAY),
    sharded_layers=dict(optimizer=SHARDED, **LAYER_DECAY),
)
PROFILED = ('plain', 'bfloat16', 'broadcasting')


class MaskOfContent(RandomPatchMask):
    """The same mask for the same picture, in whatever batch and process it is."""

    def __call__(self, images, generator=None):
        seeds = [zlib.crc32(image.numpy().tobytes()) for image in images]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        pairs = zip(images.split(1), generators)
        return torch.cat([super(MaskOfContent, self).__call__(*pair).mask for pair in pairs])


class FirstStep(Hook):
    """The gradients of the optimiser's first step, and what the first iteration sends."""

    def __init__(self, profiled: bool) -> None:
        self.profile = torch.profiler.profile(acc_events=True) if profiled else None
        self.collectives = None

    def before_train(self, runner) -> None:
        self.grads = {}
        model = getattr(runner.model, 'module', runner.model)
        update = runner.optim_wrapper.step

        def step() -> None:
            for name, param in model.named_parameters():
                self.grads.setdefault(name, param.grad.clone())
            update()

        runner.optim_wrapper.step = step

    def before_train_iter(self, runner, *args, **kwargs) -> None:
        if runner.iter == 0 and self.profile:
            self.profile.start()

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        if runner.iter == 0 and self.profile:
            self.profile.stop()
            names = [event.name for event in self.profile.events()]
            self.collectives = [name for name in names if name.startswith('c10d::')]


def train(
    folder: Path, batch_size=2, resume=None, profiled=False, model_wrapper_cfg=None, **optim
) -> dict:
    """Train on four videos for three epochs, in as many processes as there are."""
    cfg = config(folder, launcher='pytorch' if 'RANK' in os.environ else 'none')
    cfg.env_cfg = dict(dist_cfg=dict(backend='nccl', timeout=300))  # or a hang lasts half an hour
    cfg.randomness = dict(seed=0, diff_rank_seed=True)
    cfg.train_dataloader.batch_size = batch_size
    cfg.train_dataloader.sampler.shuffle = False
    cfg.train_dataloader.dataset.num_frames = 2
    cfg.custom_hooks = cfg.custom_hooks[:1]
    cfg.optim_wrapper.update(optim)
    cfg.model_wrapper_cfg = model_wrapper_cfg
    if resume is not None:
        cfg.update(resume=True, load_from=str(folder.parent / resume / 'epoch_2.pth'))
    runner = Runner.from_cfg(cfg)
    model = getattr(runner.model, 'module', runner.model)
    model.mask_generator = MaskOfContent(patch_size=8)
    first = FirstStep(profiled)
    runner.register_hook(first)
    runner.train()
    optimizer = runner.optim_wrapper.optimizer
    states = getattr(optimizer, 'optim', optimizer).state.values()
    return dict(
        weights={key: value.clone() for key, value in model.state_dict().items()},
        grads=first.grads,
        collectives=first.collectives,
        optimizer_numel=sum(value.numel() for state in states for value in state.values()),
    )


def train_one_of_two(rank: int, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    environ = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2, MASTER_ADDR='127.0.0.1')
    os.environ.update(
        {key: str(value) for key, value in (environ | dict(MASTER_PORT=port)).items()}
    )
    runs = {name: dict(run, profiled=name in PROFILED) for name, run in RUNS.items()}
    found = {name: train(Path(folder) / name, **run) for name, run in runs.items()}
    torch.save(found, f'{folder}/{rank}.pth')
    torch.distributed.destroy_process_group()


@pytest.fixture(scope='module')
def two(tmp_path_factory) -> tuple[dict, dict, Path]:
    """What each of two processes found in every run, and the folder of the runs."""
    if not torch.distributed.is_gloo_available():
        pytest.skip('torch without gloo')
    folder = tmp_path_factory.mktemp('two')
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(train_one_of_two, (str(folder), port), nprocs=2)
    return *(torch.load(folder / f'{rank}.pth') for rank in range(2)), folder


def assert_same(got: dict, wanted: dict, tolerance: float) -> None:
    """Relative to the norm of each tensor."""
    assert list(got) == list(wanted)
    for name, value in wanted.items():
        assert (got[name] - value).norm() <= tolerance * value.norm(), name


@pytest.fixture(scope='module')
def one(tmp_path_factory) -> dict:
    return train(tmp_path_factory.mktemp('one'), batch_size=4)


@pytest.mark.parametrize('name', ['plain', 'accumulated'])
def test_two_processes__are_one_with_the_whole_batch(one, two, name):
    got, wanted = two[0][name], one
    assert_same(got['grads'], wanted['grads'], 1e-4)
    # The target's too: it moves once for each step of the optimiser.
    assert_same(got['weights'], wanted['weights'], 1e-5)
    assert wanted['weights']['target.neck.pred.bias'].norm() > 1e-3  # zero at first


@pytest.mark.parametrize('name', RUNS)
def test_two_processes__keep_the_same_weights_and_targets(two, name):
    ours, theirs, _ = two
    for key, value in ours[name]['weights'].items():
        assert torch.equal(value, theirs[name]['weights'][key]), key
        assert value.isfinite().all() and value.dtype == torch.float32, key


def test_two_processes__send_gradients_and_nothing_else(two):
    for name in ('plain', 'bfloat16'):
        assert set(two[0][name]['collectives']) == {'c10d::allreduce_'}
    # The target's weights are buffers, which torch's own default sends before each step.
    assert 'c10d::broadcast_' in two[0]['broadcasting']['collectives']


def test_bfloat16__takes_other_steps_than_float32(two):
    ours, theirs = (two[0][name]['grads']['neck.pred.bias'] for name in ('bfloat16', 'plain'))
    assert 1e-4 * theirs.norm() < (ours - theirs).norm() < 0.05 * theirs.norm()


@pytest.mark.parametrize('sharded, whole', [('sharded', 'adamw'), ('sharded_layers', 'layers')])
def test_sharded_optimiser__takes_the_steps_of_the_whole_one(two, sharded, whole):
    ours, theirs, folder = two
    assert_same(ours[sharded]['weights'], ours[whole]['weights'], 0)
    # Each process holds its share of the state, and the checkpoint all of it.
    shares = [found[sharded]['optimizer_numel'] for found in (ours, theirs)]
    assert sum(shares) == ours[whole]['optimizer_numel']
    assert max(shares) < 0.65 * sum(shares)  # parameters are not cut
    states = [
        torch.load(folder / name / 'epoch_3.pth')['optimizer']['state'] for name in (sharded, whole)
    ]
    assert len(states[0]) == len(ours[whole]['grads'])
    for index, wanted in states[1].items():
        assert_same(states[0][index], wanted, 0)


def test_sharded_optimiser__goes_on_where_it_stopped(two):
    assert_same(two[0]['resumed']['weights'], two[0]['sharded']['weights'], 0)
    assert two[0]['resumed']['optimizer_numel'] == two[0]['sharded']['optimizer_numel']


def test_grouped_constructor__makes_one_group_of_equal_settings():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    paramwise = dict(norm_decay_mult=0.0, bias_decay_mult=0.0)
    optimizer = dict(type='AdamW', lr=0.1, weight_decay=0.5)
    weights, groups = [], []
    for constructor in (
        'DefaultOptimWrapperConstructor',
        'videomac_mm.GroupedOptimWrapperConstructor',
    ):
        copied = copy.deepcopy(model)
        cfg = dict(constructor=constructor, optimizer=optimizer, paramwise_cfg=paramwise)
        wrapper = build_optim_wrapper(copied, cfg)
        for _ in range(3):
            wrapper.update_params(copied(torch.ones(2, 3)).square().sum())
        weights.append(list(copied.parameters()))
        groups.append(wrapper.optimizer.param_groups)

    assert [len(group['params']) for group in groups[0]] == [1] * 6
    assert [(len(g['params']), g['weight_decay']) for g in groups[1]] == [(2, 0.5), (4, 0.0)]
    assert all(torch.equal(*pair) for pair in zip(*weights))
