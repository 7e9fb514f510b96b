"""The map: keyframe graph, landmarks, pair estimates and the intrinsics correction of each segment, in one object."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from relocalizer.camera import Camera
from relocalizer.geometry import FloatArray, Similarity
from relocalizer.interfaces import PairEstimate
from relocalizer.intrinsics_correction import CorrectionStep, IntrinsicsCorrection
from relocalizer.landmark_source import TrackedFeatures
from slam.map.keyframe_graph import KeyframeGraph
from slam.map.landmarks import LandmarkMap
from slam.map.lens_evidence import LensEvidence, LensState
from slam.map.tracks import Tracks


class SlamMap:
    """Keyframes with their poses and edges, landmarks with their observations, and the queries over both.

    The counterpart of ORB-SLAM's map with its covisibility graph; covisibility is counted on demand. Images are
    localized in it as in a stored map (`relocalizer.landmark_source.LandmarkSource`). The map changes
    through its own methods and through those of `KeyframeGraph` and `LandmarkMap`, which only `slam.tracking`,
    `slam.mapping`, `slam.loop_closing` and `slam.sessions` call.

    Attributes:
        lenses: per segment, the correction of its camera's intrinsics.
        lens_evidence: per segment, the evidence for its focal length.
        assumed_focal_sigma: standard deviation of the logarithm of an assumed focal length; None without an estimate
            before the run.
        pairs: pair estimates by (i, j), the priors of bundle adjustment.
    """

    def __init__(self) -> None:
        self.graph = KeyframeGraph()
        self.landmarks = LandmarkMap()
        self.lenses: dict[int, IntrinsicsCorrection] = {}
        self.lens_evidence: dict[int, LensEvidence] = {}
        self.assumed_focal_sigma: float | None = None
        self.pairs: dict[tuple[int, int], PairEstimate] = {}
        self._paired_with: dict[int, list[int]] = {}  # by the later keyframe of a pair, the earlier ones

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
            reason = "self-calibration was not done"
            if self.assumed_focal_sigma is not None:
                return LensEvidence.before_run(self.assumed_focal_sigma, reason)
            return LensEvidence(LensState.GUESS, reason=reason)
        return LensEvidence()

    def pairs_among(self, later: Iterable[int], members: Iterable[int]) -> list[tuple[int, int, PairEstimate]]:
        """Pair estimates (i, j, estimate) with j in `later` and i in `members`, in order of j."""
        among = set(members)
        return [(i, j, self.pairs[i, j]) for j in sorted(later) for i in self._paired_with.get(j, []) if i in among]

    # --- changes --------------------------------------------------------------------------------------

    def add_pair(self, i: int, j: int, estimate: PairEstimate) -> None:
        """Store a pair estimate as a prior of bundle adjustment."""
        if (i, j) not in self.pairs:
            self._paired_with.setdefault(j, []).append(i)
        self.pairs[i, j] = estimate

    def remove_pairs(self, members: Iterable[int]) -> None:
        """Remove the pair estimates whose later keyframe is one of `members`."""
        removed = {(i, j) for j in members for i in self._paired_with.pop(j, [])}
        self.pairs = {pair: estimate for pair, estimate in self.pairs.items() if pair not in removed}

    def move(
        self, world_from_keyframe: dict[int, Similarity], ids: NDArray[np.int64], points_world: FloatArray
    ) -> None:
        """Set keyframe poses, and the points (N, 3) of landmarks `ids` under them."""
        self.graph.set_poses(world_from_keyframe)
        self.landmarks.move_to(ids, points_world, self.graph)

    def correct_intrinsics(self, members: Sequence[int], step: CorrectionStep) -> None:
        """Apply a correction of the intrinsics to the cameras, features and observations of a segment's keyframes."""
        if step.is_nothing:
            return
        segment, first = self.graph.segment_of[members[0]], self.graph.keyframes[members[0]]
        self.lenses[segment] = self.lens_of(members[0]).then(step, first.camera)
        for k in members:
            keyframe = self.graph.keyframes[k]
            camera, features, tracks = keyframe.camera, keyframe.features, self.landmarks.observed[k]
            pixels = step.undistorted_pixels(features.pixels, camera).astype(np.float32)
            features = replace(features, pixels=pixels)
            self.graph.keyframes[k] = replace(keyframe, camera=step.camera(camera), features=features)
            pixels = step.undistorted_pixels(tracks.pixels, camera).astype(np.float32)
            self.landmarks.observed[k] = Tracks(tracks.ids, pixels)

    def note_lens(self, segment: int, reason: str) -> None:
        """Record why the camera of a segment is not better known, unless a reason is recorded already."""
        evidence = self.lens_evidence.get(segment, LensEvidence())
        self.lens_evidence[segment] = replace(evidence, reason=evidence.reason or reason)

    def join_segments(self, c: int, k: int, c_world_from_k_world: Similarity) -> bool:
        """Join the segments of keyframes c and k by the similarity between their worlds.

        The older segment keeps its world and units, so a continued map keeps its own; but if only the younger one is
        metric, that one keeps them.

        Returns:
            False, and nothing changes, if a keyframe would be out of range (`Similarity.is_in_range`).
        """
        graph = self.graph
        kept, moved, kept_from_moved = graph.segment_of[c], graph.segment_of[k], c_world_from_k_world
        if (moved in graph.metric, -moved) > (kept in graph.metric, -kept):
            kept, moved, kept_from_moved = moved, kept, kept_from_moved.inverse()
        poses = {i: kept_from_moved @ graph.world_from_keyframe[i] for i in graph.segment(moved)}
        if not all(pose.is_in_range for pose in poses.values()):
            return False
        graph.set_poses(poses)
        graph.segment_of.update(dict.fromkeys(poses, kept))
        graph.metric.pop(moved, None)
        return True

    def remove_incomplete(self, has_image: Callable[[int], bool]) -> None:
        """Remove the keyframes that an exception left incomplete: without observations, or without an image.

        Their edges and the points that are stored relative to them are removed too.
        """
        landmarks = self.landmarks
        complete = landmarks.observed.keys() & landmarks.feature_tracks.keys()
        for k in [k for k in self.graph.keyframes if k not in complete or not has_image(k)]:
            self.graph.remove_keyframe(k)
            landmarks.remove_keyframe(k)
            self.pairs = {pair: estimate for pair, estimate in self.pairs.items() if k not in pair}
            self._paired_with.pop(k, None)
            for j, earlier in self._paired_with.items():
                self._paired_with[j] = [i for i in earlier if i != k]
