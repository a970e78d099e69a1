"""Hand thousands of damaged and odd files to the readers of videos, and see what comes of each.

    python -m tests.reliability.fuzz_videos --copies 1000 --backend pyav decord --source DIR
    python -m tests.reliability.fuzz_videos --copies 0 --opens 10000     # the long run alone

Frames, `UnusableVideoError` and `OSError` are right answers. Everything else is a failure of
ours: its file is kept, and the exit status is 1. Prints tables in Markdown; needs Linux.
"""

import argparse
import collections
import functools
import json
import math
import multiprocessing
import os
import random
import re
import shutil
import socket
import struct
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import cv2
import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from torch.utils.data import DataLoader

from tests.films import encode
from videomac_mm.datasets import UnlabelledVideoDataset, UnusableVideoError, open_video
from videomac_mm.datasets.readers import fault_of
from videomac_mm.datasets.readers.frames import PlanarFrame
from videomac_mm.datasets.readers.process import DecoderProcess

TIME_LIMIT = 20.0  # seconds, of each wish to the decoder
HANG_AFTER = 6 * TIME_LIMIT  # an attempt has four wishes
MAX_BYTES = 3 * 10**6  # of a source
SIZE = 48, 64  # of the films made here
FRAGMENTS = {'movflags': 'frag_keyframe+empty_moov'}
OUTCOMES = 'read', 'unusable', 'system error', 'decoder crashed', 'timed out', 'failure'


class Outcome(NamedTuple):
    """What came of reading a file.

    Attributes:
        kind: one of ``OUTCOMES``.
        text: the error, or the sizes of the frames.
        size: (H, W) of the first frame read.
        frames: how many the reader counts.
    """

    kind: str
    text: str
    size: tuple[int, int] | None = None
    frames: int = 0


# ------------------------------------------------------------------- reading


def attempt(
    path: str, backend: str, seed: Any = 0, meddle: Callable[[str], Any] | None = None
) -> Outcome:
    """Open a file and read a pair of frames, in RGB and as they are stored.

    Args:
        path: of the file.
        backend: of `open_video`.
        seed: of the pair.
        meddle: is called with the path between opening and reading.
    """
    rng = random.Random(seed)
    try:
        reader = open_video(path, backend, time_limit=TIME_LIMIT)
        if meddle is not None:
            meddle(path)
        pair = sorted(rng.sample(range(len(reader)), min(2, len(reader))))
        pictures, stored = reader.read(pair), reader.read(pair, planar=True)
        problems = strange(reader, pictures, stored)
        if problems:
            return Outcome('failure', f'{", ".join(problems)} of frames {pair}')
        sizes = [picture.shape[:2] for picture in pictures]
        return Outcome('read', f'frames of {sizes}', sizes[0], len(reader))
    except UnusableVideoError as err:
        text = f'UnusableVideoError: {err}'
        if 'the decoder ended with' in text:
            return Outcome('decoder crashed', text)
        return Outcome('timed out' if 'took longer than time_limit' in text else 'unusable', text)
    except OSError as err:
        text = f'{type(err).__name__}, a fault of the {fault_of(err)}: {err}'
        return Outcome('system error', text)
    except Exception:
        return Outcome('failure', traceback.format_exc())


def strange(reader: Any, pictures: Sequence[Any], stored: Sequence[Any]) -> list[str]:
    """What is not as a reader promises, of frames in RGB and as they are stored."""
    problems = []
    for picture, frame in zip(pictures, stored):
        if isinstance(frame, PlanarFrame):
            height, width = frame.shape
            frame = frame.crop_resize((0, 0, width, height), (width, height), cv2.INTER_LINEAR)
        for array in (picture, frame):
            height, width, *channels = array.shape
            if array.dtype != np.uint8 or channels != [3] or not 0 < height * width < 2**28:
                problems.append(f'an array {array.shape} of {array.dtype}')
        if picture.shape != frame.shape:
            problems.append(f'{picture.shape} in RGB, {frame.shape} as it is stored')
    if not (math.isfinite(reader.fps) and reader.fps >= 0):
        problems.append(f'fps={reader.fps}')
    times = reader.times
    if times is not None and not (len(times) == len(reader) and np.isfinite(times).all()):
        problems.append(f'{len(times)} times, from {np.min(times)} to {np.max(times)}')
    return problems


class WatchedAttempts:
    """Attempts in a process of their own: if it hangs or crashes, that is an outcome, too."""

    def __init__(self) -> None:
        self.pool: futures.ProcessPoolExecutor | None = None

    def __call__(self, *args) -> Outcome:
        if self.pool is None:
            context = multiprocessing.get_context('fork')
            self.pool = futures.ProcessPoolExecutor(1, context)
        try:
            return self.pool.submit(attempt, *args).result(HANG_AFTER)
        except (futures.TimeoutError, futures.BrokenExecutor) as err:
            self.close()
            return Outcome('failure', f'the reading process hangs or crashed: {err!r}')

    def close(self) -> None:
        if self.pool is not None:
            for process in list((self.pool._processes or {}).values()):
                process.kill()
            self.pool.shutdown(cancel_futures=True)
            self.pool = None


# -------------------------------------------------------------------- damage


def place(rng: random.Random, size: int) -> int:
    """Somewhere in a file; every other time near one of its ends, where headers are."""
    near = min(size, 4096)
    return rng.choice(
        [
            rng.randrange(size),
            rng.randrange(size),
            rng.randrange(near),
            size - 1 - rng.randrange(near),
        ]
    )


def length(rng: random.Random, least: int, most: int) -> int:
    """A number whose order of magnitude is uniform."""
    return round(math.exp(rng.uniform(math.log(least), math.log(max(most, least)))))


def flipped(rng: random.Random, data: bytes, count: int) -> bytes:
    data = bytearray(data)
    for _ in range(count):
        data[place(rng, len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def overwritten(rng: random.Random, data: bytes, zeros: bool) -> bytes:
    size = length(rng, 4, len(data) // 2)
    start = min(place(rng, len(data)), len(data) - size)
    return data[:start] + (bytes(size) if zeros else rng.randbytes(size)) + data[start + size :]


def without_a_run(rng: random.Random, data: bytes, other: bytes) -> bytes:
    start = place(rng, len(data))
    return data[:start] + data[start + length(rng, 1, len(data) // 2) :]


def beheaded(rng: random.Random, data: bytes, other: bytes) -> bytes:
    size = length(rng, 8, min(len(data), len(other)))
    return other[:size] + data[size:]


DAMAGES: dict[str, Callable[[random.Random, bytes, bytes], bytes]] = {
    'cut short': lambda rng, data, other: data[: place(rng, len(data))],
    'one bit flipped': lambda rng, data, other: flipped(rng, data, 1),
    'many bits flipped': lambda rng, data, other: flipped(rng, data, length(rng, 2, 5000)),
    'run of zeros': lambda rng, data, other: overwritten(rng, data, zeros=True),
    'run of noise': lambda rng, data, other: overwritten(rng, data, zeros=False),
    'run cut out': without_a_run,
    'two files joined': lambda rng, data, other: data + other,
    'two .ts of other sizes joined': lambda rng, data, other: (
        data[: 188 * rng.randint(1, len(data) // 188)] + other
    ),
    'wrong extension': lambda rng, data, other: data,
    "another file's header": beheaded,
}
EXTENSIONS = '.mp4', '.mkv', '.avi', '.webm', '.mov', '.mpg', '.flv', '.wmv', '.ts', '.gif'


def damaged(kind: str, sources: Sequence[Path], rng: random.Random) -> tuple[bytes, str]:
    """A damaged copy of one of the sources, and its extension."""
    if kind.startswith('two .ts'):
        sources = [source for source in sources if source.suffix == '.ts']
    source, other = rng.sample(sources, 2)
    data = DAMAGES[kind](rng, source.read_bytes(), other.read_bytes())
    if kind == 'wrong extension':
        return data, rng.choice([suffix for suffix in EXTENSIONS if suffix != source.suffix])
    return data, source.suffix


# ------------------------------------------------------------- special files


def write_film(
    path: Path,
    codec: str,
    pix_fmt: str,
    size: tuple[int, int] = SIZE,
    times: Sequence[int] = range(12),
    container: str | None = None,
    muxer: dict[str, str] | None = None,
    **options: str,
) -> str:
    """Write a film of noise.

    Args:
        path: of the film.
        codec: FFmpeg's name of it.
        pix_fmt: FFmpeg's name of the pixel format.
        size: (H, W).
        times: when the frames are shown, in 1/25 s.
        container: FFmpeg's name of it. Defaults to None: by the extension.
        muxer: options of the container.
        **options: of the codec.

    Returns:
        The path.
    """
    rng = np.random.default_rng(0)
    with av.open(str(path), 'w', container, muxer) as file:
        stream = file.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.time_base = Fraction(1, 25)
        file.start_encoding()
        for time in times:
            picture = rng.integers(0, 256, (-(-size[0] // 8), -(-size[1] // 8), 3), np.uint8)
            picture = picture.repeat(8, 0).repeat(8, 1)[: size[0], : size[1]]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format='rgb24')
            frame = frame.reformat(format=pix_fmt)
            frame.pts, frame.time_base = time, Fraction(1, 25)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return str(path)


def write_sound(path: Path) -> str:
    with av.open(str(path), 'w') as file:
        stream = file.add_stream('aac', rate=8000, layout='mono')
        for start in range(0, 8000, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), 'fltp', 'mono')
            frame.sample_rate, frame.pts = 8000, start
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return str(path)


def turn(path: str) -> str:
    """Let a display matrix turn an MP4 film by a quarter."""
    data = bytearray(Path(path).read_bytes())
    start = data.index(b'tkhd') + 4 + 40
    matrix = 0, 2**16, 0, -(2**16), 0, 0, 0, 0, 2**30
    data[start : start + 36] = struct.pack('>9i', *matrix)
    Path(path).write_bytes(data)
    return path


def entitle(path: str) -> str:
    """Give an MP4 film an encoder's name that is not UTF-8, as old titles are."""
    data = Path(path).read_bytes()
    Path(path).write_bytes(data.replace(b'Lavf', b'\xc3\xff\xfe\xc3'))
    return path


def films(folder: Path) -> list[Path]:
    """Small films of many codecs and containers, of those that this FFmpeg writes."""
    kinds = [
        ('h264.mp4', 'libx264', 'yuv420p', {}),
        ('fragments.mp4', 'libx264', 'yuv420p', {'g': '4', 'muxer': FRAGMENTS}),
        ('h264.mkv', 'libx264', 'yuv420p', {}),
        ('h264.flv', 'libx264', 'yuv420p', {}),
        ('hevc.mp4', 'libx265', 'yuv420p', {'x265-params': 'log-level=none'}),
        ('vp8.webm', 'libvpx', 'yuv420p', {}),
        ('vp9.webm', 'libvpx-vp9', 'yuva420p', {}),
        ('mpeg4.avi', 'mpeg4', 'yuv420p', {}),
        ('mjpeg.avi', 'mjpeg', 'yuvj420p', {}),
        ('raw.avi', 'rawvideo', 'bgr24', {}),
        ('mpeg2.mpg', 'mpeg2video', 'yuv420p', {}),
        ('mpeg2.ts', 'mpeg2video', 'yuv420p', {}),
        ('wmv2.wmv', 'wmv2', 'yuv420p', {}),
        ('prores.mov', 'prores_ks', 'yuv422p10le', {}),
        ('qtrle.mov', 'qtrle', 'argb', {}),
        ('ffv1.mkv', 'ffv1', 'gray', {}),
        ('rgb8.gif', 'gif', 'rgb8', {}),
    ]
    made = []
    for name, codec, pix_fmt, options in kinds:
        if codec in av.codecs_available:
            made.append(Path(write_film(folder / name, codec, pix_fmt, **options)))
    made.append(Path(encode(folder / 'small.ts', 12)))
    made.append(Path(encode(folder / 'large.ts', 12, size=(96, 80))))
    return made


class Special(NamedTuple):
    """A file that is not as most are.

    Attributes:
        name: what is special about it.
        path: of the file.
        expected: (H, W) of the frames that are read, or the kind of outcome.
        decord: the same, where decord differs.
        meddle: what happens to the file between opening and reading.
    """

    name: str
    path: str
    expected: tuple[int, int] | str
    decord: tuple[int, int] | str | None = None
    meddle: Callable[[str], Any] | None = None

    def is_as_expected(self, backend: str, outcome: Outcome) -> bool:
        expected = (backend == 'decord' and self.decord) or self.expected
        if isinstance(expected, str):
            return outcome.kind == expected
        return outcome.kind == 'read' and outcome.size == expected


def odd_names(folder: Path) -> Iterator[Special]:
    """A good film under names that are hard to handle."""
    film = Path(encode(folder / 'good film.mp4', 12))
    yield Special('a good film', str(film), SIZE)
    for name, file in {
        'spaces in the name': ' a  b .mp4',
        'letters beyond ASCII': 'ünï 视频 🎬.mp4',
        'a line break in the name': 'new\nline.mp4',
        'a very long name': 'x' * 251 + '.mp4',
        'a pattern for a name': 'a%03d*?[b].mp4',
        'quotes in the name': 'it\'s "quoted" $(x) \\.mp4',
        'a name like an option': '-i.mp4',
        'a name like an address': 'http:a.mp4',
        'capital letters': 'A.MP4',
    }.items():
        yield Special(name, str(shutil.copy(film, folder / file)), SIZE)
    not_text = os.fsdecode(bytes(folder) + b'/not \xff\xfe text.mp4')
    yield Special('a name that is not UTF-8', shutil.copy(film, not_text), SIZE, 'unusable')
    yield Special('a name too long', str(folder / ('x' * 300 + '.mp4')), 'system error')
    yield Special('no file', str(folder / 'none.mp4'), 'system error')


def no_films(folder: Path, film: str) -> Iterator[Special]:
    """Files that hold no film, and things that are no files."""
    for name, data in {
        'zero bytes': b'',
        'text': b'no video ' * 100,
        'noise': random.Random(0).randbytes(5000),
        'a list that names itself': b'ffconcat version 1.0\nfile itself.mp4\n',
        'a list of addresses': b'#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n',
    }.items():
        path = folder / ('itself.mp4' if 'itself' in name else f'{name}.mp4')
        path.write_bytes(data)
        # decord opens the list again and again, until its stack is full.
        decord = 'decoder crashed' if path.name == 'itself.mp4' else None
        yield Special(name, str(path), 'unusable', decord)
    (folder / 'folder.mp4').mkdir()
    yield Special('a folder', str(folder / 'folder.mp4'), 'unusable')
    os.mkfifo(folder / 'pipe.mp4')
    yield Special('a pipe', str(folder / 'pipe.mp4'), 'unusable')
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(folder)  # the name of a socket must be short
        server.bind('socket.mp4')
        os.chdir(here)
    yield Special('a socket', str(folder / 'socket.mp4'), 'unusable')
    for name, target, expected in [
        ('a link to itself', 'a link to itself.mp4', 'system error'),
        ('a link to nothing', 'nothing.mp4', 'system error'),
        ('a link to a folder', 'folder.mp4', 'unusable'),
        ('a link to a device', '/dev/zero', 'unusable'),
        ('a link to a film', film, SIZE),
    ]:
        (folder / f'{name}.mp4').symlink_to(target)
        yield Special(name, str(folder / f'{name}.mp4'), expected)
    if os.getuid():
        path = str(shutil.copy(film, folder / 'forbidden.mp4'))
        os.chmod(path, 0)
        yield Special('no permission', path, 'system error')
    else:
        print('no permission: skipped, for root may read everything')
    yield Special('sound alone', write_sound(folder / 'sound.mp4'), 'unusable')
    none = write_film(folder / 'no frames.mp4', 'libx264', 'yuv420p', times=[])
    yield Special('no frames', none, 'unusable')


def rare_films(folder: Path, eight_k: bool) -> Iterator[Special]:
    """Films of rare sizes, formats and times."""

    def film(file: str, *args, **kwargs) -> str:
        return write_film(folder / file, *args, **kwargs)

    # decord pads the rows of tiny pictures, and then finds that they do not fit.
    yield Special('1x1', film('1x1.mp4', 'libx264', 'yuv444p', (1, 1)), (1, 1), 'unusable')
    yield Special('2x2', film('2x2.mp4', 'libx264', 'yuv420p', (2, 2)), (2, 2), 'unusable')
    yield Special('odd size', film('odd.mkv', 'ffv1', 'yuv420p', (35, 51)), (35, 51))
    if eight_k:
        options = dict(times=[0, 1], preset='ultrafast')
        large = film('8k.mp4', 'libx264', 'yuv420p', (4320, 7680), **options)
        yield Special('8K', large, (4320, 7680))
    yield Special('one frame', film('one.mp4', 'libx264', 'yuv420p', times=[0]), SIZE)
    yield Special('grey', film('grey.mkv', 'ffv1', 'gray'), SIZE)
    yield Special('alpha, packed', film('argb.mov', 'qtrle', 'argb'), SIZE)
    yield Special('alpha, PNG', film('png.mov', 'png', 'rgba'), SIZE)
    yield Special('alpha, planar', film('alpha.webm', 'libvpx-vp9', 'yuva420p'), SIZE)
    yield Special('10 bit', film('10bit.mp4', 'libx264', 'yuv420p10le'), SIZE)
    yield Special('4:4:4', film('444.mp4', 'libx264', 'yuv444p'), SIZE)
    turned = turn(film('turned.mp4', 'libx264', 'yuv420p', (64, 96)))
    yield Special('turned', turned, (96, 64))
    entitled = entitle(film('entitled.mp4', 'libx264', 'yuv420p'))
    yield Special('a title that is not UTF-8', entitled, SIZE)
    times = [0, 1, 2, 10, 11, 40, 41, 42, 43, 100, 1000, 1001]
    yield Special('variable rate', film('vfr.mp4', 'libx264', 'yuv420p', times=times), SIZE)
    gif = film('gif.mp4', 'gif', 'rgb8', container='gif')
    yield Special('GIF named .mp4', gif, SIZE, 'unusable')
    apng = film('apng.mp4', 'apng', 'rgb24', container='apng')
    yield Special('animated PNG named .mp4', apng, SIZE, 'unusable')
    for name, codec, pix_fmt in [('JPEG', 'mjpeg', 'yuvj420p'), ('PNG', 'png', 'rgb24')]:
        picture = film(f'{name}.mp4', codec, pix_fmt, times=[0], container='image2pipe')
        yield Special(f'{name} picture named .mp4', picture, SIZE, 'unusable')


def changed_files(folder: Path, film: str) -> Iterator[Special]:
    """Films to which something happens between opening and reading."""
    shorter = encode(folder / 'shorter.mp4', 1, size=(32, 32))
    text = folder / 'text.bin'
    text.write_text('no video ' * 100)
    replaced = [functools.partial(replace, by=by) for by in (shorter, str(text))]
    for name, meddle, expected in [
        ('deleted', os.remove, SIZE),
        ('deleted, decoder ended', [os.remove, end_decoder], 'system error'),
        ('replaced by another film', replaced[0], SIZE),
        ('replaced by another film, decoder ended', [replaced[0], end_decoder], 'unusable'),
        ('replaced by text', replaced[1], SIZE),
        ('replaced by text, decoder ended', [replaced[1], end_decoder], 'unusable'),
        ('cut short', cut_in_place, 'unusable'),
        ('overwritten with text', functools.partial(overwrite, by=str(text)), 'unusable'),
        ('decoder ended', end_decoder, SIZE),
    ]:
        steps = meddle if isinstance(meddle, list) else [meddle]
        path = str(shutil.copy(film, folder / f'to be {name}.mp4'))
        meddle = functools.partial(in_turn, steps=steps)
        yield Special(f'{name} after opening', path, expected, meddle=meddle)


def in_turn(path: str, steps: Sequence[Callable[[str], Any]]) -> None:
    for step in steps:
        step(path)


def replace(path: str, by: str) -> None:
    os.replace(shutil.copy(by, path + '.new'), path)


def overwrite(path: str, by: str) -> None:
    shutil.copyfile(by, path)


def cut_in_place(path: str) -> None:
    os.truncate(path, 2000)


def end_decoder(path: str) -> None:
    """End the decoder, as another video may that hangs or crashes it."""
    DecoderProcess.of_this_process().stop()


def special_files(folder: Path, eight_k: bool = False) -> Iterator[Special]:
    """All special files, each made when it is its turn."""
    folder.mkdir()
    names = list(odd_names(folder))
    yield from names
    yield from no_films(folder, names[0].path)
    yield from rare_films(folder, eight_k)
    # Long enough for its end to be read after opening.
    long = write_film(folder / 'long.mp4', 'libx264', 'yuv420p', times=range(300), g='12')
    yield from changed_files(folder, long)


# ------------------------------------------------------------ the whole table


class Tally:
    """Outcomes by kind of file and backend; failures with their files.

    Args:
        keep: folder of the files that fail.
    """

    def __init__(self, keep: Path) -> None:
        self.keep = keep
        self.counts: dict[tuple[str, str], collections.Counter] = {}
        self.reasons: collections.Counter = collections.Counter()
        self.failures: list[dict[str, str]] = []

    def add(self, kind: str, backend: str, outcome: Outcome, path: str, name: str) -> None:
        """Count an outcome.

        Args:
            kind: of the file, a row of the table.
            backend: that read it.
            outcome: of that.
            path: of the file.
            name: under which a file that fails is kept.
        """
        self.counts.setdefault((kind, backend), collections.Counter())[outcome.kind] += 1
        # No file here reads better a moment later.
        if outcome.kind in ('decoder crashed', 'timed out') or 'of the moment' in outcome.text:
            self.note(kind, backend, outcome, path, name)
        if outcome.kind == 'failure':
            self.failures.append(self.note(kind, backend, outcome, path, name))
        if outcome.kind != 'read':
            reason = outcome.text.replace(path, 'FILE').strip().splitlines()[-1]
            reason = re.sub(r'\[\d\d:\d\d:\d\d\] ', '', reason)
            self.reasons[f'{backend}: {reason[:200]}'] += 1

    def note(
        self, kind: str, backend: str, outcome: Outcome, path: str, name: str
    ) -> dict[str, str]:
        """Keep the file, say what came of it."""
        kept = self.keep / f'{backend} {outcome.kind} {name}'
        if os.path.isfile(path):
            shutil.copy(path, kept)
        print(f'{kind}, {backend}, {outcome.kind}: {kept}\n{outcome.text}', flush=True)
        return dict(kind=kind, backend=backend, file=str(kept), text=outcome.text)

    def fail(self, kind: str, text: str) -> None:
        print(f'{kind}: {text}', flush=True)
        self.failures.append(dict(kind=kind, text=text))

    def table(self) -> str:
        rows = [
            f'| damage | backend | files | {" | ".join(OUTCOMES)} |',
            '|---' * (3 + len(OUTCOMES)) + '|',
        ]
        for (kind, backend), count in sorted(self.counts.items()):
            numbers = ' | '.join(str(count[outcome]) for outcome in OUTCOMES)
            rows.append(f'| {kind} | {backend} | {sum(count.values())} | {numbers} |')
        return '\n'.join(rows)


def try_copies(
    tally: Tally,
    folder: Path,
    sources: Sequence[Path],
    backends: Sequence[str],
    copies: int,
    seed: int,
    attempt: Callable[..., Outcome] = attempt,
) -> None:
    """Read damaged copies of the sources, one at a time."""
    kinds = list(DAMAGES)
    for number in range(copies):
        kind = kinds[number % len(kinds)]
        data, suffix = damaged(kind, sources, random.Random(f'{seed} {number}'))
        path = folder / f'copy{suffix}'
        path.write_bytes(data)
        for backend in backends:
            outcome = attempt(str(path), backend, number)
            tally.add(kind, backend, outcome, str(path), f'{number}{suffix}')
        path.unlink()


def try_specials(
    tally: Tally,
    folder: Path,
    backend: str,
    eight_k: bool = False,
    attempt: Callable[..., Outcome] = attempt,
) -> list[str]:
    """Read all special files; those that do not end as expected, in words."""
    surprises = []
    for special in special_files(folder, eight_k):
        outcome = attempt(special.path, backend, 0, special.meddle)
        tally.add('special files', backend, outcome, special.path, f'{special.name}.mp4')
        if not special.is_as_expected(backend, outcome):
            surprises.append(f'{special.name}, {backend}: {outcome.kind}: {outcome.text[-500:]}')
    return surprises


# --------------------------------------------------------------- a data set


def as_item(results: dict) -> dict:
    img = results['imgs'][0]
    return dict(inputs=torch.zeros(1), size=img.shape[:2], path=results['filename'])


def check_data_set(folder: Path, backend: str, listed: Sequence[str] = ()) -> list[str]:
    """Go through a folder with a data loader; what is wrong with the account of what it skips.

    Args:
        folder: of films and other files.
        backend: that reads them.
        listed: names of the files to use. Defaults to those that the data set finds.
    """
    options = {}
    if listed:
        (folder / 'list.txt').write_text('\n'.join(listed))
        options = dict(ann_file='list.txt')
    dataset = UnlabelledVideoDataset(
        str(folder),
        pipeline=[
            dict(type='videomac_mm.OpenVideo', backend=backend, time_limit=TIME_LIMIT),
            dict(type='videomac_mm.SampleFramePair'),
            dict(type='videomac_mm.DecodeFrames'),
            as_item,
        ],
        max_bad_share=1,
        **options,
    )
    names = [dataset.get_data_info(i)['filename'] for i in range(len(dataset))]
    problems = []
    if listed and names != [os.path.join(folder, name) for name in listed]:
        problems.append(f'names {names} of {listed}')
    loader = DataLoader(dataset, batch_size=4, num_workers=2, collate_fn=pseudo_collate)
    num_items = sum(len(batch['inputs']) for batch in loader)
    if num_items != len(names):
        problems.append(f'{num_items} items of {len(names)} files')
    faults = dataset.faults.news()
    for fault in faults:
        if fault.path != names[fault.index] or fault.kind != 'data' or ': ' not in fault.reason:
            problems.append(f'{fault} of {names[fault.index]}')
    if sorted(fault.index for fault in faults) != dataset.bad_items:
        problems.append(f'{len(faults)} faults of {dataset.num_bad} videos')
    for index, name in enumerate(names):
        outcome = attempt(name, backend)
        if (index in dataset.bad_items) != (outcome.kind != 'read' or outcome.frames < 2):
            problems.append(f'{name} is bad: {index in dataset.bad_items}, but {outcome}')
    print(f'data set, {backend}: {len(names)} files, {len(faults)} skipped', flush=True)
    return problems


def check_data_sets(folder: Path, backend: str, eight_k: bool = False) -> list[str]:
    """`check_data_set` over all special files: those that are found, and a list of all."""
    specials = [item for item in special_files(folder, eight_k) if item.meddle is None]
    names = [os.path.basename(item.path) for item in specials]
    listed = [name for name in names if name.isprintable() and name == name.strip()]
    return [*check_data_set(folder, backend), *check_data_set(folder, backend, listed)]


# ------------------------------------------------------------- the long run


class Usage(NamedTuple):
    """What a process holds."""

    resident_mib: float
    files: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> 'Usage':
        status = Path(f'/proc/{pid}/status').read_text().splitlines()
        fields = dict(line.split(':', 1) for line in status)
        files = len(os.listdir(f'/proc/{pid}/fd'))
        return cls(int(fields['VmRSS'].split()[0]) / 1024, files, int(fields['Threads']))


def usage_of_both() -> tuple[Usage, Usage]:
    """Of this process, and of its decoder."""
    decoder = DecoderProcess.of_this_process()._process
    return Usage.of(os.getpid()), Usage.of(decoder.pid) if decoder else Usage(0, 0, 0)


def open_many(
    tally: Tally, paths: Sequence[str], backends: Sequence[str], opens: int, seed: int, rows: int
) -> list[tuple[int, Usage, Usage]]:
    """Open and read files in this process; what it and its decoder hold after how many opens.

    Args:
        tally: of the outcomes.
        paths: of the files, good and damaged.
        backends: that read them.
        opens: their number.
        seed: of the draws.
        rows: how often to look, after the first 5 %.
    """
    rng = random.Random(seed)
    start = opens // 20
    looks = {start + round(i * (opens - start) / (rows - 1)) for i in range(rows)}
    usages = []
    for number in range(1, opens + 1):
        path, backend = rng.choice(paths), rng.choice(backends)
        outcome = attempt(path, backend, rng.random())
        name = f'{number} {os.path.basename(path)}'
        tally.add('many opens', backend, outcome, path, name)
        if number in looks:
            usages.append((number, *usage_of_both()))
    return usages


def soak(
    tally: Tally, folder: Path, sources: Sequence[Path], backends: Sequence[str], args: Any
) -> list[tuple[int, Usage, Usage]]:
    """`open_many` over the smallest sources and damaged copies of them; prints a table."""
    small = sorted(sources, key=lambda source: source.stat().st_size)[:24]
    paths = [str(path) for path in small]
    for number, kind in enumerate(list(DAMAGES) * 3):
        data, suffix = damaged(kind, small, random.Random(f'{args.seed} soak {number}'))
        path = folder / f'soak{number}{suffix}'
        path.write_bytes(data)
        paths.append(str(path))
    usages = open_many(tally, paths, backends, args.opens, args.seed, rows=6)
    print('| opens | MiB here | files | threads | MiB of the decoder | files | threads |')
    print('|---|---|---|---|---|---|---|')
    for number, *both in usages:
        cells = ' | '.join(f'{u.resident_mib:.0f} | {u.files} | {u.threads}' for u in both)
        print(f'| {number} | {cells} |')
    for problem in growth(usages):
        tally.fail('many opens', problem)
    return usages


def growth(usages: Sequence[tuple[int, Usage, Usage]]) -> list[str]:
    """Of which files or threads one of the two processes holds more and more."""
    problems = []
    for process, (first, *later) in zip(('this process', 'the decoder'), list(zip(*usages))[1:]):
        for what in ('files', 'threads'):
            most = max(getattr(usage, what) for usage in later)
            if most > getattr(first, what) + 4:  # the decoder keeps two videos open
                problems.append(f'{process} holds up to {most} {what}, at first {first}')
    return problems


def find_sources(folders: Sequence[str], made: Sequence[Path]) -> list[Path]:
    found = [path for folder in folders for path in sorted(Path(folder).iterdir())]
    small = [path for path in found if path.is_file() and 0 < path.stat().st_size <= MAX_BYTES]
    return [*(path for path in small if path.suffix in EXTENSIONS), *made]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--copies', type=int, default=1000, help='damaged ones')
    parser.add_argument('--backend', nargs='+', default=['pyav'], choices=['pyav', 'decord'])
    parser.add_argument('--source', nargs='*', default=[], help='folders of real clips')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--opens', type=int, default=10000, help='of the long run')
    parser.add_argument('--json', help='file for the numbers')
    args = parser.parse_args()
    tally, usages, surprises = Tally(Path(tempfile.mkdtemp(prefix='fuzz_videos_'))), [], []
    print(f'files that fail, crash or hang the decoder are kept in {tally.keep}', flush=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / 'films').mkdir()
        sources = find_sources(args.source, films(folder / 'films'))
        watched = WatchedAttempts()
        for backend in args.backend:
            surprises += try_specials(tally, folder / backend, backend, True, watched)
        try_copies(tally, folder, sources, args.backend, args.copies, args.seed, watched)
        watched.close()
        for backend in args.backend:
            try:
                problems = check_data_sets(folder / f'data set {backend}', backend, True)
            except Exception:
                problems = [traceback.format_exc()]
            for problem in problems:
                tally.fail(f'data set, {backend}', problem)
        if args.opens:
            usages = soak(tally, folder, sources, args.backend, args)
    print(tally.table())
    print('special files that did not end as expected:', *(surprises or ['none']), sep='\n  ')
    print(f'{len(tally.failures)} failures')
    if args.json:
        content = dict(
            rows=[dict(kind=k, backend=b, **n) for (k, b), n in tally.counts.items()],
            reasons=dict(tally.reasons.most_common()),
            failures=tally.failures,
            surprises=surprises,
            usages=[(number, *(u._asdict() for u in both)) for number, *both in usages],
        )
        Path(args.json).write_text(json.dumps(content, indent=1))
    sys.exit(bool(tally.failures or surprises))


if __name__ == '__main__':
    main()
