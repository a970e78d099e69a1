"""Operators on packed tiles, ``videomac_mm::…``: a default in plain torch, kernels beside it."""

from videomac_mm.sparse.ops.conv import conv2d, conv2d_on_halos
from videomac_mm.sparse.ops.gelu_grn import gelu_grn, grn
from videomac_mm.sparse.ops.halo import halo
from videomac_mm.sparse.ops.norm_gelu import norm_gelu

__all__ = ['conv2d', 'conv2d_on_halos', 'gelu_grn', 'grn', 'halo', 'norm_gelu']
