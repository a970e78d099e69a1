"""Every config for segmentation: complete, as named, and able to take steps when shrunken."""

from pathlib import Path

import cv2
import mmengine
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from tests.pretraining import shrink_backbone, write_pretraining_checkpoint
from videomac_mm.datasets import SyntheticVideo
from videomac_mm.models import SparseConvNeXt, SparseResNet
from videomac_mm.registry import MODELS

mmseg = pytest.importorskip('mmseg', reason='needs mmsegmentation, ftfy and regex')

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / 'configs' / 'fine_tuning' / 'segmentation'
CONFIGS = sorted(FOLDER.glob('*.py'))
SIZE = 64
DIMS = dict(atto=(40, 80, 160, 320), tiny=(96, 192, 384, 768))
DIMS |= dict(small=DIMS['tiny'], base=(128, 256, 512, 1024), resnet50=(256, 512, 1024, 2048))


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


@pytest.fixture(scope='module')
def data_root(tmp_path_factory) -> Path:
    """Four pictures and their label maps, in the layouts of ADE20K and of generated data."""
    root = tmp_path_factory.mktemp('data')
    for splits, suffix in ((('training', 'validation'), 'jpg'), (('train', 'val'), 'png')):
        for split in splits:
            for seed in range(4):
                video = SyntheticVideo(seed, num_frames=1, size=(SIZE, 80))
                for kind, picture, end in (
                    ('images', video.frame(0)[..., ::-1], suffix),
                    ('annotations', video.mask(0), 'png'),
                ):
                    file = root / kind / split / f'{seed:05d}.{end}'
                    file.parent.mkdir(parents=True, exist_ok=True)
                    assert cv2.imwrite(str(file), np.ascontiguousarray(picture))
    return root


def parts(cfg: Config | list) -> list[Config]:
    """All dicts of a config, nested ones too."""
    nested = list(cfg.values()) if isinstance(cfg, dict) else cfg
    found = [cfg] if isinstance(cfg, dict) else []
    return found + [x for part in nested if isinstance(part, dict | list) for x in parts(part)]


def without_scope(cfg: dict | list) -> dict | list:
    """A config as its own toolbox reads it: mmengine marks what one inherits from another."""
    if isinstance(cfg, dict):
        return {key: without_scope(value) for key, value in cfg.items() if key != '_scope_'}
    return [without_scope(x) for x in cfg] if isinstance(cfg, list | tuple) else cfg


def shrink_model(model: Config) -> None:
    shrink_backbone(model.backbone)
    maps = MODELS.build(model.backbone)(torch.zeros(1, 3, SIZE, SIZE))
    dims = [x.shape[1] for x in maps]
    model.decode_head.update(in_channels=dims, channels=8)
    if 'auxiliary_head' in model:
        model.auxiliary_head.update(in_channels=dims[2], channels=8)
    for part in parts(model):
        if part.get('type') == 'SyncBN':  # needs a GPU
            part.type = 'BN'
        if 'crop_size' in part:  # slides over the picture
            part.update(crop_size=(SIZE, SIZE), stride=(SIZE // 2, SIZE // 2))
    model.data_preprocessor.size = (SIZE, SIZE)


def shrink(cfg: Config, data_root: Path, work_dir: Path) -> Config:
    shrink_model(cfg.model)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(data_root)
        for step in loader.dataset.pipeline:
            if 'crop_size' in step:
                step.crop_size = (SIZE, SIZE)
            if 'scale' in step:
                step.scale = (4 * SIZE, SIZE)
    cfg.train_dataloader.batch_size = 2
    cfg.train_cfg.update(max_iters=2, val_interval=2)
    cfg.param_scheduler = []
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = work_dir.name
    cfg.log_level = 'ERROR'
    return cfg


class Remember(Hook):
    """Keeps the backbone's weights of the moment before the first step."""

    def before_train(self, runner: Runner) -> None:
        state = runner.model.backbone.state_dict()
        self.state = {name: value.cpu().clone() for name, value in state.items()}


def test_takes_steps_from_videomac_when_shrunken(path, data_root, tmp_path):
    cfg = shrink(Config.fromfile(path), data_root, tmp_path)
    state = write_pretraining_checkpoint(cfg.model.backbone, tmp_path / 'pretrained.pth')
    pretrained = {k[9:]: value for k, value in state.items() if k.startswith('backbone.')}
    assert {key.split('.')[0] for key in state} >= {'backbone', 'neck', 'target'}
    cfg.load_from = str(tmp_path / 'pretrained.pth')
    runner = Runner.from_cfg(cfg)
    backbone = runner.model.backbone
    assert isinstance(backbone, SparseConvNeXt | SparseResNet)

    batch = next(iter(runner.build_dataloader(cfg.train_dataloader)))
    assert [x.shape for x in batch['inputs']] == [(3, SIZE, SIZE)] * 2
    labels = torch.cat([x.gt_sem_seg.data.flatten() for x in batch['data_samples']]).unique()
    assert len(labels) > 1 and set(labels.tolist()) <= {
        *range(cfg.model.decode_head.num_classes),
        255,
    }

    remember = Remember()
    runner.register_hook(remember)
    runner.train()
    assert remember.state.keys() == pretrained.keys()
    for name, value in remember.state.items():
        assert torch.equal(value, pretrained[name]), name
    logged = runner.message_hub.log_scalars
    assert np.isfinite(logged['train/loss'].current())
    assert 0 <= logged['val/mIoU'].current() <= 100
    moved = {
        name
        for name, value in backbone.named_parameters()
        if not torch.equal(value.cpu(), pretrained[name])
    }
    assert moved == {name for name, _ in backbone.named_parameters()}
    assert (tmp_path / 'iter_2.pth').is_file()

    metrics = runner.test()
    assert 0 <= metrics['mIoU'] <= metrics['aAcc'] <= 100


def test_parts_fit_each_other(path):
    cfg = Config.fromfile(path)
    backbone = cfg.model.backbone
    arch = path.stem.split('_')[1].removeprefix('convnextv2-')
    if backbone.type == 'videomac_mm.SparseConvNeXt':
        assert (backbone.arch, backbone.use_grn, backbone.stage_norm) == (arch, True, 'inline')
        assert backbone.layer_scale_init_value == 0
    else:
        assert (f'resnet{backbone.depth}', backbone.variant) == (arch, 'videomac')
    assert tuple(cfg.model.decode_head.in_channels) == DIMS[arch]
    assert tuple(backbone.out_indices) == (0, 1, 2, 3)
    if 'auxiliary_head' in cfg.model:
        assert cfg.model.auxiliary_head.in_channels == DIMS[arch][2]
        assert cfg.model.auxiliary_head.num_classes == cfg.model.decode_head.num_classes
    num_classes = {'ade20k': 150, 'synthetic': 5}[path.stem.split('_')[-1].split('-')[0]]
    assert cfg.model.decode_head.num_classes == num_classes
    # What it is pre-trained from is said on the command line.
    assert cfg.load_from is None
    assert backbone.get('init_cfg', {}).get('type') != 'Pretrained'


def test_name_says_what_the_config_does(path):
    cfg = Config.fromfile(path)
    head, *_, data = path.stem.split('_')
    assert cfg.model.decode_head.type == {'upernet': 'UPerHead', 'fcn': 'FCNHead'}[head]
    size = int(data.split('-')[1].split('x')[0])
    assert tuple(cfg.model.data_preprocessor.size) == (size, size)
    assert any(x.get('crop_size') == (size, size) for x in cfg.train_dataloader.dataset.pipeline)
    assert ('ade20k' in data) == (cfg.train_dataloader.dataset.type == 'ADE20KDataset')
    if 'ade20k' in data:
        gpus, batch = path.stem.split('_')[2].split('-')[0].split('xb')
        assert cfg.train_dataloader.batch_size == int(batch)
        assert cfg.auto_scale_lr.base_batch_size == int(gpus) * int(batch)
        assert '-amp-160k' in path.stem and cfg.optim_wrapper.type == 'AmpOptimWrapper'
        assert cfg.train_cfg.max_iters == 160_000
    warm_up, decay = cfg.param_scheduler
    assert warm_up.end == decay.begin
    assert decay.end == cfg.train_cfg.max_iters


@pytest.mark.parametrize('net', ['convnextv2-tiny', 'resnet50'])
def test_learning_rates__fall_by_layer_and_heads_learn_most(net):
    cfg = Config.fromfile(FOLDER / f'upernet_{net}_8xb2-amp-160k_ade20k-512x512.py')
    shrink_model(cfg.model)
    init_default_scope('mmseg')
    optimizer = build_optim_wrapper(MODELS.build(cfg.model), cfg.optim_wrapper).optimizer
    groups = {group['param_name']: group for group in optimizer.param_groups}
    rates = {name: group['lr'] for name, group in groups.items()}
    for name, rate in rates.items():
        if not name.startswith('backbone.'):
            assert rate == pytest.approx(1e-4), name
    first, last = ('stages.0', 'stages.3') if 'convnext' in net else ('layer1', 'layer4')
    lowest = max(rate for name, rate in rates.items() if f'backbone.{first}.' in name)
    highest = min(rate for name, rate in rates.items() if f'backbone.{last}.' in name)
    assert lowest < highest <= 1e-4
    if 'convnext' in net:
        assert rates['backbone.norm0.weight'] == rates['backbone.stages.0.0.norm.weight']
    for group in groups.values():
        (param,) = group['params']
        assert group['weight_decay'] == (0 if param.ndim == 1 else 0.05)


def test_recipe__is_that_of_mmsegmentation_but_for_the_backbone():
    ours = Config.fromfile(FOLDER / 'upernet_convnextv2-base_8xb2-amp-160k_ade20k-512x512.py')
    configs = Path(mmseg.__file__).parent / '.mim' / 'configs' / 'convnext'
    theirs = Config.fromfile(configs / 'convnext-base_upernet_8xb2-amp-160k_ade20k-512x512.py')
    ours, theirs = without_scope(ours.to_dict()), without_scope(theirs.to_dict())
    for key in ('decode_head', 'auxiliary_head', 'data_preprocessor', 'test_cfg'):
        assert ours['model'][key] == theirs['model'][key]
    assert ours['optim_wrapper']['optimizer'] == theirs['optim_wrapper']['optimizer']
    assert ours['model']['backbone']['drop_path_rate'] == 0.4
    assert theirs['model']['backbone']['drop_path_rate'] == 0.4
    for key in ('param_scheduler', 'train_cfg', 'train_dataloader', 'val_dataloader'):
        assert ours[key] == theirs[key]


def test_metafile_names_every_config():
    models = mmengine.load(FOLDER / 'metafile.yml')['Models']
    assert sorted(x['Name'] for x in models) == [path.stem for path in CONFIGS]
    for model in models:
        assert model['Config'] == f'configs/fine_tuning/segmentation/{model["Name"]}.py'
        cfg = Config.fromfile(ROOT / model['Config'])
        metadata = model['Metadata']
        assert metadata['Iterations'] == cfg.train_cfg.max_iters
        total = cfg.get('auto_scale_lr', {}).get('base_batch_size', cfg.train_dataloader.batch_size)
        assert metadata['Batch Size'] == total
