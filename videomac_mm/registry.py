"""Child registries of mmengine's, scope ``videomac_mm``.

mmengine imports this file by its name whenever a config says ``videomac_mm.X``, and
the locations when a registry is first searched; no ``custom_imports`` is needed.
"""

from mmengine import registry as root
from mmengine.registry import Registry

_SCOPE = 'videomac_mm'


def _child(parent: Registry, *locations: str) -> Registry:
    return Registry(parent.name, parent=parent, scope=_SCOPE, locations=list(locations))


MODELS = _child(root.MODELS, 'videomac_mm.models')
TASK_UTILS = _child(root.TASK_UTILS, 'videomac_mm.models')
DATASETS = _child(root.DATASETS, 'videomac_mm.datasets')
DATA_SAMPLERS = _child(root.DATA_SAMPLERS, 'videomac_mm.datasets')
TRANSFORMS = _child(root.TRANSFORMS, 'videomac_mm.datasets')
HOOKS = _child(root.HOOKS, 'videomac_mm.engine')
WEIGHT_INITIALIZERS = _child(root.WEIGHT_INITIALIZERS, 'videomac_mm.models')
METRICS = _child(root.METRICS, 'videomac_mm.evaluation')
LOOPS = _child(root.LOOPS, 'videomac_mm.engine')
OPTIM_WRAPPER_CONSTRUCTORS = _child(root.OPTIM_WRAPPER_CONSTRUCTORS, 'videomac_mm.engine')

# No tenants yet. Without a child of their kind, mmengine warns once for every object
# that is built while `default_scope` is ours.
for _parent in (
    root.EVALUATOR,
    root.FUNCTIONS,
    root.INFERENCERS,
    root.LOG_PROCESSORS,
    root.MODEL_WRAPPERS,
    root.OPTIM_WRAPPERS,
    root.OPTIMIZERS,
    root.PARAM_SCHEDULERS,
    root.RUNNER_CONSTRUCTORS,
    root.RUNNERS,
    root.STRATEGIES,
    root.VISBACKENDS,
    root.VISUALIZERS,
):
    _child(_parent)
