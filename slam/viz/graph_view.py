"""The pose graph in Rerun: edges colored by their residuals, before and after each optimization, with covariances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import rerun as rr
from scipy.spatial.transform import Rotation

from relocalizer.geometry import FloatArray, Similarity
from slam.events import EdgeAccepted, GraphOptimized
from slam.map.edge_residuals import EdgeResiduals
from slam.map.keyframe_graph import Edge
from slam.viz.canvas import OPTIMIZED, Canvas, screen_radius
from slam.viz.colors import ramp

WORST = 3.0  # normalized residual of the color at the end of the scale: three times what the sigmas say
SIGMAS = 3.0  # size of the covariance ellipsoids, standard deviations
MOST_EDGES = 20_000  # maximum number of edges drawn, those with the largest residuals
MOST_ELLIPSOIDS = 500  # maximum number of ellipsoids drawn, evenly chosen
FAINT = 0.15  # brightness of an edge of weight 0, relative to one of weight 1


class GraphView:
    """Draws the graph after each optimization; selecting an edge shows its numbers."""

    def __init__(self, canvas: Canvas) -> None:
        self._canvas = canvas
        self._edges: dict[tuple[int, int], Edge] = {}
        name = "largest normalized residual"
        canvas.recording.log("graph/residuals/largest", rr.SeriesLines(colors=OPTIMIZED, names=name), static=True)

    def add_edge(self, event: EdgeAccepted) -> None:
        """Remember an edge as it was measured, for its sigmas."""
        self._edges[event.edge.i, event.edge.j] = event.edge

    def show(self, event: GraphOptimized, poses: Mapping[int, Similarity]) -> None:
        """Draw the edges of an optimized graph.

        Args:
            poses: of all keyframes, after the optimization.
        """
        if event.after is None or not len(event.after):
            return
        for name, residuals in (("before", event.before), ("after", event.after)):
            if residuals is not None:
                self._draw(name, residuals, poses)
        self._draw_covariances(poses)
        worst = float(event.after.normalized.max())
        self._canvas.recording.log("graph/residuals/largest", rr.Scalars(worst))
        table = rr.TextDocument(_table(event), media_type="text/markdown")
        self._canvas.recording.log("graph/table", table)

    def _draw(self, name: str, residuals: EdgeResiduals, poses: Mapping[int, Similarity]) -> None:
        known = [i in poses and j in poses for i, j in residuals.ends.tolist()]
        residuals = residuals.where(np.array(known, bool)).worst(MOST_EDGES)
        for kind, chosen in (("odometry", ~residuals.is_loop), ("loop", residuals.is_loop)):
            of_kind = residuals.where(chosen)
            strips = np.array(
                [(poses[i].translation, poses[j].translation) for i, j in of_kind.ends.tolist()], np.float32
            ).reshape(-1, 2, 3)
            colors = ramp(of_kind.normalized / WORST) * np.maximum(of_kind.weights, FAINT)[:, None]
            labels = [
                f"{i}-{j}: chi-square {squared:.2f}, weight {weight:.2f}"
                for (i, j), squared, weight in zip(of_kind.ends.tolist(), of_kind.squared, of_kind.weights, strict=True)
            ]
            drawn = rr.LineStrips3D(
                strips,
                colors=colors.astype(np.uint8),
                radii=screen_radius(1.0 if kind == "odometry" else 2.5),
                labels=labels,
                show_labels=False,
            )
            numbers = rr.AnyValues(
                chi_square=of_kind.squared.astype(np.float32),
                weight=of_kind.weights.astype(np.float32),
                keyframe_i=of_kind.ends[:, 0],
                keyframe_j=of_kind.ends[:, 1],
                landmarks=self._landmarks(of_kind.ends.tolist()),
            )
            self._canvas.recording.log(f"world/graph/{name}/{kind}", drawn, numbers)

    def _landmarks(self, ends: Sequence[list[int]]) -> FloatArray:
        """Number of landmarks of each edge; -1 where it is not known."""
        edges = [self._edges.get((i, j)) for i, j in ends]
        return np.array([-1 if edge is None else edge.inliers for edge in edges], np.float64)

    def _draw_covariances(self, poses: Mapping[int, Similarity]) -> None:
        """Ellipsoids of the position of each keyframe relative to the keyframe before it, from their edge's sigmas."""
        latest: dict[int, Edge] = {}
        for (i, j), edge in self._edges.items():
            if i in poses and j in poses and (j not in latest or i > latest[j].i):
                latest[j] = edge
        step = max(1, -(-len(latest) // MOST_ELLIPSOIDS))
        chosen = [latest[j] for j in sorted(latest)][::step]
        if not chosen:
            return
        drawn = rr.Ellipsoids3D(
            centers=np.array([poses[edge.j].translation for edge in chosen]),
            half_sizes=np.array([SIGMAS * poses[edge.i].scale * edge.sigmas[3:6] for edge in chosen]),
            quaternions=np.array([Rotation.from_matrix(poses[edge.j].rotation).as_quat() for edge in chosen]),
            colors=(150, 150, 210),
            line_radii=screen_radius(0.4),
        )
        self._canvas.recording.log("world/graph/covariance", drawn)


def _table(event: GraphOptimized) -> str:
    """The worst edges of a graph in Markdown."""
    assert event.after is not None
    before = (
        {}
        if event.before is None
        else dict(zip(map(tuple, event.before.ends.tolist()), event.before.squared, strict=True))
    )
    worst = event.after.worst(20)
    rows = [
        f"| {i}-{j} | {_kind(is_loop)} | {_text(before.get((i, j)))} | {squared:.2f} | {weight:.2f} |"
        for (i, j), is_loop, squared, weight in zip(
            worst.ends.tolist(), worst.is_loop.tolist(), worst.squared, worst.weights, strict=True
        )
    ]
    head = "| edge | kind | chi-square before | after | weight |\n|---|---|--:|--:|--:|"
    return f"### {event.cause}\n\nThe edges with the largest residuals (7 degrees of freedom):\n\n{head}\n" + "\n".join(
        rows
    )


def _kind(is_loop: bool) -> str:
    return "loop" if is_loop else "odometry"


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
