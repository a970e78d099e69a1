"""The few layers that must know the mask. Without one each is its ordinary dense layer."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from videomac_mm.sparse import cpu_kernels, depthwise, spconv
from videomac_mm.sparse.functional import (
    DepthwiseConv2d,
    NormGelu,
    PairConv,
    ResponseNorm,
    ResponseNormMLP,
    maps_of,
    rows_of,
)
from videomac_mm.sparse.patches import VisiblePatches

CONV_BACKENDS = ('auto', 'torch', 'spconv')


def set_conv_backend(network: nn.Module, backend: str) -> None:
    """Choose what computes the layers of a network on packed tiles.

    Args:
        network: holds layers of this package.
        backend: 'auto', this package's kernels where they are faster than torch: Triton's on
            GPUs, compiled C++ on CPUs; 'torch', torch alone; or 'spconv', the spconv library
            for convs that mix channels and look across tiles, else as 'auto'.

    Raises:
        ValueError: for another ``backend``.
        ImportError: for 'spconv' where it is not installed; names the extra.
    """
    if backend not in CONV_BACKENDS:
        raise ValueError(f'conv_backend must be one of {CONV_BACKENDS}, got {backend!r}')
    if backend == 'spconv':
        spconv.check_available()
    for layer in network.modules():
        if isinstance(layer, (PatchConv2d, PatchMaxPool2d, PatchGRN, LayerNorm2d)):
            layer.backend = backend


class _Window:
    """How far a conv or pooling window of a tile reaches over the tile's border."""

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

    def check(self, tiles: Tensor) -> Tensor:
        """Return tiles (N, C, p, p), or say that the stride does not divide p."""
        side = tiles.shape[-1]
        if side % self.stride:
            raise ValueError(
                f'tiles of side {side} cannot be strided by {self.stride}: the mask patches '
                'are smaller than the stride of the network'
            )
        return tiles

    def run(
        self,
        layer: Callable[[Tensor], Tensor],
        valid: Callable[[Tensor], Tensor],
        tiles: Tensor,
        patches: VisiblePatches,
        execution: str,
        fill: float,
        kernels: bool,
    ) -> Tensor:
        """Run ``valid`` (no padding) on halos or ``layer`` (padded) on a canvas."""
        self.check(tiles)
        if self.before == self.after == 0:
            return valid(tiles)
        if execution == 'auto':
            halo, canvas = patches.num_sites(tiles.shape[-1], self.before, self.after)
            execution = 'halo' if halo < canvas else 'canvas'
        if execution == 'halo':
            return valid(patches.halo(tiles, self.before, self.after, fill, kernels))
        return patches.pack(layer(patches.unpack(tiles, fill)))


class PatchConv2d(nn.Conv2d):
    """`torch.nn.Conv2d` that can run on packed tiles; same parameters, same keys.

    On tiles it equals the dense conv on maps whose hidden sites are zero, read at the
    visible sites. Kernels that stay inside a tile run on it as they are. Others run on
    tiles with their ``halo``, on a ``canvas`` (the whole map), or straight from the tiles in a
    kernel of this package; the results agree up to rounding.

    Args:
        execution: 'halo', 'canvas' or 'auto': what costs less. That is a kernel, where there is
            one; else the halo if channels are mixed, where outputs count, and whichever reads
            fewer sites in depth-wise convs, which are bound by memory. Defaults to 'auto'.
        *args, **kwargs: as `torch.nn.Conv2d`; square, and ``padding`` such that a map of
            n*stride sites gives n.

    Raises:
        ValueError: for windows that do not map tiles to tiles, padding other than zeros, or an
            unknown ``execution``.

    Source: own.
    """

    backend = 'auto'  # see `set_conv_backend`

    def __init__(self, *args, execution: str = 'auto', **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.padding_mode != 'zeros':  # what is hidden is zero, and so is what is outside
            raise ValueError(f"padding_mode must be 'zeros', got {self.padding_mode!r}")
        if execution not in ('auto', 'halo', 'canvas'):
            raise ValueError(f"execution must be 'auto', 'halo' or 'canvas', got {execution!r}")
        self.execution = execution
        self._window = _Window(self)
        # So that the weight is read as a matrix without a copy. Shape and keys stay.
        self.to(memory_format=torch.channels_last)

    @property
    def _takes_kernel(self) -> bool:
        """Whether a kernel for depth-wise convs could stand for torch."""
        return (
            self.execution == 'auto'
            and self.backend != 'torch'
            and self.in_channels == self.out_channels == self.groups
            and self.stride == self.dilation == (1, 1)
            and self._window.before == self._window.after == self.kernel_size[0] // 2
        )

    @property
    def crosses_tiles(self) -> bool:
        """Whether a window reads beyond the tile that it writes to."""
        return self._window.before > 0 or self._window.after > 0

    def forward(self, x: Tensor, patches: VisiblePatches | None = None) -> Tensor:
        """Dense maps (B, C, H, W), or with ``patches`` tiles (B*K, C, p, p)."""
        if patches is None:
            return self._same(x)
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        if self._takes_kernel and depthwise.is_available(x, kernel):
            return depthwise.depthwise_conv2d(x, self.weight, self.bias, patches)
        x = self._window.check(x)
        mixes = self.groups == 1 and self.dilation == (1, 1)
        if mixes and self.crosses_tiles and self.execution == 'auto':
            if self.backend == 'spconv':
                padding = self._window.before
                return spconv.conv2d(x, self.weight, self.bias, stride, padding, patches)
            rows = x.permute(0, 2, 3, 1)
            if self.backend == 'auto' and cpu_kernels.mixes(rows, self.out_channels):
                return self._over_pairs(x, patches)
        # With few sites per tile conv libraries are slow; a matrix product takes all at once.
        if mixes and self.execution != 'canvas' and (kernel == 1 or x.shape[-1] <= 2 * stride):
            return self._as_matrix(x, patches)
        execution = 'halo' if self.groups == 1 and self.execution == 'auto' else self.execution
        return self._window.run(
            self._same, self._valid, x, patches, execution, 0.0, self.backend != 'torch'
        )

    def _over_pairs(self, x: Tensor, patches: VisiblePatches) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        tables = patches.pairs(x.shape[-1], kernel, stride, self._window.before)
        weight = self.weight.permute(0, 2, 3, 1).flatten(1, 2)
        out = PairConv.apply(rows_of(x), weight, *tables)
        if self.bias is not None:
            out = out + self.bias
        num = x.shape[-1] // stride
        return maps_of(out, len(x), num, num)

    def _as_matrix(self, x: Tensor, patches: VisiblePatches) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        num = x.shape[-1] // stride
        if kernel == 1:
            rows = x[:, :, ::stride, ::stride].permute(0, 2, 3, 1).reshape(-1, self.in_channels)
        else:
            rows = patches.windows(
                x, kernel, stride, self._window.before, kernels=self.backend != 'torch'
            )
            rows = rows.flatten(3).flatten(0, 2)
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(rows, weight, self.bias).view(-1, num, num, len(weight)).permute(0, 3, 1, 2)

    def _same(self, x: Tensor) -> Tensor:
        return self._convolve(x, self.padding)

    def _valid(self, x: Tensor) -> Tensor:
        return self._convolve(x, (0, 0))

    def _convolve(self, x: Tensor, padding: tuple[int, int]) -> Tensor:
        # What `DepthwiseConv2d` can do, and does faster than torch; not so kernels of 3×3.
        is_depthwise = (
            self.in_channels == self.out_channels == self.groups
            and self.kernel_size == (7, 7)
            and self.stride == self.dilation == (1, 1)
        )
        in_onednn = x.device.type == 'cpu' and x.dtype == self.weight.dtype == torch.float32
        if is_depthwise and in_onednn and not torch.is_autocast_enabled('cpu'):
            return DepthwiseConv2d.apply(x, self.weight, self.bias, padding)
        return F.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


def patchify(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Run a k×k conv of stride k, which never crosses tiles, as one matrix product.

    Args:
        conv: without padding; fastest if its weight is in channels-last memory.
        x (N, C, p, p): tiles; k divides p.

    Returns:
        (N, C', p/k, p/k)
    """
    side = conv.stride[0]
    x = x.permute(0, 2, 3, 1).unflatten(2, (-1, side)).unflatten(1, (-1, side))
    rows = x.transpose(2, 3).flatten(3)  # (N, n, k, n, k, C) -> (N, n, n, k*k*C)
    weight = conv.weight.permute(0, 2, 3, 1).flatten(1)
    return F.linear(rows, weight, conv.bias).permute(0, 3, 1, 2)


class PatchMaxPool2d(nn.MaxPool2d):
    """`torch.nn.MaxPool2d` that can run on packed tiles.

    Hidden sites are absent, as sites outside of the image are: the maximum is over the
    visible sites of a window alone.

    Args:
        *args, **kwargs: as `torch.nn.MaxPool2d`, with the limits of `PatchConv2d`.
    """

    backend = 'auto'  # see `set_conv_backend`

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._window = _Window(self)

    def forward(self, x: Tensor, patches: VisiblePatches | None = None) -> Tensor:
        """Dense maps (B, C, H, W), or with ``patches`` tiles (B*K, C, p, p)."""
        if patches is None:
            return super().forward(x)
        return self._window.run(
            super().forward,
            self._valid,
            x,
            patches,
            'auto',
            fill=float('-inf'),
            kernels=self.backend != 'torch',
        )

    def _valid(self, x: Tensor) -> Tensor:
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

    backend = 'auto'  # see `set_conv_backend`

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
        out = ResponseNorm.apply(self._groups(x, patches), self.gamma, self.beta, self.eps)
        return out.view_as(x)

    def _groups(self, x: Tensor, patches: VisiblePatches | None) -> Tensor:
        """The sites that are pooled together: (G, S, C)."""
        if patches is None:
            return x.flatten(1, 2)
        if self.scope == 'sample':
            return patches.per_image(x)
        return x.reshape(1, -1, x.shape[-1])

    def mlp(
        self, x: Tensor, linear1: nn.Linear, linear2: nn.Linear, patches: VisiblePatches
    ) -> Tensor:
        """``linear2(self(gelu(linear1(x)), patches))``, in fewer passes where the CPU kernels are.

        Args:
            x (B*K, p, p, C): channels-last tiles.
            linear1, linear2: with biases.
            patches: the geometry of the tiles.
        """
        if self.backend == 'torch' or not cpu_kernels.available(x) or linear1.out_features % 8:
            return linear2(self(F.gelu(linear1(x)), patches))
        first, second = ((linear.weight, linear.bias) for linear in (linear1, linear2))
        out = ResponseNormMLP.apply(
            self._groups(x, patches), *first, self.gamma, self.beta, self.eps, *second
        )
        return out.view(*x.shape[:-1], -1)


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

    backend = 'auto'  # see `set_conv_backend`

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def then_gelu(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``gelu(self(x) + residual)``, in fewer passes where the CPU kernels are."""
        if self.backend == 'torch' or not cpu_kernels.available(x.permute(0, 2, 3, 1)):
            return F.gelu(self(x) if residual is None else self(x) + residual)
        return NormGelu.apply(x, self.weight, self.bias, residual, self.eps)


def is_exact_gelu(act: nn.Module) -> bool:
    """Whether a layer is the GELU that the fused operations compute."""
    return type(act) is nn.GELU and act.approximate == 'none'
