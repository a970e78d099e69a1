"""Convs that look across the borders of tiles: forward, and the gradients of input and weight.

The three operators are the derivatives of one function that is linear in the tiles, the weight
and the upstream gradient, so each one's gradients are the two others.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from videomac_mm.sparse.geometry import VisiblePatches, rows_of
from videomac_mm.sparse.ops import library, triton_depthwise
from videomac_mm.sparse.ops.halo import check_neighbours, halo
from videomac_mm.sparse.ops.operator import (
    check_tensor,
    contiguous,
    define,
    empty_maps,
    is_transformed,
    own_maps,
    sum_type,
)

# The CPU kernel for depth-wise convs.
_SIDE = 7
_TILES = (1, 2, 4, 8)
# Work in pieces of this many numbers (4 MiB), which stay in the cache.
_PIECE = 2**20


def conv2d(
    tiles: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    patches: VisiblePatches,
    stride: int = 1,
    before: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Tensor:
    """A conv on packed tiles; hidden sites and those outside of the image are zero.

    Kernels: depth-wise convs of stride 1 on GPUs (Triton, odd kernels) and on CPUs (C++, 7×7,
    float32, tiles of 1, 2, 4 or 8 sites, channels a multiple of 8), and convs without groups on
    CPUs (C++, float32, channels a multiple of 16) read neighbouring tiles where they are and
    skip hidden ones. Everything else is torch's conv on tiles with their halo.

    Under autocast tiles are cast; weights are not, kernels need no copy in another type.

    Args:
        tiles (B*K, C, p, p): as `VisiblePatches.pack` returns them.
        weight (C', C/groups, k, k): as in `torch.nn.Conv2d`.
        bias (C',): or None.
        patches: the geometry of the tiles.
        stride: divides p. Defaults to 1.
        before: sites by which the first window starts above and left of its tile; the padding
            of a conv that pads all sides alike. Defaults to 0.
        dilation, groups: as in `torch.nn.Conv2d`.

    Returns:
        (B*K, C', p/stride, p/stride) in channels-last memory.

    Raises:
        TypeError, ValueError: if the arguments do not fit each other.
    """
    window = stride, before, dilation, groups
    if is_transformed():
        return conv2d_on_halos(tiles, weight, bias, patches, *window)
    return _conv2d(tiles, weight, bias, _neighbours(tiles, weight, patches, *window), *window)


def conv2d_on_halos(
    tiles: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    patches: VisiblePatches,
    stride: int = 1,
    before: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Tensor:
    """`conv2d` in plain torch: what runs where there is no kernel."""
    window = stride, before, dilation, groups
    neighbours = _neighbours(tiles, weight, patches, *window)
    surrounded = halo(tiles, neighbours, before, _after(weight, *window))
    return _valid_conv(surrounded, weight, bias, stride, dilation, groups)


def _valid_conv(x: Tensor, weight: Tensor, bias: Tensor | None, *settings: int) -> Tensor:
    """torch's conv without padding."""
    stride, dilation, groups = settings
    if x.shape[-1] == weight.shape[-1] and dilation == groups == 1:
        # A window for each image: conv libraries are slow, and this is a matrix product.
        rows, matrix = (y.permute(0, 2, 3, 1).flatten(1) for y in (x, weight))
        return F.linear(rows, matrix, bias)[:, :, None, None]
    return F.conv2d(x, weight, bias, stride, 0, dilation, groups)


def _neighbours(tiles: Tensor, weight: Tensor, patches: VisiblePatches, *window: int) -> Tensor:
    return patches.neighbours_within(max(window[1], _after(weight, *window)), tiles.shape[-1])


def _after(weight: Tensor, stride: int, before: int, dilation: int, groups: int) -> int:
    """Sites that windows reach below and to the right of their tile."""
    return max(dilation * (weight.shape[-1] - 1) + 1 - stride - before, 0)


# ------------------------------------------------------------------------------- in torch


def _forward(tiles, weight, bias, neighbours, *window) -> Tensor:
    stride, before, dilation, groups = window
    surrounded = halo(tiles, neighbours, before, _after(weight, *window))
    weight, bias = (x if x is None else x.to(tiles.dtype) for x in (weight, bias))
    return own_maps(_valid_conv(surrounded, weight, bias, stride, dilation, groups))


def _to_input(grad, weight, neighbours, side, *window) -> Tensor:
    stride, before, dilation, groups = window
    after = _after(weight, *window)
    size = len(grad), weight.shape[1] * groups, before + side + after, before + side + after
    to_halo = _torch_gradients(
        grad, grad.new_empty(1).expand(size), weight.to(grad.dtype), window, input=True
    )
    return torch.ops.videomac_mm.halo_adjoint(to_halo, neighbours, before, after)


def _to_weight(tiles, grad, neighbours, kernel, *window) -> tuple[Tensor, Tensor]:
    stride, before, dilation, groups = window
    weight = _weight_like(tiles, grad, kernel, groups)
    surrounded = halo(tiles, neighbours, before, _after(weight, *window))
    is_depthwise = tiles.shape[1] == grad.shape[1] == groups and stride == dilation == 1
    if is_depthwise and tiles.device.type == 'cpu' and tiles.numel() > 0:
        # A depth-wise conv again, whose kernel is the gradient and whose groups are all images
        # and channels: up to 16 times as fast as oneDNN's own gradient.
        num_pieces = -(-surrounded.numel() // _PIECE)
        pieces = zip(surrounded.chunk(num_pieces), grad.chunk(num_pieces))
        to_weight = sum(_correlate(*piece) for piece in pieces)[:, None]
    else:
        to_weight = _torch_gradients(grad, surrounded, weight, window, input=False)
    wide = sum_type(grad)
    return own_maps(to_weight, wide), grad.sum((0, 2, 3), dtype=wide)


def _torch_gradients(grad, x, weight, window, input) -> Tensor:
    stride, _, dilation, groups = window
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, (stride,) * 2, (0, 0), (dilation,) * 2, False, (0, 0), groups,
        (input, not input, False),
    )[not input]  # fmt: skip


def _correlate(x: Tensor, kernels: Tensor) -> Tensor:
    """(N, C, H, W) with kernels (N, C, p, p) -> (C, k, k), summed over N."""
    num = x.shape[0] * x.shape[1]
    if kernels.shape[-1] == 1:  # torch would loop over the groups
        return (x * kernels).sum(0)
    folded = x.reshape(1, num, *x.shape[2:])
    out = F.conv2d(folded, kernels.reshape(num, 1, *kernels.shape[2:]), groups=num)
    return out.view(*x.shape[:2], *out.shape[2:]).sum(0)


# --------------------------------------------------------------------------------- kernels


def _forward_kernel(tiles, weight, bias, neighbours, *window) -> Tensor:
    if triton_depthwise.fits(tiles, weight, *window):
        return triton_depthwise.convolve(tiles, _taps(tiles, weight, bias), neighbours)
    if _depthwise_fits(tiles, weight, *window):
        return _depthwise(tiles, _taps(tiles, weight, bias), neighbours)
    if not _pairs_fit(tiles, weight, *window):
        return NotImplemented
    return _pairs(tiles, weight, bias, neighbours, tiles.shape[-1], *window[:2], reverse=False)


def _to_input_kernel(grad, weight, neighbours, side, *window) -> Tensor:
    # Of a depth-wise conv the adjoint is one, too: neighbours see each other, from opposite sides.
    if triton_depthwise.fits(grad, weight, *window):
        return triton_depthwise.convolve(grad, _taps(grad, weight.flip(2, 3), None), neighbours)
    if _depthwise_fits(grad, weight, *window):
        return _depthwise(grad, _taps(grad, weight.flip(2, 3), None), neighbours)
    if not _pairs_fit(grad, weight, *window):
        return NotImplemented
    return _pairs(grad, weight, None, neighbours, side, *window[:2], reverse=True)


def _to_weight_kernel(tiles, grad, neighbours, kernel, *window) -> tuple[Tensor, Tensor]:
    stride, before, _, groups = window
    weight = _weight_like(tiles, grad, kernel, groups)
    if triton_depthwise.fits(tiles, weight, *window):
        return _from_taps(triton_depthwise.correlate(tiles, grad, neighbours, kernel))
    (num, channels, side, _), columns = tiles.shape, grad.shape[1]
    rows, upstream = _rows(tiles), _rows(grad)
    if _depthwise_fits(tiles, weight, *window):
        # With few channels a thread would be without work.
        chunks = max(1, min(-(-torch.get_num_threads() * 16 // channels), num))
        sums = tiles.new_empty(chunks, _SIDE**2 + 1, channels, dtype=torch.float64)
        inputs = rows, upstream, _centre(neighbours, side), sums
        library.call('depthwise_weight', *inputs, num, channels, chunks, side)
        return _from_taps(sums.sum(0).to(tiles.dtype))
    if not _pairs_fit(tiles, weight, *window):
        return NotImplemented
    out = empty_maps(tiles, columns, channels, kernel, kernel)
    sizes = num, channels, columns, side, kernel, stride, before, _reach(neighbours)
    inputs = rows, upstream, neighbours.contiguous(), out.permute(0, 2, 3, 1)
    library.call('pairs_weight', *inputs, *sizes)
    return out, rows_of(grad).sum(0)


def _pairs(
    tiles: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    neighbours: Tensor,
    side: int,
    stride: int,
    before: int,
    reverse: bool,
) -> Tensor:
    """A conv that mixes channels, or in reverse the gradient of its input, of tiles of ``side``."""
    kernel, outside = weight.shape[-1], side if reverse else side // stride
    columns = weight.shape[1] if reverse else weight.shape[0]
    out = empty_maps(tiles, len(tiles), columns, outside, outside)
    sizes = len(tiles), tiles.shape[1], columns, side, kernel, stride, before, _reach(neighbours)
    inputs = _rows(tiles), _rows(weight), contiguous(bias), neighbours.contiguous()
    library.call('pairs', *inputs, out.permute(0, 2, 3, 1), *sizes, int(reverse))
    return out


def _depthwise(tiles: Tensor, taps: Tensor, neighbours: Tensor) -> Tensor:
    num, channels, side, _ = tiles.shape
    out = empty_maps(tiles, *tiles.shape)
    args = _rows(tiles), taps, _centre(neighbours, side), out.permute(0, 2, 3, 1)
    library.call('depthwise', *args, num, channels, side)
    return out


def _centre(neighbours: Tensor, side: int) -> Tensor:
    """A table without the tiles that windows of the depth-wise kernel do not reach."""
    own = _reach(neighbours)
    beyond = own + -(_SIDE // 2) // side
    if beyond:
        around = slice(beyond, -beyond)
        neighbours = neighbours.unflatten(1, (2 * own + 1, -1))[:, around, around].flatten(1)
    return neighbours.contiguous()


def _depthwise_fits(tiles: Tensor, weight: Tensor, *window: int) -> bool:
    """Whether the C++ kernel for depth-wise convs takes these."""
    channels, side = tiles.shape[1], tiles.shape[-1]
    return (
        (*weight.shape, *window) == (channels, 1, _SIDE, _SIDE, 1, _SIDE // 2, 1, channels)
        and side in _TILES
        and channels % 8 == 0
        and library.takes(tiles, weight)
    )


def _pairs_fit(tiles: Tensor, weight: Tensor, *window: int) -> bool:
    """Whether the C++ kernel for convs that mix channels takes these."""
    *_, dilation, groups = window
    return (
        dilation == groups == 1
        and weight.shape[0] % 16 == 0
        and weight.shape[1] % 16 == 0
        and library.takes(tiles, weight)
    )


def _reach(neighbours: Tensor) -> int:
    return math.isqrt(neighbours.shape[1]) // 2


def _rows(maps: Tensor) -> Tensor:
    """(N, C, h, w) -> (N, h, w, C), contiguous; a view of channels-last memory."""
    return maps.permute(0, 2, 3, 1).contiguous()


# Depth-wise kernels see a weight as taps (k*k + 1, C), row by row and the bias last, so that all
# that is read and written is contiguous in the channels.


def _taps(tiles: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    taps = weight.flatten(1).t()
    taps = F.pad(taps, (0, 0, 0, 1)) if bias is None else torch.cat([taps, bias[None]])
    return taps.to(sum_type(tiles)).contiguous()


def _from_taps(taps: Tensor) -> tuple[Tensor, Tensor]:
    kernel = math.isqrt(len(taps) - 1)
    return own_maps(taps[:-1].t().view(-1, 1, kernel, kernel)), taps[-1].clone()


# ---------------------------------------------------------------------------- registration


def _weight_like(tiles: Tensor, grad: Tensor, kernel: int, groups: int) -> Tensor:
    """A weight without values: (C', C/groups, k, k)."""
    size = grad.shape[1], tiles.shape[1] // groups, kernel, kernel
    return tiles.new_empty(1).expand(size)


def _check_window(channels, weight, side, stride, before, dilation, groups) -> None:
    columns, depth, kernel, width = weight.shape
    reached = dilation * (kernel - 1) + 1
    if groups < 1 or depth * groups != channels or columns % groups or width != kernel:
        raise ValueError(
            f"weight must have shape (C', {channels}/groups, k, k) with groups={groups} dividing "
            f'both numbers of channels, got {tuple(weight.shape)}'
        )
    if min(stride, dilation) < 1 or side % stride or not 0 <= before < reached:
        raise ValueError(
            f'a conv on tiles of side {side} takes a stride that divides it, dilation >= 1 and '
            f'0 <= before < {reached}; got stride {stride}, dilation {dilation}, before {before}'
        )
    if reached - stride > 2 * before + 1:
        raise ValueError(
            f'a window of {reached} sites, {before} of them before the tile, with stride {stride} '
            f'does not map {side} sites to {side // stride}'
        )


def _check_forward(tiles, weight, bias, neighbours, *window) -> None:
    check_tensor('tiles', tiles, (None, None, None, None))
    check_tensor('weight', weight, (None, None, None, None), like=tiles)
    channels, side = tiles.shape[1], tiles.shape[-1]
    if tiles.shape[2] != side:
        raise ValueError(f'tiles must be square, got shape {tuple(tiles.shape)}')
    _check_window(channels, weight, side, *window)
    check_tensor('bias', bias, (len(weight),), like=tiles)
    check_neighbours(tiles, neighbours, side, max(window[1], _after(weight, *window)))


def _check_to_input(grad, weight, neighbours, side, *window) -> None:
    stride, before, _, groups = window
    check_tensor('weight', weight, (None, None, None, None), like=grad)
    _check_window(weight.shape[1] * groups, weight, side, *window)
    check_tensor('grad', grad, (None, len(weight), side // stride, side // stride))
    check_neighbours(grad, neighbours, side, max(before, _after(weight, *window)))


def _check_to_weight(tiles, grad, neighbours, kernel, *window) -> None:
    stride, before, _, groups = window
    check_tensor('tiles', tiles, (None, None, None, None))
    num, channels, side, _ = tiles.shape
    check_tensor('grad', grad, (num, None, side // stride, side // stride), (tiles.dtype,), tiles)
    if tiles.shape[2] != side:
        raise ValueError(f'tiles must be square, got shape {tuple(tiles.shape)}')
    weight = _weight_like(tiles, grad, kernel, groups)
    _check_window(channels, weight, side, *window)
    check_neighbours(tiles, neighbours, side, max(before, _after(weight, *window)))


def _fake_maps(tiles: Tensor, channels: int, side: int) -> Tensor:
    return empty_maps(tiles, len(tiles), channels, side, side)


def _fake_weight(tiles, grad, neighbours, kernel, *window) -> tuple[Tensor, Tensor]:
    wide, columns = sum_type(tiles), grad.shape[1]
    size = columns, tiles.shape[1] // window[-1], kernel, kernel
    return empty_maps(tiles, *size, dtype=wide), tiles.new_empty(columns, dtype=wide)


def _keep_forward(ctx, inputs, output) -> None:
    tiles, weight, bias, neighbours, *ctx.window = inputs
    ctx.save_for_backward(tiles, weight, neighbours)
    ctx.bias_type = None if bias is None else bias.dtype


def _forward_backward(ctx, grad) -> tuple[Tensor | None, ...]:
    tiles, weight, neighbours = ctx.saved_tensors
    to_tiles = to_weight = to_bias = None
    if ctx.needs_input_grad[0]:
        to_tiles = _conv2d_input(grad, weight, neighbours, tiles.shape[-1], *ctx.window)
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        to_weight, to_bias = _conv2d_weight(tiles, grad, neighbours, weight.shape[-1], *ctx.window)
        to_weight = to_weight.to(weight.dtype)
        to_bias = None if ctx.bias_type is None else to_bias.to(ctx.bias_type)
    return to_tiles, to_weight, to_bias, *[None] * 5


def _keep_to_input(ctx, inputs, output) -> None:
    grad, weight, neighbours, _, *ctx.window = inputs
    ctx.save_for_backward(grad, weight, neighbours)


def _to_input_backward(ctx, upstream) -> tuple[Tensor | None, ...]:
    grad, weight, neighbours = ctx.saved_tensors
    to_grad = to_weight = None
    if ctx.needs_input_grad[0]:
        to_grad = _conv2d(upstream, weight, None, neighbours, *ctx.window)
    if ctx.needs_input_grad[1]:
        kernel = weight.shape[-1]
        to_weight, _ = _conv2d_weight(upstream, grad, neighbours, kernel, *ctx.window)
        to_weight = to_weight.to(weight.dtype)
    return to_grad, to_weight, *[None] * 6


def _keep_to_weight(ctx, inputs, output) -> None:
    tiles, grad, neighbours, _, *ctx.window = inputs
    ctx.save_for_backward(tiles, grad, neighbours)


def _to_weight_backward(ctx, upstream, to_bias) -> tuple[Tensor | None, ...]:
    tiles, grad, neighbours = ctx.saved_tensors
    to_tiles = to_grad = None
    if ctx.needs_input_grad[0]:
        side = tiles.shape[-1]
        to_tiles = _conv2d_input(grad, upstream, neighbours, side, *ctx.window)
    if ctx.needs_input_grad[1]:
        to_grad = _conv2d(tiles, upstream, to_bias, neighbours, *ctx.window)
    return to_tiles, to_grad, *[None] * 6


def _flops(num_outputs: int, weight: Sequence[int]) -> int:
    """Of a forward pass and of either gradient: two for each tap of each output."""
    return 2 * num_outputs * math.prod(weight)


def _forward_flops(tiles, weight, bias, neighbours, stride, *_, out_shape=None) -> int:
    return _flops(tiles[0] * (tiles[-1] // stride) ** 2, weight)


def _to_input_flops(grad, weight, *_, out_shape=None) -> int:
    return _flops(grad[0] * grad[-1] ** 2, weight)


def _to_weight_flops(tiles, grad, *_, out_shape=None) -> int:
    return _flops(grad[0] * grad[-1] ** 2, out_shape[0])


_WINDOW = 'int stride, int before, int dilation, int groups'
_conv2d = define(
    f'conv2d(Tensor tiles, Tensor weight, Tensor? bias, Tensor neighbours, {_WINDOW}) -> Tensor',
    _forward,
    kernel=_forward_kernel,
    check=_check_forward,
    fake=lambda tiles, weight, bias, neighbours, stride, *_: _fake_maps(
        tiles, len(weight), tiles.shape[-1] // stride
    ),
    backward=_forward_backward,
    setup_context=_keep_forward,
    autocast=(0,),
    flops=_forward_flops,
)
_conv2d_input = define(
    f'conv2d_input(Tensor grad, Tensor weight, Tensor neighbours, int side, {_WINDOW}) -> Tensor',
    _to_input,
    kernel=_to_input_kernel,
    check=_check_to_input,
    fake=lambda grad, weight, neighbours, side, *window: _fake_maps(
        grad, weight.shape[1] * window[-1], side
    ),
    backward=_to_input_backward,
    setup_context=_keep_to_input,
    flops=_to_input_flops,
)
_conv2d_weight = define(
    f'conv2d_weight(Tensor tiles, Tensor grad, Tensor neighbours, int kernel, {_WINDOW})'
    ' -> (Tensor, Tensor)',
    _to_weight,
    kernel=_to_weight_kernel,
    check=_check_to_weight,
    fake=_fake_weight,
    backward=_to_weight_backward,
    setup_context=_keep_to_weight,
    flops=_to_weight_flops,
)
