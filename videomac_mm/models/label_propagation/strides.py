"""Denser maps from a backbone: later strides are taken out."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def set_stride(backbone: nn.Module, stride: int | None, dilate: bool = False) -> tuple[int, bool]:
    """Let a backbone give denser maps, without touching its weights.

    Every conv or pooling whose input already has the stride wanted is no longer strided; even
    kernels are then padded below and to the right, so that sizes stay. The backbone can still
    be copied and pickled. It no longer takes a mask: the tiles of a masked forward are made
    for the strides that it was built with.

    Args:
        backbone: changed in place.
        stride: wanted, in pixels per cell of the (last) output; None: leave it.
        dilate: dilate kernels by as much as their input is denser than in training, so that
            they see what they saw. Otherwise they look more closely, as the kernels of
            ResNets do in CRW and DINO.

    Returns:
        The stride; and whether images must be padded to multiples of it, since the backbone
        drops cells that are cut off by the border.

    Raises:
        ValueError: if the backbone cannot have this stride, or gives neither maps nor tokens.
    """
    own = _measure(backbone)
    if stride is not None and stride != own:
        if stride > own:
            raise ValueError(f'the backbone has a stride of {own}: {stride} is coarser')
        for layer, size in _strided_layers(backbone):
            _densify(layer, _PROBE // size, stride, dilate)
        if _measure(backbone) != stride:
            raise ValueError(
                f'the backbone, of stride {own}, cannot have a stride of {stride}: its layers '
                'do not pass through it'
            )
        backbone.register_forward_pre_hook(_NoMask(own, stride), with_kwargs=True)
    stride = stride or own
    cut = _run(backbone, _PROBE + 1)
    return stride, cut.shape[-2] <= _PROBE // stride if cut.ndim == 4 else True


_PROBE = 256  # pixels; a multiple of all strides


def _run(backbone: nn.Module, size: int) -> Tensor:
    """The output of a backbone for a blank image, as in testing."""
    training = backbone.training
    device = next(backbone.parameters()).device
    backbone.eval()
    with torch.no_grad():
        out = backbone(torch.zeros(1, 3, size, size, device=device))
    backbone.train(training)
    return out[-1] if isinstance(out, (tuple, list)) else out


def _measure(backbone: nn.Module) -> int:
    out = _run(backbone, _PROBE)
    if out.ndim not in (3, 4):
        raise ValueError(
            'a backbone must give maps (B, C, h, w) or tokens (B, L, C), got a tensor of shape '
            f'{tuple(out.shape)} for an image of {_PROBE}x{_PROBE} pixels'
        )
    # Class tokens are fewer than another row and column of places.
    side = out.shape[-1] if out.ndim == 4 else math.isqrt(out.shape[1])
    return _PROBE // side


def _strided_layers(backbone: nn.Module) -> list[tuple[nn.Module, int]]:
    """Convs and poolings with the sides of their inputs, in the order of their use."""
    seen = []
    handles = [
        layer.register_forward_pre_hook(lambda layer, args: seen.append((layer, args[0].shape[-1])))
        for layer in backbone.modules()
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d))
    ]
    _run(backbone, _PROBE)
    for handle in handles:
        handle.remove()
    return seen


def _densify(layer: nn.Module, in_stride: int, wanted: int, dilate: bool) -> None:
    """Take out the stride of a layer whose input had ``in_stride``, if it is not wanted."""
    if in_stride < wanted:
        return
    kernel, padding = _one(layer.kernel_size), _one(layer.padding)
    dilation = _one(getattr(layer, 'dilation', 1))
    if dilate and kernel > 1 and hasattr(layer, 'dilation'):
        dilation *= in_stride // wanted
        padding *= in_stride // wanted
        layer.dilation, layer.padding = (dilation, dilation), (padding, padding)
    if _one(layer.stride) > 1:
        layer.stride = (1, 1)
        missing = dilation * (kernel - 1) - 2 * padding
        if missing > 0:
            layer.register_forward_pre_hook(_PadAfter(missing))


class _PadAfter:
    """Forward pre-hook: zeros below and to the right. A class, because lambdas do not pickle."""

    def __init__(self, sites: int) -> None:
        self.sites = sites

    def __call__(self, layer: nn.Module, args: tuple) -> tuple:
        x, *patches = args
        if any(given is not None for given in patches):
            raise ValueError(
                f'the stride of this {type(layer).__name__} was changed by set_stride: it can '
                'no longer run on the tiles of a mask'
            )
        return F.pad(x, (0, self.sites, 0, self.sites)), *patches


class _NoMask:
    """Forward pre-hook of a backbone: refuse a mask once its stride was changed."""

    def __init__(self, own: int, stride: int) -> None:
        self.own = own
        self.stride = stride

    def __call__(self, backbone: nn.Module, args: tuple, kwargs: dict) -> None:
        if any(given is not None for given in (*args[1:], kwargs.get('mask'))):
            raise ValueError(
                f'the stride of this {type(backbone).__name__} was changed from {self.own} to '
                f'{self.stride}: a forward under a mask needs its own strides, so give the mask '
                'to a backbone whose stride was left alone'
            )


def _one(value: int | tuple[int, ...]) -> int:
    return value if isinstance(value, int) else value[0]
