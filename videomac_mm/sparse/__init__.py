"""Masked ConvNets on their visible patches alone: no registry, no config."""

from videomac_mm.sparse.modules import (
    LayerNorm2d,
    PatchConv2d,
    PatchDropPath,
    PatchGRN,
    PatchMaxPool2d,
    is_exact_gelu,
    patchify,
    set_conv_backend,
)
from videomac_mm.sparse.patches import VisiblePatches
from videomac_mm.sparse.sparsify import MaskAware, sparsify

__all__ = [
    'MaskAware',
    'LayerNorm2d',
    'PatchConv2d',
    'PatchDropPath',
    'PatchGRN',
    'PatchMaxPool2d',
    'VisiblePatches',
    'is_exact_gelu',
    'patchify',
    'set_conv_backend',
    'sparsify',
]
