"""What mmaction2 1.2 and mmpretrain 1.2 break beside today's transformers."""

import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from mmengine.registry import Registry

from videomac_mm.compat._repair import imports


def optional_models_stop_all_others() -> None:
    """mmaction2 1.2, mmpretrain 1.2: one multimodal model that fails to import takes all down.

    Both import these models as soon as ``transformers`` is installed (mmpretrain: with
    ``pycocotools``), and use names that it dropped in 4.53 to 5.0. Without it they register
    placeholders; so they do here, with the reason in their error.
    """
    for toolbox in ('mmaction', 'mmpretrain'):
        imports.on_error(f'{toolbox}.models.multimodal', _register_placeholders)


def _register_placeholders(
    module: ModuleType, execute: Callable[[ModuleType], None], error: Exception
) -> None:
    """Run the module's code again, as if its optional packages were absent."""
    toolbox = module.__name__.split('.')[0]
    reason = (
        f'the multimodal models of {toolbox} cannot be imported with the installed packages '
        f'({type(error).__name__}: {error}); transformers==4.49.0 is a release that they work with'
    )

    def register(names: Sequence[str], registry: Registry) -> None:
        for name in names:
            # Forced: a part of the models may stand there already.
            registry.register_module(name=name, module=_refusal(name, reason), force=True)

    dependency = sys.modules[f'{toolbox}.utils.dependency']
    upstream = dependency.WITH_MULTIMODAL, dependency.register_multimodal_placeholder
    dependency.WITH_MULTIMODAL, dependency.register_multimodal_placeholder = False, register
    try:
        execute(module)
    finally:
        dependency.WITH_MULTIMODAL, dependency.register_multimodal_placeholder = upstream


def _refusal(name: str, reason: str) -> Callable:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ImportError(f'{name}: {reason}')

    return refuse
