"""Triton's kernels for depth-wise convs on packed tiles, for GPUs."""

import os
from collections.abc import Callable
from functools import cache
from math import isqrt
from typing import Any

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from videomac_mm.sparse.ops.operator import empty_maps, sum_type

try:
    import triton
    import triton.language as tl
    from triton.language import constexpr
except ImportError:  # CPU builds of torch come without
    tl = constexpr = None

# The kernels keep their sums in tuples of tensors, which older compilers do not carry through
# branches: Triton 3.3 comes with torch 2.7.
_SUPPORTED = tl is not None and TorchVersion(triton.__version__) >= (3, 3)

# What the weight gradient is summed over in parallel; more costs memory, less leaves GPUs idle.
_PROGRAMS = 2048


def fits(
    tiles: Tensor, weight: Tensor, stride: int, before: int, dilation: int, groups: int
) -> bool:
    """Whether the kernels take a conv: depth-wise, k×k with k odd, of stride 1, padded by k // 2.

    That takes Triton 3.3 and a GPU, or Triton's interpreter (``TRITON_INTERPRET=1``), which is
    for tests only.
    """
    channels, depth, kernel, _ = weight.shape
    return (
        (_SUPPORTED and tiles.numel() > 0 and (tiles.is_cuda or _interpreted()))
        and (depth, channels, stride, before, dilation) == (1, groups, 1, kernel // 2, 1)
        and kernel % 2 == 1
        and kernel > 1
    )


def convolve(tiles: Tensor, taps: Tensor, neighbours: Tensor) -> Tensor:
    """The depth-wise conv on packed tiles.

    Args:
        tiles (N, C, p, p)
        taps (k*k + 1, C): the kernel, row by row, and the bias; float32, or float64 for float64
            tiles.
        neighbours (N, (2*reach + 1)**2): int32, of `VisiblePatches.neighbours`, with
            ``reach * p >= k // 2``.

    Returns:
        (N, C, p, p) in channels-last memory.
    """
    rows = tiles.permute(0, 2, 3, 1).contiguous()
    num, side, _, channels = rows.shape
    block = _block(side)
    # As many channels per thread as it has registers for sums; 16 bytes of bfloat16 at most.
    lanes = _lanes(channels, 32 * (8 // block))
    out = empty_maps(tiles, *tiles.shape)
    programs = num * (side // block) ** 2 * triton.cdiv(channels, lanes)
    _run(
        _convolve_kernel, programs, rows, taps, neighbours.contiguous(), out,
        C=channels, P=side, S=block, K=isqrt(len(taps) - 1), REACH=_reach(neighbours), LANES=lanes,
    )  # fmt: skip
    return out


def correlate(tiles: Tensor, grads: Tensor, neighbours: Tensor, kernel: int) -> Tensor:
    """The gradient of `convolve` with respect to its taps.

    Args:
        tiles, grads (N, C, p, p): input, and gradient of the output.
        neighbours: as `convolve`.
        kernel: k.

    Returns:
        (k*k + 1, C)
    """
    rows, grads = (x.permute(0, 2, 3, 1).contiguous() for x in (tiles, grads))
    num, side, _, channels = rows.shape
    block = _block(side)
    lanes = _lanes(channels, 64 if block <= 2 else 32)
    blocks, columns = num * (side // block) ** 2, triton.cdiv(channels, lanes)
    steps = triton.cdiv(blocks, max(1, _PROGRAMS // columns))
    chunks = triton.cdiv(blocks, steps)
    sums = rows.new_empty((chunks, kernel**2 + 1, channels), dtype=sum_type(rows))
    _run(
        _correlate_kernel, chunks * columns, rows, grads, neighbours.contiguous(), sums, num, steps,
        C=channels, P=side, S=block, K=kernel, REACH=_reach(neighbours), LANES=lanes,
    )  # fmt: skip
    return sums.sum(0)


def _interpreted() -> bool:
    return os.environ.get('TRITON_INTERPRET') == '1'


def _run(kernel: Callable, programs: int, rows: Tensor, *args: Any, **constants: int) -> None:
    with torch.cuda.device_of(rows):  # Triton takes the current one
        launch = _compiled(kernel, _interpreted())[(programs,)]
        launch(rows, *args, **constants, num_warps=1)


# Not before a kernel runs: Triton asks then whether to compile or to interpret it.
@cache
def _compiled(kernel: Callable, interpreted: bool) -> Any:
    # Numbers that change with the batch are no reason to compile again.
    return triton.jit(kernel, do_not_specialize=['num', 'steps'])


def _block(side: int) -> int:
    """Side of the square of sites that a thread works on: what divides a tile, 4 at most."""
    return max(block for block in (1, 2, 3, 4) if side % block == 0)


def _lanes(channels: int, most: int) -> int:
    """Channels of a program: a power of two that leaves no thread idle, if there is one."""
    return max(32, min(most, channels & -channels))


def _reach(neighbours: Tensor) -> int:
    return isqrt(neighbours.shape[1]) // 2


# A program is one warp. Each thread holds the sums of a block of S×S sites of a tile, for the
# same few channels: a warp reads and writes rows of channels, and nothing is shared. All loops
# over blocks, sites and taps are unrolled, since it is known which of them meet; a branch skips
# the blocks of hidden tiles. Sites v, u are counted from the first site of the own block.


def _convolve_kernel(
    tiles,
    taps,
    neighbours,
    out,
    C: constexpr,
    P: constexpr,
    S: constexpr,
    K: constexpr,
    REACH: constexpr,
    LANES: constexpr,
):
    R: tl.constexpr = K // 2
    T: tl.constexpr = (R + S - 1) // S  # blocks that the kernel reaches over
    N: tl.constexpr = P // S
    W: tl.constexpr = 2 * REACH + 1
    COLUMNS: tl.constexpr = (C + LANES - 1) // LANES
    pid = tl.program_id(0)
    c = pid % COLUMNS * LANES + tl.arange(0, LANES)
    inside = c < C
    block = pid // COLUMNS
    tile = block // (N * N)
    row = block // N % N
    column = block % N

    bias = tl.load(taps + K * K * C + c, mask=inside)
    sums = ()
    for _ in tl.static_range(S * S):
        sums = sums + (bias,)
    for ty in tl.static_range(-T, T + 1):
        y = row + ty + N * REACH
        for tx in tl.static_range(-T, T + 1):
            x = column + tx + N * REACH
            other = tl.load(neighbours + (tile * W + y // N) * W + x // N)
            if other >= 0:
                first = other.to(tl.int64) * (P * P) + (y % N * P + x % N) * S
                for v in tl.static_range(S * ty, S * ty + S):
                    for u in tl.static_range(S * tx, S * tx + S):
                        if (v >= -R and v < S + R) and (u >= -R and u < S + R):
                            site = tiles + (first + (v - S * ty) * P + u - S * tx) * C + c
                            value = tl.load(site, mask=inside).to(taps.dtype.element_ty)
                            new = ()
                            for o in tl.static_range(S * S):
                                if (v - o // S >= -R and v - o // S <= R) and (
                                    u - o % S >= -R and u - o % S <= R
                                ):
                                    tap = taps + ((v - o // S + R) * K + u - o % S + R) * C
                                    weight = tl.load(tap + c, mask=inside)
                                    new = new + (sums[o] + value * weight,)
                                else:
                                    new = new + (sums[o],)
                            sums = new
    first = tile.to(tl.int64) * (P * P) + (row * P + column) * S
    for o in tl.static_range(S * S):
        site = out + (first + o // S * P + o % S) * C + c
        tl.store(site, sums[o].to(out.dtype.element_ty), mask=inside)


def _correlate_kernel(
    tiles,
    grads,
    neighbours,
    out,
    num,
    steps,
    C: constexpr,
    P: constexpr,
    S: constexpr,
    K: constexpr,
    REACH: constexpr,
    LANES: constexpr,
):
    R: tl.constexpr = K // 2
    T: tl.constexpr = (R + S - 1) // S
    N: tl.constexpr = P // S
    W: tl.constexpr = 2 * REACH + 1
    COLUMNS: tl.constexpr = (C + LANES - 1) // LANES
    pid = tl.program_id(0)
    c = pid % COLUMNS * LANES + tl.arange(0, LANES)
    inside = c < C

    sums = ()
    for _ in tl.static_range(K * K + 1):
        sums = sums + (tl.full((LANES,), 0.0, out.dtype.element_ty),)
    for step in range(steps):
        block = pid // COLUMNS * steps + step
        tile = block // (N * N)
        row = block // N % N
        column = block % N
        first = tile.to(tl.int64) * (P * P) + (row * P + column) * S
        upstream = ()
        total = sums[K * K]
        for o in tl.static_range(S * S):
            site = grads + (first + o // S * P + o % S) * C + c
            grad = tl.load(site, mask=inside & (tile < num), other=0.0).to(out.dtype.element_ty)
            upstream = upstream + (grad,)
            total += grad
        sums = sums[: K * K] + (total,)
        for ty in tl.static_range(-T, T + 1):
            y = row + ty + N * REACH
            for tx in tl.static_range(-T, T + 1):
                x = column + tx + N * REACH
                entry = neighbours + (tile * W + y // N) * W + x // N
                other = tl.load(entry, mask=tile < num, other=-1)
                if other >= 0:
                    first = other.to(tl.int64) * (P * P) + (y % N * P + x % N) * S
                    for v in tl.static_range(S * ty, S * ty + S):
                        for u in tl.static_range(S * tx, S * tx + S):
                            if (v >= -R and v < S + R) and (u >= -R and u < S + R):
                                site = tiles + (first + (v - S * ty) * P + u - S * tx) * C + c
                                value = tl.load(site, mask=inside).to(out.dtype.element_ty)
                                new = ()
                                for t in tl.static_range(K * K):
                                    if (v + R - t // K >= 0 and v + R - t // K < S) and (
                                        u + R - t % K >= 0 and u + R - t % K < S
                                    ):
                                        grad = upstream[(v + R - t // K) * S + u + R - t % K]
                                        new = new + (sums[t] + value * grad,)
                                    else:
                                        new = new + (sums[t],)
                                sums = new + (sums[K * K],)
    chunk = (pid // COLUMNS).to(tl.int64)
    for t in tl.static_range(K * K + 1):
        tl.store(out + (chunk * (K * K + 1) + t) * C + c, sums[t], mask=inside)
