"""Every config of 2D recognisers, and those of mmaction2 with our backbones."""

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
from mmengine.utils import get_installed_path

from tests.pretraining import shrink_backbone, write_pretraining_checkpoint
from videomac_mm.datasets import SyntheticVideo
from videomac_mm.registry import MODELS

FOLDER = Path(__file__).parents[1] / 'configs' / 'fine_tuning' / 'action_recognition'
CONFIGS = sorted(FOLDER.glob('ts*.py'))
SMALL = 'tsn_convnextv2-atto_synthetic-1x1x4-112'
SIZE = 32
CLASSES = {'k400': 400, 'ssv2': 174, 'ucf101': 101, 'hmdb51': 51, 'synthetic': 4}
CROPS = {'CenterCrop': 1, 'ThreeCrop': 3, 'TenCrop': 10}


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


@pytest.fixture(scope='module')
def data_root(tmp_path_factory) -> Path:
    """Three short videos of two classes, in the layouts of all data sets."""
    root = tmp_path_factory.mktemp('data')
    for folder in ('videos', 'videos/train', 'videos/val', 'videos_train', 'videos_val'):
        (root / folder).mkdir()
        for seed in range(3):
            video = SyntheticVideo(seed, num_frames=12, size=(48, 64))
            writer = cv2.VideoWriter(
                str(root / folder / f'{seed}.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 12, (64, 48)
            )
            for t in range(len(video)):
                writer.write(np.ascontiguousarray(video.frame(t)[..., ::-1]))
            writer.release()
    return root


def plain_backbone(model: Config) -> Config:
    """Without the shift."""
    is_shifted = model.backbone.type == 'videomac_mm.TemporalShifted'
    return model.backbone.backbone if is_shifted else model.backbone


def shrink_model(model: Config) -> None:
    model.cls_head.in_channels = shrink_backbone(plain_backbone(model))


def shrink(cfg: Config, data_root: Path, work_dir: Path) -> Config:
    shrink_model(cfg.model)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(data_root)
        (data_root / loader.dataset.ann_file).write_text('0.mp4 0\n1.mp4 1\n2.mp4 1\n')
        for step in loader.dataset.pipeline:
            for key, side in (('input_size', SIZE), ('crop_size', SIZE)):
                if key in step:
                    step[key] = side
            if 'scale' in step:
                step.scale = tuple(side if side == -1 else SIZE for side in step.scale)
    cfg.train_dataloader.batch_size = 2
    if 'max_iters' in cfg.train_cfg:
        cfg.train_cfg.update(max_iters=2, val_interval=2)
    else:
        cfg.train_cfg.max_epochs = 2
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = work_dir.name
    cfg.log_level = 'ERROR'
    return cfg


def views(pipeline: list) -> int:
    """Frames of a video, times its crops."""
    (sampler,) = (step for step in pipeline if 'num_clips' in step)
    (crops,) = (CROPS[name] for step in pipeline if (name := step.type.split('.')[1]) in CROPS)
    return sampler.num_clips * crops * (2 if sampler.get('twice_sample') else 1)


def test_takes_steps_when_shrunken(path, data_root, tmp_path):
    cfg = shrink(Config.fromfile(path), data_root, tmp_path)
    pretrained = write_pretraining_checkpoint(
        plain_backbone(cfg.model), tmp_path / 'pretrained.pth'
    )
    cfg.load_from = str(tmp_path / 'pretrained.pth')
    runner = Runner.from_cfg(cfg)
    batch = next(iter(runner.build_dataloader(cfg.train_dataloader)))
    segments = 4 if path.stem == SMALL else 8
    assert [frames.shape for frames in batch['inputs']] == [(segments, 3, SIZE, SIZE)] * 2
    frames = next(iter(runner.build_dataloader(cfg.test_dataloader)))['inputs'][0]
    assert frames.shape == (views(cfg.test_dataloader.dataset.pipeline), 3, SIZE, SIZE)

    runner.train()
    logged = runner.message_hub.log_scalars
    assert np.isfinite(logged['train/loss'].current())
    assert 0 <= logged['val/acc/top1'].current() <= 1
    weights = {f'backbone.{k}': x.cpu() for k, x in runner.model.backbone.state_dict().items()}
    assert weights.keys() <= pretrained.keys()
    moved = {name for name, x in weights.items() if not torch.equal(x, pretrained[name])}
    if path.stem.startswith('tsn-frozen'):
        assert not moved
        learns = {name for name, x in runner.model.named_parameters() if x.requires_grad}
        assert learns == {'cls_head.fc_cls.weight', 'cls_head.fc_cls.bias'}
    else:
        assert {name for name, _ in runner.model.backbone.named_parameters()} == {
            name.removeprefix('backbone.') for name in moved
        }
        # A few steps of warm-up do not lead far from what was loaded.
        for name in moved:
            assert torch.allclose(weights[name], pretrained[name], atol=1e-2), name
    # The head begins with a bias of zero.
    assert runner.model.cls_head.fc_cls.bias.any()
    assert list(tmp_path.glob('*_2.pth'))

    metrics = runner.test()
    assert 0 <= metrics['acc/top1'] <= metrics.get('acc/top5', 1) <= 1


def test_pretraining_checkpoint__loads_into_the_recogniser(path, tmp_path):
    cfg = Config.fromfile(path)
    shrink_model(cfg.model)
    init_default_scope('videomac_mm')
    model = MODELS.build(cfg.model)
    state = write_pretraining_checkpoint(plain_backbone(cfg.model), tmp_path / 'pretrained.pth')
    loaded = model.load_state_dict(state, strict=False)
    assert set(loaded.missing_keys) == {'cls_head.fc_cls.weight', 'cls_head.fc_cls.bias'}
    left_out = {key for key in state if not key.startswith('backbone.')}
    assert set(loaded.unexpected_keys) == left_out
    assert {key.split('.')[0] for key in left_out} == {'neck', 'target'}


def test_name_says_what_the_config_does(path):
    cfg = Config.fromfile(path)
    algorithm, net, *recipe, data = path.stem.split('_')
    backbone, head = plain_backbone(cfg.model), cfg.model.cls_head
    assert cfg.model.type == 'mmaction.Recognizer2D' and cfg.default_scope == 'videomac_mm'
    is_shifted = algorithm == 'tsm'
    assert (cfg.model.backbone.type == 'videomac_mm.TemporalShifted') == is_shifted
    assert head.type == ('mmaction.TSMHead' if is_shifted else 'mmaction.TSNHead')
    assert backbone.get('frozen_stages', 0) == (4 if algorithm == 'tsn-frozen' else 0)
    if net == 'resnet50':
        assert (backbone.type, backbone.depth) == ('videomac_mm.SparseResNet', 50)
        assert (backbone.variant, head.in_channels) == ('videomac', 2048)
    else:
        assert net == f'convnextv2-{backbone.arch}' and backbone.use_grn
        assert backbone.stage_norm == 'inline'
        assert head.in_channels == MODELS.build(backbone).channels[-1]
    name, frames, size = data.split('-')
    assert head.num_classes == CLASSES[name]
    folder = {'k400': 'kinetics400', 'ssv2': 'sthv2'}.get(name, name)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.data_root == f'data/{folder}'
        pipeline = loader.dataset.pipeline
        assert pipeline[0].type == 'videomac_mm.OpenVideo'
        assert pipeline[1].type == 'mmaction.SampleFrames'
        assert pipeline[-2].input_format == 'NCHW'
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        sampler = loader.dataset.pipeline[1]
        assert frames == f'{sampler.clip_len}x{sampler.frame_interval}x{sampler.num_clips}'
    steps = {step.type.split('.')[1]: step for step in cfg.train_dataloader.dataset.pipeline}
    assert steps['Resize'].scale == (int(size),) * 2  # the last
    assert ('Flip' in steps) == (name != 'ssv2')
    preprocessor = cfg.model.data_preprocessor
    assert preprocessor.format_shape == 'NCHW' and preprocessor.blending is None
    if path.stem == SMALL:
        return
    assert views(cfg.test_dataloader.dataset.pipeline) == (
        48 if name == 'ssv2' else 80 if is_shifted else 250
    )
    if is_shifted:
        assert cfg.model.backbone.num_segments == head.num_segments == 8
    (recipe,) = recipe
    gpus, batch = recipe.split('-')[0].split('xb')
    assert cfg.train_dataloader.batch_size == int(batch)
    total = int(gpus) * int(batch)
    assert cfg.auto_scale_lr.base_batch_size == total
    assert 'amp' in recipe.split('-') and cfg.optim_wrapper.type == 'AmpOptimWrapper'
    epochs = cfg.train_cfg.max_epochs
    warm_up, cosine = cfg.param_scheduler
    assert (warm_up.end, cosine.begin, cosine.end) == (5, 5, epochs)
    assert f'-{epochs}e' in recipe
    is_frozen = algorithm == 'tsn-frozen'
    optimizer = cfg.optim_wrapper.optimizer
    assert optimizer.lr == pytest.approx((1e-3 if is_frozen else 5e-4) * total / 256)
    assert optimizer.weight_decay == (0 if is_frozen else 0.05)
    assert head.dropout_ratio == (0 if is_frozen else 0.5)
    drop_path = 0.2 if net == 'convnextv2-small' and not is_frozen else 0
    assert backbone.get('drop_path_rate', 0) == drop_path


@pytest.mark.parametrize('net', ['convnextv2-small', 'resnet50'])
def test_layer_decay__falls_towards_the_stem(net):
    cfg = Config.fromfile(FOLDER / f'tsm_{net}_8xb16-amp-coslr-50e_k400-1x1x8-224.py')
    shrink_model(cfg.model)
    init_default_scope('videomac_mm')
    optimizer = build_optim_wrapper(MODELS.build(cfg.model), cfg.optim_wrapper).optimizer
    lr = cfg.optim_wrapper.optimizer.lr
    shares = {x['param_name']: (x['lr'] / lr, x['weight_decay']) for x in optimizer.param_groups}
    assert shares['cls_head.fc_cls.weight'] == pytest.approx((1, 0.05))
    assert shares['cls_head.fc_cls.bias'] == pytest.approx((1, 0))
    stem = 'conv1' if net == 'resnet50' else 'downsample_layers.0.0'
    least = min(share for share, _ in shares.values())
    assert shares[f'backbone.{stem}.weight'] == pytest.approx((least, 0.05))
    assert least < 0.75**4
    assert all(decay == 0 for name, (_, decay) in shares.items() if name.endswith('bias'))


def test_metafile_names_every_config():
    models = mmengine.load(FOLDER / 'metafile.yml')['Models']
    models = {model['Name']: model for model in models if model['Name'].startswith('ts')}
    assert sorted(models) == [path.stem for path in CONFIGS]
    for name, model in models.items():
        cfg = Config.fromfile(FOLDER / f'{name}.py')
        assert model['Config'] == f'configs/fine_tuning/action_recognition/{name}.py'
        assert model['In Collection'] == ('TSM' if name.startswith('tsm') else 'TSN')
        if name != SMALL:
            assert model['Metadata']['Epochs'] == cfg.train_cfg.max_epochs
            assert model['Metadata']['Batch Size'] == cfg.auto_scale_lr.base_batch_size


# ------------------------------------------------------------------ mmaction2's configs

RESNET = dict(type='videomac_mm.SparseResNet', depth=50)
CONVNEXT = dict(
    type='videomac_mm.SparseConvNeXt',
    arch='atto',
    use_grn=True,
    layer_scale_init_value=0.0,
    stage_norm='inline',
)
SHIFTED = 'videomac_mm.TemporalShifted'


@pytest.mark.parametrize(
    ('stock', 'backbone', 'in_channels'),
    [
        ('tsn/tsn_imagenet-pretrained-r50_8xb32-1x1x8-100e', RESNET, 2048),
        ('tsn/tsn_imagenet-pretrained-r50_8xb32-1x1x8-100e', CONVNEXT, 320),
        ('tsm/tsm_imagenet-pretrained-r50_8xb16-1x1x8-50e', RESNET, 2048),
        ('tsm/tsm_imagenet-pretrained-r50_8xb16-1x1x8-50e', CONVNEXT, 320),
    ],
    ids=['tsn-resnet', 'tsn-convnext', 'tsm-resnet', 'tsm-convnext'],
)
def test_stock_config__takes_our_backbone(stock, backbone, in_channels):
    configs = Path(get_installed_path('mmaction2')) / '.mim' / 'configs' / 'recognition'
    cfg = Config.fromfile(configs / f'{stock}_kinetics400-rgb.py')
    is_shifted = stock.startswith('tsm')
    cfg.model.backbone = dict(type=SHIFTED, backbone=backbone) if is_shifted else backbone
    cfg.model.cls_head.in_channels = in_channels
    init_default_scope(cfg.default_scope)
    from mmaction.registry import MODELS as MMACTION
    from mmaction.structures import ActionDataSample

    model = MMACTION.build(cfg.model)
    batch = dict(
        inputs=[torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8) for _ in range(2)],
        data_samples=[ActionDataSample().set_gt_label(label) for label in (3, 399)],
    )
    data = model.data_preprocessor(batch, training=True)
    model.train()
    losses = model(**data, mode='loss')
    losses['loss_cls'].backward()
    assert losses['loss_cls'].isfinite()
    assert all(param.grad is not None for param in model.parameters())
    model.eval()
    with torch.no_grad():
        predictions = model(**model.data_preprocessor(batch), mode='predict')
    scores = torch.stack([sample.pred_score for sample in predictions])
    assert scores.shape == (2, 400)
    torch.testing.assert_close(scores.sum(1), torch.ones(2))
