"""ConvNets whose frames see their neighbours."""

from functools import partial

from mmaction.models.backbones.resnet_tsm import TemporalShift
from mmpretrain.models.backbones.convnext import ConvNeXtBlock
from mmpretrain.models.backbones.resnet import BasicBlock, Bottleneck
from torch import nn

from videomac_mm.models.backbones.sparse_convnext import SparseConvNeXtBlock
from videomac_mm.registry import MODELS

_FIRST_CONV = {
    BasicBlock: 'conv1',
    Bottleneck: 'conv1',
    ConvNeXtBlock: 'depthwise_conv',
    SparseConvNeXtBlock: 'depthwise_conv',
}


@MODELS.register_module()
def TemporalShifted(  # a type in configs
    backbone: dict | nn.Module, num_segments: int = 8, shift_div: int = 8
) -> nn.Module:
    """Build a ConvNet with the `shift of TSM <https://arxiv.org/abs/1811.08383>`_.

    Before the first conv of a residual block, inside its branch, one part of the channels
    comes from the next frame of the video and one from the frame before, zeros beyond its
    ends. In a ResNet that is every block, from ResNet-101 on every second one of a stage, as
    in ``mmaction.ResNetTSM`` (``shift_place='blockres'``); in a ConvNeXt it is every block.

    The network keeps its class, its arguments and its keys: any checkpoint of it loads. Its
    batch (B*T, C, H, W) holds the ``num_segments`` frames of each clip one after another. It
    takes no mask.

    Args:
        backbone: config of the network, or the network, which is changed in place. Its blocks
            must derive from those of mmpretrain's ResNet or ConvNeXt, or be this package's.
        num_segments: frames of a clip, T. 1 leaves the network as it is. Defaults to 8.
        shift_div: 1/shift_div of the channels comes from each neighbour. Defaults to 8.

    Raises:
        ValueError: for a network without such blocks, an argument below 1 and, in
            ``forward``, a batch that is no multiple of ``num_segments`` or a mask.
    """
    if num_segments < 1 or shift_div < 1:
        raise ValueError(
            f'num_segments and shift_div must be at least 1, got {num_segments} and {shift_div}'
        )
    network = MODELS.build(backbone) if isinstance(backbone, dict) else backbone
    every = 2 if len(getattr(network, 'layer3', ())) >= 23 else 1  # mmaction2's `n_round`
    blocks = [
        block
        for stage in network.modules()
        for block in [x for x in stage.children() if isinstance(x, tuple(_FIRST_CONV))][::every]
    ]
    if not blocks:
        names = ', '.join(kind.__name__ for kind in _FIRST_CONV)
        raise ValueError(
            f'{type(network).__name__} has no residual block to shift in; '
            f'known are those of mmpretrain: {names}'
        )
    network.num_segments = num_segments  # read by `Recognizer2D` for fully convolutional tests
    if num_segments > 1:
        hook = partial(_shift, num_segments=num_segments, shift_div=shift_div)
        for block in blocks:
            name = next(name for kind, name in _FIRST_CONV.items() if isinstance(block, kind))
            getattr(block, name).register_forward_pre_hook(hook)
    return network


def _shift(conv: nn.Module, args: tuple, num_segments: int, shift_div: int) -> tuple:
    x, *patches = args
    # In the call of a sparsified network the layer itself holds them.
    if any(given is not None for given in (*patches, getattr(conv, 'patches', None))):
        raise ValueError('a network with temporal shift takes no mask: frames must be whole')
    if len(x) % num_segments:
        raise ValueError(f'a batch of {len(x)} frames is no multiple of {num_segments=}')
    return TemporalShift.shift(x, num_segments, shift_div), *patches
