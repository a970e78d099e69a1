"""Foreign weight layouts. The only place that knows them."""

import re

from torch import Tensor

# (pattern of the official name, our name); the first that matches whole is taken.
_VIDEOMAC_NAMES: list[tuple[str, str]] = [
    (r'mask_token', r'neck.mask_token'),
    (r'(proj|pred)\.(weight|bias)', r'neck.\1.\2'),
    (r'decoder\.(\d+)\.dwconv\.(weight|bias)', r'neck.decoder.\1.depthwise_conv.\2'),
    (r'decoder\.(\d+)\.pwconv(\d)\.(weight|bias)', r'neck.decoder.\1.pointwise_conv\2.\3'),
    (r'decoder\.(\d+)\.(norm|grn)\.(\w+)', r'neck.decoder.\1.\2.\3'),
    # ConvNeXt
    (r'encoder\.downsample_layers\.(\d)\.(\d)(?:\.ln)?\.(\w+)', r'downsample_layers.\1.\2.\3'),
    (r'encoder\.stages\.(\d)\.(\d+)\.dwconv\.(\w+)', r'stages.\1.\2.depthwise_conv.\3'),
    (
        r'encoder\.stages\.(\d)\.(\d+)\.pwconv(\d)\.linear\.(\w+)',
        r'stages.\1.\2.pointwise_conv\3.\4',
    ),
    (r'encoder\.stages\.(\d)\.(\d+)\.norm\.ln\.(\w+)', r'stages.\1.\2.norm.\3'),
    (r'encoder\.stages\.(\d)\.(\d+)\.grn\.(\w+)', r'stages.\1.\2.grn.\3'),
    (r'encoder\.norm(\d)\.ln\.(\w+)', r'norm\1.\2'),
    # ResNet
    (r'encoder\.stem\.0\.(\w+)', r'conv1.\1'),
    (r'encoder\.stem\.1\.(\w+)', r'ln1.\1'),
    (r'encoder\.layer(\d)\.(\d+)\.conv(\d)\.kernel', r'layer\1.\2.conv\3.kernel'),
    (r'encoder\.layer(\d)\.(\d+)\.norm(\d)\.ln\.(\w+)', r'layer\1.\2.ln\3.\4'),
    (
        r'encoder\.layer(\d)\.(\d+)\.downsample\.(\d)(?:\.ln)?\.(\w+)',
        r'layer\1.\2.downsample.\3.\4',
    ),
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
    converted = {}
    for name, value in _renamed(state_dict, _VIDEOMAC_NAMES, 'VideoMAC').items():
        name = name if name.startswith('neck.') else f'backbone.{name}'
        if name.endswith('.kernel'):
            name, value = (
                name[: -len('kernel')] + 'weight',
                _conv_weight(value, 'depthwise' in name),
            )
        elif name.endswith(('.bias', '.gamma', '.beta')):
            value = value.flatten()
        converted[name] = value
    return converted


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
    return _renamed(state_dict, _VIDEOMAE_NAMES, 'VideoMAE')


def _renamed(
    state_dict: dict[str, Tensor], names: list[tuple[str, str]], origin: str
) -> dict[str, Tensor]:
    renamed, unknown = {}, []
    for key, value in state_dict.items():
        matches = ((re.fullmatch(pattern, key), name) for pattern, name in names)
        name = next((match.expand(name) for match, name in matches if match), None)
        if name is None:
            unknown.append(key)
        else:
            renamed[name] = value
    if unknown:
        raise KeyError(f'not weights of the official {origin} code: {unknown}')
    return renamed


def _conv_weight(kernel: Tensor, depthwise: bool) -> Tensor:
    """A kernel of MinkowskiEngine as (out, in, K, K), or (C, 1, K, K) if depth-wise."""
    if depthwise:
        kernel = kernel[:, None]  # (K², C) -> (K², 1, C)
    elif kernel.ndim == 2:
        kernel = kernel[None]  # 1x1 kernels may come as (in, out)
    side = round(kernel.shape[0] ** 0.5)
    # (column, row, in, out) -> (out, in, row, column)
    return kernel.unflatten(0, (side, side)).permute(3, 2, 1, 0).contiguous()
