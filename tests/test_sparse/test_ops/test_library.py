import os
import shutil
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from tests.masks import random_mask
from tests.threads import threads_of_torch
from videomac_mm.sparse import PatchConv2d, VisiblePatches
from videomac_mm.sparse.ops import library

needs_kernels = pytest.mark.skipif(
    not library.is_available(), reason='no C++ compiler to build the CPU kernels with'
)


@pytest.fixture
def compile_again(monkeypatch, tmp_path):
    """As in a fresh process with an empty cache."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    library._library.cache_clear()
    yield tmp_path
    library._library.cache_clear()


@pytest.fixture
def fast_flags(monkeypatch):
    """Flags that make compiling quick."""
    monkeypatch.setenv('VIDEOMAC_MM_CXXFLAGS', '-O0 -march=x86-64' if is_x86() else '-O0')


def is_x86() -> bool:
    return os.uname().machine == 'x86_64'


def run_layer() -> torch.Tensor:
    patches = VisiblePatches(random_mask(1, (3, 3), 3))
    layer = PatchConv2d(8, 8, 7, padding=3, groups=8)
    return layer(torch.randn(3, 8, 2, 2), patches)


def build() -> Path:
    return library._build(shutil.which('g++'))


@needs_kernels
def test_library__is_compiled_once_for_this_user_alone(compile_again, fast_flags):
    built = build()
    time = built.stat().st_mtime_ns

    assert built.parent == compile_again / 'videomac_mm'
    assert stat.S_IMODE(built.parent.stat().st_mode) == 0o700
    assert build() == built
    assert built.stat().st_mtime_ns == time
    assert sorted(built.parent.iterdir()) == [built.with_suffix('.sha256'), built]


@needs_kernels
@pytest.mark.parametrize('damage', ['truncated', 'empty', 'other', 'checksum'])
def test_library__that_is_not_whole_is_compiled_again(compile_again, fast_flags, damage):
    built = build()
    whole = built.read_bytes()
    if damage == 'checksum':
        built.with_suffix('.sha256').unlink()
    else:
        built.write_bytes({'truncated': whole[: len(whole) // 2], 'empty': b''}.get(damage, b'ELF'))

    build()

    assert len(built.read_bytes()) == len(whole)
    assert library.is_available()


@needs_kernels
def test_key__knows_flags_and_compiler(compile_again, fast_flags, monkeypatch):
    names = {build().name}
    monkeypatch.setenv('VIDEOMAC_MM_CXXFLAGS', '-O0 -DOTHER')
    names.add(build().name)
    run = library._run
    monkeypatch.setattr(
        library, '_run', lambda *args: 'g++ 99' if args[1:] == ('--version',) else run(*args)
    )
    names.add(build().name)
    assert len(names) == 3


@needs_kernels
@pytest.mark.parametrize('fault', ['group can write', 'read-only', 'a link', 'a file'])
def test_cache__that_cannot_be_trusted_is_not_used(
    compile_again, fast_flags, monkeypatch, tmp_path, fault
):
    folder, elsewhere = tmp_path / 'videomac_mm', tmp_path / 'elsewhere'
    elsewhere.mkdir()
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    if fault == 'a link':
        folder.symlink_to(elsewhere)
    elif fault == 'a file':
        folder.write_text('')
    else:
        folder.mkdir()
        folder.chmod(0o770 if fault == 'group can write' else 0o500)
        if fault == 'read-only':  # root may write all the same
            monkeypatch.setattr(os, 'access', lambda path, mode: Path(path) != folder)

    assert build().parent == tmp_path / 'home' / '.cache' / 'videomac_mm'


@needs_kernels
def test_cache__of_another_user_is_not_used(compile_again, fast_flags, monkeypatch, tmp_path):
    (tmp_path / 'videomac_mm').mkdir()
    monkeypatch.setattr(os, 'getuid', lambda: 12345)
    monkeypatch.setattr(library.Path, 'home', lambda: tmp_path / 'home')
    folder = library._folder()
    assert folder.name.startswith('videomac_mm-') and not any(folder.iterdir())
    folder.rmdir()


@needs_kernels
def test_openmp__is_the_one_that_torch_calls():
    # As scikit-learn does, which brings a library of its own.
    code = """
import ctypes, shutil, tempfile
import torch
from videomac_mm.sparse.ops import library
mine = library._openmp_of_torch()
copy = tempfile.mkdtemp() + '/libgomp-0ther.so.1'
shutil.copy(mine, copy)
ctypes.CDLL(copy, mode=ctypes.RTLD_GLOBAL)
assert library._openmp_of_torch() == mine, library._openmp_of_torch()
loaded = [line.split()[-1] for line in open('/proc/self/maps') if 'gomp' in line]
assert copy in loaded and mine in loaded
"""
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True, timeout=120)


@needs_kernels
def test_library__starts_no_threads_of_its_own():
    code = """
import os, torch
torch.set_num_threads(2)
torch.randn(512, 512) @ torch.randn(512, 512)
torch.randn(1 << 20).exp()  # torch's own pool
before = len(os.listdir('/proc/self/task'))
from tests.test_sparse.test_ops.test_library import run_layer
run_layer()
after = len(os.listdir('/proc/self/task'))
assert after == before, (before, after)
"""
    environment = {**os.environ, 'OMP_NUM_THREADS': '2'}
    command = [sys.executable, '-W', 'ignore', '-c', code]
    subprocess.run(command, check=True, env=environment, timeout=120)


@needs_kernels
def test_library__is_compiled_by_gcc_where_cxx_cannot(monkeypatch, compile_again, fast_flags):
    compiler = compile_again / 'clang++'
    compiler.write_text('#!/bin/sh\necho "undefined reference to __kmpc" >&2\nexit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv('CXX', str(compiler))

    assert library.is_available()


@pytest.mark.parametrize('what', ['missing', 'broken', 'hanging'])
def test_library__that_cannot_be_had_is_named_and_done_without(monkeypatch, compile_again, what):
    compiler = compile_again / 'compiler'
    action = 'sleep 60' if what == 'hanging' else 'echo "cannot compile" >&2; exit 1'
    compiler.write_text(f'#!/bin/sh\n{action}\n')
    compiler.chmod(0o755)
    found = None if what == 'missing' else str(compiler)
    monkeypatch.setattr(library.shutil, 'which', lambda name: found)
    monkeypatch.setattr(library, '_SECONDS', 1)

    reasons = dict(missing='no C\\+\\+ compiler', broken='cannot compile', hanging='timed out')
    with pytest.warns(UserWarning, match=f'without its CPU kernels.*{reasons[what]}'):
        out = run_layer()

    assert out.shape == (3, 8, 2, 2)
    assert not library.is_available()


@needs_kernels
@pytest.mark.parametrize(
    'tensor',
    [
        torch.ones(8, dtype=torch.bfloat16),
        torch.ones(8, dtype=torch.int64),
        torch.ones(16)[::2],
        torch.ones(8, device='meta'),
    ],
    ids=['bfloat16', 'int64', 'strided', 'meta'],
)
def test_call__refuses_memory_that_a_kernel_would_misread(tensor):
    with pytest.raises(TypeError, match='contiguous CPU tensors'):
        library.call('norm_gelu', tensor)


@needs_kernels
def test_kernels__follow_the_number_of_threads_of_torch():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for threads in (1, 2):
            with threads_of_torch(threads):
                assert run_layer().isfinite().all()
