"""Storage of fsspec, through mmengine's functions."""

import copy
import errno
import multiprocessing
import os
import pickle
import sys
from pathlib import Path

import fsspec
import pytest
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractFileSystem
from mmengine import fileio
from mmengine.fileio.backends import HTTPBackend, PetrelBackend, prefix_to_backends

from videomac_mm.datasets.storage import PREFIXES, FsspecBackend, free_prefixes

FILES = {
    'a.mp4': b'first',
    'b.txt': 'ü\r\n'.encode(),
    '.hidden.mp4': b'',
    'deep/c.mp4': b'c',
    'deep/deeper/d.MP4': b'd',
    '.folder/e.mp4': b'e',
}
FORK = multiprocessing.get_context('fork')


class OneByOne(MemoryFileSystem):
    """Lists one folder at a time, as FTP does; one of them nobody may list."""

    protocol = 'onebyone'
    forbidden = '/nothing'
    find = AbstractFileSystem.find

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix('onebyone://'))

    def ls(self, path: str, detail: bool = True, **kwargs) -> list:
        if path == self.forbidden:
            raise PermissionError(errno.EACCES, 'not for you', path)
        return super().ls(path, detail, **kwargs)


class Looped(AsyncFileSystem):
    """Refuses to work in a process other than that in which it was made."""

    protocol = 'looped'
    made = 0

    def __init__(self, host: str = '', **kwargs) -> None:
        super().__init__(**kwargs)
        self.host = host
        type(self).made += 1

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict:
        return dict(host=path.removeprefix('looped://').partition('/')[0])

    async def _cat_file(self, path: str, start=None, end=None, **kwargs) -> bytes:
        return self.host.encode()


for system in (OneByOne, Looped):
    fsspec.register_implementation(system.protocol, system, clobber=True)


@pytest.fixture
def root(tmp_path: Path) -> str:
    """A folder in memory with ``FILES``."""
    system = fsspec.filesystem('memory')
    folder = f'memory://{tmp_path.name}/data'
    for name, content in FILES.items():
        system.pipe_file(f'{folder}/{name}', content)
    yield folder
    system.rm(f'memory://{tmp_path.name}', recursive=True)


def in_fork(target, *args) -> object:
    """What a function gives in a forked process."""
    queue = FORK.SimpleQueue()
    process = FORK.Process(target=lambda: queue.put(target(*args)))
    process.start()
    process.join(30)
    assert process.exitcode == 0
    return queue.get()


# --------------------------------------------------------------------------- files


def test_files__are_read_by_prefix_and_by_name(root):
    for args in (None, dict(backend='fsspec')):
        assert fileio.get(f'{root}/a.mp4', backend_args=args) == b'first'
        assert fileio.get_text(f'{root}/b.txt', backend_args=args) == 'ü\r\n'
    assert fileio.get_text(f'{root}/b.txt', encoding='latin-1') == 'Ã¼\r\n'
    with pytest.raises(FileNotFoundError):
        fileio.get(f'{root}/missing.mp4')


@pytest.mark.parametrize(
    'name, is_file, is_dir',
    [('a.mp4', True, False), ('deep', False, True), ('missing', False, False)],
)
def test_paths__are_files_or_folders(root, name, is_file, is_dir):
    path = f'{root}/{name}'
    assert fileio.exists(path) == (is_file or is_dir)
    assert fileio.isfile(path) == is_file
    assert fileio.isdir(path) == is_dir


def test_exists__does_not_take_a_refusal_for_absence(monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, 'not for you')

    monkeypatch.setattr(MemoryFileSystem, 'info', refuse)
    for ask in (fileio.exists, fileio.isdir, fileio.isfile):
        with pytest.raises(PermissionError):
            ask('memory://bucket')


@pytest.mark.parametrize(
    'parts, joined',
    [
        (('memory://a', 'b', 'c.mp4'), 'memory://a/b/c.mp4'),
        (('memory://a/', '/b'), 'memory://a/b'),
        (('memory://', 'a'), 'memory://a'),
        (('memory://a', ''), 'memory://a/'),
    ],
)
def test_join_path__keeps_the_protocol(parts, joined):
    assert fileio.join_path(*parts) == joined


def test_local_path__is_a_copy_with_the_suffix_until_the_end(root):
    with fileio.get_local_path(f'{root}/a.mp4') as path:
        assert Path(path).suffix == '.mp4'
        assert Path(path).read_bytes() == b'first'
    assert not os.path.exists(path)


def test_local_path__leaves_no_file_when_the_download_fails(root, tmp_path, monkeypatch):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    with pytest.raises(FileNotFoundError), fileio.get_local_path(f'{root}/missing.mp4'):
        pass
    assert not os.listdir(tmp_path)


def test_local_path__of_a_local_file_is_itself(tmp_path):
    file = tmp_path / 'a.mp4'
    file.write_bytes(b'local')
    for name in (str(file), f'file://{file}'):
        with fileio.get_local_path(name, backend_args=dict(backend='fsspec')) as path:
            assert path == str(file)
        assert file.exists()


def test_local_path__survives_the_end_of_a_forked_process(root):
    held = [FsspecBackend().get_local_path(f'{root}/a.mp4')]
    path = held[0].__enter__()
    in_fork(held.clear)
    assert os.path.exists(path)
    held[0].__exit__(None, None, None)
    assert not os.path.exists(path)


# ------------------------------------------------------------------------- listing


@pytest.mark.parametrize('protocol', ['memory', 'onebyone', 'file'])
@pytest.mark.parametrize(
    'wishes',
    [
        dict(),
        dict(recursive=True),
        dict(list_dir=False, recursive=True),
        dict(list_file=False, recursive=True),
        dict(list_dir=False, suffix='.mp4'),
        dict(list_dir=False, suffix=('.mp4', '.MP4'), recursive=True),
    ],
    ids=str,
)
def test_listing__is_that_of_local_files(root, tmp_path, protocol, wishes):
    local = tmp_path / 'local'
    for name, content in FILES.items():
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        (local / name).write_bytes(content)
    folder = f'file://{local}' if protocol == 'file' else root.replace('memory', protocol)
    expected = sorted(fileio.list_dir_or_file(str(local), **wishes))
    for end in ('', '/'):
        names = fileio.list_dir_or_file(folder + end, **wishes, backend_args=dict(backend='fsspec'))
        assert sorted(names) == expected
    assert expected


def test_listing__takes_an_empty_object_for_the_folder_of_its_name(monkeypatch):
    def find(self, path, **kwargs):
        return {
            name: dict(name=name, type='file', size=0)
            for name in ('/bucket/', '/bucket/deep/', '/bucket/deep/a.mp4')
        }

    monkeypatch.setattr(MemoryFileSystem, 'find', find)
    monkeypatch.setattr(MemoryFileSystem, 'info', lambda *args, **kwargs: dict(type='directory'))
    wishes = dict(recursive=True)
    assert sorted(fileio.list_dir_or_file('memory://bucket', **wishes)) == ['deep', 'deep/a.mp4']
    names = fileio.list_dir_or_file('memory://bucket', list_dir=False, **wishes)
    assert list(names) == ['deep/a.mp4']


def test_listing__says_what_is_no_folder(root):
    with pytest.raises(FileNotFoundError, match='missing'):
        list(fileio.list_dir_or_file(f'{root}/missing', recursive=True))
    with pytest.raises(NotADirectoryError, match='a.mp4'):
        list(fileio.list_dir_or_file(f'{root}/a.mp4'))


def test_listing__does_not_pass_over_a_folder_it_may_not_list(root, monkeypatch):
    folder = root.replace('memory', 'onebyone')
    monkeypatch.setattr(OneByOne, 'forbidden', OneByOne._strip_protocol(f'{folder}/deep'))
    with pytest.raises(PermissionError):
        list(fileio.list_dir_or_file(folder, recursive=True, backend_args=dict(backend='fsspec')))


@pytest.mark.parametrize('wishes', [dict(suffix='.mp4'), dict(list_dir=False, suffix=['.mp4'])])
def test_listing__checks_the_suffix(root, wishes):
    with pytest.raises(TypeError, match=r"suffix must be .*'\.mp4'"):
        list(fileio.list_dir_or_file(root, **wishes))


# ----------------------------------------------------------------------- processes


def test_backend__connects_once_per_host_and_anew_in_a_forked_process():
    backend = FsspecBackend()
    Looped.made = 0
    paths = ['looped://one/a', 'looped://one/b', 'looped://two/a']
    expected = [b'one', b'one', b'two']
    assert [backend.get(path) for path in paths] == expected
    assert Looped.made == 2
    assert in_fork(lambda: [backend.get(path) for path in paths]) == expected
    assert [backend.get(path) for path in paths] == expected
    assert Looped.made == 2


def test_backend__keeps_its_options_in_copies():
    backend = FsspecBackend(host='mine')
    assert backend.get('looped://one/a') == b'mine'  # the options come first
    for copied in (pickle.loads(pickle.dumps(backend)), copy.deepcopy(backend)):
        assert copied.storage_options == dict(host='mine')
        assert copied.get('looped://one/a') == b'mine'


# -------------------------------------------------------------------- registration


def test_prefixes__lead_to_fsspec():
    assert {prefix_to_backends[prefix] for prefix in PREFIXES if prefix != 's3'} == {FsspecBackend}
    assert isinstance(fileio.get_file_backend('gs://bucket/a'), FsspecBackend)


def test_prefixes__of_s3_stay_with_who_can_use_them(tmp_path, monkeypatch):
    others = [prefix for prefix in PREFIXES if prefix != 's3']
    assert free_prefixes(dict(s3=HTTPBackend)) == others
    (tmp_path / 'petrel_client.py').touch()
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        assert free_prefixes(dict(s3=PetrelBackend)) == others
    if 'petrel_client' not in sys.modules:
        assert free_prefixes(dict(s3=PetrelBackend)) == list(PREFIXES)
        assert isinstance(fileio.get_file_backend('s3://bucket/a'), FsspecBackend)


def test_missing_packages__are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 's3fs', None)
    with pytest.raises(ImportError, match='s3:// needs s3fs: pip install s3fs'):
        FsspecBackend().get('s3://bucket/a')
    monkeypatch.setitem(sys.modules, 'fsspec', None)
    with pytest.raises(ImportError, match='memory:// needs fsspec: pip install fsspec'):
        FsspecBackend().get('memory://bucket/a')
