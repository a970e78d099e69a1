"""Checkpoints are whole or absent, and damage anywhere in them shows."""

import os
import random
import shutil
import struct

import mmengine.runner
import pytest
import torch

from videomac_mm.weights.files import load_weights_only, read_checkpoint
from videomac_mm.weights.seal import (
    DamagedCheckpointError,
    check_whole,
    read_seal,
    save_sealed,
    write_text,
)

pytestmark = pytest.mark.reliability


@pytest.fixture(scope='module')
def sealed(tmp_path_factory):
    path = tmp_path_factory.mktemp('sealed') / 'iter_1.pth'
    save_sealed(dict(weights=torch.arange(300.0), meta=dict(iter=1)), path)
    return path


def test_save__reads_as_any_other_file_of_torch(sealed):
    for options in (dict(), dict(mmap=True), dict(weights_only=True)):
        found = torch.load(sealed, **options)
        assert torch.equal(found['weights'], torch.arange(300.0))
    check_whole(sealed)
    assert [path.name for path in sealed.parent.iterdir()] == ['iter_1.pth']


def test_save__tells_the_time(tmp_path):
    save_sealed({}, tmp_path / 'a.pth')
    save_sealed({}, tmp_path / 'b.pth')
    assert read_seal(tmp_path / 'a.pth').saved_at < read_seal(tmp_path / 'b.pth').saved_at


def test_check__finds_a_file_cut_short_anywhere(sealed, tmp_path):
    whole = sealed.read_bytes()
    cut = tmp_path / 'cut.pth'
    last = range(len(whole) - 200, len(whole))
    for length in [*range(0, len(whole) - 200, len(whole) // 300), *last]:
        cut.write_bytes(whole[:length])
        with pytest.raises(DamagedCheckpointError, match=r'cut\.pth'):
            check_whole(cut)


def test_check__finds_a_flipped_bit_anywhere(sealed, tmp_path):
    whole = sealed.read_bytes()
    flipped = tmp_path / 'flipped.pth'
    draw = random.Random(0)
    last = range(len(whole) - 200, len(whole))
    for place in [*draw.sample(range(len(whole) - 200), 300), *last]:
        data = bytearray(whole)
        data[place] ^= 1 << draw.randrange(8)
        flipped.write_bytes(data)
        with pytest.raises(DamagedCheckpointError):
            check_whole(flipped)


def test_load__refuses_a_damaged_file_wherever_it_is_read(sealed, tmp_path):
    data = bytearray(sealed.read_bytes())
    data[data.index(struct.pack('<f', 250.0))] ^= 1
    path = tmp_path / 'iter_1.pth'
    path.write_bytes(data)
    torch.load(path)  # torch itself does not notice
    for load in (load_weights_only, read_checkpoint, mmengine.runner.load_checkpoint):
        arguments = (torch.nn.Linear(1, 1),) if load is mmengine.runner.load_checkpoint else ()
        with pytest.raises(DamagedCheckpointError, match=r'iter_1\.pth has the digest'):
            load(*arguments, str(path))


def test_check__takes_files_of_stock_torch_that_are_whole(tmp_path):
    path = tmp_path / 'stock.pth'
    torch.save(dict(weights=torch.arange(300.0)), path)
    check_whole(path)
    data = bytearray(path.read_bytes())
    data[data.index(struct.pack('<f', 250.0))] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedCheckpointError, match='damaged part'):
        check_whole(path)


@pytest.mark.parametrize('content', [b'', b'PK', b'text' * 100, b'\x80\x02}q\x00.'])
def test_check__refuses_what_is_no_archive(tmp_path, content):
    path = tmp_path / 'other.pth'
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpointError):
        check_whole(path)


@pytest.mark.parametrize('name', ['fsync', 'replace'])
def test_save__leaves_the_old_file_where_it_fails(tmp_path, monkeypatch, name):
    path = tmp_path / 'iter_1.pth'
    save_sealed(dict(iter=1), path)

    def fail(*args):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, name, fail)
    with pytest.raises(OSError, match='No space left on device'):
        save_sealed(dict(iter=2), path)
    monkeypatch.undo()
    check_whole(path)
    assert torch.load(path) == dict(iter=1)
    assert [path.name for path in tmp_path.iterdir()] == ['iter_1.pth']


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full')
def test_save__names_the_file_on_a_full_disk(tmp_path, monkeypatch):
    # Every write to /dev/full fails as on a full disk.
    os.symlink('/dev/full', tmp_path / '.iter_1.pth.part')
    with pytest.raises(OSError, match=r"No space left on device: '.*iter_1\.pth'"):
        save_sealed(dict(weights=torch.arange(3e5)), tmp_path / 'iter_1.pth')
    assert not list(tmp_path.iterdir())


def test_save__makes_the_folder(tmp_path):
    save_sealed({}, tmp_path / 'new' / 'iter_1.pth')
    check_whole(tmp_path / 'new' / 'iter_1.pth')


def test_write_text__replaces_at_once(tmp_path):
    path = tmp_path / 'last_checkpoint'
    write_text('a', path)
    write_text('b', path)
    assert path.read_text() == 'b' and len(list(tmp_path.iterdir())) == 1


def test_seal__survives_a_copy(sealed, tmp_path):
    shutil.copy(sealed, tmp_path / 'copy.pth')
    check_whole(tmp_path / 'copy.pth')
    assert read_seal(tmp_path / 'copy.pth') == read_seal(sealed)
