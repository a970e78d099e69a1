"""The C++ kernels: compiled on first use, kept in a folder of the user's own, called by address.

The kernels need Linux and GCC (``CXX`` or g++; clang brings another OpenMP than torch's). Without
them a warning says so once, and torch does the work. They are compiled for the processor at hand
in about two seconds. Environment variables:

- ``VIDEOMAC_MM_CXXFLAGS`` adds flags, such as ``-march=x86-64`` or ``-fsanitize=address``.
- ``XDG_CACHE_HOME`` moves the cache from ``~/.cache/videomac_mm``. A cache that others could write
  to is not used; without a usable one the library is compiled into a temporary folder.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

_SOURCES = sorted(Path(__file__).parent.glob('*.cpp'))
_HEADERS = sorted(Path(__file__).parent.glob('*.h'))
_FLAGS = ('-std=c++17', '-O3', '-march=native', '-fPIC', '-fopenmp')
_SECONDS = 300  # for a compiler that hangs
_DTYPES = (torch.float32, torch.float64, torch.int32)


def is_available() -> bool:
    """Whether the kernels can be had; the first call compiles them."""
    return _library() is not None


def takes(*tensors: Tensor | None) -> bool:
    """Whether the kernels can work on tensors: float32 on the CPU, the first one not empty."""
    fits = all(x is None or (x.device.type, x.dtype) == ('cpu', torch.float32) for x in tensors)
    return fits and tensors[0].numel() > 0 and is_available()


def call(name: str, *args: Tensor | int | float | None) -> None:
    """Run a kernel.

    Args:
        name: of a function in the C++ files, without ``videomac_``.
        args: its arguments but for the number of threads; tensors are contiguous CPU tensors of
            the type that it expects.

    Raises:
        TypeError: for a tensor that would be misread.
        IndexError: if a table of neighbours names tiles that do not exist.
    """
    threads = ctypes.c_int(torch.get_num_threads())
    if getattr(_library(), f'videomac_{name}')(*map(_converted, args), threads):
        raise IndexError('neighbours must be numbers of tiles, or -1 for none')


def _converted(arg: Tensor | int | float | None) -> ctypes._SimpleCData | None:
    if isinstance(arg, Tensor):
        if arg.dtype not in _DTYPES or not arg.is_contiguous() or arg.device.type != 'cpu':
            raise TypeError(
                f'the kernels take contiguous CPU tensors of {_DTYPES}, got {arg.dtype} of shape '
                f'{tuple(arg.shape)} with strides {arg.stride()} on {arg.device}'
            )
        return ctypes.c_void_p(arg.data_ptr())
    if isinstance(arg, float):
        return ctypes.c_float(arg)
    return arg if arg is None else ctypes.c_int64(arg)


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The compiled kernels; None, after a warning, where they cannot be had."""
    if sys.platform != 'linux' or sys.byteorder != 'little':
        return None
    failures = []
    for compiler in filter(None, map(shutil.which, (os.environ.get('CXX', ''), 'g++'))):
        try:
            return ctypes.CDLL(str(_build(compiler)))
        except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
            failures.append(str(error))
    reason = '; '.join(failures) or 'no C++ compiler found, neither $CXX nor g++'
    warnings.warn(
        f'videomac_mm runs without its CPU kernels, several times slower in places: {reason}',
        stacklevel=2,
    )
    return None


def _build(compiler: str) -> Path:
    """Compile the library unless a whole one is in the cache; gives its path."""
    openmp = _openmp_of_torch()
    flags = (*_FLAGS, *shlex.split(os.environ.get('VIDEOMAC_MM_CXXFLAGS', '')))
    described = (
        *(path.read_bytes() for path in (*_SOURCES, *_HEADERS)),
        *(compiler, _run(compiler, '--version'), *flags, openmp),
        *(platform.machine(), _processor()),
    )
    key = hashlib.sha256(repr(described).encode()).hexdigest()[:16]
    folder = _folder()
    library, checksum = folder / f'kernels-{key}.so', folder / f'kernels-{key}.sha256'
    if not _is_whole(library, checksum):
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            compiled, written = Path(temporary, 'kernels.so'), Path(temporary, 'kernels.sha256')
            # torch's own OpenMP: a second one would start a second pool of threads.
            _run(
                *(compiler, *flags, '-shared', *map(str, _SOURCES)),
                *('-Wl,--no-undefined', '-o', str(compiled), openmp),
            )
            written.write_text(_digest(compiled))
            # Each is replaced at once; a process that reads between them compiles again.
            written.replace(checksum)
            compiled.replace(library)
    return library


def _is_whole(library: Path, checksum: Path) -> bool:
    """Whether a library is as it was written: a truncated one would end the process."""
    try:
        return checksum.read_text() == _digest(library)
    except OSError:
        return False


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _folder() -> Path:
    """The first folder that is ours alone and can be written to."""
    for folder in _candidates():
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = folder.lstat()
        except OSError:
            continue
        private = status.st_uid == os.getuid() and not status.st_mode & 0o022
        if private and not folder.is_symlink() and os.access(folder, os.W_OK | os.X_OK):
            return folder
    return Path(tempfile.mkdtemp(prefix='videomac_mm-'))  # created for this user alone


def _candidates() -> Iterator[Path]:
    cache = os.environ.get('XDG_CACHE_HOME')
    if cache:
        yield Path(cache, 'videomac_mm')
    try:
        yield Path.home() / '.cache' / 'videomac_mm'
    except RuntimeError:  # no home
        pass
    yield Path(tempfile.gettempdir(), f'videomac_mm-{os.getuid()}')


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    if done.returncode:
        raise RuntimeError(f'{" ".join(command)} failed: {done.stderr.strip()[:500]}')
    return done.stdout


class _Place(ctypes.Structure):
    """``Dl_info`` of the dynamic linker."""

    _fields_ = [
        *(('file', ctypes.c_char_p), ('base', ctypes.c_void_p)),
        *(('symbol', ctypes.c_char_p), ('address', ctypes.c_void_p)),
    ]


def _openmp_of_torch() -> str:
    """The file of the OpenMP library that torch itself calls, whatever others are loaded."""
    path = Path(torch.__file__).parent / 'lib' / 'libtorch_cpu.so'
    try:
        # Looked up from torch's library, the symbol is the one that torch is linked to.
        function = ctypes.CDLL(str(path)).omp_get_max_threads
    except (OSError, AttributeError) as error:
        raise RuntimeError(f'torch has no OpenMP library to share: {error}') from None
    place = _Place()
    address = ctypes.cast(function, ctypes.c_void_p)
    if not ctypes.CDLL(None).dladdr(address, ctypes.byref(place)) or not place.file:
        raise RuntimeError("torch's OpenMP library has no file")
    return os.fsdecode(place.file)


def _processor() -> str:
    """What the compiler's ``native`` depends on."""
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    kinds = ('model name', 'flags', 'CPU part', 'Features')
    return ''.join(sorted({line for line in lines if line.startswith(kinds)}))
