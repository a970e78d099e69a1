"""The algorithm inside a distributed wrapper."""

from mmengine.model import is_model_wrapper
from torch import nn


def unwrap(model: nn.Module) -> nn.Module:
    """The algorithm that a distributed wrapper holds; without a wrapper, the model itself."""
    return model.module if is_model_wrapper(model) else model
