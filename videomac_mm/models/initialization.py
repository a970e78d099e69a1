"""Initialisation of some layers of a network by their names."""

import fnmatch
from collections.abc import Sequence

from mmengine.model.weight_init import update_init_info
from mmengine.registry import build_from_cfg
from torch import nn

from videomac_mm.registry import WEIGHT_INITIALIZERS


@WEIGHT_INITIALIZERS.register_module()
class ByName:
    """Initialise the layers of a network whose names match.

    mmengine's initialisers choose layers by their class. In ``init_cfg`` this one follows those::

        init_cfg=[
            dict(type='TruncNormal', layer='Conv2d', std=0.02),
            dict(type='videomac_mm.ByName', names='conv1',
                 init=dict(type='TruncNormal', layer='Conv2d', std=1.0)),
        ]

    Args:
        names: of layers in the network, one or several, with wildcards as in ``fnmatch``.
        init: config of an initialiser, which is applied to each layer that matches.

    Raises:
        ValueError: when it is applied, if a name matches no layer.
    """

    def __init__(self, names: str | Sequence[str], init: dict) -> None:
        self.names = [names] if isinstance(names, str) else list(names)
        self.init = init
        self.wholemodule = False  # set by mmengine

    def __call__(self, module: nn.Module) -> None:
        """Initialise the layers of ``module`` that match."""
        initialize = build_from_cfg(self.init, WEIGHT_INITIALIZERS)
        for pattern in self.names:
            layers = [
                layer for name, layer in module.named_modules() if fnmatch.fnmatch(name, pattern)
            ]
            if not layers:
                raise ValueError(f'no layer of {type(module).__name__} has a name like {pattern!r}')
            for layer in layers:
                initialize(layer)
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=f'ByName: {self.names}, {self.init}')
