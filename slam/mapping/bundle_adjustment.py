"""Bundle adjustment of the map, local and global: which keyframes move, which landmarks take part, what is dropped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from relocalizer.camera import Camera
from relocalizer.geometry import FloatArray, Similarity
from relocalizer.intrinsics_correction import CorrectionStep, IntrinsicsCorrection
from relocalizer.maps.reference_map import MAX_COORDINATE
from slam.config.schema import SlamConfig
from slam.events import EstimateRefused, Event
from slam.map.slam_map import SlamMap
from slam.mapping.bundle import (
    AdjustedBundle,
    Bundle,
    BundleAdjuster,
    IntrinsicsPrior,
    reprojection_errors,
    structure_only_adjustment,
)
from slam.mapping.landmark_fusion import LandmarkFusion

OUTLIER_CHI = 3.0  # observations beyond this many standard deviations are dropped after a refinement
MIN_OBSERVERS = 2
LENS_LANDMARKS = 200  # of each keyframe; they tell the lens as well as all do, and all make a camera they share costly
ADAPTING_ITERATIONS = 30  # of poses and landmarks to another focal length, which bends the whole map
MIN_FIXED_BASELINE = 0.25  # of a window's length: so far apart keyframes must stand to hold it
WINDOW_TOLERANCE = 1e-3  # a window is refined again with the next keyframe, so the last bit can wait


class BundleAdjustment:
    """Refines poses, landmarks and intrinsics of the map, and drops observations that contradict the result."""

    def __init__(
        self,
        config: SlamConfig,
        slam_map: SlamMap,
        fusion: LandmarkFusion,
        adjuster: BundleAdjuster,
        publish: Callable[[Event], None],
    ) -> None:
        self._config = config
        self._map = slam_map
        self._fusion = fusion
        self._adjuster = adjuster
        self._publish = publish

    def local_bundle_adjustment(self, k: int) -> None:
        """Refine the newest keyframes of k's segment with the landmarks they see; related older ones hold them."""
        config = self._config.bundle_adjustment
        if not config.iterations:
            return
        window = self._map.latest(k, config.window)
        older = self._fixed_keyframes(
            window, [i for i in self._map.covisible(k, len(self._map.graph.keyframes)) if i not in window]
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
        held, poses = covisible[: self._config.bundle_adjustment.covisible], self._map.graph.world_from_keyframe

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
        ids, bundle = bundle_of(self._map, free, fixed)
        if len(ids) == 0:
            return
        points = structure_only_adjustment(bundle, noise_px=self._config.tracks.noise_px)
        self._map.landmarks.move_to(ids, points, self._map.graph)
        errors = reprojection_errors(bundle, bundle.world_from_cam, points)
        self._drop_outliers(ids, bundle, errors)

    def global_bundle_adjustment(self, segment: int, *, lens: IntrinsicsPrior | None = None) -> tuple[float, float]:
        """One round over everything of a segment: known landmarks are looked for everywhere, then all is refined.

        With `lens` the camera of all keyframes is refined too, and they become images of the one that was found.

        Each round brings the map closer to itself, so the next one recognizes more of it.

        Returns:
            Root of the mean squared reprojection error before and after, pixels; zeros with nothing to refine.
        """
        members, config = self._map.graph.segment(segment), self._config.bundle_adjustment
        if len(members) < 2:
            return 0.0, 0.0
        for k in members:
            self._fusion.search_by_projection(k, covisible=config.final_covisible)
        if lens is not None:
            self._refine_lens(members, lens)
        return self._refine(members, [], iterations=config.final_iterations)

    def correct_lens(self, segment: int, step: CorrectionStep) -> str:
        """The keyframes of a segment become images of the corrected camera; poses and landmarks follow.

        Estimates of pairs were made with the camera as it was, and are forgotten.

        Returns:
            Why that is no lens, and then nothing has changed; empty when it has.
        """
        members = self._map.graph.segment(segment)
        first = self._map.graph.keyframes[members[0]]
        if problem := why_no_lens(self._map.lens_of(first.id), step, first.camera):
            self._refuse(self._map.graph.keyframes[max(members)].frame_index, f"self-calibration: {problem}")
            return problem
        self._map.correct_intrinsics(members, step)
        self._map.remove_pairs(members)
        self._refine(members, [], each=LENS_LANDMARKS, iterations=ADAPTING_ITERATIONS)
        self._refine_remaining_points(members, [])
        return ""

    def _refine_lens(self, members: list[int], prior: IntrinsicsPrior) -> None:
        """Find the distortion from some landmarks, and place them all under it."""
        if self._map.lens_of(members[0]).has_distortion:  # only how much is left to say
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
        ids, bundle = bundle_of(self._map, free, fixed, max_landmarks=max_landmarks, each=each)
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
        lens_problem = why_no_lens(self._map.lens_of(free[0]), refined.lens, bundle.cameras[free[0]], most_px=most_px)
        if problem := refined.problem or why_unusable(refined) or lens_problem:
            self._refuse(self._map.graph.keyframes[max(free)].frame_index, f"bundle adjustment: {problem}")
            if problem == lens_problem:
                self._map.note_lens(self._map.graph.segment_of[free[0]], lens_problem)
            return _root_mean_square(before), _root_mean_square(before)
        poses = {
            k: Similarity.from_rigid(refined.world_from_cam[k], self._map.graph.world_from_keyframe[k].scale)
            for k in free
        }
        self._map.move(poses, ids, refined.points_world)
        self._map.correct_intrinsics(free, refined.lens)
        self._drop_outliers(ids, bundle, refined.error_px)
        return _root_mean_square(before), _root_mean_square(refined.error_px)

    def _refuse(self, frame_index: int, reason: str) -> None:
        self._publish(EstimateRefused(frame_index=frame_index, reason=reason))

    def _drop_outliers(self, ids: NDArray[np.int64], bundle: Bundle, error_px: FloatArray) -> None:
        """Forget observations that the refined map contradicts, and landmarks with fewer than two left."""
        bad = error_px > OUTLIER_CHI * self._config.tracks.noise_px
        for k in np.unique(bundle.keyframe_of[bad]):
            gone = ids[bundle.point_of[bad & (bundle.keyframe_of == k)]]
            tracks = self._map.landmarks.observed[int(k)]
            self._map.landmarks.observed[int(k)] = tracks.where(~np.isin(tracks.ids, gone))
            named = self._map.landmarks.feature_tracks[int(k)]
            named[np.isin(named, gone)] = -1
        left = np.bincount(bundle.point_of[~bad], minlength=len(ids))
        self._map.landmarks.remove_points(ids[left < MIN_OBSERVERS])


def bundle_of(
    slam_map: SlamMap, free: list[int], fixed: list[int], *, max_landmarks: int | None = None, each: int | None = None
) -> tuple[NDArray[np.int64], Bundle]:
    """The landmarks (ids) and observations of some keyframes: all, the most seen, or the most seen in each."""
    members = [*free, *fixed]
    own = np.unique(np.concatenate([slam_map.landmarks.observed[k].ids for k in free]))
    own = own[slam_map.landmarks.is_triangulated(own)]
    seen_in = [_rows_of(slam_map.landmarks.observed[k].ids, own) for k in members]
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
        tracks = slam_map.landmarks.observed[k]
        rows = _rows_of(tracks.ids, own)
        keep = rows >= 0
        keyframe_of.append(np.full(int(keep.sum()), k, np.int64))
        point_of.append(rows[keep])
        pixels.append(tracks.pixels[keep].astype(np.float64))
    bundle = Bundle(
        world_from_cam={k: slam_map.graph.world_from_keyframe[k].rigid for k in members},
        cameras={k: slam_map.graph.keyframes[k].camera for k in members},
        fixed=frozenset(fixed),
        points_world=slam_map.landmarks.points_world(own, slam_map.graph),
        keyframe_of=np.concatenate(keyframe_of),
        point_of=np.concatenate(point_of),
        pixels=np.concatenate(pixels),
        pairs=slam_map.pairs_among(free, members),
    )
    return own, bundle


def reprojection_px(slam_map: SlamMap, keyframe_ids: list[int]) -> float:
    """Root of the mean squared reprojection error of the observations in keyframes, pixels; 0 without any."""
    if not keyframe_ids:
        return 0.0
    _, bundle = bundle_of(slam_map, keyframe_ids, [])
    return _root_mean_square(reprojection_errors(bundle, bundle.world_from_cam, bundle.points_world))


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
