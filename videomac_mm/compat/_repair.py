"""How repairs reach a module: right after its import, or in place of one that nobody has."""

import functools
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np
from mmengine.utils import digit_version


def numpy2() -> bool:
    return digit_version(np.__version__) >= digit_version('2.0.0')


def replace(owner: Any, name: str, make: Callable[[Callable], Any]) -> None:
    """Set ``owner.name`` to ``make(original)``, once, if there is an original."""
    original = getattr(owner, name, None)
    if original is None or hasattr(original, '__repaired_by_videomac_mm__'):
        return
    made = make(original)
    function = made.__func__ if isinstance(made, staticmethod) else made
    functools.update_wrapper(function, original)
    function.__repaired_by_videomac_mm__ = True
    setattr(owner, name, made)


class _StandIns(MetaPathFinder, Loader):
    """Answers for modules that nobody else has; last on ``sys.meta_path``."""

    def __init__(self) -> None:
        self._offers: dict[str, tuple[Callable[[ModuleType], None], Sequence[str]]] = {}

    def offer(
        self,
        name: str,
        fill: Callable[[ModuleType], None],
        only_with: Sequence[str] = (),
    ) -> None:
        """Make ``name`` importable; ``only_with``: only once one of these is loading."""
        self._offers[name] = (fill, only_with)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        _, only_with = self._offers.get(name, (None, ()))
        if name not in self._offers or (only_with and sys.modules.keys().isdisjoint(only_with)):
            return None
        return ModuleSpec(name, self, origin='videomac_mm.compat', is_package=True)

    def exec_module(self, module: ModuleType) -> None:
        fill, _ = self._offers[module.__name__]
        fill(module)


class _Imports(MetaPathFinder):
    """Changes how single modules are imported; first on ``sys.meta_path``."""

    def __init__(self) -> None:
        self._runs: dict[str, Callable[[ModuleType, Callable], None]] = {}

    def after(self, name: str, repair: Callable[[ModuleType], None]) -> None:
        """Call ``repair(module)`` now if ``name`` is loaded, else right after its import."""

        earlier = self._runs.get(name)

        def run(module: ModuleType, execute: Callable[[ModuleType], None]) -> None:
            if earlier is None:
                execute(module)
            else:
                earlier(module, execute)
            repair(module)

        self._runs[name] = run
        if name in sys.modules:
            repair(sys.modules[name])

    def on_error(
        self, name: str, rescue: Callable[[ModuleType, Callable, Exception], None]
    ) -> None:
        """Call ``rescue(module, execute, error)`` where the import of ``name`` fails.

        ``execute(module)`` runs the module's code once more.
        """

        def run(module: ModuleType, execute: Callable[[ModuleType], None]) -> None:
            try:
                execute(module)
            except Exception as error:
                rescue(module, execute, error)

        self._runs[name] = run

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in self._runs:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module
        spec.loader.exec_module = lambda module: self._runs[name](module, execute)
        return spec


stand_ins = _StandIns()
imports = _Imports()


def install_finders() -> None:
    """Let imports pass here; later calls change nothing."""
    for finder, place in ((imports, 0), (stand_ins, len(sys.meta_path))):
        if finder not in sys.meta_path:
            sys.meta_path.insert(place, finder)
