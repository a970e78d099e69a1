"""Checkpoints of mmengine load with torch's default safety, and nothing else does."""

import io
import os
import pickle
import re

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub

import videomac_mm  # noqa: F401  its repairs are what is tested

# The functions that numpy pickles an array and a scalar with.
RECONSTRUCT, SCALAR = (value.__reduce__()[0] for value in (np.ones(1), np.float64(1)))


def load(obj: object, replace: tuple = (b'', b'')) -> object:
    """Through a checkpoint file and back, with torch's default safety."""
    file = io.BytesIO()
    # The old format keeps the pickle in plain sight, for `replace`.
    torch.save(obj, file, _use_new_zipfile_serialization=False)
    return torch.load(io.BytesIO(file.getvalue().replace(*replace)))


class Call:
    """Pickles as the call ``function(*args)``; what it returns is given the state, if any."""

    def __init__(self, function, *args, state=None):
        self.call = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.call


class Dtype(Call):
    """A number that says of itself that it is made of objects."""

    def __init__(self):
        parts = (np.dtype('O'), (1,)), None, None
        super().__init__(np.dtype, 'f8', False, True, state=(3, '<', *parts, -1, -1, 0))


def test_checkpoint__history_buffer_survives():
    hub = MessageHub.get_instance('compat')
    for value in (1.0, 2.0, 6.0):
        hub.update_scalar('train/loss', value)
    hub.update_info('best', np.float64(0.5))
    loaded = load(dict(message_hub=hub.state_dict()))['message_hub']
    buffer = loaded['log_scalars']['train/loss']
    assert isinstance(buffer, HistoryBuffer)
    assert buffer.mean() == 3.0
    assert buffer.statistics('current') == 6.0
    assert loaded['runtime_info']['best'] == 0.5


@pytest.mark.parametrize('dtype', ['bool', 'uint8', 'int32', 'int64', 'float32', 'float64'])
def test_checkpoint__arrays_of_every_numpy(dtype):
    saved = dict(array=np.ones(3, dtype), scalar=np.ones((), dtype)[()])
    for other in (b'numpy.core.multiarray', b'numpy._core.multiarray'):
        for own in (b'numpy.core.multiarray', b'numpy._core.multiarray'):
            loaded = load(saved, (own, other))
            assert loaded['array'].dtype == dtype
            assert loaded['array'].sum() == 3
            assert loaded['scalar'] == 1


def str_without_address(payload: object) -> str:
    """The same name in every process."""
    return re.sub(r' at 0x[0-9a-f]+', '', str(getattr(payload, 'call', payload)))


@pytest.mark.parametrize(
    'payload',
    [
        Call(os.system, 'true'),
        Call(eval, '1'),
        Call(getattr, HistoryBuffer, '__init__'),
        Call(getattr, HistoryBuffer, '__subclasses__'),
        Call(getattr, np.ndarray, 'tofile'),
        Call(getattr, 'text', 'format'),
        # Bytes of the file as the address of a Python object.
        Call(np.ndarray, (1,), 'O', b'A' * 8),
        Call(np.ndarray, (1,), Dtype(), b'A' * 8),
        Dtype(),
        Call(np.dtype, 'f8', False, True, state=(3, '<', None, None, None, -1, -1, 63)),
        Call(np.dtype, 'O'),
        Call(np.dtype, [('field', 'O')]),
        Call(RECONSTRUCT, np.ndarray, (1,), b'O', state=(1, (1,), 'O', 0, [1])),
        Call(RECONSTRUCT, np.recarray, (0,), b'b'),
        Call(SCALAR, np.dtype('f8'), b'A' * 7),
        Call(SCALAR, np.dtype('O'), b'A' * 8),
        Call(bytes, 1 << 40),
        Call(HistoryBuffer, [1.0], [1]),
        Call(HistoryBuffer, state=[1]),
        Call(HistoryBuffer, state=dict(_log_history=1, _count_history=1, max_length=1)),
        Call(HistoryBuffer, state=dict(vars(HistoryBuffer([1.0], [1])), statistics=getattr)),
        Call(HistoryBuffer, state=dict(_log_history=np.ones(1))),
        np.array(['text']),
        np.array([None]),
    ],
    ids=str_without_address,
)
def test_checkpoint__other_calls_stay_refused(payload):
    with pytest.raises(pickle.UnpicklingError):
        load(payload)


def test_checkpoint__arrays_and_scalars_come_back_and_can_be_saved_again():
    array = np.arange(6.0).reshape(2, 3)
    arrays = [array, array.T, array.astype('>f4'), np.zeros((0, 2)), np.array(3j), array > 2]
    for saved in arrays:
        loaded = load(load(saved))
        assert isinstance(loaded, np.ndarray)
        assert loaded.shape == saved.shape and loaded.dtype == saved.dtype.newbyteorder('=')
        assert np.array_equal(loaded, saved)
        assert type(pickle.loads(pickle.dumps(loaded))) is np.ndarray
    for scalar in (np.float64(0.5), np.bool_(True), np.uint8(7)):
        loaded = load(load(scalar))
        assert loaded == scalar and type(loaded) is type(scalar)


def test_checkpoint__history_buffer_is_one_with_its_own_statistics():
    before = dict(HistoryBuffer._statistics_methods)
    state = vars(HistoryBuffer([1.0, 3.0], [1, 1])) | dict(statistics_methods=dict(mean=max))
    with pytest.raises(pickle.UnpicklingError):
        load(Call(HistoryBuffer, state=state))
    state['statistics_methods'] = dict(mean=HistoryBuffer.max, mine=HistoryBuffer.min)
    buffer = load(Call(HistoryBuffer, state=state))
    assert HistoryBuffer._statistics_methods == before
    assert buffer.statistics('mean') == 2.0
    assert type(buffer) is HistoryBuffer
    buffer.update(5.0)
    again = load(buffer)
    assert again.mean() == 3.0
    assert all(type(history) is np.ndarray for history in again.data)
