"""The map grows: a frame becomes a keyframe, tracks get places, known landmarks are found again, and the
recent part of the map is refined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from relocalizer.camera import Camera
from relocalizer.features import LocalFeatures
from relocalizer.geometry import FloatArray, Similarity
from relocalizer.guided_matching import expected_in, similar_nearby
from relocalizer.images import Image
from relocalizer.interfaces import CalibratedImage, NoEstimate, PairEstimate, PosePredictor
from relocalizer.intrinsics_correction import CorrectionStep, IntrinsicsCorrection
from relocalizer.maps.reference_map import MAX_COORDINATE
from relocalizer.triangulation import depths_in, triangulate
from slam.config.schema import SlamConfig
from slam.events import EstimateRefused, Event
from slam.map.frames import FrameObservation, Keyframe
from slam.map.keyframe_graph import KeyframeGraph
from slam.map.landmarks import LandmarkMap
from slam.map.tracks import Tracks
from slam.mapping.bundle import (
    AdjustedBundle,
    Bundle,
    BundleAdjuster,
    IntrinsicsPrior,
    reprojection_errors,
    structure_only_adjustment,
)
from slam.mapping.lens_evidence import LensEvidence
from slam.predictor_checks import describe
from slam.tracking.klt import choose_new

SAME_POINT_PX = 2.0  # a feature this near to a track is the track's point
SAME_POINT_SIMILARITY = 0.7
SAME_DEPTH = 0.2  # share by which the depths of two landmarks may differ that are to become one
PRIOR_CONFIDENCE = 0.5  # of a pair estimate, the chance that it is right
OUTLIER_CHI = 3.0  # observations beyond this many standard deviations are dropped after a refinement
MIN_OBSERVERS = 2
LENS_LANDMARKS = 200  # of each keyframe; they tell the lens as well as all do, and all make a camera they share costly
ADAPTING_ITERATIONS = 30  # of poses and landmarks to another focal length, which bends the whole map
MIN_FIXED_BASELINE = 0.25  # of a window's length: so far apart keyframes must stand to hold it
WINDOW_TOLERANCE = 1e-3  # a window is refined again with the next keyframe, so the last bit can wait


class Mapper:
    """Owns the graph's keyframes and the landmarks, and writes to both.

    So do the `LoopCloser`, who ties keyframes and makes one of landmarks that a loop shows to be one, and
    `slam.sessions.stored_map.restore`, who puts a saved map in.
    """

    def __init__(
        self,
        config: SlamConfig,
        predictor: PosePredictor,
        adjuster: BundleAdjuster,
        publish: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self._config = config
        self._predictor = predictor
        self._adjuster = adjuster
        self._publish = publish
        self.graph = KeyframeGraph()
        self.lenses: dict[int, IntrinsicsCorrection] = {}  # what was found of the camera of each segment
        self.lens_evidence: dict[int, LensEvidence] = {}  # and how far that is known
        self.landmarks = LandmarkMap()
        self.pairs: dict[tuple[int, int], PairEstimate] = {}
        self._paired_with: dict[int, list[int]] = {}  # by the later of a pair, the earlier ones

    # --- a new keyframe -------------------------------------------------------------------------------

    def _make_keyframe(self, seen: FrameObservation) -> Keyframe:
        """Make a keyframe of a frame; it is not in the graph yet."""
        frame = seen.frame
        [encoded] = self._predictor.encode([CalibratedImage(frame.image, frame.camera, seen.features)])
        descriptor, usable = describe(self._predictor, encoded)
        if not usable:
            self._refuse(frame.index, "the place descriptor is no unit vector: its place will hardly be recognized")
        return Keyframe(
            id=self.graph.last_id + 1,
            frame_index=frame.index,
            timestamp_ns=frame.timestamp_ns,
            camera=frame.camera,
            encoded=encoded,
            descriptor=descriptor,
            features=seen.features,
        )

    def insert(self, seen: FrameObservation, tracks: Tracks, pose: Similarity, segment: int) -> Keyframe:
        """Make a frame a keyframe at `pose`, seeing `tracks`; it finds known landmarks again and starts new tracks."""
        keyframe = self._make_keyframe(seen)
        self.graph.add_keyframe(keyframe, pose, segment)
        self.landmarks.observed[keyframe.id] = tracks
        self.landmarks.feature_tracks[keyframe.id] = self._tracks_of_features(tracks, seen.features)
        self.search_by_projection(keyframe.id)
        self._start_new_tracks(keyframe, seen.frame.image)
        self._triangulate_new_landmarks(keyframe.id)
        return keyframe

    def remove_incomplete(self, has_image: Callable[[int], bool]) -> None:
        """Take keyframes out that an exception has left half made: without observations, or without an image.

        Their edges and the points that are stored relative to them go too.
        """
        landmarks = self.landmarks
        whole = landmarks.observed.keys() & landmarks.feature_tracks.keys()
        for k in [k for k in self.graph.keyframes if k not in whole or not has_image(k)]:
            self.graph.remove_keyframe(k)
            landmarks.remove_keyframe(k)
            self.pairs = {pair: estimate for pair, estimate in self.pairs.items() if k not in pair}

    def _tracks_of_features(self, tracks: Tracks, features: LocalFeatures) -> NDArray[np.int64]:
        """The track id (N,) of every feature that lies on a track and looks like it; -1 for the others."""
        track_ids = np.full(len(features), -1, np.int64)
        if len(tracks) == 0 or len(features) == 0:
            return track_ids
        distance, nearest = cKDTree(tracks.pixels).query(features.pixels, distance_upper_bound=SAME_POINT_PX)
        for k in np.flatnonzero(np.isfinite(distance))[np.argsort(distance[np.isfinite(distance)], kind="stable")]:
            track_id = tracks.ids[nearest[k]]
            looks = float(self.landmarks.descriptor[track_id] @ features.descriptors[k])
            if looks > SAME_POINT_SIMILARITY and track_id not in track_ids:
                track_ids[k] = track_id
        return track_ids

    def _start_new_tracks(self, keyframe: Keyframe, image: Image) -> None:
        """Features far from every track become tracks of their own."""
        config, camera = self._config.tracks, keyframe.camera
        tracks = self.landmarks.observed[keyframe.id]
        chosen = choose_new(
            keyframe.features,
            tracks.pixels,
            count=max(0, config.max_tracks - len(tracks)),
            min_distance_px=config.min_distance_px,
            size=(camera.width, camera.height),
        )
        chosen = chosen[self.landmarks.feature_tracks[keyframe.id][chosen] < 0]
        features = keyframe.features
        started = self.landmarks.start(features.pixels[chosen], features.descriptors[chosen], image)
        self.landmarks.feature_tracks[keyframe.id][chosen] = started.ids
        self.landmarks.observed[keyframe.id] = tracks.joined(started)

    def _triangulate_new_landmarks(self, k: int) -> None:
        """Triangulate the tracks of keyframe k that have no place, each with the keyframe that saw it first."""
        tracks = self.landmarks.observed[k]
        waiting = tracks.where(~self.landmarks.is_triangulated(tracks.ids))
        segment = self.graph.segment_of[k]
        for i in self.landmarks.observed.observers_of(waiting.ids):
            if i == k or self.graph.segment_of[i] != segment or len(waiting) == 0:
                continue
            earlier = self.landmarks.observed[i]
            ids, in_i, in_k = np.intersect1d(earlier.ids, waiting.ids, assume_unique=True, return_indices=True)
            if len(ids) == 0:
                continue
            placed = self._triangulate(i, k, ids, earlier.pixels[in_i], waiting.pixels[in_k])
            waiting = waiting.where(~np.isin(waiting.ids, placed))

    def _triangulate(
        self, i: int, k: int, ids: NDArray[np.int64], pixels_i: NDArray[np.float32], pixels_k: NDArray[np.float32]
    ) -> NDArray[np.int64]:
        """Place tracks seen in keyframes i and k; the ids of those that got a place."""
        camera_i, camera_k = self.graph.keyframes[i].camera, self.graph.keyframes[k].camera
        pose_i, pose_k = self.graph.world_from_keyframe[i], self.graph.world_from_keyframe[k]
        noise = 1.5 * self._config.tracks.noise_px / camera_i.mean_focal
        result = triangulate(
            camera_i.normalized(pixels_i),
            camera_k.normalized(pixels_k),
            pose_i.rigid.inv() * pose_k.rigid,
            noise=noise,
            min_parallax_rad=float(np.radians(self._config.landmarks.min_parallax_deg)),
        )
        good = result.good
        points_world = pose_i.rigid.apply(result.points_i[good])
        # An error of `noise` in a ray shifts inverse depth by noise / (depth * parallax).
        sigma = noise / np.maximum(result.points_i[good, 2] * result.parallax_rad[good], 1e-9) * pose_i.scale
        self.landmarks.set_points(ids[good], pose_i.inverse().apply(points_world), i, sigma)
        return ids[good]

    # --- known landmarks found again -----------------------------------------------------------------

    def search_by_projection(self, k: int, *, covisible: int | None = None) -> int:
        """Look for landmarks of the most related keyframes in keyframe k; how many were found.

        The map is projected into k, and each landmark takes the most similar feature near where it should be: this
        is what keeps a short loop one map. A feature that belongs to no track becomes an observation; one that
        already names another landmark shows that the two are one point, and they are made one.
        """
        config = self._config.landmarks
        keyframe = self.graph.keyframes[k]
        named = self.landmarks.feature_tracks[k]
        ids, pixels = self._predicted_pixels(k, config.search_keyframes if covisible is None else covisible)
        candidates = np.flatnonzero((named < 0) | self._is_landmark(named))
        if len(ids) == 0 or len(candidates) == 0:
            return 0
        found_ids, features = self._match_near(ids, pixels, keyframe, candidates, config.search_radius_px)
        free = named[features] < 0
        found = Tracks(found_ids[free], keyframe.features.pixels[features[free]])
        named[features[free]] = found.ids
        self.landmarks.observed[k] = self.landmarks.observed[k].joined(found)
        self._fuse(k, found_ids[~free], named[features[~free]])
        return len(found_ids)

    def _fuse(self, k: int, ids: NDArray[np.int64], others: NDArray[np.int64]) -> None:
        """Make one of each two landmarks that keyframe k cannot tell apart, when their depths agree as well."""
        pose = self.graph.world_from_keyframe[k].rigid
        depth = depths_in(self.landmarks.points_world(ids, self.graph), pose)
        other_depth = depths_in(self.landmarks.points_world(others, self.graph), pose)
        same = (other_depth > 0) & (np.abs(depth - other_depth) < SAME_DEPTH * depth)
        # The older name stays: it is the one that reaches further back.
        self.landmarks.merge(np.minimum(ids, others)[same], np.maximum(ids, others)[same])

    def _is_landmark(self, named: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these track names (N,), -1 for none, have a place."""
        placed = named >= 0
        placed[placed] = self.landmarks.is_triangulated(named[placed])
        return placed

    def _predicted_pixels(self, k: int, covisible: int) -> tuple[NDArray[np.int64], FloatArray]:
        """Landmarks that keyframe k should see and does not, in order of id, and the pixels (N, 2) where."""
        ids, pose = self._unseen_landmarks(k, covisible), self.graph.world_from_keyframe[k].rigid
        rows, pixels = expected_in(self.landmarks.points_world(ids, self.graph), pose, self.graph.keyframes[k].camera)
        return ids[rows], pixels

    def _unseen_landmarks(self, k: int, covisible: int) -> NDArray[np.int64]:
        """Landmarks of the keyframes most related to k that k does not see already, in order of id."""
        tracks = self.landmarks.observed[k]
        seen = tracks.ids[self.landmarks.is_triangulated(tracks.ids)]
        pool = [self.landmarks.observed[i].ids for i in self.covisible(k, covisible)]
        ids = np.unique(np.concatenate([*pool, np.zeros(0, np.int64)]))
        ids = ids[self.landmarks.is_triangulated(ids)]
        return np.setdiff1d(ids, seen, assume_unique=True)

    def _match_near(
        self,
        ids: NDArray[np.int64],
        pixels: FloatArray,
        keyframe: Keyframe,
        candidates: NDArray[np.int64],
        radius: float,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs (landmark ids, feature indices) of the most similar features within `radius`, one to one."""
        rows, columns = similar_nearby(
            pixels,
            self.landmarks.descriptor[ids],
            keyframe.features,
            radius_px=radius,
            min_similarity=self._config.landmarks.min_similarity,
            among=candidates,
        )
        used: tuple[set[int], set[int]] = set(), set()
        pairs: list[tuple[int, int]] = []
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            if row not in used[0] and column not in used[1]:
                used[0].add(row)
                used[1].add(column)
                pairs.append((int(ids[row]), column))
        result = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)
        return result[:, 0], result[:, 1]

    # --- what others tell the map ---------------------------------------------------------------------

    @property
    def noise_px(self) -> float:
        """Standard deviation of a track, pixels."""
        return self._config.tracks.noise_px

    def remember_pair(self, i: int, j: int, estimate: PairEstimate | NoEstimate) -> None:
        """Keep a pair estimate that is more likely right than wrong, for refinements to use as a prior."""
        if isinstance(estimate, NoEstimate) or estimate.confidence < PRIOR_CONFIDENCE:
            return
        if self._config.bundle_adjustment.pair_priors:
            if (i, j) not in self.pairs:
                self._paired_with.setdefault(j, []).append(i)
            self.pairs[i, j] = estimate

    def join_segments(self, c: int, k: int, c_world_from_k_world: Similarity) -> None:
        """The segments of keyframes c and k become one, tied by the similarity between their worlds.

        The one begun first keeps its world and units, so that a map that was gone on in does; unless only the other
        is metric, for meters would be lost.
        """
        graph = self.graph
        kept, gone, kept_from_gone = graph.segment_of[c], graph.segment_of[k], c_world_from_k_world
        if (gone in graph.metric, -gone) > (kept in graph.metric, -kept):
            kept, gone, kept_from_gone = gone, kept, kept_from_gone.inverse()
        for i in graph.segment(gone):
            graph.world_from_keyframe[i] = kept_from_gone @ graph.world_from_keyframe[i]
            graph.segment_of[i] = kept
        graph.metric.pop(gone, None)

    # --- relations ------------------------------------------------------------------------------------

    def segment_keyframes(self, k: int) -> list[int]:
        """Ids of the keyframes of k's segment, in order."""
        return self.graph.segment(self.graph.segment_of[k])

    def latest(self, k: int, count: int) -> list[int]:
        """Ids of the newest `count` keyframes of k's segment, in order."""
        segment = self.graph.segment_of[k]
        of_segment = (i for i in reversed(self.graph.keyframes) if self.graph.segment_of[i] == segment)
        return list(islice(of_segment, count))[::-1]

    def before(self, k: int) -> int | None:
        """Id of the last keyframe of k's segment that is older than k; None for the first."""
        segment = self.graph.segment_of[k]
        return next((i for i in reversed(self.graph.keyframes) if i < k and self.graph.segment_of[i] == segment), None)

    def covisible(self, k: int, count: int, *, among: Sequence[int] | None = None) -> list[int]:
        """Keyframes that see the most landmarks of k, at most `count`, the strongest first.

        `among` limits the choice; otherwise the whole segment is looked at.
        """
        tracks = self.landmarks.observed[k]
        ids = tracks.ids[self.landmarks.is_triangulated(tracks.ids)]
        if among is None:
            segment, observers_of = self.graph.segment_of[k], self.landmarks.observed.observers_of(ids)
            among = [i for i in observers_of if self.graph.segment_of[i] == segment]
        shared = self.landmarks.shared_with(ids, [i for i in among if i != k])
        return sorted((i for i in shared if shared[i]), key=lambda i: (-shared[i], -i))[:count]

    def parallax_deg(self, i: int, k: int) -> float | None:
        """Median angle, at the landmarks both keyframes see, between their rays; None when they share none."""
        shared = np.intersect1d(self.landmarks.observed[i].ids, self.landmarks.observed[k].ids, assume_unique=True)
        shared = shared[self.landmarks.is_triangulated(shared)]
        if len(shared) == 0:
            return None
        points = self.landmarks.points_world(shared, self.graph)
        a, b = (points - self.graph.world_from_keyframe[n].translation for n in (i, k))
        angles = np.arctan2(np.linalg.norm(np.cross(a, b), axis=1), (a * b).sum(axis=1))
        return float(np.degrees(np.median(angles)))

    # --- refinement -----------------------------------------------------------------------------------

    def local_bundle_adjustment(self, k: int) -> None:
        """Refine the newest keyframes of k's segment with the landmarks they see; related older ones hold them."""
        config = self._config.bundle_adjustment
        if not config.iterations:
            return
        window = self.latest(k, config.window)
        older = self._fixed_keyframes(
            window, [i for i in self.covisible(k, len(self.graph.keyframes)) if i not in window]
        )
        self._refine(
            window,
            older,
            max_landmarks=config.max_landmarks,
            iterations=config.iterations,
            relative_tolerance=WINDOW_TOLERANCE,
        )
        self._refine_remaining_points(window, older)

    def _fixed_keyframes(self, window: list[int], covisible: list[int]) -> list[int]:
        """The most related keyframes, to hold a window where it is and as long as it is.

        Where a camera has come by often the first few may all stand at one place, from which no length is seen: then
        the last of them gives way to the next that stands elsewhere.
        """
        held, poses = covisible[: self._config.bundle_adjustment.covisible], self.graph.world_from_keyframe

        def distance(i: int, j: int) -> float:
            return float(np.linalg.norm(poses[i].translation - poses[j].translation))

        needed = MIN_FIXED_BASELINE * max(distance(i, window[-1]) for i in window)
        other = next((i for i in covisible if distance(i, covisible[0]) > needed), None)
        if len(held) < 2 or other is None or other in held:
            return held
        return [*held[:-1], other]

    def _refine_remaining_points(self, free: list[int], fixed: list[int]) -> None:
        """Every landmark of a window placed anew under the window's poses: those that were not refined with them had
        been placed under the old ones."""
        ids, bundle = self._bundle(free, fixed)
        if len(ids) == 0:
            return
        points = structure_only_adjustment(bundle, noise_px=self.noise_px)
        self.landmarks.move_to(ids, points, self.graph)
        errors = reprojection_errors(bundle, bundle.world_from_cam, points)
        self._drop_outliers(ids, bundle, errors)

    def global_bundle_adjustment(self, segment: int, *, lens: IntrinsicsPrior | None = None) -> tuple[float, float]:
        """One round over everything of a segment: known landmarks are looked for everywhere, then all is refined.

        With `lens` the camera of all keyframes is refined too, and they become images of the one that was found.

        Each round brings the map closer to itself, so the next one recognizes more of it.

        Returns:
            Root of the mean squared reprojection error before and after, pixels; zeros with nothing to refine.
        """
        members, config = self.graph.segment(segment), self._config.bundle_adjustment
        if len(members) < 2:
            return 0.0, 0.0
        for k in members:
            self.search_by_projection(k, covisible=config.final_covisible)
        if lens is not None:
            self._refine_lens(members, lens)
        return self._refine(members, [], iterations=config.final_iterations)

    def reprojection_px(self, keyframe_ids: list[int]) -> float:
        """Root of the mean squared reprojection error of what keyframes observed, pixels; 0 without any."""
        if not keyframe_ids:
            return 0.0
        _, bundle = self._bundle(keyframe_ids, [])
        return _root_mean_square(reprojection_errors(bundle, bundle.world_from_cam, bundle.points_world))

    def lens_of(self, k: int) -> IntrinsicsCorrection:
        """What was found of the camera of keyframe k."""
        return self.lenses.get(self.graph.segment_of[k], IntrinsicsCorrection())

    def correct_lens(self, segment: int, step: CorrectionStep) -> str:
        """The keyframes of a segment become images of the corrected camera; poses and landmarks follow.

        Estimates of pairs were made with the camera as it was, and are forgotten.

        Returns:
            Why that is no lens, and then nothing has changed; empty when it has.
        """
        members = self.graph.segment(segment)
        first = self.graph.keyframes[members[0]]
        if problem := why_no_lens(self.lens_of(first.id), step, first.camera):
            self._refuse(self.graph.keyframes[max(members)].frame_index, f"self-calibration: {problem}")
            return problem
        self._straighten(members, step)
        gone = {(i, j) for j in members for i in self._paired_with.pop(j, [])}
        self.pairs = {pair: estimate for pair, estimate in self.pairs.items() if pair not in gone}
        self._refine(members, [], each=LENS_LANDMARKS, iterations=ADAPTING_ITERATIONS)
        self._refine_remaining_points(members, [])
        return ""

    def _refine_lens(self, members: list[int], prior: IntrinsicsPrior) -> None:
        """Find the distortion from some landmarks, and place them all under it."""
        if self.lens_of(members[0]).has_distortion:  # only how much is left to say
            prior = replace(prior, significant=0.0)
        self._refine(
            members, [], each=LENS_LANDMARKS, iterations=self._config.bundle_adjustment.final_iterations, lens=prior
        )
        self._refine_remaining_points(members, [])

    def _refine(
        self,
        free: list[int],
        fixed: list[int],
        *,
        iterations: int,
        max_landmarks: int | None = None,
        each: int | None = None,
        relative_tolerance: float = 1e-5,
        lens: IntrinsicsPrior | None = None,
    ) -> tuple[float, float]:
        """Refine, move the map, drop what contradicts it; root mean squared errors before and after, pixels."""
        ids, bundle = self._bundle(free, fixed, max_landmarks=max_landmarks, each=each)
        if len(ids) == 0:
            return 0.0, 0.0
        bundle = replace(bundle, lens=lens)
        before = reprojection_errors(bundle, bundle.world_from_cam, bundle.points_world)
        refined = self._adjuster.refine(
            bundle,
            noise_px=self._config.tracks.noise_px,
            iterations=iterations,
            relative_tolerance=relative_tolerance,
        )
        most_px = float("inf") if lens is None else lens.most_px
        lens_problem = why_no_lens(self.lens_of(free[0]), refined.lens, bundle.cameras[free[0]], most_px=most_px)
        if problem := refined.problem or why_unusable(refined) or lens_problem:
            self._refuse(self.graph.keyframes[max(free)].frame_index, f"bundle adjustment: {problem}")
            if problem == lens_problem:
                self._note_lens(self.graph.segment_of[free[0]], lens_problem)
            return _root_mean_square(before), _root_mean_square(before)
        poses = {
            k: Similarity.from_rigid(refined.world_from_cam[k], self.graph.world_from_keyframe[k].scale) for k in free
        }
        self.graph.set_poses(poses)
        self.landmarks.move_to(ids, refined.points_world, self.graph)
        self._straighten(free, refined.lens)
        self._drop_outliers(ids, bundle, refined.error_px)
        return _root_mean_square(before), _root_mean_square(refined.error_px)

    def _refuse(self, frame_index: int, reason: str) -> None:
        self._publish(EstimateRefused(frame_index=frame_index, reason=reason))

    def _note_lens(self, segment: int, reason: str) -> None:
        evidence = self.lens_evidence.get(segment, LensEvidence())
        self.lens_evidence[segment] = replace(evidence, reason=evidence.reason or reason)

    def _straighten(self, members: list[int], step: CorrectionStep) -> None:
        """Every keyframe of a segment becomes an image of the corrected camera."""
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

    def _bundle(
        self, free: list[int], fixed: list[int], *, max_landmarks: int | None = None, each: int | None = None
    ) -> tuple[NDArray[np.int64], Bundle]:
        """The landmarks (ids) and observations of some keyframes: all, the most seen, or the most seen in each."""
        members = [*free, *fixed]
        own = np.unique(np.concatenate([self.landmarks.observed[k].ids for k in free]))
        own = own[self.landmarks.is_triangulated(own)]
        seen_in = [_rows_of(self.landmarks.observed[k].ids, own) for k in members]
        counts = np.bincount(np.concatenate([rows[rows >= 0] for rows in seen_in]), minlength=len(own))
        chosen = np.flatnonzero(counts >= MIN_OBSERVERS)
        if max_landmarks is not None:
            chosen = np.sort(chosen[np.argsort(-counts[chosen], kind="stable")[:max_landmarks]])
        if each is not None:
            often = [rows[np.argsort(-counts[rows], kind="stable")[:each]] for rows in (r[r >= 0] for r in seen_in)]
            chosen = np.intersect1d(chosen, np.concatenate(often))
        own = own[chosen]
        keyframe_of, point_of, pixels = [], [], []
        for k in members:
            tracks = self.landmarks.observed[k]
            rows = _rows_of(tracks.ids, own)
            keep = rows >= 0
            keyframe_of.append(np.full(int(keep.sum()), k, np.int64))
            point_of.append(rows[keep])
            pixels.append(tracks.pixels[keep].astype(np.float64))
        among = set(members)
        pairs = [(i, j, self.pairs[i, j]) for j in sorted(free) for i in self._paired_with.get(j, []) if i in among]
        bundle = Bundle(
            world_from_cam={k: self.graph.world_from_keyframe[k].rigid for k in members},
            cameras={k: self.graph.keyframes[k].camera for k in members},
            fixed=frozenset(fixed),
            points_world=self.landmarks.points_world(own, self.graph),
            keyframe_of=np.concatenate(keyframe_of),
            point_of=np.concatenate(point_of),
            pixels=np.concatenate(pixels),
            pairs=pairs,
        )
        return own, bundle

    def _drop_outliers(self, ids: NDArray[np.int64], bundle: Bundle, error_px: FloatArray) -> None:
        """Forget observations that the refined map contradicts, and landmarks with fewer than two left."""
        bad = error_px > OUTLIER_CHI * self._config.tracks.noise_px
        for k in np.unique(bundle.keyframe_of[bad]):
            gone = ids[bundle.point_of[bad & (bundle.keyframe_of == k)]]
            tracks = self.landmarks.observed[int(k)]
            self.landmarks.observed[int(k)] = tracks.where(~np.isin(tracks.ids, gone))
            named = self.landmarks.feature_tracks[int(k)]
            named[np.isin(named, gone)] = -1
        left = np.bincount(bundle.point_of[~bad], minlength=len(ids))
        self.landmarks.remove_points(ids[left < MIN_OBSERVERS])


def why_unusable(refined: AdjustedBundle) -> str:
    """Why poses and landmarks of a refinement cannot be put into a map; empty when they can."""
    poses = np.array([pose.as_matrix() for pose in refined.world_from_cam.values()])
    for name, numbers in (("poses", poses), ("landmarks", refined.points_world)):
        if not np.isfinite(numbers).all():
            return f"{name} are not finite"
    if not (np.abs(poses[:, :3, 3]) < MAX_COORDINATE).all():
        return f"poses are beyond {MAX_COORDINATE:g} map units"
    if np.isnan(refined.error_px).any():
        return "reprojection errors are not finite"
    return ""


def why_no_lens(
    lens: IntrinsicsCorrection, step: CorrectionStep, camera: Camera, *, most_px: float = float("inf")
) -> str:
    """Why a correction of `camera`, which `lens` left, is not to be believed; empty when it is.

    Args:
        most_px: that this correction may move the corners, pixels.
    """
    if step.is_nothing:
        return ""
    if not lens.then(step, camera).is_invertible:
        return "the lens found has no inverse"
    if (moved_px := IntrinsicsCorrection().then(step, camera).max_displacement_px) > most_px:
        return (
            f"the distortion found moves the corners by {moved_px:.1f} px, more than the {most_px:.1f} px "
            "that a calibration may leave"
        )
    return ""


def _rows_of(ids: NDArray[np.int64], own: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each id stands in `own`, which is in order; -1 for those that do not."""
    if len(own) == 0:
        return np.full(len(ids), -1, np.int64)
    rows = np.minimum(np.searchsorted(own, ids), len(own) - 1)
    return np.where(own[rows] == ids, rows, -1)


def _root_mean_square(errors_px: FloatArray) -> float:
    """Of the errors that are finite: a point behind the camera has none."""
    finite = errors_px[np.isfinite(errors_px)]
    return float(np.sqrt(np.mean(finite**2))) if len(finite) else 0.0
