"""What others call our weights: a table per code base, and how to rename by it."""

import re

from torch import Tensor

# Pairs (pattern of their name, our name). The first pattern that matches a whole name is taken.
Names = list[tuple[str, str]]

_DECODER: Names = [
    (r'mask_token', r'neck.mask_token'),
    (r'(proj|pred)\.(weight|bias)', r'neck.\1.\2'),
    (r'decoder\.(\d+)\.dwconv\.(weight|bias)', r'neck.decoder.\1.depthwise_conv.\2'),
    (r'decoder\.(\d+)\.pwconv(\d)\.(weight|bias)', r'neck.decoder.\1.pointwise_conv\2.\3'),
    (r'decoder\.(\d+)\.(norm|grn)\.(\w+)', r'neck.decoder.\1.\2.\3'),
]

VIDEOMAC: Names = [
    *_DECODER,
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
FCMAE: Names = [
    *_DECODER,
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

VIDEOMAE: Names = [
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

# Pairs of names (theirs, ours), read in both directions. ``{}`` stands for what both share,
# never a dot. `patterns` makes patterns of them.
TIMM_CONVNEXT: Names = [
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
TIMM_RESNET: Names = [
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
TIMM = [*TIMM_CONVNEXT, *TIMM_RESNET]
# mmpretrain has our names. The table says which of them.
MMPRETRAIN = [(ours, ours) for _, ours in TIMM]
MMACTION: Names = [
    ('cls_head.fc_cls.{leaf}', 'head.fc.{leaf}'),
    # Its ResNet is made of mmcv's `ConvModule`; its ConvNeXt is mmpretrain's.
    ('backbone.conv1.conv.weight', 'backbone.conv1.weight'),
    ('backbone.conv1.bn.{leaf}', 'backbone.bn1.{leaf}'),
    ('backbone.layer{i}.{j}.conv{n}.conv.weight', 'backbone.layer{i}.{j}.conv{n}.weight'),
    ('backbone.layer{i}.{j}.conv{n}.bn.{leaf}', 'backbone.layer{i}.{j}.bn{n}.{leaf}'),
    ('backbone.layer{i}.{j}.downsample.conv.weight', 'backbone.layer{i}.{j}.downsample.0.weight'),
    ('backbone.layer{i}.{j}.downsample.bn.{leaf}', 'backbone.layer{i}.{j}.downsample.1.{leaf}'),
    *((ours, ours) for _, ours in TIMM_CONVNEXT if ours.startswith('backbone.')),
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


def patterns(names: Names, out: bool = False) -> Names:
    """Make patterns of pairs (their name, our name): from theirs to ours, or ``out``."""

    def pattern(name: str) -> str:
        return re.sub(r'\\\{(\w+)\\\}', r'(?P<\1>\\w+)', re.escape(name))

    def expansion(name: str) -> str:
        return re.sub(r'\{(\w+)\}', r'\\g<\1>', name)

    pairs = [(ours, theirs) if out else (theirs, ours) for theirs, ours in names]
    return [(pattern(old), expansion(new)) for old, new in pairs]


def renamed(state_dict: dict[str, Tensor], names: Names, complaint: str) -> dict[str, Tensor]:
    """The same tensors under their new names.

    Raises:
        KeyError: listing, after ``complaint``, the keys that have no new name, or one that
            another key has taken.
    """
    result, unknown = {}, []
    for key, value in state_dict.items():
        matches = ((re.fullmatch(pattern, key), name) for pattern, name in names)
        name = next((match.expand(name) for match, name in matches if match), None)
        if name is None or name in result:
            unknown.append(key)
        else:
            result[name] = value
    if unknown:
        raise KeyError(f'{complaint}: {unknown}')
    return result
