"""tools/compare_label_propagation.py: its table, and a run with a failure in it."""

import csv
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import cv2
import pytest

TOY = Path(__file__).parent / 'toy' / 'propagation_config.py'
TOOL = Path(__file__).parent.parent / 'tools' / 'compare_label_propagation.py'


@pytest.fixture(scope='module')
def compare() -> ModuleType:
    spec = importlib.util.spec_from_file_location('compare_label_propagation', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(folder: Path, *args) -> subprocess.CompletedProcess:
    command = [str(word) for word in (sys.executable, TOOL, *args)]
    environ = dict(os.environ, CUDA_VISIBLE_DEVICES='')
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)


def test_compare__reports_the_metrics_of_each_run_and_goes_on_after_failures(tmp_path):
    done = run(
        tmp_path,
        *(TOY, '--checkpoints', 'gone=gone.pth', 'random', '--out-dir', 'out', '--cfg-options'),
        *('test_dataloader.dataset.num_videos=1', 'test_evaluator.result_dir=scores'),
    )
    assert done.returncode == 1, done.stdout + done.stderr
    # The metric's own file, which shows that --cfg-options arrived.
    (scores,) = json.loads((tmp_path / 'scores/results.json').read_text())['global_results-val']
    wanted = {f'DAVIS/{name}': value for name, value in scores.items()}
    results = json.loads((tmp_path / 'out/results.json').read_text())
    assert results == dict(
        gone=dict(propagation_config=None), random=dict(propagation_config=wanted)
    )

    with (tmp_path / 'out/results.csv').open() as file:
        header, gone, random = csv.reader(file)
    assert header == ['checkpoint', *wanted]
    assert gone == ['gone', *['failed'] * 7]
    assert random[0] == 'random' and [float(v) for v in random[1:]] == list(wanted.values())
    assert f'| random | {wanted["DAVIS/J&F-Mean"]:.4g} | ' in done.stdout
    assert 'FileNotFoundError: gone.pth can not be found' in done.stdout
    assert cv2.imread(str(tmp_path / 'out/results.png')).shape[2] == 3


def test_table__columns_of_several_benchmarks(compare):
    davis = {'DAVIS/J': 0.5, 'DAVIS/F': 0.25}
    results = dict(
        a={'davis2017': davis, 'davis2016': dict(davis), 'vip': None, 'jhmdb': {'PCK': 12.3456}},
        b={'davis2017': None, 'davis2016': {'DAVIS/J': 1.0}, 'vip': None, 'jhmdb': {'PCK': 5.0}},
    )
    header, rows = compare.table(results, ['davis2017', 'davis2016', 'vip', 'jhmdb'])
    assert header == [
        *('checkpoint', 'davis2017 DAVIS/J', 'davis2017 DAVIS/F', 'davis2016 DAVIS/J'),
        *('davis2016 DAVIS/F', 'vip', 'PCK'),
    ]
    assert rows[0] == ['a', 0.5, 0.25, 0.5, 0.25, 'failed', 12.3456]
    assert rows[1][:4] == ['b', 'failed', 'failed', 1.0] and rows[1][5:] == ['failed', 5.0]
    assert math.isnan(rows[1][4])
    lines = compare.to_markdown(header, rows).splitlines()
    assert lines[2] == '| a | 0.5 | 0.25 | 0.5 | 0.25 | failed | 12.35 |'
    assert {line.count('|') for line in lines} == {8}
    panels = compare.plot(results, ['davis2017', 'davis2016', 'vip', 'jhmdb']).axes
    heights = [[bar.get_height() for bar in panel.patches] for panel in panels]
    assert heights == [[0.5, 0.25], [0.5, 0.25, 1.0], [], [12.3456, 5.0]]


@pytest.mark.parametrize(
    'args, message',
    [
        (['a.py', '--checkpoints', 'weights.pth'], "must be NAME=FILE or 'random'"),
        (['a.py', '--checkpoints', 'a/b=c.pth'], "must do as the name of a folder, got 'a/b'"),
        (['a.py', '--checkpoints', 'a=b', 'a=c'], 'names must differ, got a, a'),
        (['x/a.py', 'y/a.py', '--checkpoints', 'random'], 'names must differ, got a, a'),
    ],
)
def test_arguments__wrong_ones_are_explained(compare, monkeypatch, capsys, args, message):
    monkeypatch.setattr(sys, 'argv', ['compare', *args])
    with pytest.raises(SystemExit):
        compare.parse_args()
    assert message in capsys.readouterr().err
