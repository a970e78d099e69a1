"""Kernels for the CPU, in C++, compiled when they are first wanted.

What they compute, functions of ``functional`` compute in plain torch, several times slower.
They need Linux and GCC (``CXX`` or g++; clang's OpenMP is another than torch's); where there is
none, or it fails, a warning says so once and torch does the work. The library is compiled for the
processor at hand, in a second, and kept in ``$XDG_CACHE_HOME/videomac_mm``.

All tensors are float32 and contiguous, as rows (sites, channels) or what is the same in memory.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor

_SOURCE = Path(__file__).with_suffix('.cpp')
_FLAGS = ('-std=c++17', '-O3', '-march=native', '-fPIC', '-fopenmp')
_DTYPES = (torch.float32, torch.int32, torch.int64)
SIDE = 7  # of the depth-wise kernel
TILES = (1, 2, 4, 8)  # sides of tiles


def available(x: Tensor) -> bool:
    """Whether the kernels can work on a tensor (..., C) here and now."""
    return (
        x.device.type == 'cpu'
        and x.dtype == torch.float32
        and x.shape[-1] % 8 == 0
        and not torch.is_autocast_enabled('cpu')
        and not torch.compiler.is_compiling()
        and _library() is not None
    )


def convolve(x: Tensor, taps: Tensor, neighbours: Tensor) -> Tensor:
    """The depth-wise 7×7 conv on packed tiles.

    Args:
        x (N, p, p, C): tiles, with p in `TILES`.
        taps (50, C): the kernel, row by row, and the bias.
        neighbours (N, (2*reach + 1)**2): int32, as `VisiblePatches.neighbours` gives them, with
            ``reach = ceil(3 / p)``.

    Returns:
        (N, p, p, C)
    """
    out = torch.empty_like(x)
    _call('convolve', x, taps, neighbours, out, len(x), x.shape[-1], _side(x))
    return out


def correlate(x: Tensor, grad: Tensor, neighbours: Tensor) -> Tensor:
    """The gradient of `convolve` with respect to its taps.

    Args:
        x, grad (N, p, p, C): input, and gradient of the output.
        neighbours: as `convolve`.

    Returns:
        (50, C)
    """
    channels = x.shape[-1]
    # With few channels a thread would be without work.
    chunks = min(-(-torch.get_num_threads() * 16 // channels), len(x))
    sums = x.new_empty(chunks, SIDE**2 + 1, channels)
    _call('correlate', x, grad, neighbours, sums, len(x), channels, chunks, _side(x))
    return sums.sum(0)


def mixes(x: Tensor, num_out: int) -> bool:
    """Whether a conv from channels (..., C) to ``num_out`` channels can run over pairs."""
    return available(x) and x.shape[-1] % 16 == 0 and num_out % 16 == 0


def convolve_pairs(rows: Tensor, weight: Tensor, table: Tensor) -> Tensor:
    """A conv that mixes channels, as matrix products of the rows that exist at each tap.

    Args:
        rows (R, C)
        weight (C', T, C): a matrix for each of T taps; it or its transpose (C, T, C') contiguous.
            C and C' are multiples of 16.
        table (M, T): int32, which row each output reads at each tap; -1 for none.

    Returns:
        (M, C')
    """
    channels_out, taps, channels = weight.shape
    transposed = not weight.is_contiguous()
    out = rows.new_empty(len(table), channels_out)
    piece = 384  # rows: with those that they read they fit the second cache
    parts = _parts(-(-len(table) // piece), channels_out // 16)
    weight = weight.permute(2, 1, 0) if transposed else weight
    sizes = len(table), taps, channels, channels_out, transposed, piece, parts
    _call('convolve_pairs', rows, weight, table, out, *sizes)
    return out


def correlate_pairs(rows: Tensor, grad: Tensor, table: Tensor) -> Tensor:
    """The gradient of `convolve_pairs` with respect to its weight.

    Args:
        rows (R, C): input.
        grad (M, C'): gradient of the output.
        table (M, T): as `convolve_pairs`.

    Returns:
        (C', T, C)
    """
    (num, taps), channels, channels_out = table.shape, rows.shape[1], grad.shape[1]
    out = rows.new_empty(channels_out, taps, channels)
    parts = _parts(taps, channels_out // 8)
    sizes = num, taps, channels, channels_out, parts
    _call('correlate_pairs', rows, grad, table, out, *sizes)
    return out


def _parts(tasks: int, most: int) -> int:
    """Into how many parts to divide each task, so that threads with less to do find more."""
    return min(-(-4 * torch.get_num_threads() // tasks), most)


def take(rows: Tensor, table: Tensor, fill: float = 0.0) -> Tensor:
    """Sums of rows.

    Args:
        rows (R, C)
        table (M, n): int64, which n rows to add up; R stands for a row of ``fill``.
        fill: defaults to 0.

    Returns:
        (M, C)
    """
    out = rows.new_empty(len(table), rows.shape[1])
    _call('take', rows, table, ctypes.c_float(fill), out, *table.shape, *rows.shape)
    return out


def gelu_energy(x: Tensor, bias: Tensor, out: Tensor) -> Tensor:
    """GELU of groups of sites plus a bias, and the sum of its squares over each group.

    Args:
        x (G, S, C): input.
        bias (C,): added to it.
        out (G, S, C): for the result; may be ``x``.

    Returns:
        (G, 1, C)
    """
    groups, rows, channels = x.shape
    chunks = _chunks(groups, rows)
    energy = x.new_empty(groups, chunks, channels)
    _call('gelu', x, bias, out, energy, groups, chunks, rows, channels)
    return energy.sum(1, keepdim=True)


def weighted_sums(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of ``grad * x`` and of ``grad`` over the sites of each group.

    Args:
        grad, x (G, S, C)

    Returns:
        (G, 1, C) each.
    """
    groups, rows, channels = x.shape
    chunks = _chunks(groups, rows)
    sums = x.new_empty(groups, chunks, 2, channels)
    _call('sums', grad, x, sums, groups, chunks, rows, channels)
    products, plain = sums.sum(1, keepdim=True).unbind(2)
    return products, plain


def gelu_backward_(
    grad: Tensor, x: Tensor, bias: Tensor, scale: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor]:
    """With ``y = x + bias``: ``(grad * scale + gelu(y) * slope) * gelu'(y)``, and its sum.

    Args:
        grad, x (G, S, C)
        bias (C,)
        scale, slope (G, 1, C): contiguous.

    Returns:
        (G, S, C) in place of ``grad``, and (C,).
    """
    groups, rows, channels = x.shape
    chunks = _chunks(groups, rows)
    sums = x.new_empty(groups * chunks, channels)
    _call('gelu_backward', x, bias, scale, slope, grad, sums, groups, chunks, rows, channels)
    return grad, sums.sum(0)


def norm_gelu(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """GELU of the layer norm over channels, plus a residual.

    Args:
        x (M, C): rows.
        weight, bias (C,): of the norm.
        residual (M, C): added to the norm; or None.
        eps: of the norm.

    Returns:
        Result (M, C), mean (M,) and reciprocal standard deviation (M,).
    """
    out, mean, rstd = torch.empty_like(x), x.new_empty(len(x)), x.new_empty(len(x))
    inputs = x, weight, bias, residual, ctypes.c_float(eps)
    _call('norm_gelu', *inputs, out, mean, rstd, *x.shape)
    return out, mean, rstd


def norm_gelu_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The gradients of `norm_gelu` with respect to its four tensors."""
    chunks = _chunks(1, len(x))
    out, sums = torch.empty_like(x), x.new_empty(chunks, 2, x.shape[1])
    to_residual = None if residual is None else torch.empty_like(x)
    inputs = grad, x, weight, bias, residual, mean, rstd
    _call('norm_gelu_backward', *inputs, out, to_residual, sums, chunks, *x.shape)
    return out, *sums.sum(0), to_residual


def _side(x: Tensor) -> ctypes.c_int:
    if x.shape[1] not in TILES:
        raise ValueError(f'tiles must have a side of {TILES}, got {x.shape[1]}')
    return ctypes.c_int(x.shape[1])


def _chunks(groups: int, rows: int) -> int:
    """Pieces of a group, so that every thread has one."""
    return min(-(-torch.get_num_threads() // groups), rows)


def _call(name: str, *args: Tensor | int | None | ctypes._SimpleCData) -> None:
    threads = ctypes.c_int(torch.get_num_threads())
    getattr(_library(), f'videomac_{name}')(*map(_converted, args), threads)


def _converted(arg: Tensor | int | None | ctypes._SimpleCData) -> ctypes._SimpleCData | None:
    if isinstance(arg, Tensor):
        # The kernels see addresses alone and would read anything.
        if arg.dtype not in _DTYPES or not arg.is_contiguous() or arg.device.type != 'cpu':
            raise TypeError(
                'CPU kernels take contiguous tensors of float32 (tables of int32 or int64), got '
                f'{arg.dtype} of shape {tuple(arg.shape)}, strides {arg.stride()} on {arg.device}'
            )
        return ctypes.c_void_p(arg.data_ptr())
    return ctypes.c_int64(arg) if isinstance(arg, int) else arg


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The compiled kernels; None, after a warning, where they cannot be had."""
    if sys.platform != 'linux' or sys.byteorder != 'little':
        return None
    failures = []
    for compiler in filter(None, map(shutil.which, (os.environ.get('CXX', ''), 'g++'))):
        try:
            return ctypes.CDLL(str(_build(compiler)))
        except (OSError, RuntimeError) as err:
            failures.append(str(err))
    reason = '; '.join(failures) or 'no C++ compiler found, neither $CXX nor g++'
    warnings.warn(
        f'videomac_mm runs without its CPU kernels, several times slower in places: {reason}',
        stacklevel=2,
    )
    return None


def _build(compiler: str) -> Path:
    """Compile the library unless that was done before; gives its path."""
    openmp = _openmp()
    described = (_SOURCE.read_bytes(), compiler, *_FLAGS, openmp, platform.machine(), _processor())
    digest = hashlib.sha256(repr(described).encode()).hexdigest()[:16]
    folder = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'videomac_mm'
    library = folder / f'cpu_kernels-{digest}.so'
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        compiled, linked = Path(temporary, 'kernels.o'), Path(temporary, 'kernels.so')
        _run(compiler, *_FLAGS, '-c', str(_SOURCE), '-o', str(compiled))
        # With torch's own OpenMP: two of them would be two crowds of threads on the same cores.
        _run(compiler, '-shared', '-Wl,--no-undefined', str(compiled), openmp, '-o', str(linked))
        linked.replace(library)  # whole or not at all, whoever else does the same
    return library


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f'{" ".join(command)} failed: {done.stderr.strip()[:500]}')


def _openmp() -> str:
    """The OpenMP library that torch has loaded."""
    for line in Path('/proc/self/maps').read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if 'libgomp' in path or 'libiomp5' in path or 'libomp' in path:
            return path
    raise RuntimeError('torch has loaded no OpenMP library to share')


def _processor() -> str:
    """What the compiler's ``native`` depends on."""
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    kinds = ('model name', 'flags', 'CPU part', 'Features')
    return ''.join(sorted({line for line in lines if line.startswith(kinds)}))
