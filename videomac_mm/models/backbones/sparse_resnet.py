"""ResNet, dense without a mask and sparse with one."""

import math
import re

import torch
import torch.utils.checkpoint as cp
from mmcv.cnn import build_activation_layer, build_norm_layer
from mmengine.utils import deprecated_api_warning
from mmpretrain.models.backbones.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from videomac_mm.registry import MODELS
from videomac_mm.sparse import (
    PatchConv2d,
    PatchDropPath,
    PatchMaxPool2d,
    VisiblePatches,
    is_plain,
    norm_act,
    norms_over_sites,
    set_backend,
)


class _SparseBlock:
    """What both residual blocks of mmpretrain need in order to know the mask."""

    def __init__(self, *args, drop_path_rate: float = 0.0, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.drop_path = PatchDropPath(drop_path_rate)

    def forward(self, x: Tensor, patches: VisiblePatches | None = None) -> Tensor:
        """Dense maps (B, C, H, W), or with ``patches`` tiles (B*K, C, p, p)."""
        if self.with_cp and x.requires_grad:
            return cp.checkpoint(self._forward, x, patches, use_reentrant=False)
        return self._forward(x, patches)

    def _forward(self, x: Tensor, patches: VisiblePatches | None) -> Tensor:
        identity = x
        if self.downsample is not None:
            conv, norm = self.downsample
            identity = norm(conv(x, patches))
        *earlier, (last_conv, last_norm) = self._convs()
        for conv, norm in earlier:
            x = norm_act(norm, self.relu, conv(x, patches), patches)
        x = last_conv(x, patches)
        if is_plain(self.drop_path, PatchDropPath) and self.drop_path.drop_prob == 0.0:
            return norm_act(last_norm, self.relu, x, patches, identity)
        return self.relu(self.drop_path(last_norm(x), patches) + identity)


class SparseBasicBlock(_SparseBlock, BasicBlock):
    """mmpretrain's ``BasicBlock`` on maps or tiles."""

    def _convs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Convs and their norms."""
        return [(self.conv1, self.norm1), (self.conv2, self.norm2)]


class SparseBottleneck(_SparseBlock, Bottleneck):
    """mmpretrain's ``Bottleneck`` on maps or tiles."""

    def _convs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Convs and their norms."""
        return [(self.conv1, self.norm1), (self.conv2, self.norm2), (self.conv3, self.norm3)]


@MODELS.register_module()
class SparseResNet(ResNet):
    """`ResNet <https://arxiv.org/abs/1512.03385>`_ that computes what a mask leaves visible.

    ``forward(x)`` is the dense network; ``variant='standard'`` has the state dict and the
    outputs of ``mmpretrain.ResNet``. ``forward(x, mask)`` runs the same weights on the
    visible patches alone: hidden pixels are never read, and batch norm takes its statistics
    from visible sites.

    Args:
        depth: 18, 34, 50, 101 or 152.
        variant: 'standard' (7x7 stem, max-pool, BN, ReLU), or 'videomac' (4x4 patch stem,
            LayerNorm, GELU: the modified ResNet of VideoMAC, arXiv 2402.19082). Defaults
            to 'standard'.
        norm_cfg: norm layers. Defaults to None, the ``variant``'s own.
        act_cfg: activation. Defaults to None, the ``variant``'s own.
        zero_init_residual: start residual branches at zero. Defaults to None: True for
            'standard', as in mmpretrain, False for 'videomac'.
        backend: what computes layers on visible patches, 'auto', 'torch' or 'spconv'; see
            `set_backend`. ``conv_backend`` is its earlier name. Defaults to 'auto'.
        conv_cfg: must be left at None: the convs are `PatchConv2d`.
        **kwargs: as ``mmpretrain.ResNet``; without ``deep_stem`` and ``avg_down``.

    Raises:
        ValueError: for an unknown ``depth``, ``variant`` or ``backend``, or an option that
            has no sparse form.
        ImportError: for ``backend='spconv'`` without spconv.
    """

    arch_settings = {
        depth: (SparseBasicBlock if block is BasicBlock else SparseBottleneck, blocks)
        for depth, (block, blocks) in ResNet.arch_settings.items()
    }

    @deprecated_api_warning(dict(conv_backend='backend'), cls_name='SparseResNet')
    def __init__(
        self,
        depth: int,
        *args,
        variant: str = 'standard',
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        zero_init_residual: bool | None = None,
        backend: str = 'auto',
        conv_cfg: dict | None = None,
        init_cfg: dict | list[dict] | None = [
            dict(type='Kaiming', layer=['Conv2d']),
            dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm', 'LayerNorm']),
        ],
        **kwargs,
    ) -> None:
        if depth not in self.arch_settings:
            raise ValueError(f'unknown depth {depth!r}; choose from {sorted(self.arch_settings)}')
        if variant not in ('standard', 'videomac'):
            raise ValueError(f"variant must be 'standard' or 'videomac', got {variant!r}")
        refused = [key for key in ('deep_stem', 'avg_down') if kwargs.get(key)]
        if conv_cfg is not None or refused:
            raise ValueError(
                f'{refused or "conv_cfg"} cannot be set: SparseResNet has its own convs, '
                'a plain stem and strided shortcuts'
            )
        standard = variant == 'standard'
        self.variant = variant
        self.act_cfg = act_cfg or dict(type='ReLU' if standard else 'GELU')
        default_norm = dict(type='BN') if standard else dict(type='videomac_mm.LN2d', eps=1e-6)
        super().__init__(
            depth,
            *args,
            conv_cfg=dict(type='videomac_mm.PatchConv2d'),
            norm_cfg=norm_cfg or default_norm,
            zero_init_residual=standard if zero_init_residual is None else zero_init_residual,
            init_cfg=init_cfg,
            **kwargs,
        )
        set_backend(self, backend)
        self._norms_over_sites = norms_over_sites(self)

    def make_res_layer(self, **kwargs) -> nn.Module:
        """Build one stage; called by ``mmpretrain.ResNet``."""
        return super().make_res_layer(act_cfg=self.act_cfg, **kwargs)

    def forward(self, x: Tensor, mask: Tensor | VisiblePatches | None = None) -> tuple[Tensor, ...]:
        """Compute the features of dense images, or of their visible patches.

        Args:
            x (B, C, H, W): images. With a mask, H and W are whole and equal multiples of
                its grid, and its patches whole multiples of the network's stride.
            mask (B, h, w): bool, True = hidden; or its `VisiblePatches`, whose tables
                then serve every network that gets them.

        Returns:
            For each of ``out_indices`` a map (B, C, H/stride, W/stride), zero where hidden.

        Raises:
            ValueError: if image and mask do not fit each other or the stride.
        """
        patches = None
        x = x.contiguous(memory_format=torch.channels_last)
        if mask is not None:
            if self._norms_over_sites:
                raise ValueError(
                    f'{self._norms_over_sites[0]} and {len(self._norms_over_sites) - 1} more norms '
                    f'of {type(self).__name__} mix the sites of an image, which has no sparse form '
                    'here: use LN2d or BN, or videomac_mm.Sparsified, which carries group norm'
                )
            patches = VisiblePatches.of(mask)
            x = patches.pack(x, stride=4 * math.prod(self.strides))
        if self.variant == 'standard':
            x = self.relu(self.norm1(self.conv1(x, patches)))
            x = self.maxpool(x, patches)
        else:
            x = self.norm1(self.conv1(x, patches))
        outs = []
        for stage, name in zip(range(max(self.out_indices) + 1), self.res_layers):
            for block in getattr(self, name):
                x = block(x, patches)
            if stage in self.out_indices:
                outs.append(patches.unpack(x) if patches else x)
        return tuple(outs)

    def train(self, mode: bool = True) -> 'SparseResNet':
        """Set the mode, and return the network, which mmpretrain's method forgets."""
        super().train(mode)
        return self

    def get_layer_depth(
        self, param_name: str, prefix: str = '', layer_decay_type: str = 'group'
    ) -> tuple[int, int]:
        """The depth of a parameter, for layer-wise learning rate decay.

        Args:
            param_name: name of the parameter.
            prefix: what precedes the backbone's own names.
            layer_decay_type: what a layer is: 'single', a block, or 'group', a stage, and a few
                blocks in the second and third ones (SparK's, as mmpretrain). Defaults to
                'group'.

        Returns:
            Layer of the parameter and number of layers.

        Raises:
            ValueError: for an unknown ``layer_decay_type``.
        """
        if layer_decay_type not in ('single', 'group'):
            raise ValueError(
                f"layer_decay_type must be 'single' or 'group', got {layer_decay_type!r}"
            )
        sizes = [1] * 4  # blocks per layer, by stage
        if layer_decay_type == 'group':  # mmpretrain's, but for depth 18, which it refuses
            sizes = [3, 4, 4, 3] if self.depth == 152 else [3, 2, 3, 3]
        layers = [math.ceil(blocks / size) for blocks, size in zip(self.stage_blocks, sizes)]
        num_layers = sum(layers) + 2
        if not param_name.startswith(prefix):  # what follows the backbone
            return num_layers - 1, num_layers
        part = re.match(r'layer(\d)\.(\d+)\.', param_name[len(prefix) :])
        if part is None:  # the stem
            return 0, num_layers
        stage = int(part[1]) - 1
        return 1 + sum(layers[:stage]) + int(part[2]) // sizes[stage], num_layers

    def _make_stem_layer(self, in_channels: int, stem_channels: int) -> None:
        if self.variant == 'standard':
            super()._make_stem_layer(in_channels, stem_channels)
            self.relu = build_activation_layer(self.act_cfg)
            self.maxpool = PatchMaxPool2d(kernel_size=3, stride=2, padding=1)
            return
        self.conv1 = PatchConv2d(in_channels, stem_channels, kernel_size=4, stride=4)
        self.norm1_name, norm1 = build_norm_layer(self.norm_cfg, stem_channels, postfix=1)
        self.add_module(self.norm1_name, norm1)
