"""Invariants of a running `Slam` after every frame, whatever its input was, and of every event it publishes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from relocalizer.geometry import Similarity
from relocalizer.maps.map_rules import validate
from relocalizer.maps.reference_map import ReferenceMap
from slam.events import (
    EdgeAccepted,
    EdgeRejected,
    Event,
    FrameLocalizedLater,
    FrameNotLocalized,
    FrameProcessed,
    GraphOptimized,
    Initialized,
    KeyframeAdded,
    LandmarksUpdated,
    LoopExamined,
    Relocalized,
    RunFinished,
    TrackingLost,
)
from slam.loop_closing.pairwise_consistency import WINDOW
from slam.map.keyframe_graph import KeyframeGraph
from slam.map.landmarks import NO_ANCHOR, LandmarkMap
from slam.map.tracking_status import TrackingState
from slam.map.tracks import Tracks
from slam.result import SlamResult
from slam.system import Slam
from slam.tracking.initializer import MAX_BETWEEN

ORTHONORMAL = 1e-6


class Broken(AssertionError):
    """An invariant is violated."""


def require(holds: Any, what: str) -> None:
    if not bool(holds):
        raise Broken(what)


# --- the whole ----------------------------------------------------------------------------------------


def check_live(slam: Slam) -> None:
    """Invariants of the state that changes with every frame."""
    frame_tracker, where, graph = slam._frame_tracker, slam._frame_processor.state, slam._mapper.map.graph
    _check_tracks("the front end's tracks", frame_tracker.tracks, slam._mapper.map.landmarks)
    if frame_tracker.pose is not None:
        _check_poses("the live pose", [frame_tracker.pose])
    if where.is_tracking:
        require(frame_tracker.pose is not None, "tracking without a pose")
        require(where.keyframe_id in graph.keyframes, f"the reference keyframe {where.keyframe_id} does not exist")
    require(where.has_map or not slam._log.records, "frames have poses without a map")
    check_memory(slam)


def check_map(slam: Slam) -> None:
    """Invariants of the state that changes with every keyframe: graph, landmarks and recorded frames."""
    check_graph(slam._mapper.map.graph)
    check_landmarks(slam._mapper.map.landmarks, slam._mapper.map.graph)
    records, graph, evidence = slam._log.records, slam._mapper.map.graph, slam._loop_closer._evidence
    require(set().union(*evidence._consistent) <= evidence._loops.keys(), "consistent loops that are not in the window")
    covisible = {k for pair in slam._mapper.map.pairs for k in pair}
    require(covisible <= graph.keyframes.keys(), "a pair estimate of a keyframe that does not exist")
    require(
        {r.keyframe_id for r in records} <= graph.keyframes.keys(), "the reference keyframe of a frame does not exist"
    )
    _check_poses("frames", [r.keyframe_from_frame for r in records])
    times = [r.timestamp_ns for r in records]
    require(times == sorted(times), "the frames are not in order of time")
    require(len({r.index for r in records}) == len(records), "a frame is recorded twice")


def check_memory(slam: Slam) -> None:
    """Buffers are bounded, and every key refers to something that exists."""
    loop_closer, graph = slam._loop_closer, slam._mapper.map.graph
    evidence = loop_closer._evidence
    require(len(evidence._loops) <= WINDOW, f"{len(evidence._loops)} loops in the window")
    require(loop_closer._verified.keys() <= evidence._loops.keys(), "deferred loops that are not in the window")
    references = slam._frame_processor._initializer._references
    require(len(references) <= slam._config.initialization.references, f"{len(references)} references")
    require(all(len(r.between) <= MAX_BETWEEN for r in references), "too many frames between the initial pair are kept")
    limit, looking = slam._config.tracking.look_back, slam._deferred
    require(
        len(looking._unlocalized) <= limit,
        f"{len(looking._unlocalized)} frames stored for deferred relocalization, limit {limit}",
    )
    require(
        len(looking._failures) <= limit,
        f"{len(looking._failures)} reasons of failed relocalizations stored, limit {limit}",
    )
    known = len(slam._relocalizer._retriever)  # type: ignore[arg-type]
    require(known == len(graph.keyframes), f"{known} keyframes can be retrieved, the graph has {len(graph.keyframes)}")


# --- the parts ----------------------------------------------------------------------------------------


def check_graph(graph: KeyframeGraph) -> None:
    ids = list(graph.keyframes)
    require(ids == sorted(ids), "keyframes are not in order")
    require(graph.world_from_keyframe.keys() == graph.keyframes.keys(), "poses and keyframes are not the same")
    require(graph.segment_of.keys() == graph.keyframes.keys(), "segments and keyframes are not the same")
    require(all(keyframe.id == k for k, keyframe in graph.keyframes.items()), "a keyframe has another's id")
    for k, keyframe in graph.keyframes.items():
        require(abs(np.linalg.norm(keyframe.descriptor) - 1.0) < 1e-3, f"keyframe {k}: no unit descriptor")
    _check_similarities("keyframes", graph.world_from_keyframe.values())
    _check_edges(graph)


def _check_edges(graph: KeyframeGraph) -> None:
    edges = list(graph.edges.values())
    require(all(key == (e.i, e.j) and e.i < e.j for key, e in graph.edges.items()), "an edge has another's key")
    require({end for key in graph.edges for end in key} <= graph.keyframes.keys(), "an end of an edge does not exist")
    sigmas = np.array([e.sigmas for e in edges]).reshape(-1, 7)
    require(np.isfinite(sigmas).all() and (sigmas > 0).all(), "an edge's sigmas are not positive and finite")
    _check_similarities("edges", [e.i_from_j for e in edges])
    require(graph.weights.keys() <= graph.edges.keys(), "a weight of an edge that does not exist")
    require(all(0.0 <= weight <= 1.0 for weight in graph.weights.values()), "a weight is not in [0, 1]")
    for edge in edges:
        same = graph.segment_of[edge.i] == graph.segment_of[edge.j]
        require(same or graph.weight(edge) == 0.0, f"edge {edge.i}-{edge.j} between two segments has a weight")


def check_landmarks(landmarks: LandmarkMap, graph: KeyframeGraph) -> None:
    observed, feature_tracks = landmarks.observed, landmarks.feature_tracks
    require(observed.keys() == feature_tracks.keys() == graph.keyframes.keys(), "a keyframe has no observations")
    observers: Counter[int] = Counter()
    observed_in: dict[int, set[int]] = {}
    for k, tracks in observed.items():
        _check_tracks(f"keyframe {k}", tracks, landmarks)
        _check_feature_tracks(k, tracks, landmarks, graph)
        triangulated = tracks.ids[landmarks.is_triangulated(tracks.ids)]
        observers.update(triangulated.tolist())
        observed_in.setdefault(graph.segment_of[k], set()).update(triangulated.tolist())
    ids = landmarks.landmark_ids()
    require(np.isin(landmarks.anchor[ids], list(graph.keyframes)).all(), "the anchor of a landmark is not a keyframe")
    require(np.isfinite(landmarks.point_in_anchor[ids]).all(), "the position of a landmark is not finite")
    sigma = landmarks.inverse_depth_sigma[ids]
    require(np.isfinite(sigma).all() and (sigma > 0).all(), "a landmark's sigma is not positive and finite")
    require(
        (landmarks._replaced_by[ids] == ids).all(), "a landmark has a position under an id that was fused into another"
    )
    require(set(ids.tolist()) <= observers.keys(), "a landmark is observed by no keyframe")
    for segment, seen in observed_in.items():
        anchors = landmarks.anchor[np.fromiter(seen, np.int64, len(seen))]
        segments = {graph.segment_of[int(a)] for a in np.unique(anchors)}
        require(segments <= {segment}, f"segment {segment} observes landmarks of segments {segments}")
    require((landmarks.anchor[landmarks._count :] == NO_ANCHOR).all(), "a track that was never started has a position")


def _check_feature_tracks(k: int, tracks: Tracks, landmarks: LandmarkMap, graph: KeyframeGraph) -> None:
    track_ids = landmarks.feature_tracks[k]
    require(
        len(track_ids) == len(graph.keyframes[k].features),
        f"keyframe {k}: the number of features is not that of their track ids",
    )
    require(
        np.isin(track_ids[track_ids >= 0], tracks.ids).all(),
        f"keyframe {k}: a feature has a track that the keyframe does not observe",
    )


def _check_tracks(what: str, tracks: Tracks, landmarks: LandmarkMap) -> None:
    require(len(tracks.ids) == len(tracks.pixels), f"{what}: ids and pixels differ in number")
    require(np.isfinite(tracks.pixels).all(), f"{what}: a pixel is not finite")
    require(len(np.unique(tracks.ids)) == len(tracks.ids), f"{what}: a track twice")
    if len(tracks):
        require(
            tracks.ids.min() >= 0 and tracks.ids.max() < landmarks._count, f"{what}: a track that was never started"
        )
        if what.startswith("keyframe"):
            require(
                (landmarks._replaced_by[tracks.ids] == tracks.ids).all(), f"{what}: an id that was fused into another"
            )


def _check_similarities(what: str, poses: Iterable[Similarity]) -> None:
    poses = list(poses)
    _check_rotations(what, np.array([pose.rotation for pose in poses]).reshape(-1, 3, 3))
    numbers = np.array([[*pose.translation, pose.scale] for pose in poses]).reshape(-1, 4)
    require(np.isfinite(numbers).all() and (numbers[:, 3] > 0).all(), f"{what}: not a similarity")


def _check_poses(what: str, poses: Iterable[RigidTransform]) -> None:
    matrices = np.array([pose.as_matrix() for pose in poses]).reshape(-1, 4, 4)
    require(np.isfinite(matrices).all(), f"{what}: a pose is not finite")
    _check_rotations(what, matrices[:, :3, :3])


def _check_rotations(what: str, rotations: NDArray[np.float64]) -> None:
    off = np.abs(rotations @ rotations.transpose(0, 2, 1) - np.eye(3)).max(initial=0.0)
    require(off < ORTHONORMAL and (np.linalg.det(rotations) > 0).all(), f"{what}: not a rotation, off by {off:.2g}")


# --- the end ------------------------------------------------------------------------------------------


def check_result(result: SlamResult, saved: ReferenceMap) -> None:
    for trajectory in (result.trajectory, result.keyframe_trajectory, result.online, *result.segments):
        require(np.isfinite(trajectory.world_from_cam).all(), "a trajectory is not finite")
        _check_rotations("a trajectory", trajectory.world_from_cam[:, :3, :3])
    require(len(result.frame_indices) == len(result.trajectory), "frames and poses differ in number")
    require(np.isfinite(result.landmark_points).all(), "landmarks are not finite")
    try:
        validate(saved)
    except ValueError as error:
        raise Broken(f"the saved map is invalid: {error}") from None


class Witness:
    """An observer that checks every event and counts the events by kind."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.keyframes: set[int] = set()
        self.frames: set[int] = set()
        self.finished = 0
        self.loops_rejected: Counter[str] = Counter()

    def __call__(self, event: Event) -> None:
        self.kinds[type(event).__name__] += 1
        match event:
            case FrameProcessed():
                self._frame(event)
            case KeyframeAdded():
                require(event.keyframe.id not in self.keyframes, f"keyframe {event.keyframe.id} is published twice")
                self.keyframes.add(event.keyframe.id)
                _check_similarities("a published keyframe", [event.world_from_keyframe])
                require(event.reason, "a keyframe without a reason")
            case LandmarksUpdated():
                require(len(event.ids) == len(event.points_world) == len(event.colors), "landmarks published in part")
                require(np.isfinite(event.points_world).all(), "a published landmark is not finite")
            case GraphOptimized():
                errors = np.array([event.error_before, event.error_after])
                require(np.isfinite(errors).all() and (errors >= 0).all(), f"errors of the graph: {errors}")
                _check_similarities("published poses", event.world_from_keyframe.values())
            case EdgeAccepted():
                require(event.edge.i < event.edge.j and event.frame_index >= 0, "an edge that cannot be")
            case EdgeRejected():
                require(
                    event.reason and event.i < event.j and event.landmarks >= 0, f"a refusal that cannot be: {event}"
                )
                self.loops_rejected[event.reason.split(":")[0]] += 1
            case Initialized():
                require(
                    np.isfinite(event.parallax_deg) and event.landmarks >= 0, f"a beginning that cannot be: {event}"
                )
            case Relocalized() | FrameLocalizedLater():
                require(event.inliers > 0 and event.keyframe_id >= 0, f"a place that cannot be: {event}")
            case TrackingLost() | FrameNotLocalized():
                require(event.reason, "no reason why there is no pose")
            case LoopExamined():
                require(bool(event.reason) != event.is_accepted, f"a reason for what succeeded, or none: {event}")
            case RunFinished():
                self.finished += 1
                require(np.isfinite(event.world_from_cam).all(), "the final poses are not finite")
            case _:
                require(getattr(event, "reason", "said"), f"{type(event).__name__} without a reason")

    def _frame(self, event: FrameProcessed) -> None:
        require(event.frame.index not in self.frames, f"frame {event.frame.index} is published twice")
        self.frames.add(event.frame.index)
        tracked = event.state is TrackingState.TRACKING
        require(tracked == (event.world_from_cam is not None), f"{event.state} with a pose, or none")
        if event.world_from_cam is not None:
            _check_poses("a published pose", [event.world_from_cam])
        else:
            require(event.reason, "no reason why there is no pose")
        sizes = {len(event.pixels), len(event.track_ids), len(event.is_inlier)}
        require(len(sizes) == 1, f"tracks published in part: {sizes}")
        require(np.isfinite(event.pixels).all(), "a published pixel is not finite")
        require(np.isnan(event.depth) or np.isfinite(event.depth), f"depth {event.depth}")
