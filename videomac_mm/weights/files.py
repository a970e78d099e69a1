"""Reading and writing files of weights."""

import argparse
import importlib
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor


def read_checkpoint(path: Path) -> dict:
    """Read a file of tensors and plain values; whatever holds code is refused.

    Args:
        path: of torch's format or, by its suffix, safetensors.

    Raises:
        ValueError: for a file that holds code or no dict, naming what it holds.
    """
    if Path(path).suffix == '.safetensors':
        return _safetensors().load_file(path)
    try:
        with _allowed(argparse.Namespace):  # official code saves its command line as well
            checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as err:
        reason = str(err).replace('\n', ' ')
        raise ValueError(
            f'{path} is refused: a checkpoint may hold tensors and plain values, and reading '
            f'this file would take code: {reason}'
        ) from None
    if not isinstance(checkpoint, dict):
        raise ValueError(f'{path} should hold a dict, got {type(checkpoint).__name__}')
    return checkpoint


def write_safetensors(weights: dict[str, Tensor], path: Path, meta: dict) -> None:
    """Write tensors, and ``meta`` as strings, as one safetensors file."""
    tensors = {name: value.contiguous() for name, value in weights.items()}
    meta = {key: str(value) for key, value in meta.items()}
    _safetensors().save_file(tensors, path, dict(meta, format='pt'))


@contextmanager
def _allowed(kind: type) -> Iterator[None]:
    """Let ``torch.load`` read objects of ``kind`` inside, and restore the list of kinds after.

    `torch.serialization.safe_globals`, of torch 2.5 and later, is not enough: at its end it
    removes ``kind`` even if the caller had allowed it before.
    """
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([kind])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _safetensors() -> ModuleType:
    try:
        return importlib.import_module('safetensors.torch')
    except ImportError as err:
        raise ImportError(
            "safetensors files need an extra: pip install 'videomac_mm[weights]'"
        ) from err
