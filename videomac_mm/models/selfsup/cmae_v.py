"""CMAE-V: masked autoencoders of clips that tell videos apart."""

import torch
from torch import Tensor, nn

from videomac_mm.models.selfsup.videomae import VideoMAE
from videomac_mm.models.target_network import HasTarget, TargetNetwork
from videomac_mm.registry import MODELS
from videomac_mm.sparse import VisiblePatches


@MODELS.register_module()
class CMAEV(HasTarget, VideoMAE):
    """`CMAE-V: Contrastive Masked Autoencoders for Video Action Recognition
    <https://arxiv.org/abs/2301.06018>`_. A re-implementation: no code was published.

    The online network reconstructs the hidden tubelets of a clip as VideoMAE does. The mean of
    its visible tokens must also find, among all videos of the batch, the clip that starts a
    little later in its own, as the moving average of the network (the target) sees it whole.
    `TargetEMAHook` moves the target.

    Args:
        backbone, neck, head, mask_generator, data_preprocessor, init_cfg: as `VideoMAE`.
        projector: from tokens to the space of comparison; has a target copy.
            ``mmpretrain.NonLinearNeck``.
        contrast_head: a predictor and the loss. `ContrastHead`, which takes the keys of all
            processes.

    Raises:
        ValueError: as `VideoMAE`.
    """

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        head: dict,
        projector: dict,
        contrast_head: dict,
        mask_generator: dict = dict(type='videomac_mm.TubeMask'),
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(backbone, neck, head, mask_generator, data_preprocessor, init_cfg)
        self.projector = MODELS.build(projector)
        self.contrast_head = MODELS.build(contrast_head)
        self.target = TargetNetwork(backbone=self.backbone, projector=self.projector)
        self.train()

    def train(self, mode: bool = True) -> 'CMAEV':
        """The target's projector, too, normalises by its batch, as that of CMAE does."""
        super().train(mode)
        self.target.projector.train(mode)
        return self

    def loss(
        self,
        inputs: Tensor,
        data_samples: list | None = None,
        mask: Tensor | VisiblePatches | None = None,
    ) -> dict[str, Tensor]:
        """The error of hidden tubelets, and of telling videos apart.

        Args:
            inputs (B, 2, C, T, H, W): a clip and a later one of each video, normalised.
            data_samples: unused.
            mask (B, t, h, w): bool, True = hidden, of the first clip, or its geometry; drawn at
                random if None.

        Returns:
            ``loss_pixel`` and ``loss_contrast``.

        Raises:
            ValueError, TypeError: for inputs or a mask of the wrong shape or type.
        """
        clips, later_clips = self._pairs(inputs)
        patches = self.patches(clips, mask)
        tokens = self.backbone(clips, patches)
        losses = self.head.loss(self.neck(tokens, patches), self.pixels(clips), patches)
        with torch.no_grad():
            later_tokens = self.target.backbone(later_clips, patches.everything())
            (key,) = self.target.projector([later_tokens.mean(1)])
        (query,) = self.projector([tokens.mean(1)])
        losses['loss_contrast'] = self.contrast_head.loss(query, key)
        return losses

    def reconstruct(
        self, inputs: Tensor, mask: Tensor | VisiblePatches | None = None
    ) -> dict[str, Tensor]:
        """As `MaskedAutoencoder.reconstruct`, of the first clip of each video.

        Args:
            inputs (B, V, C, T, H, W): V is 1 or 2.
            mask (B, t, h, w): as in `loss`.
        """
        return super().reconstruct(inputs[:, :1] if inputs.ndim == 6 else inputs, mask)

    def _pairs(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The first and the later clip of each video, each (B, C, T, H, W)."""
        if inputs.ndim != 6 or inputs.shape[1] != 2:
            raise ValueError(
                'CMAE-V needs two clips of each video (B, 2, C, T, H, W), got a tensor of shape '
                f'{tuple(inputs.shape)}; SampleClips(max_shift=...) gives them'
            )
        return self.clips(inputs).unflatten(0, (-1, 2)).unbind(1)
