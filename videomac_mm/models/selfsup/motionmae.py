"""MotionMAE: masked autoencoders of what is seen and of how it moves."""

from torch import nn

from videomac_mm.models.selfsup.videomae import VideoMAE
from videomac_mm.registry import MODELS


@MODELS.register_module()
class MotionMAE(VideoMAE):
    """`Self-supervised Video Representation Learning with Motion-Aware Masked Autoencoders
    <https://arxiv.org/abs/2210.04154>`_. A re-implementation: no code was published.

    VideoMAE whose decoder also predicts how hidden pixels change: ``loss_motion`` beside
    ``loss_pixel``. With ``neck.shared`` both predictions come out of one decoder ("Sha"),
    without it each has its own ("Ind").

    Args:
        backbone, neck, mask_generator, data_preprocessor, init_cfg: as `VideoMAE`.
        head: `VideoPixelHead` with the targets 'pixel' and 'motion'.

    Raises:
        ValueError: as `VideoMAE`; if the head leaves out a target.
    """

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        head: dict,
        mask_generator: dict = dict(type='videomac_mm.TubeMask'),
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(backbone, neck, head, mask_generator, data_preprocessor, init_cfg)
        if set(self.head.targets) != {'pixel', 'motion'}:
            raise ValueError(
                f"MotionMAE needs a head with targets=('pixel', 'motion'), got {self.head.targets}"
            )
