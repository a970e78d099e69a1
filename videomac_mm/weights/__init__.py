"""Weights of other code, read, renamed and checked. No other part knows their layouts."""

from videomac_mm.weights.completeness import check_complete
from videomac_mm.weights.conversions import (
    from_fcmae,
    from_mmaction,
    from_timm,
    from_videomac,
    from_videomae,
    to_mmaction,
    to_mmpretrain,
    to_timm,
)
from videomac_mm.weights.files import UnsafeCheckpointError, read_checkpoint, write_safetensors

__all__ = [
    'UnsafeCheckpointError',
    'check_complete',
    'from_fcmae',
    'from_mmaction',
    'from_timm',
    'from_videomac',
    'from_videomae',
    'read_checkpoint',
    'to_mmaction',
    'to_mmpretrain',
    'to_timm',
    'write_safetensors',
]
