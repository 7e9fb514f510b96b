"""The map: keyframe graph, landmarks, pair estimates and the intrinsics correction of each segment, in one object."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from relocalizer.camera import Camera
from relocalizer.geometry import FloatArray, Similarity
from relocalizer.images import Image
from relocalizer.intrinsics_correction import CorrectionStep, IntrinsicsCorrection
from relocalizer.landmark_source import TrackedFeatures
from slam.map.frames import Keyframe
from slam.map.keyframe_graph import Edge, KeyframeGraph
from slam.map.landmarks import LandmarkMap
from slam.map.lens_evidence import LensEvidence, LensState
from slam.map.pair_estimates import PairEstimates
from slam.map.tracks import Pixels, Tracks

Ids = NDArray[np.int64]


class SlamMap:
    """Keyframes with their poses and edges, landmarks with their observations, and the queries over both.

    The counterpart of ORB-SLAM's map with its covisibility graph; covisibility is counted on demand. Images are
    localized in it as in a stored map (`relocalizer.landmark_source.LandmarkSource`). The map is the only writer of
    its graph and its landmarks: `slam.tracking`, `slam.mapping`, `slam.loop_closing` and `slam.sessions` change them
    through the methods of this class.

    Attributes:
        graph, landmarks: to be read only.
        lenses: per segment, the correction of its camera's intrinsics.
        lens_evidence: per segment, the evidence for its focal length.
        assumed_focal_sigma: standard deviation of the logarithm of an assumed focal length; None without an estimate
            before the run.
        pairs: pair estimates, the priors of bundle adjustment.
    """

    def __init__(self) -> None:
        self.graph = KeyframeGraph()
        self.landmarks = LandmarkMap()
        self.lenses: dict[int, IntrinsicsCorrection] = {}
        self.lens_evidence: dict[int, LensEvidence] = {}
        self.assumed_focal_sigma: float | None = None
        self.pairs = PairEstimates()

    # --- queries --------------------------------------------------------------------------------------

    def segment_keyframes(self, k: int) -> list[int]:
        """Ids of the keyframes in the segment of keyframe k, in order."""
        return self.graph.segment(self.graph.segment_of[k])

    def latest(self, k: int, count: int) -> list[int]:
        """Ids of the newest `count` keyframes in the segment of keyframe k, in order."""
        segment = self.graph.segment_of[k]
        of_segment = (i for i in reversed(self.graph.keyframes) if self.graph.segment_of[i] == segment)
        return list(islice(of_segment, count))[::-1]

    def before(self, k: int) -> int | None:
        """Id of the previous keyframe in the segment of keyframe k; None for the first."""
        segment = self.graph.segment_of[k]
        return next((i for i in reversed(self.graph.keyframes) if i < k and self.graph.segment_of[i] == segment), None)

    def covisible(self, k: int, count: int, *, among: Sequence[int] | None = None) -> list[int]:
        """Up to `count` keyframes that share the most landmarks with keyframe k, in descending order of that number.

        Args:
            among: the candidates; by default all keyframes of the segment.
        """
        tracks = self.landmarks.observed[k]
        ids = tracks.ids[self.landmarks.is_triangulated(tracks.ids)]
        if among is None:
            segment, observers = self.graph.segment_of[k], self.landmarks.observed.observers_of(ids)
            among = [i for i in observers if self.graph.segment_of[i] == segment]
        shared = self.landmarks.shared_with(ids, [i for i in among if i != k])
        return sorted((i for i in shared if shared[i]), key=lambda i: (-shared[i], -i))[:count]

    def parallax_deg(self, i: int, k: int) -> float | None:
        """Median parallax of the landmarks that both keyframes observe, degrees; None without shared landmarks."""
        shared = np.intersect1d(self.landmarks.observed[i].ids, self.landmarks.observed[k].ids, assume_unique=True)
        shared = shared[self.landmarks.is_triangulated(shared)]
        if len(shared) == 0:
            return None
        points = self.landmarks.points_world(shared, self.graph)
        a, b = (points - self.graph.world_from_keyframe[n].translation for n in (i, k))
        angles = np.arctan2(np.linalg.norm(np.cross(a, b), axis=1), (a * b).sum(axis=1))
        return float(np.degrees(np.median(angles)))

    def lens_of(self, k: int) -> IntrinsicsCorrection:
        """The intrinsics correction of the camera of keyframe k."""
        return self.lenses.get(self.graph.segment_of[k], IntrinsicsCorrection())

    def camera_of(self, k: int) -> Camera:
        """The camera of keyframe k."""
        return self.graph.keyframes[k].camera

    def pose_of(self, k: int) -> Similarity:
        """world_from_keyframe of keyframe k."""
        return self.graph.world_from_keyframe[k]

    def tracked_features(self, k: int) -> TrackedFeatures:
        """The local features of keyframe k, with their tracks."""
        return TrackedFeatures(self.graph.keyframes[k].features, self.landmarks.feature_tracks[k])

    def observed_landmarks(self, keyframes: Sequence[int]) -> NDArray[np.int64]:
        """The triangulated tracks that any of these keyframes observes, ascending."""
        ids = np.unique(np.concatenate([self.landmarks.observed[k].ids for k in keyframes]))
        return ids[self.landmarks.is_triangulated(ids)]

    def observers(self, landmarks: NDArray[np.int64], count: int) -> list[int]:
        """Up to `count` keyframes that observe the most of these tracks (N,), in descending order."""
        shared = self.landmarks.shared_with(landmarks, self.landmarks.observed.observers_of(landmarks))
        return sorted((k for k in shared if shared[k]), key=lambda k: (-shared[k], -k))[:count]

    def is_triangulated(self, landmarks: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these tracks (N,) are landmarks."""
        return self.landmarks.is_triangulated(landmarks)

    def points_world(self, landmarks: NDArray[np.int64]) -> FloatArray:
        """Points (N, 3) of landmarks, map units."""
        return self.landmarks.points_world(landmarks, self.graph)

    def depth_sigma_world(self, landmarks: NDArray[np.int64]) -> FloatArray:
        """One standard deviation of each landmark along its anchor's ray, as a vector (N, 3), map units."""
        return self.landmarks.depth_sigma_world(landmarks, self.graph)

    def descriptors(self, landmarks: NDArray[np.int64]) -> NDArray[np.float32]:
        """Unit descriptors (N, 128) of tracks."""
        return self.landmarks.descriptor[landmarks]

    def frame_index_of(self, k: int) -> int:
        """Index of the frame that keyframe k was made of."""
        return self.graph.keyframes[k].frame_index

    def evidence_of(self, segment: int) -> LensEvidence:
        """Evidence for the focal length of a segment; without an examination, that of its initial camera."""
        if segment in self.lens_evidence:
            return self.lens_evidence[segment]
        if any(self.graph.keyframes[k].camera.assumed for k in self.graph.segment(segment)):
            reason = "no self-calibration: the map was continued or not refined"
            if self.assumed_focal_sigma is not None:
                return LensEvidence.before_run(self.assumed_focal_sigma, reason)
            return LensEvidence(LensState.GUESS, reason=reason)
        return LensEvidence()

    @property
    def next_segment(self) -> int:
        """Number for a new segment, which no keyframe has yet."""
        return 1 + max(self.graph.segment_of.values(), default=-1)

    # --- keyframes, edges and poses -------------------------------------------------------------------

    def insert_keyframe(
        self, keyframe: Keyframe, world_from_keyframe: Similarity, segment: int, tracks: Tracks, feature_tracks: Ids
    ) -> None:
        """Insert a keyframe that observes `tracks`; ValueError as in `KeyframeGraph.add_keyframe`.

        `feature_tracks` (M,) is the track id of each of its local features, -1 for features without one.
        """
        self.graph.add_keyframe(keyframe, world_from_keyframe, segment)
        self.landmarks.add_keyframe(keyframe.id, tracks, feature_tracks)

    def set_edge(self, edge: Edge, weight: float = 1.0) -> None:
        """Add an edge, or replace the edge between the same keyframes; ValueError as in `KeyframeGraph.set_edge`."""
        self.graph.set_edge(edge)
        if weight < 1.0:
            self.graph.set_weights({(edge.i, edge.j): weight})

    def inflate_odometry(self, factor: float) -> None:
        """Multiply the variance of all odometry edges, and of those to come, by a factor."""
        self.graph.inflate_odometry(factor)

    def apply_pose_graph(
        self, world_from_keyframe: Mapping[int, Similarity], loop_weights: Mapping[tuple[int, int], float]
    ) -> None:
        """Set the poses and the weights of loops that pose graph optimization found; landmarks move with the poses."""
        self.graph.set_poses(world_from_keyframe)
        self.graph.set_weights(loop_weights)

    def apply_bundle_adjustment(
        self, world_from_keyframe: Mapping[int, Similarity], ids: Ids, points_world: FloatArray
    ) -> None:
        """Set keyframe poses, and the points (N, 3) of landmarks `ids` under them; without poses, structure only."""
        self.graph.set_poses(world_from_keyframe)
        self.landmarks.move_to(ids, points_world, self.graph)

    def scale_to_meters(self, segment: int, meters_per_unit: float, source: str) -> None:
        """Scale a segment to meters; arguments and errors are those of `KeyframeGraph.scale_to_meters`."""
        self.graph.scale_to_meters(segment, meters_per_unit, source)

    def mark_metric(self, segment: int, source: str) -> None:
        """Record that the lengths of a segment are in meters, and the source of that scale, in words."""
        self.graph.metric[segment] = source

    # --- tracks and landmarks -------------------------------------------------------------------------

    def start_tracks(self, pixels: Pixels, descriptors: NDArray[np.float32], image: Image) -> Tracks:
        """New tracks at pixels (N, 2) of an image, with their descriptors (N, 128) and their colors in the image."""
        return self.landmarks.start(pixels, descriptors, image)

    def add_tracks(self, descriptors: NDArray[np.float32], colors: NDArray[np.uint8]) -> Ids:
        """Ids (N,) of new tracks with the given descriptors (N, 128) and RGB colors (N, 3)."""
        return self.landmarks.add_tracks(descriptors, colors)

    def add_observations(self, k: int, features: Ids, tracks: Tracks) -> None:
        """Add tracks that keyframe k does not observe yet, each as the track of one of its features (N,)."""
        self.landmarks.add_observations(k, features, tracks)

    def remove_observations(self, k: int, ids: Ids) -> None:
        """Remove the observations of these tracks from keyframe k."""
        self.landmarks.remove_observations(k, ids)

    def add_landmarks(
        self, ids: Ids, points_in_anchor: FloatArray, anchor: int | Ids, inverse_depth_sigma: FloatArray
    ) -> None:
        """Make triangulated tracks landmarks; the arguments are those of `LandmarkMap.set_points`."""
        self.landmarks.set_points(ids, points_in_anchor, anchor, inverse_depth_sigma)

    def remove_landmarks(self, ids: Ids) -> None:
        """Remove the positions of landmarks; their tracks and observations stay."""
        self.landmarks.remove_points(ids)

    def fuse_landmarks(self, kept: Ids, replaced: Ids) -> None:
        """Fuse duplicate landmarks: every observation of replaced[n] becomes an observation of kept[n]."""
        self.landmarks.merge(kept, replaced)

    # --- intrinsics and segments ----------------------------------------------------------------------

    def correct_intrinsics(self, members: Sequence[int], step: CorrectionStep) -> None:
        """Apply a correction of the intrinsics to the cameras, features and observations of a segment's keyframes."""
        if step.is_nothing:
            return
        segment, first = self.graph.segment_of[members[0]], self.graph.keyframes[members[0]]
        self.lenses[segment] = self.lens_of(members[0]).then(step, first.camera)
        for k in members:
            keyframe = self.graph.keyframes[k]
            camera, features, tracks = keyframe.camera, keyframe.features, self.landmarks.observed[k]
            features = replace(features, pixels=step.undistorted_pixels(features.pixels, camera).astype(np.float32))
            self.graph.keyframes[k] = replace(keyframe, camera=step.camera(camera), features=features)
            pixels = step.undistorted_pixels(tracks.pixels, camera).astype(np.float32)
            self.landmarks.observed[k] = Tracks(tracks.ids, pixels)

    def set_lens_evidence(self, segment: int, evidence: LensEvidence) -> None:
        """Set the evidence for the focal length of a segment."""
        self.lens_evidence[segment] = evidence

    def note_lens(self, segment: int, reason: str) -> None:
        """Record why the camera of a segment is not better known, unless it is known or a reason stands there."""
        evidence = self.lens_evidence.get(segment, LensEvidence())
        if evidence.state is LensState.KNOWN:
            return
        self.lens_evidence[segment] = replace(evidence, reason=evidence.reason or reason)

    def join_segments(self, c: int, k: int, c_world_from_k_world: Similarity) -> bool:
        """Join the segments of keyframes c and k by the similarity between their worlds.

        Which world is kept, and when the segments stay apart, is described in `KeyframeGraph.join_segments`.
        """
        return self.graph.join_segments(c, k, c_world_from_k_world)

    def remove_incomplete(self, has_image: Callable[[int], bool]) -> None:
        """Remove the keyframes that an exception left incomplete: without observations, or without an image.

        Their edges and the points that are stored relative to them are removed too.
        """
        complete = self.landmarks.observed.keys() & self.landmarks.feature_tracks.keys()
        incomplete = [k for k in self.graph.keyframes if k not in complete or not has_image(k)]
        for k in incomplete:
            self.graph.remove_keyframe(k)
            self.landmarks.remove_keyframe(k)
        self.pairs.remove(incomplete)
