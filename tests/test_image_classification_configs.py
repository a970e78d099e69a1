"""Every config for image classification: as published, and able to take steps when shrunken."""

from pathlib import Path

import cv2
import mmengine
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from tests.pretraining import shrink_backbone, write_pretraining_checkpoint
from videomac_mm.datasets import SyntheticVideo
from videomac_mm.models import SparseConvNeXt
from videomac_mm.registry import MODELS

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / 'configs' / 'fine_tuning' / 'image_classification'
CONFIGS = sorted(FOLDER.glob('*.py'))
IMAGENET = [path for path in CONFIGS if '_in1k-' in path.stem]
SIZE = 32

# The scripts of the official code of ConvNeXt V2: base learning rate, epochs, warm-up, decay by
# layers, weight decay, drop path, Mixup, CutMix, label smoothing.
CONVNEXT_V2 = {
    'atto': (2e-4, 600, 0, ('single', 0.9), 0.3, 0.1, None, None, 0.2),
    'tiny': (8e-4, 300, 40, ('single', 0.9), 0.05, 0.2, 0.8, 1.0, 0.1),
    'base': (6.25e-4, 100, 20, ('group', 0.6), 0.05, 0.1, 0.8, 1.0, 0.1),
}


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


@pytest.fixture(scope='module')
def data_root(tmp_path_factory) -> Path:
    """Four pictures of four classes, in the layouts of ImageNet and of a folder per class."""
    root = tmp_path_factory.mktemp('data')
    for split in ('train', 'val'):
        lines = []
        for label in range(4):
            picture = SyntheticVideo(label, num_frames=1, size=(48, 40)).frame(0)
            for folder in (root / split, root / split / f'class{label}'):
                folder.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / f'{label}.png'), np.ascontiguousarray(picture[..., ::-1]))
            lines.append(f'{label}.png {label}\n')
        (root / 'meta').mkdir(exist_ok=True)
        (root / 'meta' / f'{split}.txt').write_text(''.join(lines))
    return root


def steps_of(loader: Config) -> list[Config]:
    return list(loader.dataset.pipeline)


def shrink(cfg: Config, data_root: Path, work_dir: Path) -> Config:
    channels = shrink_backbone(cfg.model.backbone)
    cfg.model.head.in_channels = channels
    if isinstance(cfg.model.neck, list):
        cfg.model.neck[1].input_features = channels
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(data_root)
        for step in steps_of(loader):
            for key in ('scale', 'crop_size'):
                if key in step:
                    step[key] = SIZE
    if 'max_iters' in cfg.train_cfg:
        cfg.train_cfg.update(max_iters=2, val_interval=2)
    else:
        cfg.train_cfg.max_epochs = 1
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = work_dir.name
    cfg.log_level = 'ERROR'
    return cfg


def test_takes_steps_when_shrunken(path, data_root, tmp_path):
    cfg = shrink(Config.fromfile(path), data_root, tmp_path)
    cfg.load_from = str(tmp_path / 'pretrained.pth')
    pretrained = write_pretraining_checkpoint(cfg.model.backbone, cfg.load_from)
    runner = Runner.from_cfg(cfg)
    runner.train()
    logged = runner.message_hub.log_scalars
    assert np.isfinite(logged['train/loss'].current())
    assert 0 <= logged['val/accuracy/top1'].current() <= 100
    backbone = runner.model.backbone
    moved = set()
    for name, value in backbone.state_dict().items():
        loaded = pretrained[f'backbone.{name}']
        # Two steps of warm-up do not lead far from what was loaded.
        assert torch.allclose(value.cpu(), loaded, atol=1e-2), name
        if not torch.equal(value.cpu(), loaded):
            moved.add(name)
    if path.stem.startswith('linear_'):
        assert not moved
        assert not any(param.requires_grad for param in backbone.parameters())
    else:
        assert any(name.startswith(('downsample_layers.0', 'conv1')) for name in moved)
        assert any(name.startswith(('stages.2', 'layer3')) for name in moved)
    assert list(tmp_path.glob('*_*.pth'))

    metrics = runner.test()
    assert 0 <= metrics['accuracy/top1'] <= 100


def test_pretraining_checkpoint__loads_but_for_the_head(path, tmp_path):
    cfg = Config.fromfile(path)
    cfg.model.head.in_channels = shrink_backbone(cfg.model.backbone)
    if isinstance(cfg.model.neck, list):
        cfg.model.neck[1].input_features = cfg.model.head.in_channels
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model)
    state = write_pretraining_checkpoint(cfg.model.backbone, tmp_path / 'pretrained.pth')
    loaded = model.load_state_dict(state, strict=False)
    batch_norm = {key for key in loaded.missing_keys if key.startswith('neck.1.bn.')}
    assert set(loaded.missing_keys) - batch_norm == {'head.fc.weight', 'head.fc.bias'}
    parts = {key.split('.')[0] for key in loaded.unexpected_keys}
    assert parts == {'neck', 'target'}


def test_name_says_what_the_config_does(path):
    cfg = Config.fromfile(path)
    kind, net, *recipe, data = path.stem.split('_')
    backbone = cfg.model.backbone
    if net.startswith('resnet'):
        assert (backbone.type, backbone.variant) == ('videomac_mm.SparseResNet', 'videomac')
        assert net == f'resnet{backbone.depth}'
        channels = 2048
    else:
        assert backbone.type == 'videomac_mm.SparseConvNeXt'
        assert (net, backbone.use_grn) == (f'convnextv2-{backbone.arch}', True)
        assert (backbone.stage_norm, backbone.layer_scale_init_value) == ('inline', 0)
        channels = SparseConvNeXt.arch_settings[backbone.arch]['channels'][-1]
    assert cfg.model.head.in_channels == channels
    assert (kind == 'linear') == (backbone.get('frozen_stages') == 4)
    if kind == 'linear':
        assert cfg.model.neck[1].input_features == channels
        assert backbone.get('drop_path_rate', 0) == 0
    (crop,) = (step for step in steps_of(cfg.train_dataloader) if step.type == 'RandomResizedCrop')
    assert data.split('-')[1] == str(crop.scale)
    assert cfg.default_scope == 'mmpretrain'
    assert 'videomac_mm' in cfg.custom_imports.imports
    if not recipe:
        return
    gpus, batch = recipe[0].split('-')[0].split('xb')
    assert cfg.train_dataloader.batch_size == int(batch)
    assert cfg.auto_scale_lr.base_batch_size == int(gpus) * int(batch)
    assert ('amp' in recipe[0]) == (cfg.optim_wrapper.type == 'AmpOptimWrapper')
    epochs = int(recipe[0].split('-')[-1].removesuffix('e'))
    assert epochs == cfg.train_cfg.max_epochs == cfg.param_scheduler[-1].end
    assert cfg.param_scheduler[-1].get('begin', 0) == cfg.param_scheduler[0].end % epochs


@pytest.mark.parametrize('arch', CONVNEXT_V2)
def test_recipe__is_that_of_convnext_v2(arch):
    (path,) = FOLDER.glob(f'finetune_convnextv2-{arch}_*_in1k-224.py')
    cfg = Config.fromfile(path)
    base_lr, epochs, warm_up, decay, weight_decay, drop_path, mixup, cutmix, smoothing = (
        CONVNEXT_V2[arch]
    )
    optimizer = cfg.optim_wrapper.optimizer
    assert optimizer.lr == pytest.approx(base_lr * 1024 / 256)
    assert (optimizer.betas, optimizer.weight_decay) == ((0.9, 0.999), weight_decay)
    assert cfg.auto_scale_lr.base_batch_size == 1024
    assert cfg.train_cfg.max_epochs == epochs
    schedulers = list(cfg.param_scheduler)
    assert len(schedulers) == (2 if warm_up else 1)
    assert schedulers[-1].get('begin', 0) == warm_up
    assert schedulers[-1].eta_min_ratio * optimizer.lr == pytest.approx(1e-6)
    paramwise = cfg.optim_wrapper.paramwise_cfg
    assert (paramwise.layer_decay_type, paramwise.layer_decay_rate) == decay
    model = cfg.model
    assert model.backbone.drop_path_rate == drop_path
    assert model.head.loss.label_smooth_val == smoothing
    augments = {x.type: x.alpha for x in (model.get('train_cfg') or {}).get('augments', [])}
    assert (augments.get('Mixup'), augments.get('CutMix')) == (mixup, cutmix)
    rand_augment, erasing = (
        next(step for step in steps_of(cfg.train_dataloader) if step.type == name)
        for name in ('RandAugment', 'RandomErasing')
    )
    strength = (rand_augment.num_policies, rand_augment.magnitude_level, rand_augment.magnitude_std)
    assert strength == (2, 9, 0.5)
    assert (erasing.erase_prob, erasing.mode) == (0.25, 'rand')
    (ema,) = cfg.custom_hooks
    assert (ema.type, ema.momentum) == ('EMAHook', 1e-4)


def test_layer_decay__is_that_of_convnext_v2():
    """Shares of the learning rate by the formulas of the official code, and no decay of vectors."""
    for arch, num_layers in (('atto', 12), ('base', 12)):
        (path,) = FOLDER.glob(f'finetune_convnextv2-{arch}_*_in1k-224.py')
        cfg = Config.fromfile(path)
        kind, rate = CONVNEXT_V2[arch][3]
        depths = SparseConvNeXt.arch_settings[arch]['depths']
        cfg.model.backbone.arch = dict(depths=depths, channels=[2, 4, 6, 8])
        cfg.model.head.in_channels = 8
        cfg.optim_wrapper.type = 'OptimWrapper'
        for key in ('dtype', 'loss_scale'):
            cfg.optim_wrapper.pop(key)
        init_default_scope('mmpretrain')
        model = MODELS.build(cfg.model)
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
        for group in optimizer.param_groups:
            name = group['param_name']
            part = name.split('.')
            if name.startswith('backbone.stages.') and kind == 'single':
                layer = sum(depths[: int(part[2])]) + int(part[3]) + 1
            elif name.startswith('backbone.stages.'):
                stage, block = int(part[2]), int(part[3])
                layer = (1, 2, 3 + block // 3, 12)[stage]
            elif name.startswith('backbone.downsample_layers.') and kind == 'single':
                layer = sum(depths[: int(part[2])]) + 1
            elif name.startswith('backbone.downsample_layers.'):
                layer = (0, 2, 3, 12)[int(part[2])]
            elif name.startswith(('backbone.norm3.', 'head.')):
                layer = num_layers + 1
            else:
                continue  # norms between stages, which the official network has not
            share = group['lr'] / cfg.optim_wrapper.optimizer.lr
            assert share == pytest.approx(rate ** (num_layers + 1 - layer)), name
            (param,) = group['params']
            decay = 0 if param.ndim == 1 else CONVNEXT_V2[arch][4]
            assert group['weight_decay'] == decay, name


def test_metafile_names_every_config():
    models = mmengine.load(FOLDER / 'metafile.yml')['Models']
    assert sorted(model['Name'] for model in models) == [path.stem for path in CONFIGS]
    for model in models:
        cfg = Config.fromfile(ROOT / model['Config'])
        assert model['Config'] == f'configs/fine_tuning/image_classification/{model["Name"]}.py'
        if '_in1k-' in model['Name']:
            assert model['Metadata']['Epochs'] == cfg.train_cfg.max_epochs
            assert model['Metadata']['Batch Size'] == cfg.auto_scale_lr.base_batch_size
