from videomac_mm.datasets.frame_pairs import FramePairDataset
from videomac_mm.datasets.label_propagation import (
    DAVISDataset,
    JHMDBDataset,
    SyntheticLabelDataset,
    VideoSampler,
    VIPDataset,
)
from videomac_mm.datasets.label_propagation_transforms import (
    LoadFrame,
    PackFrame,
    ResizeShortSide,
)
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
    'DAVISDataset',
    'ForEachClip',
    'FrameFolderDecode',
    'FramePairDataset',
    'JHMDBDataset',
    'LoadFrame',
    'OpenVideo',
    'PackFrame',
    'RenderFrames',
    'ResizeShortSide',
    'SampleFramePair',
    'SyntheticLabelDataset',
    'SyntheticVideo',
    'SyntheticVideoDataset',
    'UnusableVideoError',
    'VIPDataset',
    'VideoSampler',
]
