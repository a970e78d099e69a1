"""Turn a ConvNet of ordinary layers into one that knows the mask."""

import copy
import math
from collections.abc import Callable
from functools import cache, partial

import torch
from mmcv.cnn.bricks import Conv2dAdaptivePadding, DropPath, HSigmoid, Swish, wrappers
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from videomac_mm.sparse.geometry import VisiblePatches
from videomac_mm.sparse.layers import PatchConv2d, PatchDropPath, PatchMaxPool2d, Window
from videomac_mm.sparse.masked_dense import masked_dense

# Layers that run on tiles as they are: they work site by site.
_SITE_BY_SITE = (
    _BatchNorm,
    nn.LayerNorm,
    nn.Linear,
    nn.Identity,
    nn.Dropout,
    nn.Sequential,  # an empty one; layers without children are asked
    nn.ModuleList,
    nn.ModuleDict,
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU),
    *(nn.Mish, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Threshold),
    *(nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Hardshrink, nn.Softshrink),
    *(HSigmoid, Swish),
)


def sparsify(model: nn.Module, patch_size: int = 32) -> nn.Module:
    """Let a ConvNet compute what a mask leaves visible: ``model(x, mask)``.

    Works in place and returns ``model``, an instance of a class derived from its own with
    `MaskAware`. Parameters, keys and ``model(x)`` stay what they are, bit for bit.
    ``model(x, mask)`` packs the visible patches and runs the network's own ``forward`` on
    them. What that computes is the masked-dense network: convs read zeros where hidden,
    max-pooling ignores hidden sites, batch norm takes its statistics from visible sites,
    global average pooling (squeeze-excite) averages the visible sites of an image, drop path
    drops images.

    Every layer without children must be of a known type. Whether the code in between
    (shortcuts, channel shuffles, functional calls) respects tiles is proved here, once: a
    copy in eval mode runs on two random images of 2x2 patches, packed and masked-dense, and
    every value that a layer takes or gives is compared.

    Args:
        model: maps (B, C, H, W) to a map or a sequence of maps. C is that of its first conv.
        patch_size: pixels of a mask patch in the proof, a multiple of the network's stride.
            Later masks may have others. Defaults to 32.

    Raises:
        ValueError: names the layer that cannot be carried and says why; ``model`` is then
            unchanged.

    Source: own.
    """
    swaps = {}
    for name, layer in model.named_modules():
        if _is_rerouted(layer):
            raise _refusal(name, type(layer).__name__, 'its forward has been replaced')
        if not any(True for _ in layer.children()):
            swaps[name] = _swap(name, layer)
    if not any(issubclass(kind, PatchConv2d) for kind, _ in swaps.values()) or '' in swaps:
        raise ValueError(f'sparsify needs a network with convs, got {type(model).__name__}')
    proof = _apply(copy.deepcopy(model), swaps).double()
    with torch.no_grad():
        kinds = {name: type(layer).__name__ for name, layer in model.named_modules()}
        _prove(proof.eval(), kinds, patch_size)
    return _apply(model, swaps)


class MaskAware:
    """The ``forward`` of a sparsified network; mixed into the network's class.

    The mask is an argument and nothing else: each call runs on a copy of the module tree
    that shares all tensors and whose mask-aware layers hold this call's patches. What
    outlives the call, such as a checkpoint's recomputation, keeps that copy.
    """

    def forward(
        self, x: Tensor, mask: Tensor | VisiblePatches | None = None
    ) -> Tensor | tuple[Tensor, ...] | list[Tensor]:
        """Compute the features of dense images, or of their visible patches.

        Args:
            x (B, C, H, W): images. With a mask, H and W are whole and equal multiples of
                its grid, and its patches whole multiples of the network's stride.
            mask (B, h, w): bool, True = hidden; or its `VisiblePatches`.

        Returns:
            What the dense network returns: maps (B, C, H/stride, W/stride), zero where
            hidden.

        Raises:
            ValueError: if image and mask do not fit each other or the stride.
        """
        if mask is None:
            return super().forward(x)
        return self._forward_visible(x, VisiblePatches.of(mask))

    # A new module tree in every call is nothing that a graph compiler could keep.
    @torch.compiler.disable
    def _forward_visible(
        self, x: Tensor, patches: VisiblePatches
    ) -> Tensor | tuple[Tensor, ...] | list[Tensor]:
        network = _bind(self, patches, {})
        outs = super(MaskAware, network).forward(patches.pack(x))
        if isinstance(outs, Tensor):
            return patches.unpack(outs)
        return type(outs)(patches.unpack(out) for out in outs)

    def train(self, mode: bool = True) -> 'MaskAware':
        """Set the mode, and return the network, which mmpretrain's method forgets."""
        super().train(mode)
        return self

    def __reduce_ex__(self, protocol: int) -> tuple:
        """Copy and pickle by the network's own class, since a derived one has no import path."""
        _, (_, *args), *state = super().__reduce_ex__(max(protocol, 2))
        return _new, (type(self).__bases__[1], *args), *state


class _PatchAdaptiveConv2d(PatchConv2d):
    """``mmcv.cnn.Conv2dAdaptivePadding``: odd padding is put below and on the right."""

    def window(self) -> Window:
        missing = max(self.dilation[0] * (self.kernel_size[0] - 1) + 1 - self.stride[0], 0)
        symmetric = copy.copy(self)
        symmetric.padding = (-(-missing // 2),) * 2
        window = Window(symmetric)
        window.before, window.after = missing // 2, missing - missing // 2
        return window

    def forward(self, x: Tensor, patches: VisiblePatches | None = None) -> Tensor:
        if patches is None:
            return Conv2dAdaptivePadding.forward(self, x)
        return super().forward(x, patches)


class _PatchAvgPool2d(nn.AvgPool2d):
    """`torch.nn.AvgPool2d` whose windows do not overlap, and so stay inside tiles."""

    def forward(self, x: Tensor, patches: VisiblePatches | None = None) -> Tensor:
        if patches is not None:
            _avg_window(self).check(x)
        return super().forward(x)


class _VisibleAvgPool2d(nn.AdaptiveAvgPool2d):
    """Global average pooling over the visible sites of an image, told to each of its tiles."""

    def forward(self, x: Tensor, patches: VisiblePatches | None = None) -> Tensor:
        if patches is None:
            return super().forward(x)
        means = patches.per_image(x.permute(0, 2, 3, 1)).mean(1)  # (B, C)
        return means.repeat_interleave(patches.num_visible, 0)[:, :, None, None]


_AWARE = (PatchConv2d, PatchMaxPool2d, PatchDropPath, _PatchAvgPool2d, _VisibleAvgPool2d)


def _swap(name: str, layer: nn.Module) -> tuple[type, dict]:
    """The class that a layer without children becomes, and its new attributes."""
    try:
        if type(layer) in _SWAPS:
            return _SWAPS[type(layer)](layer)
        if not isinstance(layer, _SITE_BY_SITE):
            raise ValueError('it is none of the known layers')
    except ValueError as error:
        raise _refusal(name, type(layer).__name__, str(error)) from None
    return type(layer), {}


def _swap_conv(layer: nn.Conv2d) -> tuple[type, dict]:
    padding = layer.padding
    if isinstance(padding, str):
        reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size)]
        if padding == 'same' and any(sites % 2 for sites in reach):
            raise ValueError("padding 'same' is not the same on both sides")
        padding = tuple(sites // 2 if padding == 'same' else 0 for sites in reach)
    if layer.padding_mode != 'zeros':
        raise ValueError(f"padding_mode must be 'zeros', got {layer.padding_mode!r}")
    shape = copy.copy(layer)
    shape.padding = padding
    Window(shape)
    return PatchConv2d, dict(padding=padding)


def _swap_adaptive_conv(layer: Conv2dAdaptivePadding) -> tuple[type, dict]:
    _PatchAdaptiveConv2d.window(layer)
    return _PatchAdaptiveConv2d, {}


def _swap_max_pool(layer: nn.MaxPool2d) -> tuple[type, dict]:
    Window(layer)
    if layer.return_indices:
        raise ValueError('return_indices counts sites of dense maps')
    if layer.ceil_mode and layer.kernel_size != layer.stride:
        raise ValueError('with ceil_mode it does not map n*stride sites to n')
    return PatchMaxPool2d, {}


def _avg_window(layer: nn.AvgPool2d) -> Window:
    shape = copy.copy(layer)
    shape.dilation = 1
    return Window(shape)


def _swap_avg_pool(layer: nn.AvgPool2d) -> tuple[type, dict]:
    if _avg_window(layer).crosses_tiles:
        raise ValueError('average pooling with overlapping windows has no sparse form')
    return _PatchAvgPool2d, {}


def _swap_global_pool(layer: nn.AdaptiveAvgPool2d) -> tuple[type, dict]:
    if layer.output_size not in (1, (1, 1)):
        raise ValueError(f'pooling to {layer.output_size} sites has no sparse form, but to 1')
    return _VisibleAvgPool2d, {}


def _swap_upsample(layer: nn.Upsample) -> tuple[type, dict]:
    if layer.mode != 'nearest' or layer.scale_factor is None or layer.scale_factor % 1:
        raise ValueError("only mode='nearest' with a whole scale_factor stays inside tiles")
    return nn.Upsample, {}


def _swap_drop_path(layer: DropPath) -> tuple[type, dict]:
    return PatchDropPath, {}


_SWAPS: dict[type, Callable[[nn.Module], tuple[type, dict]]] = {
    nn.Conv2d: _swap_conv,
    wrappers.Conv2d: _swap_conv,
    Conv2dAdaptivePadding: _swap_adaptive_conv,
    nn.MaxPool2d: _swap_max_pool,
    wrappers.MaxPool2d: _swap_max_pool,
    nn.AvgPool2d: _swap_avg_pool,
    nn.AdaptiveAvgPool2d: _swap_global_pool,
    nn.Upsample: _swap_upsample,
    DropPath: _swap_drop_path,
}


def _apply(model: nn.Module, swaps: dict[str, tuple[type, dict]]) -> nn.Module:
    for name, (kind, changes) in swaps.items():
        layer = model.get_submodule(name)
        # Layers stay the objects they are, with their tensors and hooks.
        layer.__class__ = kind
        layer.__dict__.update(changes)
    model.__class__ = _mask_aware(type(model))
    return model


@cache
def _mask_aware(kind: type) -> type:
    return type(f'Sparse{kind.__name__}', (MaskAware, kind), {'__module__': kind.__module__})


def _new(kind: type, *args) -> nn.Module:
    derived = _mask_aware(kind)
    return derived.__new__(derived, *args)


def _bind(module: nn.Module, patches: VisiblePatches, bound: dict) -> nn.Module:
    """A copy of ``module`` that shares its tensors and whose layers hold ``patches``.

    Modules without a mask-aware layer are not copied.
    """
    if module in bound:
        return bound[module]
    changes = {}
    if isinstance(module, _AWARE):
        changes['forward'] = partial(module.forward, patches=patches)
    else:
        children = {
            name: None if child is None else _bind(child, patches, bound)
            for name, child in module._modules.items()
        }
        if any(child is not module._modules[name] for name, child in children.items()):
            changes['_modules'] = children
            if _is_rerouted(module):  # it would run on the layers without patches
                raise RuntimeError(
                    f'the forward of {type(module).__name__} has been replaced after its network '
                    'was sparsified; for activation checkpointing use with_cp of the network'
                )
    if changes:
        module, original = type(module).__new__(type(module)), module
        # What torch.compile made of a module would call the original.
        module.__dict__ = {**original.__dict__, **changes, '_compiled_call_impl': None}
        bound[original] = module
    else:
        bound[module] = module
    return module


def _is_rerouted(module: nn.Module) -> bool:
    fused = getattr(module, 'efficient_conv_bn_eval_forward', None)  # mmcv's, conv with norm
    return 'forward' in module.__dict__ or fused is not None


class _Mismatch(Exception):
    """Packed and masked-dense execution differ."""


def _prove(network: nn.Module, kinds: dict[str, str], patch_size: int) -> None:
    """Compare the packed with the masked-dense execution, value by value.

    Args:
        network: a sparsified one, float64, in eval mode; it is left with hooks.
        kinds: type names of its layers.
        patch_size: pixels.

    Raises:
        ValueError: names the first layer that differs, or whose code fails.
    """
    stem = next(layer for layer in network.modules() if isinstance(layer, PatchConv2d))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, stem.in_channels, *[2 * patch_size] * 2, generator=generator)
    images = images.to(stem.weight)
    mask = torch.tensor([[[0, 1], [1, 0]], [[1, 1], [0, 0]]], dtype=torch.bool)
    mask = mask.to(images.device)
    patches = VisiblePatches(mask)
    running = ['']
    events = []  # of the masked-dense run: layer, whether it is left, what the values may be

    def record(*event, values: list[Tensor]) -> None:
        events.append((*event, [_packed(value, patches) for value in values]))

    def compare(*event, values: list[Tensor]) -> None:
        *known_event, known = next(remaining)
        if list(event) != known_event or not all(map(_is_any_of, values, known)):
            raise _Mismatch

    def enter(name: str, layer: nn.Module, args: tuple) -> None:
        visit(name, False, values=[value for value in args if isinstance(value, Tensor)])
        running.append(name)

    def leave(name: str, layer: nn.Module, args: tuple, outs: Tensor | tuple | list) -> None:
        outs = outs if isinstance(outs, tuple | list) else [outs]
        visit(name, True, values=[value for value in outs if isinstance(value, Tensor)])
        running.pop()

    for name, layer in network.named_modules():
        if name:
            layer.register_forward_pre_hook(partial(enter, name))
            layer.register_forward_hook(partial(leave, name))
    try:
        visit = record
        with masked_dense(network, mask):
            dense = network(images)
        visit, remaining = compare, iter(events)
        sparse = network(images, mask)
    except _Mismatch:
        # A layer that is given something else stands in the code of the one that runs.
        culprit, reason = running[-1], 'its own code does not work site by site'
        if isinstance(network.get_submodule(culprit), _AWARE):
            reason = 'it is called by other ways than as a submodule'
    except Exception as error:
        culprit = running[-1]
        reason = f'with patches of {patch_size} pixels it fails: {type(error).__name__}: {error}'
    else:
        outs = [[out] if isinstance(out, Tensor) else out for out in (sparse, dense)]
        if all(_is_any_of(out, [known]) for out, known in zip(*outs)):
            return
        culprit, reason = '', 'it returns what is no map of the visible patches'
    pools = [name for name, *_ in events if kinds[name] == 'AdaptiveAvgPool2d']
    if not culprit and pools and visit is compare and next(remaining, None) is None:
        culprit, reason = pools[-1], 'the network returns what is pooled globally'
    raise _refusal(culprit, kinds[culprit], reason)


def _packed(value: Tensor, patches: VisiblePatches) -> list[Tensor]:
    """What a value of the dense network may be on tiles."""
    tiles = []
    if value.ndim == 2 or value.shape[2:] == (1, 1):  # one per image
        tiles.append(value.repeat_interleave(patches.num_visible, 0))
    if value.ndim == 3 and (side := math.isqrt(value.shape[1])) % 2 == 0:
        if side**2 == value.shape[1]:  # sites in a row
            maps = value.unflatten(1, (side, side)).permute(0, 3, 1, 2)
            tiles.append(patches.pack(maps).flatten(2).transpose(1, 2))
    if value.ndim == 4:
        for order in ((0, 1, 2, 3), (0, 3, 1, 2)):  # channels first, and last
            maps = value.permute(order)
            if maps.shape[2] % 2 == 0 and maps.shape[2] == maps.shape[3]:
                back = sorted(range(4), key=order.__getitem__)
                tiles.append(patches.pack(maps).permute(back))
    return tiles


def _is_any_of(value: Tensor, known: list[Tensor]) -> bool:
    return any(
        value.shape == other.shape
        and torch.allclose(value, other, rtol=1e-6, atol=1e-8 * other.abs().max().item())
        for other in known
    )


def _refusal(name: str, kind: str, reason: str) -> ValueError:
    layer = f'{name} ({kind})' if name else f'the network itself ({kind})'
    return ValueError(f'sparsify cannot carry {layer}: {reason}')
