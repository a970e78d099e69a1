"""Repeated augmentation of labelled videos, whatever reads them."""

from mmaction.datasets import RepeatAugDataset as _RepeatAugDataset
from mmaction.datasets import VideoDataset

from videomac_mm.registry import DATASETS


@DATASETS.register_module()
class RepeatAugDataset(_RepeatAugDataset):
    """Labelled videos, each decoded once and augmented several times (arXiv 1901.09335).

    ``mmaction.RepeatAugDataset`` for pipelines that begin with `OpenVideo`, a sampler of frames
    and `DecodeFrames`; it takes decord alone. ``mmaction.repeat_pseudo_collate`` must make the
    batches.

    Args:
        pipeline: transforms.
        num_repeats: how often each video is augmented. Defaults to 4.
        sample_once: take the same frames each time. Defaults to False.
        **kwargs: of ``mmaction.VideoDataset``.
    """

    def __init__(
        self,
        *args,
        pipeline: list[dict],
        num_repeats: int = 4,
        sample_once: bool = False,
        **kwargs,
    ) -> None:
        # The parent's own constructor wants decord's transforms.
        VideoDataset.__init__(self, *args, pipeline=pipeline, test_mode=False, **kwargs)
        self.num_repeats = num_repeats
        self.sample_once = sample_once
