"""Other toolboxes' ConvNets as encoders of visible patches."""

import copy
from functools import partial

import torch
from torch import Tensor, nn

from videomac_mm.registry import MODELS
from videomac_mm.sparse import sparsify


@MODELS.register_module()
def Sparsified(backbone: dict | nn.Module, patch_size: int = 32) -> nn.Module:  # a type in configs
    """Build a ConvNet that computes what a mask leaves visible.

    The network keeps its class (by inheritance), its arguments, its initialisation and its
    keys: what is pre-trained as ``backbone=dict(type='videomac_mm.Sparsified',
    backbone=dict(type='mmpretrain.RegNet', ...))`` loads into ``backbone=dict(
    type='mmpretrain.RegNet', ...)``. ``forward(x)`` is the dense network, bit for bit.
    ``forward(x, mask)`` runs the same weights on the visible patches alone; see
    `videomac_mm.sparse.sparsify` for what that means layer by layer.

    Layers that no output depends on, such as the stages after the last of ``out_indices``,
    are left out, keys and all: they would be computed in vain, distributed training would
    wait for their gradients, and they may have strides that the patches do not.

    Args:
        backbone: config of the network, or the network, which is changed in place.
        patch_size: pixels of the patches that `sparsify` tries the network on, a multiple
            of its stride. Defaults to 32.

    Raises:
        ValueError: names the layer that cannot be carried.
    """
    network = MODELS.build(backbone) if isinstance(backbone, dict) else backbone
    _leave_out_idle(network, patch_size)
    return sparsify(network, patch_size)


def _leave_out_idle(network: nn.Module, patch_size: int) -> None:
    """Replace layers that outputs do not depend on, or freeze them if they are not called."""
    trial = copy.deepcopy(network)
    trial.eval()  # whose statistics stay, whatever the size of the batch
    trial.requires_grad_(True).zero_grad()
    stem = next((layer for layer in trial.modules() if isinstance(layer, nn.Conv2d)), None)
    called, used = set(), set()  # names of layers, in `used` also of parameters

    def follow(name: str, _, args: tuple, outs: Tensor | tuple | list) -> None:
        called.add(name)
        for out in outs if isinstance(outs, tuple | list) else [outs]:
            if isinstance(out, Tensor) and out.requires_grad:
                out.register_hook(lambda grad: used.add(name))

    for name, layer in trial.named_modules():
        layer.register_forward_hook(partial(follow, name))
    try:
        with torch.enable_grad():
            outs = trial(stem.weight.new_zeros(1, stem.in_channels, *[2 * patch_size] * 2))
            outs = [outs] if isinstance(outs, Tensor) else outs
            sum(out.sum() for out in outs).backward()
    except (AttributeError, RuntimeError):  # it cannot run; `sparsify` says which layer cannot
        return
    used |= {name for name, param in trial.named_parameters() if param.grad is not None}

    def visit(module: nn.Module, prefix: str) -> None:
        for name, child in module.named_children():
            layer = prefix + name
            names = [layer, *(f'{layer}.{key}' for key, _ in child.named_modules())]
            names += [f'{layer}.{key}' for key, _ in child.named_parameters()]
            if layer in called and used.isdisjoint(names):
                setattr(module, name, nn.Identity())
            else:
                visit(child, layer + '.')

    visit(network, '')
    for name, param in network.named_parameters():
        if name not in used:
            param.requires_grad = False
