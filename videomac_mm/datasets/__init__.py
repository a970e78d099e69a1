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
from videomac_mm.datasets.places import Place, PlacedItems, ResumableSampler
from videomac_mm.datasets.synthetic import (
    RenderFrames,
    SyntheticVideo,
    SyntheticVideoDataset,
)
from videomac_mm.datasets.transforms import (
    DecodeFrames,
    ForEachClip,
    FrameFolderDecode,
    FuseCrops,
    OpenResidentVideo,
    OpenVideo,
    PackCrops,
    SampleClips,
    SampleFramePair,
    UnusableVideoError,
)
from videomac_mm.datasets.unlabelled_videos import UnlabelledVideoDataset

__all__ = [
    'DAVISDataset',
    'DecodeFrames',
    'ForEachClip',
    'FrameFolderDecode',
    'FuseCrops',
    'JHMDBDataset',
    'LoadFrame',
    'OpenResidentVideo',
    'OpenVideo',
    'PackCrops',
    'PackFrame',
    'Place',
    'PlacedItems',
    'RenderFrames',
    'ResizeShortSide',
    'ResumableSampler',
    'SampleClips',
    'SampleFramePair',
    'SyntheticLabelDataset',
    'SyntheticVideo',
    'SyntheticVideoDataset',
    'UnlabelledVideoDataset',
    'UnusableVideoError',
    'VIPDataset',
    'VideoSampler',
]
