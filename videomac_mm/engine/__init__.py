from .hooks import ReconstructionHook, TargetEMAHook

__all__ = ['ReconstructionHook', 'TargetEMAHook']
