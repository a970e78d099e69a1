"""Remote storage through fsspec, wherever mmengine's file backends are used."""

import functools
import importlib.util
import os
import posixpath
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mmengine.fileio.backends import (
    BaseStorageBackend,
    LocalBackend,
    PetrelBackend,
    prefix_to_backends,
    register_backend,
)

PREFIXES = ('gs', 'gcs', 's3', 'memory', 'abfs', 'az', 'hf', 'webhdfs', 'ftp', 'sftp')
DRIVERS = {
    **dict(s3='s3fs', gs='gcsfs', gcs='gcsfs', abfs='adlfs', az='adlfs', hf='huggingface_hub'),
    **dict(webhdfs='requests', sftp='paramiko'),
}


class FsspecBackend(BaseStorageBackend):
    """Files of any storage for which there is a driver of fsspec, to be read.

    mmengine takes it for paths that begin with ``gs://``, ``hf://`` and the like (``PREFIXES``),
    ``s3://`` among them where there is no petrel_client. ``backend_args=dict(backend='fsspec')``
    takes it for every path; one without a protocol is a local one. mmengine writes
    ``backend_args`` as JSON, so options must be what JSON knows.

    fsspec and the driver are imported when the first file is asked for. Each process connects on
    its own, so that a copy may be pickled, and a process forked. A file or a folder that cannot
    be asked for (no permission, no connection) raises: it is not taken for one that is missing.

    Args:
        **storage_options: of the driver, such as ``anon=True`` of s3fs. They come before those
            that a path has in it (user, host, port).

    Raises:
        ImportError: at the first use, if fsspec or the driver is missing; says what to install.
        FileNotFoundError: if there is no such file.
        Exception: other errors are the driver's own, mostly OSError.
    """

    def __init__(self, **storage_options: Any) -> None:
        self.storage_options = storage_options
        # Those of a parent stay, unused: their end would close connections that are the parent's.
        self._systems: dict[tuple[int, str, str], Any] = {}

    def __reduce__(self) -> tuple:
        return functools.partial(type(self), **self.storage_options), ()

    def get(self, filepath: str | os.PathLike) -> bytes:
        """The content of a file."""
        system, path = self._locate(filepath)
        return system.cat_file(path)

    def get_text(self, filepath: str | os.PathLike, encoding: str = 'utf-8') -> str:
        """The content of a file as text, its line ends as they are."""
        return self.get(filepath).decode(encoding)

    def exists(self, filepath: str | os.PathLike) -> bool:
        """Whether there is such a file or folder."""
        return self._type(filepath) is not None

    def isdir(self, filepath: str | os.PathLike) -> bool:
        """Whether there is such a folder."""
        return self._type(filepath) == 'directory'

    def isfile(self, filepath: str | os.PathLike) -> bool:
        """Whether there is such a file."""
        return self._type(filepath) == 'file'

    def join_path(self, filepath: str | os.PathLike, *filepaths: str | os.PathLike) -> str:
        """A path below another one; what is joined is relative, whether it starts with / or not."""
        names = (os.fspath(name).lstrip('/') for name in filepaths)
        return posixpath.join(os.fspath(filepath), *names)

    @contextmanager
    def get_local_path(self, filepath: str | os.PathLike) -> Iterator[str]:
        """A local file with the content of a file, while the context lasts.

        It is a temporary one with the same suffix, in the folder that TMPDIR names. A local file
        is given itself.
        """
        system, path = self._locate(filepath)
        if _is_local(system):
            yield path
            return
        handle, local = tempfile.mkstemp(suffix=posixpath.splitext(path)[1])
        os.close(handle)
        owner = os.getpid()
        try:
            system.get_file(path, local)
            yield local
        finally:
            if os.getpid() == owner:  # a process forked meanwhile leaves the file
                os.remove(local)

    def list_dir_or_file(
        self,
        dir_path: str | os.PathLike,
        list_dir: bool = True,
        list_file: bool = True,
        suffix: str | tuple[str, ...] | None = None,
        recursive: bool = False,
    ) -> Iterator[str]:
        """Names in a folder, relative to it, as ``LocalBackend`` gives them.

        Files whose name starts with '.' are left out; folders are not, and neither are the files
        in them.

        Args:
            dir_path: the folder.
            list_dir: whether to list folders. Defaults to True.
            list_file: whether to list files. Defaults to True.
            suffix: what the names of the files must end in; with ``list_dir=False`` only.
                Defaults to None: all files.
            recursive: whether to list what is in folders of the folder. Defaults to False.

        Returns:
            Names in any order, with '/' between their parts.

        Raises:
            TypeError: if ``suffix`` is neither a string nor a tuple, or comes with ``list_dir``.
            FileNotFoundError: if there is no such folder.
            NotADirectoryError: if it is a file.
        """
        if list_dir and suffix is not None:
            raise TypeError(f'suffix must be None with list_dir=True, got {suffix!r}')
        if not isinstance(suffix, (str, tuple, type(None))):
            raise TypeError(f'suffix must be a string or a tuple of strings, got {suffix!r}')
        system, root = self._locate(dir_path)
        if _is_local(system):
            yield from LocalBackend().list_dir_or_file(root, list_dir, list_file, suffix, recursive)
            return
        kind = self._type(dir_path)
        if kind != 'directory':
            error = FileNotFoundError if kind is None else NotADirectoryError
            raise error(f'no folder to list: {dir_path}')
        for name, is_dir in _entries(system, root, recursive).items():
            if is_dir:
                if list_dir:
                    yield name
            elif list_file and not posixpath.basename(name).startswith('.'):
                if suffix is None or name.endswith(suffix):
                    yield name

    def _type(self, filepath: str | os.PathLike) -> str | None:
        """What fsspec calls it (``'file'``, ``'directory'``, …); None if there is nothing."""
        system, path = self._locate(filepath)
        try:
            return system.info(path)['type']
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _locate(self, filepath: str | os.PathLike) -> tuple[Any, str]:
        """This process's filesystem of fsspec for a path, and what the path is there."""
        url = os.fspath(filepath)
        protocol = url.partition('://')[0] if '://' in url else 'file'
        kind = _filesystem_class(protocol)
        options = {**kind._get_kwargs_from_urls(url), **self.storage_options}
        key = os.getpid(), protocol, repr(options)
        if key not in self._systems:
            # An instance of fsspec's cache may be that of the process from which this was forked.
            self._systems[key] = kind(skip_instance_cache=True, **options)
        return self._systems[key], kind._strip_protocol(url)


def _filesystem_class(protocol: str) -> type:
    try:
        from fsspec import get_filesystem_class
    except ImportError as err:
        raise ImportError(f'{protocol}:// needs fsspec: pip install fsspec') from err
    try:
        return get_filesystem_class(protocol)
    except ImportError as err:
        driver = DRIVERS.get(protocol)
        hint = f'{driver}: pip install {driver}' if driver else f'a driver of fsspec: {err}'
        raise ImportError(f'{protocol}:// needs {hint}') from err


def _is_local(system: Any) -> bool:
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(system, LocalFileSystem)


def _entries(system: Any, root: str, recursive: bool) -> dict[str, bool]:
    """Names below a folder, relative to it, and whether each is a folder itself."""
    if not recursive:
        infos = system.ls(root, detail=True)
    elif _lists_at_once(system):
        infos = system.find(root, withdirs=True, detail=True).values()
    else:
        infos = _below(system, root)
    entries = {}
    for info in infos:
        name = info['name'].removeprefix(root).strip('/')
        if name:  # object stores list the folder itself, too
            # An empty object whose name ends in '/' stands for a folder.
            entries[name] = info['type'] == 'directory' or info['name'].endswith('/')
    return entries


def _lists_at_once(system: Any) -> bool:
    """Whether the driver lists all levels on its own, as object stores do in few requests.

    Where it does not, fsspec passes over folders that it fails to list.
    """
    from fsspec.asyn import AbstractFileSystem, AsyncFileSystem

    find = type(system)._find if system.async_impl else type(system).find
    return find not in (AbstractFileSystem.find, AsyncFileSystem._find)


def _below(system: Any, folder: str) -> Iterator[dict]:
    for info in system.ls(folder, detail=True):
        yield info
        if info['type'] == 'directory' and info['name'].rstrip('/') != folder.rstrip('/'):
            yield from _below(system, info['name'])


def free_prefixes(taken: Mapping[str, type]) -> list[str]:
    """Those of ``PREFIXES`` that no backend has, or only one that cannot work.

    Args:
        taken: backends of mmengine by prefix.
    """
    useless = () if importlib.util.find_spec('petrel_client') else (PetrelBackend,)
    return [prefix for prefix in PREFIXES if taken.get(prefix) in (None, *useless)]


register_backend('fsspec', FsspecBackend, force=True, prefixes=free_prefixes(prefix_to_backends))
