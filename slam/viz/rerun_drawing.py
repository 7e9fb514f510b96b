"""What of a run is drawn in Rerun, and where: what the camera saw, where the map puts it, and why.

| entity | what |
|---|---|
| `world/camera` | the live pose, `image` its image, `image/tracks` the tracked points |
| `world/trajectory/{live,optimized,final}` | as tracked; through the keyframes; every frame, at the end |
| `world/keyframes` | a small frustum each |
| `world/edges/{odometry,loop,rejected}` | what ties keyframes together, and what was refused |
| `world/landmarks` | colored points |
| `world/ground_truth` | when known: up to now, aligned by Sim(3) to the map, because map units are arbitrary |
| `plots/*` | tracks, depth and scale, error, milliseconds by stage, state |
| `log` | reasons, in sentences |

Timelines: `frame` (its index) and `time` (seconds since the first frame). What grows with the map (keyframes,
edges, landmarks) is sent again only when it grew by a share or moved, so a recording grows about linearly:
about 55 MB for 1000 images of 640 x 480, 40 MB of it the images.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import cv2
import numpy as np
import rerun as rr
from scipy.spatial.transform import RigidTransform

from relocalizer.camera import Camera
from relocalizer.geometry import FloatArray, Similarity, rotation_matrix, translation_of
from relocalizer.images import Image, encode_jpeg
from slam.evaluation.alignment import associate, fit_similarity
from slam.evaluation.trajectory import Trajectory, runs_without_gaps
from slam.events import (
    EdgeAccepted,
    EdgeRejected,
    EstimateRefused,
    Event,
    FrameLocalizedLater,
    FrameNotLocalized,
    FrameProcessed,
    FramesSkipped,
    GraphOptimized,
    Initialized,
    KeyframeAdded,
    LandmarksUpdated,
    Relocalized,
    RunFinished,
    ScaleSet,
    ScaleUnobservable,
    TrackingLost,
)
from slam.map.keyframe_graph import EdgeKind
from slam.map.tracking_status import TrackingState

Color = tuple[int, int, int]

JPEG_QUALITY = 75
MAX_WIDTH = 640  # images are shrunk to this width before they are sent
MAX_LANDMARKS = 50_000  # more are thinned evenly
MAX_REJECTED = 2_000  # the newest stay
GROWTH = 0.05  # send the map again when it grew by this share
MOVED = 0.005  # or when a keyframe moved by this share of the map's extent
LIVE_FRUSTUM = 3.0  # the live camera's frustum is this much larger than a keyframe's
FRUSTUM = 0.06  # depth of a keyframe's frustum, per median depth of the first landmarks
MATCH_S = 0.02  # ground truth further away in time than this is of another frame
MAX_TRUTH = 4_000  # poses of the ground truth that are drawn

LIVE, OPTIMIZED, FINAL = (150, 150, 150), (60, 160, 255), (255, 255, 255)
TRUTH, ODOMETRY, LOOP, REJECTED = (80, 220, 120), (70, 110, 160), (255, 180, 40), (95, 36, 44)
INLIER, OUTLIER, WAITING = (60, 220, 90), (230, 60, 60), (240, 200, 60)
STATE_COLOR = {
    TrackingState.INITIALIZING: WAITING,
    TrackingState.TRACKING: INLIER,
    TrackingState.LOST: OUTLIER,
}
STATE_LEVEL = {TrackingState.LOST: 0.0, TrackingState.INITIALIZING: 1.0, TrackingState.TRACKING: 2.0}
SEGMENT_COLORS = ((200, 160, 90), (60, 160, 255), (255, 120, 200), (120, 230, 230))
# The corners of a pyramid (0 is its tip) in an order that draws every edge in one stroke.
FRUSTUM_STROKE = [1, 2, 3, 4, 1, 0, 2, 3, 0, 4]


@dataclass(frozen=True, slots=True)
class _KeyframeMark:
    """What drawing needs of a keyframe.

    Attributes:
        stretch: keyframes of one stretch were tracked without a loss between them.
        half_extent: half the image's width and height at depth 1.
    """

    timestamp_ns: int
    stretch: int
    half_extent: tuple[float, float]


class Drawing:
    """Draws events into a recording, and remembers what it needs of the earlier ones."""

    def __init__(self, recording: rr.RecordingStream, *, ground_truth: Trajectory | None, camera: Camera) -> None:
        """Args:
        ground_truth: drawn beside the estimate.
        camera: of the sequence, noted among the recording's properties; images come with their own.
        """
        self._recording = recording
        self._truth = ground_truth
        self._truth_is_shown = False
        self._first_ns: int | None = None
        self._now = (0, 0)  # frame index and nanoseconds of the newest frame heard of
        self._state: tuple[TrackingState, str] | None = None
        self._stages: set[str] = set()
        self._size = 0.0  # depth of a frustum, map units; 0 while no depth is known
        self._pinhole: tuple[Camera, float] | None = None  # as sent
        self._path: list[FloatArray] = []  # live positions since the last keyframe
        self._marks: dict[int, _KeyframeMark] = {}
        self._poses: dict[int, Similarity] = {}
        self._sent_poses: dict[int, Similarity] = {}
        self._stretch = 0
        self._segment = 0  # of the next keyframe; segments share no world until a loop joins them
        self._segment_of: dict[int, int] = {}
        self._edges: dict[tuple[int, int], EdgeKind] = {}
        self._rejected: deque[tuple[int, int]] = deque(maxlen=MAX_REJECTED)
        self._landmarks: LandmarksUpdated | None = None  # newest, not sent yet
        self._landmarks_due = True
        self._log_static(camera)

    def _log_static(self, camera: Camera) -> None:
        log = self._recording.log
        log("world", rr.ViewCoordinates.RDF, static=True)
        intrinsics = [camera.fx, camera.fy, camera.cx, camera.cy]
        size = [camera.width, camera.height]
        known = rr.AnyValues(size=size, fx_fy_cx_cy=intrinsics, assumed=camera.assumed)
        self._recording.send_property("camera", known)
        for path, name, color in (
            ("plots/tracks/tracked", "tracked", WAITING),
            ("plots/tracks/inliers", "agree with the pose", INLIER),
            ("plots/depth/median", "median depth", OPTIMIZED),
            ("plots/depth/keyframe_scale", "keyframe scale", LOOP),
            ("plots/error/ate", "ATE of the keyframes, Sim(3)", TRUTH),
            ("plots/state", "0 lost, 1 initializing, 2 tracking", FINAL),
        ):
            log(path, rr.SeriesLines(colors=color, names=name), static=True)

    # --- events ---------------------------------------------------------------------------------------

    def show(self, event: Event) -> None:
        """Draw an event."""
        match event:
            case FrameProcessed():
                self._set_time(event.frame.index, event.frame.timestamp_ns)
                self._show_frame(event)
            case KeyframeAdded():
                self._set_time(event.keyframe.frame_index, event.keyframe.timestamp_ns)
                self._add_keyframe(event)
            case TrackingLost():
                self._set_time(event.frame_index, event.timestamp_ns)
                self._begin_stretch()
                self._say(f"lost: {event.reason}", "ERROR")
            case Relocalized():
                self._set_time(event.frame_index, event.timestamp_ns)
                self._segment = self._segment_of.get(event.keyframe_id, self._segment)
                self._say(
                    f"relocalized at keyframe {event.keyframe_id} with {event.inliers} inliers "
                    f"after {event.frames_lost} lost frames",
                    "INFO",
                )
            case GraphOptimized():
                self._move_keyframes(event)
            case LandmarksUpdated():
                self._landmarks = event
                if self._landmarks_due:
                    self._send_landmarks()
            case EdgeAccepted():
                self._add_edge(event)
            case EdgeRejected():
                self._reject_edge(event)
            case RunFinished():
                self._finish(event)
            case Initialized():
                self._begin_stretch()
                self._segment = self._stretch
                first, second = event.frame_indices
                self._recording.set_time("frame", sequence=second)
                self._say(
                    f"the map begins with frames {first} and {second}: {event.landmarks} landmarks, "
                    f"parallax {event.parallax_deg:.2f} deg",
                    "INFO",
                )
            case ScaleUnobservable():
                self._say(f"scale unobservable: {event.reason}", "WARN")
            case EstimateRefused():
                self._say(f"an estimate was not used: {event.reason}", "WARN")
            case FrameLocalizedLater():
                self._segment = self._segment_of.get(event.keyframe_id, self._segment)
                self._say(
                    f"frame {event.frame_index}, which had no pose, recognized at keyframe {event.keyframe_id} "
                    f"with {event.inliers} inliers",
                    "INFO",
                )
            case FrameNotLocalized():
                self._say(f"frame {event.frame_index} has no pose: {event.reason}", "WARN")
            case ScaleSet():
                self._say(f"one map unit is {event.meters_per_unit:.6g} m: {event.source}", "INFO")
            case FramesSkipped():
                self._say(f"{event.count} frames skipped: {event.reason}", "WARN")

    def _set_time(self, frame_index: int, timestamp_ns: int) -> None:
        if self._first_ns is None:
            self._first_ns = timestamp_ns
        self._now = max(self._now, (frame_index, timestamp_ns))
        self._recording.set_time("frame", sequence=frame_index)
        self._recording.set_time("time", duration=(timestamp_ns - self._first_ns) * 1e-9)

    def _say(self, text: str, level: str) -> None:
        self._recording.log("log", rr.TextLog(text.encode(errors="backslashreplace").decode(), level=level))

    # --- frames ---------------------------------------------------------------------------------------

    def _show_frame(self, event: FrameProcessed) -> None:
        if event.world_from_cam is not None:
            self._show_pose(event.world_from_cam)
        if not self._size and np.isfinite(event.depth) and event.depth > 0:
            self._size = FRUSTUM * event.depth
        self._show_image(event.frame.image, event.frame.camera)
        self._show_tracks(event)
        self._plot(event)
        self._show_state(event.state, event.reason)

    def _show_pose(self, world_from_cam: RigidTransform) -> None:
        position = translation_of(world_from_cam)
        self._path.append(position)
        pose = rr.Transform3D(
            translation=position,
            mat3x3=rotation_matrix(world_from_cam),
            relation=rr.TransformRelation.ParentFromChild,
        )
        self._recording.log("world/camera", pose)

    def _show_image(self, image: Image, camera: Camera) -> None:
        shown = _shrunk(camera)
        if (shown, self._size) != self._pinhole:
            self._send_pinhole(shown)
        if not image.size:  # told again from a log, which keeps no images
            return
        if (shown.width, shown.height) != (image.shape[1], image.shape[0]):
            small = cv2.resize(image, (shown.width, shown.height), interpolation=cv2.INTER_AREA)
            image = np.asarray(small, dtype=np.uint8)
        encoded = rr.EncodedImage(contents=encode_jpeg(image, JPEG_QUALITY), media_type="image/jpeg")
        self._recording.log("world/camera/image", encoded)

    def _send_pinhole(self, shown: Camera) -> None:
        self._pinhole = (shown, self._size)
        pinhole = rr.Pinhole(
            focal_length=(shown.fx, shown.fy),
            # Rerun's pixel (0, 0) is the corner of the image, ours the center of its first pixel.
            principal_point=(shown.cx + 0.5, shown.cy + 0.5),
            width=shown.width,
            height=shown.height,
            image_plane_distance=LIVE_FRUSTUM * self._size or None,
        )
        self._recording.log("world/camera/image", pinhole)

    def _show_tracks(self, event: FrameProcessed) -> None:
        if len(event.pixels) != len(event.is_inlier):  # a log counts them and does not keep where they were
            return
        camera = event.frame.camera
        scale = _shrunk(camera).width / camera.width
        other = WAITING if event.world_from_cam is None else OUTLIER
        colors = np.where(event.is_inlier[:, None], INLIER, other).astype(np.uint8)
        points = rr.Points2D((event.pixels + 0.5) * scale, colors=colors, radii=_thin(2.0))
        self._recording.log("world/camera/image/tracks", points)

    def _plot(self, event: FrameProcessed) -> None:
        log = self._recording.log
        log("plots/tracks/tracked", rr.Scalars(len(event.track_ids)))
        log("plots/tracks/inliers", rr.Scalars(int(event.is_inlier.sum())))
        log("plots/state", rr.Scalars(STATE_LEVEL[event.state]))
        if np.isfinite(event.depth):
            log("plots/depth/median", rr.Scalars(event.depth))
        for stage, milliseconds in {**event.stage_ms, "all": sum(event.stage_ms.values())}.items():
            path = f"plots/time_ms/{stage.replace(' ', '_')}"
            if stage not in self._stages:
                self._stages.add(stage)
                log(path, rr.SeriesLines(names=stage), static=True)
            log(path, rr.Scalars(milliseconds))

    def _show_state(self, state: TrackingState, reason: str) -> None:
        if (state, reason) == self._state:
            return
        if self._state is None or self._state[0] is not state:
            color = rr.Pinhole.from_fields(color=STATE_COLOR[state])
            self._recording.log("world/camera/image", color)
        self._state = (state, reason)
        self._say(f"{state}: {reason}" if reason else str(state), "INFO")

    # --- the map --------------------------------------------------------------------------------------

    def _add_keyframe(self, event: KeyframeAdded) -> None:
        keyframe, camera = event.keyframe, event.keyframe.camera
        half_extent = (camera.width / (2 * camera.fx), camera.height / (2 * camera.fy))
        self._marks[keyframe.id] = _KeyframeMark(keyframe.timestamp_ns, self._stretch, half_extent)
        self._segment_of[keyframe.id] = self._segment
        self._poses[keyframe.id] = event.world_from_keyframe
        self._end_live_segment()
        self._recording.log("plots/depth/keyframe_scale", rr.Scalars(event.world_from_keyframe.scale))
        self._say(f"keyframe {keyframe.id}: {event.reason}", "INFO")
        self._send_map()

    def _end_live_segment(self) -> None:
        """Log the live path since the last keyframe; the next segment begins where this one ends."""
        if len(self._path) < 2:
            return
        strip = np.array([self._path], dtype=np.float32)
        self._recording.log("world/trajectory/live", rr.LineStrips3D(strip, colors=LIVE, radii=_thin(0.8)))
        del self._path[:-1]

    def _begin_stretch(self) -> None:
        self._end_live_segment()
        self._path.clear()
        self._stretch += 1

    def _move_keyframes(self, event: GraphOptimized) -> None:
        self._poses.update(event.world_from_keyframe)
        if np.isfinite(event.error_before) and np.isfinite(event.error_after):
            change = f", error {event.error_before:.4g} to {event.error_after:.4g}"
        else:
            change = ""
        self._say(f"graph optimized: {event.cause}{change}", "INFO")
        self._send_map()

    def _add_edge(self, event: EdgeAccepted) -> None:
        edge = event.edge
        self._edges[edge.i, edge.j] = edge.kind
        if edge.kind is EdgeKind.LOOP:
            self._join_segments(edge.i, edge.j)
            self._say(f"loop {edge.i} - {edge.j} accepted with {edge.inliers} inliers", "INFO")
            self._send_map(always=True)

    def _join_segments(self, i: int, j: int) -> None:
        kept, gone = self._segment_of.get(i), self._segment_of.get(j)
        if kept is not None and gone is not None and kept != gone:
            self._segment_of = {k: kept if n == gone else n for k, n in self._segment_of.items()}
            self._segment = kept if self._segment == gone else self._segment

    def _reject_edge(self, event: EdgeRejected) -> None:
        level = "DEBUG"
        if event.kind is EdgeKind.LOOP:
            level = "INFO"
            self._rejected.append((event.i, event.j))
        self._say(f"{event.kind} {event.i} - {event.j} rejected: {event.reason}", level)

    def _send_map(self, *, always: bool = False) -> None:
        """Keyframes, the line through them and the edges, each as one batch, when they changed enough."""
        if not (always or self._map_changed()):
            return
        self._sent_poses, self._landmarks_due = dict(self._poses), True
        ids = sorted(self._poses.keys() & self._marks.keys(), key=lambda k: self._marks[k].timestamp_ns)
        log = self._recording.log
        log("world/trajectory/optimized", rr.LineStrips3D(self._lines(ids), colors=OPTIMIZED, radii=_thin(1.2)))
        if self._size:
            frusta = np.array([self._frustum(k) for k in ids], dtype=np.float32)
            colors = [SEGMENT_COLORS[self._segment_of[k] % len(SEGMENT_COLORS)] for k in ids]
            log("world/keyframes", rr.LineStrips3D(frusta, colors=colors, radii=_thin(0.7)))
        log("world/edges/odometry", self._joined(self._edges_of(EdgeKind.ODOMETRY), ODOMETRY, 0.6))
        log("world/edges/loop", self._joined(self._edges_of(EdgeKind.LOOP), LOOP, 1.8))
        log("world/edges/rejected", self._joined(self._rejected, REJECTED, 0.3))
        if not ids:
            return
        segment, _ = Counter(self._segment_of[k] for k in ids).most_common(1)[0]
        largest = [k for k in ids if self._segment_of[k] == segment]
        poses = np.array([self._poses[k].rigid.as_matrix() for k in largest])
        said = self._show_truth([self._marks[k].timestamp_ns for k in largest], poses, "keyframes")
        if said and not self._truth_is_shown:
            self._truth_is_shown = True
            self._say(said, "INFO")

    def _map_changed(self) -> bool:
        old, new = self._sent_poses, self._poses
        if len(new) - len(old) >= max(1.0, GROWTH * len(old)):
            return True
        common = sorted(old.keys() & new.keys())
        before = np.array([old[k].translation for k in common])
        after = np.array([new[k].translation for k in common])
        return bool(np.abs(after - before).max() > MOVED * np.ptp(before, axis=0).max())

    def _lines(self, ids: Sequence[int]) -> list[FloatArray]:
        """The path through the keyframes, apart where tracking was lost."""
        stretches = groupby(ids, key=lambda k: self._marks[k].stretch)
        return [np.array([self._poses[k].translation for k in stretch]) for _, stretch in stretches]

    def _edges_of(self, kind: EdgeKind) -> list[tuple[int, int]]:
        return [ends for ends, its_kind in self._edges.items() if its_kind is kind]

    def _frustum(self, k: int) -> FloatArray:
        x, y = self._marks[k].half_extent
        pyramid = np.array([[0, 0, 0], [-x, -y, 1], [x, -y, 1], [x, y, 1], [-x, y, 1]]) * self._size
        return self._poses[k].apply(pyramid)[FRUSTUM_STROKE]

    def _joined(self, edges: Iterable[tuple[int, int]], color: Color, width: float) -> rr.LineStrips3D:
        """A line between the keyframes of each edge."""
        known = [(i, j) for i, j in edges if i in self._poses and j in self._poses]
        ends = [(self._poses[i].translation, self._poses[j].translation) for i, j in known]
        # One array of all lines: Rerun takes thirty times as long for a list of small ones.
        strips = np.array(ends, dtype=np.float32).reshape(-1, 2, 3)
        return rr.LineStrips3D(strips, colors=color, radii=_thin(width))

    def _send_landmarks(self) -> None:
        event = self._landmarks
        if event is None:
            return
        self._landmarks, self._landmarks_due = None, False
        step = max(1, -(-len(event.ids) // MAX_LANDMARKS))
        points = rr.Points3D(event.points_world[::step], colors=event.colors[::step], radii=_thin(1.5))
        self._recording.log("world/landmarks", points)

    # --- the truth, and the end -----------------------------------------------------------------------

    def _show_truth(self, times_ns: Sequence[int], world_from_cam: FloatArray, of: str) -> str:
        """Ground truth until now, in the map's place and size; a sentence with the error, empty when not shown."""
        if self._truth is None:
            return ""
        i, j = associate(times_ns, self._truth.timestamps_ns, max_difference_s=MATCH_S)
        truth = self._truth.world_from_cam
        world_from_truth = fit_similarity(world_from_cam[i], truth[j])
        if world_from_truth is None:
            return ""
        off = world_from_cam[i, :3, 3] - world_from_truth.apply(truth[j, :3, 3])
        ate = float(np.sqrt((off**2).sum(axis=1).mean())) / world_from_truth.scale
        self._recording.log("plots/error/ate", rr.Scalars(ate))
        until_now = self._truth.timestamps_ns <= self._now[1] + round(MATCH_S * 1e9)
        step = max(1, -(-int(until_now.sum()) // MAX_TRUTH))
        stamps = self._truth.timestamps_ns[until_now][::step]
        line = world_from_truth.apply(self._truth.positions[until_now][::step])
        sentence = f"ground truth, aligned by Sim(3) to {len(i)} {of}: ATE {ate:.3g} in its unit"
        strips = [line[run] for run in runs_without_gaps(stamps)]
        shown = rr.LineStrips3D(
            strips, colors=TRUTH, radii=_thin(1.2), labels=[sentence] * len(strips), show_labels=False
        )
        self._recording.log("world/ground_truth", shown)
        return sentence

    def _finish(self, event: RunFinished) -> None:
        self._set_time(*self._now)
        self._end_live_segment()
        if self._poses:
            self._send_map(always=True)
        self._send_landmarks()
        positions = event.world_from_cam[:, :3, 3]
        strips = [positions[run] for run in runs_without_gaps(event.timestamps_ns)]
        self._recording.log("world/trajectory/final", rr.LineStrips3D(strips, colors=FINAL, radii=_thin(1.5)))
        how = "interrupted" if event.interrupted else "finished"
        self._say(f"{how}: {len(positions)} frames have a pose", "INFO")
        said = self._show_truth(event.timestamps_ns.tolist(), event.world_from_cam, "frames")
        if said:
            self._say(said, "INFO")


def _shrunk(camera: Camera) -> Camera:
    """The camera of the image as it is sent."""
    if camera.width <= MAX_WIDTH:
        return camera
    return camera.resized(MAX_WIDTH, max(1, round(camera.height * MAX_WIDTH / camera.width)))


def _thin(points: float) -> float:
    """A radius in points of the screen, whatever the size of the map: Rerun writes those as negative numbers."""
    return -points
