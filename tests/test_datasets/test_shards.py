"""Videos in tar archives."""

import copy
import gc
import io
import multiprocessing
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import av
import fsspec
import numpy as np
import pytest

import videomac_mm.datasets.storage  # noqa: F401  for memory://
from videomac_mm.datasets import shards
from videomac_mm.datasets.readers import UnusableVideoError
from videomac_mm.datasets.readers.pyav import part_url
from videomac_mm.datasets.shards import OpenShards, ShardMember, index_shard

EXTENSIONS = '.mp4', '.mkv'
FORK = multiprocessing.get_context('fork')


def content_of(number: int) -> bytes:
    """Bytes that do not repeat, of a length that is no multiple of a tar block's."""
    return np.random.default_rng(number).bytes(700 + number)


def write_tar(path: Path, names: list[str], format: int = tarfile.GNU_FORMAT) -> Path:
    """An archive of files, with the content that belongs to their number."""
    with tarfile.open(path, 'w', format=format, encoding='utf-8') as archive:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = len(content_of(number))
            archive.addfile(info, io.BytesIO(content_of(number)))
    return path


def content(path: Path | str, member: ShardMember) -> bytes:
    return Path(path).read_bytes()[member.offset : member.offset + member.size]


# --------------------------------------------------------------------------- index


@pytest.mark.parametrize('format', [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_index__finds_videos_in_the_order_of_the_archive(tmp_path, format):
    long = '/'.join(['folder' * 15] * 4) + '/long.mp4'
    names = ['z.mp4', 'z.json', 'a.MKV', long, 'ü日本.mp4', 'd/._junk.mp4', 'z.mp4']
    path = write_tar(tmp_path / 'a.tar', names, format)
    index = index_shard(str(path), EXTENSIONS)
    assert index.path == str(path)
    assert index.whole
    assert [member.name for member in index.members] == [names[i] for i in (0, 2, 3, 4, 6)]
    for number, member in zip((0, 2, 3, 4, 6), index.members):
        assert content(path, member) == content_of(number)


def test_index__reads_a_remote_archive(tmp_path):
    local = write_tar(tmp_path / 'a.tar', ['a.mp4', 'b.mp4'])
    remote = f'memory://{tmp_path.name}.tar'
    fsspec.filesystem('memory').pipe_file(remote, local.read_bytes())
    index = index_shard(remote, EXTENSIONS)
    assert index.path == remote
    assert index.members == index_shard(str(local), EXTENSIONS).members


def test_index__holds_regular_files_alone(tmp_path):
    path = tmp_path / 'a.tar'
    with tarfile.open(path, 'w', format=tarfile.PAX_FORMAT) as archive:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo('no.mp4')
            info.type, info.linkname = kind, 'a.mp4'
            archive.addfile(info)
        sparse = tarfile.TarInfo('sparse.mp4')
        sparse.pax_headers = {'GNU.sparse.map': '0,5', 'GNU.sparse.size': '10'}
        sparse.size = 5
        archive.addfile(sparse, io.BytesIO(b'01234'))
        archive.addfile(tarfile.TarInfo('yes.mp4'))
    index = index_shard(str(path), EXTENSIONS)
    assert [member.name for member in index.members] == ['yes.mp4']
    assert index.whole


def test_index__does_not_read_the_files(tmp_path):
    path, size = tmp_path / 'a.tar', 2**40  # a hole, which no disk holds
    with path.open('wb') as file:
        for name, length in (('big.mp4', size), ('small.mp4', 0)):
            info = tarfile.TarInfo(name)
            info.size = length
            file.write(info.tobuf(tarfile.GNU_FORMAT))
            file.seek(length, os.SEEK_CUR)
        file.write(bytes(2 * tarfile.BLOCKSIZE))
    index = index_shard(str(path), EXTENSIONS)
    assert index.whole
    assert index.members == (('big.mp4', 512, size), ('small.mp4', 1024 + size, 0))


def test_index__is_that_of_the_whole_files_wherever_the_archive_is_cut(tmp_path):
    path = write_tar(tmp_path / 'a.tar', ['a.mp4', 'b.mp4', 'ü' * 120 + '.mp4'])
    data, members = path.read_bytes(), index_shard(str(path), EXTENSIONS).members
    end = members[-1].offset + 1024  # of the last file's blocks
    cuts = {0, 100, 511, end - 1, end, end + 511}
    for edge in (0, 512, *(m.offset for m in members), *(m.offset + m.size for m in members)):
        cuts |= {edge + shift for shift in (-513, -512, -1, 0, 1, 512)}
    for cut in sorted(cut for cut in cuts if 0 <= cut < end + 512):
        path.write_bytes(data[:cut])
        index = index_shard(str(path), EXTENSIONS)
        assert index.members == tuple(m for m in members if m.offset + m.size <= cut), cut
        assert not index.whole, cut
    path.write_bytes(data[: end + 512])
    assert index_shard(str(path), EXTENSIONS).whole


def test_index__ends_at_a_damaged_header(tmp_path):
    path = write_tar(tmp_path / 'a.tar', ['a.mp4', 'b.mp4', 'c.mp4'])
    data, members = bytearray(path.read_bytes()), index_shard(str(path), EXTENSIONS).members
    data[members[1].offset - 500] ^= 1  # in the second one's name
    path.write_bytes(data)
    index = index_shard(str(path), EXTENSIONS)
    assert index.members == members[:1]
    assert not index.whole


@pytest.mark.parametrize('before', [[], ['a.mp4']])
def test_index__ends_at_a_damaged_sparse_file(tmp_path, before):
    path = write_tar(tmp_path / 'a.tar', before, tarfile.PAX_FORMAT)
    with tarfile.open(path, 'a', format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo('b.mp4')
        info.pax_headers = {'GNU.sparse.map': '0,x', 'GNU.sparse.size': '10'}
        archive.addfile(info)
    index = index_shard(str(path), EXTENSIONS)
    assert [member.name for member in index.members] == before
    assert not index.whole


def test_index__of_an_empty_archive_is_whole(tmp_path):
    index = index_shard(str(write_tar(tmp_path / 'a.tar', [])), EXTENSIONS)
    assert index.members == ()
    assert index.whole


def test_index__makes_names_that_can_be_printed(tmp_path):
    path = tmp_path / 'a.tar'
    with tarfile.open(path, 'w', format=tarfile.GNU_FORMAT, encoding='latin-1') as archive:
        archive.addfile(tarfile.TarInfo('é.mp4'))
    (member,) = index_shard(str(path), EXTENSIONS).members
    assert member.name == '\\xe9.mp4'


@pytest.mark.parametrize('mode, kind', [('gz', 'gzip'), ('bz2', 'bzip2'), ('xz', 'xz')])
def test_index__refuses_what_is_compressed(tmp_path, mode, kind):
    path = tmp_path / 'a.tar'
    with tarfile.open(path, f'w:{mode}') as archive:
        archive.addfile(tarfile.TarInfo('a.mp4'))
    with pytest.raises(ValueError, match=f'uncompressed tar archive, {path} is one of {kind}'):
        index_shard(str(path), EXTENSIONS)


def test_index__refuses_other_files(tmp_path):
    path = tmp_path / 'a.tar'
    path.write_bytes(content_of(0))
    with pytest.raises(ValueError, match=f'must be a tar archive, {path} is none'):
        index_shard(str(path), EXTENSIONS)
    with pytest.raises(FileNotFoundError):
        index_shard(str(tmp_path / 'missing.tar'), EXTENSIONS)


# ------------------------------------------------------------------------- in place


def frames_of(url: str) -> list[np.ndarray]:
    with av.open(url) as container:
        return [frame.to_ndarray(format='rgb24') for frame in container.decode(video=0)]


@pytest.mark.parametrize('extension', EXTENSIONS)
def test_part_url__gives_the_frames_of_the_file(tmp_path, write_video, extension):
    files = [write_video(tmp_path / f'{n}{extension}', num_frames=n) for n in (3, 7, 5)]
    path = tmp_path / 'a.tar'
    with tarfile.open(path, 'w') as archive:
        for file in files:
            archive.add(file, file.name)
    for file, member in zip(files, index_shard(str(path), EXTENSIONS).members):
        expected = frames_of(str(file))
        got = frames_of(part_url(str(path), member.offset, member.size))
        assert len(got) == len(expected) == int(file.stem)
        assert all(np.array_equal(a, b) for a, b in zip(got, expected))


@pytest.mark.parametrize(
    'name',
    [
        *('with space.tar', 'a,b,,:c.tar', 'a:b.tar', 'http:x.tar', 'file:x.tar'),
        *('a#b?c=1&d.tar', '%d%05d.tar', '日本ü.tar', 'subfile,,:x.tar', 'a\\\'"|*.tar'),
        os.fsdecode(b'\xe9.tar'),
    ],
    ids=ascii,
)
def test_part_url__knows_any_path(tmp_path, write_video, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    video = write_video(tmp_path / 'a.mp4', num_frames=4).read_bytes()
    Path(name).write_bytes(bytes(1000) + video + bytes(1000))
    for path in (name, str(tmp_path / name)):
        assert len(frames_of(part_url(path, 1000, len(video)))) == 4


def test_part_url__an_empty_part_is_no_video():
    with pytest.raises(UnusableVideoError, match='a video of 0 bytes at 5 of a.tar'):
        part_url('a.tar', 5, 0)


# --------------------------------------------------------------------- local paths


@pytest.fixture
def remote(tmp_path) -> list[str]:
    """Three archives in memory, each with its number as content."""
    paths = [f'memory://{tmp_path.name}/{number}.tar' for number in range(3)]
    for number, path in enumerate(paths):
        fsspec.filesystem('memory').pipe_file(path, b'%d' % number)
    return paths


def in_fork(target) -> object:
    """What a function gives in a forked process."""
    queue = FORK.SimpleQueue()
    process = FORK.Process(target=lambda: queue.put(target()))
    process.start()
    process.join(30)
    assert process.exitcode == 0
    return queue.get()


def test_open_shards__keep_those_asked_for_last(remote):
    opened = OpenShards(max_open=2)
    first, second = (opened.local_path(path) for path in remote[:2])
    assert (Path(first).read_bytes(), Path(second).read_bytes()) == (b'0', b'1')
    assert opened.local_path(remote[0]) == first
    third = opened.local_path(remote[2])
    assert [os.path.exists(path) for path in (first, second, third)] == [True, False, True]
    del opened
    assert not os.path.exists(first)
    assert not os.path.exists(third)


def test_open_shards__do_not_count_local_files(remote, tmp_path):
    opened = OpenShards(max_open=1)
    first = opened.local_path(remote[0])
    local = tmp_path / 'a.tar'
    local.touch()
    assert opened.local_path(str(local)) == str(local)
    assert opened.local_path(remote[0]) == first
    assert os.path.exists(first)
    del opened
    assert local.exists()


def test_open_shards__survive_a_failed_download_and_a_cleared_folder(remote):
    opened = OpenShards(max_open=1)
    with pytest.raises(FileNotFoundError):
        opened.local_path(remote[0] + '.missing')
    os.remove(opened.local_path(remote[0]))
    assert Path(opened.local_path(remote[1])).read_bytes() == b'1'


def test_open_shards__start_empty_in_copies(remote):
    opened = OpenShards(max_open=3, backend_args=dict(backend='fsspec'))
    path = opened.local_path(remote[0])
    for copied in (pickle.loads(pickle.dumps(opened)), copy.copy(opened), copy.deepcopy(opened)):
        assert (copied.max_open, copied.backend_args) == (3, dict(backend='fsspec'))
        assert copied.local_path(remote[0]) != path
        del copied
        assert os.path.exists(path)


@pytest.mark.parametrize('backend_args', [None, dict(backend='http')])
def test_open_shards__of_a_forked_process_are_its_own(tmp_path, remote, backend_args):
    if backend_args:  # whose context removes the file in whatever process it ends
        file = tmp_path / 'a.tar'
        file.write_bytes(b'0')
        remote = [f'file://{file}']
    held = [OpenShards(backend_args=backend_args)]
    path = held[0].local_path(remote[0])

    def work() -> str:
        own = held[0].local_path(remote[0])
        assert Path(own).read_bytes() == b'0'
        return own

    def let_go() -> None:
        held.clear()
        gc.collect()

    own = in_fork(work)
    assert own != path
    assert not os.path.exists(own)  # gone with its process
    in_fork(let_go)
    assert os.path.exists(path)
    assert held[0].local_path(remote[0]) == path


def test_open_shards__leave_nothing_when_the_interpreter_ends(tmp_path):
    (tmp_path / 'a.tar').touch()
    script = (
        'import importlib.util, os, sys\n'
        f"spec = importlib.util.spec_from_file_location('shards', {shards.__file__!r})\n"
        "sys.modules['shards'] = module = importlib.util.module_from_spec(spec)\n"
        'spec.loader.exec_module(module)\n'
        "opened = module.OpenShards(backend_args=dict(backend='http'))\n"
        f"print(opened.local_path('file://{tmp_path}/a.tar'))\n"
        'print(len(os.listdir(sys.argv[1])))'
    )
    downloads = tmp_path / 'downloads'
    downloads.mkdir()
    out = subprocess.run(
        [sys.executable, '-c', script, downloads],
        env={**os.environ, 'TMPDIR': str(downloads)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    path, count = out.split()
    assert Path(path).parent == downloads
    assert count == '1'
    assert not os.listdir(downloads)


def test_open_shards__need_room_for_one():
    with pytest.raises(ValueError, match='max_open must be at least 1, got 0'):
        OpenShards(max_open=0)
