"""Pixels as the target of masked pre-training."""

import torch.nn.functional as F
from mmpretrain.models.heads import MAEPretrainHead
from torch import Tensor

from videomac_mm.models.masking import hidden_places
from videomac_mm.registry import MODELS
from videomac_mm.sparse import VisiblePatches


@MODELS.register_module()
class PixelHead(MAEPretrainHead):
    """mmpretrain's MAE head for images that need not be square, and the way back to pictures.

    The target of a patch is all its pixels and channels together, with ``norm_pix``
    normalised by their mean and unbiased variance: ``(x - mean) / sqrt(var + 1e-6)``.

    Args:
        loss: config of the loss; defaults to ``mmpretrain.PixelReconstructionLoss`` with
            'L2': the error of a patch averaged over its values, then over hidden patches.
        norm_pix: normalise each patch. Defaults to True.
        patch_size: side of a patch in pixels. Defaults to 32.
        in_channels: channels of the image. Defaults to 3.
    """

    def __init__(
        self,
        loss: dict = dict(type='mmpretrain.PixelReconstructionLoss', criterion='L2'),
        norm_pix: bool = True,
        patch_size: int = 32,
        in_channels: int = 3,
    ) -> None:
        super().__init__(loss, norm_pix, patch_size, in_channels)

    def patchify(self, imgs: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, L, P); P in the order row, column, channel."""
        p = self.patch_size
        x = imgs.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # (B, C, h, p, w, p)
        return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)

    def unpatchify(self, x: Tensor, grid: tuple) -> Tensor:
        """(B, L, P) -> (B, C, H, W), for a patch grid (h, w)."""
        p = self.patch_size
        x = x.unflatten(2, (p, p, self.in_channels)).unflatten(1, grid)
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)

    def construct_target(self, target: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, L, P), normalised with ``norm_pix``."""
        target = self.patchify(target)
        if not self.norm_pix:
            return target
        # A layer norm is one pass, but its variance is the biased one.
        share = 1 - 1 / target.shape[-1]
        return F.layer_norm(target, target.shape[-1:], eps=1e-6 * share) * share**0.5

    def loss(self, pred: Tensor, target: Tensor, mask: Tensor | VisiblePatches) -> Tensor:
        """The mean error over hidden patches.

        Args:
            pred (B, L, P): predictions.
            target (B, C, H, W): images.
            mask (B, h, w): bool, True = hidden; or its geometry.

        Returns:
            A scalar; with ``norm_pix``, 1.0 is about what predicting every patch's mean costs.
        """
        pred = pred if pred.dtype == target.dtype else pred.float()
        return super().loss(pred, target, hidden_places(pred, mask))

    def picture(self, pred: Tensor, images: Tensor, mask: Tensor | VisiblePatches) -> Tensor:
        """Paste predictions into the hidden patches of images.

        Args:
            pred (B, L, P), images (B, C, H, W), mask (B, h, w): as in `loss`.

        Returns:
            (B, C, H, W) in the range of ``images``. Under ``norm_pix`` a patch takes mean and
            variance from the image, since the network does not predict them.
        """
        patches = VisiblePatches.of(mask)
        original = self.patchify(images)
        pred = pred.to(original.dtype)
        if self.norm_pix:
            var = original.var(-1, keepdim=True)
            pred = pred * (var + 1e-6).sqrt() + original.mean(-1, keepdim=True)
        pasted = pred.where(hidden_places(pred, patches)[..., None], original)
        return self.unpatchify(pasted, patches.grid)
