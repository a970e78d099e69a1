"""Telling the samples of a batch apart."""

import torch
import torch.nn.functional as F
from mmengine.dist import all_gather, get_rank
from mmpretrain.models.heads import MoCoV3Head
from torch import Tensor

from videomac_mm.registry import MODELS


@MODELS.register_module()
class ContrastHead(MoCoV3Head):
    """mmpretrain's head of MoCo v3 (arXiv 2104.02057): same arguments, weights and results.

    mmpretrain copies labels from the CPU in every step, and each copy waits until a GPU has done
    all its work. Here the labels are made on the GPU.
    """

    def loss(self, base_out: Tensor, momentum_out: Tensor) -> Tensor:
        """Compare queries with the keys of all processes.

        Args:
            base_out (B, C): of the online network; queries after the predictor.
            momentum_out (B, C): keys of the target network, which get no gradient.

        Returns:
            A scalar.
        """
        (query,) = self.predictor([base_out])
        keys = torch.cat(all_gather(F.normalize(momentum_out, dim=1)))
        logits = F.normalize(query, dim=1) @ keys.T / self.temperature
        first = get_rank() * len(logits)  # keys come in the order of processes
        labels = torch.arange(first, first + len(logits), device=logits.device)
        return self.loss_module(logits, labels)
