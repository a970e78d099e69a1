"""Optimisers: learning rates that differ from layer to layer, and what a wrapper holds."""

from collections.abc import Callable
from functools import partial

from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper, OptimWrapperDict
from mmpretrain.engine import LearningRateDecayOptimWrapperConstructor
from torch import nn
from torch.optim import Optimizer

from videomac_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS


def optimizers_of(wrapper: OptimWrapper | OptimWrapperDict) -> list[Optimizer]:
    """The optimisers of torch that a wrapper of mmengine, or several, hold."""
    wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    return [each.optimizer for each in wrappers]


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class GroupedOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's default constructor, with one group for all parameters of equal settings.

    mmengine makes a group of each parameter, and an optimiser works group by group: what is
    fused over many parameters is then fused over one.
    """

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs) -> None:
        """Add the parameters of ``module``, grouped by their settings, to ``params``."""
        super().add_params(params, module, prefix=prefix, **kwargs)
        if prefix:  # not yet the whole model
            return
        groups: dict[tuple, dict] = {}
        for single in params:
            settings = tuple(sorted((k, repr(v)) for k, v in single.items() if k != 'params'))
            group = groups.setdefault(settings, dict(single, params=[]))
            group['params'] += single['params']
        params[:] = groups.values()


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(LearningRateDecayOptimWrapperConstructor):
    """Layer-wise learning rate decay, for the models of every toolbox.

    mmpretrain's constructor asks the model for the depth of a parameter, and only its own
    classifiers answer; those of mmaction2 and mmsegmentation know few networks by name. This
    one asks ``model.backbone``: classifiers, recognisers, segmentors and detectors have one.

    ``paramwise_cfg`` is mmpretrain's (``layer_decay_rate``, ``norm_decay_mult``,
    ``bias_decay_mult``, ``flat_decay_mult``, ``custom_keys``), and besides may have
    ``layer_decay_type``, which is handed to the backbone's ``get_layer_depth``: 'group' or
    'single' for `SparseConvNeXt` and `SparseResNet`.

    Raises:
        TypeError: when called with a model that has no backbone with ``get_layer_depth``.
    """

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = '',
        get_layer_depth: Callable | None = None,
        **kwargs,
    ) -> None:
        """Add the parameters of ``module``, each with its learning rate, to ``params``."""
        if get_layer_depth is None:
            backbone = getattr(module, 'backbone', None)
            if not hasattr(backbone, 'get_layer_depth'):
                raise TypeError(
                    'layer-wise decay needs a model whose backbone has get_layer_depth, got '
                    f'{type(module).__name__} with backbone {type(backbone).__name__}'
                )
            kind = self.paramwise_cfg.get('layer_decay_type')
            get_layer_depth = partial(
                backbone.get_layer_depth,
                prefix='backbone.',
                **({'layer_decay_type': kind} if kind else {}),
            )
        super().add_params(params, module, prefix=prefix, get_layer_depth=get_layer_depth)
