"""VideoMAE: masked autoencoders of clips."""

import torch
from mmpretrain.models.selfsup import BaseSelfSupervisor
from torch import Tensor, nn

from videomac_mm.models.pixels import to_pixels
from videomac_mm.registry import MODELS, TASK_UTILS


@MODELS.register_module()
class VideoMAE(BaseSelfSupervisor):
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
        data_preprocessor: must be written out: ``mmaction.ActionDataPreprocessor`` with
            ``format_shape='NCTHW'``.
        init_cfg: initialisation. Defaults to None.

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
        super().__init__(
            backbone, neck, head, data_preprocessor=data_preprocessor, init_cfg=init_cfg
        )
        self.mask_generator = TASK_UTILS.build(mask_generator)
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
        mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The error of hidden tubelets.

        Args:
            inputs (B, V, C, T, H, W): V clips per video, normalised.
            data_samples: unused.
            mask (B*V, t, h, w): bool, True = hidden; drawn at random if None.

        Returns:
            ``loss_pixel``.

        Raises:
            ValueError, TypeError: for inputs or a mask of the wrong shape or type.
        """
        clips = self._clips(inputs)
        mask = self._mask(clips, mask)
        preds = self.neck(self.backbone(clips, mask), mask)
        return self.head.loss(preds, to_pixels(clips, self.data_preprocessor), mask)

    @torch.no_grad()
    def reconstruct(self, inputs: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Show what the network sees and what it makes of it.

        Args:
            inputs, mask: as in `loss`.

        Returns:
            ``original``, ``masked`` and ``predicted``, each (B*V, C, T, H, W) in [0, 1]; see
            `VideoPixelHead.pictures`.
        """
        clips = self._clips(inputs)
        mask = self._mask(clips, mask)
        preds = self.neck(self.backbone(clips, mask), mask)
        return self.head.pictures(preds, to_pixels(clips, self.data_preprocessor), mask)

    def extract_feat(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features of the backbone.

        Args:
            inputs (B, C, T, H, W): clips, or (B, V, C, T, H, W), which become B*V.
            mask: for as many clips; True = hidden.

        Returns:
            As the backbone.
        """
        return self.backbone(inputs.flatten(0, 1) if inputs.ndim == 6 else inputs, mask)

    def _clips(self, inputs: Tensor) -> Tensor:
        if inputs.ndim != 6:
            raise ValueError(
                f'{type(self).__name__} needs clips (B, V, C, T, H, W), got a tensor of shape '
                f'{tuple(inputs.shape)}'
            )
        return inputs.flatten(0, 1)

    def _mask(self, clips: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return self.mask_generator(clips)
        return self.mask_generator.check(mask, clips)
