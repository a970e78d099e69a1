"""What mmaction2 1.2 breaks on today's torch and numpy, and beside other packages."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch

from videomac_mm.compat._repair import imports, numpy2, replace, stand_ins


def wheel_lacks_drn() -> None:
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

    stand_ins.offer('mmaction.models.localizers.drn', lambda module: None)
    stand_ins.offer('mmaction.models.localizers.drn.drn', fill)


def head_scores_in_bfloat16() -> None:
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

        replace(module.BaseHead, '__init__', make)

    imports.after('mmaction.models.heads.base', repair)


def hue_jitter_overflows() -> None:
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

        replace(module.ColorJitter, 'adjust_hue', make)

    if numpy2():
        imports.after('mmaction.datasets.transforms.processing', repair)


def features_stay_in_a_tuple() -> None:
    """mmaction2 1.2: unwraps what backbones of mmpretrain return by the name of their type.

    ``Recognizer2D`` looks for 'mmpretrain.' at its beginning; subclasses in other packages
    return the same tuples of one map, and no head takes a tuple.
    """

    def repair(module: ModuleType) -> None:
        def make(original: Callable) -> Callable:
            def extract_feat(self: Any, *args: Any, **kwargs: Any) -> Any:
                # A network with such a backbone has loaded this module.
                home = sys.modules.get('mmpretrain.models.backbones.base_backbone')
                is_its = home is not None and isinstance(self.backbone, home.BaseBackbone)
                # Necks want tuples.
                if is_its and self.backbone_from == 'mmaction2' and not self.with_neck:
                    self.backbone_from = 'mmpretrain'
                return original(self, *args, **kwargs)

            return extract_feat

        replace(module.Recognizer2D, 'extract_feat', make)

    # Not `__init__`: the registry may import videomac_mm for the first time while that runs.
    imports.after('mmaction.models.recognizers.recognizer2d', repair)
