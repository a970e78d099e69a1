"""Mean intersection over union, from one confusion matrix over all pixels of a data set.

Source: eval_vip.py of CRW (github.com/ajabri/videowalk), whose measures go back to Long et al.,
Fully Convolutional Networks for Semantic Segmentation (CVPR 2015), section 5.
"""

import numpy as np


def confusion_matrix(pred: np.ndarray, gt: np.ndarray, num_classes: int = 20) -> np.ndarray:
    """Count the pixels of each pair of classes.

    Ground truth that is no class (255) is left out. As in the official program, the value
    ``num_classes`` in a prediction is counted as background (0) predicted where the ground
    truth has the next class.

    Args:
        pred (H, W): integer class ids.
        gt (H, W): integer class ids.
        num_classes: C, with the background. Defaults to 20.

    Returns:
        (C, C) int64; rows are the ground truth.

    Raises:
        ValueError: if the sizes differ or a prediction exceeds ``num_classes``.
    """
    if pred.shape != gt.shape:
        raise ValueError(f'prediction {pred.shape} and ground truth {gt.shape} differ in size')
    known = gt < num_classes
    index = gt[known].astype(np.int64) * num_classes + pred[known]
    counts = np.bincount(index, minlength=num_classes**2)
    if pred.max() > num_classes or len(counts) > num_classes**2:
        raise ValueError(f'predicted ids must be below {num_classes}, got {pred.max()}')
    return counts.reshape(num_classes, num_classes)


def class_iou(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union: (C,) in [0, 1], NaN for a class seen nowhere."""
    hits = np.diag(confusion)
    return _ratio(hits, confusion.sum(0) + confusion.sum(1) - hits)


def class_accuracy(confusion: np.ndarray) -> np.ndarray:
    """Share of a class's pixels that are right: (C,), NaN for a class without pixels."""
    return _ratio(np.diag(confusion), confusion.sum(1))


def pixel_accuracy(confusion: np.ndarray) -> float:
    """Share of all pixels that are right, NaN if there are none."""
    return float(_ratio(np.trace(confusion), confusion.sum()))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole, part / np.maximum(whole, 1), np.nan)
