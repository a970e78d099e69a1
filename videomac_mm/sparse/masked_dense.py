"""The masked-dense network: every site computed, hidden ones zeroed where they would be read."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from videomac_mm.sparse.layers import PatchConv2d, PatchGRN, PatchMaxPool2d


@contextmanager
def masked_dense(network: nn.Module, mask: Tensor) -> Iterator[None]:
    """Let ``network(x)`` compute on dense maps what ``network(x, mask)`` defines.

    The oracle of the tests and the baseline of the benchmarks: nothing of the packed
    execution is used. Hidden sites take part wherever a layer works site by site, and are
    zeroed (for pooling set to -inf) before a layer looks across sites. Outputs are zero
    where hidden.

    Args:
        network: a backbone made of this package's layers, called on (B, C, H, W) inside;
            global average pooling in it is over visible sites.
        mask (B, h, w): bool, True = hidden.

    Source: own; the scheme is that of SparK (arXiv 2301.03580), less the needless masking.
    """

    def hidden(size: torch.Size) -> Tensor:
        factor = size[0] // mask.shape[1], size[1] // mask.shape[2]
        cells = mask.repeat_interleave(factor[0], 1).repeat_interleave(factor[1], 2)
        return cells[:, None]  # (B, 1, H, W)

    def convolve(layer: PatchConv2d, x: Tensor, _=None) -> Tensor:
        return type(layer).forward(layer, x.masked_fill(hidden(x.shape[-2:]), 0.0))

    def pool(layer: PatchMaxPool2d, x: Tensor, _=None) -> Tensor:
        x = nn.MaxPool2d.forward(layer, x.masked_fill(hidden(x.shape[-2:]), float('-inf')))
        return x.masked_fill(hidden(x.shape[-2:]), 0.0)  # no infinity travels on

    def pool_visible(layer: PatchGRN, x: Tensor, _=None) -> Tensor:
        seen = x.masked_fill(hidden(x.shape[1:3])[:, 0, :, :, None], 0.0)  # (B, H, W, C)
        dims = (1, 2) if layer.scope == 'sample' else (0, 1, 2)
        response = torch.linalg.vector_norm(seen, dim=dims, keepdim=True)
        response = response / (response.mean(-1, keepdim=True) + layer.eps)
        return torch.addcmul(layer.beta, layer.gamma * response + 1, x)

    def average_visible(_: nn.AdaptiveAvgPool2d, x: Tensor) -> Tensor:
        visible = ~hidden(x.shape[-2:])
        return (x * visible).sum((2, 3), keepdim=True) / visible.sum((2, 3), keepdim=True)

    def normalise_visible(layer: _BatchNorm, x: Tensor) -> Tensor:
        if not layer.training:
            return type(layer).forward(layer, x)
        visible = ~hidden(x.shape[-2:])
        count = visible.sum()
        mean = (x * visible).sum((0, 2, 3), keepdim=True) / count
        var = ((x - mean).square() * visible).sum((0, 2, 3), keepdim=True) / count
        scale, shift = layer.weight[:, None, None], layer.bias[:, None, None]
        return (x - mean) / (var + layer.eps).sqrt() * scale + shift

    def hide(_, args: tuple, outs: Tensor | tuple | list) -> Tensor | tuple:
        if isinstance(outs, Tensor):
            return hide(_, args, (outs,))[0]
        return tuple(
            out.masked_fill(hidden(out.shape[-2:]), 0.0) if out.ndim == 4 else out for out in outs
        )

    changed = []
    for layer in network.modules():
        if isinstance(layer, PatchConv2d) and layer.window().crosses_tiles:
            layer.forward = partial(convolve, layer)
        elif isinstance(layer, PatchMaxPool2d):
            layer.forward = partial(pool, layer)
        elif isinstance(layer, PatchGRN):
            layer.forward = partial(pool_visible, layer)
        elif isinstance(layer, nn.AdaptiveAvgPool2d):
            layer.forward = partial(average_visible, layer)
        elif isinstance(layer, _BatchNorm):
            layer.forward = partial(normalise_visible, layer)
        else:
            continue
        changed.append(layer)
    handle = network.register_forward_hook(hide)
    try:
        yield
    finally:
        handle.remove()
        for layer in changed:
            del layer.forward
