"""From the weights of others to ours, and back.

Our names are those of the toolboxes: ``backbone.*``, ``neck.*`` and a classifier's ``head.fc.*``.
"""

from torch import Tensor

from videomac_mm.weights import names
from videomac_mm.weights.minkowski import dense
from videomac_mm.weights.names import patterns, renamed


def from_videomac(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring weights of the official VideoMAC code to our names and layouts.

    Sparse kernels of MinkowskiEngine become ordinary conv weights, see `minkowski.dense`.

    Args:
        state_dict: of the official online or target model (encoder and decoder).

    Returns:
        The same weights as a state dict of `VideoMAC` without its target: ``backbone.*`` and
        ``neck.*``.

    Raises:
        KeyError: listing the keys that are not of that layout.
    """
    return dense(renamed(state_dict, names.VIDEOMAC, 'not weights of the official VideoMAC code'))


def from_fcmae(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring weights of the official ConvNeXt V2 code to our names and layouts.

    Pre-trained ones (FCMAE) come in MinkowskiEngine's layout, see `minkowski.dense`, with the
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
    return dense(renamed(state_dict, names.FCMAE, 'not weights of the official ConvNeXt V2 code'))


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
    return renamed(state_dict, patterns(names.TIMM), 'not weights of a ConvNeXt or ResNet of timm')


def from_mmaction(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring weights of mmaction2's recognizers to our names: the inverse of `to_mmaction`.

    Raises:
        KeyError: listing the keys that have no place in our backbones.
    """
    return renamed(state_dict, patterns(names.MMACTION), 'not weights of a recognizer of mmaction2')


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
    return renamed(state_dict, names.VIDEOMAE, 'not weights of the official VideoMAE code')


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
    return renamed(state_dict, patterns(names.MMPRETRAIN, out=True), 'no place in mmpretrain for')


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
    return renamed(state_dict, patterns(names.MMACTION, out=True), 'no place in mmaction2 for')


def to_timm(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring weights to the names of timm's ConvNeXt, ConvNeXt V2 and ResNet.

    Args:
        state_dict: as for `to_mmpretrain`.

    Raises:
        KeyError: listing the keys that those have not.
    """
    convnext = any(key.startswith('backbone.stages.') for key in state_dict)
    table = names.TIMM_CONVNEXT if convnext else names.TIMM_RESNET
    return renamed(state_dict, patterns(table, out=True), 'no place in timm for')
