from videomac_mm.engine.hooks import (
    PropagationVisualizationHook,
    ReconstructionHook,
    TargetEMAHook,
)
from videomac_mm.engine.optimizers import (
    GroupedOptimWrapperConstructor,
    LayerDecayOptimWrapperConstructor,
)

__all__ = [
    'GroupedOptimWrapperConstructor',
    'LayerDecayOptimWrapperConstructor',
    'PropagationVisualizationHook',
    'ReconstructionHook',
    'TargetEMAHook',
]
