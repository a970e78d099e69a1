import subprocess
import sys
from collections.abc import Callable

import pytest


@pytest.fixture
def run_python() -> Callable[[str], None]:
    """Runs code in a fresh interpreter: what is repaired depends on what is imported when."""

    def run(code: str) -> None:
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    return run
