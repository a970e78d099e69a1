"""The masked-dense network: every site computed, hidden ones zeroed where they would be read."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from videomac_mm.sparse.layers import PatchConv2d, PatchGRN


@contextmanager
def masked_dense(network: nn.Module, mask: Tensor) -> Iterator[None]:
    """Let ``network(x)`` compute on dense maps what ``network(x, mask)`` defines.

    The oracle of the tests and the baseline of the benchmarks: nothing of the packed
    execution is used. Hidden sites take part wherever a layer works site by site, and are
    zeroed (for pooling set to -inf) before a layer looks across sites. Batch norm in training,
    and what treats the sites of a map as a set, is given the visible sites alone. Outputs are
    zero where hidden.

    Args:
        network: a backbone made of this package's layers, or one that `sparsify` has turned;
            called on (B, C, H, W) inside.
        mask (B, h, w): bool, True = hidden.

    Source: own; the scheme is that of SparK (arXiv 2301.03580), less the needless masking.
    """

    def hidden(size: torch.Size) -> Tensor:
        factor = size[0] // mask.shape[1], size[1] // mask.shape[2]
        cells = mask.repeat_interleave(factor[0], 1).repeat_interleave(factor[1], 2)
        return cells[:, None]  # (B, 1, H, W)

    def is_map(x: Tensor) -> bool:
        return x.ndim == 4 and x.shape[2] >= mask.shape[1] and x.shape[3] >= mask.shape[2]

    def convolve(layer: nn.Conv2d, x: Tensor, _=None) -> Tensor:
        if is_map(x):
            x = x.masked_fill(hidden(x.shape[-2:]), 0.0)
        return type(layer).forward(layer, x)

    def pool(layer: nn.MaxPool2d, x: Tensor, _=None) -> Tensor:
        x = type(layer).forward(layer, x.masked_fill(hidden(x.shape[-2:]), float('-inf')))
        return x.masked_fill(hidden(x.shape[-2:]), 0.0)  # no infinity travels on

    def average(layer: nn.AvgPool2d, x: Tensor) -> Tensor:
        visible = (~hidden(x.shape[-2:])).to(x.dtype)
        mean = type(layer).forward(layer, x * visible)
        if layer.count_include_pad or layer.divisor_override:
            return mean
        share = type(layer).forward(layer, visible)  # of the sites of a window
        return mean / share.where(share > 0, 1.0)

    def pool_visible(layer: PatchGRN, x: Tensor, _=None) -> Tensor:
        seen = x.masked_fill(hidden(x.shape[1:3])[:, 0, :, :, None], 0.0)  # (B, H, W, C)
        dims = (1, 2) if layer.scope == 'sample' else (0, 1, 2)
        response = torch.linalg.vector_norm(seen, dim=dims, keepdim=True)
        response = response / (response.mean(-1, keepdim=True) + layer.eps)
        return torch.addcmul(layer.beta, layer.gamma * response + 1, x)

    def normalise_visible(layer: _BatchNorm, x: Tensor) -> Tensor:
        if layer.training and is_map(x):
            return run_on_visible(layer, 2, x)
        return type(layer).forward(layer, x)

    def run_on_visible(layer: nn.Module, axis: int, x: Tensor, *args, **kwargs) -> Tensor:
        """Call a layer on rows of the visible sites; ``axis`` is the first one of sites."""
        sides = x.shape[axis : axis + 2] if x.ndim > 3 else x.shape[axis : axis + 1]
        size = sides
        if x.ndim == 3:  # sites in a row
            factor = math.isqrt(sides[0] // mask[0].numel())
            size = mask.shape[1] * factor, mask.shape[2] * factor
        seen = ~hidden(size).flatten(1)  # (B, H*W)
        sites = x.flatten(axis, axis + len(sides) - 1).movedim(axis, 1)
        rows = sites[seen].unflatten(0, (len(x), -1)).movedim(1, axis)
        num = rows.shape[axis]
        rows = rows.unsqueeze(axis + 1) if len(sides) == 2 else rows
        out = type(layer).forward(layer, rows, *args, **kwargs)
        if out.ndim <= axis or out.shape[axis] != num:
            return out
        out = out.flatten(axis, axis + len(sides) - 1).movedim(axis, 1)
        sites = out.new_zeros(*seen.shape, *out.shape[2:])
        sites[seen] = out.flatten(0, 1)
        return sites.movedim(1, axis).unflatten(axis, sides)

    def hide(_, args: tuple, outs: Tensor | tuple | list) -> Tensor | tuple:
        if isinstance(outs, Tensor):
            return outs.masked_fill(hidden(outs.shape[-2:]), 0.0) if is_map(outs) else outs
        return tuple(hide(_, args, out) for out in outs)

    axes = network.sparse_findings.axes if hasattr(network, 'sparse_findings') else {}
    inside = tuple(f'{name}.' for name in axes)
    changed = []
    for name, layer in network.named_modules():
        if name.startswith(inside):
            continue
        if name in axes:
            if axes[name] == 0:  # it drops images
                continue
            forward = partial(run_on_visible, layer, axes[name])
        elif isinstance(layer, PatchConv2d) and not layer.window().crosses_tiles:
            continue
        else:
            functions = {
                nn.Conv2d: convolve,
                nn.MaxPool2d: pool,
                nn.AvgPool2d: average,
                PatchGRN: pool_visible,
                _BatchNorm: normalise_visible,
            }
            kind = next((kind for kind in functions if isinstance(layer, kind)), None)
            if kind is None:
                continue
            forward = partial(functions[kind], layer)
        layer.forward = forward
        changed.append(layer)
    handle = network.register_forward_hook(hide)
    try:
        yield
    finally:
        handle.remove()
        for layer in changed:
            del layer.forward
