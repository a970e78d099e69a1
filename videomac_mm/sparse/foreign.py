"""Convs, pooling and other layers of any package on packed tiles: their own code runs."""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from videomac_mm.sparse.geometry import VisiblePatches
from videomac_mm.sparse.layers import PatchConv2d, Window

WINDOWED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)  # what `run_windowed` takes


def run_windowed(layer: nn.Module, patches: VisiblePatches, x: Tensor) -> Tensor:
    """Call a conv or pooling on packed tiles instead of maps.

    The ``forward`` of the layer's class runs. In it, ``F.conv2d``, ``F.max_pool2d``,
    ``F.avg_pool2d`` and the ``F.pad`` before them see neighbouring tiles. So subclasses work as
    they are: those that pad as TensorFlow does, standardise their weight, or add an adapter.
    To all of them a hidden site is what a site outside of the image is, padding.

    Args:
        layer: of `WINDOWED`, or of a subclass.
        patches: the geometry of the tiles.
        x (B*K, C, p, p): tiles.

    Returns:
        (B*K, C', p/stride, p/stride)

    Raises:
        ValueError: if the windows do not map n*stride sites to n.
    """
    with _OnTiles(layer, patches):
        return type(layer).forward(layer, x)


def run_on_images(
    layer: nn.Module, axis: int, patches: VisiblePatches, x: Tensor, *args, **kwargs
) -> Tensor:
    """Call a layer that pools over sites on the visible sites of each image.

    The tiles of an image are put one below the other, as one map, and taken apart again.

    Args:
        layer: treats the sites of a map as a set, as squeeze-excite and group norm do.
        axis: of ``x``, the first of its axes of sites: 2 of (B*K, C, p, p), 1 of
            (B*K, p, p, C). 0 if the layer drops images, whatever their shape.
        patches: the geometry of the tiles.
        x: tiles.
        *args, **kwargs: further arguments of the layer.

    Returns:
        What the layer returns, for tiles. Each tile is given what was pooled over its image.
    """
    num = patches.num_visible
    tiles = x.unflatten(0, (patches.batch_size, num))
    if axis == 0:
        return layer.forward(tiles, *args, **kwargs).flatten(0, 1)
    images = tiles.movedim(1, axis).flatten(axis, axis + 1)
    out = layer.forward(images, *args, **kwargs)
    if out.ndim > axis and out.shape[axis] == images.shape[axis]:
        return out.unflatten(axis, (num, -1)).movedim(axis, 1).flatten(0, 1)
    return out.repeat_interleave(num, 0)


class _OnTiles(TorchFunctionMode):
    """Within it, convs and pooling of tiles are those of the masked images."""

    def __init__(self, layer: nn.Module, patches: VisiblePatches) -> None:
        super().__init__()
        self.layer, self.patches = layer, patches
        self.pads = [(0, 0), (0, 0)]  # sites before and after, by axis; not applied yet

    def __torch_function__(self, func, types, args=(), kwargs=None):
        replaced = {
            F.conv2d: self._conv2d,
            F.max_pool2d: self._max_pool2d,
            F.avg_pool2d: self._avg_pool2d,
            F.pad: self._pad,
        }
        return replaced.get(func, func)(*args, **(kwargs or {}))

    def _pad(
        self, x: Tensor, pad: tuple, mode: str = 'constant', value: float | None = None
    ) -> Tensor:
        if len(x) != self.patches.num_tiles or len(pad) != 4:
            return F.pad(x, pad, mode, value)
        if mode != 'constant':  # what is hidden is zero, and so is what is outside
            raise ValueError(f"padding_mode must be 'zeros', got {mode!r}")
        left, right, top, bottom = pad
        self.pads = [(top, bottom), (left, right)]
        return x

    def _conv2d(
        self, x: Tensor, weight: Tensor, bias=None, stride=1, padding=0, dilation=1, groups=1
    ) -> Tensor:
        sizes, strides, dilations = tuple(weight.shape[2:]), _pair(stride), _pair(dilation)
        if strides[0] != strides[1] or (dilations[0] != dilations[1] and 1 not in sizes):
            raise ValueError(f'a patch layer needs square strides and dilations, got {self.layer}')
        stride, dilation = strides[0], dilations[sizes[0] == 1]
        if isinstance(padding, str):
            reach = [dilation * (size - 1) if padding == 'same' else 0 for size in sizes]
            self.pads = [(sites // 2, sites - sites // 2) for sites in reach]
            padding = 0
        starts = [
            _before(dilation * (size - 1) + 1, stride, pads)
            for size, pads in zip(sizes, self._take_pads(padding))
        ]
        # Windows that are not square are square ones with zeros in their weights.
        before = max(starts)
        above, left = [(before - start) // dilation for start in starts]
        size = max(above + sizes[0], left + sizes[1])
        if sizes != (size, size):
            right, below = size - left - sizes[1], size - above - sizes[0]
            weight = F.pad(weight, (left, right, above, below))
        window = _window(dilation * (size - 1) + 1, stride, before)
        conv = PatchConv2d.__new__(PatchConv2d)
        conv.__dict__ = {
            **self.layer.__dict__,
            '_parameters': dict(weight=weight, bias=bias),
            **dict(in_channels=x.shape[1], out_channels=len(weight), groups=groups),
            **dict(kernel_size=(size,) * 2, stride=strides, dilation=(dilation,) * 2),
            'window': lambda: window,
        }
        return conv.forward(x, self.patches)

    def _max_pool2d(
        self,
        x: Tensor,
        kernel_size: int | tuple,
        stride: int | tuple | None = None,
        padding: int | tuple = 0,
        dilation: int | tuple = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Tensor:
        """The maximum of the visible sites of a window, as `PatchMaxPool2d` computes it."""
        stride = stride or kernel_size
        window = self._pooled(x, (kernel_size, stride, dilation), padding, ceil_mode)
        x = window.surround(x, self.patches, float('-inf'))
        return F.max_pool2d(x, kernel_size, stride, 0, dilation)

    def _avg_pool2d(
        self,
        x: Tensor,
        kernel_size: int | tuple,
        stride: int | tuple | None = None,
        padding: int | tuple = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Tensor:
        """The mean of a window; hidden sites count as those outside of the image do."""
        stride = stride or kernel_size
        window = self._pooled(x, (kernel_size, stride, 1), padding, ceil_mode)
        if ceil_mode and window.crosses_tiles:
            raise ValueError(f'average pooling with ceil_mode cannot overlap, got {self.layer}')

        def mean(x: Tensor) -> Tensor:
            return F.avg_pool2d(
                window.surround(x, self.patches),
                kernel_size,
                stride,
                divisor_override=divisor_override,
            )

        if count_include_pad or divisor_override or not window.crosses_tiles:
            return mean(x)
        return mean(x) / mean(x.new_ones(len(x), 1, *x.shape[2:]))

    def _pooled(self, x: Tensor, settings: tuple, padding: int | tuple, ceil_mode: bool) -> Window:
        kernels, strides, dilations = map(_pair, settings)
        pads, more_pads = self._take_pads(padding)
        for first, second in (kernels, strides, dilations, (pads, more_pads)):
            if first != second:
                raise ValueError(f'a patch layer needs square windows, got {self.layer}')
        extent = dilations[0] * (kernels[0] - 1) + 1
        window = _window(extent, strides[0], _before(extent, strides[0], pads, ceil_mode))
        window.check(x)
        return window

    def _take_pads(self, padding: int | tuple) -> list[tuple[int, int]]:
        """Sites that are added before and after, in all, by axis."""
        taken, self.pads = self.pads, [(0, 0), (0, 0)]
        return [
            (before + more, after + more) for (before, after), more in zip(taken, _pair(padding))
        ]


def _before(extent: int, stride: int, padding: tuple[int, int], ceil_mode: bool = False) -> int:
    """By how many sites the first window starts before the map; checks that n*stride give n."""
    both = sum(padding)
    least, most = extent - stride, extent - 1
    if ceil_mode:
        least, most = extent - 2 * stride + 1, extent - stride
    if not least <= both <= most:
        raise ValueError(
            f'a patch layer maps n*stride sites to n, which takes {least} to {most} sites of '
            f'padding, on both sides together; got kernel {extent}, stride {stride}, '
            f'padding {both}, {ceil_mode=}'
        )
    return padding[0]


def _window(extent: int, stride: int, before: int) -> Window:
    window = Window.__new__(Window)
    window.stride, window.before = stride, before
    window.after = max(extent - stride - before, 0)
    return window


def _pair(value: int | tuple) -> tuple:
    return (value, value) if isinstance(value, int) else tuple(value)
