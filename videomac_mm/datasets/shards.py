"""Videos in tar archives (shards), read in place."""

import contextlib
import os
import tarfile
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.util import Finalize
from typing import NamedTuple

from mmengine import fileio

COMPRESSED = {
    b'\x1f\x8b': 'gzip',
    b'BZh': 'bzip2',
    b'\xfd7zXZ\0': 'xz',
    b'\x28\xb5\x2f\xfd': 'zstd',
}
DAMAGE = tarfile.ReadError, ValueError  # what tarfile raises for it


class ShardMember(NamedTuple):
    """A file in an archive.

    Attributes:
        name: as the archive has it, with '/' between its parts. Bytes that are not UTF-8 stand
            as ``\\xe9``.
        offset: of its content, in bytes from the start of the archive.
        size: of its content, in bytes.
    """

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class ShardIndex:
    """What is in an archive.

    Attributes:
        path: of the archive, as it was given.
        members: those that are wanted and whole, in the order of the archive.
        whole: whether the archive could be followed to its end. Otherwise it is cut short or
            damaged, and ``members`` are those before.
    """

    path: str
    members: tuple[ShardMember, ...]
    whole: bool


def index_shard(
    path: str, extensions: Sequence[str], backend_args: dict | None = None
) -> ShardIndex:
    """List the files of an uncompressed tar archive, by its headers alone.

    Regular files are listed. Links, sparse files and files whose name starts with '.' are left
    out. A name that occurs twice is listed twice. A remote archive is downloaded for it.

    Args:
        path: of the archive.
        extensions: what the names must end in, in lower case; names in upper case match, too.
        backend_args: of the mmengine file backend. Defaults to None (by the path).

    Raises:
        ValueError: if the archive is compressed, or something else.
        OSError: if it cannot be read.
    """
    with fileio.get_local_path(path, backend_args=backend_args) as local, open(local, 'rb') as file:
        num_bytes = os.fstat(file.fileno()).st_size
        try:
            # The names do not depend on the locale, and can be printed.
            archive = tarfile.open(
                fileobj=file, mode='r:', encoding='utf-8', errors='backslashreplace'
            )
        except DAMAGE as err:
            file.seek(0)
            _check_cut_short(path, file.read(tarfile.BLOCKSIZE), str(err))
            return ShardIndex(path, (), whole=False)
        members, whole = [], False
        with contextlib.suppress(*DAMAGE):
            for member in archive:
                if not member.isreg() or member.issparse():
                    continue
                if not 0 <= member.size <= num_bytes - member.offset_data:
                    break
                hidden = member.name.rpartition('/')[2].startswith('.')
                if not hidden and member.name.lower().endswith(tuple(extensions)):
                    members.append(ShardMember(member.name, member.offset_data, member.size))
            else:
                # tarfile ends at a damaged header and at the end of the file as if all were well.
                file.seek(archive.offset)
                whole = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    return ShardIndex(path, tuple(members), whole)


def _check_cut_short(path: str, head: bytes, reason: str) -> None:
    """Raise ValueError unless a file of which tarfile reads nothing may be the start of a tar."""
    kind = next((kind for magic, kind in COMPRESSED.items() if head.startswith(magic)), None)
    if kind is not None:
        raise ValueError(f'a shard must be an uncompressed tar archive, {path} is one of {kind}')
    if len(head) == tarfile.BLOCKSIZE and head[257:262] != b'ustar':
        raise ValueError(f'a shard must be a tar archive, {path} is none: {reason}')


# Open downloads of this process, and those of the process from which it was forked. The latter are
# never let go of: the end of a file backend's context would remove the parent's file.
_DOWNLOADS: set[ExitStack] = set()


class OpenShards:
    """Local paths of the archives that were asked for last.

    A remote one is downloaded when it is asked for, and kept until ``max_open`` others were, this
    object is gone, or the process ends. A local one is its own path. Copies, pickled or not, and
    processes forked start without any. A process that is killed leaves its files.

    Args:
        max_open: number of downloads that are kept, per process. Defaults to 2.
        backend_args: of the mmengine file backend. Defaults to None (by the path).

    Raises:
        ValueError: if ``max_open`` is less than 1.
    """

    def __init__(self, max_open: int = 2, backend_args: dict | None = None) -> None:
        if max_open < 1:
            raise ValueError(f'max_open must be at least 1, got {max_open}')
        self.max_open = max_open
        self.backend_args = backend_args
        self._start()

    def _start(self) -> None:
        self._owner = os.getpid()
        self._open: OrderedDict[str, tuple[str, ExitStack]] = OrderedDict()
        # Unlike weakref.finalize, it acts at the end of a data loader's worker, too.
        Finalize(self, _close_all, (self._open,), exitpriority=0)

    def __reduce__(self) -> tuple:
        return type(self), (self.max_open, self.backend_args)

    def local_path(self, shard: str) -> str:
        """The path at which an archive can be read, until ``max_open`` others are asked for.

        Raises:
            OSError: if the archive cannot be downloaded.
        """
        backend = fileio.get_file_backend(
            shard, backend_args=self.backend_args, enable_singleton=True
        )
        if isinstance(backend, fileio.LocalBackend):
            return shard
        if self._owner != os.getpid():
            self._start()
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard][0]
        while len(self._open) >= self.max_open:
            _close(self._open.popitem(last=False)[1][1])
        download = ExitStack()
        path = download.enter_context(fileio.get_local_path(shard, backend_args=self.backend_args))
        _DOWNLOADS.add(download)
        self._open[shard] = str(path), download
        return self._open[shard][0]


def _close(download: ExitStack) -> None:
    _DOWNLOADS.discard(download)
    with contextlib.suppress(FileNotFoundError):  # somebody cleared the temporary folder
        download.close()


def _close_all(downloads: OrderedDict[str, tuple[str, ExitStack]]) -> None:
    while downloads:
        _close(downloads.popitem()[1][1])
