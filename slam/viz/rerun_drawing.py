"""Draws the events of a run in Rerun.

| entity | content |
|---|---|
| `world/camera` | the live pose; `image` is its image, `image/tracks` the tracked points |
| `world/trajectory/{live,optimized,final}` | as tracked; through the keyframes; every frame, at the end |
| `world/keyframes` | one small frustum per keyframe |
| `world/edges/{odometry,loop,rejected}` | edges between keyframes, and rejected loops |
| `world/landmarks`, `world/uncertainty` | colored points; one sigma of their depth, shown on demand |
| `world/ground_truth` | if known: up to now, aligned to the map by Sim(3), because map units are arbitrary |
| `world/camera/image/{ages,residuals}`, `tracking/*` | points by age, reprojection residuals, their histogram |
| `world/graph/{before,after}/{odometry,loop}`, `graph/*` | edges by residual and weight; ellipsoids |
| `keyframes/*` | each criterion against its limit; similarity of all keyframes, loops marked |
| `loops/*` | every candidate: both images with the matches, the tests as a table |
| `predictor/*` | what the pair predictor said, against the map and the ground truth |
| `relocalization/*`, `world/relocalization/*` | places tried for a lost frame, and why not; its pose when found |
| `plots/*` | tracks, motion, brightness, depth and scale, error, milliseconds per stage, memory, state |
| `log` | reasons, in sentences; a loss is an error, a refused loop a debug line |

Timelines: `frame` (its index), `time` (seconds since the first frame) and `loop` (number of the loop candidate).
Entities that grow with the map (keyframes, edges, landmarks) are sent again only after relative growth or motion, so
the size of a recording grows about linearly (docs/debugging.md has the size).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import rerun as rr

from relocalizer.camera import Camera
from slam import events
from slam.evaluation.trajectory import Trajectory, runs_without_gaps
from slam.events import Event
from slam.map.keyframe_graph import EdgeKind
from slam.viz.canvas import FINAL, Canvas, screen_radius
from slam.viz.graph_view import GraphView
from slam.viz.ground_truth_view import GroundTruthView
from slam.viz.keyframes_view import KeyframesView
from slam.viz.live_view import LiveView
from slam.viz.loops_view import LoopsView
from slam.viz.map_view import MapView
from slam.viz.predictor_view import PredictorView
from slam.viz.relocalization_view import RelocalizationView
from slam.viz.thumbnails import KeyframeThumbnails


class Drawing:
    """Draws events into a recording: sets the time, updates the views, and logs a sentence per event."""

    def __init__(self, recording: rr.RecordingStream, *, ground_truth: Trajectory | None, camera: Camera) -> None:
        """Log the static entities.

        Args:
            ground_truth: drawn beside the estimate.
            camera: camera of the sequence, stored among the recording's properties; images are sent with their own.
        """
        recording.log("world", rr.ViewCoordinates.RDF, static=True)
        intrinsics = [camera.fx, camera.fy, camera.cx, camera.cy]
        size = [camera.width, camera.height]
        recording.send_property("camera", rr.AnyValues(size=size, fx_fy_cx_cy=intrinsics, assumed=camera.assumed))
        self._canvas = Canvas(recording)
        self._truth = GroundTruthView(self._canvas, ground_truth)
        self._live = LiveView(self._canvas)
        self._map = MapView(self._canvas, self._truth)
        self._thumbnails = KeyframeThumbnails()
        self._loops = LoopsView(self._canvas, self._thumbnails)
        self._graph = GraphView(self._canvas)
        self._keyframes = KeyframesView(self._canvas)
        self._predictor = PredictorView(self._canvas, ground_truth)
        self._relocalization = RelocalizationView(self._canvas, self._thumbnails)
        self._methods: Mapping[type, Callable[[Any], None]] = {
            events.FrameProcessed: self._frame_processed,
            events.Initialized: self._initialized,
            events.KeyframeAdded: self._keyframe_added,
            events.LandmarksUpdated: self._map.update_landmarks,
            events.EdgeAccepted: self._edge_accepted,
            events.EdgeRejected: self._edge_rejected,
            events.LoopExamined: self._loop_examined,
            events.PairRelated: self._predictor.show,
            events.RelocalizationTried: self._relocalization_tried,
            events.GraphOptimized: self._graph_optimized,
            events.ScaleUnobservable: self._scale_unobservable,
            events.EstimateRefused: self._estimate_refused,
            events.TrackingLost: self._tracking_lost,
            events.Relocalized: self._relocalized,
            events.FrameLocalizedLater: self._frame_localized_later,
            events.FrameNotLocalized: self._frame_not_localized,
            events.FramesSkipped: self._frames_skipped,
            events.RunFinished: self._run_finished,
            events.ScaleSet: self._scale_set,
        }

    def show(self, event: Event) -> None:
        """Draw an event."""
        self._methods[type(event)](event)

    # --- tracking -------------------------------------------------------------------------------------

    def _frame_processed(self, event: events.FrameProcessed) -> None:
        self._canvas.set_time(event.frame.index, event.frame.timestamp_ns)
        self._live.show_frame(event)
        self._keyframes.show_criteria(event)
        self._relocalization.show_thumbnail(event.frame)

    def _relocalization_tried(self, event: events.RelocalizationTried) -> None:
        self._canvas.set_time(event.frame_index, event.timestamp_ns)
        self._relocalization.show(event, self._map.poses)

    def _initialized(self, event: events.Initialized) -> None:
        self._live.break_path()
        self._map.begin_interval(new_segment=True)
        first, second = event.frame_indices
        self._canvas.recording.set_time("frame", sequence=second)
        self._inform(
            f"the map begins with frames {first} and {second}: {event.landmarks} landmarks, "
            f"parallax {event.parallax_deg:.2f} deg"
        )

    def _tracking_lost(self, event: events.TrackingLost) -> None:
        self._canvas.set_time(event.frame_index, event.timestamp_ns)
        self._live.break_path()
        self._map.begin_interval()
        self._canvas.message(f"lost: {event.reason}", "ERROR")

    def _relocalized(self, event: events.Relocalized) -> None:
        self._canvas.set_time(event.frame_index, event.timestamp_ns)
        self._map.resume_segment(event.keyframe_id)
        self._inform(
            f"relocalized at keyframe {event.keyframe_id} with {event.inliers} inliers "
            f"after {event.frames_lost} lost frames"
        )

    def _frame_localized_later(self, event: events.FrameLocalizedLater) -> None:
        self._map.resume_segment(event.keyframe_id)
        self._inform(
            f"frame {event.frame_index}, which had no pose, relocalized at keyframe {event.keyframe_id} "
            f"with {event.inliers} inliers"
        )

    def _frame_not_localized(self, event: events.FrameNotLocalized) -> None:
        self._warn(f"frame {event.frame_index} has no pose: {event.reason}")

    def _frames_skipped(self, event: events.FramesSkipped) -> None:
        self._warn(f"{event.count} frames skipped: {event.reason}")

    # --- map ------------------------------------------------------------------------------------------

    def _keyframe_added(self, event: events.KeyframeAdded) -> None:
        self._canvas.set_time(event.keyframe.frame_index, event.keyframe.timestamp_ns)
        self._live.send_path()
        self._thumbnails.add(event.keyframe.id, event.image, event.keyframe.camera)
        self._map.add_keyframe(event)
        self._keyframes.add_keyframe(event)
        self._predictor.add_keyframe(event.keyframe.id, event.keyframe.timestamp_ns)
        self._inform(f"keyframe {event.keyframe.id}: {event.reason}")
        self._map.send()

    def _graph_optimized(self, event: events.GraphOptimized) -> None:
        self._map.move_keyframes(event.world_from_keyframe)
        change = ""
        if np.isfinite(event.error_before) and np.isfinite(event.error_after):
            change = f", error {event.error_before:.4g} to {event.error_after:.4g}"
        self._inform(f"graph optimized: {event.cause}{change}")
        self._map.send()
        self._graph.show(event, self._map.poses)

    def _edge_accepted(self, event: events.EdgeAccepted) -> None:
        self._map.add_edge(event)
        self._graph.add_edge(event)
        edge = event.edge
        if edge.kind is EdgeKind.LOOP:
            self._inform(f"loop {edge.i} - {edge.j} accepted with {edge.inliers} inliers")
            self._map.send(always=True)

    def _edge_rejected(self, event: events.EdgeRejected) -> None:
        is_loop = event.kind is EdgeKind.LOOP
        if is_loop:
            self._map.add_rejected_loop(event)
        text = f"{event.kind} {event.i} - {event.j} rejected: {event.reason}"
        self._canvas.message(text, "DEBUG")

    def _loop_examined(self, event: events.LoopExamined) -> None:
        self._loops.show(event)
        self._keyframes.add_loop(event)

    def _scale_unobservable(self, event: events.ScaleUnobservable) -> None:
        self._warn(f"scale unobservable: {event.reason}")

    def _estimate_refused(self, event: events.EstimateRefused) -> None:
        self._warn(f"an estimate was not used: {event.reason}")

    # --- end of the run -------------------------------------------------------------------------------

    def _scale_set(self, event: events.ScaleSet) -> None:
        self._inform(f"one map unit is {event.meters_per_unit:.6g} m: {event.source}")

    def _run_finished(self, event: events.RunFinished) -> None:
        self._canvas.set_time(*self._canvas.latest)
        self._live.send_path()
        self._map.finish()
        self._keyframes.send()
        self._predictor.finish(self._map.poses)
        positions = event.world_from_cam[:, :3, 3]
        strips = [positions[run] for run in runs_without_gaps(event.timestamps_ns)]
        final = rr.LineStrips3D(strips, colors=FINAL, radii=screen_radius(1.5))
        self._canvas.recording.log("world/trajectory/final", final)
        how = "interrupted" if event.interrupted else "finished"
        self._inform(f"{how}: {len(positions)} frames have a pose")
        sentence = self._truth.show(event.timestamps_ns.tolist(), event.world_from_cam, "frames")
        if sentence:
            self._inform(sentence)

    def _inform(self, text: str) -> None:
        self._canvas.message(text, "INFO")

    def _warn(self, text: str) -> None:
        self._canvas.message(text, "WARN")
