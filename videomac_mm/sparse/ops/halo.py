"""Tiles with what lies around them: what windows that reach over a border see."""

import math

import torch
from torch import Tensor

from videomac_mm.sparse.geometry import halo_places, rows_of, window_rows
from videomac_mm.sparse.ops.operator import (
    check_tensor,
    define,
    empty_maps,
    is_transformed,
    own_maps,
)


def halo(tiles: Tensor, neighbours: Tensor, before: int, after: int, fill: float = 0.0) -> Tensor:
    """Surround every tile by its neighbours' sites.

    Args:
        tiles (N, C, p, p): packed.
        neighbours (N, (2*reach + 1)**2): int32, of `VisiblePatches.neighbours`, with
            ``reach * p >= max(before, after)``.
        before: sites to add above and to the left.
        after: sites to add below and to the right.
        fill: the value of sites that are hidden or outside of the image. Defaults to 0.

    Returns:
        (N, C, q, q) with ``q = before + p + after``, in channels-last memory.

    Raises:
        TypeError, ValueError: if the arguments do not fit each other.
    """
    if is_transformed():
        return _surround(tiles, neighbours, before, after, fill)
    return _halo(tiles, neighbours, before, after, fill)


def check_neighbours(tiles: Tensor, neighbours: Tensor, side: int, reached: int) -> None:
    """Raise unless a table belongs to N tiles of a side and shows what lies ``reached`` sites off.

    What the table holds is not read here: that would stop a GPU.
    """
    check_tensor('neighbours', neighbours, (len(tiles), None), (torch.int32,), like=tiles)
    across = math.isqrt(neighbours.shape[1])
    if across**2 != neighbours.shape[1] or across % 2 == 0 or across // 2 * side < reached:
        raise ValueError(
            f'neighbours must have shape ({len(tiles)}, (2*reach + 1)**2) with reach * {side} >= '
            f'{reached}, got {tuple(neighbours.shape)}'
        )


def _check(tiles: Tensor, neighbours: Tensor, before: int, after: int, fill: float) -> None:
    check_tensor('tiles', tiles, (None, None, None, tiles.shape[-1]))
    if min(before, after) < 0 or tiles.shape[2] != tiles.shape[3]:
        raise ValueError(
            'a halo takes square tiles, before >= 0 and after >= 0; got tiles of shape '
            f'{tuple(tiles.shape)}, before={before}, after={after}'
        )
    check_neighbours(tiles, neighbours, tiles.shape[-1], max(before, after))


def _surround(tiles: Tensor, neighbours: Tensor, before: int, after: int, fill: float) -> Tensor:
    side, channels = tiles.shape[-1], tiles.shape[1]
    size = before + side + after
    table = window_rows(neighbours, side, size, side, before).flatten()
    rows = _with_row(rows_of(tiles), fill)
    taken = rows.index_select(0, table.where(table >= 0, len(rows) - 1))
    return taken.view(-1, size, size, channels).permute(0, 3, 1, 2)


def _surround_kept(tiles: Tensor, *args) -> Tensor:
    return own_maps(_surround(tiles, *args))


def _collect(grad: Tensor, neighbours: Tensor, before: int, after: int) -> Tensor:
    side, channels = grad.shape[-1] - before - after, grad.shape[1]
    table = halo_places(neighbours, side, before, after)
    rows = _with_row(rows_of(grad), 0.0)
    taken = rows.index_select(0, table.where(table >= 0, len(rows) - 1).flatten())
    sums = taken.view(*table.shape, channels).sum(1)
    return own_maps(sums.view(-1, side, side, channels).permute(0, 3, 1, 2))


def _with_row(rows: Tensor, fill: float) -> Tensor:
    """Rows, and one more of ``fill``."""
    return torch.cat([rows, rows.new_full((1, rows.shape[1]), fill)])


def _like(tiles: Tensor, side: int) -> Tensor:
    return empty_maps(tiles, len(tiles), tiles.shape[1], side, side)


def _keep(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.window = inputs[2:4]


def _halo_backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _halo_adjoint(grad, *ctx.saved_tensors, *ctx.window), None, None, None, None


def _halo_adjoint_backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _halo(grad, *ctx.saved_tensors, *ctx.window, 0.0), None, None, None


_halo = define(
    'halo(Tensor tiles, Tensor neighbours, int before, int after, float fill) -> Tensor',
    _surround_kept,
    check=_check,
    fake=lambda tiles, _, before, after, __: _like(tiles, before + tiles.shape[-1] + after),
    backward=_halo_backward,
    setup_context=_keep,
)
_halo_adjoint = define(
    'halo_adjoint(Tensor grad, Tensor neighbours, int before, int after) -> Tensor',
    _collect,
    check=lambda grad, neighbours, before, after: check_neighbours(
        grad, neighbours, grad.shape[-1] - before - after, max(before, after)
    ),
    fake=lambda grad, _, before, after: _like(grad, grad.shape[-1] - before - after),
    backward=_halo_adjoint_backward,
    setup_context=_keep,
)
