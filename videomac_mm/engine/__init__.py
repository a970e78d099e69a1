from videomac_mm.engine.hooks import (
    CheckpointHook,
    CollapseHook,
    DataFaultsHook,
    NonFiniteHook,
    PropagationVisualizationHook,
    ReconstructionHook,
    TargetEMAHook,
    effective_rank,
    prediction_spread,
)
from videomac_mm.engine.loops import EpochBasedTrainLoop, IterBasedTrainLoop
from videomac_mm.engine.optimizers import (
    GroupedOptimWrapperConstructor,
    LayerDecayOptimWrapperConstructor,
)

__all__ = [
    'CheckpointHook',
    'CollapseHook',
    'DataFaultsHook',
    'EpochBasedTrainLoop',
    'GroupedOptimWrapperConstructor',
    'IterBasedTrainLoop',
    'LayerDecayOptimWrapperConstructor',
    'NonFiniteHook',
    'PropagationVisualizationHook',
    'ReconstructionHook',
    'TargetEMAHook',
    'effective_rank',
    'prediction_spread',
]
