"""Readers of video files: one small protocol, whatever library decodes.

This folder imports nothing of the package, so that a decoding process starts fast.
"""

from .base import RawFrame, VideoReader
from .faults import UnusableVideoError, fault_of
from .opening import chosen_backend, open_video

__all__ = [
    'RawFrame',
    'UnusableVideoError',
    'VideoReader',
    'chosen_backend',
    'fault_of',
    'open_video',
]
