"""Compare libraries that read frames of video files, on a folder of videos.

    python tools/compare_readers.py VIDEOS --json readers.json
    python tools/compare_readers.py VIDEOS --readers ours decord2    # see below

Readers, each with one decoding thread:

ours        PyAV through `videomac_mm.datasets.open_video`, in this process
isolated    the same with time_limit=60: in a process that may be killed
decord      as the package of that name installs it
decord2     decord's successor, which installs under the same name, so that it needs an
            environment of its own; this package and PyAV must be there, too
torchcodec  VideoDecoder, seek_mode='exact', on the CPU; it needs FFmpeg's shared libraries
opencv      cv2.VideoCapture; CAP_PROP_POS_FRAMES, then read, for each frame that does not
            follow the one before

A reader that cannot be imported is skipped, and the table says why.

Prints a table in Markdown. Its figures:

Pairs. A video is opened and a pair of frames about 1/6 s apart is read as RGB, uint8; or four such
pairs in one call. All readers get the same pairs, which are drawn at random. Each pass over
all videos is a fresh process, after a warm-up with one video. The readers take turns; the median
of the rounds counts. CPU seconds are those of the process and of its children. Only videos that all
readers could read take part.

Frames. The pairs, the four pairs, the first and the last frame of each video are compared to
those of one pass of PyAV over the file. `exact`: the same bytes. `same`: the frame asked for, in
slightly other colours. `another`: it is nearer to a neighbour, or differs by 3 grey levels on
average or more. `missing`: the reader gave none.

Memory. A fresh process opens up to 20 videos and reads a frame of each. What it holds in the end
is divided by their number. The large file is opened, and a frame in its middle is read, in
a fresh process each round. The peak is that above what the process held before.

Damaged files. Copies of the smallest videos are truncated, or some bits are flipped, or some runs
of bytes are overwritten. A process of its own opens each one and reads four frames. `read`: it gave
all. `error`: it raised an exception. `crash`: the process ended. `hang`: it took longer than
--time-limit. What the frames show is not looked at. The limit of `isolated` is half of that.
"""

import argparse
import ctypes
import importlib.metadata
import json
import multiprocessing
import os
import platform
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import av
import numpy as np

EXTENSIONS = {'.mp4', '.mkv', '.avi', '.webm', '.mov', '.m4v', '.mpg', '.mpeg'}
ISOLATED_LIMIT = 60  # seconds
TASK_LIMIT = 900  # seconds, of what is done to whole videos
SECONDS_APART = 1 / 6  # of the frames of a pair
TOLERANCE = 3  # grey levels
NUM_OPEN = 20  # videos at a time
NUM_DAMAGED = 10  # videos of which damaged copies are made
LARGE_BYTES = 200 * 10**6
DAMAGES = ('truncated', 'flipped bits', 'overwritten runs')
OUTCOMES = dict(value='read', error='error', crash='crash', hang='hang')
KINDS = ('exact', 'same', 'another', 'missing')


# ------------------------------------------------------------------ readers


class Ours:
    """A video that this package reads.

    Args:
        path: of the file.
        limit: seconds that a reader may take which has a limit of its own.
    """

    title = 'ours'
    library = 'videomac_mm'

    @staticmethod
    def load() -> str:
        """Import the library; its version."""
        from videomac_mm.datasets import open_video  # noqa: F401

        return f'PyAV {av.__version__}'

    def __init__(self, path: str, limit: float) -> None:
        self.video = self.open(path, limit)

    def open(self, path: str, limit: float) -> Any:
        from videomac_mm.datasets import open_video

        return open_video(path)

    def __len__(self) -> int:
        return len(self.video)

    def read(self, indices: Sequence[int]) -> Sequence[np.ndarray]:
        """Frames at ascending numbers without repetitions: (H, W, 3) uint8 RGB each."""
        return self.video.read(indices)


class Isolated(Ours):
    title = 'ours, isolated'

    def open(self, path: str, limit: float) -> Any:
        from videomac_mm.datasets import open_video

        return open_video(path, time_limit=limit)


class Decord(Ours):
    title = library = package = 'decord'

    @classmethod
    def load(cls) -> str:
        import decord

        folder = str(Path(decord.__file__).parent.parent)
        names = [found.name for found in importlib.metadata.distributions(path=[folder])]
        if cls.package not in names:
            found = [name for name in names if 'decord' in name] or [folder]
            raise ImportError(f'`import decord` finds {found[0]}')
        return f'{cls.package} {decord.__version__}'

    def open(self, path: str, limit: float) -> Any:
        import decord

        return decord.VideoReader(path, num_threads=1)

    def read(self, indices: Sequence[int]) -> Sequence[np.ndarray]:
        return self.video.get_batch(list(indices)).asnumpy()


class Decord2(Decord):
    title = library = package = 'decord2'


class TorchCodec(Ours):
    title = library = 'torchcodec'

    @staticmethod
    def load() -> str:
        import torch
        import torchcodec
        from torchcodec.decoders import VideoDecoder  # noqa: F401

        torch.set_num_threads(1)
        ffmpeg = getattr(torchcodec, 'ffmpeg_major_version', '?')
        return f'torchcodec {torchcodec.__version__}, FFmpeg {ffmpeg}'

    def open(self, path: str, limit: float) -> Any:
        from torchcodec.decoders import VideoDecoder

        options = dict(seek_mode='exact', device='cpu', num_ffmpeg_threads=1)
        return VideoDecoder(path, dimension_order='NHWC', **options)

    def read(self, indices: Sequence[int]) -> Sequence[np.ndarray]:
        return self.video.get_frames_at(list(indices)).data.numpy()


class OpenCV(Ours):
    title = 'OpenCV'
    library = 'cv2'

    @staticmethod
    def load() -> str:
        import cv2

        cv2.setNumThreads(1)
        return f'OpenCV {cv2.__version__}'

    def open(self, path: str, limit: float) -> Any:
        import cv2

        video = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        if not video.isOpened():
            raise ValueError(f'OpenCV cannot open {path}')
        return video

    def __len__(self) -> int:
        import cv2

        return max(0, int(self.video.get(cv2.CAP_PROP_FRAME_COUNT)))

    def read(self, indices: Sequence[int]) -> Sequence[np.ndarray]:
        import cv2

        frames, following = [], None
        for index in indices:
            if index != following and not self.video.set(cv2.CAP_PROP_POS_FRAMES, index):
                raise ValueError(f'OpenCV cannot go to frame {index}')
            good, frame = self.video.read()
            if not good:
                raise ValueError(f'OpenCV cannot read frame {index}')
            frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
            following = index + 1
        return frames


READERS: dict[str, type[Ours]] = dict(
    ours=Ours,
    isolated=Isolated,
    decord=Decord,
    decord2=Decord2,
    torchcodec=TorchCodec,
    opencv=OpenCV,
)


# ---------------------------------------------------------------- processes


class Outcome(NamedTuple):
    """What became of a task.

    Attributes:
        kind: a key of `OUTCOMES`.
        value: what the task returned; None unless ``kind`` is 'value'.
        text: why it returned nothing.
    """

    kind: str
    value: Any = None
    text: str = ''


class Library:
    """A process that has imported a library, and does each task in a copy of itself.

    So every task meets a process in which nothing was opened yet, and may crash or hang.

    Args:
        reader: that reads through the library.
    """

    def __init__(self, reader: type[Ours]) -> None:
        context = multiprocessing.get_context('spawn')  # shares nothing with this process
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(reader, theirs))
        self.process.start()
        theirs.close()

    def version(self) -> Outcome:
        """The library's version, or why it cannot be imported."""
        return self._answer()

    def run(self, limit: float, task: Callable, *args) -> Outcome:
        """Do a task; `Outcome.kind` is 'hang' if it takes longer than ``limit`` seconds."""
        with suppress(ConnectionError):  # the answer says so
            self.connection.send((limit, task, args))
        return self._answer()

    def _answer(self) -> Outcome:
        try:
            return self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            return Outcome('crash', text=f'ended with {name_of(self.process.exitcode)}')

    def close(self) -> None:
        self.connection.close()
        self.process.join()


def serve(reader: type[Ours], connection: Connection) -> None:
    """Import a library, say how that went, then do tasks."""
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    try:
        connection.send(Outcome('value', reader.load()))
    except Exception as err:  # torchcodec raises RuntimeError without FFmpeg
        connection.send(Outcome('error', text=reason_of(err)))
        return
    while True:
        try:
            limit, task, args = connection.recv()
        except EOFError:
            return
        connection.send(in_copy(limit, task, args))


def in_copy(limit: float, task: Callable, args: tuple) -> Outcome:
    """What a task returns in a copy of this process."""
    context = multiprocessing.get_context('fork')
    connection, theirs = context.Pipe(duplex=False)
    copy = context.Process(target=answer, args=(theirs, task, args))
    copy.start()
    theirs.close()
    try:
        if connection.poll(limit):
            return connection.recv()
        return Outcome('hang', text=f'took longer than {limit:g} s')
    except EOFError:
        copy.join()
        return Outcome('crash', text=f'ended with {name_of(copy.exitcode)}')
    finally:
        copy.kill()
        copy.join()


def answer(connection: Connection, task: Callable, args: tuple) -> None:
    with open(os.devnull, 'w') as nothing:
        os.dup2(nothing.fileno(), 2)  # FFmpeg complains of each damaged block
    try:
        outcome = Outcome('value', task(*args))
    except Exception as err:
        outcome = Outcome('error', text=reason_of(err))
    connection.send(outcome)


def reason_of(err: Exception) -> str:
    """An exception in one line."""
    lines = str(err).strip().splitlines() or ['']
    return f'{type(err).__name__}: {lines[0][:200]}'


def name_of(status: int | None) -> str:
    """An exit status, in words."""
    if status is not None and status < 0:
        with suppress(ValueError):
            return signal.Signals(-status).name
    return f'status {status}'


def own_processes() -> list[int]:
    """This process and its children."""
    pids = [os.getpid()]
    for status in Path('/proc').glob('[0-9]*/stat'):
        with suppress(OSError):
            # After the name, which may hold anything: ") state parent …".
            if int(status.read_text().rpartition(')')[2].split()[1]) == pids[0]:
                pids.append(int(status.parent.name))
    return pids


def cpu_seconds(pids: Sequence[int]) -> float:
    """CPU time that processes have used."""
    clocks = [~pid << 3 | 2 for pid in pids]  # of Linux: MAKE_PROCESS_CPUCLOCK, CPUCLOCK_SCHED
    return sum(time.clock_gettime(clock) for clock in clocks)


def resident_mb(pids: Sequence[int], field: str = 'VmRSS') -> float:
    """A field of /proc/PID/status, summed over processes."""
    total = 0
    for pid in pids:
        lines = Path(f'/proc/{pid}/status').read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith(f'{field}:'))
    return total * 1024 / 1e6


def trim(pids: Sequence[int]) -> None:
    """Give free memory back to the system, and count the peak from here on."""
    free = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # glibc
    if free is not None:
        free(0)
    for pid in pids:
        with suppress(OSError):  # then a peak of before may hide one that is lower
            Path(f'/proc/{pid}/clear_refs').write_text('5')


# ------------------------------------------- tasks, each done by one reader


def measure(path: str) -> tuple[int, float]:
    """Number of frames, and frames per second."""
    reader = Ours(path, ISOLATED_LIMIT)
    return len(reader), reader.video.fps


def read_calls(
    reader: type[Ours], path: str, calls: Sequence[Sequence[int]]
) -> tuple[int, list[Sequence[np.ndarray] | str]]:
    """The reader's number of frames, and for each call its frames, or why there are none."""
    opened, answers = reader(path, ISOLATED_LIMIT), []
    for indices in calls:
        try:
            answers.append(opened.read(indices))
        except Exception as err:
            answers.append(reason_of(err))
    return len(opened), answers


def time_pass(
    reader: type[Ours], videos: Sequence[tuple[str, list[int]]], warm_up: str
) -> tuple[float, float]:
    """Seconds to open videos and read frames of each: of CPUs, and of the clock."""
    reader(warm_up, ISOLATED_LIMIT).read([0])
    pids = own_processes()
    cpu, wall = cpu_seconds(pids), time.perf_counter()
    for path, indices in videos:
        reader(path, ISOLATED_LIMIT).read(indices)
    return cpu_seconds(pids) - cpu, time.perf_counter() - wall


def hold(reader: type[Ours], videos: Sequence[tuple[str, list[int]]], warm_up: str) -> float:
    """MB that an open video takes after a frame of it was read."""
    reader(warm_up, ISOLATED_LIMIT).read([0])
    pids = own_processes()
    trim(pids)
    before, held = resident_mb(pids), []
    for path, indices in videos:
        held.append(reader(path, ISOLATED_LIMIT))
        held[-1].read(indices[:1])
    trim(pids)
    return (resident_mb(pids) - before) / len(held)


def open_large(reader: type[Ours], path: str, warm_up: str) -> tuple[float, float]:
    """Milliseconds to open a file, and MB at most until a frame in its middle was read."""
    reader(warm_up, ISOLATED_LIMIT).read([0])
    pids = own_processes()
    trim(pids)
    before, start = resident_mb(pids), time.perf_counter()
    opened = reader(path, TASK_LIMIT)
    took = time.perf_counter() - start
    opened.read([len(opened) // 2])
    return took * 1000, resident_mb(pids, 'VmHWM') - before


def read_damaged(reader: type[Ours], path: str, limit: float, shares: Sequence[float]) -> None:
    """Read frames at some shares of a video's length."""
    opened = reader(path, limit)
    if not len(opened):
        raise ValueError('no frames')
    opened.read(sorted({int(share * len(opened)) for share in shares}))


# --------------------------------------------------------------- the videos


class Video(NamedTuple):
    """A video and the frames to read of it.

    Attributes:
        path: of the file.
        pair: two frames.
        pairs: those of four pairs, ascending, each once.
        length: in frames.
    """

    path: str
    pair: list[int]
    pairs: list[int]
    length: int

    @property
    def calls(self) -> list[list[int]]:
        """What `read_calls` reads."""
        return [self.pair, self.pairs, [self.length - 1], [0]]


def draw(path: str, length: int, fps: float, seed: int) -> Video:
    """Choose frames of a video of at least two."""
    rng = random.Random(f'{seed} {os.path.basename(path)}')
    gap = min(max(round(fps * SECONDS_APART), 1), length - 1)
    starts = [rng.randrange(length - gap) for _ in range(5)]
    four = {frame for start in starts[1:] for frame in (start, start + gap)}
    return Video(path, [starts[0], starts[0] + gap], sorted(four), length)


def in_sequence(path: str, wanted: set[int]) -> tuple[int, dict[int, np.ndarray]]:
    """Number of frames that one pass over a file gives, and those of them that are wanted."""
    kept, count = {}, 0
    with av.open(path) as container:
        container.streams.video[0].thread_type = 'AUTO'
        for frame in container.decode(video=0):
            if count in wanted:
                turns = round(frame.rotation / 90) % 4
                kept[count] = np.rot90(frame.to_ndarray(format='rgb24'), turns)
            count += 1
    return count, kept


def kind_of(frame: np.ndarray, number: int, sequence: dict[int, np.ndarray]) -> str:
    """One of `KINDS`: what a frame is, where the one of that number was asked for."""
    if number not in sequence or sequence[number].shape != frame.shape:
        return 'another'
    if np.array_equal(frame, sequence[number]):
        return 'exact'
    right, *others = (
        np.abs(sequence[i].astype(np.int16) - frame).mean()
        for i in (number, number - 1, number + 1)
        if i in sequence
    )
    return 'same' if right < TOLERANCE and right <= min(others, default=right) else 'another'


def damaged(data: bytes, kind: str, rng: random.Random) -> bytes:
    """A file with a damage of a kind of `DAMAGES`."""
    if kind == 'truncated':
        return data[: rng.randrange(1, len(data))]
    broken = bytearray(data)
    if kind == 'flipped bits':
        for _ in range(2 ** rng.randrange(8)):
            broken[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(broken)
    for _ in range(rng.randint(1, 8)):
        start = rng.randrange(len(data))
        length = min(2 ** rng.randrange(13), len(data) - start)
        broken[start : start + length] = rng.randbytes(length)
    return bytes(broken)


def write_noise(path: Path, num_bytes: int, seed: int) -> str:
    """A film of noise, of at least so many bytes."""
    rng = np.random.default_rng(seed)
    pictures = [rng.integers(0, 256, (720, 640), np.uint8) for _ in range(8)]  # YUV 4:2:0
    options = dict(preset='ultrafast', qp='4', g='12')
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 640, 480, 'yuv420p'
        written, number = 0, 0
        while written < num_bytes:
            picture = np.roll(pictures[number % 8], number, 1)
            frame = av.VideoFrame.from_ndarray(picture, format='yuv420p')
            frame.pts = number
            packets = stream.encode(frame)
            written += sum(packet.size for packet in packets)
            container.mux(packets)
            number += 1
        container.mux(stream.encode(None))
    return str(path)


# ----------------------------------------------------------- the comparison


class Comparison:
    """Readers, and what was measured of them.

    Args:
        libraries: by reader; those of `Ours` are there, whether or not it takes part.
        readers: that take part.
        args: of the command line.
    """

    def __init__(
        self, libraries: dict[str, Library], readers: Sequence[str], args: argparse.Namespace
    ) -> None:
        self.libraries = libraries
        self.readers = readers
        self.args = args
        self.failures: dict[str, list[list[str]]] = {name: [] for name in readers}

    def run(self, name: str, what: str, limit: float, task: Callable, *args) -> Any:
        """What a task of a reader returns; None, and a failure more, if it fails."""
        outcome = self.libraries[name].run(limit, task, READERS[name], *args)
        if outcome.kind != 'value':
            self.failures[name].append([what, f'{outcome.kind}: {outcome.text}'])
        return outcome.value

    def find_videos(self) -> tuple[list[Video], list[str]]:
        """Videos with the frames to read, and names of those that `Ours` cannot read."""
        files = [p for p in sorted(self.args.folder.iterdir()) if p.suffix.lower() in EXTENSIONS]
        if len(files) > self.args.num_videos:
            rng = random.Random(self.args.seed)
            files = sorted(rng.sample(files, self.args.num_videos))
        videos, bad = [], []
        for path in files:
            length, fps = self.libraries['ours'].run(TASK_LIMIT, measure, str(path)).value or (0, 0)
            if length < 2:
                bad.append(path.name)
            else:
                videos.append(draw(str(path), length, fps, self.args.seed))
        return videos, bad

    def compare_frames(
        self, videos: Sequence[Video]
    ) -> tuple[dict[str, dict], list[Video], list[str]]:
        """Which frames the readers give.

        Returns:
            By reader, how many frames are what. The videos that all readers could read. Names of
            those that cannot be read to their end.
        """
        start = dict.fromkeys((*KINDS, 'failed_videos', 'other_length'), 0)
        frames = {name: dict(start, lengths=[], deviations=[]) for name in self.readers}
        whole, bad = [], []
        for video in videos:
            file = os.path.basename(video.path)
            asked = {i for call in video.calls for i in call}
            wanted = {i + step for i in asked for step in (-1, 0, 1)}
            try:
                count, sequence = in_sequence(video.path, wanted)
            except av.FFmpegError:
                bad.append(file)
                continue
            good = True
            for name, entry in frames.items():
                value = self.run(name, file, TASK_LIMIT, read_calls, video.path, video.calls)
                length, answers = value or (None, ['failed'] * len(video.calls))
                complaints = [a for a in answers if isinstance(a, str)]
                if value is not None and complaints:
                    self.failures[name].append([file, f'error: {complaints[0]}'])
                entry['failed_videos'] += bool(complaints)
                if length not in (None, count):
                    entry['other_length'] += 1
                    entry['lengths'].append([file, length, count])
                good = good and not complaints
                for indices, given in zip(video.calls, answers):
                    for place, number in enumerate(indices):
                        kind = 'missing'
                        if not isinstance(given, str):
                            kind = kind_of(given[place], number, sequence)
                        entry[kind] += 1
                        if kind in ('another', 'missing'):
                            entry['deviations'].append([file, number, count, kind])
            if good:
                whole.append(video)
        return frames, whole, bad

    def time_pairs(self, videos: Sequence[Video], which: str) -> dict[str, dict]:
        """Seconds of each round, and pairs per second; ``which`` is 'pair' or 'pairs'."""
        passes = [(video.path, getattr(video, which)) for video in videos]
        samples: dict[str, list] = {name: [] for name in self.readers}
        for number in range(self.args.rounds if videos else 0):
            names = list(self.readers)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                sample = self.run(
                    name, f'timing of {which}', TASK_LIMIT, time_pass, passes, videos[0].path
                )
                samples[name] += [sample] if sample else []
        num_pairs = len(videos) * dict(pair=1, pairs=4)[which]
        rates = {}
        for name, taken in samples.items():
            cpu, wall = [cpu for cpu, _ in taken], [wall for _, wall in taken]
            rates[name] = dict(
                per_cpu_second=num_pairs / median(cpu) if cpu else None,
                per_second=num_pairs / median(wall) if wall else None,
                cpu_seconds=cpu,
                seconds=wall,
            )
        base = rates['ours']['per_cpu_second'] if 'ours' in rates else None
        for rate in rates.values():
            own = rate['per_cpu_second']
            rate['times_ours'] = own / base if own and base else None
        return rates

    def measure_memory(self, videos: Sequence[Video]) -> dict[str, float | None]:
        opened = [(video.path, video.pair) for video in videos[:NUM_OPEN]]
        warm_up = videos[-1].path if videos else ''
        return {
            name: self.run(name, 'memory', TASK_LIMIT, hold, opened, warm_up) if opened else None
            for name in self.readers
        }

    def try_large(self, path: str, warm_up: str) -> dict[str, dict]:
        """Medians of `open_large` by reader."""
        with open(path, 'rb') as file:
            while file.read(2**24):  # so that it lies in the system's cache
                pass
        samples: dict[str, list] = {name: [] for name in self.readers}
        for _ in range(self.args.rounds):
            for name, taken in samples.items():
                sample = self.run(name, 'large file', TASK_LIMIT, open_large, path, warm_up)
                taken += [sample] if sample else []
        return {
            name: dict(
                open_ms=median(ms for ms, _ in taken) if taken else None,
                peak_mb=median(mb for _, mb in taken) if taken else None,
            )
            for name, taken in samples.items()
        }

    def try_damaged(self, videos: Sequence[Video], folder: Path) -> dict[str, dict]:
        """How often damaged files were read, or what came instead, by reader."""
        counts = {name: Counter() for name in self.readers}
        by_size = sorted((os.path.getsize(video.path), video.path) for video in videos)
        sources = [Path(path) for _, path in by_size[:NUM_DAMAGED]]
        limit = self.args.time_limit
        for number in range(self.args.corrupted if sources else 0):
            rng = random.Random(f'{self.args.seed} {number}')
            source, kind = rng.choice(sources), DAMAGES[number % len(DAMAGES)]
            path = folder / f'damaged{number}{source.suffix}'
            path.write_bytes(damaged(source.read_bytes(), kind, rng))
            shares = [rng.random() for _ in range(4)]
            for name, count in counts.items():
                task = read_damaged, READERS[name], str(path), limit / 2, shares
                outcome = self.libraries[name].run(limit, *task)
                count[OUTCOMES[outcome.kind]] += 1
                if outcome.kind in ('crash', 'hang'):
                    what = f'{kind}, number {number}, of {source.name}'
                    self.failures[name].append([what, f'{outcome.kind}: {outcome.text}'])
            path.unlink()
        return {name: {kind: c[kind] for kind in OUTCOMES.values()} for name, c in counts.items()}

    def report(self) -> dict:
        """All figures."""
        videos, bad = self.find_videos()
        if not videos:
            sys.exit(f'no video in {self.args.folder} that can be read')
        say(f'{len(videos)} videos; comparing frames …')
        frames, whole, damaged_inside = self.compare_frames(videos)
        say(f'{len(whole)} videos that all could read; measuring time …')
        one, four = (self.time_pairs(whole, which) for which in ('pair', 'pairs'))
        say('measuring memory …')
        memory = self.measure_memory(whole)
        with tempfile.TemporaryDirectory() as folder:
            large = self.args.large
            if large is None:
                large = write_noise(Path(folder, 'noise.mkv'), LARGE_BYTES, self.args.seed)
            large_mb = os.path.getsize(large) / 1e6
            large = self.try_large(str(large), videos[0].path)
            say('reading damaged files …')
            counts = self.try_damaged(videos, Path(folder))
        return dict(
            videos=len(videos),
            unreadable=bad + damaged_inside,
            timed_videos=len(whole),
            large_file_mb=large_mb,
            readers={
                name: dict(
                    title=READERS[name].title,
                    one_pair=one[name],
                    four_pairs=four[name],
                    frames=frames[name],
                    mb_per_open_video=memory[name],
                    large_file=large[name],
                    corrupted=counts[name],
                    failures=self.failures[name],
                )
                for name in self.readers
            },
        )


def say(text: str) -> None:
    print(f'[{time.strftime("%H:%M:%S")}] {text}', file=sys.stderr, flush=True)


def cell(value: float | str | None) -> str:
    if value is None:
        return '–'
    if isinstance(value, float):
        return f'{value:.3g}' if abs(value) < 100 else f'{value:.0f}'
    return str(value)


def to_markdown(report: dict) -> str:
    """A row for each figure, a column for each reader; then who was skipped, and why."""
    readers = report['readers'].values()
    rows: list[tuple[str, list]] = [('version', [r['version'] for r in readers])]
    for key, name in dict(one_pair='one pair', four_pairs='four pairs').items():
        for field, words in dict(
            per_cpu_second='pairs per CPU second',
            times_ours='times ours',
            per_second='pairs per second',
        ).items():
            rows.append((f'{name} of a video: {words}', [r[key][field] for r in readers]))
    words = dict(same='same, in other colours', another='another frame', missing='none given')
    for kind in KINDS:
        rows.append((f'frames: {words.get(kind, kind)}', [r['frames'][kind] for r in readers]))
    words = dict(failed_videos='with an error', other_length='with another number of frames')
    for kind, text in words.items():
        rows.append((f'videos {text}', [r['frames'][kind] for r in readers]))
    rows.append(('MB per open video', [r['mb_per_open_video'] for r in readers]))
    size = f'{report["large_file_mb"]:.0f} MB file'
    rows.append((f'{size}: ms to open', [r['large_file']['open_ms'] for r in readers]))
    rows.append((f'{size}: MB at most', [r['large_file']['peak_mb'] for r in readers]))
    for kind in OUTCOMES.values():
        rows.append((f'damaged files: {kind}', [r['corrupted'][kind] for r in readers]))
    lines = [['', *(r['title'] for r in readers)], ['---'] * (1 + len(readers))]
    lines += [[name, *map(cell, values)] for name, values in rows]
    text = '\n'.join(f'| {" | ".join(line)} |' for line in lines)
    text += f'\n\n{report["timed_videos"]} of {report["videos"]} videos were timed.'
    if report['unreadable']:
        text += f'\n\nNot read by PyAV, so left out: {", ".join(report["unreadable"])}'
    for name, reason in report['skipped'].items():
        text += f'\n\nSkipped: {READERS[name].title}: {reason}'
    return text


def cpu_model() -> str:
    info = Path('/proc/cpuinfo')
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith('model name'):
            return line.split(':', 1)[1].strip()
    return platform.processor() or platform.machine()


def parse_args() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument('folder', type=Path, help='of videos')
    parser.add_argument(
        '--num-videos', type=at_least(1), default=50, help='drawn at random if there are more'
    )
    parser.add_argument('--rounds', type=at_least(1), default=3, help='of what is timed')
    parser.add_argument('--seed', type=int, default=0, help='of all that is drawn')
    parser.add_argument(
        '--readers',
        nargs='+',
        default=list(READERS),
        choices=list(READERS),
        metavar='NAME',
        help=f'of {", ".join(READERS)}; default: all',
    )
    parser.add_argument('--corrupted', type=at_least(0), default=100, help='number of copies')
    parser.add_argument(
        '--time-limit', type=float, default=20, help='seconds that a damaged copy may take'
    )
    parser.add_argument(
        '--large', type=Path, help='a large video; default: noise of 200 MB, made for this'
    )
    parser.add_argument('--json', type=Path, help='file for the figures and all samples')
    args = parser.parse_args()
    if not args.folder.is_dir():
        parser.error(f'no folder {args.folder}')
    args.readers = list(dict.fromkeys(args.readers))
    return args


def at_least(least: int) -> Callable[[str], int]:
    """What reads a number of the command line."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f'must be at least {least}, got {text}')
        return int(text)

    return number


def main() -> None:
    args = parse_args()
    # Those that read through the same library share its process; `Ours` draws the frames.
    names = dict.fromkeys(['ours', *args.readers])
    shared = {READERS[name].library: READERS[name] for name in names}
    processes = {library: Library(reader) for library, reader in shared.items()}
    libraries = {name: processes[READERS[name].library] for name in names}
    try:
        answers = {library: process.version() for library, process in processes.items()}
        versions = {name: answers[READERS[name].library] for name in names}
        if versions['ours'].kind != 'value':
            sys.exit(f'cannot import videomac_mm: {versions["ours"].text}')
        readers = [name for name in args.readers if versions[name].kind == 'value']
        report = dict(
            arguments={k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
            date=time.strftime('%Y-%m-%d %H:%M'),
            cpu=cpu_model(),
            cpus=os.cpu_count(),
            python=platform.python_version(),
            load_before=os.getloadavg(),
            skipped={n: versions[n].text for n in args.readers if n not in readers},
            **Comparison(libraries, readers, args).report(),
            load_after=os.getloadavg(),
        )
    finally:
        for process in processes.values():
            process.close()
    for name, entry in report['readers'].items():
        entry['version'] = versions[name].value
    print(to_markdown(report))
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1))


if __name__ == '__main__':
    main()
