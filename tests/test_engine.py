import math

import cv2
import mmpretrain.models  # noqa: F401  its classifiers are built below
import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from mmpretrain.registry import MODELS as MMPRETRAIN
from torch import nn

from tests.test_models import test_videomae
from videomac_mm.engine import TargetEMAHook
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
