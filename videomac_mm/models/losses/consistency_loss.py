"""Agreement of the online and the target network on what is hidden."""

from mmpretrain.models.losses import PixelReconstructionLoss
from torch import Tensor

from videomac_mm.models.masking import hidden_places
from videomac_mm.registry import MODELS
from videomac_mm.sparse import VisiblePatches


@MODELS.register_module()
class ConsistencyLoss(PixelReconstructionLoss):
    """VideoMAC's third term (arXiv 2402.19082, eq. 5): ``γ · mean ‖online − sg(target)‖² / P``.

    Args:
        loss_weight: γ. Defaults to 1.
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__(criterion='L2')
        self.loss_weight = loss_weight

    def forward(self, pred: Tensor, target_pred: Tensor, mask: Tensor | VisiblePatches) -> Tensor:
        """Compare two predictions over hidden patches.

        Args:
            pred (B, L, P): of the online network.
            target_pred (B, L, P): of the target network; gets no gradient.
            mask (B, h, w): bool, True = hidden; or its geometry.

        Returns:
            A scalar.
        """
        if pred.dtype.itemsize < 4:
            pred, target_pred = pred.float(), target_pred.float()
        loss = super().forward(pred, target_pred.detach(), hidden_places(pred, mask))
        return self.loss_weight * loss
