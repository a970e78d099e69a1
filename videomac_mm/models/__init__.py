from ..registry import MODELS
from ..sparse import LayerNorm2d, PatchConv2d
from .backbones.sparse_convnext import SparseConvNeXt
from .backbones.sparse_resnet import SparseResNet
from .heads.pixel_head import PixelHead
from .losses.consistency_loss import ConsistencyLoss
from .masking import RandomPatchMask
from .necks.mask_token_decoder import MaskTokenDecoder
from .selfsup.videomac import VideoMAC
from .target_network import TargetNetwork

# `sparse` knows no registry; configs and mmcv's builders name these two layers.
MODELS.register_module('LN2d', module=LayerNorm2d)
MODELS.register_module(module=PatchConv2d)

__all__ = [
    'ConsistencyLoss',
    'MaskTokenDecoder',
    'PixelHead',
    'RandomPatchMask',
    'SparseConvNeXt',
    'SparseResNet',
    'TargetNetwork',
    'VideoMAC',
]
