"""Label propagation from the command line: every config, and one and two processes alike."""

import json
from pathlib import Path

import mmengine
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from tests.test_configs import DIMS, FRAMES, SIZE, shrink_vit
from tests.test_tools import run
from videomac_mm.registry import MODELS

FOLDER = Path(__file__).parents[1] / 'configs' / 'label_propagation'
CONFIGS = sorted(FOLDER.glob('*.py'))
BACKBONES = {
    'videomac_mm.SparseConvNeXt': dict(arch=dict(depths=[1] * 4, channels=[4, 6, 8, 10])),
    'videomac_mm.SparseResNet': dict(base_channels=4, stem_channels=4),
    'mmpretrain.ResNet': dict(base_channels=4, stem_channels=4),
    'mmpretrain.VisionTransformer': dict(
        arch=dict(embed_dims=8, num_layers=1, num_heads=1, feedforward_channels=8), img_size=64
    ),
    'videomac_mm.VideoVisionTransformer': dict(
        embed_dims=DIMS, depth=1, num_heads=1, img_size=SIZE, num_frames=FRAMES
    ),
    'videomac_mm.ConvVisionTransformer': dict(
        embed_dims=(4, 6, DIMS), depths=(1, 1, 1), num_heads=1, img_size=SIZE, num_frames=FRAMES
    ),
}
NETS = {  # how the names of backbones begin
    'videomac-convnextv2': 'videomac_mm.SparseConvNeXt',
    'videomac-resnet50': 'videomac_mm.SparseResNet',
    'resnet50': 'mmpretrain.ResNet',
    'vit': 'mmpretrain.VisionTransformer',
    'video-vit': 'videomac_mm.VideoVisionTransformer',
    'convvit': 'videomac_mm.ConvVisionTransformer',
}
PRETRAINED = {  # backbones, and what they were in pre-training
    'video_vit_mini_p16': 'videomae/videomae_vit-mini-p16_videos-112',
    'video_vit_small_p16': '_base_/models/videomae_vit_small',
    'video_vit_base_p16': '_base_/models/cmae_v_vit_base',
    'conv_vit_base_p16': '_base_/models/cmae_v_convvit_base',
}
METRICS = {'masks': 'DAVIS/J&F-Mean', 'parts': 'VIP/mIoU', 'keypoints': 'JHMDB/PCK@0.1'}
FORMS = dict(DAVISDataset='masks', VIPDataset='parts', JHMDBDataset='keypoints')


def shrink(cfg: Config, work_dir: Path) -> str:
    """Tiny network and generated videos; returns the form of their labels."""
    cfg.model.backbone.update(BACKBONES[cfg.model.backbone.type])
    loader = cfg.test_dataloader
    loader.update(num_workers=0, persistent_workers=False)
    kind = loader.dataset.type.removeprefix('videomac_mm.')
    form = FORMS.get(kind) or loader.dataset.form
    pipeline = [step for step in loader.dataset.pipeline if step.type != 'videomac_mm.LoadFrame']
    for step in pipeline:
        if step.type == 'videomac_mm.ResizeShortSide':
            step.update(size=64, divisor=32)
        elif step.type == 'mmengine.Resize':
            step.scale = (64, 64)
    loader.dataset = dict(
        type='videomac_mm.SyntheticLabelDataset',
        form=form,
        num_videos=3,
        num_frames=4,
        size=(64, 100),
        pipeline=pipeline,
    )
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = work_dir.name
    cfg.log_level = 'ERROR'
    return form


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config__tests_when_shrunken(path, tmp_path):
    cfg = Config.fromfile(path)
    form = shrink(cfg, tmp_path)
    metrics = Runner.from_cfg(cfg).test()
    assert np.isfinite(metrics[METRICS[form]])


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config__name_says_what_it_does(path):
    cfg = Config.fromfile(path)
    benchmark, backbone = path.stem.split('_')
    data, *form = benchmark.split('-')
    model = cfg.model
    assert (form[-1] == 'dino') == (model.window_shape == 'square') == model.keep_ties
    dataset = cfg.test_dataloader.dataset
    if data.startswith('davis'):
        assert dataset.get('year', 2017) == int(data.removeprefix('davis'))
    elif data != 'synthetic':
        assert dataset.type.lower() == f'videomac_mm.{data}dataset'
    kind = model.backbone.type
    (named,) = {net for name, net in NETS.items() if backbone.startswith(name)}
    assert kind == named
    if 'vit-' in backbone:
        assert model.stride == 16
    if kind == 'videomac_mm.SparseConvNeXt':
        assert backbone.split('-')[-1] == model.backbone.arch


def test_metafile_names_every_config():
    models = mmengine.load(FOLDER / 'metafile.yml')['Models']
    assert sorted(model['Name'] for model in models) == [path.stem for path in CONFIGS]


@pytest.mark.parametrize('name', PRETRAINED)
def test_video_backbone__is_that_of_pretraining(name):
    configs = FOLDER.parent
    here = Config.fromfile(configs / '_base_' / 'backbones' / f'{name}.py').backbone
    there = Config.fromfile(configs / f'{PRETRAINED[name]}.py').model.backbone
    assert here.pop('return_feat_map')
    there.pop('init_cfg')
    assert here == there


@pytest.mark.parametrize('name', ['video_vit_base_p16', 'conv_vit_base_p16'])
def test_video_backbone__takes_what_pretraining_leaves(name):
    configs = FOLDER.parent
    pretraining = Config.fromfile(configs / f'{PRETRAINED[name]}.py').model
    shrink_vit(pretraining)
    pretraining.data_preprocessor = dict(type='mmaction.ActionDataPreprocessor')
    pretraining = MODELS.build(pretraining).eval()
    backbone = Config.fromfile(configs / '_base_' / 'backbones' / f'{name}.py').backbone
    backbone.update(BACKBONES[backbone.type])
    model = MODELS.build(dict(type='videomac_mm.LabelPropagator', backbone=backbone))
    assert model.stride == 16
    model.load_state_dict(pretraining.state_dict())  # strictly
    frames = torch.rand(2, 3, SIZE, SIZE)
    # A frame stands still for the first time slot of a clip.
    clips = frames[:, :, None].expand(-1, -1, 2, -1, -1)
    with torch.no_grad():
        tokens = pretraining.backbone(clips, torch.zeros(2, 1, 4, 4, dtype=torch.bool))
    torch.testing.assert_close(model.extract_feat(frames).flatten(2).mT, tokens)
    assert model.extract_feat(torch.rand(1, 3, 72, 100)).shape == (1, DIMS, 5, 7)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason='torch without gloo')
def test_two_processes_count_as_one(tmp_path, root):
    config = tmp_path / 'tiny.py'
    cfg = Config.fromfile(FOLDER / 'synthetic-dino_videomac-convnextv2-atto.py')
    shrink(cfg, tmp_path)
    runner = Runner.from_cfg(cfg)
    runner.model.init_weights()
    torch.save(runner.model.state_dict(), tmp_path / 'weights.pth')
    cfg.dump(config)

    alone = ['python', root / 'tools/test.py', config, 'weights.pth']
    together = [root / 'tools/dist_test.sh', config, 'weights.pth', 2]
    found = []
    for name, command in (('one', alone), ('two', together)):
        folders = [f'test_evaluator.{key}={name}_{key}' for key in ('result_dir', 'outfile_prefix')]
        run([*command, '--work-dir', name, '--cfg-options', *folders], tmp_path)
        results = json.loads((tmp_path / f'{name}_result_dir' / 'results.json').read_text())
        saved = sorted((tmp_path / f'{name}_outfile_prefix').rglob('*.png'))
        found.append((results, [file.read_bytes() for file in saved]))
    assert len(found[0][1]) == 3 * 4
    assert found[0] == found[1]
