"""Label propagation from the command line: every config, and one and two processes alike."""

import json
from pathlib import Path

import mmengine
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from tests.test_tools import run

FOLDER = Path(__file__).parents[1] / 'configs' / 'label_propagation'
CONFIGS = sorted(FOLDER.glob('*.py'))
BACKBONES = {
    'videomac_mm.SparseConvNeXt': dict(arch=dict(depths=[1] * 4, channels=[4, 6, 8, 10])),
    'videomac_mm.SparseResNet': dict(base_channels=4, stem_channels=4),
    'mmpretrain.ResNet': dict(base_channels=4, stem_channels=4),
    'mmpretrain.VisionTransformer': dict(
        arch=dict(embed_dims=8, num_layers=1, num_heads=1, feedforward_channels=8), img_size=64
    ),
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
    assert backbone.startswith('videomac-') == kind.startswith('videomac_mm.')
    if kind == 'videomac_mm.SparseConvNeXt':
        assert backbone.split('-')[-1] == model.backbone.arch


def test_metafile_names_every_config():
    models = mmengine.load(FOLDER / 'metafile.yml')['Models']
    assert sorted(model['Name'] for model in models) == [path.stem for path in CONFIGS]


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
