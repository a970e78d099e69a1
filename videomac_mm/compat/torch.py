"""What torch >= 2.6 refuses in the checkpoints of mmengine."""

import pickle
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version

_STATISTICS = ('min', 'max', 'current', 'mean')


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
