"""Events of a run, as frozen values. The system publishes them to the console, Rerun, the log and tests.

An event contains values, never a reference to the system. An observer is any callable with an event as its argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from relocalizer.geometry import FloatArray, Similarity
from relocalizer.images import Image
from relocalizer.interfaces import NoEstimate, PairEstimate
from slam.map.edge_residuals import EdgeResiduals
from slam.map.frame_measurement import FrameMeasurement, Gate
from slam.map.frames import Frame, Keyframe
from slam.map.image_points import MatchedPoints, TrackedPoints
from slam.map.keyframe_graph import Edge, EdgeKind
from slam.map.tracking_status import TrackingState


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FrameProcessed:
    """A frame was processed; published once per frame, tracked or not.

    Attributes:
        reason: why the state is what it is, a sentence; empty in normal tracking.
        world_from_cam: the live pose, map units; None while initializing or lost.
        keyframe_id: reference keyframe of the frame; -1 before initialization.
        pixels: (N, 2) float32, tracked points in this image.
        track_ids: (N,) int64, id of each tracked point.
        is_inlier: (N,) bool, whether each tracked point is an inlier of the pose; all False without a pose.
        depth: median depth of the inlier landmarks, map units; NaN without a pose.
        stage_ms: wall time of this step by stage, milliseconds.
        overlay_share: fraction of the tracked points that are static in the image while the scene moves, because they
            belong to an overlay or to the camera's own platform; they are not used.
        moving_share: fraction of all followed points that are on moving objects; they are not mapped.
        camera_rests: whether most of the image was static over the last frames.
        measurement: what was measured in the frame, for a diagnosis.
        keyframe_criteria: criteria by which the frame was judged as a keyframe; empty if it was not.
        points: a sample of the tracked points, with their ages and reprojections.
        is_keyframe: whether the frame was inserted as a keyframe, or is being inserted in another thread.
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
    moving_share: float = 0.0
    camera_rests: bool = False
    measurement: FrameMeasurement | None = None
    keyframe_criteria: tuple[Gate, ...] = ()
    points: TrackedPoints | None = None
    is_keyframe: bool = False


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Initialized:
    """A segment of the map was initialized from two frames.

    Attributes:
        frame_indices: the two frames.
        landmarks: number of landmarks in the map.
        parallax_deg: median parallax of the two frames, degrees.
    """

    frame_indices: tuple[int, int]
    landmarks: int
    parallax_deg: float


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class KeyframeAdded:
    """A keyframe was added to the map.

    Attributes:
        reason: why the frame became a keyframe, a sentence.
        image: RGB uint8 (H, W, 3), which `Keyframe` itself does not contain.
    """

    keyframe: Keyframe
    world_from_keyframe: Similarity
    reason: str
    image: Image | None = None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LandmarksUpdated:
    """All landmarks of the map: ids (N,), points_world (N, 3) in map units, colors (N, 3) uint8 RGB.

    Attributes:
        depth_sigmas: (N, 3), one standard deviation of each along the ray of the keyframe that first saw it, as a
            vector, map units; None where they are not known.
    """

    frame_index: int
    ids: NDArray[np.int64]
    points_world: FloatArray
    colors: NDArray[np.uint8]
    depth_sigmas: FloatArray | None = None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class EdgeAccepted:
    """An edge was added to the pose graph, or a disabled loop was enabled."""

    edge: Edge
    frame_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeRejected:
    """A loop candidate was rejected, or a loop was disabled.

    Attributes:
        i, j: keyframe ids.
        reason: a sentence with the number and the threshold.
        landmarks: number of landmarks that supported the loop; 0 if it was rejected before they were counted.
        is_refuted: whether the loop was verified, but is so far from where the path leads that no drift explains it.
    """

    i: int
    j: int
    kind: EdgeKind
    reason: str
    frame_index: int
    landmarks: int = 0
    is_refuted: bool = False


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LoopExamined:
    """A loop candidate was examined; published once per candidate, whatever became of it.

    Attributes:
        i, j: keyframe ids of the candidate and of the new keyframe.
        is_accepted: whether the loop was closed.
        reason: why it was not closed; empty if it was.
        gates: the tests in their order, up to the first that failed.
        matches: points of the two images that were matched.
    """

    frame_index: int
    i: int
    j: int
    is_accepted: bool
    reason: str
    gates: tuple[Gate, ...]
    matches: MatchedPoints


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PairRelated:
    """The predictor was asked for the relative pose of two keyframes.

    Attributes:
        purpose: "initialization", "odometry" or "loop".
        estimate: of the predictor.
    """

    frame_index: int
    i: int
    j: int
    purpose: str
    estimate: PairEstimate | NoEstimate


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceAttempt:
    """One keyframe at whose place a frame was searched.

    Attributes:
        similarity: of the place descriptors; NaN for a keyframe that was not retrieved.
        landmarks: number of landmarks that supported a pose.
        reason: why the frame is not there; empty for the keyframe where it was found.
        direction_world: unit vector from the keyframe to the frame as the predictor said, map axes; None without one.
        confidence: of what the predictor said; NaN where it was not asked or said nothing.
    """

    keyframe_id: int
    similarity: float
    landmarks: int
    reason: str
    direction_world: tuple[float, float, float] | None = None
    confidence: float = np.nan


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RelocalizationTried:
    """A frame that could not be tracked was searched in the map.

    Attributes:
        keyframe_id: keyframe at whose place it was found; -1 if it was not found.
        attempts: the keyframes tried, in their order.
        matches: inlier landmarks in that keyframe and in the frame; none if it was not found.
        world_from_cam: the pose found, map units; None if it was not found.
    """

    frame_index: int
    timestamp_ns: int
    keyframe_id: int
    attempts: tuple[PlaceAttempt, ...]
    matches: MatchedPoints
    world_from_cam: RigidTransform | None = None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class GraphOptimized:
    """The poses of the map were optimized, and the landmarks moved with them.

    Attributes:
        world_from_keyframe: all poses after the optimization.
        error_before, error_after: of the solver; pixels if `cause` says so.
        cause: the loops, or the round of refinement.
        before, after: residuals of all edges at the poses before, if known, and after.
    """

    frame_index: int
    world_from_keyframe: Mapping[int, Similarity]
    error_before: float
    error_after: float
    cause: str
    before: EdgeResiduals | None = None
    after: EdgeResiduals | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleUnobservable:
    """The scale was not observable, so no length was estimated."""

    frame_index: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateRefused:
    """An estimate was discarded, because a solver failed or its result or that of the predictor is unusable."""

    frame_index: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingLost:
    """Tracking was lost at this frame."""

    frame_index: int
    timestamp_ns: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Relocalized:
    """The camera was relocalized after tracking was lost.

    Attributes:
        keyframe_id: keyframe at which the camera was relocalized.
        inliers: number of landmarks that agree with the pose.
        frames_lost: number of frames without a pose before this one.
    """

    frame_index: int
    timestamp_ns: int
    keyframe_id: int
    inliers: int
    frames_lost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameLocalizedLater:
    """A frame without a pose was localized in the map after the end of the stream."""

    frame_index: int
    timestamp_ns: int
    keyframe_id: int
    inliers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameNotLocalized:
    """A frame has no pose and could not be localized in the final map either.

    Attributes:
        reason: a sentence with the numbers.
    """

    frame_index: int
    timestamp_ns: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FramesSkipped:
    """Frames were skipped, because they could not be read or arrived faster than they could be processed."""

    count: int
    reason: str


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RunFinished:
    """The run is finished; the last event except `ScaleSet`.

    Attributes:
        timestamps_ns, frame_indices: (N,) of all tracked frames of the largest segment.
        world_from_cam: (N, 4, 4), their final poses, map units.
        interrupted: whether the run ended before the stream.
        stage_ms: wall time by stage, milliseconds.
    """

    timestamps_ns: NDArray[np.int64]
    frame_indices: NDArray[np.int64]
    world_from_cam: FloatArray
    interrupted: bool = False
    stage_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleSet:
    """The finished run was scaled to meters; all earlier events are in map units.

    Attributes:
        source: source of the metric scale, in words.
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
    | LoopExamined
    | PairRelated
    | RelocalizationTried
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
