"""Small films with what difficult files have in them."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from videomac_mm.datasets import SyntheticVideo


def encode(
    path: Path,
    num_frames: int = 40,
    pix_fmt: str = 'yuv420p',
    size: tuple[int, int] = (48, 64),
    title: str = '',
    **options,
) -> str:
    """H.264 with B-frames that are referred to and such that are not, a key frame every 12."""
    video = SyntheticVideo(0, num_frames, size)
    options = {'g': '12', 'bf': '3', 'b-pyramid': 'normal', 'sc_threshold': '0', **options}
    with av.open(str(path), 'w') as container:
        container.metadata['title'] = title
        stream = container.add_stream('libx264', rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.time_base = Fraction(1, 25)
        for t in range(num_frames):
            frame = av.VideoFrame.from_ndarray(video.frame(t), format='rgb24')
            frame.pts = t
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


def in_sequence(path: str) -> list[np.ndarray]:
    """All frames in the order in which a decoder gives them out."""
    with av.open(path) as container:
        return [frame.to_ndarray(format='rgb24') for frame in container.decode(video=0)]
