"""Find out by trial how each module of a ConvNet runs on packed tiles."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from videomac_mm.sparse.foreign import WINDOWED
from videomac_mm.sparse.geometry import VisiblePatches
from videomac_mm.sparse.masked_dense import masked_dense

# What these do in training is known: batch norm takes its statistics from visible sites, and
# dropout draws a number for each site.
_KNOWN_IN_TRAINING = (*WINDOWED, _BatchNorm, nn.Dropout, nn.AlphaDropout, nn.RReLU)
_DROP_PATHS = {'DropPath', 'StochasticDepth'}  # of mmcv and timm, and of torchvision
_REASONS = {
    'AdaptiveAvgPool2d': 'only pooling to one site has a sparse form',
    'BlurPool2d': 'padding by reflection has no sparse form',
    'Upsample': "only mode='nearest' with a whole scale_factor stays inside tiles",
}


@dataclass(frozen=True)
class Findings:
    """What a proof has found out about a network.

    Attributes:
        kinds: type of every module inside the network, by name.
        axes: of modules that treat sites as a set, by name: the first axis of sites in what
            they take, see `run_on_images`.
        called: names of the modules that ran.
        stride: the largest one of a map.
        patch_size: pixels of a patch in the proof.
    """

    kinds: dict[str, type]
    axes: dict[str, int]
    called: frozenset[str]
    stride: int
    patch_size: int


def kinds_of(network: nn.Module) -> dict[str, type]:
    """The type of every module inside a network, by name."""
    return {name: type(module) for name, module in network.named_modules() if name}


def refusal(name: str, kind: type, reason: str) -> ValueError:
    """The error that says which module of a network cannot be carried, and why."""
    module = f'{name} ({kind.__name__})' if name else f'the network itself ({kind.__name__})'
    return ValueError(f'sparsify cannot carry {module}: {reason}')


@torch.no_grad()
def prove(network: nn.Module, patch_size: int) -> Findings:
    """Prove that packed execution of a network equals masked-dense execution.

    Args:
        network: a copy of one with `MaskAware`. It is moved to the CPU and changed.
        patch_size: pixels.

    Raises:
        ValueError: names the first module whose results differ, or whose code fails.
    """
    generator = torch.Generator().manual_seed(0)
    network.cpu().double().eval()
    for param in network.parameters():  # zeros would hide what a layer does
        noise = torch.randn(param.shape, generator=generator, dtype=param.dtype)
        param += noise * 0.1 / (param[0].numel() ** 0.5 if param.ndim > 1 else 1.0)
    stem = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    shape = 2, stem.in_channels, 2 * patch_size, 2 * patch_size
    images = torch.randn(shape, generator=generator, dtype=torch.float64)
    axes = {
        name: 0
        for name, module in network.named_modules()
        if not _DROP_PATHS.isdisjoint(kind.__name__ for kind in type(module).__mro__)
    }
    while True:
        trial = _Trial(network, axes, images)
        failure = trial.run()
        if failure is None:
            break
        name, reason = failure
        found = trial.find_sets(name)
        if not found:
            raise trial.refusal(name, reason)
        axes = {**axes, **found}
    axes = {**axes, **trial.find_sets_in_training()}
    return Findings(kinds_of(network), axes, frozenset(trial.calls), trial.stride, patch_size)


class NoMap(ValueError):
    """A network returns something else than maps."""

    reason = 'what it returns is no map (B, C, H, W) of the visible patches'


class _Mismatch(Exception):
    """Packed and masked-dense execution differ."""


class _Trial:
    """A packed and a masked-dense execution of a network, compared value by value.

    Args:
        network: one with `MaskAware`; float64, in eval mode.
        axes: as in `Findings`, as far as they are known.
        images (2, C, H, W): of 2x2 patches.
    """

    def __init__(self, network: nn.Module, axes: dict[str, int], images: Tensor) -> None:
        self.network, self.axes, self.images = network, axes, images
        self.mask = torch.tensor([[[0, 1], [1, 0]], [[1, 1], [0, 0]]], dtype=torch.bool)
        self.patches = VisiblePatches(self.mask)
        self.calls = {}  # of the packed execution: module, arguments
        self.stride = 1
        self._axes_of_sites = {}  # the first one in what each module takes
        self._pooled = []  # modules that returned one value per image
        self._events = []  # module, what happens, and values
        self._remaining = None
        self._running = ['']

    def run(self) -> tuple[str, str] | None:
        """Return the name of the first module that fails and the reason, or None."""
        kinds, sparse = kinds_of(self.network), []
        self.network.sparse_findings = Findings(kinds, self.axes, frozenset(kinds), 1, 0)
        try:
            with self._hooks(self._record), suppress(NoMap):
                sparse = _listed(self.network(self.images, self.mask))
            self._remaining = iter(self._events)
            with self._hooks(self._compare), masked_dense(self.network, self.mask):
                dense = _listed(self.network(self.images))
            if [out.shape for out in sparse] == [out.shape for out in dense]:
                if all(map(_is_close, sparse, dense)):
                    return None
                raise _Mismatch
            if self._pooled:
                return self._pooled[-1], 'the network returns what is pooled globally'
            return '', NoMap.reason
        except _Mismatch:
            reason = 'its own code works neither site by site nor on sites as a set'
        except Exception as error:
            size = self.images.shape[-1] // 2
            reason = f'with patches of {size} pixels it fails: {type(error).__name__}: {error}'
        # A module that is given something else stands in the code of the one that runs.
        name = self._running[-1]
        module = self.network.get_submodule(name)
        if isinstance(module, WINDOWED) and 'fails' not in reason:
            reason = 'it is called by other ways than as a submodule, or does more than its class'
        names = [kind.__name__ for kind in type(module).__mro__]
        return name, next((_REASONS[kind] for kind in names if kind in _REASONS), reason)

    def refusal(self, name: str, reason: str) -> ValueError:
        """The error for a module of the network."""
        kind = type(self.network.get_submodule(name)) if name else type(self.network).__bases__[1]
        return refusal(name, kind, reason)

    def find_sets(self, name: str) -> dict[str, int]:
        """The axes of a module that treats sites as a set, or lies in one, and of its likes."""
        while name and name not in self.axes:
            axis = self._axis_of(name)
            if axis is not None:
                kind = type(self._module(name))
                likes = [like for like in self.calls if type(self._module(like)) is kind]
                return {like: axis for like in likes if self._treats_as_set(like, axis)}
            name = name.rpartition('.')[0]
        return {}

    def find_sets_in_training(self) -> dict[str, int]:
        """The axes of layers that work site by site in eval mode, but on sets in training.

        Raises:
            ValueError: names a layer that does something else in training.
        """
        axes = {}
        for name, (args, kwargs) in self.calls.items():
            layer = self._module(name)
            has_children = any(True for _ in layer.children())
            if has_children or name in self.axes or isinstance(layer, _KNOWN_IN_TRAINING):
                continue
            if not args or not isinstance(args[0], Tensor):
                continue
            still, trained = (_run_seeded(layer.train(on), *args, **kwargs) for on in (False, True))
            if not all(map(_is_close, trained, still)):
                axes[name] = self._axis_of(name)
                if axes[name] is None:
                    reason = 'in training it works neither site by site nor on sites as a set'
                    raise self.refusal(name, reason)
        return axes

    def _module(self, name: str) -> nn.Module:
        return self.network.get_submodule(name)

    def _axis_of(self, name: str) -> int | None:
        """The first axis of the sites that a module treats as a set; None if there is none."""
        axes = [self._axes_of_sites[name]] if name in self._axes_of_sites else [1, 2]
        return next((axis for axis in axes if axis and self._treats_as_set(name, axis)), None)

    def _treats_as_set(self, name: str, axis: int) -> bool:
        args, kwargs = self.calls.get(name, ((), {}))
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        if len(tensors) != 1 or args[0] is not tensors[0] or args[0].ndim < 3:
            return False
        x, *args = args

        def call(x: Tensor) -> Tensor:
            (out,) = _run_seeded(self._module(name), x, *args, **kwargs)
            return out

        return _treats_as_set(call, x.shape, axis)

    @contextmanager
    def _hooks(self, visit: Callable[[str, str, list[Tensor]], None]) -> Iterator[None]:
        """Visit what the modules outside of sets take and give."""

        def enter(name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
            if visit == self._record:
                self.calls[name] = args, kwargs
            visit(name, 'takes', _listed(args))
            self._running.append(name)

        def leave(name: str, module: nn.Module, args: tuple, outs) -> None:
            visit(name, 'gives', _listed(outs))
            self._running.pop()

        modules = dict(self.network.named_modules())
        closed = [name for name, module in modules.items() if isinstance(module, WINDOWED)]
        inside = tuple(f'{name}.' for name in (*closed, *self.axes))
        handles = []
        for name, module in modules.items():
            if name and not name.startswith(inside):
                first, last = partial(enter, name), partial(leave, name)
                handles.append(module.register_forward_pre_hook(first, with_kwargs=True))
                handles.append(module.register_forward_hook(last))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _record(self, name: str, event: str, values: list[Tensor]) -> None:
        self._events.append((name, event, [value.clone() for value in values]))

    def _compare(self, name: str, event: str, values: list[Tensor]) -> None:
        *known_event, tiles = next(self._remaining, (None,))
        if known_event != [name, event] or len(values) != len(tiles):
            raise _Mismatch
        for value, tile in zip(values, tiles):
            forms = _packed(value, self.patches)
            axis = next((axis for axis, form in forms.items() if _is_close(tile, form)), -1)
            if axis == -1:
                raise _Mismatch
            if event == 'takes':
                self._axes_of_sites.setdefault(name, axis)
            if event == 'gives' and name in self.axes and _is_pooled(value, 2, 2):
                self._pooled.append(name)
            elif value.ndim == 4 and 1 < value.shape[2] in value.shape[1::2]:
                self.stride = max(self.stride, self.images.shape[2] // value.shape[2])


def _run_seeded(module: nn.Module, x: Tensor, *args, **kwargs) -> list[Tensor]:
    """Call a module with the same random numbers each time; it may overwrite a copy of ``x``."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return _listed(module(x.clone(), *args, **kwargs))


def _treats_as_set(call: Callable[[Tensor], Tensor], shape: torch.Size, axis: int) -> bool:
    """Whether moving the sites of an image moves those of what is returned, and no more.

    Args:
        call: takes maps or rows of sites, and may fail for some sizes.
        shape: of what it takes.
        axis: the first axis of sites; a map has two of them, a row one.
    """
    generator = torch.Generator().manual_seed(0)
    sides = (12, 12) if len(shape) > 3 else (144,)  # larger than any usual window

    def move(x: Tensor) -> Tensor:
        flat = x.flatten(axis, axis + len(sides) - 1).movedim(axis, 1)
        flat = torch.stack([image[order] for image, order in zip(flat, orders)])
        return flat.movedim(1, axis).unflatten(axis, sides)

    x = torch.randn(
        (*shape[:axis], *sides, *shape[axis + len(sides) :]),
        generator=generator,
        dtype=torch.float64,
    )
    orders = [torch.randperm(math.prod(sides), generator=generator) for _ in x]
    try:
        first, second = call(x), call(move(x))
    except Exception:  # the sites of its maps are not there, or their number is fixed
        return False
    if first.shape[axis : axis + len(sides)] == sides:
        return _is_close(second, move(first))
    return _is_pooled(first, axis, len(sides)) and _is_close(second, first)


def _is_pooled(value: Tensor, axis: int, num: int) -> bool:
    return all(size == 1 for size in value.shape[axis : axis + num])


def _listed(values: Tensor | tuple | list) -> list[Tensor]:
    """The tensors in what a module takes or gives."""
    values = values if isinstance(values, tuple | list) else [values]
    return [value for value in values if isinstance(value, Tensor)]


def _packed(value: Tensor, patches: VisiblePatches) -> dict[int | None, Tensor]:
    """What a value of the masked-dense network may be on tiles, by its first axis of sites."""
    if value.ndim == 0:
        return {0: value}
    # The value of a parameter, or one per image.
    forms = {0: value, None: value.repeat_interleave(patches.num_visible, 0)}
    for axis in range(1, value.ndim):
        maps, side = value, math.isqrt(value.shape[axis])
        if value.ndim == 3 and side**2 == value.shape[axis]:  # sites in a row
            maps = value.unflatten(axis, (side, side))
        sides = maps.shape[axis : axis + 2]
        if maps.ndim < 4 or len(sides) < 2 or sides[0] != sides[1] or sides[0] % 2:
            continue
        maps = maps.movedim((axis, axis + 1), (-2, -1))
        tiles = patches.pack(maps.flatten(1, -3)).unflatten(1, maps.shape[1:-2])
        tiles = tiles.movedim((-2, -1), (axis, axis + 1))
        forms[axis] = tiles.flatten(axis, axis + 1) if value.ndim == 3 else tiles
    return forms


def _is_close(value: Tensor, other: Tensor) -> bool:
    if value.shape != other.shape or not value.is_floating_point():
        return torch.equal(value, other)
    # Some norms compute in float32 whatever they are given.
    scale = other.abs().max().item() if other.numel() else 0.0
    return torch.allclose(value, other, rtol=1e-5, atol=1e-5 * scale)
