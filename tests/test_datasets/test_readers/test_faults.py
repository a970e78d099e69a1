import errno
import http.client
import urllib.error

import pytest

from videomac_mm.datasets import UnusableVideoError
from videomac_mm.datasets.readers import fault_of


def of_package(name: str, base: type, **attributes) -> Exception:
    """An error of a type that comes from a package that may not be installed."""
    err = type('Failed', (base,), {'__module__': f'{name}.exceptions'})('x')
    for key, value in attributes.items():
        setattr(err, key, value)
    return err


def http_error(code: int) -> Exception:
    return urllib.error.HTTPError('http://x', code, 'x', {}, None)


def response(status: int) -> object:
    return type('Response', (), dict(status_code=status))()


@pytest.mark.parametrize(
    'err, fault',
    [
        (UnusableVideoError('x'), 'data'),
        (FileNotFoundError(errno.ENOENT, 'x'), 'data'),
        (OSError(errno.ELOOP, 'x'), 'data'),
        (PermissionError(errno.EACCES, 'x'), 'data'),
        (OSError('image file is truncated'), 'data'),  # of PIL
        (OSError(errno.EMFILE, 'x'), 'moment'),
        (OSError(errno.ESTALE, 'x'), 'moment'),
        (OSError(errno.EIO, 'x'), 'moment'),
        (OSError(errno.ETIMEDOUT, 'x'), 'moment'),
        (ConnectionResetError(errno.ECONNRESET, 'x'), 'moment'),
        (ConnectionResetError('x'), 'moment'),
        (TimeoutError('x'), 'moment'),
        (http.client.IncompleteRead(b'x'), 'moment'),
        (urllib.error.URLError(OSError(errno.ECONNREFUSED, 'x')), 'moment'),
        (urllib.error.URLError(FileNotFoundError(errno.ENOENT, 'x')), 'data'),
        (http_error(404), 'data'),
        (http_error(503), 'moment'),
        (of_package('requests', OSError), 'moment'),
        (of_package('requests', OSError, response=response(404)), 'data'),
        (of_package('requests', OSError, response=response(500)), 'moment'),
        (of_package('botocore', Exception), 'moment'),
        (of_package('av', ValueError, errno=1094995529), 'data'),
        (of_package('av', OSError, errno=errno.EMFILE), 'moment'),
        (of_package('decord', RuntimeError), 'data'),
        (ValueError('x'), 'program'),
        (RuntimeError('x'), 'program'),
        (IndexError('x'), 'program'),
        (MemoryError('x'), 'program'),
    ],
)
def test_fault_of(err, fault):
    assert fault_of(err) == fault
