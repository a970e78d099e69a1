"""Test several checkpoints on several benchmarks of label propagation, and compare them.

    python tools/compare_label_propagation.py CONFIG … --checkpoints NAME=FILE … random

Each test is a run of tools/test.py in a process of its own. Where one fails, the others go on;
the table says `failed`, and the exit status is 1. In the output folder: results.csv,
results.json, results.png (a panel per benchmark), and per test the run's folder and log.
"""

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from matplotlib.figure import Figure

TEST = Path(__file__).with_name('test.py')

Metrics = dict[str, float]
Results = dict[str, dict[str, Metrics | None]]  # by checkpoint and benchmark; None = failed


def parse_args() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument('configs', nargs='+', type=Path, help='one for each benchmark')
    parser.add_argument(
        '--checkpoints',
        nargs='+',
        type=name_and_file,
        required=True,
        metavar='NAME=FILE',
        help="files or URLs; 'random' alone for the weights that the model is initialised with",
    )
    parser.add_argument('--out-dir', type=Path, default=Path('work_dirs/compare_label_propagation'))
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], help='as key=value, passed on to every test'
    )
    args = parser.parse_args()
    for names in [config.stem for config in args.configs], [name for name, _ in args.checkpoints]:
        if len(set(names)) < len(names):
            parser.error(f'names must differ, got {", ".join(names)}')
    return args


def name_and_file(text: str) -> tuple[str, str | None]:
    """``NAME=FILE`` or ``random``."""
    name, _, path = text.partition('=')
    if text != 'random' and not (name and path):
        raise argparse.ArgumentTypeError(f"must be NAME=FILE or 'random', got {text!r}")
    if os.sep in name:
        raise argparse.ArgumentTypeError(f'a name must do as the name of a folder, got {name!r}')
    return name, path or None


def run_test(config: Path, path: str | None, folder: Path, options: list[str]) -> Metrics | None:
    """Test a checkpoint on a benchmark; None if that fails."""
    command = [sys.executable, TEST, config, *([path] if path else []), '--work-dir', folder]
    if path is None:
        options = [*options, 'load_from=None']
    if options:
        command += ['--cfg-options', *options]
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / 'output.log'
    with log.open('w') as file:
        status = subprocess.run(
            [str(word) for word in command], stdout=file, stderr=subprocess.STDOUT
        ).returncode
    if status:
        last = ''.join(log.read_text(errors='replace').splitlines(keepends=True)[-3:])
        print(f'failed with exit status {status}, see {log}:\n{last}', flush=True)
        return None
    # <time>/<time>.json, of the logger hook; the latest is this run's.
    files = sorted(folder.glob('[0-9]*/[0-9]*.json'))
    if not files:
        print(f'failed: no metrics in {folder}, the config needs a LoggerHook', flush=True)
        return None
    values = json.loads(files[-1].read_text())
    return {name: value for name, value in values.items() if name not in ('time', 'data_time')}


def table(results: Results, benchmarks: list[str]) -> tuple[list[str], list[list]]:
    """Header, and a row for each checkpoint.

    Columns are called after the metric, and after its benchmark where several have it or all
    runs failed.
    """
    columns: list[tuple[str, str]] = []  # benchmark, metric
    for benchmark in benchmarks:
        cells = [row[benchmark] or {} for row in results.values()]
        names = dict.fromkeys(name for cell in cells for name in cell)  # in order, each once
        columns += [(benchmark, name) for name in names] or [(benchmark, '')]
    counts = Counter(name for _, name in columns)
    header = [
        name if name and counts[name] == 1 else f'{benchmark} {name}'.rstrip()
        for benchmark, name in columns
    ]
    rows = [
        [
            checkpoint,
            *(
                'failed' if row[benchmark] is None else row[benchmark].get(name, math.nan)
                for benchmark, name in columns
            ),
        ]
        for checkpoint, row in results.items()
    ]
    return ['checkpoint', *header], rows


def to_markdown(header: list[str], rows: list[list]) -> str:
    lines = [header, ['---'] * len(header)]
    lines += [[f'{v:.4g}' if isinstance(v, float) else str(v) for v in row] for row in rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def plot(results: Results, benchmarks: list[str]) -> Figure:
    """Bars: a panel for each benchmark, a colour for each checkpoint."""
    figure = Figure(figsize=(9, 3 * len(benchmarks)), layout='constrained')
    panels = figure.subplots(len(benchmarks), squeeze=False)[:, 0]
    for panel, benchmark in zip(panels, benchmarks):
        width = 0.8 / len(results)
        for number, (name, by_benchmark) in enumerate(results.items()):
            metrics = by_benchmark[benchmark] or {}
            places = [place + number * width - 0.4 for place in range(len(metrics))]
            style = dict(align='edge', color=f'C{number}', label=name)
            panel.bar(places, list(metrics.values()), width, **style)
            if metrics:
                panel.set_xticks(range(len(metrics)), list(metrics))
        panel.set_title(benchmark)
        panel.legend(loc='upper left', bbox_to_anchor=(1, 1))
    return figure


def main() -> None:
    args = parse_args()
    benchmarks = [config.stem for config in args.configs]
    results: Results = {}
    for name, path in args.checkpoints:
        results[name] = {}
        for config in args.configs:
            print(f'{name} on {config.stem} …', flush=True)
            start = time.monotonic()
            folder = args.out_dir / name / config.stem
            results[name][config.stem] = run_test(config, path, folder, args.cfg_options)
            print(f'{time.monotonic() - start:.0f} s', flush=True)

    header, rows = table(results, benchmarks)
    print(f'\n{to_markdown(header, rows)}')
    (args.out_dir / 'results.json').write_text(json.dumps(results, indent=1))
    with (args.out_dir / 'results.csv').open('w', newline='') as file:
        csv.writer(file, lineterminator='\n').writerows([header, *rows])
    plot(results, benchmarks).savefig(args.out_dir / 'results.png', dpi=150)
    if any(metrics is None for row in results.values() for metrics in row.values()):
        sys.exit(1)


if __name__ == '__main__':
    main()
