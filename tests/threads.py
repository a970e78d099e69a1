"""Threads for tests."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def threads_of_torch(number: int) -> Iterator[None]:
    """Let torch use a number of threads, and what it used before afterwards."""
    used = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(used)
