from videomac_mm.engine.hooks.checkpoint import CheckpointHook
from videomac_mm.engine.hooks.collapse import CollapseHook, effective_rank, prediction_spread
from videomac_mm.engine.hooks.data_faults import DataFaultsHook
from videomac_mm.engine.hooks.non_finite import NonFiniteHook
from videomac_mm.engine.hooks.propagation_visualization import PropagationVisualizationHook
from videomac_mm.engine.hooks.reconstruction import ReconstructionHook
from videomac_mm.engine.hooks.target_ema import TargetEMAHook

__all__ = [
    'CheckpointHook',
    'CollapseHook',
    'DataFaultsHook',
    'NonFiniteHook',
    'PropagationVisualizationHook',
    'ReconstructionHook',
    'TargetEMAHook',
    'effective_rank',
    'prediction_spread',
]
