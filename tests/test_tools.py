"""The command lines on a toy config, in two processes without a GPU."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import mmcv
import mmengine
import numpy as np
import pytest
import torch

TOY = Path(__file__).parent / 'toy'


def run(command: list, folder: Path) -> None:
    path = os.pathsep.join([str(TOY), os.environ['PYTHONPATH']])
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = str(probe.getsockname()[1])
    # Without GPUs: a toy needs none, and two processes may find only one.
    environ = dict(os.environ, PYTHONPATH=path, PORT=port, CUDA_VISIBLE_DEVICES='')
    environ['PATH'] = os.pathsep.join([str(Path(sys.executable).parent), environ['PATH']])
    command = [str(word) for word in command]
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def scalars(work_dir: Path) -> list[dict]:
    """Everything that the last run in ``work_dir`` logged."""
    lines = max(work_dir.glob('*/vis_data/scalars.json')).read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason='torch without gloo')
def test_dist_train_then_resume_then_test(tmp_path, root):
    train = [root / 'tools/dist_train.sh', TOY / 'toy_config.py', 2]
    sharded = ['type=ZeroRedundancyOptimizer', 'optimizer_type=Adam']
    options = ['--cfg-options', *(f'optim_wrapper.optimizer.{option}' for option in sharded)]
    run([*train, '--amp', *options], tmp_path)
    # The work dir is named after the config; 16 samples, 4 in a batch of each process.
    work_dir = tmp_path / 'work_dirs' / 'toy_config'
    assert [(entry['iter'], entry['bits']) for entry in scalars(work_dir)] == [(1, 16), (2, 16)]

    run([*train, '--resume', *options, 'train_cfg.max_epochs=2'], tmp_path)
    assert [(entry['iter'], entry['bits']) for entry in scalars(work_dir)] == [(3, 32), (4, 32)]

    test = [sys.executable, root / 'tools/test.py', TOY / 'toy_config.py']
    run([*test, work_dir / 'epoch_2.pth', '--work-dir', 'work', '--dump', 'out.pkl'], tmp_path)
    (metrics,) = (tmp_path / 'work').glob('2*/2*.json')
    assert json.loads(metrics.read_text())['toy/count'] == 16
    assert len(mmengine.load(tmp_path / 'out.pkl')) == 16


def test_prepare_synthetic__writes_the_layout_of_each_toolbox(tmp_path, root):
    tool = [sys.executable, root / 'tools/prepare_synthetic.py']
    run([*tool, 'data', '--share', '0.01'], tmp_path)
    data = tmp_path / 'data'
    for split, numbers in (('train', (20, 4, 10)), ('val', (4, 1, 2))):
        images = list((data / 'images' / split).glob('[0-3]/*.png'))
        lines = (data / 'videos' / f'{split}.txt').read_text().splitlines()
        maps = sorted((data / 'segmentation/annotations' / split).glob('*.png'))
        assert (len(images), len(lines), len(maps)) == numbers
        for line in lines:
            name, label = line.split()
            assert int(label) in range(4)
            video = mmcv.VideoReader(str(data / 'videos' / split / name))
            assert (len(video), video.resolution) == (24, (112, 112))
        for path in maps:
            ids = mmcv.imread(path, 'unchanged')
            assert ids.shape == (112, 112) and ids.dtype == np.uint8
            assert len(np.unique(ids)) > 1 and set(np.unique(ids)) <= set(range(5))
            picture = mmcv.imread(data / 'segmentation/images' / split / path.name)
            assert picture.shape == (112, 112, 3)
    first = (data / 'images/train').rglob('00000.png')
    before = next(first).read_bytes()
    run([*tool, 'again', '--share', '0.01'], tmp_path)
    assert next((tmp_path / 'again/images/train').rglob('00000.png')).read_bytes() == before
    with pytest.raises(AssertionError, match='data exists already'):
        run([*tool, 'data'], tmp_path)


@pytest.mark.parametrize('gpus, per_node', [('64', '8'), ('4', '4')])
def test_slurm_train__asks_for_a_task_per_gpu(tmp_path, root, monkeypatch, gpus, per_node):
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\necho port=$MASTER_PORT > asked\nprintf "%s\\n" "$@" >> asked\n')
    srun.chmod(0o755)
    environ = dict(
        GPUS=gpus, SRUN_ARGS='--time=60 --quiet', PATH=f'{tmp_path}:{os.environ["PATH"]}'
    )
    for key, value in environ.items():
        monkeypatch.setenv(key, value)
    script = [root / 'tools/slurm_train.sh', 'gpu', 'a job', 'config.py', 'work dir']
    run([*script, '--cfg-options', 'a="[1, 2]"'], tmp_path)
    port, *words = (tmp_path / 'asked').read_text().splitlines()
    assert port != 'port='
    wanted = [f'--ntasks={gpus}', f'--ntasks-per-node={per_node}', f'--gres=gpu:{per_node}']
    assert {*wanted, '--job-name=a job', '--time=60', '--quiet'} <= set(words)
    train = ['config.py', '--work-dir=work dir', '--launcher', 'slurm']
    train += ['--cfg-options', 'a="[1, 2]"']
    assert words[-len(train) :] == train
