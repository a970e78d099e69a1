"""DAVIS: region similarity J and contour accuracy F of masks, statistics of sequences.

Source: Perazzi et al., A Benchmark Dataset and Evaluation Methodology for Video Object
Segmentation (CVPR 2016), sections 4 and 5; values as davis2017-evaluation gives them. That
program has an argument for void pixels; here clear them in both masks (``mask & ~void``).
"""

import math

import cv2
import numpy as np


def region_similarity(pred: np.ndarray, gt: np.ndarray) -> float:
    """J, the intersection over union of two masks; 1 if both are empty.

    Args:
        pred (H, W): bool.
        gt (H, W): bool.

    Returns:
        J in [0, 1].
    """
    union = np.count_nonzero(pred | gt)
    return np.count_nonzero(pred & gt) / union if union else 1.0


def contour_accuracy(pred: np.ndarray, gt: np.ndarray, tolerance: float = 0.008) -> float:
    """F, the harmonic mean of precision and recall of the boundary pixels.

    A boundary pixel is right if the other mask has one within the tolerance. F is 1 if neither
    mask has a boundary, 0 if only one has; a mask of the whole picture has none.

    Args:
        pred (H, W): bool.
        gt (H, W): bool.
        tolerance: share of the diagonal (rounded up to pixels) if below 1, else pixels.
            Defaults to 0.008, 8 pixels at 480p.

    Returns:
        F in [0, 1].
    """
    radius = tolerance if tolerance >= 1 else math.ceil(tolerance * math.hypot(*gt.shape))

    # Nothing happens outside the objects but for the pixels left of and above them.
    x, y, width, height = cv2.boundingRect((pred | gt).view(np.uint8))
    window = np.s_[max(y - 1, 0) : y + height + 1, max(x - 1, 0) : x + width + 1]
    pred, gt = mask_boundary(pred[window]), mask_boundary(gt[window])

    num_pred, num_gt = np.count_nonzero(pred), np.count_nonzero(gt)
    if not num_pred or not num_gt:
        return float(num_pred == num_gt)
    precision = np.count_nonzero(pred & _dilate(gt, radius)) / num_pred
    recall = np.count_nonzero(gt & _dilate(pred, radius)) / num_gt
    if precision + recall == 0:
        return 0.0
    return 2 * precision * recall / (precision + recall)


def mask_boundary(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from their right, lower or lower right neighbour.

    Args:
        mask (H, W): bool.

    Returns:
        (H, W) bool.
    """
    # The last row and column repeat, so there only the neighbour along the border counts.
    padded = np.pad(mask, ((0, 1), (0, 1)), mode='edge')
    right, lower, diagonal = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return (mask ^ right) | (mask ^ lower) | (mask ^ diagonal)


def _dilate(mask: np.ndarray, radius: float) -> np.ndarray:
    """Pixels within ``radius`` (closed) of a pixel of the mask."""
    reach = np.arange(-math.floor(radius), math.floor(radius) + 1)
    disc = reach[:, None] ** 2 + reach**2 <= radius**2
    return cv2.dilate(mask.view(np.uint8), disc.view(np.uint8)).view(bool)


def sequence_statistics(values: np.ndarray) -> tuple[float, float, float]:
    """Mean, recall and decay of a measure over the frames of one object.

    Args:
        values (n,): J or F of the scored frames, n > 0. NaN is left out of mean and decay.

    Returns:
        The mean; the share of frames above 0.5; how much the mean of the first quarter exceeds
        that of the last one. As in the official program neighbouring quarters share a frame,
        and from 257 frames on the decay means nothing and may be NaN: there frame numbers are
        kept in 8 bits.
    """
    edges = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(int) - 1
    first, second, _, fourth, last = edges.astype(np.uint8).tolist()
    decay = _nanmean(values[first : second + 1]) - _nanmean(values[fourth : last + 1])
    return _nanmean(values), float(np.mean(values > 0.5)), decay


def davis_palette() -> np.ndarray:
    """Colours of the ids: (256, 3) uint8 RGB, as in Pascal VOC and in the masks of DAVIS."""
    # The bits of an id, three at a time, fill the channels from the top.
    bits = np.arange(256)[:, None] >> np.arange(24) & 1
    levels = bits.reshape(256, 8, 3) << np.arange(7, -1, -1)[:, None]
    return levels.sum(1).astype(np.uint8)


def _nanmean(values: np.ndarray) -> float:
    """np.nanmean, without its warning where there is nothing to average."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else math.nan
