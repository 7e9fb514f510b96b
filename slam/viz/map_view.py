"""The map in Rerun: keyframes, the trajectory through them, edges and landmarks."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import rerun as rr

from relocalizer.geometry import FloatArray, Similarity
from slam.events import EdgeAccepted, EdgeRejected, KeyframeAdded, LandmarksUpdated
from slam.map.keyframe_graph import EdgeKind
from slam.viz.canvas import LOOP, ODOMETRY, OPTIMIZED, REJECTED, Canvas, Color, screen_radius
from slam.viz.ground_truth_view import GroundTruthView

MAX_LANDMARKS = 50_000  # Maximum number of landmarks sent; more are thinned evenly.
MOST_UNCERTAIN = 2_000  # Maximum number of landmarks whose uncertainty is sent; more are thinned evenly.
UNCERTAINTY_GROWTH = 0.3  # Relative growth of the number of landmarks at which their uncertainty is sent again.
LONGEST_SIGMA = 20.0  # Length that longer standard deviations are cut to, relative to their median.
MAX_REJECTED = 2_000  # Maximum number of rejected edges drawn, the newest.
GROWTH = 0.05  # Relative growth of the number of keyframes at which the map is sent again.
MOVED = 0.005  # Displacement of a keyframe, relative to the map's extent, at which the map is sent again.
UNCERTAIN = (230, 140, 90)
SEGMENT_COLORS = ((200, 160, 90), (60, 160, 255), (255, 120, 200), (120, 230, 230))
# The corners of a pyramid (0 is its apex) in an order that draws every edge in one stroke.
FRUSTUM_STROKE = [1, 2, 3, 4, 1, 0, 2, 3, 0, 4]


@dataclass(frozen=True, slots=True)
class _KeyframeMark:
    """What is drawn of a keyframe besides its pose.

    Attributes:
        interval: number of the interval it was tracked in; there is no loss of tracking within an interval.
        half_extent: half the image's width and height at depth 1.
    """

    timestamp_ns: int
    interval: int
    half_extent: tuple[float, float]


class _Segments:
    """The map segment of each keyframe. Segments have unrelated worlds until a loop joins them."""

    def __init__(self) -> None:
        self._current = 0  # Segment of the next keyframe.
        self._of: dict[int, int] = {}

    def begin(self, segment: int) -> None:
        self._current = segment

    def resume(self, keyframe_id: int) -> None:
        """Continue in the segment of a keyframe, if that is known."""
        self._current = self._of.get(keyframe_id, self._current)

    def add(self, keyframe_id: int) -> None:
        self._of[keyframe_id] = self._current

    def join(self, i: int, j: int) -> None:
        """Merge the segment of keyframe j into that of keyframe i."""
        kept, gone = self._of.get(i), self._of.get(j)
        if kept is not None and gone is not None and kept != gone:
            self._of = {k: kept if segment == gone else segment for k, segment in self._of.items()}
            self._current = kept if self._current == gone else self._current

    def colors(self, ids: Iterable[int]) -> list[Color]:
        return [SEGMENT_COLORS[self._of[k] % len(SEGMENT_COLORS)] for k in ids]

    def largest(self, ids: Sequence[int]) -> list[int]:
        """Those of the keyframes (at least one) that are in the segment with the most of them."""
        segment, _ = Counter(self._of[k] for k in ids).most_common(1)[0]
        return [k for k in ids if self._of[k] == segment]


class MapView:
    """Draws the keyframes with the trajectory through them, edges and landmarks; each only when it changed enough."""

    def __init__(self, canvas: Canvas, truth: GroundTruthView) -> None:
        self._canvas = canvas
        self._log = canvas.recording.log
        self._truth = truth
        self._truth_is_announced = False
        self._marks: dict[int, _KeyframeMark] = {}
        self._poses: dict[int, Similarity] = {}
        self._sent_poses: dict[int, Similarity] = {}
        self._interval = 0
        self._segments = _Segments()
        self._edges: dict[tuple[int, int], EdgeKind] = {}
        self._rejected: deque[tuple[int, int]] = deque(maxlen=MAX_REJECTED)
        self._landmarks: LandmarksUpdated | None = None  # The newest, until it is sent.
        self._newest: LandmarksUpdated | None = None
        self._landmarks_are_due = True
        self._uncertain = 0  # Number of landmarks when their uncertainty was sent last.
        scale = rr.SeriesLines(colors=LOOP, names="keyframe scale")
        self._log("plots/depth/keyframe_scale", scale, static=True)
        sigma = rr.SeriesLines(colors=ODOMETRY, names="sigma of the log scale from keyframe to keyframe")
        self._log("plots/depth/scale_sigma", sigma, static=True)

    # --- changes of the map ---------------------------------------------------------------------------

    def begin_interval(self, *, new_segment: bool = False) -> None:
        """Draw a gap in the trajectory before the next keyframe, because tracking was lost or a map segment begins."""
        self._interval += 1
        if new_segment:
            self._segments.begin(self._interval)

    def resume_segment(self, keyframe_id: int) -> None:
        """Add the next keyframes to the segment of this keyframe, in which the camera was relocalized."""
        self._segments.resume(keyframe_id)

    def add_keyframe(self, event: KeyframeAdded) -> None:
        """Add a keyframe; `send` draws it."""
        keyframe, camera = event.keyframe, event.keyframe.camera
        half_extent = (camera.width / (2 * camera.fx), camera.height / (2 * camera.fy))
        self._marks[keyframe.id] = _KeyframeMark(keyframe.timestamp_ns, self._interval, half_extent)
        self._segments.add(keyframe.id)
        self._poses[keyframe.id] = event.world_from_keyframe
        self._log("plots/depth/keyframe_scale", rr.Scalars(event.world_from_keyframe.scale))

    @property
    def poses(self) -> dict[int, Similarity]:
        """The current pose of every keyframe."""
        return self._poses

    def move_keyframes(self, world_from_keyframe: Mapping[int, Similarity]) -> None:
        """Set poses of keyframes; `send` draws them."""
        self._poses.update(world_from_keyframe)

    def add_edge(self, event: EdgeAccepted) -> None:
        """Add an edge; `send` draws it. A loop joins the segments of its ends."""
        edge = event.edge
        self._edges[edge.i, edge.j] = edge.kind
        if edge.kind is EdgeKind.ODOMETRY and edge.j - edge.i == 1:
            self._log("plots/depth/scale_sigma", rr.Scalars(float(edge.sigmas[6])))
        if edge.kind is EdgeKind.LOOP:
            self._segments.join(edge.i, edge.j)

    def add_rejected_loop(self, event: EdgeRejected) -> None:
        """Add a rejected loop; `send` draws it."""
        self._rejected.append((event.i, event.j))

    def update_landmarks(self, event: LandmarksUpdated) -> None:
        """Replace the landmarks; they are drawn when the map was sent since the last time."""
        self._landmarks = self._newest = event
        if self._landmarks_are_due:
            self._send_landmarks()

    # --- drawing --------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Draw everything that is not drawn yet."""
        if self._poses:
            self.send(always=True)
        self._send_landmarks()
        if self._newest is not None:
            self._send_uncertainty(self._newest)

    def send(self, *, always: bool = False) -> None:
        """Send keyframes, trajectory, edges and ground truth, one batch each, if the map changed enough."""
        if not (always or self._has_changed()):
            return
        self._sent_poses, self._landmarks_are_due = dict(self._poses), True
        ids = sorted(self._poses.keys() & self._marks.keys(), key=lambda k: self._marks[k].timestamp_ns)
        self._send_keyframes(ids)
        self._log("world/edges/odometry", self._edge_lines(self._edges_of(EdgeKind.ODOMETRY), ODOMETRY, 0.6))
        self._log("world/edges/loop", self._edge_lines(self._edges_of(EdgeKind.LOOP), LOOP, 1.8))
        self._log("world/edges/rejected", self._edge_lines(self._rejected, REJECTED, 0.3))
        if ids:
            self._show_truth(self._segments.largest(ids))

    def _has_changed(self) -> bool:
        old, new = self._sent_poses, self._poses
        if len(new) - len(old) >= max(1.0, GROWTH * len(old)):
            return True
        common = sorted(old.keys() & new.keys())
        before = np.array([old[k].translation for k in common])
        after = np.array([new[k].translation for k in common])
        return bool(np.abs(after - before).max() > MOVED * np.ptp(before, axis=0).max())

    def _send_keyframes(self, ids: Sequence[int]) -> None:
        """Send the trajectory through the keyframes and, once their size is known, the frusta."""
        trajectory = rr.LineStrips3D(self._lines(ids), colors=OPTIMIZED, radii=screen_radius(1.2))
        self._log("world/trajectory/optimized", trajectory)
        if self._canvas.frustum_depth:
            frusta = np.array([self._frustum(k) for k in ids], dtype=np.float32)
            strips = rr.LineStrips3D(frusta, colors=self._segments.colors(ids), radii=screen_radius(0.7))
            self._log("world/keyframes", strips)

    def _show_truth(self, ids: Sequence[int]) -> None:
        """Draw the ground truth aligned to these keyframes, and log its first ATE."""
        poses = np.array([self._poses[k].rigid.as_matrix() for k in ids])
        sentence = self._truth.show([self._marks[k].timestamp_ns for k in ids], poses, "keyframes")
        if sentence and not self._truth_is_announced:
            self._truth_is_announced = True
            self._canvas.message(sentence, "INFO")

    def _lines(self, ids: Sequence[int]) -> list[FloatArray]:
        """The path through the keyframes, one line per tracked interval."""
        intervals = groupby(ids, key=lambda k: self._marks[k].interval)
        return [np.array([self._poses[k].translation for k in interval]) for _, interval in intervals]

    def _edges_of(self, kind: EdgeKind) -> list[tuple[int, int]]:
        return [ends for ends, its_kind in self._edges.items() if its_kind is kind]

    def _frustum(self, k: int) -> FloatArray:
        x, y = self._marks[k].half_extent
        pyramid = np.array([[0, 0, 0], [-x, -y, 1], [x, -y, 1], [x, y, 1], [-x, y, 1]]) * self._canvas.frustum_depth
        return self._poses[k].apply(pyramid)[FRUSTUM_STROKE]

    def _edge_lines(self, edges: Iterable[tuple[int, int]], color: Color, width: float) -> rr.LineStrips3D:
        """A line between the keyframes of each edge."""
        known = [(i, j) for i, j in edges if i in self._poses and j in self._poses]
        ends = [(self._poses[i].translation, self._poses[j].translation) for i, j in known]
        # One array of all lines: a list of small arrays takes Rerun thirty times as long.
        strips = np.array(ends, dtype=np.float32).reshape(-1, 2, 3)
        return rr.LineStrips3D(strips, colors=color, radii=screen_radius(width))

    def _send_landmarks(self) -> None:
        event = self._landmarks
        if event is None:
            return
        self._landmarks, self._landmarks_are_due = None, False
        step = max(1, -(-len(event.ids) // MAX_LANDMARKS))
        points = rr.Points3D(event.points_world[::step], colors=event.colors[::step], radii=screen_radius(1.5))
        self._log("world/landmarks", points)
        if len(event.ids) >= (1.0 + UNCERTAINTY_GROWTH) * self._uncertain:
            self._send_uncertainty(event)

    def _send_uncertainty(self, event: LandmarksUpdated) -> None:
        """Draw a line from minus to plus one standard deviation of each landmark's depth, where it is known."""
        if event.depth_sigmas is None:
            return
        self._uncertain = len(event.ids)
        step = max(1, -(-len(event.ids) // MOST_UNCERTAIN))
        points, shown = event.points_world[::step], event.depth_sigmas[::step]
        lengths = np.linalg.norm(shown, axis=1)
        longest = LONGEST_SIGMA * np.median(lengths) if len(lengths) else 0.0
        shown = shown * np.minimum(1.0, longest / np.maximum(lengths, 1e-12))[:, None]
        strips = np.stack([points - shown, points + shown], axis=1).astype(np.float32)
        self._log("world/uncertainty", rr.LineStrips3D(strips, colors=UNCERTAIN, radii=screen_radius(0.6)))
