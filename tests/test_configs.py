"""Every config of pre-training: complete, consistent, and able to take a step when shrunken."""

import functools
import math
from pathlib import Path

import cv2
import mmengine
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from tests.pretraining import convnet_channels, shrink_backbone
from videomac_mm.datasets import SyntheticVideo
from videomac_mm.registry import MODELS, TASK_UTILS

ROOT = Path(__file__).parents[1]
FOLDERS = [ROOT / 'configs' / name for name in ('videomac', 'videomae', 'motionmae', 'cmae_v')]
CONFIGS = [path for folder in FOLDERS for path in sorted(folder.glob('*.py'))]
CLIP_CONFIGS = [path for path in CONFIGS if path.parent.name != 'videomac']
SIZE, FRAMES, DIMS = 64, 4, 8

ALGORITHMS = {  # name in stems: type, logged losses
    'videomac': ('VideoMAC', {'loss_online', 'loss_target', 'loss_consistency'}),
    'videomae': ('VideoMAE', {'loss_pixel'}),
    'motionmae': ('MotionMAE', {'loss_pixel', 'loss_motion'}),
    'motionmae-sha': ('MotionMAE', {'loss_pixel', 'loss_motion'}),
    'cmae-v': ('CMAEV', {'loss_pixel', 'loss_contrast'}),
}
DATA = {
    'ytvos-224': 'youtube-vos-2018/train',
    'k400-224': 'kinetics400',
    'ssv2-224': 'sthv2',
    'ucf101-224': 'ucf101',
    'hmdb51-224': 'hmdb51',
}
BASE_LR = {'ucf101-224': 3e-4, 'hmdb51-224': 3e-4}  # for a batch of 256
NETS = {  # encoder: embed_dims, depth, num_heads; the same of the decoder
    'vit-mini-p16': (192, 4, 3, 192, 2, 3),
    'vit-small-p16': (384, 12, 6, 192, 4, 3),
    'vit-base-p16': (768, 12, 12, 384, 4, 6),
    'vit-large-p16': (1024, 24, 16, 512, 12, 8),
    'vit-huge-p16': (1280, 32, 16, 640, 12, 8),
    'convvit-base-p16': ((256, 384, 768), (2, 2, 11), 12, 384, 4, 6),
}
# The scripts of VideoMAE's code: total batch, base learning rate, least one, hidden share,
# frames from one of a clip to the next, activation checkpointing.
PUBLISHED = {
    'vit-small-p16_32xb32-amp-coslr-1600e_k400': (1024, 1.5e-4, 1e-5, 0.9, 4, False),
    'vit-base-p16_64xb32-amp-coslr-800e_k400': (2048, 1.5e-4, 1e-5, 0.9, 4, False),
    'vit-base-p16_64xb32-amp-coslr-1600e_k400': (2048, 1.5e-4, 1e-5, 0.9, 4, False),
    'vit-large-p16_64xb8-amp-coslr-1600e_k400': (512, 1.5e-4, 1e-5, 0.9, 4, False),
    'vit-huge-p16_64xb16-amp-coslr-1600e_k400': (1024, 1.5e-4, 1e-5, 0.9, 4, True),
    'vit-small-p16_32xb32-amp-coslr-2400e_ssv2': (1024, 1.5e-4, 1e-5, 0.9, 2, False),
    'vit-base-p16_64xb32-amp-coslr-800e_ssv2': (2048, 1.5e-4, 1e-5, 0.9, 2, False),
    'vit-base-p16_64xb32-amp-coslr-2400e_ssv2': (2048, 1.5e-4, 1e-5, 0.9, 2, False),
    'vit-base-p16_8xb24-amp-coslr-3200e_ucf101': (192, 3e-4, 1e-5, 0.75, 4, False),
}


def by_stem(path: Path) -> str:
    return path.stem


@pytest.fixture(params=CONFIGS, ids=by_stem)
def path(request) -> Path:
    return request.param


@pytest.fixture(params=CLIP_CONFIGS, ids=by_stem)
def clip_path(request) -> Path:
    return request.param


@pytest.fixture(scope='module')
def data_root(tmp_path_factory) -> Path:
    """Two short videos in the layouts of all data sets."""
    root = tmp_path_factory.mktemp('data')
    for seed in range(2):
        video = SyntheticVideo(seed, num_frames=16, size=(80, 96))
        pictures = [np.ascontiguousarray(video.frame(t)[..., ::-1]) for t in range(16)]
        frames = root / 'JPEGImages' / f'video{seed}'
        frames.mkdir(parents=True)
        for t, picture in enumerate(pictures):
            cv2.imwrite(str(frames / f'{5 * t:05d}.jpg'), picture)
        for folder in ('videos', 'videos_train'):
            (root / folder).mkdir(exist_ok=True)
            writer = cv2.VideoWriter(
                str(root / folder / f'{seed}.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 12, (96, 80)
            )
            for picture in pictures:
                writer.write(picture)
            writer.release()
    return root


def last_channels(backbone: dict) -> int:
    if 'embed_dims' in backbone:
        dims = backbone['embed_dims']
        return dims if isinstance(dims, int) else dims[-1]
    return convnet_channels(backbone)


def shrink_videomac(model: Config) -> None:
    model.neck.update(in_channels=shrink_backbone(model.backbone), embed_dims=4)


def shrink_vit(model: Config) -> None:
    backbone = model.backbone
    backbone.update(img_size=SIZE, num_frames=FRAMES, num_heads=1)
    if backbone.type == 'videomac_mm.ConvVisionTransformer':
        backbone.update(embed_dims=(4, 6, DIMS), depths=(1, 1, 1))
    else:
        backbone.update(embed_dims=DIMS, depth=1)
    num_patches = FRAMES // 2 * (SIZE // 16) ** 2
    model.neck.update(
        num_patches=num_patches, in_channels=DIMS, embed_dims=DIMS, depth=1, num_heads=1
    )
    if 'projector' in model:
        for mlp in (model.projector, model.contrast_head.predictor):
            mlp.update(in_channels=DIMS, hid_channels=DIMS, out_channels=DIMS)


def steps_of(cfg: Config) -> dict[str, Config]:
    """Steps of the pipeline by type, those inside of others too."""
    steps = cfg.train_dataloader.dataset.pipeline
    return {x.type: x for step in steps for x in (step, *step.get('transforms', []))}


def shrink(cfg: Config, data_root: Path, work_dir: Path) -> Config:
    (shrink_videomac if cfg.model.type == 'videomac_mm.VideoMAC' else shrink_vit)(cfg.model)
    loader = cfg.train_dataloader
    loader.update(batch_size=2, num_workers=0, persistent_workers=False)
    if loader.dataset.type == 'videomac_mm.SyntheticVideoDataset':
        loader.dataset.update(num_videos=2, size=(SIZE, SIZE))
    else:
        loader.dataset.update(data_root=str(data_root), indices=2)
        if 'ann_file' in loader.dataset:
            (data_root / loader.dataset.ann_file).write_text('0.mp4 0\n1.mp4 1\n')
    for step in steps_of(cfg).values():
        for key, value in (('clip_len', FRAMES), ('input_size', SIZE), ('scale', (SIZE, SIZE))):
            if key in step:
                step[key] = value
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = work_dir.name
    cfg.log_level = 'ERROR'
    if cfg.train_cfg.type == 'videomac_mm.IterBasedTrainLoop':
        cfg.train_cfg.max_iters = 1
    else:
        cfg.train_cfg.max_epochs = 1
    return cfg


def test_takes_a_step_when_shrunken(path, data_root, tmp_path):
    runner = Runner.from_cfg(shrink(Config.fromfile(path), data_root, tmp_path))
    model = runner.model
    model.init_weights()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.init_weights = lambda: None  # the runner would draw other weights
    runner.train()
    logged = runner.message_hub.log_scalars
    _, losses = ALGORITHMS[path.stem.split('_')[0]]
    assert {key for key in logged if key.startswith('train/loss_')} == {
        f'train/{key}' for key in losses
    }
    for key in losses:
        assert np.isfinite(logged[f'train/{key}'].current()), key
    moved = {
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    # Warm-up starts near zero, where the smallest steps are lost to rounding.
    assert any(name.startswith('neck.') for name in moved)
    assert any(name.startswith('backbone.') for name in moved)
    assert list(tmp_path.glob('*.pth'))
    assert list(tmp_path.rglob('vis_image/reconstruction_1.png'))


@functools.cache
def metafile(folder: Path) -> dict[str, dict]:
    """Its entries by name, each of the config of that name."""
    models = mmengine.load(folder / 'metafile.yml')['Models']
    for model in models:
        assert model['Config'] == f'configs/{folder.name}/{model["Name"]}.py'
    return {model['Name']: model for model in models}


def is_short_run(path: Path) -> bool:
    """Made for CPUs, with values of its own."""
    return path.stem.endswith('_demo') or '_videos-' in path.stem


def picture_size(cfg: Config) -> int:
    """Side of the pictures that the network gets, in pixels."""
    steps = steps_of(cfg)
    if 'mmaction.Resize' not in steps:  # whole pictures
        height, width = cfg.train_dataloader.dataset.size
    else:
        height, width = steps['mmaction.Resize'].scale
    assert height == width
    if 'mmaction.MultiScaleCrop' in steps:
        assert steps['mmaction.MultiScaleCrop'].input_size == height
    return height


def test_parts_fit_each_other(path):
    cfg = Config.fromfile(path)
    model = cfg.model
    assert model.neck.in_channels == last_channels(model.backbone)
    if path.parent.name == 'videomac':
        assert model.neck.patch_size == model.head.patch_size == model.mask_generator.patch_size
    assert cfg.default_scope == 'videomac_mm'
    has_target = model.type in ('videomac_mm.VideoMAC', 'videomac_mm.CMAEV')
    hooks = {hook.type for hook in cfg.custom_hooks}
    assert ('videomac_mm.TargetEMAHook' in hooks) == has_target
    assert {'videomac_mm.ReconstructionHook', 'videomac_mm.CollapseHook'} <= hooks


def test_clips__fit_the_model(clip_path):
    cfg = Config.fromfile(clip_path)
    model, size = cfg.model, picture_size(cfg)
    steps = steps_of(cfg)
    sampler = steps['videomac_mm.SampleClips']
    assert is_short_run(clip_path) or 'mmaction.MultiScaleCrop' in steps
    # Positions are made for these clips: nothing is interpolated.
    assert model.backbone.get('img_size', 224) == size
    assert model.backbone.get('num_frames', 16) == sampler.clip_len
    mask_generator = TASK_UTILS.build(model.mask_generator)
    grid = mask_generator.grid((sampler.clip_len, size, size))
    assert math.prod(grid) == model.neck.num_patches
    clips = torch.zeros(1, 1, 1, 1, 1).expand(1, 3, sampler.clip_len, size, size)
    mask = mask_generator(clips).mask
    hidden = int(model.mask_generator.mask_ratio * grid[1] * grid[2])
    assert (mask.sum((2, 3)) == hidden).all() and (mask == mask[:, :1]).all()
    assert MODELS.build(model.head).pred_dims == tuple(model.neck.pred_dims)

    is_pair = model.type == 'videomac_mm.CMAEV'
    assert ('max_shift' in sampler) == is_pair
    if is_pair:
        assert model.projector.in_channels == model.neck.in_channels
        predictor = model.contrast_head.predictor
        assert model.projector.out_channels == predictor.in_channels == predictor.out_channels
    if is_pair and not is_short_run(clip_path):
        assert sampler.max_shift == 2 * sampler.frame_interval
        (ema,) = (hook for hook in cfg.custom_hooks if hook.type == 'videomac_mm.TargetEMAHook')
        assert (ema.momentum, ema.end_momentum) == (0.996, 0.996)


def test_name_says_what_the_config_does(path):
    cfg = Config.fromfile(path)
    algorithm, net, *fields = path.stem.split('_')
    model = cfg.model
    assert model.type == f'videomac_mm.{ALGORITHMS[algorithm][0]}'
    if algorithm == 'videomac':
        kind, *rest = net.split('-', 1)
        if kind.startswith('resnet'):
            assert model.backbone.depth == int(kind[len('resnet') :])
        else:
            assert model.backbone.arch == rest[0]
            assert model.backbone.use_grn == (kind == 'convnextv2')
    else:
        depth = 'depths' if net.startswith('conv') else 'depth'
        keys = ['embed_dims', depth, 'num_heads']
        assert NETS[net][:3] == tuple(model.backbone[key] for key in keys)
        assert NETS[net][3:] == tuple(model.neck[key] for key in ('embed_dims', 'depth', keys[2]))
        assert (depth == 'depths') == (model.backbone.type == 'videomac_mm.ConvVisionTransformer')
    if 'motionmae' in algorithm:
        assert model.neck.shared == (algorithm == 'motionmae-sha')
    if fields == ['demo']:
        assert cfg.train_dataloader.dataset.type == 'videomac_mm.SyntheticVideoDataset'
        return
    *recipe, data = fields
    assert picture_size(cfg) == int(data.split('-')[1])
    if is_short_run(path):
        assert recipe == [] and 'ann_file' not in cfg.train_dataloader.dataset
        return
    recipe = recipe[0].split('-')
    gpus, batch = recipe[0].split('xb')
    total_batch = int(gpus) * int(batch)
    assert cfg.train_dataloader.batch_size == int(batch)
    assert cfg.auto_scale_lr.base_batch_size == total_batch
    base_lr = BASE_LR.get(data, 1.5e-4) if path in CLIP_CONFIGS else 1e-3
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(base_lr * total_batch / 256)
    assert ('amp' in recipe) == (cfg.optim_wrapper.type == 'AmpOptimWrapper')
    epochs = cfg.train_cfg.max_epochs
    assert recipe[-1] == f'{epochs}e'
    warm_up, cosine = cfg.param_scheduler
    assert warm_up.end == cosine.begin == (10 if algorithm == 'videomac' else 40)
    assert (cosine.end, cosine.T_max) == (epochs, epochs - warm_up.end)
    metadata = metafile(path.parent)[path.stem]['Metadata']
    assert (metadata['Epochs'], metadata['Batch Size']) == (epochs, total_batch)
    assert cfg.train_dataloader.dataset.data_root == f'data/{DATA[data]}'
    assert (data == 'ytvos-224') == (cfg.train_dataloader.dataset.source == 'frames')


@pytest.mark.parametrize('run', PUBLISHED)
def test_videomae_recipe__is_the_published_one(run):
    cfg = Config.fromfile(ROOT / 'configs' / 'videomae' / f'videomae_{run}-224.py')
    batch, base_lr, min_lr, mask_ratio, frame_interval, with_cp = PUBLISHED[run]
    lr = cfg.optim_wrapper.optimizer.lr
    assert cfg.auto_scale_lr.base_batch_size == batch
    assert lr == pytest.approx(base_lr * batch / 256)
    assert lr * cfg.param_scheduler[1].eta_min_ratio == pytest.approx(min_lr * batch / 256)
    assert cfg.model.mask_generator.mask_ratio == mask_ratio
    assert cfg.model.mask_generator.type == 'videomac_mm.TubeMask'
    sampler = steps_of(cfg)['videomac_mm.SampleClips']
    assert (sampler.clip_len, sampler.frame_interval) == (16, frame_interval)
    for part in (cfg.model.backbone, cfg.model.neck):
        assert part.get('with_cp', False) == with_cp
    assert 'clip_grad' not in cfg.optim_wrapper


@pytest.mark.parametrize('folder', FOLDERS, ids=by_stem)
def test_metafile_names_every_config(folder):
    paths = [path for path in CONFIGS if path.parent == folder]
    assert sorted(metafile(folder)) == [path.stem for path in paths]


def test_paper_initialisation__is_that_of_the_official_code():
    cfg = Config.fromfile(ROOT / 'configs' / '_base_' / 'models' / 'videomac_convnext.py').model
    cfg.backbone.arch = 'atto'
    cfg.neck.in_channels = 320
    cfg.data_preprocessor = dict(type='mmaction.ActionDataPreprocessor')
    model = MODELS.build(cfg)
    model.init_weights()
    # A normal of std 1 cut at 2 has std 0.8796; one of 0.02 is hardly cut.
    wide = ['downsample_layers.0.0', 'stages.1.0.depthwise_conv', 'stages.2.1.pointwise_conv1']
    for name in wide:
        weight = model.backbone.get_submodule(name).weight
        assert weight.std().item() == pytest.approx(0.88, rel=0.05), name
        assert weight.abs().max() <= 2
    for stage in (1, 2, 3):
        weight = model.backbone.downsample_layers[stage][1].weight
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    for name in ('proj', 'pred', 'decoder.0.depthwise_conv'):
        assert model.neck.get_submodule(name).weight.std().item() == pytest.approx(0.88, rel=0.05)
    assert model.neck.mask_token.std().item() == pytest.approx(0.02, rel=0.2)
    # torch's default of a linear layer: uniform within 1/sqrt(inputs)
    weight = model.neck.decoder[0].pointwise_conv1.weight
    assert weight.abs().max() <= 512**-0.5
