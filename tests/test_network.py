"""Nothing asks the network for anything unless somebody gave a URL."""

import subprocess
import sys
from pathlib import Path

import pytest

# In a fresh interpreter: what is imported counts, too.
SCRIPT = """
import socket
import sys

asked = []


def guard(function, where):
    def guarded(*args, **kwargs):
        place = where(*args)
        # None: a name that nobody looks up. A str or bytes: a socket of this machine's own.
        host = place[0] if isinstance(place, tuple) else None
        if host not in (None, '', 'localhost', '127.0.0.1', '::1', socket.gethostname()):
            asked.append(place)
            raise OSError(f'no network in this test: {place}')
        return function(*args, **kwargs)

    return guarded


class Socket(socket.socket):
    connect = guard(socket.socket.connect, lambda self, address: address)
    connect_ex = guard(socket.socket.connect_ex, lambda self, address: address)
    sendto = guard(socket.socket.sendto, lambda self, *args: args[-1])


socket.socket = socket.SocketType = Socket
socket.getaddrinfo = guard(socket.getaddrinfo, lambda host, port, *_: (host, port))
socket.gethostbyname = guard(socket.gethostbyname, lambda host: (host, None))

if sys.argv[1] == 'a guard that works':
    import urllib.request

    try:
        urllib.request.urlopen('http://example.org', timeout=5)
    except OSError:
        pass
else:
    from pathlib import Path

    from mmengine.runner import Runner

    import videomac_mm
    from tests.reliability.small_runs import small_config

    cfg = small_config(sys.argv[1], Path(sys.argv[2]))
    cfg.train_cfg.max_iters = 1
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 1
print('asked for', asked)
"""


def run(subject: str, folder: Path, root: Path) -> str:
    command = [sys.executable, '-c', SCRIPT, subject, str(folder)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize('method', ['videomac', 'videomae', 'motionmae', 'cmae_v'])
def test_training__asks_no_network(method, tmp_path, root):
    assert run(method, tmp_path / 'run', root) == 'asked for []'


def test_guard__sees_who_asks(tmp_path, root, monkeypatch):
    for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(name, raising=False)
    asked = run('a guard that works', tmp_path, root)
    assert asked == "asked for [('example.org', 80)]"
