"""Whose fault an error is: the data's, the moment's or the program's."""

import errno
import http.client
import traceback
import urllib.error

# The same file may read well a second later: too many open files, a network or a disk that
# stumbles, a server that is restarted.
TEMPORARY = {
    getattr(errno, name)
    for name in (
        *('EMFILE', 'ENFILE', 'EAGAIN', 'EINTR', 'EBUSY', 'EIO', 'EREMOTEIO', 'ENOLCK', 'ENOBUFS'),
        *('ESTALE', 'ETIMEDOUT', 'ENETDOWN', 'ENETUNREACH', 'ENETRESET', 'EHOSTDOWN'),
        *('EHOSTUNREACH', 'ECONNRESET', 'ECONNABORTED', 'ECONNREFUSED', 'EPIPE', 'ENOTCONN'),
        *('ESHUTDOWN', 'EDQUOT', 'ENOSPC'),
    )
    if hasattr(errno, name)
}
# Statuses of HTTP that say that the file is not there, or not for us.
PERMANENT_STATUS = {400, 401, 403, 404, 405, 410, 451}
# Whose errors are about the network, unless they say more.
NETWORK_PACKAGES = {'aiohttp', 'botocore', 'fsspec', 'gcsfs', 'requests', 's3fs', 'urllib3'}


class UnusableVideoError(ValueError):
    """The data of one video, not the program, is at fault.

    `UnlabelledVideoDataset` answers it with another video.
    """


def fault_of(err: BaseException) -> str:
    """Whose fault an error is.

    Returns:
        ``'data'``: the same file will fail again. ``'moment'``: it may read well later.
        ``'program'``: everything else.
    """
    if isinstance(err, UnusableVideoError) or _raised_in_decord(err):
        return 'data'
    package = type(err).__module__.split('.')[0]
    if package in ('av', 'decord'):  # from transforms of others, which use them on their own
        return 'moment' if getattr(err, 'errno', None) in TEMPORARY else 'data'
    status = getattr(err, 'code', None) or getattr(getattr(err, 'response', None), 'status_code', 0)
    if isinstance(err, urllib.error.HTTPError) or status in PERMANENT_STATUS:
        return 'data' if status in PERMANENT_STATUS else 'moment'
    if isinstance(err, urllib.error.URLError) and isinstance(err.reason, OSError):
        return fault_of(err.reason)
    if isinstance(err, (ConnectionError, TimeoutError, http.client.HTTPException)):
        return 'moment'
    if package in NETWORK_PACKAGES:
        return 'moment'
    if isinstance(err, OSError):
        return 'moment' if err.errno in TEMPORARY else 'data'
    return 'program'


def _raised_in_decord(err: BaseException) -> bool:
    """Whether decord's own code raised one of Python's errors about a file."""
    if not isinstance(err, (RuntimeError, AssertionError)):
        return False
    frames = [frame for frame, _ in traceback.walk_tb(err.__traceback__)]
    return bool(frames) and frames[-1].f_globals.get('__name__', '').split('.')[0] == 'decord'
