"""Why two trajectories may disagree though neither is bad: what is wrong with the files, or differs between them.

A quaternion's columns in another order, another body's axes, inverted poses, left-handed axes, another clock: each
leaves figures that look like a bad estimate. Each is told by its own evidence, the other reading of the files that
makes them agree; a bad estimate has no such reading. The limits were set on recorded paths with generated errors: of
estimates that are merely bad, in noise, drift or at random, none came near `BETTER`.
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

BETTER = 0.25  # share of the disagreement that another reading must leave at most to be believed
NOTED = 1 / 3  # share of the RMSE that a constant rotation must leave at most to be noted
AGREES = 0.25  # error of positions, of their extent, up to which orientations can be judged by their alignment
FLAT = 0.02  # ratio of a path's extents below which its positions leave the roll about it open
GROSS_DEG = 3.0  # disagreement of orientations below which nothing is wrong with their order
PLAIN_DEG = 45.0  # constant rotation from which on another order of the quaternion is as plain a reason for it
LITTLE_DEG = 15.0  # RMSE that a constant rotation must leave at most to be noted
LEAST_CONSTANT_DEG = 3.0  # constant rotation from which on it is noted
UNEXPLAINED_DEG = 30.0  # disagreement that no noise makes while positions agree
BAD = 0.05  # error of positions, of their extent, from which on another reading of them is looked for
SUSPECTED = 0.02  # the same, from which on the clocks may differ
FITS = 0.1  # the same, up to which two paths are one
ALIKE = 0.25  # of the estimate's duration: offsets that fit as well lie within this, or nothing decides between them
ALIKE_DURATION = 3.0  # ratio of two durations that may still be of one recording
OFFSET_POSES, OFFSETS_TRIED = 200, 1000
POSES_NEEDED = 8  # fewer may fit anything
_REWEIGHTINGS = 8


@dataclass(frozen=True, slots=True)
class Reading:
    """Another way to read the orientations of one file, and what it leaves.

    Attributes:
        order, read_as: of the quaternions by this reading ("w x y z"), and as they were read; both empty where the
            rotations are taken to be inverse.
        constant_deg, residual_deg: as of `OrientationCheck`, read so.
    """

    side: Side
    order: str
    read_as: str
    constant_deg: float
    residual_deg: float

    @property
    def words(self) -> str:
        """What the orientations are, by this reading: "they are ..."."""
        return f"{self.order} and were read as {self.read_as}" if self.order else "inverse (camera from world)"


@dataclass(frozen=True, slots=True, kw_only=True)
class OrientationCheck:
    """How the orientations of two trajectories go together once their positions are aligned.

    Attributes:
        constant_deg: angle of the constant rotation between the two files' bodies (camera, IMU, ...) that fits best.
        residual_deg, residual_rmse_deg: median and RMSE of the angles that are left without it.
        readings: other ways to read one file that leave at most `BETTER` of the median, the best first; empty when the
            orientations agree, or are merely bad.
        note: all this in a sentence; empty when there is nothing to say.
    """

    constant_deg: float
    residual_deg: float
    residual_rmse_deg: float
    readings: tuple[Reading, ...] = ()
    note: str = ""


def check_orientations(
    estimate: FloatArray, truth: FloatArray, truth_from_estimate: FloatArray, *, misfit: float, extents: FloatArray
) -> OrientationCheck | None:
    """Judge the orientations of matched poses by the alignment of their positions.

    Args:
        estimate, truth: (N, 3, 3) orientations, each in its own world.
        truth_from_estimate: (3, 3), from the positions.
        misfit: RMSE of the aligned positions, as a share of the true path's largest extent.
        extents: (3,) of the true positions along their principal axes, largest first.

    Returns:
        None when the positions tell nothing of the orientations: they do not agree, or lie nearly on a line.
    """
    if misfit > AGREES or extents[1] < FLAT * extents[0]:
        return None
    aligned = truth_from_estimate @ estimate
    raw = _angles_deg(truth, aligned)
    constant_deg, left = _beyond_a_constant_rotation(truth, aligned)
    check = OrientationCheck(
        constant_deg=constant_deg, residual_deg=float(np.median(left)), residual_rmse_deg=_rms(left)
    )
    others = list(_other_readings(estimate, truth, truth_from_estimate)) if len(truth) >= POSES_NEEDED else []
    if check.residual_deg >= GROSS_DEG:
        better = [reading for reading in others if reading.residual_deg < BETTER * check.residual_deg]
        least = min((reading.residual_deg for reading in better), default=0.0)
        better.sort(key=lambda reading: (reading.residual_deg > 1.5 * least + 0.1, reading.constant_deg))
        check = replace(check, readings=tuple(better))
    tilt_deg = float(np.degrees(np.arctan2(misfit * extents[0], extents[1])))  # by which the alignment may be turned
    is_constant = constant_deg > max(LEAST_CONSTANT_DEG, 1.5 * tilt_deg)
    leaves_little = _rms(left) < min(NOTED * _rms(raw), LITTLE_DEG)
    if check.readings:
        return replace(check, note=_note_of_reading(check))
    if is_constant and leaves_little:
        return replace(check, note=_note_of_constant(check, others))
    if np.median(raw) > UNEXPLAINED_DEG:
        return replace(check, note=_note_of_nothing(check, float(np.median(raw))))
    return check


def note_of_line(orientation_rmse_deg: float, *, misfit: float, extents: FloatArray) -> str:
    """That a large disagreement of orientations tells nothing, where it does not; or nothing.

    Args:
        misfit, extents: as of `check_orientations`.
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


def _note_of_nothing(check: OrientationCheck, raw_deg: float) -> str:
    return (
        f"the positions agree and the orientations do not ({raw_deg:.1f} deg at the median, {check.residual_deg:.1f} "
        "beyond a constant rotation): are they camera to world, their quaternions in the order x y z w or as a header "
        "names them?"
    )


def _other_readings(estimate: FloatArray, truth: FloatArray, truth_from_estimate: FloatArray) -> Iterator[Reading]:
    aligned = truth_from_estimate @ estimate
    for order, read_as, other in _read_otherwise(truth):
        constant_deg, left = _beyond_a_constant_rotation(other, aligned)
        yield Reading("ground truth", order, read_as, constant_deg, float(np.median(left)))
    for order, read_as, other in _read_otherwise(estimate):
        constant_deg, left = _beyond_a_constant_rotation(truth, truth_from_estimate @ other)
        yield Reading("estimate", order, read_as, constant_deg, float(np.median(left)))


def _read_otherwise(rotations: FloatArray) -> Iterator[tuple[str, str, FloatArray]]:
    """(order, what was read for it, rotations (N, 3, 3)): with quaternions in another order, or the other way round."""
    quaternions = Rotation.from_matrix(rotations).as_quat()
    yield "w x y z", "x y z w", Rotation.from_quat(np.roll(quaternions, -1, axis=1)).as_matrix()
    yield "x y z w", "w x y z", Rotation.from_quat(np.roll(quaternions, 1, axis=1)).as_matrix()
    yield "", "", rotations.transpose(0, 2, 1)


def _beyond_a_constant_rotation(a: FloatArray, b: FloatArray) -> tuple[float, NDArray[np.float64]]:
    """Angle of the rotation a_from_b in the bodies' axes that fits best, and what it leaves (N,), degrees.

    The geodesic median, by reweighted chordal means (Hartley et al., "Rotation averaging", 2013).
    """
    turns = a.transpose(0, 2, 1) @ b
    weights = np.ones(len(turns))
    for _ in range(_REWEIGHTINGS):
        middle = nearest_rotation((weights[:, None, None] * turns).sum(axis=0))
        left = np.asarray(Rotation.from_matrix(middle.T @ turns).magnitude())
        weights = 1.0 / np.maximum(left, 1e-3)
    return float(np.degrees(Rotation.from_matrix(middle).magnitude())), np.degrees(left)


# --- positions ----------------------------------------------------------------------------------------


def note_of_positions(estimate: FloatArray, truth: FloatArray, *, misfit: float) -> str:
    """What the files must be for the positions of matched poses to agree, in a sentence; empty when they do, or when no
    other reading makes them.

    Args:
        estimate, truth: (N, 4, 4) poses, each in its own world.
        misfit: as of `check_orientations`.
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
    """RMSE of positions (N, 3) after a similarity, as a share of the extent of a; infinite where nothing moves."""
    try:
        off = align_points(a, b).apply(b) - a
    except ValueError:
        return np.inf
    extent = float(np.linalg.norm(a - a.mean(axis=0), 2)) / np.sqrt(len(a))
    return float(np.sqrt((off**2).sum(axis=1).mean())) / extent if extent > 0 else np.inf


# --- times --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """What to add to the estimate's times for the paths to agree.

    Attributes:
        matched: poses of the estimate that then have a true pose.
        misfit: RMSE of their positions, as a share of the path's extent.
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
    """That another offset between the clocks makes paths agree which do not, or far more poses match; or nothing.

    Args:
        matched: poses that match now. misfit: as of `check_orientations`.
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
    """That the times of one may be in another unit, as it lasts a thousand times as long as the other; or nothing."""
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
    """The offset between two clocks by which the paths agree best; None unless one stands out among all.

    Each true pose is tried as the one of the estimate's middle, and the path decides: of two streams of even times
    any shift by whole frames matches as well.
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
    place = int(np.searchsorted(truth.timestamps_ns, middle + best.offset_ns))
    around = truth.timestamps_ns[max(place - step, 0) : place + step + 1] - middle
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
