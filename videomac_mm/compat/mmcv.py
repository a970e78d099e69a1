"""What mmcv and mmcv-lite 2.1 break on numpy 2 and beside other toolboxes."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from videomac_mm.compat._repair import imports, numpy2, replace, stand_ins

_COMPILED_MMCV = 'the compiled mmcv (2.0.1 <= version < 2.2) in place of mmcv-lite'


def toolboxes_import_compiled_ops() -> None:
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
    stand_ins.offer('mmcv._ext', fill, only_with=('mmseg', 'mmdet', 'mmpose'))

    def repair(module: ModuleType) -> None:
        # Heard the truth before mmdet came, and went on without the name that mmdet asks it for.
        transformer = sys.modules.get('mmcv.cnn.bricks.transformer')
        if transformer and not hasattr(transformer, 'MultiScaleDeformableAttention'):
            from mmcv.ops import MultiScaleDeformableAttention

            transformer.MultiScaleDeformableAttention = MultiScaleDeformableAttention

    imports.after('mmdet', repair)


def hue_jitter_overflows() -> None:
    """mmcv 2.1 on numpy 2: ``adjust_hue`` turns a negative shift into an uint8."""

    def repair(module: ModuleType) -> None:
        def make(original: Callable) -> Callable:
            def adjust_hue(img: Any, hue_factor: float, *args: Any, **kwargs: Any):
                return original(img, _HueFactor(hue_factor), *args, **kwargs)

            return adjust_hue

        for home in (module, module.image, module.image.photometric):
            replace(home, 'adjust_hue', make)

    if numpy2():
        imports.after('mmcv', repair)


class _HueFactor(float):
    """A hue factor whose product, the shift in grey levels, is taken modulo 256."""

    def __mul__(self, scale: float) -> int:
        return int(float(self) * scale) % 256
