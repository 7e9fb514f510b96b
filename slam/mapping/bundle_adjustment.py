"""Bundle adjustment of the map, local and global: selection of keyframes and landmarks, and removal of outliers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from relocalizer.camera import Camera
from relocalizer.geometry import MAX_COORDINATE, FloatArray, Similarity
from relocalizer.intrinsics_correction import CorrectionStep, IntrinsicsCorrection
from relocalizer.self_calibration import PRIOR_SIGMA
from slam.config.schema import SlamConfig
from slam.events import EstimateRefused, Event
from slam.map.frames import STEADY_NOISE_RATIO
from slam.map.slam_map import SlamMap
from slam.mapping.bundle import (
    AdjustedBundle,
    Bundle,
    BundleAdjuster,
    FocalPrior,
    IntrinsicsPrior,
    reprojection_errors,
    structure_only_adjustment,
)
from slam.mapping.landmark_fusion import LandmarkFusion

OUTLIER_CHI = 3.0  # maximum reprojection error of an inlier after bundle adjustment, standard deviations
MIN_OBSERVERS = 2  # minimum number of keyframes that observe a landmark
# Among moving objects: fraction of the keyframes that must have some in view, minimum number of keyframes of a window
# that is adjusted, and the number of keyframes that observe a landmark that counts, if at least ENOUGH_SURE do. What
# two keyframes show of a moving object fits a static scene.
AMONG_MOVING, LEAST_AMONG_MOVING, SURE_OBSERVERS, ENOUGH_SURE = 0.25, 5, 3, 100
# Maximum number of landmarks per keyframe when intrinsics are refined. They determine the intrinsics as well as all
# landmarks do, with which a shared camera is slow to solve.
LENS_LANDMARKS = 200
ADAPTING_ITERATIONS = 30  # maximum number of iterations after a change of the focal length, which deforms the whole map
# Minimum distance between fixed keyframes, as a fraction of the window's length, for them to fix its scale.
MIN_FIXED_BASELINE = 0.25
# Relative decrease of the error at which bundle adjustment of a window, and of a round at the end, stops: it runs again
# with the next keyframe, and with the next round.
WINDOW_TOLERANCE, ROUND_TOLERANCE = 1e-3, 1e-3


class BundleAdjustment:
    """Bundle adjustment of the map: refines poses, landmarks and intrinsics, and removes outlier observations.

    Local bundle adjustment is that of ORB-SLAM: a window of keyframes moves, covisible older keyframes are fixed.
    """

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
        """Refine the newest keyframes of k's segment and their landmarks; covisible older keyframes are fixed."""
        config = self._config.bundle_adjustment
        if not config.iterations:
            return
        window = self._map.latest(k, config.window)
        covisible = [i for i in self._map.covisible(k, len(self._map.graph.keyframes)) if i not in window]
        fixed = self._fixed_keyframes(window, covisible)
        if not self._is_too_early(window):
            ids, bundle = bundle_of(self._map, window, fixed, max_landmarks=config.max_landmarks)
            self._refine(window, ids, bundle, iterations=config.iterations, relative_tolerance=WINDOW_TOLERANCE)
        self._refine_remaining_points(window, fixed)

    def global_bundle_adjustment(self, segment: int, *, lens: IntrinsicsPrior | None = None) -> tuple[float, float]:
        """Search all keyframes of a segment for known landmarks by projection, then refine the whole segment.

        Each round makes the map more consistent, so the next round finds more landmarks again.

        Args:
            lens: prior of the intrinsics, to refine and apply those of the shared camera too.

        Returns:
            Root mean square of the reprojection errors before and after, pixels; zeros for fewer than two keyframes.
        """
        members, config = self._map.graph.segment(segment), self._config.bundle_adjustment
        if len(members) < 2:
            return 0.0, 0.0
        for k in members:
            self._fusion.search_by_projection(k, covisible=config.final_covisible)
        if lens is not None:
            self._refine_lens(members, lens)
        ids, bundle = bundle_of(self._map, members, [])
        return self._refine(
            members, ids, bundle, iterations=config.final_iterations, relative_tolerance=ROUND_TOLERANCE
        )

    def wanted_focal_ratio(self, segment: int) -> float:
        """Ratio of the focal length that fits all views of a segment together to that of its camera.

        The map stays as it is. Its observations were selected with the present focal length, so the ratio is biased
        toward 1, by about half. It is 1 where the views do not determine the focal length.
        """
        members = self._map.graph.segment(segment)
        if len(members) < 2:
            return 1.0
        _, bundle = bundle_of(self._map, members, [], each=LENS_LANDMARKS)
        if not len(bundle.points_world):
            return 1.0
        prior = IntrinsicsPrior(focal=FocalPrior(bundle.cameras[members[0]].mean_focal, PRIOR_SIGMA))
        config = self._config
        refined = self._adjuster.refine(
            replace(bundle, lens=prior, pairs=()),  # pair estimates were made with the present focal length
            noise_px=self._noise_px(members),
            iterations=config.bundle_adjustment.final_iterations,
        )
        return 1.0 if refined.problem else float(np.mean(refined.lens.focal_ratio))

    def correct_lens(self, segment: int, step: CorrectionStep) -> str:
        """Apply a correction of the intrinsics to all keyframes of a segment, and adapt poses and landmarks to it.

        The pair estimates of the segment, which were made with the previous intrinsics, are removed.

        Returns:
            Why the correction is rejected, in which case nothing has changed; empty if it was applied.
        """
        members = self._map.graph.segment(segment)
        first = self._map.graph.keyframes[members[0]]
        if problem := why_lens_is_rejected(self._map.lens_of(first.id), step, first.camera):
            self._refuse(self._map.graph.keyframes[max(members)].frame_index, f"self-calibration: {problem}")
            return problem
        self._map.correct_intrinsics(members, step)
        self._map.pairs.remove(members)
        ids, bundle = bundle_of(self._map, members, [], each=LENS_LANDMARKS)
        self._refine(members, ids, bundle, iterations=ADAPTING_ITERATIONS)
        self._refine_remaining_points(members, [])
        return ""

    def _is_too_early(self, window: list[int]) -> bool:
        """Whether a window is too short for bundle adjustment to tell moving objects from a static scene.

        Poses from landmarks of the initial pair are better, because the depths of the landmarks are known.
        """
        return 2 < len(window) < LEAST_AMONG_MOVING and is_among_moving(self._map, window)

    def _noise_px(self, keyframe_ids: Iterable[int]) -> float:
        """Assumed standard deviation of an observation in some keyframes, pixels."""
        noise_px = self._config.tracks.noise_px
        return STEADY_NOISE_RATIO * noise_px if is_among_moving(self._map, keyframe_ids) else noise_px

    def _fixed_keyframes(self, window: list[int], covisible: list[int]) -> list[int]:
        """The most covisible keyframes, to fix the pose and the scale of a window.

        Where the camera has passed often, the first few may all be at one place and so leave the scale free: then the
        last of them is replaced by the next keyframe at another place.
        """
        fixed, poses = covisible[: self._config.bundle_adjustment.covisible], self._map.graph.world_from_keyframe

        def distance(i: int, j: int) -> float:
            return float(np.linalg.norm(poses[i].translation - poses[j].translation))

        needed = MIN_FIXED_BASELINE * max(distance(i, window[-1]) for i in window)
        other = next((i for i in covisible if distance(i, covisible[0]) > needed), None)
        if len(fixed) < 2 or other is None or other in fixed:
            return fixed
        return [*fixed[:-1], other]

    def _refine_lens(self, members: list[int], prior: IntrinsicsPrior) -> None:
        """Refine the intrinsics with some of the landmarks, then all landmarks with the result."""
        if self._map.lens_of(members[0]).has_distortion:  # its significance was tested in an earlier round
            prior = replace(prior, significant=0.0)
        ids, bundle = bundle_of(self._map, members, [], each=LENS_LANDMARKS)
        bundle = replace(bundle, lens=prior)
        if prior.principal is not None:  # the pair estimates were made with the previous principal point
            self._map.pairs.remove(members)
        if prior.focal is not None or prior.principal is not None:
            bundle = replace(bundle, pairs=())
        iterations = self._config.bundle_adjustment.final_iterations
        self._refine(members, ids, bundle, iterations=iterations, relative_tolerance=ROUND_TOLERANCE)
        self._refine_remaining_points(members, [])

    def _refine_remaining_points(self, free: list[int], fixed: list[int]) -> None:
        """Refine all landmarks of some keyframes: those left out of the bundle still correspond to the old poses."""
        ids, bundle = bundle_of(self._map, free, fixed)
        if len(ids) == 0:
            return
        points = structure_only_adjustment(bundle, noise_px=self._noise_px(free))
        self._map.apply_bundle_adjustment({}, ids, points)
        errors = reprojection_errors(bundle, bundle.world_from_cam, points)
        self._drop_outliers(ids, bundle, errors, self._noise_px(free))

    def _refine(
        self,
        free: list[int],
        ids: NDArray[np.int64],
        bundle: Bundle,
        *,
        iterations: int,
        relative_tolerance: float = 1e-5,
    ) -> tuple[float, float]:
        """Solve a bundle, apply the result to the map and remove outliers.

        Args:
            free: keyframes of the bundle that are not fixed.
            ids: landmark of each row of `bundle.points_world`.

        Returns:
            Root mean square of the reprojection errors before and after, pixels; zeros without landmarks.
        """
        if len(ids) == 0:
            return 0.0, 0.0
        before = reprojection_errors(bundle, bundle.world_from_cam, bundle.points_world)
        refined = self._adjuster.refine(
            bundle,
            noise_px=self._noise_px(free),
            iterations=iterations,
            relative_tolerance=relative_tolerance,
        )
        most_px = float("inf") if bundle.lens is None else bundle.lens.most_px
        lens, camera = self._map.lens_of(free[0]), bundle.cameras[free[0]]
        lens_problem = why_lens_is_rejected(lens, refined.lens, camera, most_px=most_px)
        if problem := refined.problem or why_unusable(refined) or lens_problem:
            self._refuse(self._map.graph.keyframes[max(free)].frame_index, f"bundle adjustment: {problem}")
            if problem == lens_problem:
                self._map.note_lens(self._map.graph.segment_of[free[0]], lens_problem)
            return _root_mean_square(before), _root_mean_square(before)
        poses = {
            k: Similarity.from_rigid(refined.world_from_cam[k], self._map.graph.world_from_keyframe[k].scale)
            for k in free
        }
        self._map.apply_bundle_adjustment(poses, ids, refined.points_world)
        self._map.correct_intrinsics(free, refined.lens)
        self._drop_outliers(ids, bundle, refined.error_px, self._noise_px(free))
        return _root_mean_square(before), _root_mean_square(refined.error_px)

    def _refuse(self, frame_index: int, reason: str) -> None:
        self._publish(EstimateRefused(frame_index=frame_index, reason=reason))

    def _drop_outliers(self, ids: NDArray[np.int64], bundle: Bundle, error_px: FloatArray, noise_px: float) -> None:
        """Remove observations with a large reprojection error, and landmarks with fewer than two observations left."""
        outlier = error_px > OUTLIER_CHI * noise_px
        for k in np.unique(bundle.keyframe_of[outlier]):
            self._map.remove_observations(int(k), ids[bundle.point_of[outlier & (bundle.keyframe_of == k)]])
        inliers = np.bincount(bundle.point_of[~outlier], minlength=len(ids))
        self._map.remove_landmarks(ids[inliers < MIN_OBSERVERS])


def is_among_moving(slam_map: SlamMap, keyframe_ids: Iterable[int]) -> bool:
    """Whether at least AMONG_MOVING of some keyframes were taken among moving objects."""
    among = [slam_map.graph.keyframes[k].among_moving for k in keyframe_ids]
    return bool(among) and float(np.mean(among)) >= AMONG_MOVING


def bundle_of(
    slam_map: SlamMap, free: list[int], fixed: list[int], *, max_landmarks: int | None = None, each: int | None = None
) -> tuple[NDArray[np.int64], Bundle]:
    """The bundle of some keyframes, and the ids of its landmarks: those observed by free keyframes.

    Args:
        max_landmarks: maximum number of landmarks, the most observed ones; None for all.
        each: maximum number of landmarks per keyframe, the most observed ones; None for all.
    """
    members = [*free, *fixed]
    ids = _select_landmarks(slam_map, free, members, max_landmarks=max_landmarks, each=each)
    keyframe_of, point_of, pixels = [], [], []
    for k in members:
        tracks = slam_map.landmarks.observed[k]
        rows = _rows_of(tracks.ids, ids)
        keep = rows >= 0
        keyframe_of.append(np.full(int(keep.sum()), k, np.int64))
        point_of.append(rows[keep])
        pixels.append(tracks.pixels[keep].astype(np.float64))
    bundle = Bundle(
        world_from_cam={k: slam_map.graph.world_from_keyframe[k].rigid for k in members},
        cameras={k: slam_map.graph.keyframes[k].camera for k in members},
        fixed=frozenset(fixed),
        points_world=slam_map.landmarks.points_world(ids, slam_map.graph),
        keyframe_of=np.concatenate(keyframe_of),
        point_of=np.concatenate(point_of),
        pixels=np.concatenate(pixels),
        pairs=slam_map.pairs.among(free, members),
    )
    return ids, bundle


def _select_landmarks(
    slam_map: SlamMap, free: list[int], members: list[int], *, max_landmarks: int | None, each: int | None
) -> NDArray[np.int64]:
    """Ids, in order, of the landmarks of free keyframes that two members observe, limited as in `bundle_of`."""
    ids = np.unique(np.concatenate([slam_map.landmarks.observed[k].ids for k in free]))
    ids = ids[slam_map.landmarks.is_triangulated(ids)]
    rows_in = [_rows_of(slam_map.landmarks.observed[k].ids, ids) for k in members]
    rows_in = [rows[rows >= 0] for rows in rows_in]
    counts = np.bincount(np.concatenate(rows_in), minlength=len(ids))
    chosen = np.flatnonzero(counts >= MIN_OBSERVERS)
    if max_landmarks is not None:
        if is_among_moving(slam_map, free) and (counts >= SURE_OBSERVERS).sum() >= ENOUGH_SURE:
            chosen = np.flatnonzero(counts >= SURE_OBSERVERS)
        chosen = np.sort(chosen[np.argsort(-counts[chosen], kind="stable")[:max_landmarks]])
    if each is not None:
        most_observed = [rows[np.argsort(-counts[rows], kind="stable")[:each]] for rows in rows_in]
        chosen = np.intersect1d(chosen, np.concatenate(most_observed))
    return ids[chosen]


def reprojection_px(slam_map: SlamMap, keyframe_ids: list[int]) -> float:
    """Root mean square of the reprojection errors of the observations in some keyframes, pixels; 0 without any."""
    if not keyframe_ids:
        return 0.0
    _, bundle = bundle_of(slam_map, keyframe_ids, [])
    return _root_mean_square(reprojection_errors(bundle, bundle.world_from_cam, bundle.points_world))


def why_unusable(refined: AdjustedBundle) -> str:
    """Why the result of a bundle adjustment must not be applied to the map; empty if it may be."""
    poses = np.array([pose.as_matrix() for pose in refined.world_from_cam.values()])
    for name, numbers in (("poses", poses), ("landmarks", refined.points_world)):
        if not np.isfinite(numbers).all():
            return f"{name} are not finite"
    if not (np.abs(poses[:, :3, 3]) < MAX_COORDINATE).all():
        return f"poses are beyond {MAX_COORDINATE:g} map units"
    if np.isnan(refined.error_px).any():
        return "reprojection errors are not finite"
    return ""


def why_lens_is_rejected(
    lens: IntrinsicsCorrection, step: CorrectionStep, camera: Camera, *, most_px: float = float("inf")
) -> str:
    """Why a correction of the intrinsics is rejected; empty if it is accepted.

    Args:
        lens: the corrections applied so far.
        camera: the camera after them.
        most_px: maximum displacement of the image corners by this correction, pixels.
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


def _rows_of(ids: NDArray[np.int64], table: NDArray[np.int64]) -> NDArray[np.int64]:
    """Row of each id in `table`, which is sorted; -1 for ids that are not in it."""
    if len(table) == 0:
        return np.full(len(ids), -1, np.int64)
    rows = np.minimum(np.searchsorted(table, ids), len(table) - 1)
    return np.where(table[rows] == ids, rows, -1)


def _root_mean_square(errors_px: FloatArray) -> float:
    """Root mean square of the finite errors; points behind the camera have infinite ones."""
    finite = errors_px[np.isfinite(errors_px)]
    return float(np.sqrt(np.mean(finite**2))) if len(finite) else 0.0
