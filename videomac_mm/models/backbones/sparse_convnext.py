"""ConvNeXt V1 and V2, dense without a mask and sparse with one."""

import re
from collections.abc import Sequence

import torch
import torch.utils.checkpoint as cp
from mmengine.model import BaseModule, ModuleList
from mmengine.utils import deprecated_api_warning
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from mmpretrain.models.backbones.convnext import ConvNeXt
from mmpretrain.models.utils import build_norm_layer
from torch import Tensor, nn

from videomac_mm.registry import MODELS
from videomac_mm.sparse import (
    PatchConv2d,
    PatchDropPath,
    PatchGRN,
    VisiblePatches,
    linear_gelu_grn,
    norms_over_sites,
    set_backend,
)


class SparseConvNeXtBlock(BaseModule):
    """ConvNeXt's block, whose depth-wise conv, GRN and drop path know the mask.

    Its keys and its dense results are those of mmpretrain's ``ConvNeXtBlock``.

    Args:
        in_channels: C.
        drop_path_rate: share of images that skip the block in training, in [0, 1). Defaults to 0.
        norm_cfg, act_cfg: of norm and activation. Default to LN2d and GELU.
        linear_pw_conv: point-wise convs as `torch.nn.Linear`. Defaults to True.
        layer_scale_init_value: 0 leaves layer scale out. Defaults to 1e-6.
        use_grn: GRN after the activation. Defaults to False.
        grn_scope: 'sample' or 'batch', see `PatchGRN`. Defaults to 'sample'.
        with_cp: activation checkpointing. Defaults to False.
    """

    def __init__(
        self,
        in_channels: int,
        drop_path_rate: float = 0.0,
        norm_cfg: dict = dict(type='videomac_mm.LN2d', eps=1e-6),
        act_cfg: dict = dict(type='GELU'),
        linear_pw_conv: bool = True,
        layer_scale_init_value: float = 1e-6,
        use_grn: bool = False,
        grn_scope: str = 'sample',
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        wide = 4 * in_channels
        self.linear_pw_conv = linear_pw_conv
        self.with_cp = with_cp
        self.depthwise_conv = PatchConv2d(
            in_channels, in_channels, 7, padding=3, groups=in_channels
        )
        self.norm = build_norm_layer(norm_cfg, in_channels)
        if linear_pw_conv:
            self.pointwise_conv1 = nn.Linear(in_channels, wide)
            self.pointwise_conv2 = nn.Linear(wide, in_channels)
        else:
            self.pointwise_conv1 = PatchConv2d(in_channels, wide, 1)
            self.pointwise_conv2 = PatchConv2d(wide, in_channels, 1)
        self.act = MODELS.build(act_cfg)
        self.grn = PatchGRN(wide, scope=grn_scope) if use_grn else None
        scale = torch.full((in_channels,), float(layer_scale_init_value))
        self.gamma = nn.Parameter(scale) if layer_scale_init_value > 0 else None
        self.drop_path = PatchDropPath(drop_path_rate)

    def forward(self, x: Tensor, patches: VisiblePatches | None = None) -> Tensor:
        """Dense maps (B, C, H, W), or with ``patches`` tiles (B*K, C, p, p)."""
        if self.with_cp and x.requires_grad:
            return cp.checkpoint(self._forward, x, patches, use_reentrant=False)
        return self._forward(x, patches)

    def _forward(self, x: Tensor, patches: VisiblePatches | None) -> Tensor:
        shortcut = x
        x = self.norm(self.depthwise_conv(x, patches))
        x = self._mlp(x.permute(0, 2, 3, 1), patches).permute(0, 3, 1, 2)
        if self.gamma is not None:
            x = x * self.gamma[:, None, None]
        return shortcut + self.drop_path(x, patches)

    def _mlp(self, x: Tensor, patches: VisiblePatches | None) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        if patches is not None and self.grn is not None and self.linear_pw_conv:
            x = linear_gelu_grn(self.pointwise_conv1, self.act, self.grn, x, patches)
        else:
            x = self.act(self._pointwise(self.pointwise_conv1, x, patches))
            x = x if self.grn is None else self.grn(x, patches)
        return self._pointwise(self.pointwise_conv2, x, patches)

    def _pointwise(self, layer: nn.Module, x: Tensor, patches: VisiblePatches | None) -> Tensor:
        if self.linear_pw_conv:
            return layer(x)
        return layer(x.permute(0, 3, 1, 2), patches).permute(0, 2, 3, 1)


@MODELS.register_module()
class SparseConvNeXt(BaseBackbone):
    """`ConvNeXt <https://arxiv.org/abs/2201.03545>`_ and `V2
    <https://arxiv.org/abs/2301.00808>`_ that compute what a mask leaves visible.

    ``forward(x)`` is the dense network; with default settings its state dict and its
    outputs are those of ``mmpretrain.ConvNeXt``. ``forward(x, mask)`` runs the same weights
    on the visible patches alone: hidden pixels are never read.

    VideoMAC's encoders (arXiv 2402.19082) take ``layer_scale_init_value=0.`` and
    ``stage_norm='inline'``, V2 also ``use_grn=True``; for exact parity with the official
    code ``grn_scope='batch'``.

    Args:
        arch: a name of ``arch_settings``, or a dict with ``depths``, ``channels`` and
            optionally ``stem_patch_size``. Defaults to 'tiny'.
        in_channels: channels of the image. Defaults to 3.
        stem_patch_size: pixels; the ``arch``'s own, or 4, if None. Defaults to None.
        norm_cfg: norm layers. Defaults to ``dict(type='videomac_mm.LN2d', eps=1e-6)``.
        act_cfg: activation. Defaults to ``dict(type='GELU')``.
        linear_pw_conv: point-wise convs as `torch.nn.Linear`. Defaults to True.
        use_grn: GRN in the blocks (V2). Defaults to False.
        grn_scope: under a mask, pool GRN over the visible sites of each 'sample' or of the
            whole 'batch'. Defaults to 'sample'.
        stage_norm: norm of each stage's output: 'side', only of what is returned, or
            'inline', of every stage and fed to the next. Defaults to 'side'.
        drop_path_rate: largest stochastic depth rate, in [0, 1). Defaults to 0.
        layer_scale_init_value: 0 leaves layer scale out. Defaults to 1e-6.
        out_indices: stages to return. Defaults to -1, the last.
        frozen_stages: number of first stages to freeze, with their inline norms; if it is all
            stages, with side norms too. Defaults to 0.
        gap_before_final_norm: return vectors (B, C), averaged over space (over the visible
            sites under a mask) before the norm. Defaults to None: True for 'side' norms,
            as in mmpretrain, False for 'inline' ones.
        with_cp: activation checkpointing of the blocks. Defaults to False.
        backend: what computes layers on visible patches, 'auto', 'torch' or 'spconv'; see
            `set_backend`. ``conv_backend`` is its earlier name. Defaults to 'auto'.
        init_cfg: initialisation. Defaults to truncated normal, std 0.02.

    Raises:
        ValueError: for an unknown ``arch`` (names those known), ``stage_norm``,
            ``grn_scope``, ``backend`` or stage index, too many ``frozen_stages``, or gap
            before an inline norm.
        ImportError: for ``backend='spconv'`` without spconv.
    """

    arch_settings = {
        **ConvNeXt.arch_settings,
        'isotropic-small': dict(depths=[18], channels=[384], stem_patch_size=16),
        'isotropic-base': dict(depths=[18], channels=[768], stem_patch_size=16),
    }

    @deprecated_api_warning(dict(conv_backend='backend'), cls_name='SparseConvNeXt')
    def __init__(
        self,
        arch: str | dict = 'tiny',
        in_channels: int = 3,
        stem_patch_size: int | None = None,
        norm_cfg: dict = dict(type='videomac_mm.LN2d', eps=1e-6),
        act_cfg: dict = dict(type='GELU'),
        linear_pw_conv: bool = True,
        use_grn: bool = False,
        grn_scope: str = 'sample',
        stage_norm: str = 'side',
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-6,
        out_indices: int | Sequence[int] = -1,
        frozen_stages: int = 0,
        gap_before_final_norm: bool | None = None,
        with_cp: bool = False,
        backend: str = 'auto',
        init_cfg: dict | list[dict] | None = [
            dict(type='TruncNormal', layer=['Conv2d', 'Linear'], std=0.02, bias=0.0),
            dict(type='Constant', layer=['LayerNorm'], val=1.0, bias=0.0),
        ],
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        arch = self._resolve(arch)
        self.depths, self.channels = arch['depths'], arch['channels']
        self.num_stages = len(self.depths)
        if stage_norm not in ('side', 'inline'):
            raise ValueError(f"stage_norm must be 'side' or 'inline', got {stage_norm!r}")
        if gap_before_final_norm is None:
            gap_before_final_norm = stage_norm == 'side'
        elif gap_before_final_norm and stage_norm == 'inline':
            raise ValueError(
                "gap_before_final_norm=True needs stage_norm='side': an inline norm "
                'comes before any pooling'
            )
        self.stage_norm = stage_norm
        self.gap_before_final_norm = gap_before_final_norm
        self.out_indices = self._stages_of(out_indices)
        if not 0 <= frozen_stages <= self.num_stages:
            raise ValueError(
                f'frozen_stages must lie in [0, {self.num_stages}], got {frozen_stages}'
            )
        self.frozen_stages = frozen_stages

        stem_patch_size = stem_patch_size or arch.get('stem_patch_size', 4)
        self.stride = stem_patch_size * 2 ** (self.num_stages - 1)
        rates = torch.linspace(0, drop_path_rate, sum(self.depths)).tolist()
        self.downsample_layers = ModuleList()
        self.stages = ModuleList()
        for stage, (depth, channels) in enumerate(zip(self.depths, self.channels)):
            norm = build_norm_layer(norm_cfg, self.channels[max(stage - 1, 0)])
            if stage == 0:
                stem = PatchConv2d(in_channels, channels, stem_patch_size, stem_patch_size)
                layer = nn.Sequential(stem, norm)
            else:
                last = self.channels[stage - 1]
                layer = nn.Sequential(norm, PatchConv2d(last, channels, 2, 2))
            self.downsample_layers.append(layer)
            first = sum(self.depths[:stage])
            blocks = [
                SparseConvNeXtBlock(
                    channels,
                    drop_path_rate=rate,
                    norm_cfg=norm_cfg,
                    act_cfg=act_cfg,
                    linear_pw_conv=linear_pw_conv,
                    layer_scale_init_value=layer_scale_init_value,
                    use_grn=use_grn,
                    grn_scope=grn_scope,
                    with_cp=with_cp,
                )
                for rate in rates[first : first + depth]
            ]
            self.stages.append(ModuleList(blocks))
            if stage_norm == 'inline' or stage in self.out_indices:
                self.add_module(f'norm{stage}', build_norm_layer(norm_cfg, channels))
        self.to(memory_format=torch.channels_last)
        set_backend(self, backend)
        self._norms_over_sites = norms_over_sites(self)
        self._freeze_stages()

    def forward(self, x: Tensor, mask: Tensor | VisiblePatches | None = None) -> tuple[Tensor, ...]:
        """Compute the features of dense images, or of their visible patches.

        Args:
            x (B, C, H, W): images. With a mask, H and W are whole and equal multiples of
                its grid, and its patches whole multiples of the network's stride.
            mask (B, h, w): bool, True = hidden; or its `VisiblePatches`, whose tables
                then serve every network that gets them.

        Returns:
            For each of ``out_indices`` a map (B, C, H/stride, W/stride), zero where hidden;
            or a vector (B, C) if ``gap_before_final_norm``.

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
            x = patches.pack(x, self.stride)
        outs = []
        for stage, blocks in zip(range(max(self.out_indices) + 1), self.stages):
            for layer in self.downsample_layers[stage]:
                x = layer(x, patches) if isinstance(layer, PatchConv2d) else layer(x)
            for block in blocks:
                x = block(x, patches)
            norm = getattr(self, f'norm{stage}', None)
            if self.stage_norm == 'inline':
                x = norm(x)
            if stage in self.out_indices:
                outs.append(self._output(x, norm, patches))
        return tuple(outs)

    def train(self, mode: bool = True) -> 'SparseConvNeXt':
        """Set the mode; frozen stages stay in eval mode."""
        super().train(mode)
        self._freeze_stages()
        return self

    def get_layer_depth(
        self, param_name: str, prefix: str = '', layer_decay_type: str = 'group'
    ) -> tuple[int, int]:
        """The depth of a parameter, for layer-wise learning rate decay.

        Inline norms, but for the last one, belong to the block before them.

        Args:
            param_name: name of the parameter.
            prefix: what precedes the backbone's own names.
            layer_decay_type: the official code's name for what a layer is: 'single', a block,
                or 'group', a stage, and three blocks in the third one (as mmpretrain).
                Isotropic networks count blocks. Defaults to 'group'.

        Returns:
            Layer of the parameter and number of layers.

        Raises:
            ValueError: for an unknown ``layer_decay_type``.
        """
        if layer_decay_type not in ('single', 'group'):
            raise ValueError(
                f"layer_decay_type must be 'single' or 'group', got {layer_decay_type!r}"
            )
        is_own = param_name.startswith(prefix)
        name = param_name[len(prefix) :] if is_own else ''
        norm = re.match(r'norm(\d+)\.', name)
        if norm and self.stage_norm == 'inline' and int(norm[1]) < self.num_stages - 1:
            name = f'stages.{norm[1]}.{self.depths[int(norm[1])] - 1}.norm'
        part = re.match(r'(stages|downsample_layers)\.(\d+)\.(\d+)', name)
        if layer_decay_type == 'group' and self.num_stages > 1:
            last = 12 if self.depths[-2] > 9 else 6
            if part is None:  # the last norm, and what follows the backbone
                return last + 1, last + 2
            kind, stage, block = part[1], int(part[2]), int(part[3])
            if kind == 'downsample_layers':
                return (0, 2, 3, last)[stage], last + 2
            return (1, 2, 3 + block // 3, last)[stage], last + 2
        num_layers = sum(self.depths) + 2
        if part is None:
            return num_layers - 1, num_layers
        first = 1 + sum(self.depths[: int(part[2])])
        if part[1] == 'stages':
            return first + int(part[3]), num_layers
        # The official code has the stem learn as the first block does.
        return (first if layer_decay_type == 'single' else 0), num_layers

    def _freeze_stages(self) -> None:
        freezes_norms = self.stage_norm == 'inline' or self.frozen_stages == self.num_stages
        for stage in range(self.frozen_stages):
            frozen = [self.downsample_layers[stage], self.stages[stage]]
            norm = getattr(self, f'norm{stage}', None)
            if norm is not None and freezes_norms:
                frozen.append(norm)
            for module in frozen:
                module.eval().requires_grad_(False)

    def _output(self, x: Tensor, norm: nn.Module, patches: VisiblePatches | None) -> Tensor:
        if self.gap_before_final_norm:
            sites = x.permute(0, 2, 3, 1)
            sites = patches.per_image(sites) if patches else sites.flatten(1, 2)
            return norm(sites.mean(1)[:, :, None, None]).flatten(1)
        if self.stage_norm == 'side':
            x = norm(x)
        return patches.unpack(x) if patches else x

    def _resolve(self, arch: str | dict) -> dict:
        if isinstance(arch, str):
            if arch not in self.arch_settings:
                raise ValueError(
                    f'unknown arch {arch!r}; choose from {sorted(self.arch_settings)} or '
                    'give a dict with depths and channels'
                )
            return self.arch_settings[arch]
        if not {'depths', 'channels'} <= set(arch) or len(arch['depths']) != len(arch['channels']):
            raise ValueError(
                f'an arch dict needs depths and channels of the same length, got {arch}'
            )
        return arch

    def _stages_of(self, out_indices: int | Sequence[int]) -> list[int]:
        given = [out_indices] if isinstance(out_indices, int) else list(out_indices)
        stages = [index + self.num_stages if index < 0 else index for index in given]
        if any(not 0 <= stage < self.num_stages for stage in stages):
            raise ValueError(
                f'out_indices {given} must lie in [{-self.num_stages}, {self.num_stages - 1}]'
            )
        return stages
