"""Diagnosis of conventions that make two correct trajectories disagree.

Quaternion columns in another order, axes of another body, inverted poses, left-handed axes or another clock result in
errors that look like a bad estimate. Each is detected by an alternative reading of the files that makes them agree; a
bad estimate has no such reading. The limits were chosen on recorded paths with generated errors: no estimate with only
noise, drift or random errors came near `BETTER`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from relocalizer.geometry import FloatArray, align_points, nearest_rotation
from slam.evaluation.trajectory import Trajectory, seconds_from_nanoseconds

Side = Literal["estimate", "ground truth"]

BETTER = 0.25  # Maximum residual of an alternative reading, relative to the original disagreement.
NOTED = 1 / 3  # Maximum RMSE after a constant rotation is removed, relative to before, for it to be noted.
AGREES = 0.25  # Maximum position error at which orientations can be compared, relative to the path's extent.
FLAT = 0.02  # Ratio of a path's two largest extents below which positions do not determine the roll about it.
GROSS_DEG = 3.0  # Disagreement of orientations below which their quaternions are in the right order, degrees.
PLAIN_DEG = 45.0  # Constant rotation above which another quaternion order is as plausible a cause, degrees.
LITTLE_DEG = 15.0  # Maximum RMSE after a constant rotation is removed, for it to be noted, degrees.
LEAST_CONSTANT_DEG = 3.0  # Minimum constant rotation that is noted, degrees.
UNEXPLAINED_DEG = 30.0  # Disagreement that noise cannot cause while positions agree, degrees.
BAD = 0.05  # Position error above which alternative readings are tried, relative to the path's extent.
SUSPECTED = 0.02  # Position error above which the clocks may differ, relative to the path's extent.
FITS = 0.1  # Maximum position error between two versions of one path, relative to its extent.
ALIKE = 0.25  # Maximum spread of equally good clock offsets, relative to the duration; otherwise they are ambiguous.
ALIKE_DURATION = 3.0  # Maximum ratio between the durations of two trajectories of one recording.
OFFSET_POSES, OFFSETS_TRIED = 200, 1000  # Number of poses compared per clock offset, and of offsets tried.
POSES_NEEDED = 8  # Minimum number of poses; fewer fit by chance.
_REWEIGHTINGS = 8  # Iterations of the geodesic median.


@dataclass(frozen=True, slots=True)
class Reading:
    """An alternative reading of the orientations of one file, and its residual.

    Attributes:
        order, read_as: quaternion order in this reading ("w x y z"), and the order in which they were read; both empty
            if this reading inverts the rotations.
        constant_deg, residual_deg: as in `OrientationCheck`, for this reading.
    """

    side: Side
    order: str
    read_as: str
    constant_deg: float
    residual_deg: float

    @property
    def words(self) -> str:
        """Description of this reading that completes "the orientations are ..."."""
        return f"{self.order} and were read as {self.read_as}" if self.order else "inverse (camera from world)"


@dataclass(frozen=True, slots=True, kw_only=True)
class OrientationCheck:
    """Agreement of the orientations of two trajectories after their positions are aligned.

    Attributes:
        constant_deg: angle of the best constant rotation between the bodies (camera, IMU, ...) of the two files.
        residual_deg, residual_rmse_deg: median and RMSE of the angles after it is removed.
        readings: alternative readings with at most `BETTER` of the median, the best first; empty if the orientations
            agree, or are only inaccurate.
        note: a sentence on the disagreement; empty if there is none.
    """

    constant_deg: float
    residual_deg: float
    residual_rmse_deg: float
    readings: tuple[Reading, ...] = ()
    note: str = ""


def check_orientations(
    estimate: FloatArray, truth: FloatArray, truth_from_estimate: FloatArray, *, misfit: float, extents: FloatArray
) -> OrientationCheck | None:
    """Check the orientations of matched poses, using the alignment of their positions.

    Args:
        estimate, truth: (N, 3, 3) orientations, each in its own world.
        truth_from_estimate: (3, 3) rotation from the alignment of the positions.
        misfit: RMSE of the aligned positions, relative to the true path's largest extent.
        extents: (3,) extents of the true positions along their principal axes, largest first.

    Returns:
        None if the positions do not agree or are nearly collinear, so that the alignment is not reliable.
    """
    if misfit > AGREES or extents[1] < FLAT * extents[0]:
        return None
    aligned = truth_from_estimate @ estimate
    raw = _angles_deg(truth, aligned)
    constant_deg, residuals = _remove_constant_rotation(truth, aligned)
    check = OrientationCheck(
        constant_deg=constant_deg, residual_deg=float(np.median(residuals)), residual_rmse_deg=_rms(residuals)
    )
    others = list(_alternative_readings(estimate, truth, truth_from_estimate)) if len(truth) >= POSES_NEEDED else []
    if check.residual_deg >= GROSS_DEG:
        better = [reading for reading in others if reading.residual_deg < BETTER * check.residual_deg]
        least = min((reading.residual_deg for reading in better), default=0.0)
        better.sort(key=lambda reading: (reading.residual_deg > 1.5 * least + 0.1, reading.constant_deg))
        check = replace(check, readings=tuple(better))
    tilt_deg = float(np.degrees(np.arctan2(misfit * extents[0], extents[1])))  # Possible error of the alignment.
    is_constant = constant_deg > max(LEAST_CONSTANT_DEG, 1.5 * tilt_deg)
    leaves_little = _rms(residuals) < min(NOTED * _rms(raw), LITTLE_DEG)
    if check.readings:
        return replace(check, note=_note_of_reading(check))
    if is_constant and leaves_little:
        return replace(check, note=_note_of_constant(check, others))
    if np.median(raw) > UNEXPLAINED_DEG:
        return replace(check, note=_note_of_unexplained(check, float(np.median(raw))))
    return check


def note_of_line(orientation_rmse_deg: float, *, misfit: float, extents: FloatArray) -> str:
    """A sentence if a large disagreement of orientations is only due to nearly collinear positions, otherwise "".

    Args:
        misfit, extents: as in `check_orientations`.
    """
    if misfit > AGREES or extents[1] >= FLAT * extents[0] or orientation_rmse_deg < UNEXPLAINED_DEG:
        return ""
    return (
        "the positions lie nearly on a line, which leaves the roll about it open: that orientations differ by "
        f"{orientation_rmse_deg:.1f} deg rmse tells nothing"
    )


def _note_of_reading(check: OrientationCheck) -> str:
    best = check.readings[0]
    return (
        f"the orientations do not agree ({check.residual_deg:.1f} deg at the median, beyond a constant rotation); they "
        f"do, to {best.residual_deg:.2g} deg, if those of the {best.side} are {best.words}"
    )


def _note_of_constant(check: OrientationCheck, others: Sequence[Reading]) -> str:
    note = (
        f"the orientations look turned by a constant {check.constant_deg:.1f} deg, as those of another body (an IMU's, "
        f"not the camera's) are: {check.residual_rmse_deg:.2g} deg rmse without it; RPE and drift count it as error"
    )
    plain = [r for r in others if r.constant_deg < GROSS_DEG and r.residual_deg < max(check.residual_deg, GROSS_DEG)]
    if check.constant_deg < PLAIN_DEG or not plain:
        return note
    return f"{note}; or those of the {plain[0].side} are {plain[0].words}: the camera turned too little to tell"


def _note_of_unexplained(check: OrientationCheck, raw_deg: float) -> str:
    return (
        f"the positions agree and the orientations do not ({raw_deg:.1f} deg at the median, {check.residual_deg:.1f} "
        "beyond a constant rotation): are they camera to world, their quaternions in the order x y z w or as a header "
        "names them?"
    )


def _alternative_readings(
    estimate: FloatArray, truth: FloatArray, truth_from_estimate: FloatArray
) -> Iterator[Reading]:
    aligned = truth_from_estimate @ estimate
    for order, read_as, other in _alternative_rotations(truth):
        constant_deg, residuals = _remove_constant_rotation(other, aligned)
        yield Reading("ground truth", order, read_as, constant_deg, float(np.median(residuals)))
    for order, read_as, other in _alternative_rotations(estimate):
        constant_deg, residuals = _remove_constant_rotation(truth, truth_from_estimate @ other)
        yield Reading("estimate", order, read_as, constant_deg, float(np.median(residuals)))


def _alternative_rotations(rotations: FloatArray) -> Iterator[tuple[str, str, FloatArray]]:
    """(order, order it was read as, rotations (N, 3, 3)), with quaternions in another order or rotations inverted."""
    quaternions = Rotation.from_matrix(rotations).as_quat()
    yield "w x y z", "x y z w", Rotation.from_quat(np.roll(quaternions, -1, axis=1)).as_matrix()
    yield "x y z w", "w x y z", Rotation.from_quat(np.roll(quaternions, 1, axis=1)).as_matrix()
    yield "", "", rotations.transpose(0, 2, 1)


def _remove_constant_rotation(a: FloatArray, b: FloatArray) -> tuple[float, NDArray[np.float64]]:
    """Angle of the best constant rotation a_from_b in the body's axes, and the residual angles (N,), degrees.

    It is the geodesic median, computed by reweighted chordal means (Hartley et al., "Rotation averaging", 2013).
    """
    rotations = a.transpose(0, 2, 1) @ b
    weights = np.ones(len(rotations))
    for _ in range(_REWEIGHTINGS):
        median = nearest_rotation((weights[:, None, None] * rotations).sum(axis=0))
        residuals = np.asarray(Rotation.from_matrix(median.T @ rotations).magnitude())
        weights = 1.0 / np.maximum(residuals, 1e-3)
    return float(np.degrees(Rotation.from_matrix(median).magnitude())), np.degrees(residuals)


# --- positions ----------------------------------------------------------------------------------------


def note_of_positions(estimate: FloatArray, truth: FloatArray, *, misfit: float) -> str:
    """A sentence on the reading of the files that makes the positions of matched poses agree.

    It is empty if they already agree, or if there is no such reading.

    Args:
        estimate, truth: (N, 4, 4) poses, each in its own world.
        misfit: as in `check_orientations`.
    """
    if misfit < BAD or len(estimate) < POSES_NEEDED:
        return ""
    a, b = truth[:, :3, 3], estimate[:, :3, 3]
    readings = (
        ("the axes of one file are left-handed (its world is mirrored)", a * [1.0, 1.0, -1.0], b),
        ("the poses of one file are inverse (camera from world)", a, _inverse_positions(estimate)),
        ("the poses of one file are inverse (camera from world)", _inverse_positions(truth), b),
    )
    left, words = min((_misfit(other_a, other_b), words) for words, other_a, other_b in readings)
    if left > min(FITS, BETTER * misfit):
        return ""
    return f"the paths do not agree ({100 * misfit:.0f} % of their extent); they do, to {100 * left:.1f} %, if {words}"


def _inverse_positions(poses: FloatArray) -> FloatArray:
    return np.asarray(-np.einsum("nji,nj->ni", poses[:, :3, :3], poses[:, :3, 3]))


def _misfit(a: FloatArray, b: FloatArray) -> float:
    """RMSE of positions (N, 3) after alignment, relative to the extent of a; infinite if there is no motion."""
    try:
        residuals = align_points(a, b).apply(b) - a
    except ValueError:
        return np.inf
    extent = float(np.linalg.norm(a - a.mean(axis=0), 2)) / np.sqrt(len(a))
    return float(np.sqrt((residuals**2).sum(axis=1).mean())) / extent if extent > 0 else np.inf


# --- times --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """Offset between two clocks.

    Attributes:
        offset_ns: offset to be added to the estimate's times, nanoseconds.
        matched: number of poses of the estimate that then have a ground truth pose.
        misfit: RMSE of their aligned positions, relative to the path's extent.
    """

    offset_ns: int
    matched: int
    misfit: float

    def __str__(self) -> str:
        return (
            f"with {seconds_from_nanoseconds(self.offset_ns)} s added to the estimate's times {self.matched} poses "
            f"match (--time-offset) and the paths agree to {100 * self.misfit:.1f} % of their extent"
        )


def note_of_clocks(
    estimate: Trajectory, truth: Trajectory, *, matched: int, misfit: float, max_difference_s: float
) -> str:
    """A sentence if a clock offset makes the paths agree, or lets far more poses match; otherwise "".

    Args:
        matched: number of poses that match without an offset.
        misfit: as in `check_orientations`.
    """
    if misfit < SUSPECTED and matched >= min(len(estimate), len(truth)) / 2:
        return ""
    offset = find_offset(estimate, truth, max_difference_s=max_difference_s)
    if offset is None or abs(offset.offset_ns) <= max_difference_s * 1e9 or offset.matched < 0.8 * matched:
        return ""
    if offset.misfit > BETTER * misfit and offset.matched < 2 * matched:
        return ""
    return f"{offset}, not {100 * misfit:.1f} %: are the clocks the same?"


def note_of_units(estimate: Trajectory, truth: Trajectory) -> str:
    """A sentence if the ratio of the durations suggests that the times of one are in another unit; otherwise ""."""
    if min(estimate.duration_s, truth.duration_s) <= 0:
        return ""
    ratio = estimate.duration_s / truth.duration_s
    side = "estimate" if ratio > 1 else "ground truth"
    for factor, unit, short in ((1e3, "milli", "ms"), (1e6, "micro", "us"), (1e9, "nano", "ns")):
        if factor / ALIKE_DURATION < max(ratio, 1 / ratio) < factor * ALIKE_DURATION:
            return (
                f"are the times of the {side} in {unit}seconds? a header must say so: "
                f"# timestamp[{short}] tx ty tz qx qy qz qw"
            )
    return ""


def find_offset(estimate: Trajectory, truth: Trajectory, *, max_difference_s: float) -> ClockOffset | None:
    """The offset between two clocks at which the paths agree best; None unless it is unambiguous.

    Each ground truth pose (at most `OFFSETS_TRIED`) is tried as the match of the estimate's middle pose. Offsets are
    compared by the paths, because between streams with constant frame rates all shifts by whole frames match equally.
    """
    if min(len(estimate), len(truth)) < POSES_NEEDED:
        return None
    limit = round(max_difference_s * 1e9)
    sample = np.unique(np.linspace(0, len(estimate) - 1, OFFSET_POSES).astype(np.int64))
    middle = int(estimate.timestamps_ns[sample[len(sample) // 2]])
    tried = np.unique(np.linspace(0, len(truth) - 1, OFFSETS_TRIED).astype(np.int64))
    coarse = [_at_offset(estimate, truth, sample, int(truth.timestamps_ns[k]) - middle, limit) for k in tried]
    most = max(found.matched for found in coarse)
    likely = [found for found in coarse if found.matched >= max(POSES_NEEDED, 0.8 * most)]
    if not likely:
        return None
    best = min(likely, key=lambda found: found.misfit)
    near = [found.offset_ns for found in likely if found.misfit <= max(3.0 * best.misfit, 0.01)]
    stands_out = max(near) - min(near) <= ALIKE * (estimate.timestamps_ns[-1] - estimate.timestamps_ns[0])
    if best.misfit > FITS or not stands_out:
        return None
    step = len(truth) // OFFSETS_TRIED + 1
    k = int(np.searchsorted(truth.timestamps_ns, middle + best.offset_ns))
    around = truth.timestamps_ns[max(k - step, 0) : k + step + 1] - middle
    finer = [_at_offset(estimate, truth, np.arange(len(estimate)), int(offset), limit) for offset in around]
    return min(finer, key=lambda found: found.misfit)


def _at_offset(
    estimate: Trajectory, truth: Trajectory, rows: NDArray[np.int64], offset_ns: int, limit_ns: int
) -> ClockOffset:
    times = estimate.timestamps_ns[rows] + offset_ns
    after = np.clip(np.searchsorted(truth.timestamps_ns, times), 1, len(truth) - 1)
    nearer = times - truth.timestamps_ns[after - 1] <= truth.timestamps_ns[after] - times
    nearest = np.where(nearer, after - 1, after)
    matched = np.abs(truth.timestamps_ns[nearest] - times) <= limit_ns
    count = int(matched.sum())
    if count < POSES_NEEDED:
        return ClockOffset(offset_ns, count, np.inf)
    misfit = _misfit(truth.positions[nearest[matched]], estimate.positions[rows[matched]])
    return ClockOffset(offset_ns, count, misfit)


def _angles_deg(a: FloatArray, b: FloatArray) -> FloatArray:
    return np.asarray(np.degrees(Rotation.from_matrix(a.transpose(0, 2, 1) @ b).magnitude()))


def _rms(values: FloatArray) -> float:
    return float(np.sqrt(np.mean(values**2)))
