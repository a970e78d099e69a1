"""Checkpoints that are either whole or absent, and that show whether they are whole.

A checkpoint is written aside in the same folder, flushed to disk, and renamed. It ends in a seal:
the time at which it was saved, and a digest of all bytes before the digest. The seal stands in the
comment of the zip archive that ``torch.save`` writes, so that every ``torch.load`` reads the file
as before.
"""

import hashlib
import os
import re
import struct
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

_END = b'PK\x05\x06'  # begins the last record of a zip archive, of 22 bytes and the comment
_SEAL = re.compile(rb'videomac_mm saved=(\d{20}) sha256=([0-9a-f]{64})')
_SEAL_SIZE = len(b'videomac_mm saved= sha256=') + 20 + 64


class DamagedCheckpointError(ValueError):
    """A checkpoint is not as it was written."""


class Seal(NamedTuple):
    """What a checkpoint says of itself: when it was saved (ns since 1970), and its digest."""

    saved_at: int
    digest: str


def save_sealed(checkpoint: Any, path: str | os.PathLike) -> None:
    """Write a checkpoint so that ``path`` names either the new file, whole, or what it did before.

    Args:
        checkpoint: what ``torch.save`` takes.
        path: of a local file; its folder is created.

    Raises:
        OSError: if the disk is full, or the folder cannot be written; the file written aside is
            removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f'.{path.name}.part')
    try:
        with open(aside, 'w+b') as file:
            torch.save(checkpoint, file)
            _seal(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException as err:
        with suppress(OSError):
            aside.unlink()
        # torch's writer may say that a position is wrong, after the file said why.
        cause = err if isinstance(err, OSError) else err.__context__
        if isinstance(cause, OSError) and cause.filename is None:
            raise OSError(cause.errno, cause.strerror, str(path)) from err
        raise
    sync_folder(path.parent)


def write_text(text: str, path: str | os.PathLike) -> None:
    """Write a small file so that ``path`` names either the new text or the old one."""
    path = Path(path)
    aside = path.with_name(f'.{path.name}.part')
    with open(aside, 'w', encoding='utf-8') as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    sync_folder(path.parent)


def sync_folder(folder: str | os.PathLike) -> None:
    """Flush the names in a folder to disk, where the system can."""
    with suppress(OSError):  # not on Windows, nor on all network file systems
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def read_seal(path: str | os.PathLike) -> Seal | None:
    """The seal of a file, unchecked; None if it has none."""
    with open(path, 'rb') as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(file.tell() - _SEAL_SIZE, 0))
        found = _SEAL.fullmatch(file.read())
    return found and Seal(int(found[1]), found[2].decode())


def check_whole(path: str | os.PathLike) -> None:
    """Find out whether a checkpoint is as it was written, without unpickling any of it.

    A sealed file is compared with its digest. Of another zip archive, as stock ``torch.save``
    writes it, the checksums of the parts are compared. Other formats are refused.

    Raises:
        DamagedCheckpointError: naming the file and what is wrong with it.
        OSError: if it cannot be read.
    """
    seal = read_seal(path)
    problem = _compare_digest(path, seal) if seal else _compare_parts(path)
    if problem:
        raise DamagedCheckpointError(f'{path} {problem}')


def _seal(file: Any) -> None:
    """Add the seal to an archive that was just written, open for reading and writing."""
    size = file.seek(-22, os.SEEK_END)
    if file.read(4) != _END:
        raise RuntimeError('torch.save did not end its archive as expected; it cannot be sealed')
    file.seek(-2, os.SEEK_END)
    file.write(struct.pack('<H', _SEAL_SIZE))
    file.write(b'videomac_mm saved=%020d sha256=' % time.time_ns())
    file.seek(0)
    digest = _digest(file, size + 22 + _SEAL_SIZE - 64)
    file.seek(0, os.SEEK_END)
    file.write(digest.encode())


def _digest(file: Any, num_bytes: int) -> str:
    """SHA-256 of the next bytes of a file."""
    digest = hashlib.sha256()
    while num_bytes and (part := file.read(min(num_bytes, 1 << 22))):
        digest.update(part)
        num_bytes -= len(part)
    return digest.hexdigest()


def _compare_digest(path: str | os.PathLike, seal: Seal) -> str | None:
    with open(path, 'rb') as file:
        digest = _digest(file, os.fstat(file.fileno()).st_size - 64)
    if digest != seal.digest:
        return f'has the digest {digest[:12]}… and was written with {seal.digest[:12]}…'
    return None


def _compare_parts(path: str | os.PathLike) -> str | None:
    size = os.path.getsize(path)
    if size == 0:
        return 'is empty'
    with open(path, 'rb') as file:
        file.seek(max(size - 22 - 0xFFFF, 0))
        tail = file.read()
    end = tail.rfind(_END)
    if end < 0:
        return f'is no whole archive of torch.save: its {size} bytes have no last record'
    rest = tail[end + 20 :]
    if rest != b'\0\0':  # torch.save writes no comment, and whole seals are known by their form
        return f'ends in {len(rest)} bytes that are no whole seal'
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except Exception as err:  # damage shows in many ways
        return f'is no whole archive of torch.save: {type(err).__name__}: {err}'
    return f'has a damaged part: {broken}' if broken else None
