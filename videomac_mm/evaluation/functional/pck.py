"""Percentage of correct keypoints, the way label propagation on JHMDB is scored.

Source: eval_pck.py of CRW (github.com/ajabri/videowalk). It differs from the PCK of pose
estimation: see :func:`keypoint_distances`.
"""

from collections.abc import Sequence

import numpy as np


def keypoint_distances(
    pred: np.ndarray, gt: np.ndarray, grid: tuple[int, int], image_size: tuple[int, int]
) -> np.ndarray:
    """Distances of one frame, relative to the size of the person.

    The unit is 0.6 times the diagonal of the tight box around those ground-truth joints that
    the *prediction* has; joints it has lost are not counted at all. Where the box has no
    extent, because a single joint is left, that joint counts as wrong.

    Args:
        pred (2, K): x, y in cells of the feature grid, float32; lost where x < 0. (The official
            program computes in float32 up to pixels, which decides joints on the threshold.)
        gt (2, K): x, y in pixels from 0, float64. Joints outside the picture count.
        grid: (h, w) in cells. The official program has 40 for both written in.
        image_size: (H, W) in pixels.

    Returns:
        (K,) float64, NaN for lost joints.
    """
    visible = pred[0] >= 0
    distances = np.full(visible.shape, np.nan)
    if not visible.any():
        return distances
    (h, w), (height, width) = grid, image_size
    x, y = pred[0] / w * width, pred[1] / h * height
    box = 0.6 * np.linalg.norm(np.ptp(gt[:, visible], axis=1))
    distance = np.linalg.norm(np.stack([x, y]) - gt, axis=0)[visible]
    distances[visible] = distance / box if box > 0 else np.inf
    return distances


def pck(
    distances: np.ndarray, thresholds: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5)
) -> np.ndarray:
    """Percentage of correct keypoints of each joint; their plain mean is the PCK.

    Args:
        distances (n, K): of the scored frames, NaN = not counted.
        thresholds: greatest distances that are still correct. Defaults to 0.1 to 0.5.

    Returns:
        (number of thresholds, K) in [0, 100], NaN for a joint that is never counted.
    """
    counted = np.count_nonzero(~np.isnan(distances), axis=0)
    correct = np.stack([np.count_nonzero(distances <= limit, axis=0) for limit in thresholds])
    return np.where(counted, 100 * correct / np.maximum(counted, 1), np.nan)
