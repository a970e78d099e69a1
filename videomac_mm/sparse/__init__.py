"""Masked ConvNets on their visible patches alone: plain torch, no registry, no config."""

from videomac_mm.sparse.modules import (
    LayerNorm2d,
    PatchConv2d,
    PatchDropPath,
    PatchGRN,
    PatchMaxPool2d,
    patchify,
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
    'patchify',
    'sparsify',
]
