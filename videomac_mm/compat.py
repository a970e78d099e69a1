"""Repairs of what mmengine 0.10, mmcv 2.1 and mmaction2 1.2 break on today's torch.

One function per upstream problem, named after it; `apply` runs them all when
``videomac_mm`` is imported. Each leaves sound releases alone, may run twice, and
imports nothing for the sake of repairing it: modules that are not loaded yet are
repaired right after somebody imports them.
"""

import functools
import pickle
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version

_COMPILED_MMCV = 'the compiled mmcv (2.0.1 <= version < 2.2) in place of mmcv-lite'
_STATISTICS = ('min', 'max', 'current', 'mean')


def apply() -> None:
    """Apply every repair; later calls change nothing."""
    for finder, place in ((_after_import, 0), (_stand_ins, len(sys.meta_path))):
        if finder not in sys.meta_path:
            sys.meta_path.insert(place, finder)
    mmaction_wheel_lacks_drn()
    toolboxes_import_compiled_mmcv_ops()
    weights_only_refuses_history_buffer()
    launcher_needs_cuda()
    ddp_needs_cuda()
    zero_optimizer_hangs_at_checkpoints()
    amp_optim_wrapper_refuses_cpu()
    mmaction_head_scores_in_bfloat16()
    mmcv_hue_jitter_overflows()
    mmaction_hue_jitter_overflows()
    mmaction_leaves_features_in_a_tuple()


# ------------------------------------------------------------------ the repairs


def mmaction_wheel_lacks_drn() -> None:
    """mmaction2 1.2.0: wheel and sdist lack ``localizers/drn``, so no model imports."""

    def fill(module: ModuleType) -> None:
        from mmaction.registry import MODELS

        class DRN:
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                raise ImportError(
                    'DRN is missing from the released mmaction2 1.2.0; '
                    'install mmaction2 from its repository to use it'
                )

        module.DRN = DRN
        MODELS.register_module(module=DRN, force=True)

    _stand_ins.offer('mmaction.models.localizers.drn', lambda module: None)
    _stand_ins.offer('mmaction.models.localizers.drn.drn', fill)


def toolboxes_import_compiled_mmcv_ops() -> None:
    """mmsegmentation 1.2, mmdet 3.3, mmpose 1.3: import ops that mmcv-lite lacks."""

    def fill(module: ModuleType) -> None:
        def missing_op(name: str) -> Callable:
            if name.startswith('__'):
                raise AttributeError(name)

            def op(*args: Any, **kwargs: Any) -> None:
                raise ImportError(f'the op {name!r} needs {_COMPILED_MMCV}')

            return op

        module.__getattr__ = missing_op

    # Everybody else asks for the ops inside try/except ImportError and must go on
    # hearing the truth.
    _stand_ins.offer('mmcv._ext', fill, only_with=('mmseg', 'mmdet', 'mmpose'))

    def repair(module: ModuleType) -> None:
        # Heard the truth before mmdet came, and went on without the name that mmdet asks it for.
        transformer = sys.modules.get('mmcv.cnn.bricks.transformer')
        if transformer and not hasattr(transformer, 'MultiScaleDeformableAttention'):
            from mmcv.ops import MultiScaleDeformableAttention

            transformer.MultiScaleDeformableAttention = MultiScaleDeformableAttention

    _after_import.run('mmdet', repair)


def weights_only_refuses_history_buffer() -> None:
    """torch >= 2.6: refuses every mmengine checkpoint for the log buffers in it."""
    if digit_version(torch.__version__) < digit_version('2.6.0'):
        return
    try:
        from numpy._core import multiarray
    except ImportError:  # numpy < 1.26
        from numpy.core import multiarray
    # An array pickled under numpy 1 names its reconstructor `numpy.core…`, under
    # numpy 2 `numpy._core…`; a checkpoint may travel either way.
    reconstructors = [
        (getattr(multiarray, name), f'numpy.{core}.multiarray.{name}')
        for name in ('_reconstruct', 'scalar')
        for core in ('core', '_core')
    ]
    codes = '?' + np.typecodes['AllInteger'] + np.typecodes['AllFloat']
    dtypes = {type(np.dtype(code)) for code in codes}
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            (_history_buffer_getattr, 'builtins.getattr'),
            np.ndarray,
            np.dtype,
            *reconstructors,
            *dtypes,
        ]
    )


def launcher_needs_cuda() -> None:
    """mmengine 0.10: ``--launcher pytorch`` calls ``torch.cuda.set_device`` on CPU."""

    def repair(module: ModuleType) -> None:
        def make(original: Callable) -> Callable:
            def init(backend: str, init_backend: str = 'torch', **kwargs: Any) -> None:
                if get_device() != 'cpu':
                    return original(backend, init_backend=init_backend, **kwargs)
                # 'nccl' is mmengine's default, and no choice without a GPU.
                backend = 'gloo' if backend == 'nccl' else backend
                torch.distributed.init_process_group(backend=backend, **kwargs)

            return init

        _replace(module, '_init_dist_pytorch', make)

    _after_import.run('mmengine.dist.utils', repair)


def ddp_needs_cuda() -> None:
    """mmengine 0.10: hands DDP the local rank as device, which a CPU model refuses."""

    def repair(module: ModuleType) -> None:
        def make(original: Callable) -> Callable:
            def __init__(self: Any, module: torch.nn.Module, *args: Any, **kwargs: Any):
                if all(p.device.type == 'cpu' for p in module.parameters()):
                    kwargs['device_ids'] = None
                original(self, module, *args, **kwargs)

            return __init__

        _replace(module.MMDistributedDataParallel, '__init__', make)

    _after_import.run('mmengine.model.wrappers.distributed', repair)


def zero_optimizer_hangs_at_checkpoints() -> None:
    """mmengine 0.10: one rank saves, and waits for the others' shards of the optimiser's state."""

    def repair(module: ModuleType) -> None:
        from mmengine.dist import is_main_process
        from mmengine.optim import ZeroRedundancyOptimizer

        def make(original: Callable) -> Callable:
            def save_checkpoint(
                self: Any,
                out_dir: str,
                filename: str,
                file_client_args: dict | None = None,
                save_optimizer: bool = True,
                *args: Any,
                **kwargs: Any,
            ) -> None:
                optimizer = getattr(self.optim_wrapper, 'optimizer', None)
                is_sharded = isinstance(optimizer, ZeroRedundancyOptimizer)
                if save_optimizer and is_sharded and not is_main_process():
                    optimizer.state_dict()  # sends this rank's shard
                original(self, out_dir, filename, file_client_args, save_optimizer, *args, **kwargs)

            return save_checkpoint

        # Marked by `master_only`: where all ranks save, all send.
        if hasattr(module.Runner.save_checkpoint, '__wrapped__'):
            _replace(module.Runner, 'save_checkpoint', make)

    _after_import.run('mmengine.runner.runner', repair)


def amp_optim_wrapper_refuses_cpu() -> None:
    """mmengine 0.10: ``AmpOptimWrapper`` asserts a GPU; on CPU it may use bfloat16."""

    def repair(module: ModuleType) -> None:
        from mmengine.optim.optimizer.optimizer_wrapper import OptimWrapper

        def make(original: Callable) -> Callable:
            def __init__(
                self: Any,
                loss_scale: Any = 'dynamic',
                dtype: Any = None,
                use_fsdp: bool = False,
                **kwargs: Any,
            ) -> None:
                if get_device() != 'cpu':
                    return original(self, loss_scale, dtype, use_fsdp, **kwargs)
                OptimWrapper.__init__(self, **kwargs)
                # Autocast on CPU knows bfloat16 only, whatever the config's dtype;
                # its exponent is float32's, so there is no loss to scale.
                self.cast_dtype = torch.bfloat16
                self.loss_scaler = torch.amp.GradScaler('cpu', enabled=False)
                self._scale_update_param = None

            return __init__

        _replace(module.AmpOptimWrapper, '__init__', make)

    _after_import.run('mmengine.optim.optimizer.amp_optimizer_wrapper', repair)


def mmaction_head_scores_in_bfloat16() -> None:
    """mmaction2 1.2: heads and metrics call ``.numpy()`` on scores; bfloat16 has none."""

    def to_float(module: Any, inputs: Any, output: Any) -> Any:
        if isinstance(output, dict):
            return {key: to_float(module, inputs, x) for key, x in output.items()}
        if isinstance(output, (tuple, list)):
            return type(output)(to_float(module, inputs, x) for x in output)
        is_bfloat16 = getattr(output, 'dtype', None) is torch.bfloat16
        return output.float() if is_bfloat16 else output

    def repair(module: ModuleType) -> None:
        def make(original: Callable) -> Callable:
            def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
                original(self, *args, **kwargs)
                self.register_forward_hook(to_float)

            return __init__

        _replace(module.BaseHead, '__init__', make)

    _after_import.run('mmaction.models.heads.base', repair)


def mmcv_hue_jitter_overflows() -> None:
    """mmcv 2.1 on numpy 2: ``adjust_hue`` turns a negative shift into an uint8."""

    def repair(module: ModuleType) -> None:
        def make(original: Callable) -> Callable:
            def adjust_hue(img: Any, hue_factor: float, *args: Any, **kwargs: Any):
                return original(img, _HueFactor(hue_factor), *args, **kwargs)

            return adjust_hue

        for home in (module, module.image, module.image.photometric):
            _replace(home, 'adjust_hue', make)

    if _numpy2():
        _after_import.run('mmcv', repair)


def mmaction_hue_jitter_overflows() -> None:
    """mmaction2 1.2 on numpy 2: ``ColorJitter`` adds a negative int to an uint8 hue."""

    def repair(module: ModuleType) -> None:
        import cv2

        def make(original: Callable) -> Callable:
            def adjust_hue(img: np.ndarray, factor: float) -> np.ndarray:
                hsv = cv2.cvtColor(np.clip(img, 0, 255).astype(np.uint8), cv2.COLOR_RGB2HSV)
                # Wide enough for hue + shift; OpenCV's hue runs from 0 to 179.
                hue = hsv[..., 0].astype(np.int16) + int(factor * 255)
                hsv[..., 0] = hue % 180
                return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB).astype(np.float32)

            return staticmethod(adjust_hue)

        _replace(module.ColorJitter, 'adjust_hue', make)

    if _numpy2():
        _after_import.run('mmaction.datasets.transforms.processing', repair)


def mmaction_leaves_features_in_a_tuple() -> None:
    """mmaction2 1.2: unwraps what backbones of mmpretrain return by the name of their type.

    ``Recognizer2D`` looks for 'mmpretrain.' at its beginning; subclasses in other packages
    return the same tuples of one map, and no head takes a tuple.
    """

    def repair(module: ModuleType) -> None:
        def make(original: Callable) -> Callable:
            def extract_feat(self: Any, *args: Any, **kwargs: Any) -> Any:
                # Whoever has such a backbone has loaded this module.
                home = sys.modules.get('mmpretrain.models.backbones.base_backbone')
                is_its = home is not None and isinstance(self.backbone, home.BaseBackbone)
                # Necks want tuples.
                if is_its and self.backbone_from == 'mmaction2' and not self.with_neck:
                    self.backbone_from = 'mmpretrain'
                return original(self, *args, **kwargs)

            return extract_feat

        _replace(module.Recognizer2D, 'extract_feat', make)

    # Not `__init__`: the registry may import videomac_mm for the first time while that runs.
    _after_import.run('mmaction.models.recognizers.recognizer2d', repair)


# --------------------------------------------------------------- their machinery


def _numpy2() -> bool:
    return digit_version(np.__version__) >= digit_version('2.0.0')


def _history_buffer_getattr(owner: Any, name: str) -> Any:
    """Stand for ``getattr`` in checkpoints: serves HistoryBuffer's statistics only.

    A pickled HistoryBuffer names its methods as ``getattr(HistoryBuffer, 'mean')``;
    the real ``getattr`` would open everything reachable from any allowed object.
    """
    if owner is HistoryBuffer and name in _STATISTICS:
        return vars(HistoryBuffer)[name]
    raise pickle.UnpicklingError(
        f'a checkpoint asks for attribute {name!r} of {owner!r}; allowed are '
        f'{", ".join(_STATISTICS)} of HistoryBuffer'
    )


class _HueFactor(float):
    """A hue factor whose product, the shift in grey levels, is taken modulo 256."""

    def __mul__(self, scale: float) -> int:
        return int(float(self) * scale) % 256


def _replace(owner: Any, name: str, make: Callable[[Callable], Any]) -> None:
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


class _AfterImport(MetaPathFinder):
    """Repairs modules right after their import; first on ``sys.meta_path``."""

    def __init__(self) -> None:
        self._repairs: dict[str, Callable[[ModuleType], None]] = {}

    def run(self, name: str, repair: Callable[[ModuleType], None]) -> None:
        """Call ``repair(module)`` now if ``name`` is loaded, else when it will be."""
        self._repairs[name] = repair
        if name in sys.modules:
            repair(sys.modules[name])

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in self._repairs:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_repair(module: ModuleType) -> None:
            execute(module)
            self._repairs[name](module)

        spec.loader.exec_module = execute_and_repair
        return spec


_stand_ins = _StandIns()
_after_import = _AfterImport()
