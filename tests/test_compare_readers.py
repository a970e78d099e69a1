"""tools/compare_readers.py: its figures for small films, and the readers that it skips."""

import importlib.util
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.films import encode, in_sequence

TOOL = Path(__file__).parent.parent / 'tools' / 'compare_readers.py'
HAS_DECORD = importlib.util.find_spec('decord') is not None


@pytest.fixture(scope='module')
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location('compare_readers', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_run__has_all_figures_and_says_which_readers_it_skipped(tmp_path):
    films = tmp_path / 'films'
    films.mkdir()
    for name in ('a.mp4', 'b.mkv', 'c.mov'):
        encode(films / name, 20)
    (films / 'broken.mp4').write_bytes(b'no film')
    (films / 'notes.txt').write_text('no film either')
    broken = tmp_path / 'modules' / 'torchcodec'
    broken.mkdir(parents=True)
    (broken / '__init__.py').write_text("raise RuntimeError('no FFmpeg here\\nat all')")

    readers = ['ours', *(['decord'] if HAS_DECORD else []), 'opencv']
    command = [sys.executable, TOOL, films, '--readers', *readers, 'torchcodec', '--rounds', '1']
    command += ['--corrupted', '6', '--large', films / 'b.mkv', '--json', tmp_path / 'out.json']
    path = os.pathsep.join([str(broken.parent), os.environ['PYTHONPATH']])
    done = subprocess.run(
        [str(word) for word in command],
        env=dict(os.environ, PYTHONPATH=path, CUDA_VISIBLE_DEVICES=''),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr

    report = json.loads((tmp_path / 'out.json').read_text())
    assert report['videos'] == report['timed_videos'] == 3
    assert report['unreadable'] == ['broken.mp4']
    assert report['skipped'] == dict(torchcodec='RuntimeError: no FFmpeg here')
    assert list(report['readers']) == readers
    for entry in report['readers'].values():
        for which in ('one_pair', 'four_pairs'):
            assert entry[which]['per_cpu_second'] > 0 and entry[which]['per_second'] > 0
            assert entry[which]['times_ours'] > 0
            assert len(entry[which]['cpu_seconds']) == len(entry[which]['seconds']) == 1
        assert isinstance(entry['mb_per_open_video'], float)
        assert entry['large_file']['open_ms'] > 0
        assert isinstance(entry['large_file']['peak_mb'], float)
        assert sum(entry['corrupted'].values()) == 6
        assert set(entry['corrupted']) == {'read', 'error', 'crash', 'hang'}
        assert entry['version']
    ours = report['readers']['ours']
    assert ours['one_pair']['times_ours'] == 1
    frames = dict(ours['frames'])
    assert frames.pop('exact') > 3 * 4  # a pair, the first and the last of each, and four pairs
    assert set(map(str, frames.values())) == {'0', '[]'}
    assert ours['failures'] == []

    rows = dict(
        line.strip('| ').split(' | ', 1) for line in done.stdout.splitlines() if '|' in line
    )
    assert rows['frames: exact'].split(' | ')[0] == str(ours['frames']['exact'])
    assert 'Skipped: torchcodec: RuntimeError: no FFmpeg here' in done.stdout
    assert 'Not read by PyAV, so left out: broken.mp4' in done.stdout


def test_processes__tell_crashes_hangs_and_errors_apart(tool, monkeypatch):
    monkeypatch.setitem(sys.modules, tool.__name__, tool)  # where pickle looks for `Outcome`
    for task, args, expected in [
        (abs, (-1,), ('value', 1, '')),
        (int, ('one\ntwo',), ('error', None, 'ValueError: invalid literal for int() with base 10')),
        (os.abort, (), ('crash', None, 'ended with SIGABRT')),
        (os._exit, (3,), ('crash', None, 'ended with status 3')),
        (time.sleep, (60,), ('hang', None, 'took longer than 1 s')),
    ]:
        kind, value, text = tool.in_copy(1, task, args)
        assert (kind, value) == expected[:2] and text.startswith(expected[2])


def test_frames__are_told_apart(tool, tmp_path):
    frames = in_sequence(encode(tmp_path / 'film.mp4', 12))
    count, kept = tool.in_sequence(str(tmp_path / 'film.mp4'), {4, 5, 6, 99})
    assert count == 12 and sorted(kept) == [4, 5, 6]
    other = np.clip(frames[5].astype(int) + 1, 0, 255).astype(np.uint8)
    for frame, kind in [
        (frames[5], 'exact'),
        (other, 'same'),
        (frames[4], 'another'),
        (frames[6], 'another'),
        (255 - frames[5], 'another'),
        (frames[5][:-1], 'another'),
    ]:
        assert tool.kind_of(frame, 5, kept) == kind


def test_draw__is_the_same_each_time_and_inside(tool):
    for length in (2, 3, 40):
        video = tool.draw('a.mp4', length, 25, 0)
        assert video == tool.draw('elsewhere/a.mp4', length, 25, 0)._replace(path='a.mp4')
        start, end = video.pair
        assert end - start == min(4, length - 1)
        assert video.pairs == sorted(set(video.pairs))
        assert all(0 <= frame < length for call in video.calls for frame in call)
    assert tool.draw('a.mp4', 400, 25, 0) != tool.draw('a.mp4', 400, 25, 1)


def test_damages__are_the_same_each_time(tool):
    data = bytes(range(256)) * 40
    for kind in tool.DAMAGES:
        broken = tool.damaged(data, kind, random.Random(1))
        assert broken != data and broken == tool.damaged(data, kind, random.Random(1))
        assert len(broken) < len(data) if kind == 'truncated' else len(broken) == len(data)


@pytest.mark.parametrize(
    'args, message',
    [
        (['.', '--readers', 'ffms'], "invalid choice: 'ffms'"),
        (['.', '--rounds', '0'], 'must be at least 1, got 0'),
        (['nowhere'], 'no folder nowhere'),
    ],
)
def test_arguments__wrong_ones_are_explained(tool, monkeypatch, capsys, args, message):
    monkeypatch.setattr(sys, 'argv', ['compare', *args])
    with pytest.raises(SystemExit):
        tool.parse_args()
    text = capsys.readouterr().err
    assert message in text
    if 'ffms' in args:
        assert all(name in text.partition('choose from')[2] for name in tool.READERS)
