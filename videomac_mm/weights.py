"""Foreign weight layouts. The only place that knows them.

Ours are the names of the toolboxes: ``backbone.*``, ``neck.*`` and a classifier's ``head.fc.*``.
"""

import argparse
import importlib
import pickle
import re
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from videomac_mm.models.backbones.sparse_convnext import SparseConvNeXt
from videomac_mm.models.backbones.sparse_resnet import (
    SparseBasicBlock,
    SparseBottleneck,
    SparseResNet,
)
from videomac_mm.models.backbones.video_vit import VideoVisionTransformer
from videomac_mm.models.necks.mask_token_decoder import MaskTokenDecoder
from videomac_mm.models.necks.token_decoder import TokenDecoder

# (pattern of the official name, our name); the first that matches whole is taken.
_DECODER_NAMES: list[tuple[str, str]] = [
    (r'mask_token', r'neck.mask_token'),
    (r'(proj|pred)\.(weight|bias)', r'neck.\1.\2'),
    (r'decoder\.(\d+)\.dwconv\.(weight|bias)', r'neck.decoder.\1.depthwise_conv.\2'),
    (r'decoder\.(\d+)\.pwconv(\d)\.(weight|bias)', r'neck.decoder.\1.pointwise_conv\2.\3'),
    (r'decoder\.(\d+)\.(norm|grn)\.(\w+)', r'neck.decoder.\1.\2.\3'),
]

_VIDEOMAC_NAMES: list[tuple[str, str]] = [
    *_DECODER_NAMES,
    # ConvNeXt
    (
        r'encoder\.downsample_layers\.(\d)\.(\d)(?:\.ln)?\.(\w+)',
        r'backbone.downsample_layers.\1.\2.\3',
    ),
    (r'encoder\.stages\.(\d)\.(\d+)\.dwconv\.(\w+)', r'backbone.stages.\1.\2.depthwise_conv.\3'),
    (
        r'encoder\.stages\.(\d)\.(\d+)\.pwconv(\d)\.linear\.(\w+)',
        r'backbone.stages.\1.\2.pointwise_conv\3.\4',
    ),
    (r'encoder\.stages\.(\d)\.(\d+)\.norm\.ln\.(\w+)', r'backbone.stages.\1.\2.norm.\3'),
    (r'encoder\.stages\.(\d)\.(\d+)\.grn\.(\w+)', r'backbone.stages.\1.\2.grn.\3'),
    (r'encoder\.norm(\d)\.ln\.(\w+)', r'backbone.norm\1.\2'),
    # ResNet
    (r'encoder\.stem\.0\.(\w+)', r'backbone.conv1.\1'),
    (r'encoder\.stem\.1\.(\w+)', r'backbone.ln1.\1'),
    (r'encoder\.layer(\d)\.(\d+)\.conv(\d)\.kernel', r'backbone.layer\1.\2.conv\3.kernel'),
    (r'encoder\.layer(\d)\.(\d+)\.norm(\d)\.ln\.(\w+)', r'backbone.layer\1.\2.ln\3.\4'),
    (
        r'encoder\.layer(\d)\.(\d+)\.downsample\.(\d)(?:\.ln)?\.(\w+)',
        r'backbone.layer\1.\2.downsample.\3.\4',
    ),
]

# The Minkowski layout of pre-training, and the dense one, which ConvNeXt V1 shares.
_FCMAE_NAMES: list[tuple[str, str]] = [
    *_DECODER_NAMES,
    *(
        (rf'(?:encoder\.)?{theirs}', rf'backbone.{ours}')
        for theirs, ours in (
            (
                r'downsample_layers\.(\d)\.(\d)(?:\.ln)?\.(\w+)',
                r'downsample_layers.\1.\2.\3',
            ),
            (r'stages\.(\d)\.(\d+)\.dwconv\.(\w+)', r'stages.\1.\2.depthwise_conv.\3'),
            (
                r'stages\.(\d)\.(\d+)\.pwconv(\d)(?:\.linear)?\.(\w+)',
                r'stages.\1.\2.pointwise_conv\3.\4',
            ),
            (r'stages\.(\d)\.(\d+)\.norm(?:\.ln)?\.(\w+)', r'stages.\1.\2.norm.\3'),
            (r'stages\.(\d)\.(\d+)\.(grn\.\w+|gamma)', r'stages.\1.\2.\3'),
        )
    ),
    (r'norm\.(\w+)', r'backbone.norm3.\1'),
    (r'head\.(\w+)', r'head.fc.\1'),
]

_VIDEOMAE_NAMES: list[tuple[str, str]] = [
    (r'mask_token', r'neck.decoders.0.mask_token'),
    (r'encoder_to_decoder\.(\w+)', r'neck.decoders.0.proj.\1'),
    (r'decoder\.head\.(\w+)', r'neck.decoders.0.preds.0.\1'),
    (r'encoder\.patch_embed\.proj\.(\w+)', r'backbone.patch_embed.projection.\1'),
    *(
        (rf'{theirs}\.{part}', rf'{ours}.{name}')
        for theirs, ours in (('encoder', 'backbone'), ('decoder', 'neck.decoders.0'))
        for part, name in (
            (r'blocks\.(\d+)\.mlp\.fc1\.(\w+)', r'blocks.\1.mlp.layers.0.0.\2'),
            (r'blocks\.(\d+)\.mlp\.fc2\.(\w+)', r'blocks.\1.mlp.layers.1.\2'),
            (r'(blocks\.\d+\.norm\d\.\w+|norm\.\w+)', r'\1'),
            (r'(blocks\.\d+\.attn\.(?:[qv]_bias|qkv\.weight|proj\.\w+))', r'\1'),
        )
    ),
]

# (their name, our name), read in both directions; ``{}`` holds what both share, never a dot.
_TIMM_CONVNEXT: list[tuple[str, str]] = [
    ('stem.{n}.{leaf}', 'backbone.downsample_layers.0.{n}.{leaf}'),
    ('stages.{i}.downsample.{n}.{leaf}', 'backbone.downsample_layers.{i}.{n}.{leaf}'),
    ('head.norm.{leaf}', 'backbone.norm3.{leaf}'),
    ('head.fc.{leaf}', 'head.fc.{leaf}'),
    *(
        (f'stages.{{i}}.blocks.{{j}}.{theirs}', f'backbone.stages.{{i}}.{{j}}.{ours}')
        for theirs, ours in (
            ('conv_dw.{leaf}', 'depthwise_conv.{leaf}'),
            ('norm.{leaf}', 'norm.{leaf}'),
            ('mlp.fc{n}.{leaf}', 'pointwise_conv{n}.{leaf}'),
            ('mlp.grn.weight', 'grn.gamma'),
            ('mlp.grn.bias', 'grn.beta'),
            ('gamma', 'gamma'),
        )
    ),
]
_TIMM_RESNET: list[tuple[str, str]] = [
    ('fc.{leaf}', 'head.fc.{leaf}'),
    *(
        (name, f'backbone.{name}')
        for name in (
            'conv1.weight',
            'bn1.{leaf}',
            'layer{i}.{j}.conv{n}.weight',
            'layer{i}.{j}.bn{n}.{leaf}',
            'layer{i}.{j}.downsample.0.weight',
            'layer{i}.{j}.downsample.1.{leaf}',
        )
    ),
]
_TIMM_NAMES = [*_TIMM_CONVNEXT, *_TIMM_RESNET]
# mmpretrain's are ours. The table says which of ours it has.
_MMPRETRAIN_NAMES = [(ours, ours) for _, ours in _TIMM_NAMES]
_MMACTION_NAMES: list[tuple[str, str]] = [
    ('cls_head.fc_cls.{leaf}', 'head.fc.{leaf}'),
    # Its ResNet is made of mmcv's `ConvModule`; its ConvNeXt is mmpretrain's.
    ('backbone.conv1.conv.weight', 'backbone.conv1.weight'),
    ('backbone.conv1.bn.{leaf}', 'backbone.bn1.{leaf}'),
    ('backbone.layer{i}.{j}.conv{n}.conv.weight', 'backbone.layer{i}.{j}.conv{n}.weight'),
    ('backbone.layer{i}.{j}.conv{n}.bn.{leaf}', 'backbone.layer{i}.{j}.bn{n}.{leaf}'),
    ('backbone.layer{i}.{j}.downsample.conv.weight', 'backbone.layer{i}.{j}.downsample.0.weight'),
    ('backbone.layer{i}.{j}.downsample.bn.{leaf}', 'backbone.layer{i}.{j}.downsample.1.{leaf}'),
    *((ours, ours) for _, ours in _TIMM_CONVNEXT if ours.startswith('backbone.')),
    *(
        (name, name)
        for name in (
            'backbone.pos_embed',
            'backbone.patch_embed.projection.{leaf}',
            'backbone.blocks.{j}.norm{n}.{leaf}',
            'backbone.blocks.{j}.attn.{leaf}',
            'backbone.blocks.{j}.attn.{part}.{leaf}',
            'backbone.blocks.{j}.mlp.layers.0.0.{leaf}',
            'backbone.blocks.{j}.mlp.layers.1.{leaf}',
            'backbone.norm.{leaf}',
            'backbone.fc_norm.{leaf}',
        )
    ),
]


def read_checkpoint(path: Path) -> dict:
    """Read a file of tensors and plain values; whatever holds code is refused.

    Args:
        path: of torch's format or, by its suffix, safetensors.

    Raises:
        ValueError: for a file that holds code or no dict, naming what it holds.
    """
    if Path(path).suffix == '.safetensors':
        return _safetensors().load_file(path)
    # Official code saves its command line along with the weights.
    if hasattr(torch.serialization, 'add_safe_globals'):
        torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as err:
        reason = str(err).replace('\n', ' ')
        raise ValueError(
            f'{path} is refused: a checkpoint may hold tensors and plain values, and reading '
            f'this file would take code: {reason}'
        ) from None
    if not isinstance(checkpoint, dict):
        raise ValueError(f'{path} should hold a dict, got {type(checkpoint).__name__}')
    return checkpoint


def write_safetensors(weights: dict[str, Tensor], path: Path, meta: dict) -> None:
    """Write tensors, and ``meta`` as strings, as one safetensors file."""
    tensors = {name: value.contiguous() for name, value in weights.items()}
    meta = {key: str(value) for key, value in meta.items()}
    _safetensors().save_file(tensors, path, dict(meta, format='pt'))


def _safetensors() -> ModuleType:
    try:
        return importlib.import_module('safetensors.torch')
    except ImportError as err:
        raise ImportError(
            "safetensors files need an extra: pip install 'videomac_mm[weights]'"
        ) from err


def from_videomac(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring weights of the official VideoMAC code to our names and layouts.

    Sparse kernels of MinkowskiEngine, ``(K², in, out)`` or ``(K², C)`` for depth-wise ones
    with the column of the window running slowest, become ordinary conv weights.

    Args:
        state_dict: of the official online or target model (encoder and decoder).

    Returns:
        The same weights as a state dict of `VideoMAC` without its target: ``backbone.*`` and
        ``neck.*``.

    Raises:
        KeyError: listing the keys that are not of that layout.
    """
    return _dense(
        _renamed(state_dict, _VIDEOMAC_NAMES, 'not weights of the official VideoMAC code')
    )


def from_fcmae(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring weights of the official ConvNeXt V2 code to our names and layouts.

    Pre-trained ones (FCMAE) come in MinkowskiEngine's layout, see `from_videomac`, with the
    decoder and without a norm after the last stage; fine-tuned ones are dense, with that norm
    and a classifier. Official weights of ConvNeXt V1 have the layout of the latter.

    Args:
        state_dict: of either model. ``encoder.`` may be missing.

    Returns:
        The same weights as ``backbone.*`` (of `SparseConvNeXt`, with ``use_grn=True`` and
        ``layer_scale_init_value=0.`` for V2), ``neck.*`` (`MaskTokenDecoder`) and ``head.fc.*``.

    Raises:
        KeyError: listing the keys that are not of that layout.
    """
    return _dense(
        _renamed(state_dict, _FCMAE_NAMES, 'not weights of the official ConvNeXt V2 code')
    )


def from_timm(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring weights of timm's ConvNeXt, ConvNeXt V2 or ResNet to our names.

    No tensor changes: the small ConvNeXts of timm, atto to nano, have 1x1 convs and need
    ``linear_pw_conv=False``.

    Returns:
        The same tensors as ``backbone.*`` (of `SparseConvNeXt` or `SparseResNet`) and
        ``head.fc.*``.

    Raises:
        KeyError: listing the keys that are not of those models.
    """
    return _renamed(
        state_dict, _compiled(_TIMM_NAMES), 'not weights of a ConvNeXt or ResNet of timm'
    )


def from_mmaction(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring weights of mmaction2's recognizers to our names: the inverse of `to_mmaction`.

    Raises:
        KeyError: listing the keys that have no place in our backbones.
    """
    return _renamed(
        state_dict, _compiled(_MMACTION_NAMES), 'not weights of a recognizer of mmaction2'
    )


def from_videomae(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring pre-training weights of the official VideoMAE code to our names.

    Args:
        state_dict: of the official model, encoder and decoder.

    Returns:
        The same tensors as a state dict of `VideoMAE`: ``backbone.*`` (mmaction2's names) and
        ``neck.*``.

    Raises:
        KeyError: listing the keys that are not of that layout.
    """
    return _renamed(state_dict, _VIDEOMAE_NAMES, 'not weights of the official VideoMAE code')


def to_mmpretrain(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make sure that mmpretrain's ConvNeXt or ResNet, and its classifiers, have these weights.

    Args:
        state_dict: ``backbone.*`` and ``head.fc.*`` of a `SparseConvNeXt` with
            ``stage_norm='side'`` and one output, or a `SparseResNet` with
            ``variant='standard'``.

    Returns:
        The same tensors under the same names.

    Raises:
        KeyError: listing the keys that it has not, such as the norms after every stage of
            VideoMAC's encoders.
    """
    return _renamed(
        state_dict, _compiled(_MMPRETRAIN_NAMES, out=True), 'no place in mmpretrain for'
    )


def to_mmaction(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring weights to the names of mmaction2's recognizers.

    Args:
        state_dict: as for `to_mmpretrain`, or of a `VideoVisionTransformer`.

    Returns:
        The same tensors: ``backbone.*`` of ``mmaction.ResNet``, ``mmaction.VisionTransformer``
        or ``mmpretrain.ConvNeXt``, and ``cls_head.fc_cls.*``.

    Raises:
        KeyError: listing the keys that those have not.
    """
    return _renamed(state_dict, _compiled(_MMACTION_NAMES, out=True), 'no place in mmaction2 for')


def to_timm(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring weights to the names of timm's ConvNeXt, ConvNeXt V2 and ResNet.

    Args:
        state_dict: as for `to_mmpretrain`.

    Raises:
        KeyError: listing the keys that those have not.
    """
    convnext = any(key.startswith('backbone.stages.') for key in state_dict)
    names = _TIMM_CONVNEXT if convnext else _TIMM_RESNET
    return _renamed(state_dict, _compiled(names, out=True), 'no place in timm for')


def check_complete(weights: dict[str, Tensor], inline_norms: bool = False) -> None:
    """Compare names with those that a network of this kind, depth and width of parts has.

    Fixed positions and batch norm's counters may be missing, and the norm after the last stage
    of a ConvNeXt without a classifier: FCMAE has none.

    Args:
        weights: in our names: ``backbone.*`` of `SparseConvNeXt`, `SparseResNet` or
            `VideoVisionTransformer`, and, if it has any of these, ``neck.*`` and ``head.fc.*``.
        inline_norms: a ConvNeXt has norms after all stages, as VideoMAC's encoders.

    Raises:
        KeyError: listing missing and unknown names.
    """
    expected = set()
    for part, build in (('backbone.', _backbone_like), ('neck.', _neck_like)):
        names = {key.removeprefix(part) for key in weights if key.startswith(part)}
        if part == 'backbone.':
            model = build(names, inline_norms, 'head.fc.weight' in weights)
        elif names:
            model = build(names)
        else:
            continue
        expected |= {part + name for name in model.state_dict()}
    heads = {'head.fc.weight', 'head.fc.bias'}
    expected |= heads if heads & set(weights) else set()
    missing = [
        name
        for name in sorted(expected - set(weights))
        if not name.endswith(('num_batches_tracked', 'backbone.pos_embed'))
    ]
    unknown = sorted(set(weights) - expected)
    if missing or unknown:
        raise KeyError(f'not a whole network: missing {missing}, unknown {unknown}')


def _backbone_like(names: set[str], inline_norms: bool, classifies: bool) -> nn.Module:
    """As small a backbone as has these names, if none is missing or too many."""

    def any_ends(*ends: str) -> bool:
        return any(name.endswith(ends) for name in names)

    if any(name.startswith('stages.') for name in names):
        stages = [
            _depth(rf'stages\.{i}\.(\d+)\.', names)
            for i in range(_depth(r'(?:stages|downsample_layers)\.(\d+)\.', names))
        ]
        last = len(stages) - 1
        norms = {i for i in range(last + 1) if inline_norms or f'norm{i}.weight' in names}
        norms |= {last} if classifies or f'norm{last}.bias' in names else set()
        model = SparseConvNeXt(
            dict(depths=stages, channels=[1] * len(stages)),
            use_grn=any_ends('grn.gamma', 'grn.beta'),
            layer_scale_init_value=float(
                any(re.fullmatch(r'stages\.\d+\.\d+\.gamma', name) for name in names)
            ),
            out_indices=sorted(norms) or -1,
        )
        if not norms:
            delattr(model, f'norm{last}')
        return model
    if any(name.startswith('layer') for name in names):
        block = SparseBottleneck if any_ends('conv3.weight') else SparseBasicBlock

        class Small(SparseResNet):
            arch_settings = {
                0: (block, [_depth(rf'layer{i}\.(\d+)\.', names) for i in (1, 2, 3, 4)])
            }

        variant = 'videomac' if any(name.startswith('ln') for name in names) else 'standard'
        return Small(0, variant=variant, stem_channels=1, base_channels=1)
    if any(name.startswith('blocks.') for name in names):
        return VideoVisionTransformer(
            img_size=16,
            num_frames=2,
            embed_dims=8,
            depth=_depth(r'blocks\.(\d+)\.', names),
            num_heads=1,
            mlp_ratio=1,
            qkv_bias=any_ends('q_bias', 'v_bias'),
            use_mean_pooling=any_ends('fc_norm.weight'),
        )
    raise KeyError(f'no backbone that can be converted: {sorted(names)}')


def _neck_like(names: set[str]) -> nn.Module:
    if any(name.startswith('decoders.') for name in names):
        depth = _depth(r'decoders\.0\.blocks\.(\d+)\.', names)
        return TokenDecoder(1, 8, embed_dims=8, depth=depth, num_heads=1, pred_dims=(1,))
    depth = _depth(r'decoder\.(\d+)\.', names)
    return MaskTokenDecoder(1, embed_dims=1, depth=depth, patch_size=1)


def _depth(pattern: str, names: set[str]) -> int:
    """One more than the largest index found, at least 1."""
    return 1 + max((int(m[1]) for name in names if (m := re.match(pattern, name))), default=0)


def _compiled(names: list[tuple[str, str]], out: bool = False) -> list[tuple[str, str]]:
    """Pairs (their name, our name) as (pattern, name): from them to us, or ``out``."""

    def pattern(name: str) -> str:
        return re.sub(r'\\\{(\w+)\\\}', r'(?P<\1>\\w+)', re.escape(name))

    def expansion(name: str) -> str:
        return re.sub(r'\{(\w+)\}', r'\\g<\1>', name)

    pairs = [(ours, theirs) if out else (theirs, ours) for theirs, ours in names]
    return [(pattern(old), expansion(new)) for old, new in pairs]


def _renamed(
    state_dict: dict[str, Tensor], names: list[tuple[str, str]], complaint: str
) -> dict[str, Tensor]:
    renamed, unknown = {}, []
    for key, value in state_dict.items():
        matches = ((re.fullmatch(pattern, key), name) for pattern, name in names)
        name = next((match.expand(name) for match, name in matches if match), None)
        if name is None or name in renamed:
            unknown.append(key)
        else:
            renamed[name] = value
    if unknown:
        raise KeyError(f'{complaint}: {unknown}')
    return renamed


def _dense(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Kernels, biases and GRN of MinkowskiEngine's layout as those of ordinary layers."""
    converted = {}
    for name, value in weights.items():
        if name.endswith('.kernel'):
            name = name.removesuffix('kernel') + 'weight'
            value = _conv_weight(value, 'depthwise' in name)
        elif name.endswith(('.bias', '.gamma', '.beta')):
            value = value.flatten()
        converted[name] = value
    return converted


def _conv_weight(kernel: Tensor, depthwise: bool) -> Tensor:
    """A kernel of MinkowskiEngine as (out, in, K, K), or (C, 1, K, K) if depth-wise."""
    if depthwise:
        kernel = kernel[:, None]  # (K², C) -> (K², 1, C)
    elif kernel.ndim == 2:
        kernel = kernel[None]  # 1x1 kernels may come as (in, out)
    side = round(kernel.shape[0] ** 0.5)
    # (column, row, in, out) -> (out, in, row, column)
    return kernel.unflatten(0, (side, side)).permute(3, 2, 1, 0).contiguous()
