"""Masked ConvNets on their visible patches alone: no registry, no config. See README.md."""

from videomac_mm.sparse.geometry import VisiblePatches
from videomac_mm.sparse.layers import (
    LayerNorm2d,
    PatchConv2d,
    PatchDropPath,
    PatchGRN,
    PatchMaxPool2d,
    is_plain,
    linear_gelu_grn,
    norm_act,
    norms_over_sites,
    set_backend,
)
from videomac_mm.sparse.sparsify import MaskAware, sparsify

__all__ = [
    'LayerNorm2d',
    'MaskAware',
    'PatchConv2d',
    'PatchDropPath',
    'PatchGRN',
    'PatchMaxPool2d',
    'VisiblePatches',
    'is_plain',
    'linear_gelu_grn',
    'norm_act',
    'norms_over_sites',
    'set_backend',
    'sparsify',
]
