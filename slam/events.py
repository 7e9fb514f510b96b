"""What happened, as plain frozen values. The core emits them; the console, Rerun, the log and tests listen.

An event carries values, never the system. An observer is any callable that takes one event.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from relocalizer.geometry import FloatArray, Similarity
from relocalizer.images import Image
from slam.map.frames import Frame, Keyframe
from slam.map.keyframe_graph import Edge, EdgeKind
from slam.map.tracking_status import TrackingState


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FrameProcessed:
    """Every frame, tracked or not, once.

    Attributes:
        world_from_cam: the live pose, None while initializing or lost.
        pixels: (N, 2) float32, tracked points in this image; track_ids (N,) int64; is_inlier (N,) bool, those
            that agree with the pose (all False without one).
        depth: median depth of the landmarks in view, map units; NaN without a pose.
        stage_ms: wall time by stage of this step.
        overlay_share: of the points that are followed, the share that stands still in the image while the world moves:
            they are drawn over it or fixed to the camera, and are used for nothing.
        camera_rests: whether most of the image stood still over the last frames.
    """

    frame: Frame
    state: TrackingState
    reason: str
    world_from_cam: RigidTransform | None
    keyframe_id: int
    pixels: NDArray[np.float32]
    track_ids: NDArray[np.int64]
    is_inlier: NDArray[np.bool_]
    depth: float
    stage_ms: Mapping[str, float]
    overlay_share: float = 0.0
    camera_rests: bool = False


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Initialized:
    """The first pair: the map begins. `frame_indices` are the two frames."""

    frame_indices: tuple[int, int]
    landmarks: int
    parallax_deg: float


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class KeyframeAdded:
    """`image` is the keyframe's image, RGB uint8 (H, W, 3), for who wants to keep it: the keyframe does not."""

    keyframe: Keyframe
    world_from_keyframe: Similarity
    reason: str
    image: Image | None = None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LandmarksUpdated:
    """Landmarks of the map as they stand: ids (N,), points_world (N, 3) map units, colors (N, 3) uint8 RGB."""

    frame_index: int
    ids: NDArray[np.int64]
    points_world: FloatArray
    colors: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class EdgeAccepted:
    edge: Edge
    frame_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeRejected:
    """`reason` is a sentence with the number and the threshold.

    Attributes:
        landmarks: how many spoke for it all the same; 0 where it did not come to counting them.
    """

    i: int
    j: int
    kind: EdgeKind
    reason: str
    frame_index: int
    landmarks: int = 0


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class GraphOptimized:
    """The graph was solved; `world_from_keyframe` holds every pose, `points_world` moved with them."""

    frame_index: int
    world_from_keyframe: Mapping[int, Similarity]
    error_before: float
    error_after: float
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleUnobservable:
    """A length could not be measured here; nothing was invented."""

    frame_index: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateRefused:
    """A solver failed, or what came out of it or of the predictor is not finite: it was not used."""

    frame_index: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingLost:
    frame_index: int
    timestamp_ns: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Relocalized:
    frame_index: int
    timestamp_ns: int
    keyframe_id: int
    inliers: int
    frames_lost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameLocalizedLater:
    """After the stream's end a frame that had had no pose was recognized in the map as it stood then."""

    frame_index: int
    timestamp_ns: int
    keyframe_id: int
    inliers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameNotLocalized:
    """A frame has no pose, and was not recognized in the whole map either; `reason` is a sentence with the numbers."""

    frame_index: int
    timestamp_ns: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FramesSkipped:
    """Images that could not be read, or that came faster than they could be used."""

    count: int
    reason: str


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RunFinished:
    """The last event of a run. `world_from_cam` (N, 4, 4) are the final poses of all tracked frames."""

    timestamps_ns: NDArray[np.int64]
    frame_indices: NDArray[np.int64]
    world_from_cam: FloatArray
    interrupted: bool = False
    stage_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleSet:
    """After the run's end its lengths were made meters; what was told before is in map units.

    Attributes:
        source: where meters come from, in words.
    """

    meters_per_unit: float
    source: str


Event = (
    FrameProcessed
    | Initialized
    | KeyframeAdded
    | LandmarksUpdated
    | EdgeAccepted
    | EdgeRejected
    | GraphOptimized
    | ScaleUnobservable
    | EstimateRefused
    | TrackingLost
    | Relocalized
    | FrameLocalizedLater
    | FrameNotLocalized
    | FramesSkipped
    | RunFinished
    | ScaleSet
)
Observer = Callable[[Event], None]
