"""Every config for fine-tuning: complete, as published, and able to take a step when shrunken."""

import json
from pathlib import Path

import cv2
import mmengine
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope
from mmengine.runner import Runner

from videomac_mm.datasets import SyntheticVideo
from videomac_mm.registry import MODELS, TRANSFORMS

FOLDER = Path(__file__).parents[1] / 'configs' / 'fine_tuning'
RECOGNITION = sorted((FOLDER / 'action_recognition').glob('finetune_*.py'))
DETECTION = sorted((FOLDER / 'spatiotemporal_detection').glob('*.py'))
SIZE, FRAMES, DIMS, DEPTH = 32, 4, 8, 2

NETS = {  # embed_dims, depth, num_heads
    'vit-small-p16': (384, 12, 6),
    'vit-base-p16': (768, 12, 12),
    'vit-large-p16': (1024, 24, 16),
    'vit-huge-p16': (1280, 32, 16),
}
CLASSES = {'k400': 400, 'ssv2': 174, 'ucf101': 101, 'hmdb51': 51}

# The scripts of VideoMAE's code: base learning rate, least one, decay by layers, drop path,
# dropout, clips of a video in a batch.
PUBLISHED = {
    'vit-small-p16_32xb12-amp-coslr-150e_k400': (5e-4, 1e-6, 0.75, 0.1, 0.0, 2),
    'vit-base-p16_64xb6-amp-coslr-75e_k400': (5e-4, 1e-6, 0.75, 0.1, 0.0, 2),
    'vit-base-p16_64xb8-amp-coslr-100e_k400': (1e-3, 1e-6, 0.75, 0.1, 0.0, 1),
    'vit-large-p16_64xb2-amp-coslr-35e_k400': (2e-3, 1e-6, 0.75, 0.1, 0.0, 2),
    'vit-huge-p16_64xb8-amp-coslr-50e_k400': (1e-3, 1e-5, 0.75, 0.2, 0.5, 2),
    'vit-small-p16_32xb12-amp-coslr-40e_ssv2': (1e-3, 1e-6, 0.7, 0.1, 0.0, 2),
    'vit-base-p16_64xb6-amp-coslr-30e_ssv2': (5e-4, 1e-6, 0.75, 0.1, 0.0, 2),
    'vit-base-p16_64xb8-amp-coslr-50e_ssv2': (5e-4, 1e-6, 0.75, 0.1, 0.0, 1),
    'vit-base-p16_8xb16-amp-coslr-100e_ucf101': (5e-4, 1e-5, 0.7, 0.2, 0.5, 2),
}


@pytest.fixture(params=RECOGNITION, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


@pytest.fixture(params=DETECTION, ids=lambda path: path.stem)
def detection_path(request) -> Path:
    return request.param


@pytest.fixture(scope='module')
def data_root(tmp_path_factory) -> Path:
    """Three short videos of two classes, in the layouts of all data sets."""
    root = tmp_path_factory.mktemp('data')
    for folder in ('videos', 'videos_train', 'videos_val'):
        (root / folder).mkdir()
        for seed in range(3):
            video = SyntheticVideo(seed, num_frames=24, size=(48, 64))
            writer = cv2.VideoWriter(
                str(root / folder / f'{seed}.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 12, (64, 48)
            )
            for t in range(24):
                writer.write(np.ascontiguousarray(video.frame(t)[..., ::-1]))
            writer.release()
    return root


def config(stem: str) -> Config:
    (path,) = (path for path in [*RECOGNITION, *DETECTION] if path.stem == stem)
    return Config.fromfile(path)


def shrink_model(model: Config) -> None:
    backbone = model.backbone
    backbone.update(img_size=SIZE, num_frames=FRAMES, num_heads=2)
    if backbone.type == 'videomac_mm.ConvVisionTransformer':
        backbone.update(embed_dims=(4, 6, DIMS), depths=(1, 1, DEPTH))
    else:
        backbone.update(embed_dims=DIMS, depth=DEPTH)
    if 'cls_head' in model:
        model.cls_head.in_channels = DIMS
    else:
        model.roi_head.bbox_head.in_channels = DIMS


def shrink(cfg: Config, data_root: Path, work_dir: Path) -> Config:
    shrink_model(cfg.model)
    cfg.optim_wrapper.paramwise_cfg.num_layers = DEPTH
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(data_root)
        ann_file = data_root / loader.dataset.ann_file
        ann_file.write_text('0.mp4 0\n1.mp4 1\n2.mp4 1\n')
        for step in loader.dataset.pipeline:
            if 'clip_len' in step:
                step.clip_len = FRAMES
            if 'crop_size' in step:
                step.crop_size = SIZE
            if 'scale' in step:
                step.scale = tuple(SIZE if side == 224 else side for side in step.scale)
    cfg.train_dataloader.batch_size = 1
    cfg.train_cfg.max_epochs = 1
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = work_dir.name
    cfg.log_level = 'ERROR'
    return cfg


def pretraining_checkpoint(backbone: dict, path: Path) -> dict[str, torch.Tensor]:
    """Write what CMAE-V, the pre-training with most parts, leaves behind for ``backbone``."""
    backbone = dict(backbone, use_mean_pooling=False, drop_path_rate=0.0)
    if backbone['type'] == 'videomac_mm.ConvVisionTransformer':
        backbone['multi_scale_fusion'] = True
    projection = dict(
        type='mmpretrain.NonLinearNeck',
        in_channels=DIMS,
        hid_channels=DIMS,
        out_channels=DIMS,
        norm_cfg=dict(type='BN1d'),
        with_avg_pool=False,
    )
    model = dict(
        type='videomac_mm.CMAEV',
        backbone=backbone,
        neck=dict(
            type='videomac_mm.TokenDecoder',
            num_patches=(SIZE // 16) ** 2 * FRAMES // 2,
            in_channels=DIMS,
            embed_dims=DIMS,
            depth=1,
            num_heads=2,
        ),
        head=dict(type='videomac_mm.VideoPixelHead'),
        projector=projection,
        contrast_head=dict(
            type='mmpretrain.MoCoV3Head',
            predictor=projection,
            loss=dict(type='mmpretrain.CrossEntropyLoss'),
            temperature=0.07,
        ),
        data_preprocessor=dict(
            type='mmaction.ActionDataPreprocessor',
            mean=[0, 0, 0],
            std=[1, 1, 1],
            format_shape='NCTHW',
        ),
    )
    state = MODELS.build(model).state_dict()
    torch.save(dict(state_dict=state), path)
    return state


# ------------------------------------------------------------------ action recognition


def test_takes_steps_when_shrunken(path, data_root, tmp_path):
    cfg = shrink(Config.fromfile(path), data_root, tmp_path)
    pretrained = pretraining_checkpoint(cfg.model.backbone, tmp_path / 'pretrained.pth')
    cfg.load_from = str(tmp_path / 'pretrained.pth')
    runner = Runner.from_cfg(cfg)

    batch = next(iter(runner.build_dataloader(cfg.train_dataloader)))
    repeats = cfg.train_dataloader.dataset.num_repeats
    assert [clip.shape for clip in batch['inputs']] == [(1, 3, FRAMES, SIZE, SIZE)] * repeats
    batch = runner.model.data_preprocessor(batch, training=True)
    for sample in batch['data_samples']:
        assert sample.gt_label.shape == (cfg.num_classes,)
        assert sample.gt_label.sum().item() == pytest.approx(1)
    views = 2 if 'ssv2' in path.stem else 5
    clips = next(iter(runner.build_dataloader(cfg.test_dataloader)))['inputs']
    assert [clip.shape for clip in clips] == [(3 * views, 3, FRAMES, SIZE, SIZE)]

    runner.train()
    logged = runner.message_hub.log_scalars
    assert np.isfinite(logged['train/loss'].current())
    assert 0 <= logged['val/acc/top1'].current() <= 1
    moved = {
        name
        for name, value in runner.model.backbone.state_dict().items()
        if f'backbone.{name}' in pretrained
        and not torch.equal(value.cpu(), pretrained[f'backbone.{name}'])
    }
    assert any(name.startswith('patch_embed.') for name in moved)
    assert any(name.startswith('blocks.1.') for name in moved)
    # Three steps of warm-up do not lead far from what was loaded.
    for name in moved:
        now, then = runner.model.backbone.state_dict()[name].cpu(), pretrained[f'backbone.{name}']
        assert torch.allclose(now, then, atol=1e-2), name
    assert list(tmp_path.glob('epoch_1.pth'))

    metrics = runner.test()
    assert 0 <= metrics['acc/top1'] <= metrics['acc/top5'] <= 1


def test_pretraining_checkpoint__loads_into_the_recogniser(path, tmp_path):
    cfg = Config.fromfile(path)
    shrink_model(cfg.model)
    init_default_scope('videomac_mm')
    model = MODELS.build(cfg.model)
    state = pretraining_checkpoint(cfg.model.backbone, tmp_path / 'pretrained.pth')
    loaded = model.load_state_dict(state, strict=False)
    assert set(loaded.missing_keys) == {
        *('backbone.fc_norm.weight', 'backbone.fc_norm.bias'),
        *('cls_head.fc_cls.weight', 'cls_head.fc_cls.bias'),
    }
    left_out = {'backbone.norm.weight', 'backbone.norm.bias'}
    left_out |= {key for key in state if key.startswith('backbone.patch_embed.fusion.')}
    left_out |= {key for key in state if not key.startswith('backbone.')}
    assert set(loaded.unexpected_keys) == left_out
    parts = {key.split('.')[0] for key in state}
    assert {'backbone', 'neck', 'projector', 'contrast_head', 'target'} <= parts


def test_parts_fit_each_other(path):
    cfg = Config.fromfile(path)
    _, net, _, data = path.stem.split('_')
    backbone, head = cfg.model.backbone, cfg.model.cls_head
    if net == 'convvit-base-p16':
        assert backbone.type == 'videomac_mm.ConvVisionTransformer'
        embed_dims, depth = backbone.embed_dims[2], backbone.depths[2]
    else:
        embed_dims, depth, num_heads = NETS[net]
        assert (backbone.embed_dims, backbone.depth) == (embed_dims, depth)
        assert backbone.num_heads == num_heads
    assert head.in_channels == embed_dims
    assert cfg.optim_wrapper.paramwise_cfg.num_layers == depth
    num_classes = CLASSES[data.split('-')[0]]
    assert head.num_classes == num_classes
    preprocessor = cfg.model.data_preprocessor
    assert [x.num_classes for x in preprocessor.blending.augments] == [num_classes] * 2
    assert cfg.default_scope == 'videomac_mm'


def test_name_says_what_the_config_does(path):
    cfg = Config.fromfile(path)
    kind, _, recipe, data = path.stem.split('_')
    assert kind == 'finetune'
    gpus, batch = recipe.split('-')[0].split('xb')
    assert cfg.train_dataloader.batch_size == int(batch)
    assert cfg.auto_scale_lr.base_batch_size == int(gpus) * int(batch)
    assert 'amp' in recipe.split('-') and cfg.optim_wrapper.type == 'AmpOptimWrapper'
    epochs = cfg.train_cfg.max_epochs
    assert f'-{epochs}e' in recipe
    warm_up, cosine = cfg.param_scheduler
    assert (warm_up.end, cosine.begin, cosine.end) == (5, 5, epochs)
    name, frames, size = data.split('-')
    folder = {'k400': 'kinetics400', 'ssv2': 'sthv2'}.get(name, name)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.data_root == f'data/{folder}'
        sampler = loader.dataset.pipeline[1]
        if frames == 'u16':
            assert (sampler.type, sampler.clip_len) == ('mmaction.UniformSample', 16)
        else:
            assert frames == f'{sampler.clip_len}x{sampler.frame_interval}'
        (format_shape,) = (x for x in loader.dataset.pipeline if 'input_format' in x)
        assert format_shape.input_format == 'NCTHW'
    assert any(x.get('scale') == (int(size),) * 2 for x in cfg.train_pipeline)
    assert any(x.get('flip_ratio') == 0.5 for x in cfg.train_pipeline) == (name != 'ssv2')


@pytest.mark.parametrize('run', PUBLISHED)
def test_recipe__is_the_published_one(run):
    views = 'u16' if run.endswith('ssv2') else '16x4'
    cfg = config(f'finetune_{run}-{views}-224')
    base_lr, min_lr, decay, drop_path, dropout, repeats = PUBLISHED[run]
    lr = cfg.optim_wrapper.optimizer.lr
    assert lr == pytest.approx(base_lr * cfg.auto_scale_lr.base_batch_size / 256)
    assert cfg.param_scheduler[1].eta_min_ratio == pytest.approx(min_lr / base_lr)
    assert cfg.optim_wrapper.paramwise_cfg.decay_rate == decay
    assert cfg.model.backbone.drop_path_rate == drop_path
    assert cfg.model.cls_head.dropout_ratio == dropout
    assert cfg.train_dataloader.dataset.num_repeats == repeats


def test_augmentation__treats_the_frames_of_a_clip_alike():
    cfg = config('finetune_vit-base-p16_64xb6-amp-coslr-75e_k400-16x4-224')
    init_default_scope('videomac_mm')
    random = ['TransformBroadcaster', 'RandomResizedCrop', 'Resize', 'Flip']
    assert [x.type.split('.')[-1] for x in cfg.train_pipeline[3:7]] == random
    steps = [TRANSFORMS.build(x) for x in cfg.train_pipeline[3:7]]
    frame = SyntheticVideo(0, num_frames=1, size=(48, 64)).frame(0)
    seen = set()
    for _ in range(20):
        results = dict(imgs=[frame.copy() for _ in range(3)], img_shape=(48, 64), modality='RGB')
        for step in steps:
            results = step(results)
        first = results['imgs'][0]
        assert first.shape == (224, 224, 3) and first.dtype == np.uint8
        assert all(np.array_equal(img, first) for img in results['imgs'])
        seen.add(first.tobytes())
    assert len(seen) == 20


def test_rand_augment__draws_operations_that_change_pictures():
    cfg = config('finetune_vit-base-p16_64xb6-amp-coslr-75e_k400-16x4-224')
    init_default_scope('videomac_mm')
    step = TRANSFORMS.build(cfg.rand_augment)
    frame = SyntheticVideo(0, num_frames=1, size=(48, 64)).frame(0)
    changed = [not np.array_equal(step(dict(imgs=[frame]))['imgs'][0], frame) for _ in range(50)]
    # Four operations, each left out half of the time: nothing happens in 1 of 16.
    assert 0.8 < np.mean(changed) <= 1


def test_random_erasing__is_one_box_of_noise_that_normalises_to_unit_variance():
    cfg = config('finetune_vit-base-p16_64xb6-amp-coslr-75e_k400-16x4-224')
    init_default_scope('videomac_mm')
    assert cfg.random_erasing.erase_prob == 0.25
    step = TRANSFORMS.build(dict(cfg.random_erasing, erase_prob=1.0))
    imgs = step(dict(imgs=[np.zeros((224, 224, 3), np.uint8) for _ in range(3)]))['imgs']
    boxes = [(np.flatnonzero(x.any((1, 2))), np.flatnonzero(x.any((0, 2)))) for x in imgs]
    rows, columns = boxes[0]
    for other in boxes[1:]:
        assert np.array_equal(other[0], rows) and np.array_equal(other[1], columns)
    box = imgs[0][rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    noise = (box - np.array(cfg.data_preprocessor.mean)) / np.array(cfg.data_preprocessor.std)
    assert abs(noise.mean()) < 0.1
    assert noise.std() == pytest.approx(1, abs=0.1)
    assert not np.array_equal(imgs[0], imgs[1])


# ------------------------------------------------------------------ optimisation


def official_name(name: str) -> str:
    for ours, official in (
        ('backbone.', ''),
        ('patch_embed.projection', 'patch_embed.proj'),
        ('mlp.layers.0.0', 'mlp.fc1'),
        ('mlp.layers.1', 'mlp.fc2'),
        ('cls_head.fc_cls', 'head'),
    ):
        name = name.replace(ours, official)
    return name


def groups(cfg: Config) -> dict[str, tuple[float, float]]:
    """Share of the learning rate and weight decay of each parameter."""
    init_default_scope('videomac_mm')
    model = MODELS.build(cfg.model)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    lr = cfg.optim_wrapper.optimizer.lr
    return {
        name: (group['lr'] / lr, group['weight_decay'])
        for group in optimizer.param_groups
        for name in group['param_names']
    }


def test_layer_decay__is_that_of_the_official_code(fixtures_dir):
    fixture = json.loads((fixtures_dir / 'video_vit' / 'videomae_optim.json').read_text())
    cfg = config('finetune_vit-base-p16_64xb6-amp-coslr-75e_k400-16x4-224')
    shrink_model(cfg.model)
    depth = fixture['finetune_depth']
    cfg.model.backbone.depth = cfg.optim_wrapper.paramwise_cfg.num_layers = depth
    ours = {official_name(name): values for name, values in groups(cfg).items()}
    official = {
        name: (group['lr_scale'], group['weight_decay'])
        for group in fixture['finetune_layer_decay_groups'].values()
        for name in group['params']
    }
    assert ours.keys() == official.keys()
    for name, values in official.items():
        assert ours[name] == pytest.approx(values), name


def test_layer_decay__takes_all_convs_of_convvit_for_its_first_layer():
    cfg = config('finetune_convvit-base-p16_64xb6-amp-coslr-75e_k400-16x4-224')
    shrink_model(cfg.model)
    cfg.optim_wrapper.paramwise_cfg.num_layers = DEPTH
    for name, (share, weight_decay) in groups(cfg).items():
        part = name.split('.')
        layer = DEPTH + 1
        if name.startswith('backbone.patch_embed.'):
            layer = 0
        elif name.startswith('backbone.blocks.'):
            layer = int(part[2]) + 1
        assert share == pytest.approx(0.75 ** (DEPTH + 1 - layer)), name
        is_vector = part[-1] in ('bias', 'q_bias', 'v_bias') or 'norm' in name
        assert weight_decay == (0 if is_vector else 0.05), name


def test_schedule__is_that_of_the_official_code_for_every_layer(fixtures_dir):
    fixture = json.loads((fixtures_dir / 'video_vit' / 'videomae_optim.json').read_text())
    fixture = fixture['cosine_scheduler']
    args, values = fixture['args'], fixture['values']
    cfg = config('finetune_vit-base-p16_64xb6-amp-coslr-75e_k400-16x4-224')
    warm_up, cosine = cfg.param_scheduler
    warm_up.end = cosine.begin = args['warmup_epochs']
    cosine.update(end=args['epochs'], eta_min_ratio=args['final'] / args['base'])
    scales = (1.0, 0.75, 0.1)
    params = [torch.nn.Parameter(torch.zeros(1)) for _ in scales]
    optimizer = torch.optim.SGD(
        [dict(params=[x], lr=args['base'] * scale) for x, scale in zip(params, scales)], lr=1.0
    )
    schedulers = []
    for step in (warm_up, cosine):
        step.pop('convert_to_iter_based')
        build = PARAM_SCHEDULERS.get(step.pop('type')).build_iter_from_epoch
        schedulers.append(build(optimizer, **step, epoch_length=args['niter_per_ep']))
    for value in values:
        for group, scale in zip(optimizer.param_groups, scales):
            assert group['lr'] == pytest.approx(value * scale, abs=1e-5)
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()


# ------------------------------------------------------------------ spatio-temporal detection


def test_detection__backbone_gives_a_map(detection_path, tmp_path):
    cfg = Config.fromfile(detection_path)
    shrink_model(cfg.model)
    state = pretraining_checkpoint(cfg.model.backbone, tmp_path / 'pretrained.pth')
    backbone = MODELS.build(cfg.model.backbone)
    weights = {
        key.removeprefix('backbone.'): value
        for key, value in state.items()
        if key.startswith('backbone.')
    }
    backbone.load_state_dict(weights)  # all of them, the final norm too
    maps = backbone(torch.rand(2, 3, FRAMES, 48, 64))
    assert maps.shape == (2, DIMS, FRAMES // 2, 3, 4)


def test_detection__name_says_what_the_config_does(detection_path):
    cfg = Config.fromfile(detection_path)
    kind, net, recipe, data = detection_path.stem.split('_')
    embed_dims, depth, num_heads = NETS[net]
    backbone = cfg.model.backbone
    assert (backbone.embed_dims, backbone.depth) == (embed_dims, depth)
    assert backbone.num_heads == num_heads
    assert cfg.model.roi_head.bbox_head.in_channels == embed_dims
    assert cfg.optim_wrapper.paramwise_cfg.num_layers == depth
    assert (kind, recipe, data) == ('finetune', '8xb8-coslr-20e', 'ava22-16x4-256')
    assert cfg.train_dataloader.batch_size == 8
    assert cfg.auto_scale_lr.base_batch_size == 64
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[1].end == 20
    assert cfg.optim_wrapper.type == 'OptimWrapper'
    # those of mmaction2's configs
    lr, decay = {'vit-base-p16': (1.25e-4, 0.75), 'vit-large-p16': (2.5e-4, 0.8)}[net]
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(lr)
    assert cfg.optim_wrapper.paramwise_cfg.decay_rate == decay
    sampler = cfg.train_pipeline[0]
    assert (sampler.clip_len, sampler.frame_interval) == (16, 4)


def test_detection__builds_with_mmdet(detection_path):
    pytest.importorskip('mmdet.models', reason='needs mmdet and the compiled mmcv')
    cfg = Config.fromfile(detection_path)
    shrink_model(cfg.model)
    cfg.optim_wrapper.paramwise_cfg.num_layers = DEPTH
    init_default_scope('videomac_mm')
    model = MODELS.build(cfg.model)
    assert model.roi_head.bbox_head.fc_cls.in_features == DIMS
    shares = {share for share, _ in groups(cfg).values()}
    assert len(shares) == DEPTH + 2 and max(shares) == pytest.approx(1)


@pytest.mark.parametrize(
    ('folder', 'paths'),
    [('action_recognition', RECOGNITION), ('spatiotemporal_detection', DETECTION)],
)
def test_metafile_names_every_config(folder, paths):
    models = mmengine.load(FOLDER / folder / 'metafile.yml')['Models']
    # Those of 2D recognisers have their own test.
    assert sorted(x['Name'] for x in models) == sorted(
        path.stem for path in (FOLDER / folder).glob('*.py')
    )
    names = [path.stem for path in paths]
    for model in (model for model in models if model['Name'] in names):
        cfg = config(model['Name'])
        assert model['Config'] == f'configs/fine_tuning/{folder}/{model["Name"]}.py'
        assert model['Metadata']['Epochs'] == cfg.train_cfg.max_epochs
        assert model['Metadata']['Batch Size'] == cfg.auto_scale_lr.base_batch_size
