from videomac_mm.engine.hooks import (
    PropagationVisualizationHook,
    ReconstructionHook,
    TargetEMAHook,
)

__all__ = ['PropagationVisualizationHook', 'ReconstructionHook', 'TargetEMAHook']
