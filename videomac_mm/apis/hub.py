"""The project's models by the names of their configs."""

import difflib
import fnmatch
import functools
import logging
from pathlib import Path

import mmengine
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from torch import nn

from videomac_mm.models.completeness import check_fills

PACKAGE = Path(__file__).parents[1]


def list_models(pattern: str = '*') -> list[str]:
    """List the names of all models in the model index that match a pattern.

    Args:
        pattern: with wildcards, for whole names or for how they begin, such as
            ``'videomac_*ytvos'``. Defaults to all.
    """
    return sorted(fnmatch.filter(_configs(), pattern + '*'))


def get_config(name: str) -> Config:
    """Read the config of a model; ``get_config(name).dump('mine.py')`` makes a copy to edit.

    Args:
        name: one of `list_models`.

    Raises:
        ValueError: for an unknown name; names the nearest ones.
    """
    if name not in _configs():
        near = difflib.get_close_matches(name, _configs(), n=3, cutoff=0)
        raise ValueError(f'unknown model {name!r}; the nearest names are {", ".join(near)}')
    return Config.fromfile(_configs()[name])


def get_model(
    name: str,
    pretrained: str | None = None,
    device: str | torch.device | None = None,
    **kwargs,
) -> nn.Module:
    """Build a model for inference, whatever its toolbox.

    Args:
        name: one of `list_models`.
        pretrained: checkpoint, a file or URL. It must fill the backbone. Any other part, such
            as a head or a decoder, must be filled too, or have no weight in the checkpoint at
            all, which is logged as a warning: a pre-trained checkpoint is enough for the
            features of a classifier. Defaults to None, the weights that the model starts with.
        device: such as ``'cuda:1'``. Defaults to None, the CPU.
        **kwargs: what differs from ``model`` in the config, such as
            ``backbone=dict(out_indices=(0, 1, 2, 3))``.

    Returns:
        The model in eval mode.

    Raises:
        ValueError: for an unknown name; names the nearest ones. For a checkpoint that does not
            fill a part of the model; see `check_fills`.
    """
    cfg = get_config(name)
    cfg.merge_from_dict(dict(model=kwargs))
    # Runners hand over what stands outside of the model, too.
    if cfg.get('data_preprocessor') is not None:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        model = MODELS.build(cfg.model)
        if pretrained is None and hasattr(model, 'init_weights'):
            model.init_weights()
    if pretrained is not None:
        handle = model._register_load_state_dict_pre_hook(functools.partial(_check_parts, model))
        load_checkpoint(model, str(pretrained), map_location='cpu')
        handle.remove()
    return model.to(device or 'cpu').eval()


def _check_parts(model: nn.Module, state_dict: dict, *_) -> None:
    """Raise if the backbone, or a part of which there are weights, would not be filled."""
    for name, part in model.named_children():
        if not part.state_dict():
            continue
        if name == 'backbone' or any(key.startswith(f'{name}.') for key in state_dict):
            check_fills(part, state_dict, f'the {name} of {type(model).__name__}', f'{name}.')
        else:
            message = f'the checkpoint has no weights of the {name} of {type(model).__name__}'
            print_log(message, 'current', logging.WARNING)


@functools.cache
def _configs() -> dict[str, Path]:
    """Config files by the names of models, from the model index."""
    # In an installation, mim's folder; in a clone, the folder above.
    folders = (PACKAGE / '.mim', PACKAGE.parent)
    root = next(folder for folder in folders if (folder / 'model-index.yml').is_file())
    metafiles = mmengine.load(root / 'model-index.yml')['Import']
    models = (model for path in metafiles for model in mmengine.load(root / path)['Models'])
    return {model['Name']: root / model['Config'] for model in models}
