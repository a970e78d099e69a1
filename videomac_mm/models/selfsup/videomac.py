"""VideoMAC: masked autoencoders of two frames that must agree."""

import torch
from mmpretrain.models.selfsup import BaseSelfSupervisor
from torch import Tensor, nn

from videomac_mm.models.pixels import to_pixels
from videomac_mm.models.target_network import HasTarget, TargetNetwork
from videomac_mm.registry import MODELS, TASK_UTILS
from videomac_mm.sparse import VisiblePatches


@MODELS.register_module()
class VideoMAC(HasTarget, BaseSelfSupervisor):
    """`VideoMAC: Video Masked Autoencoders Meet ConvNets
    <https://arxiv.org/abs/2402.19082>`_.

    The online network sees the visible patches of a frame, its moving average (the target)
    those of a later frame under the same mask. Both reconstruct what is hidden, and the
    online network is drawn to what the target predicts. `TargetEMAHook` moves the target.

    Args:
        backbone: a sparse encoder, ``forward(x, mask) -> tuple`` of maps, where ``mask`` is
            given as `VisiblePatches`.
        neck: the decoder, ``forward(x, mask) -> (B, L, P)``.
        head: `PixelHead`.
        mask_generator: Defaults to `RandomPatchMask`: 32-pixel patches, 75 % hidden.
        consistency_loss: Defaults to `ConsistencyLoss` with weight 1.
        data_preprocessor: must be written out: ``mmaction.ActionDataPreprocessor`` with
            ``format_shape='NCTHW'``.
        init_cfg: initialisation. Defaults to None.
    """

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        head: dict,
        mask_generator: dict = dict(type='videomac_mm.RandomPatchMask'),
        consistency_loss: dict = dict(type='videomac_mm.ConsistencyLoss'),
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(
            backbone, neck, head, data_preprocessor=data_preprocessor, init_cfg=init_cfg
        )
        self.mask_generator = TASK_UTILS.build(mask_generator)
        self.consistency_loss = MODELS.build(consistency_loss)
        self.target = TargetNetwork(backbone=self.backbone, neck=self.neck)

    def loss(
        self,
        inputs: Tensor,
        data_samples: list | None = None,
        mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The three terms; their sum is the total of the paper.

        Args:
            inputs (B, V, C, 2, H, W): V pairs of frames per video, normalised.
            data_samples: unused.
            mask (B*V, h, w): bool, True = hidden, the same for both frames; drawn at random
                if None.

        Returns:
            ``loss_online``, ``loss_target`` (reported: no gradient flows from it) and
            ``loss_consistency``.

        Raises:
            ValueError, TypeError: for inputs or a mask of the wrong shape or type.
        """
        frame, later_frame = self._frames(inputs)
        mask = self._mask(frame, mask)
        pred, target_pred = self._predict(frame, later_frame, mask)
        return dict(
            loss_online=self.head.loss(pred, frame, mask),
            loss_target=self.head.loss(target_pred, later_frame, mask),
            loss_consistency=self.consistency_loss(pred, target_pred, mask),
        )

    @torch.no_grad()
    def reconstruct(self, inputs: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Show what the networks see and what they make of it.

        Args:
            inputs (B, V, C, 2, H, W): as in `loss`.
            mask (B*V, h, w): as in `loss`.

        Returns:
            ``original``, ``masked`` (hidden pixels have the mean colour) and ``predicted``
            (pasted into the visible pixels), each (B*V, C, 2, H, W) in [0, 1]; the first frame
            is the online network's, the second the target's.
        """
        frames = self._frames(inputs)
        mask = self._mask(frames[0], mask)
        preds = self._predict(*frames, mask)
        predicted = [self.head.picture(*pair, mask) for pair in zip(preds, frames)]
        original = torch.stack(frames, 2)  # (B*V, C, 2, H, W)
        hidden = nn.functional.interpolate(mask[:, None].float(), original.shape[-2:])
        pictures = dict(
            original=original,
            masked=original.masked_fill(hidden[:, :, None].bool(), 0.0),
            predicted=torch.stack(predicted, 2),
        )
        return {
            name: to_pixels(picture, self.data_preprocessor).clamp(0, 1)
            for name, picture in pictures.items()
        }

    def extract_feat(self, inputs: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Features of the online backbone.

        Args:
            inputs (B, C, H, W): images, or (B, V, C, T, H, W): clips, whose frames become
                B*V*T images.
            mask: for as many images; True = hidden.

        Returns:
            As the backbone.
        """
        if inputs.ndim == 6:
            inputs = inputs.transpose(2, 3).flatten(0, 2)
        return self.backbone(inputs, mask)

    def _predict(self, frame: Tensor, later_frame: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        patches = VisiblePatches(mask)  # its tables serve both networks
        pred = self.neck(self.backbone(frame, patches)[-1], mask)
        with torch.no_grad():
            features = self.target.backbone(later_frame, patches)[-1]
            target_pred = self.target.neck(features, mask)
        return pred, target_pred

    def _frames(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        if inputs.ndim != 6 or inputs.shape[3] != 2:
            raise ValueError(
                'VideoMAC needs pairs of frames (B, V, C, 2, H, W), got a tensor of shape '
                f'{tuple(inputs.shape)}'
            )
        return inputs.flatten(0, 1).unbind(2)

    def _mask(self, frame: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return self.mask_generator(frame)
        return self.mask_generator.check(mask, frame)
