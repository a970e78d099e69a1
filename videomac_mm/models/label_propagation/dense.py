"""Label propagation by the matrix of all pairs of cells."""

import torch.nn.functional as F
from torch import Tensor


def propagate_densely(
    features: Tensor,
    contexts: Tensor,
    labels: Tensor,
    topk: int,
    temperature: float,
    allowed: Tensor | None = None,
    keep_ties: bool = False,
) -> Tensor:
    """Compute what `ContextFrames.propagate` does by comparing all pairs of cells.

    The oracle of the tests and the baseline of the benchmarks: the references' steps, in their
    order and layout. All pairs are compared, those outside of windows masked, the best kept.

    Args:
        features (C, h, w): of the new frame.
        contexts (n, C, h, w), labels (n, L, h, w): of the frames to learn from.
        topk, temperature, keep_ties: as in `ContextFrames.propagate`.
        allowed (n, h*w, h*w): bool, whether a cell (2nd axis) may look at another (3rd).

    Returns:
        (L, h, w)
    """
    query = F.normalize(features.flatten(1), dim=0)  # (C, N)
    keys = F.normalize(contexts.flatten(2), dim=1).transpose(1, 2).flatten(0, 1)  # (n * N, C)
    weights = (keys @ query).div_(temperature).exp_()  # (n * N, N)
    if allowed is not None:
        weights.unflatten(0, (len(contexts), -1)).mul_(allowed.transpose(1, 2))
    best, index = weights.topk(min(topk, len(weights)), dim=0)  # (topk, N)
    source = labels.flatten(2).transpose(0, 1).flatten(1)  # (L, n * N)
    if keep_ties:
        weights[weights < best[-1]] = 0
        mixed = source @ weights.div_(weights.sum(0))
    else:
        mixed = (source[:, index] * (best / best.sum(0))).sum(1)
    return mixed.unflatten(1, features.shape[1:])
