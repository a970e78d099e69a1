"""Other toolboxes' ConvNets as encoders of visible patches."""

import copy
from functools import partial

import torch
from mmpretrain.models.backbones import ConvNeXt, ResNet
from torch import Tensor, nn

from videomac_mm.models.backbones.sparse_convnext import SparseConvNeXt
from videomac_mm.models.backbones.sparse_resnet import SparseResNet
from videomac_mm.registry import MODELS
from videomac_mm.sparse import sparsify

_OWN = {ResNet: SparseResNet, ConvNeXt: SparseConvNeXt}
_OWN_NORMS = {ResNet: ('BN', 'BN2d', 'SyncBN', 'LN2d'), ConvNeXt: ('LN2d',)}


@MODELS.register_module()
def Sparsified(backbone: dict | nn.Module, patch_size: int = 32) -> nn.Module:  # a type in configs
    """Build a ConvNet that computes what a mask leaves visible.

    The network keeps its arguments, its initialisation and its keys: what is pre-trained as
    ``backbone=dict(type='videomac_mm.Sparsified', backbone=dict(type='mmpretrain.RegNet',
    ...))`` loads into ``backbone=dict(type='mmpretrain.RegNet', ...)``. ``forward(x)`` is the
    dense network, bit for bit. ``forward(x, mask)`` runs the same weights on the visible
    patches alone; see `videomac_mm.sparse.sparsify` for what that means module by module.
    ConvNets of timm come as ``dict(type='mmpretrain.TIMMBackbone', features_only=True, ...)``.

    Configs of ``mmpretrain.ResNet`` and ``mmpretrain.ConvNeXt`` build this package's own
    `SparseResNet` and `SparseConvNeXt`, if these have the options. Any other network keeps its
    class, by inheritance.

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
    if isinstance(backbone, dict):
        own = _own_config(backbone)
        if own is not None:
            return _cut(MODELS.build(own))
        backbone = MODELS.build(backbone)
    _leave_out_idle(backbone, patch_size)
    return sparsify(backbone, patch_size)


def _own_config(cfg: dict) -> dict | None:
    """The config of this package's own network that equals a given one, if there is one."""
    kind = MODELS.get(cfg['type']) if isinstance(cfg.get('type'), str) else cfg.get('type')
    if kind not in _OWN or any(cfg.get(key) for key in ('conv_cfg', 'deep_stem', 'avg_down')):
        return None
    own = dict(cfg, type=_OWN[kind])
    if 'norm_cfg' in cfg:
        norm = cfg['norm_cfg']['type']
        norm = norm.rpartition('.')[2] if isinstance(norm, str) else None
        if norm not in _OWN_NORMS[kind]:
            return None
        if norm == 'LN2d':
            own['norm_cfg'] = dict(cfg['norm_cfg'], type='videomac_mm.LN2d')
    return own


def _cut(network: SparseResNet | SparseConvNeXt) -> SparseResNet | SparseConvNeXt:
    """Leave out the stages after the last output."""
    num = max(network.out_indices) + 1
    network.frozen_stages = min(network.frozen_stages, num)
    if isinstance(network, SparseResNet):
        for name in network.res_layers[num:]:
            delattr(network, name)
        network.res_layers, network.strides = network.res_layers[:num], network.strides[:num]
    else:
        network.stride //= 2 ** (network.num_stages - num)
        del network.stages[num:], network.downsample_layers[num:]
    return network


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
    except Exception:  # it cannot run; `sparsify` says which layer cannot
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
