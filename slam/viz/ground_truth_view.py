"""The ground truth in Rerun, aligned to the estimate by Sim(3), and the ATE of that alignment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import rerun as rr

from relocalizer.geometry import FloatArray
from slam.evaluation.alignment import associate, fit_similarity
from slam.evaluation.trajectory import Trajectory, runs_without_gaps
from slam.viz.canvas import TRUTH, Canvas, screen_radius

MATCH_S = 0.02  # Maximum time difference between a frame and its ground truth pose, seconds.
MAX_TRUTH = 4_000  # Maximum number of ground truth poses drawn; more are thinned evenly.


class GroundTruthView:
    """Draws the ground truth up to the newest frame."""

    def __init__(self, canvas: Canvas, ground_truth: Trajectory | None) -> None:
        self._canvas = canvas
        self._truth = ground_truth
        name = "ATE of the keyframes, Sim(3)"
        canvas.recording.log("plots/error/ate", rr.SeriesLines(colors=TRUTH, names=name), static=True)

    def show(self, times_ns: Sequence[int], world_from_cam: FloatArray, of: str) -> str:
        """Draw the ground truth aligned to the estimate.

        Args:
            times_ns: N timestamps of the estimate, nanoseconds.
            world_from_cam: (N, 4, 4) estimated poses.
            of: what the poses belong to ("keyframes", "frames"), for the sentence.

        Returns:
            A sentence with the ATE; empty when nothing is drawn, because there is no ground truth or too few poses
            match to fix the alignment.
        """
        if self._truth is None:
            return ""
        i, j = associate(times_ns, self._truth.timestamps_ns, max_difference_s=MATCH_S)
        truth = self._truth.world_from_cam
        world_from_truth = fit_similarity(world_from_cam[i], truth[j])
        if world_from_truth is None:
            return ""
        residuals = world_from_cam[i, :3, 3] - world_from_truth.apply(truth[j, :3, 3])
        ate = float(np.sqrt((residuals**2).sum(axis=1).mean())) / world_from_truth.scale
        self._canvas.recording.log("plots/error/ate", rr.Scalars(ate))
        until_now = self._truth.timestamps_ns <= self._canvas.latest[1] + round(MATCH_S * 1e9)
        step = max(1, -(-int(until_now.sum()) // MAX_TRUTH))
        stamps = self._truth.timestamps_ns[until_now][::step]
        line = world_from_truth.apply(self._truth.positions[until_now][::step])
        sentence = f"ground truth, aligned by Sim(3) to {len(i)} {of}: ATE {ate:.3g} in its unit"
        strips = [line[run] for run in runs_without_gaps(stamps)]
        shown = rr.LineStrips3D(
            strips, colors=TRUTH, radii=screen_radius(1.2), labels=[sentence] * len(strips), show_labels=False
        )
        self._canvas.recording.log("world/ground_truth", shown)
        return sentence
