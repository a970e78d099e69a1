"""Batch norm over the batches of all processes, on any device."""

import torch
from mmengine.dist import get_rank, get_world_size
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

from videomac_mm.registry import MODELS


@MODELS.register_module()
class GatheredBatchNorm1d(nn.BatchNorm1d):
    """Batch norm of vectors (B, C) that several processes train as one would the whole batch.

    torch's ``SyncBatchNorm`` exchanges statistics and runs on GPUs only; here the vectors
    themselves are gathered, which is as good for a few of them. Every process must have B.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C) -> (B, C)."""
        if not self.training or get_world_size() == 1:
            return super().forward(x)
        first = get_rank() * len(x)
        return super().forward(torch.cat(all_gather(x)))[first : first + len(x)]
