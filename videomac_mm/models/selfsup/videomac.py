"""VideoMAC: masked autoencoders of two frames that must agree."""

import torch
from torch import Tensor, nn

from videomac_mm.models.selfsup.base import MaskedAutoencoder
from videomac_mm.models.target_network import HasTarget, TargetNetwork
from videomac_mm.registry import MODELS
from videomac_mm.sparse import VisiblePatches


@MODELS.register_module()
class VideoMAC(HasTarget, MaskedAutoencoder):
    """`VideoMAC: Video Masked Autoencoders Meet ConvNets
    <https://arxiv.org/abs/2402.19082>`_.

    The online network sees the visible patches of a frame, its moving average (the target)
    those of a later frame under the same mask. Both reconstruct what is hidden, and the
    online network is drawn to what the target predicts. `TargetEMAHook` moves the target.

    Args:
        backbone: a sparse encoder of frames, ``forward(x, mask) -> tuple`` of maps.
        neck: the decoder, ``forward(x, mask) -> (B, L, P)``.
        head: `PixelHead`.
        mask_generator: Defaults to `RandomPatchMask`: 32-pixel patches, 75 % hidden.
        consistency_loss: Defaults to `ConsistencyLoss` with weight 1.
        data_preprocessor, init_cfg: as `MaskedAutoencoder`.
    """

    encodes_frames = True

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
        super().__init__(backbone, neck, head, mask_generator, data_preprocessor, init_cfg)
        self.consistency_loss = MODELS.build(consistency_loss)
        self.target = TargetNetwork(backbone=self.backbone, neck=self.neck)

    def loss(
        self,
        inputs: Tensor,
        data_samples: list | None = None,
        mask: Tensor | VisiblePatches | None = None,
    ) -> dict[str, Tensor]:
        """The three terms; their sum is the total of the paper.

        Args:
            inputs (B, V, C, 2, H, W): V pairs of frames per video, normalised.
            data_samples: unused.
            mask (B*V, h, w): bool, True = hidden, the same for both frames, or its geometry;
                drawn at random if None.

        Returns:
            ``loss_online``, ``loss_target`` (reported: no gradient flows from it) and
            ``loss_consistency``.

        Raises:
            ValueError, TypeError: for inputs or a mask of the wrong shape or type.
        """
        clips = self.clips(inputs)
        patches = self.patches(clips, mask)
        pred, target_pred = self._predict(clips, patches)
        frame, later_frame = clips.unbind(2)
        return dict(
            loss_online=self.head.loss(pred, frame, patches),
            loss_target=self.head.loss(target_pred, later_frame, patches),
            loss_consistency=self.consistency_loss(pred, target_pred, patches),
        )

    def pictures(self, clips: Tensor, patches: VisiblePatches) -> dict[str, Tensor]:
        """The first frame is the online network's, the second the target's.

        Hidden pixels of ``masked`` have the mean colour.
        """
        pairs = zip(self._predict(clips, patches), clips.unbind(2))
        predicted = torch.stack([self.head.picture(*pair, patches) for pair in pairs], 2)
        hidden = nn.functional.interpolate(patches.mask[:, None].float(), clips.shape[-2:])
        masked = clips.masked_fill(hidden[:, :, None].bool(), 0.0)
        pictures = dict(original=clips, masked=masked, predicted=predicted)
        return {name: self.pixels(picture) for name, picture in pictures.items()}

    def clips(self, inputs: Tensor) -> Tensor:
        """As `MaskedAutoencoder.clips`; they must be pairs of frames."""
        if inputs.ndim != 6 or inputs.shape[3] != 2:
            raise ValueError(
                'VideoMAC needs pairs of frames (B, V, C, 2, H, W), got a tensor of shape '
                f'{tuple(inputs.shape)}'
            )
        return super().clips(inputs)

    def _predict(self, clips: Tensor, patches: VisiblePatches) -> tuple[Tensor, Tensor]:
        """All patches of the first frames by the online network, of the later by the target."""
        frame, later_frame = clips.unbind(2)
        pred = self.neck(self.backbone(frame, patches)[-1], patches)
        with torch.no_grad():
            features = self.target.backbone(later_frame, patches)[-1]
            target_pred = self.target.neck(features, patches)
        return pred, target_pred
