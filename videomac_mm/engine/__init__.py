from videomac_mm.engine.hooks import (
    CheckpointHook,
    PropagationVisualizationHook,
    ReconstructionHook,
    TargetEMAHook,
)
from videomac_mm.engine.loops import EpochBasedTrainLoop, IterBasedTrainLoop
from videomac_mm.engine.optimizers import (
    GroupedOptimWrapperConstructor,
    LayerDecayOptimWrapperConstructor,
)

__all__ = [
    'CheckpointHook',
    'EpochBasedTrainLoop',
    'GroupedOptimWrapperConstructor',
    'IterBasedTrainLoop',
    'LayerDecayOptimWrapperConstructor',
    'PropagationVisualizationHook',
    'ReconstructionHook',
    'TargetEMAHook',
]
