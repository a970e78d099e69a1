"""Checkpoints of mmengine load with torch's default safety, and nothing else does."""

import io
import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub


def load(obj: object, replace: tuple = (b'', b'')) -> object:
    """Through a checkpoint file and back, with torch's default safety."""
    file = io.BytesIO()
    # The old format keeps the pickle in plain sight, for `replace`.
    torch.save(obj, file, _use_new_zipfile_serialization=False)
    return torch.load(io.BytesIO(file.getvalue().replace(*replace)))


class Call:
    """Pickles as the call ``function(*args)``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


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


@pytest.mark.parametrize(
    'payload',
    [
        Call(os.system, 'true'),
        Call(eval, '1'),
        Call(getattr, HistoryBuffer, '__init__'),
        Call(getattr, HistoryBuffer, '__subclasses__'),
        Call(getattr, np.ndarray, 'tofile'),
        Call(getattr, 'text', 'format'),
    ],
    ids=lambda payload: str(payload.call),
)
def test_checkpoint__other_calls_stay_refused(payload):
    with pytest.raises(pickle.UnpicklingError):
        load(payload)
