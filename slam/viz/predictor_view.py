"""The pair predictor in Rerun: what it said of each pair, against the map and against the ground truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import rerun as rr

from relocalizer.geometry import FloatArray, Similarity, direction_angle, rotation_angle
from relocalizer.interfaces import NoEstimate, PairEstimate
from slam.evaluation.trajectory import Trajectory
from slam.events import PairRelated
from slam.viz.canvas import INLIER, LOOP, OPTIMIZED, TRUTH, WAITING, Canvas, Color

SERIES: tuple[tuple[str, str, Color], ...] = (
    ("rotation/map", "rotation error against the map, deg", OPTIMIZED),
    ("rotation/truth", "rotation error against the ground truth, deg", TRUTH),
    ("rotation/sigma", "its sigma, deg", WAITING),
    ("direction/map", "direction error against the map, deg", OPTIMIZED),
    ("direction/truth", "direction error against the ground truth, deg", TRUTH),
    ("direction/sigma", "its sigma, deg", WAITING),
    ("confidence", "confidence", INLIER),
    ("matches", "matches that agree", LOOP),
)
WORST = 30  # number of pairs in the table
MATCH_NS = 20_000_000  # maximum time difference between a keyframe and its ground truth, nanoseconds


@dataclass(frozen=True, slots=True)
class PairErrors:
    """Errors of a pair estimate, degrees; NaN where there is nothing to compare with."""

    rotation_deg: float = np.nan
    direction_deg: float = np.nan

    @staticmethod
    def of(estimate: PairEstimate, i_from_j: Similarity) -> PairErrors:
        """The errors against a relative pose."""
        rotation = np.degrees(rotation_angle(i_from_j.rotation.T @ estimate.i_from_j_rotation))
        moved = float(np.linalg.norm(i_from_j.translation))
        if estimate.i_from_j_direction is None or moved < 1e-9:
            return PairErrors(float(rotation))
        angle = direction_angle(estimate.i_from_j_direction, i_from_j.translation)
        return PairErrors(float(rotation), float(np.degrees(angle)))


class PredictorView:
    """Plots the estimates as they come, and compares all of them with the final map when the run ends."""

    def __init__(self, canvas: Canvas, ground_truth: Trajectory | None) -> None:
        self._canvas = canvas
        self._log = canvas.recording.log
        self._truth = ground_truth
        self._asked: list[PairRelated] = []
        self._times: dict[int, int] = {}  # by keyframe id, timestamp in nanoseconds
        for path, name, color in SERIES:
            self._log(f"predictor/{path}", rr.SeriesPoints(colors=color, names=name), static=True)

    def add_keyframe(self, keyframe_id: int, timestamp_ns: int) -> None:
        """Note when a keyframe was taken, for its ground truth."""
        self._times[keyframe_id] = timestamp_ns

    def show(self, event: PairRelated) -> None:
        """Plot an estimate; its errors follow when the run ends."""
        self._asked.append(event)
        self._canvas.set_frame(event.frame_index)
        self._log("predictor/table", rr.TextDocument(_sentence(event), media_type="text/markdown"))
        if isinstance(event.estimate, NoEstimate):
            return
        estimate = event.estimate
        self._log("predictor/confidence", rr.Scalars(estimate.confidence))
        self._log("predictor/matches", rr.Scalars(estimate.inliers))
        self._log("predictor/rotation/sigma", rr.Scalars(np.degrees(estimate.rotation_sigma_rad)))
        if estimate.i_from_j_direction is not None:
            self._log("predictor/direction/sigma", rr.Scalars(np.degrees(estimate.direction_sigma_rad)))

    def finish(self, poses: Mapping[int, Similarity]) -> None:
        """Compare all estimates with the final poses and with the ground truth."""
        true_poses = self._true_poses()
        of_map = [(event, _errors(event, poses)) for event in self._asked]
        of_truth = [(event, _errors(event, true_poses)) for event in self._asked]
        for name, errors in (("map", of_map), ("truth", of_truth)):
            self._send(f"predictor/rotation/{name}", errors, lambda found: found.rotation_deg)
            self._send(f"predictor/direction/{name}", errors, lambda found: found.direction_deg)
        if self._asked:
            rows = [(event, found, true) for (event, found), (_, true) in zip(of_map, of_truth, strict=True)]
            rows.sort(key=lambda row: -np.nan_to_num(row[1].rotation_deg, nan=-1.0))
            self._log("predictor/table", rr.TextDocument(_table(rows[:WORST]), media_type="text/markdown"))

    def _send(
        self, path: str, errors: list[tuple[PairRelated, PairErrors]], value: Callable[[PairErrors], float]
    ) -> None:
        """Log a value per pair at the frames of the pairs."""
        known = [(event.frame_index, value(found)) for event, found in errors if np.isfinite(value(found))]
        if known:
            frames = rr.TimeColumn("frame", sequence=[frame for frame, _ in known])
            self._canvas.recording.send_columns(path, [frames], rr.Scalars.columns(scalars=[v for _, v in known]))

    def _true_poses(self) -> dict[int, Similarity]:
        """The ground truth of the keyframes, in its own frame and unit."""
        if self._truth is None or not len(self._truth):
            return {}
        times, matrices = self._truth.timestamps_ns, self._truth.world_from_cam
        found = {}
        for k, time in self._times.items():
            row = int(np.argmin(np.abs(times - time)))
            if abs(int(times[row]) - time) <= MATCH_NS:
                found[k] = _similarity(matrices[row])
        return found


def _similarity(matrix: FloatArray) -> Similarity:
    return Similarity(matrix[:3, :3], matrix[:3, 3])


def _errors(event: PairRelated, poses: Mapping[int, Similarity]) -> PairErrors:
    if isinstance(event.estimate, NoEstimate) or event.i not in poses or event.j not in poses:
        return PairErrors()
    return PairErrors.of(event.estimate, poses[event.i].inverse() @ poses[event.j])


def _sentence(event: PairRelated) -> str:
    head = f"### Keyframes {event.i} and {event.j} ({event.purpose})\n\n"
    if isinstance(event.estimate, NoEstimate):
        return f"{head}no estimate: {event.estimate.reason}"
    found = event.estimate
    turned = np.degrees(rotation_angle(found.i_from_j_rotation))
    sigma = f"{np.degrees(found.rotation_sigma_rad):.2f}"
    direction = found.direction_unknown or f"known to {np.degrees(found.direction_sigma_rad):.1f} deg"
    return (
        f"{head}turned by {turned:.1f} deg (+- {sigma}); direction {direction}; confidence {found.confidence:.2f}; "
        f"{found.inliers} matches\n"
    )


def _table(rows: list[tuple[PairRelated, PairErrors, PairErrors]]) -> str:
    """The pairs with the largest rotation errors, in Markdown."""
    lines = ["### Pairs with the largest errors against the final map, degrees", ""]
    lines += ["| pair | for | rotation | sigma | direction | sigma | confidence | true rotation | true direction |"]
    lines += ["|---|---|--:|--:|--:|--:|--:|--:|--:|"]
    for event, found, true in rows:
        if isinstance(event.estimate, NoEstimate):
            continue
        estimate = event.estimate
        values = (
            found.rotation_deg, np.degrees(estimate.rotation_sigma_rad), found.direction_deg,
            np.degrees(estimate.direction_sigma_rad), estimate.confidence, true.rotation_deg, true.direction_deg,
        )  # fmt: skip
        shown = " | ".join("" if np.isnan(value) else f"{value:.2f}" for value in values)
        lines.append(f"| {event.i}-{event.j} | {event.purpose} | {shown} |")
    return "\n".join(lines)
