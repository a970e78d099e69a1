"""Reading and writing files of weights."""

import argparse
import importlib
import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from videomac_mm.weights.seal import check_whole, read_seal


class UnsafeCheckpointError(ValueError):
    """Reading a checkpoint would take more than tensors and plain values."""


def load_weights_only(
    file: str | os.PathLike | Any, map_location: Any = 'cpu', mmap: bool | None = None
) -> Any:
    """Read a file of ``torch.save`` without running any code of it.

    Every checkpoint is read in this way. Neither torch's default nor its variable
    ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD`` can change that. A file with a seal is compared with it.

    Args:
        file: path, or an open binary file.
        map_location: of ``torch.load``. Defaults to the CPU.
        mmap: of ``torch.load``. Defaults to None, torch's own default.

    Raises:
        UnsafeCheckpointError: naming the file and what it asks for.
        DamagedCheckpointError: if the file is not as it was written.
    """
    is_path = isinstance(file, (str, os.PathLike))
    if is_path and os.path.isfile(file) and read_seal(file) is not None:
        check_whole(file)
    with unsafe_is_refused(file if is_path else 'the checkpoint'):
        return torch.load(file, map_location, weights_only=True, mmap=mmap)


@contextmanager
def unsafe_is_refused(source: Any) -> Iterator[None]:
    """Say in one line why ``torch.load`` refuses, without its advice to load unsafely.

    Args:
        source: what is read, as in the message.

    Raises:
        UnsafeCheckpointError: in place of what ``torch.load(weights_only=True)`` raises.
    """
    try:
        yield
    except pickle.UnpicklingError as err:
        reason = _reason(str(err))
    except RuntimeError as err:
        if 'weights_only' not in str(err):
            raise
        reason = 'it is in the format of TorchScript or a tar file'
    else:
        return
    raise UnsafeCheckpointError(
        f'{source} is refused: a checkpoint may hold tensors and plain values, and reading '
        f'this file would take code, or it is damaged: {reason}'
    ) from None


def _reason(message: str) -> str:
    """What is wrong with a file, out of torch's message."""
    found = re.search(r'GLOBAL (\S+)', message)
    if found:
        return f'it asks for {found[1]}'
    message = message.partition('\n\nCheck the documentation')[0]
    return message.rpartition('\n\n')[2]


def read_checkpoint(path: Path) -> dict:
    """Read a file of tensors and plain values; whatever holds code is refused.

    Args:
        path: of torch's format or, by its suffix, safetensors.

    Raises:
        UnsafeCheckpointError: for a file that holds code, naming it.
        ValueError: for a file that holds no dict, naming what it holds.
    """
    if Path(path).suffix == '.safetensors':
        return _safetensors().load_file(path)
    with _allowed(argparse.Namespace):  # official code saves its command line as well
        checkpoint = load_weights_only(path)
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
