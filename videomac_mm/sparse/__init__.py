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

__all__ = [
    'LayerNorm2d',
    'PatchConv2d',
    'PatchDropPath',
    'PatchGRN',
    'PatchMaxPool2d',
    'VisiblePatches',
    'patchify',
]
