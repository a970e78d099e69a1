from videomac_mm.datasets.frame_pairs import FramePairDataset
from videomac_mm.datasets.synthetic import (
    RenderFrames,
    SyntheticVideo,
    SyntheticVideoDataset,
)
from videomac_mm.datasets.transforms import (
    ForEachClip,
    FrameFolderDecode,
    OpenVideo,
    SampleFramePair,
    UnusableVideoError,
)

__all__ = [
    'ForEachClip',
    'FrameFolderDecode',
    'FramePairDataset',
    'OpenVideo',
    'RenderFrames',
    'SampleFramePair',
    'SyntheticVideo',
    'SyntheticVideoDataset',
    'UnusableVideoError',
]
