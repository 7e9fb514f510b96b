"""The live camera in Rerun: its pose and path, image, tracks, and the plots per frame."""

from __future__ import annotations

import cv2
import numpy as np
import rerun as rr
from scipy.spatial.transform import RigidTransform

from relocalizer.camera import Camera
from relocalizer.geometry import FloatArray, rotation_matrix, translation_of
from relocalizer.images import Image, encode_jpeg
from slam.events import FrameProcessed
from slam.map.image_points import MOST_TRACKED
from slam.map.tracking_status import TrackingState
from slam.viz.canvas import INLIER, LIVE, OPTIMIZED, OUTLIER, WAITING, Canvas, screen_radius
from slam.viz.tracking_view import TrackingView

JPEG_QUALITY = 45
MAX_WIDTH = 480  # Width that larger images are shrunk to before they are sent, pixels.
IMAGES_PER_S = 10.0  # Maximum number of images and of their points sent per second of the stream.
MEMORY_EVERY = 30  # Maximum interval between two plots of the memory, frames.
LIVE_FRUSTUM = 3.0  # Size of the live camera's frustum, relative to a keyframe's.
FRUSTUM = 0.06  # Depth of a keyframe's frustum, relative to the median depth of the first landmarks.

STATE_COLOR = {
    TrackingState.INITIALIZING: WAITING,
    TrackingState.TRACKING: INLIER,
    TrackingState.LOST: OUTLIER,
}
STATE_LEVEL = {TrackingState.LOST: 0.0, TrackingState.INITIALIZING: 1.0, TrackingState.TRACKING: 2.0}


class LiveView:
    """Draws every frame and its pose as tracked, before any optimization."""

    def __init__(self, canvas: Canvas) -> None:
        self._canvas = canvas
        self._log = canvas.recording.log
        self._state: tuple[TrackingState, str] | None = None
        self._stages: set[str] = set()
        self._pinhole: tuple[Camera, float] | None = None  # As last sent, with the frustum's depth.
        self._path: list[FloatArray] = []  # Live positions since the last keyframe.
        self._points = TrackingView(canvas)
        self._image_ns: int | None = None  # Time of the last image sent.
        for path, name, color in (
            ("plots/tracks/tracked", "tracked", WAITING),
            ("plots/tracks/inliers", "agree with the pose", INLIER),
            ("plots/depth/median", "median depth", OPTIMIZED),
            ("plots/state", "0 lost, 1 initializing, 2 tracking", LIVE),
            ("plots/motion/moved", "motion of the tracks, px per frame", WAITING),
            ("plots/motion/surprise", "distance from the prediction, px", OUTLIER),
            ("plots/motion/residual", "reprojection error, px", INLIER),
            ("plots/motion/parallax", "parallax to the keyframe, px", OPTIMIZED),
            ("plots/image/brightness", "mean gray level", LIVE),
            ("plots/image/sharpness", "sharpness", OPTIMIZED),
            ("plots/memory_mb", "peak memory of the process, MB", LIVE),
        ):
            self._log(path, rr.SeriesLines(colors=color, names=name), static=True)

    def show_frame(self, event: FrameProcessed) -> None:
        """Draw a frame with its pose, tracks, plots and tracking state."""
        if event.world_from_cam is not None:
            self._show_pose(event.world_from_cam)
        if not self._canvas.frustum_depth and np.isfinite(event.depth) and event.depth > 0:
            self._canvas.frustum_depth = FRUSTUM * event.depth
        if self._is_image_due(event):
            self._show_image(event.frame.image, event.frame.camera)
            self._show_tracks(event)
            self._points.show(event, _shrunk(event.frame.camera).width / event.frame.camera.width)
        self._plot(event)
        self._plot_measurement(event)
        self._show_state(event.state, event.reason)

    def send_path(self) -> None:
        """Log the live path since the last keyframe; the next part begins where this one ends."""
        if len(self._path) < 2:
            return
        strip = np.array([self._path], dtype=np.float32)
        self._log("world/trajectory/live", rr.LineStrips3D(strip, colors=LIVE, radii=screen_radius(0.8)))
        del self._path[:-1]

    def break_path(self) -> None:
        """Log the live path and begin a new one at the next pose, with a gap between the two."""
        self.send_path()
        self._path.clear()

    def _show_pose(self, world_from_cam: RigidTransform) -> None:
        position = translation_of(world_from_cam)
        self._path.append(position)
        pose = rr.Transform3D(
            translation=position,
            mat3x3=rotation_matrix(world_from_cam),
            relation=rr.TransformRelation.ParentFromChild,
        )
        self._log("world/camera", pose)

    def _is_image_due(self, event: FrameProcessed) -> bool:
        """Whether the image and its points are sent: at most `IMAGES_PER_S`, and always when the state changes."""
        if not event.frame.image.size:  # Replayed from an event log: most frames have none.
            return not len(event.pixels) and self._pinhole is None
        now, state_changed = event.frame.timestamp_ns, self._state is None or self._state[0] is not event.state
        due = self._image_ns is None or state_changed or (now - self._image_ns) * IMAGES_PER_S >= 1e9
        if due or now < (self._image_ns or 0):
            self._image_ns = now
            return True
        return False

    def _show_image(self, image: Image, camera: Camera) -> None:
        shown = _shrunk(camera)
        if (shown, self._canvas.frustum_depth) != self._pinhole:
            self._send_pinhole(shown)
        if not image.size:  # Replayed from an event log, which stores no images.
            return
        if (shown.width, shown.height) != (image.shape[1], image.shape[0]):
            small = cv2.resize(image, (shown.width, shown.height), interpolation=cv2.INTER_AREA)
            image = np.asarray(small, dtype=np.uint8)
        encoded = rr.EncodedImage(contents=encode_jpeg(image, JPEG_QUALITY), media_type="image/jpeg")
        self._log("world/camera/image", encoded)

    def _send_pinhole(self, shown: Camera) -> None:
        self._pinhole = (shown, self._canvas.frustum_depth)
        pinhole = rr.Pinhole(
            focal_length=(shown.fx, shown.fy),
            # Rerun's pixel (0, 0) is the corner of the image, ours the center of its first pixel.
            principal_point=(shown.cx + 0.5, shown.cy + 0.5),
            width=shown.width,
            height=shown.height,
            image_plane_distance=LIVE_FRUSTUM * self._canvas.frustum_depth or None,
        )
        self._log("world/camera/image", pinhole)

    def _show_tracks(self, event: FrameProcessed) -> None:
        if len(event.pixels) != len(event.is_inlier):  # An event log stores the number of tracks, not their pixels.
            return
        camera = event.frame.camera
        scale = _shrunk(camera).width / camera.width
        other = WAITING if event.world_from_cam is None else OUTLIER
        colors = np.where(event.is_inlier[:, None], INLIER, other).astype(np.uint8)
        step = max(1, -(-len(colors) // MOST_TRACKED))
        pixels = (event.pixels[::step] + 0.5) * scale
        points = rr.Points2D(pixels, colors=colors[::step], radii=screen_radius(2.0))
        self._log("world/camera/image/tracks", points)

    def _plot(self, event: FrameProcessed) -> None:
        self._log("plots/tracks/tracked", rr.Scalars(len(event.track_ids)))
        self._log("plots/tracks/inliers", rr.Scalars(int(event.is_inlier.sum())))
        self._log("plots/state", rr.Scalars(STATE_LEVEL[event.state]))
        if np.isfinite(event.depth):
            self._log("plots/depth/median", rr.Scalars(event.depth))
        for stage, milliseconds in {**event.stage_ms, "all": sum(event.stage_ms.values())}.items():
            path = f"plots/time_ms/{stage.replace(' ', '_')}"
            if stage not in self._stages:
                self._stages.add(stage)
                self._log(path, rr.SeriesLines(names=stage), static=True)
            self._log(path, rr.Scalars(milliseconds))

    def _plot_measurement(self, event: FrameProcessed) -> None:
        found = event.measurement
        if found is None:
            return
        parallax = next((gate.value for gate in event.keyframe_criteria if "parallax" in gate.name), np.nan)
        for path, value in (
            ("motion/moved", found.moved_px),
            ("motion/surprise", found.surprise_px),
            ("motion/residual", found.residual_px),
            ("motion/parallax", parallax),
            ("image/brightness", found.brightness),
            ("image/sharpness", found.sharpness),
        ):
            if np.isfinite(value):
                self._log(f"plots/{path}", rr.Scalars(value))
        if event.frame.index % MEMORY_EVERY == 0 and np.isfinite(found.memory_mb):
            self._log("plots/memory_mb", rr.Scalars(found.memory_mb))

    def _show_state(self, state: TrackingState, reason: str) -> None:
        if (state, reason) == self._state:
            return
        if self._state is None or self._state[0] is not state:
            self._log("world/camera/image", rr.Pinhole.from_fields(color=STATE_COLOR[state]))
        self._state = (state, reason)
        self._canvas.message(f"{state}: {reason}" if reason else str(state), "INFO")


def _shrunk(camera: Camera) -> Camera:
    """The camera of the image at the size at which it is sent."""
    if camera.width <= MAX_WIDTH:
        return camera
    return camera.resized(MAX_WIDTH, max(1, round(camera.height * MAX_WIDTH / camera.width)))
