from videomac_mm.models.backbones.conv_vit import ConvVisionTransformer
from videomac_mm.models.backbones.sparse_convnext import SparseConvNeXt
from videomac_mm.models.backbones.sparse_resnet import SparseResNet
from videomac_mm.models.backbones.sparsified import Sparsified
from videomac_mm.models.backbones.temporal_shift import TemporalShifted
from videomac_mm.models.backbones.video_vit import VideoVisionTransformer
from videomac_mm.models.data_preprocessor import CropPreprocessor
from videomac_mm.models.gathered_batch_norm import GatheredBatchNorm1d
from videomac_mm.models.heads.contrast_head import ContrastHead
from videomac_mm.models.heads.pixel_head import PixelHead
from videomac_mm.models.heads.video_pixel_head import VideoPixelHead
from videomac_mm.models.initialization import ByName
from videomac_mm.models.label_propagation.codecs import KeypointCodec, MaskCodec
from videomac_mm.models.label_propagation.propagator import LabelPropagator
from videomac_mm.models.losses.consistency_loss import ConsistencyLoss
from videomac_mm.models.masking import RandomPatchMask, RandomTubeletMask, TubeMask
from videomac_mm.models.necks.mask_token_decoder import MaskTokenDecoder
from videomac_mm.models.necks.token_decoder import TokenDecoder
from videomac_mm.models.selfsup.base import MaskedAutoencoder
from videomac_mm.models.selfsup.cmae_v import CMAEV
from videomac_mm.models.selfsup.motionmae import MotionMAE
from videomac_mm.models.selfsup.videomac import VideoMAC
from videomac_mm.models.selfsup.videomae import VideoMAE
from videomac_mm.models.target_network import TargetNetwork
from videomac_mm.registry import MODELS
from videomac_mm.sparse import LayerNorm2d, PatchConv2d

# `sparse` knows no registry; configs and mmcv's builders name these two layers.
MODELS.register_module('LN2d', module=LayerNorm2d)
MODELS.register_module(module=PatchConv2d)

__all__ = [
    'ByName',
    'CMAEV',
    'ConsistencyLoss',
    'ContrastHead',
    'ConvVisionTransformer',
    'CropPreprocessor',
    'GatheredBatchNorm1d',
    'KeypointCodec',
    'LabelPropagator',
    'MaskCodec',
    'MaskTokenDecoder',
    'MaskedAutoencoder',
    'MotionMAE',
    'PixelHead',
    'RandomPatchMask',
    'RandomTubeletMask',
    'SparseConvNeXt',
    'SparseResNet',
    'Sparsified',
    'TargetNetwork',
    'TemporalShifted',
    'TokenDecoder',
    'TubeMask',
    'VideoMAC',
    'VideoMAE',
    'VideoPixelHead',
    'VideoVisionTransformer',
]
