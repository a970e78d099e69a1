from videomac_mm.engine.hooks import ReconstructionHook, TargetEMAHook

__all__ = ['ReconstructionHook', 'TargetEMAHook']
