"""tools/benchmark.py end to end, tiny: what it reports, never how fast."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch

from videomac_mm.models import masking
from videomac_mm.sparse import PatchConv2d

MODEL = """
_base_ = [
    '{configs}/_base_/models/{base}.py',
    '{configs}/_base_/datasets/{data}.py',
    '{configs}/_base_/schedules/videomac_100e.py',
    '{configs}/_base_/default_runtime.py',
]
model = {model}
"""
CONVNEXT = dict(
    backbone=dict(arch=dict(_delete_=True, depths=[1, 1, 1, 1], channels=[8, 8, 16, 16])),
    neck=dict(in_channels=16, embed_dims=16),
)
RESNET = dict(
    backbone=dict(depth=18, stem_channels=8, base_channels=8),
    neck=dict(in_channels=64, embed_dims=16),
)
VIT = dict(
    backbone=dict(img_size=64, num_frames=4, embed_dims=16, depth=2, num_heads=2),
    neck=dict(num_patches=32, in_channels=16, embed_dims=8, depth=1, num_heads=2),
)
CONV_VIT = dict(
    backbone=dict(
        _delete_=True,
        type='videomac_mm.ConvVisionTransformer',
        img_size=64,
        num_frames=4,
        embed_dims=(8, 8, 16),
        depths=(1, 1, 2),
        num_heads=2,
        multi_scale_fusion=True,
        use_mean_pooling=False,
    ),
    neck=VIT['neck'],
)
ENCODERS = [
    ('videomae_vit_base', VIT),
    ('videomae_vit_base', CONV_VIT),
    ('videomac_convnext', CONVNEXT),
    ('videomac_resnet', RESNET),
]
VARIANTS = ('sparse', 'masked_dense', 'mmpretrain_sparse')


@pytest.fixture
def write_config(tmp_path, root):
    def write(base: str = 'videomac_convnext', model: dict = CONVNEXT) -> Path:
        path = tmp_path / f'{base}_tiny.py'
        data = 'video_pairs_224' if base.startswith('videomac') else 'video_clips_224'
        configs = root / 'configs'
        path.write_text(MODEL.format(configs=configs, base=base, data=data, model=model))
        return path

    return write


@pytest.fixture(scope='module')
def benchmark() -> ModuleType:
    path = Path(__file__).parent.parent / 'tools' / 'benchmark.py'
    spec = importlib.util.spec_from_file_location('benchmark', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(root: Path, folder: Path, *args) -> dict:
    """The JSON of a run."""
    command = [sys.executable, root / 'tools/benchmark.py', *args, '--json', 'out/report.json']
    command = [str(word) for word in command]
    environ = dict(os.environ, CUDA_VISIBLE_DEVICES='')
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / 'out/report.json').read_text())


def test_step__reports_time_memory_and_agreement(tmp_path, root, write_config):
    sizes = ['--batch-size', 2, '--size', 64, '--repeats', 2, '--threads', 1]
    report = run(root, tmp_path, 'step', '--config', write_config(), *sizes)
    names = [f'{variant}_{unit}' for variant in VARIANTS for unit in ('ms', 'peak_mb')]
    ratios = ['speedup', 'speedup_over_mmpretrain']
    for name in [*names, *ratios, 'optimizer_ms', 'ema_ms']:
        assert report[name] > 0, name
    assert report['speedup'] == pytest.approx(report['masked_dense_ms'] / report['sparse_ms'])
    wanted = dict(batch_size=2, size=64, threads=1, visible='1 of 4', torch=torch.__version__)
    assert {key: report[key] for key in wanted} == wanted
    assert report['device'] and report['date'] and report['config']
    assert set(report['samples_ms']) == {*VARIANTS, 'optimizer', 'ema'}
    assert all(len(values) == 2 for values in report['samples_ms'].values())
    for name, loss in report['losses']['sparse'].items():
        assert report['losses']['masked_dense'][name] == pytest.approx(loss, rel=1e-4)
    assert "mmpretrain's SparseConvNeXt with the same weights" in report['mmpretrain_note']


def test_step__all_forms_of_a_network_agree(benchmark, write_config, monkeypatch):
    monkeypatch.setattr(torch, 'compile', lambda function, **_: function)  # takes minutes
    args = dict(size=64, batch_size=2, amp=None, device='cpu', threads=None, cfg_options=None)
    args = argparse.Namespace(config=str(write_config()), **args)
    variants = ['sparse', 'masked_dense', 'sparse_torch', 'sparse_compiled']
    steps = benchmark.steps_of(args, [*variants, 'masked_dense_compiled'])

    for _ in range(2):
        losses = benchmark.check_agreement(steps)

    assert len({tuple(round(x, 4) for x in loss.values()) for loss in losses.values()}) == 1
    # What was compiled must still be the dense network.
    for layer in steps['masked_dense_compiled'].model.backbone.modules():
        if isinstance(layer, PatchConv2d) and layer.window().crosses_tiles:
            assert 'forward' in vars(layer)


def test_encoder__reports_time_memory_and_agreement(tmp_path, root, write_config):
    config = write_config('videomae_vit_base', VIT)
    sizes = ['--batch-size', 2, '--size', 64, '--num-frames', 4, '--repeats', 2, '--threads', 1]
    ratios = ['--cfg-options', 'model.mask_generator.mask_ratio=0.75']
    report = run(root, tmp_path, 'encoder', '--config', config, *sizes, *ratios)
    variants = ('masked', 'all_visible', 'full')
    for name in [f'{v}_{unit}' for v in variants for unit in ('ms', 'peak_mb')]:
        assert report[name] > 0, name
    assert report['speedup'] == pytest.approx(report['full_ms'] / report['masked_ms'])
    assert report['time_share'] == pytest.approx(report['masked_ms'] / report['all_visible_ms'])
    assert report['memory_share'] == pytest.approx(
        report['masked_peak_mb'] / report['full_peak_mb']
    )
    assert report['largest_difference'] < 1e-4
    wanted = dict(batch_size=2, size=64, num_frames=4, visible='8 of 32', visible_share=0.25)
    wanted['encoder'] = 'VideoVisionTransformer'
    assert {key: report[key] for key in wanted} == wanted
    assert {name: len(values) for name, values in report['samples_ms'].items()} == dict(
        masked=2, all_visible=2, full=2
    )


def encoder_args(config: str | Path, **kwargs) -> argparse.Namespace:
    args = dict(size=64, num_frames=None, batch_size=2, amp=None, device='cpu')
    return argparse.Namespace(config=config, cfg_options=None, threads=None, **(args | kwargs))


def encoder_steps(benchmark: ModuleType, config: Path) -> dict:
    num_frames = 4 if config.name.startswith('videomae') else None
    return benchmark.encoder_steps_of(encoder_args(config, num_frames=num_frames))


@pytest.mark.parametrize('base, model', ENCODERS)
def test_encoder__all_ways_are_one_where_nothing_is_hidden(benchmark, write_config, base, model):
    steps = encoder_steps(benchmark, write_config(base, model))
    assert benchmark.check_encoder(steps['masked']) < 1e-4
    steps['masked'].mask = torch.zeros_like(steps['masked'].mask)
    grads = []
    for step in steps.values():
        with step.prepared():
            step.run()
        params = step.model.backbone.parameters()
        grads.append(torch.cat([param.grad.flatten() for param in params]))
    assert grads[0].norm() > 1e-3
    for other in grads[1:]:
        assert (grads[0] - other).norm() < 1e-4 * grads[0].norm()


@pytest.mark.parametrize('base, model', ENCODERS)
def test_encoder__full_reads_what_masked_does_not(benchmark, write_config, base, model):
    steps = encoder_steps(benchmark, write_config(base, model))
    hidden, shape = steps['masked'].mask, steps['masked'].encoded.shape[2:]
    for dim, (cells, pixels) in enumerate(zip(hidden.shape[1:], shape), start=1):
        hidden = hidden.repeat_interleave(pixels // cells, dim)
    for name, step in steps.items():
        mask = step.mask if name == 'masked' else None
        before = step.features(mask)
        step.encoded.add_(hidden[:, None] * torch.randn_like(step.encoded))
        same = all(map(torch.equal, before, step.features(mask)))
        assert same == (name == 'masked')


def test_encoder__disagreement_is_not_reported(benchmark, write_config):
    step = encoder_steps(benchmark, write_config('videomae_vit_base', VIT))['masked']
    step.model.backbone.register_forward_hook(
        lambda _, args, out: out * 1.01 if args[1] is None else out
    )
    with pytest.raises(RuntimeError, match='masked and full features differ by 0.00'):
        benchmark.check_encoder(step)


@pytest.mark.parametrize(
    'data, generator, wanted',
    [
        ('k400_clips_224', 'TubeMask', (16, 224)),
        ('synthetic_clips', 'TubeMask', (16, 96)),
        ('k400_pairs_224', 'RandomPatchMask', (1, 224)),
        ('synthetic_pairs', 'RandomPatchMask', (1, 160)),
    ],
)
def test_encoder__inputs_are_those_of_training(benchmark, root, data, generator, wanted):
    path = root / f'configs/_base_/datasets/{data}.py'
    cfg = benchmark.Config.fromfile(path)
    model = torch.nn.Module()
    model.mask_generator = getattr(masking, generator)()
    args = encoder_args(path, size=None)
    assert benchmark.input_size(args, cfg, model) == wanted
    args.size = 32
    assert benchmark.input_size(args, cfg, model) == (wanted[0], 32)
    args.num_frames = 4
    if generator == 'TubeMask':
        assert benchmark.input_size(args, cfg, model) == (4, 32)
    else:
        with pytest.raises(ValueError, match='--num-frames is for encoders of clips'):
            benchmark.input_size(args, cfg, model)
    args = encoder_args(path, size=None)
    with pytest.raises(ValueError, match='is needed: the pipeline of .* does not tell it'):
        benchmark.input_size(args, benchmark.Config(), model)


def test_step__names_encoder_where_it_does_not_apply(benchmark, write_config):
    config = write_config('videomae_vit_base', VIT)
    with pytest.raises(ValueError, match='VideoMAE has none: run `encoder`'):
        benchmark.steps_of(encoder_args(config))


@pytest.mark.parametrize('steps_of', ['steps_of', 'encoder_steps_of'])
def test_steps__need_a_config_of_pretraining(benchmark, steps_of):
    args = encoder_args('synthetic-dino_videomac-convnextv2-atto')
    with pytest.raises(ValueError, match='of pre-training, got .* LabelPropagator'):
        getattr(benchmark, steps_of)(args)


def test_data__reports_both_pipelines(tmp_path, root, write_config):
    videos = tmp_path / 'videos'
    videos.mkdir()
    for name in ('a.mp4', 'b.mp4', 'c.mp4'):
        writer = cv2.VideoWriter(str(videos / name), cv2.VideoWriter_fourcc(*'mp4v'), 25, (64, 48))
        for _ in range(12):
            writer.write(np.random.randint(256, size=(48, 64, 3), dtype=np.uint8))
        writer.release()
    (videos / 'empty.mp4').touch()
    few = ['--workers', 0, 1, '--seconds', 0.05, '--windows', 2, '--batch-size', 2]
    lenient = ['--cfg-options', 'train_dataloader.dataset.max_bad_share=0.5']
    args = ['--config', write_config(), '--data-root', videos, *few, *lenient]
    report = run(root, tmp_path, 'data', *args)
    assert report['num_videos'] == 3
    assert report['unusable'] == [str(videos / 'empty.mp4')]
    assert report['clips_per_s'] > 0 and report['mmaction_clips_per_s'] > 0
    assert report['speedup'] == pytest.approx(
        report['clips_per_s'] / report['mmaction_clips_per_s']
    )
    for workers in ('0', '1'):
        assert set(report['by_workers'][workers]) == {'ours', 'mmaction'}
        assert len(report['samples_clips_per_s'][workers]['ours']) == 2


def test_propagation__reports_both_forms(tmp_path, root):
    tiny = ['--grid', 7, 9, '--channels', 8, '--radius', 2, '--repeats', 2, '--threads', 1]
    config = root / 'configs/label_propagation/synthetic-dino_videomac-convnextv2-atto.py'
    report = run(root, tmp_path, 'propagation', '--config', config, *tiny)
    assert report['network_ms'] > 0
    for form in ('dino', 'crw'):
        found = report[form]
        assert found['speedup'] == pytest.approx(found['dense_ms'] / found['windowed_ms'])
        assert found['memory_share'] == pytest.approx(
            found['windowed_peak_mb'] / found['dense_peak_mb']
        )
        assert found['largest_difference'] < 1e-4
        assert all(len(values) == 2 for values in found['samples_ms'].values())


def test_propagation__disagreement_is_not_reported(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, 'propagate_densely', lambda *_, **__: torch.full((1,), 9.0))
    args = argparse.Namespace(device='cpu', radius=2, channels=8, grid=[7, 9], repeats=1)
    with pytest.raises(RuntimeError, match='labels differ by .* in form dino'):
        benchmark.benchmark_form(args, 'dino')


def steps_of(benchmark: ModuleType, config: Path) -> dict:
    cfg = benchmark.Config.fromfile(config)
    device = torch.device('cpu')
    models = {name: benchmark.build_variant(cfg, name, device) for name in VARIANTS}
    return {name: benchmark.Step(model, name, 2, 64) for name, model in models.items()}


@pytest.mark.parametrize(
    'base, model', [('videomac_convnext', CONVNEXT), ('videomac_resnet', RESNET)]
)
def test_variants__same_losses_and_gradients(benchmark, write_config, base, model):
    steps = steps_of(benchmark, write_config(base, model))
    losses = benchmark.check_agreement(steps)
    assert losses['sparse'] == pytest.approx(losses['masked_dense'], rel=1e-4)
    grads = [
        torch.cat([param.grad.flatten() for param in steps[name].model.backbone.parameters()])
        for name in ('sparse', 'masked_dense')
    ]
    assert (grads[0] - grads[1]).norm() < 1e-4 * grads[0].norm()
    assert torch.equal(steps['sparse'].mask, steps['mmpretrain_sparse'].mask)


def test_mmpretrain__never_reads_hidden_pixels(benchmark, write_config):
    step = steps_of(benchmark, write_config())['mmpretrain_sparse']
    hidden = step.mask.repeat_interleave(32, 1).repeat_interleave(32, 2)
    frames = step.inputs[:, 0].transpose(1, 2).flatten(0, 1)
    hidden = hidden.repeat_interleave(2, 0)[:, None]
    mask = step.mask.repeat_interleave(2, 0)
    features = [step.model.backbone(images, mask)[-1] for images in (frames, frames + hidden * 100)]
    assert torch.equal(*features)


def test_disagreement__is_not_reported(benchmark, write_config):
    steps = steps_of(benchmark, write_config())
    steps['masked_dense'].inputs = steps['masked_dense'].inputs * 2 + 1
    with torch.no_grad():
        steps['masked_dense'].model.backbone.norm3.weight.add_(1)
    with pytest.raises(RuntimeError, match='loss_.* is .* for sparse and .* for masked_dense'):
        benchmark.check_agreement(steps)


def test_config__is_found_by_its_name_or_missed_by_it(benchmark):
    args = benchmark.argparse.Namespace(cfg_options=None, threads=None)
    args.config = 'videomac_convnextv2-atto_demo'
    assert benchmark.load_config(args).model.backbone.arch == 'atto'
    args.config = 'videomac_gigantic'
    with pytest.raises(FileNotFoundError, match='no config videomac_gigantic.*found 0'):
        benchmark.load_config(args)


def test_mmaction_pipeline__stands_for_ours(benchmark, root):
    base = root / 'configs/_base_/datasets'
    pipeline = benchmark.Config.fromfile(base / 'k400_pairs_224.py').train_pipeline
    plain = benchmark.mmaction_pipeline(pipeline)
    assert [step['type'].removeprefix('mmaction.') for step in plain] == [
        *('DecordInit', 'SampleFrames', 'DecordDecode'),
        *('RandomResizedCrop', 'Resize', 'Flip', 'FormatShape', 'PackActionInputs'),
    ]
    assert plain[1]['frame_interval'] == 5  # 1/6 s at 30 frames per second
    assert not any('lazy' in step for step in plain)
    frames = benchmark.Config.fromfile(base / 'ytvos_pairs_224.py').train_pipeline
    assert benchmark.mmaction_pipeline(frames) is None


@pytest.mark.parametrize('data, num_clips', [('ssv2_clips_224', 1), ('ssv2_shifted_clips_224', 2)])
def test_mmaction_pipeline__stands_for_clips(benchmark, root, data, num_clips):
    cfg = benchmark.Config.fromfile(root / f'configs/_base_/datasets/{data}.py')
    plain = benchmark.mmaction_pipeline(cfg.train_dataloader.dataset.pipeline)
    assert [step['type'].removeprefix('mmaction.') for step in plain] == [
        *('DecordInit', 'SampleFrames', 'DecordDecode'),
        *('MultiScaleCrop', 'Resize', 'FormatShape', 'PackActionInputs'),
    ]
    assert [plain[1][key] for key in ('clip_len', 'frame_interval', 'num_clips')] == [
        *(16, 2, num_clips)
    ]


DATASET = 'train_dataloader.dataset'


@pytest.mark.parametrize(
    'base, model, small',
    [
        ('videomac_convnext', CONVNEXT, 'pipeline.2.transforms.1.scale=(64,64)'),
        ('videomae_vit_base', VIT, 'pipeline.0.clip_len=4'),
    ],
)
def test_end_to_end__parts_make_the_iteration(tmp_path, root, write_config, base, model, small):
    config = write_config(base, model)
    text = config.read_text()
    for kind in ('pairs', 'clips'):
        text = text.replace(f'video_{kind}_224', f'synthetic_{kind}')
    config.write_text(text)
    few = ['--batch-size', 2, '--workers', 0, 1, '--num-videos', 3, '--iterations', 2]
    args = [*few, '--repeats', 2, '--threads', 1, '--plot', 'out/bars.png']
    options = ['--cfg-options', f'{DATASET}.size=64,64', f'{DATASET}.{small}']
    report = run(root, tmp_path, 'end-to-end', '--config', config, *args, *options)
    for workers in ('0', '1'):
        found, samples = report['by_workers'][workers], report['samples_ms'][workers]
        assert list(samples) == ['waiting', 'preprocessing', 'step', 'optimizer', 'ema']
        assert all(len(values) == 2 and min(values) >= 0 for values in samples.values())
        total = sum(map(sum, samples.values())) / 2
        assert found['iteration_ms'] == pytest.approx(total)  # of two, the median is the mean
        assert found['clips_per_s'] == pytest.approx(2 * 1e3 / total)
        assert sum(found['shares'].values()) == pytest.approx(1)
        assert found['shares']['step'] == pytest.approx(sum(samples['step']) / total / 2)
    assert cv2.imread(str(tmp_path / 'out/bars.png')).std() > 0


def test_scale__measures_processes_and_estimates_more(tmp_path, root, write_config):
    sizes = ['--batch-size', 2, '--size', 64, '--repeats', 2, '--gpus', 8, 64, '--step-ms', 100]
    args = [*sizes, '--bandwidth', 1, 0.001, '--plot', 'out/bars.png']
    report = run(root, tmp_path, 'scale', '--config', write_config(), *args)
    assert list(report['samples_ms']) == [
        *('alone', 'unsynced', 'synced', 'all_reduce', 'optimizer', 'sharded')
    ]
    assert all(len(values) == 2 for values in report['samples_ms'].values())
    assert report['shape'] == [2, 1, 3, 2, 64, 64] and report['threads'] == 1
    assert report['efficiency'] == pytest.approx(report['alone_ms'] / report['synced_ms'])
    assert report['clips_per_s'] == pytest.approx(4e3 / report['synced_ms'])
    # Every weight has a gradient in float32, which is sent once.
    assert report['gradient_bytes'] == 4 * report['num_parameters']
    # AdamW's two moments, and a counter for each weight; one shard for each process.
    whole, shards = report['optimizer_state_mb'], report['sharded_state_mb']
    assert whole * 2**20 == pytest.approx(8 * report['num_parameters'], rel=0.01)
    assert len(shards) == 2 and min(shards) > 0 and sum(shards) == pytest.approx(whole)
    fast, slow = report['estimates']
    assert fast['exchange_ms'] == pytest.approx(2 * 7 / 8 * report['gradient_bytes'] / 1e6)
    assert fast['efficiency_hidden'] == 1 and fast['clips_per_s_hidden'] == 8 * 2 * 10
    assert slow['exchange_ms'] == pytest.approx(2 * 63 / 64 * report['gradient_bytes'] / 1e3)
    assert slow['efficiency_hidden'] == pytest.approx(100 / slow['exchange_ms'])
    assert slow['efficiency_exposed'] == pytest.approx(100 / (100 + slow['exchange_ms']))
    assert cv2.imread(str(tmp_path / 'out/bars.png')).std() > 0


def test_scale__bandwidths_must_match_the_gpus(benchmark):
    args = dict(processes=2, device='cpu', bandwidth=[1.0, 2.0, 3.0], gpus=[8, 64])
    with pytest.raises(ValueError, match='one number or 2, as --gpus, got .1.0, 2.0, 3.0.'):
        benchmark.benchmark_scale(argparse.Namespace(**args))


def test_plot__finds_every_sample(benchmark):
    report = dict(
        config='c',
        samples_ms=dict(a=[1, 2]),
        samples_clips_per_s={'0': dict(ours=[3], mmaction=[4])},
        dino=dict(samples_ms=dict(dense=[5])),
        crw=dict(samples_ms=dict(dense=[6])),
        losses=dict(sparse=dict(loss=7)),
    )
    assert dict(benchmark.named_samples(report)) == {
        ('ms', 'a'): [1, 2],
        ('clips_per_s', '0 ours'): [3],
        ('clips_per_s', '0 mmaction'): [4],
        ('ms', 'dino dense'): [5],
        ('ms', 'crw dense'): [6],
    }
