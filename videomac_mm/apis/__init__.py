from videomac_mm.apis.hub import get_config, get_model, list_models
from videomac_mm.apis.label_propagation_inferencer import LabelPropagationInferencer

__all__ = ['LabelPropagationInferencer', 'get_config', 'get_model', 'list_models']
