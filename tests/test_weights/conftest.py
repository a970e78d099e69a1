import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def run_tool(root, monkeypatch, capsys) -> Callable[..., str]:
    """Run the tool in this process, which spares the imports; returns what it prints."""

    def run(src: Path, dst: Path, *options: str) -> str:
        tool = str(root / 'tools/convert_weights.py')
        monkeypatch.setattr(sys, 'argv', [tool, str(src), str(dst), *options])
        runpy.run_path(tool, run_name='__main__')
        return capsys.readouterr().out

    return run
