"""The layers that must know the mask. Without one each is its ordinary dense layer."""

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from videomac_mm.sparse import ops
from videomac_mm.sparse.geometry import VisiblePatches, rows_of
from videomac_mm.sparse.ops import spconv

BACKENDS = ('auto', 'torch', 'spconv')


def set_backend(network: nn.Module, backend: str) -> None:
    """Choose what computes the layers of a network on packed tiles.

    Args:
        network: holds layers of this package, or was sparsified.
        backend: 'auto', the operators of this package, with kernels where there are any (Triton
            on GPUs, C++ on CPUs); 'torch', torch's own layers alone; or 'spconv', the spconv
            library for convs that mix channels and look across tiles on GPUs in float32 and
            float16, which is what it computes correctly, and all else as 'auto'.

    Raises:
        ValueError: for another ``backend``.
        ImportError: for 'spconv' where it is not installed; names the extra.
    """
    if backend not in BACKENDS:
        raise ValueError(f'backend must be one of {BACKENDS}, got {backend!r}')
    if backend == 'spconv':
        spconv.check_available()
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, PatchGRN, LayerNorm2d)):  # plain convs if sparsified
            layer.backend = backend


def norms_over_sites(network: nn.Module) -> list[str]:
    """Names of norms that mix the sites of a map, and would take a tile for an image."""
    kinds = nn.GroupNorm, nn.modules.instancenorm._InstanceNorm, nn.LocalResponseNorm
    return [name for name, layer in network.named_modules() if isinstance(layer, kinds)]


class PatchConv2d(nn.Conv2d):
    """`torch.nn.Conv2d` that can run on packed tiles; same parameters, same keys.

    On tiles it equals the dense conv on maps whose hidden sites are zero, read at the visible
    sites. A conv whose windows stay inside a tile is one matrix product; others see
    neighbouring tiles by `ops.conv2d`.

    Args:
        *args, **kwargs: as `torch.nn.Conv2d`; square, and ``padding`` such that a map of
            n*stride sites gives n.

    Raises:
        ValueError: for windows that do not map tiles to tiles, or padding other than zeros.

    Source: own.
    """

    backend = 'auto'  # see `set_backend`

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.padding_mode != 'zeros':  # what is hidden is zero, and so is what is outside
            raise ValueError(f"padding_mode must be 'zeros', got {self.padding_mode!r}")
        self.window()
        # So that the weight is read as a matrix without a copy. Shape and keys stay.
        self.to(memory_format=torch.channels_last)

    def window(self) -> 'Window':
        """How far windows reach over the border of a tile, by the layer's present settings."""
        return Window(self)

    def forward(self, x: Tensor, patches: VisiblePatches | None = None) -> Tensor:
        """Dense maps (B, C, H, W), or with ``patches`` tiles (B*K, C, p, p)."""
        if patches is None:
            return super().forward(x)
        window, kernel, dilation = self.window(), self.kernel_size[0], self.dilation[0]
        window.check(x)
        mixes = self.groups == dilation == 1
        if not window.crosses_tiles:
            if mixes and kernel in (1, window.stride):
                return self._inside(x, window.stride)
            return F.conv2d(x, self.weight, self.bias, window.stride, 0, dilation, self.groups)
        if self.backend == 'spconv' and mixes and spconv.takes(x):
            return spconv.conv2d(x, self.weight, self.bias, patches, window.stride, window.before)
        convolve = ops.conv2d_on_halos if self.backend == 'torch' else ops.conv2d
        settings = window.stride, window.before, dilation, self.groups
        return convolve(x, self.weight, self.bias, patches, *settings)

    def _inside(self, x: Tensor, stride: int) -> Tensor:
        """A conv of 1×1, or one whose stride is its kernel: one matrix product for all tiles."""
        num = x.shape[-1] // stride
        x = x.permute(0, 2, 3, 1)  # (N, p, p, C)
        if self.kernel_size[0] == 1:
            rows = x[:, ::stride, ::stride].reshape(-1, self.in_channels)
        else:
            x = x.unflatten(2, (-1, stride)).unflatten(1, (-1, stride))
            rows = x.transpose(2, 3).flatten(3).flatten(0, 2)  # (N, n, k, n, k, C) to (M, k*k*C)
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        out = F.linear(rows, weight, self.bias)
        return out.view(-1, num, num, self.out_channels).permute(0, 3, 1, 2)


class Window:
    """How far a conv or pooling window of a tile reaches over the tile's border.

    Args:
        layer: a conv or pooling.

    Raises:
        ValueError: if it is not square, or does not map n*stride sites to n.
    """

    def __init__(self, layer: nn.Module) -> None:
        sizes = [
            (value, value) if isinstance(value, int) else tuple(value)
            for value in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        ]
        if any(first != second for first, second in sizes):
            raise ValueError(f'a patch layer needs square windows, got {layer}')
        (kernel, _), (self.stride, _), (padding, _), (dilation, _) = sizes
        kernel = dilation * (kernel - 1) + 1
        # Output site i reads stride*i - padding ... stride*i - padding + kernel - 1.
        self.before = padding
        self.after = max(kernel - self.stride - padding, 0)
        # Only then is a map of n*stride sites brought to n sites, tile by tile or as a whole.
        if not kernel - self.stride <= 2 * padding < kernel:
            raise ValueError(
                'a patch layer maps n*stride sites to n, which takes '
                f'kernel - stride <= 2*padding < kernel; got kernel {kernel}, '
                f'stride {self.stride}, padding {padding}'
            )

    @property
    def crosses_tiles(self) -> bool:
        """Whether a window reads beyond the tile that it writes to."""
        return self.before > 0 or self.after > 0

    def surround(self, tiles: Tensor, patches: VisiblePatches, fill: float = 0.0) -> Tensor:
        """Tiles with the sites around them that windows read; ``fill`` is what does not exist."""
        if not self.crosses_tiles:
            return tiles
        near = patches.neighbours_within(max(self.before, self.after), tiles.shape[-1])
        return ops.halo(tiles, near, self.before, self.after, fill)

    def check(self, tiles: Tensor) -> None:
        """Raise if the stride does not divide the side of tiles (N, C, p, p)."""
        if tiles.shape[-1] % self.stride:
            raise ValueError(
                f'tiles of side {tiles.shape[-1]} cannot be strided by {self.stride}: the mask '
                'patches are smaller than the stride of the network'
            )


class PatchMaxPool2d(nn.MaxPool2d):
    """`torch.nn.MaxPool2d` that can run on packed tiles.

    Hidden sites are absent, as sites outside of the image are: the maximum is over the
    visible sites of a window alone.

    Args:
        *args, **kwargs: as `torch.nn.MaxPool2d`, with the limits of `PatchConv2d`.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        Window(self)

    def forward(self, x: Tensor, patches: VisiblePatches | None = None) -> Tensor:
        """Dense maps (B, C, H, W), or with ``patches`` tiles (B*K, C, p, p)."""
        if patches is None:
            return super().forward(x)
        window = Window(self)
        window.check(x)
        x = window.surround(x, patches, float('-inf'))
        return F.max_pool2d(x, self.kernel_size, self.stride, 0, self.dilation)


class PatchGRN(nn.Module):
    """Global Response Normalization (`ConvNeXt V2 <https://arxiv.org/abs/2301.00808>`_, §3.3).

    Keys and dense results are those of ``mmpretrain.GRN``.

    Args:
        in_channels: C.
        eps: added to the mean response.
        scope: what the response is pooled over under a mask: 'sample', the visible sites of
            one image, or 'batch', those of all images, as VideoMAC's official code does.
            Dense maps are always pooled per image. Defaults to 'sample'.

    Raises:
        ValueError: for another ``scope``.
    """

    backend = 'auto'  # see `set_backend`

    def __init__(self, in_channels: int, eps: float = 1e-6, scope: str = 'sample') -> None:
        super().__init__()
        if scope not in ('sample', 'batch'):
            raise ValueError(f"grn scope must be 'sample' or 'batch', got {scope!r}")
        self.gamma = nn.Parameter(torch.zeros(in_channels))
        self.beta = nn.Parameter(torch.zeros(in_channels))
        self.eps = eps
        self.scope = scope

    def forward(self, x: Tensor, patches: VisiblePatches | None = None) -> Tensor:
        """Channels-last maps (B, H, W, C), or with ``patches`` tiles (B*K, p, p, C)."""
        return ops.grn(self.groups(x, patches), self.gamma, self.beta, self.eps).view_as(x)

    def groups(self, x: Tensor, patches: VisiblePatches | None) -> Tensor:
        """View maps or tiles as the sites that are pooled together: (G, S, C)."""
        if patches is None:
            return x.flatten(1, 2)
        if self.scope == 'sample':
            return patches.per_image(x)
        return x.reshape(1, -1, x.shape[-1])


class PatchDropPath(DropPath):
    """Stochastic depth that drops whole images, not tiles of them."""

    def forward(self, x: Tensor, patches: VisiblePatches | None = None) -> Tensor:
        """Maps (B, ...), or with ``patches`` tiles (B*K, ...)."""
        if patches is None or not self.training or self.drop_prob == 0.0:
            return super().forward(x)
        images = x.unflatten(0, (patches.batch_size, -1))
        return super().forward(images).flatten(0, 1)


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of maps (N, C, H, W), which keeps channels-last memory."""

    backend = 'auto'  # see `set_backend`

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


# ------------------------------------------------------------------ several layers at once


def is_plain(module: nn.Module, kind: type) -> bool:
    """Whether calling a module is no more than the ``forward`` of ``kind``.

    Layers are computed together only where this holds for each. Subclasses, adapters, hooks and
    replaced methods are called as the modules that they are.
    """
    return (
        type(module) is kind
        and 'forward' not in module.__dict__
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and not module._backward_hooks
        and not module._backward_pre_hooks
        and not torch_module._has_any_global_hook()
    )


def is_plain_gelu(module: nn.Module) -> bool:
    """Whether calling a module is exact GELU and no more."""
    return is_plain(module, nn.GELU) and module.approximate == 'none'


def linear_gelu_grn(
    linear: nn.Module, act: nn.Module, norm: nn.Module, x: Tensor, patches: VisiblePatches
) -> Tensor:
    """``norm(act(linear(x)), patches)``, in fewer passes if the three are plain layers.

    Args:
        linear, act, norm: such as `torch.nn.Linear`, `torch.nn.GELU` and `PatchGRN`.
        x (B*K, p, p, C): channels-last tiles.
        patches: the geometry of the tiles.
    """
    is_known = is_plain(linear, nn.Linear) and is_plain_gelu(act) and is_plain(norm, PatchGRN)
    if not is_known or norm.backend == 'torch':
        return norm(act(linear(x)), patches)
    wide = F.linear(x, linear.weight)
    groups = norm.groups(wide, patches)
    return ops.gelu_grn(groups, linear.bias, norm.gamma, norm.beta, norm.eps).view_as(wide)


def norm_act(
    norm: nn.Module,
    act: nn.Module,
    x: Tensor,
    patches: VisiblePatches | None,
    residual: Tensor | None = None,
) -> Tensor:
    """``act(norm(x) + residual)``; on tiles in one pass if norm and act are `LayerNorm2d` and GELU.

    Args:
        norm, act: layers.
        x: maps (B, C, H, W), or with ``patches`` tiles (B*K, C, p, p).
        patches: the geometry of tiles; or None.
        residual: that ``norm(x)`` can be added to; or None.
    """
    is_known = is_plain(norm, LayerNorm2d) and is_plain_gelu(act) and norm.backend != 'torch'
    fits = residual is None or residual.shape == x.shape
    if patches is None or not is_known or not fits or norm.weight is None or norm.bias is None:
        return act(norm(x) if residual is None else norm(x) + residual)
    (num, channels, height, width), rows = x.shape, rows_of(x)
    residual = None if residual is None else rows_of(residual)
    out = ops.norm_gelu(rows, norm.weight, norm.bias, residual, norm.eps)
    return out.view(num, height, width, channels).permute(0, 3, 1, 2)
