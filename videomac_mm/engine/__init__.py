from videomac_mm.engine.hooks import (
    PropagationVisualizationHook,
    ReconstructionHook,
    TargetEMAHook,
)
from videomac_mm.engine.optimizers import LayerDecayOptimWrapperConstructor

__all__ = [
    'LayerDecayOptimWrapperConstructor',
    'PropagationVisualizationHook',
    'ReconstructionHook',
    'TargetEMAHook',
]
