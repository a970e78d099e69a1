"""VideoMAE: masked autoencoders of clips."""

from torch import Tensor, nn

from videomac_mm.models.selfsup.base import MaskedAutoencoder
from videomac_mm.registry import MODELS
from videomac_mm.sparse import VisiblePatches


@MODELS.register_module()
class VideoMAE(MaskedAutoencoder):
    """`VideoMAE: Masked Autoencoders are Data-Efficient Learners for Self-Supervised Video
    Pre-Training <https://arxiv.org/abs/2203.12602>`_.

    The encoder sees the visible tubelets of a clip; a light decoder predicts the pixels of the
    hidden ones.

    Args:
        backbone: the encoder, ``forward(clips, mask) -> (B, n_visible, C)``; must end in a norm
            (``use_mean_pooling=False``).
        neck: `TokenDecoder`.
        head: `VideoPixelHead`.
        mask_generator: Defaults to `TubeMask`: tubes of 16-pixel patches, 90 % hidden.
        data_preprocessor, init_cfg: as `MaskedAutoencoder`.

    Raises:
        ValueError: if neck and head do not fit each other, or the encoder pools.
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
        if self.neck.pred_dims != self.head.pred_dims:
            raise ValueError(
                f'the neck predicts {self.neck.pred_dims} values per token, the head compares '
                f'{self.head.pred_dims}'
            )
        if getattr(self.backbone, 'fc_norm', None) is not None:
            raise ValueError('pre-training needs a backbone with use_mean_pooling=False')

    def loss(
        self,
        inputs: Tensor,
        data_samples: list | None = None,
        mask: Tensor | VisiblePatches | None = None,
    ) -> dict[str, Tensor]:
        """The error of hidden tubelets.

        Args:
            inputs (B, V, C, T, H, W): V clips per video, normalised.
            data_samples: unused.
            mask (B*V, t, h, w): bool, True = hidden, or its geometry; drawn at random if None.

        Returns:
            ``loss_pixel``.

        Raises:
            ValueError, TypeError: for inputs or a mask of the wrong shape or type.
        """
        clips = self.clips(inputs)
        patches = self.patches(clips, mask)
        preds = self.neck(self.backbone(clips, patches), patches)
        return self.head.loss(preds, self.pixels(clips), patches)

    def pictures(self, clips: Tensor, patches: VisiblePatches) -> dict[str, Tensor]:
        """See `VideoPixelHead.pictures`."""
        preds = self.neck(self.backbone(clips, patches), patches)
        return self.head.pictures(preds, self.pixels(clips), patches)
