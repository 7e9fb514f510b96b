"""Errors and scores of pairs: the values of the published evaluations."""

from __future__ import annotations

import numpy as np
import pytest

from relocalizer.geometry import exp_so3
from relocalizer.interfaces import NoEstimate, PairEstimate
from slam.benchmarks.pair_metrics import accuracy, mean_average_accuracy, pair_error, pose_auc


def estimate(rotation: np.ndarray, direction: np.ndarray | None) -> PairEstimate:
    return PairEstimate(
        i_from_j_rotation=rotation,
        i_from_j_direction=direction,
        confidence=1.0,
        rotation_sigma_rad=0.1,
        direction_sigma_rad=0.1,
        direction_unknown="" if direction is not None else "no parallax",
    )


def moved(x: float, y: float, z: float) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, 3] = x, y, z
    return pose


@pytest.mark.parametrize(
    ("errors", "areas"),
    [
        ([2, 4, 30], [0.4, 0.53333, 0.6]),
        ([2, 4, 5, 30], [0.3, 0.5375, 0.64375]),  # an error equal to a threshold does not count
        ([7], [0.0, 0.65, 0.825]),
        ([0.0], [1.0, 1.0, 1.0]),
        ([180.0], [0.0, 0.0, 0.0]),
    ],
)
def test_auc_has_the_published_values(errors, areas):
    assert pose_auc(errors) == pytest.approx(areas, abs=5e-6)


def test_auc_does_not_depend_on_the_order_and_counts_nan_as_missing():
    assert pose_auc([30, 2, 4]) == pose_auc([2, 4, 30])
    assert pose_auc([2, 4, np.nan]) == pose_auc([2, 4, 180])


def test_auc_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no errors"):
        pose_auc([])


@pytest.mark.parametrize(
    ("errors", "expected"), [([0.5, 2, 4, 30], 0.70833), ([1.0], 0.96667), ([0.99], 1.0), ([31.0], 0.0)]
)
def test_maa_has_the_published_values(errors, expected):
    assert mean_average_accuracy(errors) == pytest.approx(expected, abs=5e-6)


def test_accuracy_is_the_share_strictly_below():
    assert accuracy([1.0, 14.999, 15.0, 90.0]) == 0.5


def test_a_pair_error_is_plain_and_folded():
    found = pair_error(estimate(np.eye(3), np.array([-1.0, 0.0, 0.0])), moved(2.0, 0.0, 0.0))
    assert (found.rotation_deg, found.plain_deg, found.folded_deg) == pytest.approx((0.0, 180.0, 0.0))


def test_errors_are_the_angles_of_rotation_and_direction():
    turned = exp_so3(np.radians([0.0, 0.0, 3.0]))
    direction = np.array([np.cos(np.radians(7)), np.sin(np.radians(7)), 0.0])
    found = pair_error(estimate(turned, direction), moved(0.5, 0.0, 0.0))
    assert found.rotation_deg == pytest.approx(3.0)
    assert (found.plain_deg, found.folded_deg) == pytest.approx((7.0, 7.0))


def test_small_errors_are_exact():
    """acos would round an error of a millionth of a degree to zero, or to NaN."""
    direction = np.array([1.0, np.radians(1e-6), 0.0])
    found = pair_error(estimate(np.eye(3), direction / np.linalg.norm(direction)), moved(1.0, 0.0, 0.0))
    assert found.plain_deg == pytest.approx(1e-6, rel=1e-6)


@pytest.mark.parametrize(
    ("given", "truth", "rotation_deg"),
    [
        (NoEstimate("no matches"), moved(1, 0, 0), 180.0),
        (estimate(np.eye(3), None), moved(1, 0, 0), 0.0),
        (estimate(np.eye(3), np.array([1.0, 0, 0])), moved(0, 0, 0), 0.0),
    ],
)
def test_a_missing_direction_counts_as_180_degrees_also_folded(given, truth, rotation_deg):
    found = pair_error(given, truth)
    assert (found.rotation_deg, found.plain_deg, found.folded_deg) == (rotation_deg, 180.0, 180.0)
