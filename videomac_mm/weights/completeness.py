"""Whether weights are those of one whole network."""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from videomac_mm.models.backbones.sparse_convnext import SparseConvNeXt
from videomac_mm.models.backbones.sparse_resnet import (
    SparseBasicBlock,
    SparseBottleneck,
    SparseResNet,
)
from videomac_mm.models.backbones.video_vit import VideoVisionTransformer
from videomac_mm.models.necks.mask_token_decoder import MaskTokenDecoder
from videomac_mm.models.necks.token_decoder import TokenDecoder

Shapes = dict[str, tuple[int, ...]]


def check_complete(weights: dict[str, Tensor], inline_norms: bool = False) -> None:
    """Compare names and shapes with those of the network that these weights seem to be of.

    Its kind and depth are read from the names, its widths from the shapes that most tensors
    have. Fixed positions and batch norm's counters may be missing, and the norm after the last
    stage of a ConvNeXt without a classifier: FCMAE has none.

    Args:
        weights: in our names: ``backbone.*`` of `SparseConvNeXt`, `SparseResNet` or
            `VideoVisionTransformer`, and, if it has any of these, ``neck.*`` and ``head.fc.*``.
        inline_norms: a ConvNeXt has norms after all stages, as VideoMAC's encoders.

    Raises:
        KeyError: listing missing and unknown names, and tensors of another shape than the
            others ask for, with both shapes.
    """
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    backbone, neck, head = (
        {name.removeprefix(part): shape for name, shape in shapes.items() if name.startswith(part)}
        for part in ('backbone.', 'neck.', 'head.fc.')
    )
    with _without_memory():
        parts = {'backbone.': _backbone_like(backbone, inline_norms, 'weight' in head)}
        channels = _channels(parts['backbone.'])
        if neck:
            parts['neck.'] = _neck_like(neck, channels)
        if head:
            parts['head.fc.'] = nn.Linear(channels, _size(head, r'weight|bias', 0))
    expected = {
        part + name: tuple(value.shape)
        for part, module in parts.items()
        for name, value in module.state_dict().items()
    }
    missing = [
        name
        for name in sorted(expected.keys() - shapes.keys())
        if not name.endswith(('num_batches_tracked', 'backbone.pos_embed'))
    ]
    unknown = sorted(shapes.keys() - expected.keys())
    misshapen = [
        f'{name}: {shape} instead of {expected[name]}'
        for name, shape in shapes.items()
        if name in expected and shape != expected[name]
    ]
    if missing or unknown or misshapen:
        raise KeyError(
            f'not a whole network: missing {missing}, unknown {unknown}, of another shape '
            f'{misshapen}'
        )


@contextmanager
def _without_memory() -> Iterator[None]:
    """Build modules whose parameters have shapes but no values, so that size costs nothing.

    ``with torch.device('meta')`` fails where a constructor reads values, such as the rates of
    drop path.
    """

    def on_meta(module: nn.Module, name: str, param: nn.Parameter) -> nn.Parameter:
        return nn.Parameter(param.to('meta'), requires_grad=param.requires_grad)

    handle = register_module_parameter_registration_hook(on_meta)
    try:
        yield
    finally:
        handle.remove()


def _backbone_like(shapes: Shapes, inline_norms: bool, classifies: bool) -> nn.Module:
    """The backbone that has these weights, if none is missing, too many or misshapen."""
    if any(name.startswith('stages.') for name in shapes):
        return _convnext_like(shapes, inline_norms, classifies)
    if any(name.startswith('layer') for name in shapes):
        return _resnet_like(shapes)
    if any(name.startswith('blocks.') for name in shapes):
        return _vision_transformer_like(shapes)
    raise KeyError(f'no backbone that can be converted: {sorted(shapes)}')


def _convnext_like(shapes: Shapes, inline_norms: bool, classifies: bool) -> SparseConvNeXt:
    num_stages = _depth(shapes, r'(?:stages|downsample_layers)\.(\d+)\.')
    last = num_stages - 1
    norms = {i for i in range(num_stages) if inline_norms or f'norm{i}.weight' in shapes}
    norms |= {last} if classifies or f'norm{last}.bias' in shapes else set()
    stem = r'downsample_layers\.0\.0\.weight'  # (C, in, K, K)
    block = r'stages\.\d+\.\d+\.'
    model = SparseConvNeXt(
        dict(
            depths=[_depth(shapes, rf'stages\.{i}\.(\d+)\.') for i in range(num_stages)],
            channels=[
                _size(shapes, rf'stages\.{i}\.\d+\.(depthwise_conv|norm)\.\w+', 0)
                for i in range(num_stages)
            ],
        ),
        in_channels=_size(shapes, stem, 1),
        stem_patch_size=_size(shapes, stem, 2),
        linear_pw_conv=_most_common(
            len(shape) == 2 for shape in _of(shapes, block + r'pointwise_conv\d\.weight')
        ),
        use_grn=bool(_of(shapes, block + r'grn\.\w+')),
        layer_scale_init_value=float(bool(_of(shapes, block + 'gamma'))),
        out_indices=sorted(norms) or -1,
    )
    if not norms:
        delattr(model, f'norm{last}')
    return model


def _resnet_like(shapes: Shapes) -> SparseResNet:
    block = SparseBottleneck if _of(shapes, r'.*conv3\.weight') else SparseBasicBlock
    depths = [_depth(shapes, rf'layer{i}\.(\d+)\.') for i in (1, 2, 3, 4)]

    class Network(SparseResNet):
        arch_settings = {0: (block, depths)}

    return Network(
        0,
        variant='videomac' if _of(shapes, r'(layer.*\.)?ln\d\.\w+') else 'standard',
        in_channels=_size(shapes, r'conv1\.weight', 1),
        stem_channels=_size(shapes, r'(conv1|bn1|ln1)\.(weight|bias)', 0),
        base_channels=_size(shapes, r'layer1\.\d+\.(conv1|bn1|ln1)\.(weight|bias)', 0),
    )


def _vision_transformer_like(shapes: Shapes) -> VideoVisionTransformer:
    embed_dims = _size(shapes, r'(blocks\.\d+\.norm\d|norm|fc_norm)\.\w+', 0)
    hidden_dims = _size(shapes, r'blocks\.\d+\.mlp\.layers\.0\.0\.\w+', 0)
    in_channels, tubelet_size, patch_size = (
        _size(shapes, r'patch_embed\.projection\.weight', axis) for axis in (1, 2, 3)
    )  # of (D, in, T, P, P)
    return VideoVisionTransformer(
        img_size=patch_size,
        patch_size=patch_size,
        in_channels=in_channels,
        num_frames=tubelet_size * _size(shapes, 'pos_embed', 1),  # they belong to any clip
        tubelet_size=tubelet_size,
        embed_dims=embed_dims,
        depth=_depth(shapes, r'blocks\.(\d+)\.'),
        num_heads=1,
        mlp_ratio=Fraction(hidden_dims, embed_dims),
        qkv_bias=bool(_of(shapes, r'.*\.[qv]_bias')),
        use_mean_pooling=bool(_of(shapes, r'fc_norm\.\w+')),
    )


def _channels(backbone: nn.Module) -> int:
    """Of the last map or the tokens of a backbone made above."""
    if isinstance(backbone, SparseConvNeXt):
        return backbone.channels[-1]
    return backbone.feat_dim if isinstance(backbone, SparseResNet) else backbone.embed_dims


def _neck_like(shapes: Shapes, in_channels: int) -> nn.Module:
    """The decoder that has these weights, if none is missing, too many or misshapen."""
    if any(name.startswith('decoders.') for name in shapes):
        return TokenDecoder(
            1,
            in_channels,
            embed_dims=_size(shapes, r'decoders\.0\.(blocks\.\d+\.norm\d|norm)\.\w+', 0),
            depth=_depth(shapes, r'decoders\.0\.blocks\.(\d+)\.'),
            num_heads=1,
            pred_dims=(_size(shapes, r'decoders\.0\.preds\.0\.\w+', 0),),
        )
    return MaskTokenDecoder(
        in_channels,
        embed_dims=_size(shapes, r'decoder\.\d+\.(depthwise_conv|norm)\.\w+', 0),
        depth=_depth(shapes, r'decoder\.(\d+)\.'),
        patch_size=1,
        out_channels=_size(shapes, r'pred\.\w+', 0),  # patch_size² * 3
    )


def _of(shapes: Shapes, pattern: str) -> list[tuple[int, ...]]:
    """Shapes of the tensors whose whole name matches."""
    return [shape for name, shape in shapes.items() if re.fullmatch(pattern, name)]


def _size(shapes: Shapes, pattern: str, axis: int) -> int:
    """The length of an axis that most of the tensors have whose whole name matches; else 1."""
    return _most_common(shape[axis] for shape in _of(shapes, pattern) if len(shape) > axis) or 1


def _most_common(values: Iterator) -> int | bool | None:
    counted = Counter(values).most_common(1)
    return counted[0][0] if counted else None


def _depth(shapes: Shapes, pattern: str) -> int:
    """One more than the largest index found at the start of a name, at least 1."""
    matches = (re.match(pattern, name) for name in shapes)
    return 1 + max((int(match[1]) for match in matches if match), default=0)
