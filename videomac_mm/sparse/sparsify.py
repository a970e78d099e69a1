"""Turn a ConvNet of ordinary layers into one that knows the mask."""

import copy
import inspect
from collections.abc import Callable
from functools import cache, partial
from types import MethodType

import torch
from torch import Tensor, nn

from videomac_mm.sparse.foreign import WINDOWED, run_on_images, run_windowed
from videomac_mm.sparse.geometry import VisiblePatches
from videomac_mm.sparse.proof import Findings, NoMap, kinds_of, prove, refusal


def sparsify(model: nn.Module, patch_size: int = 32) -> nn.Module:
    """Let a ConvNet compute what a mask leaves visible: ``model(x, mask)``.

    Works in place and returns ``model``, an instance of a class derived from its own with
    `MaskAware`. Its layers, parameters, keys and ``model(x)`` stay what they are.
    ``model(x, mask)`` packs the visible patches and runs the network's own ``forward`` on
    them. What that computes is the masked-dense network:

    - To convs and pooling, of subclasses too, hidden sites are what sites outside of the image
      are: convs read zeros, max-pooling ignores them.
    - Modules that work site by site run on tiles as they are. Batch norm thus takes its
      statistics from visible sites.
    - Modules that treat the sites of a map as a set, such as global pooling, squeeze-excite,
      GRN and group norm, see the visible sites of an image. Drop path drops images.

    Which of these a module is, of whatever package, is proved here, once: a copy with disturbed
    parameters runs on two random images of 2x2 patches, packed and masked-dense, and every
    value that a module takes or gives is compared. If modules are added or replaced later, the
    next call with a mask proves the network again.

    Args:
        model: maps (B, C, H, W) to a map or a sequence of maps. C is that of its first conv.
        patch_size: pixels of a mask patch in the proof, a multiple of the network's stride.
            Later masks may have others. Defaults to 32.

    Raises:
        TypeError: if ``model`` takes a mask by itself.
        ValueError: names the module that cannot be carried and says why; ``model`` is then
            unchanged.

    Source: own.
    """
    kind = type(model)
    if not isinstance(model, MaskAware):
        if 'mask' in inspect.signature(kind.forward).parameters:
            raise TypeError(f'{kind.__name__} takes a mask by itself, so sparsify cannot add one')
        if not any(isinstance(layer, nn.Conv2d) for layer in [*model.modules()][1:]):
            raise ValueError(f'sparsify needs a network with convs, got {kind.__name__}')
        kind = _mask_aware(kind)
    for name, module in model.named_modules():
        if _is_rerouted(module):
            raise refusal(name, type(module), 'its forward has been replaced')
    trial = copy.deepcopy(model)
    trial.__class__ = kind
    findings = prove(trial, patch_size)
    model.__class__ = kind
    model.sparse_findings = findings
    return model


class MaskAware:
    """The ``forward`` of a sparsified network; mixed into the network's class.

    The mask is an argument and nothing else: each call runs on a copy of the module tree
    that shares all tensors and whose modules hold this call's ``patches``, where hooks find
    them. What outlives the call, such as a checkpoint's recomputation, keeps that copy.
    """

    sparse_findings: Findings

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
            ValueError: if image and mask do not fit each other or the stride; or if modules
                that were added to the network cannot be carried.
        """
        if mask is None:
            return super().forward(x)
        return self._forward_visible(x, VisiblePatches.of(mask))

    # A new module tree in every call is nothing that a graph compiler could keep.
    @torch.compiler.disable
    def _forward_visible(
        self, x: Tensor, patches: VisiblePatches
    ) -> Tensor | tuple[Tensor, ...] | list[Tensor]:
        if self.sparse_findings.kinds != kinds_of(self):
            sparsify(self, self.sparse_findings.patch_size)
        network = _Binding(self.sparse_findings, patches).bind(self, '')
        outs = super(MaskAware, network).forward(patches.pack(x, self.sparse_findings.stride))
        maps = [outs] if isinstance(outs, Tensor) else outs
        for out in maps:
            if not isinstance(out, Tensor) or out.ndim != 4 or out.shape[2] != out.shape[3]:
                raise NoMap(NoMap.reason)
        maps = [patches.unpack(out) for out in maps]
        return maps[0] if isinstance(outs, Tensor) else type(outs)(maps)

    def train(self, mode: bool = True) -> 'MaskAware':
        """Set the mode, and return the network, which mmpretrain's method forgets."""
        super().train(mode)
        return self

    def __reduce_ex__(self, protocol: int) -> tuple:
        """Copy and pickle by the network's own class, since a derived one has no import path."""
        _, (_, *args), *state = super().__reduce_ex__(max(protocol, 2))
        return _new, (type(self).__bases__[1], *args), *state


@cache
def _mask_aware(kind: type) -> type:
    name = f'MaskAware{kind.__name__}'
    return type(name, (MaskAware, kind), {'__module__': kind.__module__})


def _new(kind: type, *args) -> nn.Module:
    derived = _mask_aware(kind)
    return derived.__new__(derived, *args)


class _Binding:
    """Copies modules, sharing their tensors, such that their calls run on the tiles of a mask.

    Args:
        findings: about the network.
        patches: the geometry of the tiles.
    """

    def __init__(self, findings: Findings, patches: VisiblePatches) -> None:
        self.findings, self.patches = findings, patches
        self.bound = {}

    def bind(self, module: nn.Module, name: str) -> nn.Module:
        """The copy of a module; or the module itself if it runs on tiles as it is."""
        if module not in self.bound:
            changes = self._changes(module, name)
            copied = module
            if changes:
                copied = type(module).__new__(type(module))
                # What torch.compile made of a module would call the original.
                changes = {**changes, 'patches': self.patches, '_compiled_call_impl': None}
                copied.__dict__ = {**module.__dict__, **changes}
                method = module.__dict__.get('forward')
                if _is_own_method(module, method) and 'forward' not in changes:
                    copied.forward = MethodType(method.__func__, copied)
            self.bound[module] = copied
        return self.bound[module]

    def _changes(self, module: nn.Module, name: str) -> dict:
        axis = self.findings.axes.get(name)
        if axis is not None:
            return {'forward': partial(run_on_images, module, axis, self.patches)}
        if isinstance(module, WINDOWED):
            changes = {'forward': partial(run_windowed, module, self.patches)}
        else:
            children = {
                key: None if child is None else self.bind(child, f'{name}.{key}' if name else key)
                for key, child in module._modules.items()
            }
            changes = {'_modules': children} if children != module._modules else {}
        if changes and name and _is_rerouted(module):  # it would run without patches
            raise RuntimeError(
                f'the forward of {type(module).__name__} has been replaced after its network '
                'was sparsified; for activation checkpointing use with_cp of the network'
            )
        if name and name not in self.findings.called:
            changes['_forward_pre_hooks'] = {0: partial(_refuse_unproved, name)}
        return changes


def _refuse_unproved(name: str, module: nn.Module, args: tuple) -> None:
    raise RuntimeError(
        f'{name} ({type(module).__name__}) runs under a mask, but did not when its network was '
        'sparsified: what it computes there is not proved'
    )


def _is_rerouted(module: nn.Module) -> bool:
    """Whether calling a module runs other code than its class's."""
    fused = getattr(module, 'efficient_conv_bn_eval_forward', None)  # mmcv's, conv with norm
    method = module.__dict__.get('forward')
    return fused is not None or not (method is None or _is_own_method(module, method))


def _is_own_method(module: nn.Module, method: Callable | None) -> bool:
    """Whether a module has chosen one of its own methods as its ``forward``."""
    return isinstance(method, MethodType) and method.__self__ is module
