"""Closed forms, and plain restatements of the definitions."""

import math

import numpy as np
import pytest

from videomac_mm.evaluation.functional import (
    class_accuracy,
    class_iou,
    confusion_matrix,
    contour_accuracy,
    keypoint_distances,
    mask_boundary,
    pck,
    pixel_accuracy,
    region_similarity,
    sequence_statistics,
)

EMPTY = np.zeros((40, 60), bool)


def square(y: int, x: int, side: int = 12) -> np.ndarray:
    mask = EMPTY.copy()
    mask[y : y + side, x : x + side] = True
    return mask


# ------------------------------------------------------------------------- J and F


@pytest.mark.parametrize('dy, dx', [(0, 0), (0, 1), (3, 5), (12, 0)])
def test_region_similarity__of_a_shifted_square(dy, dx):
    common = (12 - dy) * (12 - dx)
    got = region_similarity(square(5 + dy, 6 + dx), square(5, 6))
    assert got == common / (2 * 12**2 - common)


def test_empty_masks():
    for measure in (region_similarity, contour_accuracy):
        assert measure(EMPTY, EMPTY) == 1
        assert measure(square(5, 5), EMPTY) == 0
        assert measure(EMPTY, square(5, 5)) == 0
    # A full mask has no boundary either.
    assert contour_accuracy(~EMPTY, EMPTY) == 1
    assert contour_accuracy(~EMPTY, square(5, 5)) == 0


def boundary_by_loops(mask: np.ndarray) -> np.ndarray:
    height, width = mask.shape
    boundary = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            for j, i in ((y, x + 1), (y + 1, x), (y + 1, x + 1)):
                # along the last row and column a neighbour outside is the one inside
                other = mask[min(j, height - 1), min(i, width - 1)]
                boundary[y, x] |= mask[y, x] != other
    return boundary


def f_by_distances(pred: np.ndarray, gt: np.ndarray, radius: float) -> float:
    """From the (n, 2) boundary pixels."""
    near = ((pred[:, None] - gt) ** 2).sum(-1) <= radius**2
    precision, recall = near.any(1).mean(), near.any(0).mean()
    return 2 * precision * recall / (precision + recall) if near.any() else 0.0


@pytest.mark.parametrize('tolerance', [1, 2.5, 5, 0.05])
def test_contour_accuracy__equals_the_definition(tolerance):
    """Also for objects at the borders of the picture and for two that are far apart."""
    radius = tolerance if tolerance >= 1 else math.ceil(tolerance * math.hypot(*EMPTY.shape))
    noise = np.random.rand(40, 60) > 0.5
    masks = [
        square(0, 0),
        square(28, 48),
        square(10, 20) | square(30, 3, 2),
        square(13, 24) & noise,
        ~square(20, 0),
        noise,
    ]
    boundaries = [boundary_by_loops(mask) for mask in masks]
    for pred, boundary in zip(masks, boundaries):
        np.testing.assert_array_equal(mask_boundary(pred), boundary)
        for gt, other in zip(masks, boundaries):
            want = f_by_distances(np.argwhere(boundary), np.argwhere(other), radius)
            assert contour_accuracy(pred, gt, tolerance) == pytest.approx(want, abs=1e-12)


def test_contour_accuracy__default_tolerance_is_8_pixels_at_480p():
    gt, near, far = np.zeros((3, 480, 854), bool)
    gt[:, 400:] = near[:, 408:] = far[:, 409:] = True
    assert contour_accuracy(near, gt) == 1
    assert contour_accuracy(far, gt) == 0


def test_sequence_statistics__by_hand():
    values = np.array([0.9, 0.8, 0.7, 0.5, 0.6, 0.4, 0.3, 0.2])
    mean, recall, decay = sequence_statistics(values)
    assert mean == pytest.approx(0.55)
    assert recall == 4 / 8  # 0.5 is not above 0.5
    assert decay == pytest.approx(0.8 - 0.3)  # of frames 1 to 3 and 6 to 8
    assert sequence_statistics(np.array([0.7])) == (0.7, 1, 0)


# ---------------------------------------------------------------------------- mIoU


def test_confusion_matrix__by_hand():
    gt = np.array([[0, 0, 1, 1], [2, 2, 2, 255]], np.uint8)
    pred = np.array([[0, 1, 1, 1], [2, 2, 0, 1]], np.uint8)
    confusion = confusion_matrix(pred, gt, num_classes=4)
    assert confusion.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(class_iou(confusion), [1 / 3, 2 / 3, 2 / 3, np.nan])
    np.testing.assert_allclose(class_accuracy(confusion), [1 / 2, 1, 2 / 3, np.nan])
    assert pixel_accuracy(confusion) == 5 / 7


def test_class_iou__of_a_class_that_is_only_predicted_is_0():
    confusion = confusion_matrix(np.array([[3]]), np.array([[1]]))
    assert class_iou(confusion)[[1, 3]].tolist() == [0, 0]
    assert math.isnan(class_accuracy(confusion)[3])


def test_confusion_matrix__of_nothing():
    confusion = confusion_matrix(np.array([[1]]), np.array([[255]]))
    assert confusion.sum() == 0
    assert math.isnan(pixel_accuracy(confusion))


@pytest.mark.parametrize('pred, gt', [(21, 1), (255, 255), (20, 19)])
def test_confusion_matrix__refuses_ids(pred, gt):
    with pytest.raises(ValueError, match=f'below 20, got {pred}'):
        confusion_matrix(np.array([[pred]], np.uint8), np.array([[gt]], np.uint8))


def test_confusion_matrix__refuses_sizes():
    with pytest.raises(ValueError, match=r'\(2, 3\).*\(3, 2\)'):
        confusion_matrix(np.zeros((2, 3), int), np.zeros((3, 2), int))


# ----------------------------------------------------------------------------- PCK


# A box of 60 x 80 pixels: the unit is 60.
GT = np.array([[0.0, 60.0, 30.0], [0.0, 80.0, 40.0]])
SETTING = dict(grid=(20, 40), image_size=(160, 320))  # cells of 8 x 8 pixels


def cells(points: np.ndarray) -> np.ndarray:
    return (points / 8).astype(np.float32)


def test_keypoint_distances__in_units_of_the_box():
    shifted = GT + [[6.0], [8.0]]
    np.testing.assert_allclose(keypoint_distances(cells(shifted), GT, **SETTING), 10 / 60)


def test_keypoint_distances__cells_need_not_be_square():
    pred = np.float32([[0, 15, 7.5], [0, 10, 5]])  # cells of 4 x 8 pixels
    distances = keypoint_distances(pred, GT, grid=(20, 40), image_size=(160, 160))
    assert distances.tolist() == [0, 0, 0]


def test_keypoint_distances__lost_joints_are_left_out_of_the_box():
    pred = cells(GT + [[6.0], [8.0]])
    pred[:, 1] = -1
    np.testing.assert_allclose(
        keypoint_distances(pred, GT, **SETTING), [10 / 30, np.nan, 10 / 30], rtol=1e-6
    )
    pred[:, 0] = -1  # one joint makes no box: wrong even where it is exact
    pred[:, 2] = cells(GT)[:, 2]
    np.testing.assert_array_equal(keypoint_distances(pred, GT, **SETTING), [np.nan, np.nan, np.inf])
    pred[:] = -1
    assert np.isnan(keypoint_distances(pred, GT, **SETTING)).all()


def test_pck__counts_the_threshold_but_no_lost_joint():
    distances = np.array([[0.1, 0.3, np.nan], [0.2, np.nan, np.nan], [np.inf, 0.5, np.nan]])
    np.testing.assert_allclose(
        pck(distances, (0.1, 0.2, 0.5)),
        [[100 / 3, 0, np.nan], [200 / 3, 0, np.nan], [200 / 3, 100, np.nan]],
    )
