"""Videos are read in a process that may hang, crash and be replaced."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.films import encode, in_sequence
from videomac_mm.datasets import UnusableVideoError, open_video
from videomac_mm.datasets.readers.process import DecoderProcess

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='looks into /proc')


@pytest.fixture
def file(tmp_path) -> str:
    return encode(tmp_path / 'v.mp4', num_frames=12)


def decoder_pid() -> int:
    return DecoderProcess.of_this_process()._process.pid


def is_running(pid: int) -> bool:
    stat = Path(f'/proc/{pid}/stat')
    return stat.exists() and stat.read_text().rpartition(')')[2].split()[0] != 'Z'


def wait_for(condition) -> None:
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


@pytest.mark.parametrize('backend', ['pyav', 'decord'])
def test_remote__reads_what_this_process_reads(file, backend):
    pytest.importorskip('av' if backend == 'pyav' else backend)
    here, there = open_video(file, backend), open_video(file, backend, time_limit=60)
    assert (len(there), there.fps, there.size) == (len(here), here.fps, here.size)
    np.testing.assert_array_equal(there.times, here.times)
    np.testing.assert_array_equal(there.read([0, 5, 11]), here.read([0, 5, 11]))
    for mine, theirs in zip(here.read_raw([3, 4], True), there.read_raw([3, 4], True)):
        assert mine[1:] == theirs[1:] and len(mine.planes) == len(theirs.planes)
        for plane, other in zip(mine.planes, theirs.planes):
            np.testing.assert_array_equal(plane, other)
    assert there.read([]) == []
    with pytest.raises(IndexError, match='of a video of 12'):
        there.read([12])


def test_remote__frames_stay_what_they_are(file):
    """Later ones do not lie in their memory, which is used again when nobody has them."""
    every, reader = in_sequence(file), open_video(file, time_limit=60)
    kept = [reader.read([i])[0] for i in range(12)]
    np.testing.assert_array_equal(kept, every)
    memory = DecoderProcess.of_this_process()._memory
    size = os.fstat(memory).st_size
    del kept
    for _ in range(50):
        reader.read([0])
    assert os.fstat(memory).st_size == size


def test_remote__is_one_process_without_torch(file):
    open_video(file, time_limit=60).read([0])
    pid = decoder_pid()
    open_video(file, time_limit=60).read([1])
    assert decoder_pid() == pid
    libraries = Path(f'/proc/{pid}/maps').read_text()
    assert 'libavcodec' in libraries and 'libtorch' not in libraries


def test_remote__a_decoder_that_hangs_is_ended(file):
    reader = open_video(file, time_limit=60)
    reader.time_limit = 0.3
    pid = decoder_pid()
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(UnusableVideoError, match='v.mp4 took longer than time_limit=0.3 s to read'):
        reader.read([0])
    assert not is_running(pid)
    reader.time_limit = 60
    np.testing.assert_array_equal(reader.read([7]), [in_sequence(file)[7]])


def test_remote__a_decoder_that_crashes_is_replaced(file):
    reader = open_video(file, time_limit=60)
    pid = decoder_pid()
    os.kill(pid, signal.SIGSTOP)

    def crash() -> None:
        time.sleep(0.3)
        os.kill(pid, signal.SIGSEGV)
        os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=crash)
    thread.start()
    with pytest.raises(UnusableVideoError, match='decoder ended with SIGSEGV when it was to read'):
        reader.read([0])
    thread.join()
    assert len(reader.read([0])) == 1
    # One that ended while nothing was asked of it has nothing to do with the next video.
    os.kill(decoder_pid(), signal.SIGKILL)
    time.sleep(0.1)
    assert len(reader.read([1])) == 1


def test_remote__interrupted_it_takes_no_late_answer_for_another(file):
    reader = open_video(file, time_limit=60)
    os.kill(decoder_pid(), signal.SIGSTOP)
    main = threading.main_thread().ident
    timer = threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT))
    # A process started in the background ignores SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            reader.read([0])
    finally:
        signal.signal(signal.SIGINT, before)
    np.testing.assert_array_equal(reader.read([5]), [in_sequence(file)[5]])


def test_remote__does_without_memory_files_of_linux(file, monkeypatch):
    monkeypatch.delattr(os, 'memfd_create')
    DecoderProcess.of_this_process().stop()
    got = open_video(file, time_limit=60).read([0, 7])
    np.testing.assert_array_equal(got, [in_sequence(file)[i] for i in (0, 7)])
    DecoderProcess.of_this_process().stop()


def test_remote__errors_are_told(tmp_path, file):
    (tmp_path / 'text.mp4').write_text('no video ' * 100)
    with pytest.raises(UnusableVideoError, match='FFmpeg cannot read .*text.mp4'):
        open_video(tmp_path / 'text.mp4', time_limit=60)
    ours = DecoderProcess.of_this_process()
    with pytest.raises(RuntimeError, match="decoder failed at (.|\n)*no attribute 'dance'"):
        ours.ask(60, 'dance', (file, 'pyav', 1, None))
    reader = open_video(file, time_limit=60)
    open_video(encode(tmp_path / 'a.mp4', 5), time_limit=60).read([0])
    open_video(encode(tmp_path / 'b.mp4', 5), time_limit=60).read([0])
    os.remove(file)  # it is not open any more
    with pytest.raises(FileNotFoundError, match='v.mp4'):
        reader.read([0])


def in_a_fork(reader, pid: int, queue) -> None:
    frame = reader.read([2])[0]
    queue.put((decoder_pid() != pid, frame.mean()))


def test_remote__a_forked_process_has_its_own(file):
    reader = open_video(file, time_limit=60)
    expected = reader.read([2])[0].mean()
    pid = decoder_pid()
    context = multiprocessing.get_context('fork')
    queue = context.Queue()
    process = context.Process(target=in_a_fork, args=(reader, pid, queue))
    process.start()
    assert queue.get(timeout=30) == (True, expected)
    process.join()
    assert decoder_pid() == pid and reader.read([2])[0].mean() == expected


def test_remote__ends_with_its_parent(file):
    code = (
        'import os, signal, sys, videomac_mm; from videomac_mm.datasets import open_video; '
        'from videomac_mm.datasets.readers.process import DecoderProcess; '
        'open_video(sys.argv[1], time_limit=60); '
        'print(DecoderProcess.of_this_process()._process.pid, flush=True); '
        'os.kill(os.getpid(), int(sys.argv[2]))'
    )
    for number in (signal.SIGKILL, 0):
        command = [sys.executable, '-c', code, file, str(int(number))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == -number, done.stderr
        pid = int(done.stdout)
        wait_for(lambda pid=pid: not is_running(pid))
