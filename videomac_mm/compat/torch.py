"""What torch refuses in the checkpoints of mmengine."""

import pickle
import re
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

_STATISTICS = ('min', 'max', 'current', 'mean')
_HISTORY = ('_log_history', '_count_history', 'max_length')
_NUMBERS = re.compile(r'b1|[iu][1248]|f(2|4|8|12|16)|c(8|16|24|32)')


def weights_only_refuses_history_buffer() -> None:
    """torch >= 2.6: refuses every mmengine checkpoint for the log buffers in it.

    None of numpy's own names is let in. An ``ndarray`` may be laid over any bytes, a ``dtype``
    changed into one of objects, and both together take a number in the file for the address of a
    Python object. Stand-ins build what ``torch.save`` writes, and nothing else.
    """
    torch.serialization.add_safe_globals(
        [
            (_SavedHistoryBuffer, f'{HistoryBuffer.__module__}.{HistoryBuffer.__qualname__}'),
            (_history_buffer_getattr, 'builtins.getattr'),
            (_SavedArray, 'numpy.ndarray'),
            (_SavedDtype, 'numpy.dtype'),
            (_no_bytes, 'builtins.bytes'),
            # What numpy 1 writes names `numpy.core…`, what numpy 2 writes `numpy._core…`; a
            # checkpoint may travel either way.
            *(
                (function, f'numpy.{core}.multiarray.{name}')
                for core in ('core', '_core')
                for name, function in (('_reconstruct', _empty_array), ('scalar', _scalar))
            ),
        ]
    )


class _SavedDtype:
    """Stands for ``numpy.dtype`` in checkpoints: a plain number and its byte order."""

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        if not isinstance(code, str) or not _NUMBERS.fullmatch(code):
            raise _refuse(f'arrays of dtype {code!r}', 'booleans and numbers')
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        # version, byte order, then what only other dtypes have
        if not isinstance(state, tuple) or state[2:] != (None, None, None, -1, -1, 0):
            raise _refuse(f'a dtype of state {state!r}', 'booleans and numbers')
        if state[1] not in ('<', '>', '|', '='):
            raise _refuse(f'byte order {state[1]!r}', '<, >, | and =')
        self.dtype = self.dtype.newbyteorder(state[1])


class _SavedArray(np.ndarray):
    """Stands for ``numpy.ndarray`` in checkpoints: an array that is filled from the file only.

    It is saved as the plain array that it was.
    """

    def __new__(cls, *args: Any) -> '_SavedArray':
        if args:
            raise _refuse('an array made of parts', 'whole arrays')
        return super().__new__(cls, 0)

    def __setstate__(self, state: tuple) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise _refuse('an array of unknown form', 'version, shape, dtype, order and data')
        version, shape, saved, in_fortran_order, data = state
        if not isinstance(saved, _SavedDtype) or not isinstance(data, bytes):
            raise _refuse(
                f'an array of {type(saved).__name__} and {type(data).__name__}', 'dtype and bytes'
            )
        # It compares the number of bytes with the shape.
        super().__setstate__((version, shape, saved.dtype, in_fortran_order, data))

    def __reduce__(self) -> tuple:
        return np.asarray(self).__reduce__()

    def __reduce_ex__(self, protocol: int) -> tuple:
        return np.asarray(self).__reduce_ex__(protocol)


class _SavedHistoryBuffer(HistoryBuffer):
    """Stands for ``HistoryBuffer`` in checkpoints, and becomes one with the state that it checks.

    The original would take any attributes from the file, and statistics for the whole class.
    """

    def __new__(cls, *args: Any) -> '_SavedHistoryBuffer':
        if args:
            raise _refuse('a HistoryBuffer made by a call', 'the state of one')
        return super().__new__(cls)

    def __setstate__(self, state: dict) -> None:
        known = {*_HISTORY, 'statistics_methods'}
        if not isinstance(state, dict) or not set(_HISTORY) <= set(state) <= known:
            keys = list(state) if isinstance(state, dict) else type(state).__name__
            raise _refuse(f'a HistoryBuffer of {keys}', ', '.join(_HISTORY))
        logs, counts, max_length = (state[key] for key in _HISTORY)
        if not isinstance(max_length, int) or not all(
            isinstance(history, _SavedArray) and history.ndim == 1 for history in (logs, counts)
        ):
            raise _refuse('a HistoryBuffer of other than numbers', 'two rows and their limit')
        self.__class__ = HistoryBuffer
        self._set_default_statistics()
        self.max_length = max_length
        self._log_history, self._count_history = np.array(logs), np.array(counts)


def _empty_array(kind: type, shape: tuple, code: bytes) -> _SavedArray:
    """Stand for numpy's ``_reconstruct``: the state that follows brings shape and content."""
    if kind is not _SavedArray:
        raise _refuse(f'an array of type {kind!r}', 'numpy.ndarray')
    return _SavedArray()


def _scalar(saved: _SavedDtype, data: bytes) -> np.generic:
    """Stand for numpy's ``scalar``."""
    if not isinstance(saved, _SavedDtype) or not isinstance(data, bytes):
        raise _refuse(f'a scalar of {type(saved).__name__} and {type(data).__name__}', 'numbers')
    if len(data) != saved.dtype.itemsize:
        raise _refuse(f'a scalar of {len(data)} bytes', f'{saved.dtype.itemsize} bytes')
    return np.frombuffer(data, saved.dtype)[0]


def _no_bytes(*args: Any) -> bytes:
    """Stand for ``bytes``, of which the old pickle protocols make those of an empty array."""
    if args:
        raise _refuse('bytes made by a call', 'bytes themselves')
    return b''


def _history_buffer_getattr(owner: Any, name: str) -> Any:
    """Stand for ``getattr`` in checkpoints: serves HistoryBuffer's statistics only.

    A pickled HistoryBuffer names its methods as ``getattr(HistoryBuffer, 'mean')``;
    the real ``getattr`` would open everything reachable from any allowed object.
    """
    if owner is _SavedHistoryBuffer and name in _STATISTICS:
        return vars(HistoryBuffer)[name]
    raise _refuse(f'attribute {name!r} of {owner!r}', f'{", ".join(_STATISTICS)} of HistoryBuffer')


def _refuse(asked: str, allowed: str) -> pickle.UnpicklingError:
    return pickle.UnpicklingError(f'a checkpoint asks for {asked}; allowed are {allowed}')
