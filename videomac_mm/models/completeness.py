"""Whether a checkpoint fills a module: every weight, with its shape."""

import re
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

_NUM_SHOWN = 3  # names of each kind in the error
# Names that begin a stage of a ResNet or ConvNeXt, of timm's too.
_STAGE = re.compile(r'(?:\w+\.)?(?:layer|stages[._]|downsample_layers\.)\d+')


def check_fills(
    module: nn.Module, state_dict: Mapping[str, Tensor], what: str, prefix: str = ''
) -> None:
    """Refuse a state dict that does not fill a module.

    mmengine only warns of such state dicts, and a test with half-random weights gives a
    number that looks like any other. The rule:

    - Missing names and other shapes are always refused, with two exceptions, which are no
      weights: ``num_batches_tracked`` of batch norm, and tables of fixed positions (buffers
      called ``pos_embed``), which the constructor fills. Converted weights have neither.
    - Unexpected names are refused where they continue a part that the module has, such as the
      blocks of a deeper network in a stage (ResNet-101 in ResNet-50, ConvNeXt-S in ConvNeXt-T).
      They are allowed where the module was built without the whole part: a last stage that is
      not computed, the norm of another stage's output, a classifier.

    Names and shapes are compared as the load hooks of the module leave them: mmpretrain's ViT
    resizes its positions that way.

    Args:
        module: to be filled; not changed.
        state_dict: may hold more than the module's weights.
        what: name of the module in the error, such as 'the backbone'.
        prefix: of the module's names in ``state_dict``, such as 'backbone.'.

    Raises:
        ValueError: naming how many weights are missing, unexpected and of another shape, and
            the first of each.
    """
    own = {name: value for name, value in module.state_dict().items()}
    found = {
        name.removeprefix(prefix): value
        for name, value in state_dict.items()
        if name.startswith(prefix)
    }
    found = _as_hooks_leave_it(module, found)
    if own and own.keys().isdisjoint(found):
        raise ValueError(
            f'the checkpoint has no weight of {what}: expected names such as '
            f'{prefix + min(own)!r}, got {sorted(state_dict)[:_NUM_SHOWN]}'
        )
    optional = {name for name, _ in module.named_buffers() if _is_computed(name)}
    missing = [name for name in own if name not in found and name not in optional]
    unexpected = [name for name in found if name not in own and not _is_left_out(name, own, module)]
    reshaped = [
        f'{prefix}{name} is {tuple(found[name].shape)} instead of {tuple(value.shape)}'
        for name, value in own.items()
        if name in found and found[name].shape != value.shape
    ]
    if missing or unexpected or reshaped:
        kinds = dict(missing=missing, unexpected=unexpected)
        lists = [
            f'{len(names)} {kind}{_first([prefix + name for name in names])}'
            for kind, names in kinds.items()
        ]
        lists.append(f'{len(reshaped)} of another shape{_first(reshaped)}')
        raise ValueError(
            f'the checkpoint does not fill {what}, a {type(module).__name__} of {len(own)} '
            f'weights: {", ".join(lists)}'
        )


def _is_computed(buffer: str) -> bool:
    return buffer.rpartition('.')[2] in ('num_batches_tracked', 'pos_embed')


def _as_hooks_leave_it(module: nn.Module, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict as the modules' own load hooks rename and resize it."""
    state_dict = dict(state_dict)
    for name, part in module.named_modules():
        prefix = f'{name}.' if name else ''
        for hook in part._load_state_dict_pre_hooks.values():
            hook(state_dict, prefix, {}, True, [], [], [])
    return state_dict


def _is_left_out(name: str, own: Mapping[str, Tensor], module: nn.Module) -> bool:
    """Whether an unexpected name belongs to a whole part that the module was built without."""
    part = next(
        part
        for part in _beginnings(name)
        if part == name or not any(key.startswith(f'{part}.') for key in own)
    )
    if '.' not in part or _STAGE.fullmatch(part):
        return True
    # `Sparsified` puts these in place of layers that no output depends on.
    return isinstance(dict(module.named_modules()).get(part), nn.Identity)


def _beginnings(name: str) -> Iterator[str]:
    """'a', 'a.b' and 'a.b.c' of 'a.b.c'."""
    parts = name.split('.')
    return ('.'.join(parts[: number + 1]) for number in range(len(parts)))


def _first(names: list[str]) -> str:
    if not names:
        return ''
    return f' ({", ".join(names[:_NUM_SHOWN])}{", …" if len(names) > _NUM_SHOWN else ""})'
