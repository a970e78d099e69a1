"""The measures of label propagation, in numpy.

They agree with the official programs to rounding, except that here undefined values are NaN
where some of those programs stop.
"""

from videomac_mm.evaluation.functional.davis import (
    contour_accuracy,
    davis_palette,
    mask_boundary,
    region_similarity,
    sequence_statistics,
)
from videomac_mm.evaluation.functional.miou import (
    class_accuracy,
    class_iou,
    confusion_matrix,
    pixel_accuracy,
)
from videomac_mm.evaluation.functional.pck import keypoint_distances, pck

__all__ = [
    'class_accuracy',
    'class_iou',
    'confusion_matrix',
    'contour_accuracy',
    'davis_palette',
    'keypoint_distances',
    'mask_boundary',
    'pck',
    'pixel_accuracy',
    'region_similarity',
    'sequence_statistics',
]
