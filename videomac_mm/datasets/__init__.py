from videomac_mm.datasets.cropping import ForEachClip, FuseCrops, PackCrops
from videomac_mm.datasets.decoding import (
    DecodeFrames,
    FrameFolderDecode,
    OpenResidentVideo,
    OpenVideo,
)
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
from videomac_mm.datasets.readers import UnusableVideoError, open_video
from videomac_mm.datasets.repeated_videos import RepeatAugDataset
from videomac_mm.datasets.sampling import SampleClips, SampleFramePair
from videomac_mm.datasets.storage import FsspecBackend
from videomac_mm.datasets.synthetic import (
    RenderFrames,
    SyntheticVideo,
    SyntheticVideoDataset,
)
from videomac_mm.datasets.unlabelled_videos import UnlabelledVideoDataset

__all__ = [
    'DAVISDataset',
    'DecodeFrames',
    'ForEachClip',
    'FsspecBackend',
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
    'RepeatAugDataset',
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
    'open_video',
]
