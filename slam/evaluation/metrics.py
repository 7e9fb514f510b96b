"""Evaluation of a trajectory against ground truth.

A monocular trajectory has no metric scale, so it is aligned to the ground truth by a similarity, Sim(3). The errors
after a rigid alignment, SE(3), are reported too and show the error of the scale. Metrics as in Sturm et al., "A
benchmark for the evaluation of RGB-D SLAM systems", 2012: absolute trajectory error (ATE) and relative pose error
(RPE); alignment by Umeyama 1991.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from relocalizer.geometry import FloatArray, Similarity, align_points
from slam.evaluation.alignment import associate
from slam.evaluation.comparability import ONE_LINE, expect_matches, expect_motion, expect_times, extents_of
from slam.evaluation.disagreement import (
    OrientationCheck,
    check_orientations,
    note_of_clocks,
    note_of_line,
    note_of_positions,
)
from slam.evaluation.trajectory import Trajectory

MatchedBy = Literal["time", "frame number", "line number"]
DELTA_TOLERANCE = 0.1  # Maximum relative deviation of a pair's time difference from the requested one.


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of non-negative errors, in their unit."""

    rmse: float
    mean: float
    median: float
    max: float

    @staticmethod
    def of(errors: FloatArray) -> Statistics:
        """Statistics of (N,) errors, N >= 1."""
        return Statistics(
            rmse=float(np.sqrt(np.mean(errors**2))),
            mean=float(np.mean(errors)),
            median=float(np.median(errors)),
            max=float(np.max(errors)),
        )


@dataclass(frozen=True, slots=True)
class RelativeError:
    """RPE over all pairs of poses `delta` apart; translation in the ground truth's unit."""

    delta: str
    pairs: int
    translation: Statistics
    rotation_deg: Statistics


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Evaluation:
    """Comparison of an estimate with the ground truth. Lengths are in the ground truth's unit.

    Attributes:
        matched: number of poses of the estimate with a ground truth pose within `max_difference_s`, or with the same
            number.
        matched_by: criterion of the matching.
        expected, covered: number of frames that should have a pose, and of those that have one.
        coverage_of: description of the expected frames.
        path_length: length of the ground truth from the first matched pose to the last.
        scale: ground truth units per unit of the estimate, from the Sim(3) alignment.
        ate_sim3, ate_se3: distance between matched positions after each alignment.
        orientation_deg: angle between matched orientations after the alignment (Sim(3) and SE(3) have the same
            rotation); None if all positions are collinear, which does not determine the roll about the line.
        orientation_check: whether the orientations disagree because of the files' conventions (order of the quaternion,
            axes of another body); None if the positions do not allow a check.
        notes: possible errors in the files, one sentence each, including that of `orientation_check`.
        rpe_frame: RPE from each matched pose to the next; rpe_second: over one second, None in a shorter run or
            without times. Both after scaling by `scale`.
        drift_percent: error of the motion from first to last matched pose, per path length, after scaling, percent.
        aligned, reference: the matched poses, (matched,) each, the estimate's after Sim(3).
    """

    matched: int
    matched_by: MatchedBy
    estimate_poses: int
    ground_truth_poses: int
    max_difference_s: float
    expected: int
    covered: int
    coverage_of: str
    path_length: float
    scale: float
    ate_sim3: Statistics
    ate_se3: Statistics
    orientation_deg: Statistics | None
    orientation_check: OrientationCheck | None
    notes: tuple[str, ...]
    rpe_frame: RelativeError
    rpe_second: RelativeError | None
    drift_percent: float
    aligned: Trajectory
    reference: Trajectory

    @property
    def coverage(self) -> float:
        """Fraction of the expected frames that have a pose, in [0, 1]."""
        return self.covered / self.expected

    @property
    def ate_percent(self) -> float:
        """ATE (RMSE, Sim(3)) per path length, percent."""
        return 100.0 * self.ate_sim3.rmse / self.path_length

    @property
    def title(self) -> str:
        """Number of matched poses, how they were matched, and the alignments."""
        how = f"within {self.max_difference_s:g} s" if self.matched_by == "time" else f"by {self.matched_by}"
        return (
            f"{self.matched} poses matched {how}, "
            f"Umeyama alignment by Sim(3) (scale {self.scale:.6g}) and by SE(3) (scale 1)"
        )

    def to_dict(self) -> dict[str, Any]:
        """The figures, ready for JSON; trajectories are left out."""
        orientation, second = self.orientation_deg, self.rpe_second
        return {
            "title": self.title,
            "matched": self.matched,
            "matched_by": self.matched_by,
            "estimate_poses": self.estimate_poses,
            "ground_truth_poses": self.ground_truth_poses,
            "max_difference_s": self.max_difference_s,
            "expected": self.expected,
            "covered": self.covered,
            "coverage": self.coverage,
            "coverage_of": self.coverage_of,
            "path_length": self.path_length,
            "scale": self.scale,
            "ate_sim3": asdict(self.ate_sim3),
            "ate_se3": asdict(self.ate_se3),
            "ate_percent": self.ate_percent,
            "orientation_deg": None if orientation is None else asdict(orientation),
            "orientation_check": None if self.orientation_check is None else asdict(self.orientation_check),
            "notes": list(self.notes),
            "rpe_frame": asdict(self.rpe_frame),
            "rpe_second": None if second is None else asdict(second),
            "drift_percent": self.drift_percent,
        }


def evaluate(
    estimate: Trajectory,
    ground_truth: Trajectory,
    *,
    max_difference_s: float = 0.02,
    expected: NDArray[np.int64] | None = None,
    matched_by: MatchedBy = "time",
) -> Evaluation:
    """Compare an estimate with the ground truth.

    Two trajectories without times are matched line by line, and no metric per second is computed.

    Args:
        max_difference_s: maximum time difference of matched poses, seconds.
        expected: (N,) increasing timestamps of the frames that should have a pose, nanoseconds. Without them, coverage
            is computed over the ground truth's timestamps between the first and the last pose of the estimate.
        matched_by: how the timestamps of both were made comparable, for the report.

    Raises:
        TrajectoryError: fewer than three poses match, only one side has times, neither has and their lengths differ,
            or all positions of one side are equal.
    """
    matched, reference = _matched(estimate, ground_truth, max_difference_s)
    sim3 = align_points(reference.positions, matched.positions)
    se3 = align_points(reference.positions, matched.positions, with_scale=False)
    aligned = matched.transformed(sim3)
    covered, of_expected, coverage_of = _coverage(estimate, ground_truth, expected, max_difference_s)
    rpe_frame = relative_error(aligned, reference, delta_frames=1)
    assert rpe_frame is not None  # Three poses have two such pairs.
    ate, orientation = Statistics.of(position_errors(aligned, reference)), _orientation(aligned, reference)
    misfit = ate.rmse / float(extents_of(reference)[0])
    check = _orientation_check(matched, reference, sim3, misfit)
    notes = _notes(matched, reference, check, orientation, misfit)
    if matched_by == "time" and estimate.has_times:
        count = len(matched)
        notes += [
            _note_of_unmatched(estimate, ground_truth, count, max_difference_s),
            note_of_clocks(estimate, ground_truth, matched=count, misfit=misfit, max_difference_s=max_difference_s),
        ]
    return Evaluation(
        matched=len(matched),
        matched_by=matched_by if estimate.has_times else "line number",
        estimate_poses=len(estimate),
        ground_truth_poses=len(ground_truth),
        max_difference_s=max_difference_s,
        expected=of_expected,
        covered=covered,
        coverage_of=coverage_of,
        path_length=reference.length,
        scale=sim3.scale,
        ate_sim3=ate,
        ate_se3=Statistics.of(position_errors(matched.transformed(se3), reference)),
        orientation_deg=orientation,
        orientation_check=check,
        notes=tuple(filter(None, notes)),
        rpe_frame=rpe_frame,
        rpe_second=relative_error(aligned, reference, delta_s=1.0) if reference.has_times else None,
        drift_percent=_drift_percent(aligned, reference),
        aligned=aligned,
        reference=reference,
    )


def position_errors(estimate: Trajectory, reference: Trajectory) -> FloatArray:
    """Distances (N,) between positions of two trajectories of N poses each."""
    return np.asarray(np.linalg.norm(estimate.positions - reference.positions, axis=1))


def orientation_errors_deg(estimate: Trajectory, reference: Trajectory) -> FloatArray:
    """Angles (N,) between orientations of two trajectories of N poses each, degrees."""
    return _angles_deg(reference.world_from_cam[:, :3, :3], estimate.world_from_cam[:, :3, :3])


def relative_error(
    estimate: Trajectory,
    reference: Trajectory,
    *,
    delta_frames: int | None = None,
    delta_s: float | None = None,
) -> RelativeError | None:
    """RPE over all pairs of poses that are a number of frames, or of seconds, apart.

    Args:
        estimate, reference: N matched poses each; the reference's timestamps are used.

    Returns:
        None if there is no such pair.

    Raises:
        ValueError: neither or both of the deltas are given, or one is not positive.
    """
    [*given] = (delta for delta in (delta_frames, delta_s) if delta is not None)
    if len(given) != 1 or not 0 < given[0] < np.inf:
        raise ValueError("relative_error: give one of delta_frames and delta_s, and a positive one")
    if delta_frames is not None:
        i = np.arange(max(len(reference) - delta_frames, 0))
        j, delta = i + delta_frames, f"{delta_frames} frame{'s' * (delta_frames > 1)}"
    else:
        assert delta_s is not None
        i, j = _pairs_apart(reference.timestamps_ns, delta_s)
        delta = f"{delta_s:g} s"
    if len(i) == 0:
        return None
    translation, rotation_deg = motion_errors(estimate, reference, i, j)
    return RelativeError(delta, len(i), Statistics.of(translation), Statistics.of(rotation_deg))


def _matched(estimate: Trajectory, truth: Trajectory, max_difference_s: float) -> tuple[Trajectory, Trajectory]:
    """The matched poses of both. Raises TrajectoryError as `evaluate`."""
    expect_times(estimate, truth)
    index_e, index_g = associate(estimate.timestamps_ns, truth.timestamps_ns, max_difference_s=max_difference_s)
    expect_matches(len(index_e), estimate, truth, max_difference_s)
    matched, reference = _part(estimate, index_e), _part(truth, index_g)
    expect_motion(matched, "estimate")
    expect_motion(reference, "ground truth")
    return matched, reference


def _notes(
    matched: Trajectory,
    reference: Trajectory,
    check: OrientationCheck | None,
    orientation: Statistics | None,
    misfit: float,
) -> list[str]:
    """Possible errors in the files, found from matched poses; some of the sentences may be empty."""
    rotation_rmse_deg = 0.0 if orientation is None else orientation.rmse
    return [
        check.note if check is not None else "",
        note_of_line(rotation_rmse_deg, misfit=misfit, extents=extents_of(reference)),
        note_of_positions(matched.world_from_cam, reference.world_from_cam, misfit=misfit),
    ]


def _note_of_unmatched(estimate: Trajectory, truth: Trajectory, matched: int, max_difference_s: float) -> str:
    if matched >= len(estimate) / 2:
        return ""
    return (
        f"{matched} of {len(estimate)} poses of the estimate have a ground truth pose within {max_difference_s:g} s "
        f"(it has {len(truth)} poses); the others are not judged"
    )


def _coverage(
    estimate: Trajectory,
    ground_truth: Trajectory,
    expected: NDArray[np.int64] | None,
    max_difference_s: float,
) -> tuple[int, int, str]:
    """(covered, expected, description of the expected frames)."""
    if expected is not None:
        if len(expected) == 0:
            raise ValueError("evaluate: no frames are expected")
        covered, _ = associate(expected, estimate.timestamps_ns, max_difference_s=max_difference_s)
        return len(covered), len(expected), "frames of the sequence"
    limit = round(max_difference_s * 1e9)
    times, stamps = ground_truth.timestamps_ns, estimate.timestamps_ns
    times = times[(times >= stamps[0] - limit) & (times <= stamps[-1] + limit)]
    # Not one to one: the rate of the ground truth is often higher than the frame rate.
    after = np.clip(np.searchsorted(stamps, times), 1, len(stamps) - 1)
    gaps = np.minimum(np.abs(stamps[after] - times), np.abs(times - stamps[after - 1]))
    return int((gaps <= limit).sum()), len(times), "ground truth poses within the estimate's time span"


def _part(trajectory: Trajectory, indices: NDArray[np.intp]) -> Trajectory:
    return replace(
        trajectory, timestamps_ns=trajectory.timestamps_ns[indices], world_from_cam=trajectory.world_from_cam[indices]
    )


def _orientation(aligned: Trajectory, reference: Trajectory) -> Statistics | None:
    for trajectory in (aligned, reference):
        extents = extents_of(trajectory)
        if extents[1] <= ONE_LINE * extents[0]:
            return None
    return Statistics.of(orientation_errors_deg(aligned, reference))


def _orientation_check(
    matched: Trajectory, reference: Trajectory, sim3: Similarity, misfit: float
) -> OrientationCheck | None:
    return check_orientations(
        matched.world_from_cam[:, :3, :3],
        reference.world_from_cam[:, :3, :3],
        sim3.rotation,
        misfit=misfit,
        extents=extents_of(reference),
    )


def _drift_percent(aligned: Trajectory, reference: Trajectory) -> float:
    ends = np.array([0]), np.array([len(reference) - 1])
    translation, _ = motion_errors(aligned, reference, *ends)
    return float(100.0 * translation[0] / reference.length)


def _pairs_apart(times_ns: NDArray[np.int64], delta_s: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Index pairs (i, j): j is nearest to `delta_s` after i, if within the tolerance."""
    wanted = times_ns + round(delta_s * 1e9)
    after = np.clip(np.searchsorted(times_ns, wanted), 1, len(times_ns) - 1)
    j = np.where(wanted - times_ns[after - 1] <= times_ns[after] - wanted, after - 1, after)
    deviation = np.abs(times_ns[j] - wanted)
    near = (deviation < DELTA_TOLERANCE * delta_s * 1e9) & (j > np.arange(len(times_ns)))
    i = np.flatnonzero(
        near & (wanted <= times_ns[-1])
    )  # Beyond the end, the last timestamp would be paired repeatedly.
    return i, j[i]


def motion_errors(
    estimate: Trajectory, reference: Trajectory, i: NDArray[np.intp], j: NDArray[np.intp]
) -> tuple[FloatArray, FloatArray]:
    """Translation (the reference's unit) and angle (degrees) of (ref_i^-1 ref_j)^-1 (est_i^-1 est_j)."""
    rotations, translations = zip(*(_motions(t.world_from_cam, i, j) for t in (reference, estimate)), strict=True)
    translation = np.asarray(np.linalg.norm(translations[1] - translations[0], axis=1))
    return translation, _angles_deg(*rotations)


def _motions(poses: FloatArray, i: NDArray[np.intp], j: NDArray[np.intp]) -> tuple[FloatArray, FloatArray]:
    """Rotations (M, 3, 3) and translations (M, 3) of i_from_j."""
    i_from_world = poses[i, :3, :3].transpose(0, 2, 1)
    translations = i_from_world @ (poses[j, :3, 3] - poses[i, :3, 3])[:, :, None]
    return i_from_world @ poses[j, :3, :3], translations[:, :, 0]


def _angles_deg(a: FloatArray, b: FloatArray) -> FloatArray:
    """Angles (M,) between rotations (M, 3, 3), degrees."""
    return np.asarray(np.degrees(Rotation.from_matrix(a.transpose(0, 2, 1) @ b).magnitude()))
