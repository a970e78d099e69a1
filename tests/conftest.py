"""Every test: seeded, one thread, the clone's sources, no state left in mmengine."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

ROOT = Path(__file__).parent.parent

# For the processes that tests start; pytest's own path is set in pyproject.toml.
os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
os.environ.setdefault('OMP_NUM_THREADS', '1')
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_global_state_left():
    yield
    for manager in (MMLogger, MessageHub, DefaultScope, Visualizer):
        manager._instance_dict.clear()


@pytest.fixture(scope='session')
def root() -> Path:
    return ROOT


@pytest.fixture(scope='session')
def fixtures_dir() -> Path:
    """Outputs of the official implementations."""
    return _folder('VIDEOMAC_MM_FIXTURES', ROOT.parent / 'shared' / 'fixtures')


@pytest.fixture(scope='session')
def data_dir() -> Path:
    """Real videos and annotated sequences."""
    return _folder('VIDEOMAC_MM_DATA', ROOT.parent / 'shared' / 'data')


def _folder(variable: str, default: Path) -> Path:
    folder = Path(os.environ.get(variable, default))
    if not folder.is_dir():
        pytest.skip(f'no folder {folder}; set {variable} to run this test')
    return folder
