"""What could not be read is counted over all processes, and reported."""

import json
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest
import torch
from mmengine.dataset import ConcatDataset
from mmengine.runner import Runner

from tests.reliability.small_runs import small_config
from tests.test_datasets.test_unlabelled_videos import raising
from videomac_mm.datasets import SyntheticVideo, UnlabelledVideoDataset, UnusableVideoError
from videomac_mm.datasets.fault_log import Fault
from videomac_mm.engine import DataFaultsHook
from videomac_mm.engine.hooks import data_faults

BUSY = OSError(24, 'Too many open files')


class Hub:
    def __init__(self) -> None:
        self.curves: dict[str, list[int]] = {}

    def update_scalar(self, name: str, value: int) -> None:
        self.curves.setdefault(name, []).append(value)


def videos(root: Path, number: int = 20, **options) -> UnlabelledVideoDataset:
    root.mkdir(exist_ok=True)
    for i in range(number):
        (root / f'{i:02d}.mp4').touch()
    return UnlabelledVideoDataset(str(root), pipeline=[dict], **options)


def runner_of(dataset, work_dir: Path):
    work_dir.mkdir(exist_ok=True)
    loader = SimpleNamespace(dataset=dataset)
    return SimpleNamespace(
        train_dataloader=loader, message_hub=Hub(), work_dir=str(work_dir), iter=19
    )


def fault(index: int, kind: str = 'data') -> Fault:
    reason = 'UnusableVideoError: damaged' if kind == 'data' else 'OSError: busy'
    return Fault(index, kind, f'{index:02d}.mp4', reason)


@pytest.fixture
def log(monkeypatch) -> list[str]:
    lines = []
    monkeypatch.setattr(data_faults, 'print_log', lambda text, **kwargs: lines.append(text))
    return lines


def test_hook__says_how_many_which_and_why(tmp_path, log):
    dataset = videos(tmp_path / 'v', max_bad_share=0.5)
    runner, hook = runner_of(dataset, tmp_path / 'w'), DataFaultsHook()
    hook.after_train_epoch(runner)
    assert not log and runner.message_hub.curves['train/unusable'] == [0]
    for one in (fault(3), fault(3), fault(7), fault(7, 'moment'), fault(9, 'moment')):
        dataset.faults.add(one)
    hook.after_train_iter(runner, 19)
    runner.iter = 20
    hook.after_train_iter(runner, 20)
    assert runner.message_hub.curves == {'train/unusable': [0, 2], 'train/missed': [0, 2]}
    assert log == [
        '2 of 20 videos are unusable so far (2 UnusableVideoError), and 2 OSError were passed over '
        f'once; see unreadable_videos.jsonl in {runner.work_dir}'
    ]
    hook.after_train_epoch(runner)
    assert len(log) == 2 and log[0] == log[1]
    lines = (tmp_path / 'w' / 'unreadable_videos.jsonl').read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [(e['index'], e['kind']) for e in entries] == [
        *((3, 'data'), (7, 'data'), (7, 'moment'), (9, 'moment'))
    ]
    assert entries[0]['path'] == '03.mp4' and entries[0]['reason'].endswith('damaged')


def test_hook__finds_data_sets_in_others(tmp_path, log):
    parts = [videos(tmp_path / name, 4, max_bad_share=0.6) for name in 'ab']
    runner = runner_of(ConcatDataset(parts), tmp_path / 'w')
    parts[1].faults.add(fault(2))
    DataFaultsHook(1).after_train_iter(runner, 0)
    assert runner.message_hub.curves['train/unusable'] == [1] and '1 of 8 videos' in log[0]
    other = runner_of(torch.utils.data.TensorDataset(torch.zeros(3)), tmp_path / 'w')
    DataFaultsHook(1).after_train_iter(other, 0)
    assert not other.message_hub.curves


def test_hook__bad_interval():
    with pytest.raises(ValueError, match='at least 1, got 0'):
        DataFaultsHook(0)


def share(rank: int, folder: str, port: int) -> None:
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.distributed.init_process_group('gloo', rank=rank, world_size=2)
    folder = Path(folder)
    # Three of twenty a process: neither alone exceeds a fifth.
    dataset = videos(folder / 'v', max_bad_share=0.2)
    runner, hook = runner_of(dataset, folder / 'w'), DataFaultsHook(1)
    found = []
    for index in (0, 1, 2):
        dataset.faults.add(fault(2 * index + rank))
        try:
            hook.after_train_iter(runner, 0)
        except RuntimeError as err:
            found.append(str(err))
    result = dict(bad=dataset.bad_items, found=found, curves=runner.message_hub.curves)
    torch.save(result, folder / f'{rank}.pth')
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_hook__counts_over_all_processes_and_ends_them_together(tmp_path):
    if not torch.distributed.is_gloo_available():
        pytest.skip('torch without gloo')
    videos(tmp_path / 'v')
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(share, (str(tmp_path), port), nprocs=2)
    for rank in range(2):
        result = torch.load(tmp_path / f'{rank}.pth')
        assert result['bad'] == [0, 1, 2, 3, 4, 5]
        assert result['curves']['train/unusable'] == [2, 4, 6]
        (message,) = result['found']
        assert '6 of 20 items (30.0%) are unusable, more than max_bad_share=20.0%' in message
    lines = (tmp_path / 'w' / 'unreadable_videos.jsonl').read_text().splitlines()
    assert sorted(json.loads(line)['index'] for line in lines) == [0, 1, 2, 3, 4, 5]


def test_training__logs_the_curve(tmp_path, monkeypatch):
    """A real run, with data that fail in both ways."""
    cfg = small_config('videomac', tmp_path / 'run')
    cfg.log_level = 'INFO'
    cfg.default_hooks.logger.interval = 4
    cfg.default_hooks.data_faults = dict(type='videomac_mm.DataFaultsHook', interval=2)
    monkeypatch.setattr(UnlabelledVideoDataset, 'RETRY_WAITS', ())
    for name in 'abcdefgh':
        (tmp_path / 'v' / name).mkdir(parents=True)
        for t in range(4):
            cv2.imwrite(str(tmp_path / f'v/{name}/{t}.png'), SyntheticVideo(0, 4).frame(t))
    (tmp_path / 'v/b/2.png').write_bytes(b'no picture')

    def sometimes(results: dict) -> dict:
        return raising(BUSY)(results) if results['frame_dir'].endswith('c') else results

    sampler, _, *rest = cfg.train_dataloader.dataset.pipeline
    sampler = dict(type='videomac_mm.SampleFramePair', frame_interval=1)
    cfg.train_dataloader.dataset = dict(
        type='videomac_mm.UnlabelledVideoDataset',
        source='frames',
        data_root=str(tmp_path / 'v'),
        max_bad_share=0.3,
        pipeline=[sampler, dict(type='videomac_mm.FrameFolderDecode'), *rest],
    )
    runner = Runner.from_cfg(cfg)
    runner._train_dataloader = runner.build_dataloader(cfg.train_dataloader)
    runner._train_dataloader.dataset.pipeline.transforms.insert(0, sometimes)
    runner.train()
    (file,) = tmp_path.glob('run/*/vis_data/scalars.json')
    last = [json.loads(line) for line in file.read_text().splitlines() if 'unusable' in line][-1]
    assert last['unusable'] == 1 and last['missed'] >= 1
    entries = map(json.loads, (tmp_path / 'run/unreadable_videos.jsonl').read_text().splitlines())
    kinds = {(Path(e['path']).name, e['kind'], e['reason'].partition(':')[0]) for e in entries}
    assert kinds == {('b', 'data', UnusableVideoError.__name__), ('c', 'moment', 'OSError')}
