"""Where an image was taken, from local features matched to keyframes: wide steps, loops and after a loss.

One mechanism serves all three: match features, let the predictor give rotation and direction, let the
landmarks give the length, refine over all of them; where the predictor does not know, search by consensus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from relocalizer.absolute_pose import PoseFit, PosePrior, optimize_pose, pair_prior, search_pose
from relocalizer.camera import Camera
from relocalizer.features import LocalFeatures, match_features
from relocalizer.geometry import Similarity, rigid, rotation_angle, rotation_matrix
from relocalizer.guided_matching import expected_in, first_of_each, one_to_one, similar_nearby
from relocalizer.interfaces import NoEstimate, PairEstimate, is_confident
from relocalizer.scale import LengthFit, fit_length
from slam.map.keyframe_graph import KeyframeGraph
from slam.map.landmarks import LandmarkMap
from slam.map.tracks import Tracks

MATCH_RATIO = 0.85
AGREEMENT_RAD = float(np.radians(3.0))
MIN_INLIER_RATIO = 0.5
FEATURE_NOISE_PX = 1.2  # detected features are placed less precisely than followed ones


@dataclass(frozen=True, slots=True, eq=False)
class FeatureMatches:
    """Tracks of keyframes recognized among an image's features: `tracks` and the `feature` index (N,) of each."""

    tracks: Tracks
    feature: NDArray[np.int64]

    def where(self, keep: NDArray[np.bool_]) -> FeatureMatches:
        return FeatureMatches(self.tracks.where(keep), self.feature[keep])

    def with_new(self, other: FeatureMatches) -> FeatureMatches:
        """These, and of the others those whose track and whose feature none of these has."""
        new = other.where(~np.isin(other.tracks.ids, self.tracks.ids) & ~np.isin(other.feature, self.feature))
        return FeatureMatches(self.tracks.joined(new.tracks), np.concatenate([self.feature, new.feature]))


@dataclass(frozen=True, slots=True, eq=False)
class EstimatedPose:
    """A pose found from matches.

    Attributes:
        fit: the pose; its inliers speak of all landmarks recognized.
        matches: the landmarks that agree with it.
        unplaced: recognized points without a place.
    """

    fit: PoseFit
    matches: FeatureMatches
    untriangulated: Tracks

    @property
    def share(self) -> float:
        """How many of the landmarks recognized agree, 0 to 1: near 1 at the right place, chance at a wrong one."""
        return self.fit.inlier_count / max(len(self.fit.inliers), 1)


@dataclass(frozen=True, slots=True)
class PlaceNotMatched:
    """No pose; `reason` is a sentence with the number and the threshold, `landmarks` how many spoke for one."""

    reason: str
    landmarks: int = 0


def match_keyframes(
    features: LocalFeatures,
    keyframe_ids: Sequence[int],
    graph: KeyframeGraph,
    landmarks: LandmarkMap,
    *,
    earlier: FeatureMatches | None = None,
) -> FeatureMatches:
    """Tracks of several keyframes found among `features`; where keyframes disagree, the earlier named wins.

    Args:
        earlier: matches of keyframes that were matched before, which are named before these.
    """
    ids: list[NDArray[np.int64]] = [] if earlier is None else [earlier.tracks.ids]
    index: list[NDArray[np.int64]] = [] if earlier is None else [earlier.feature]
    for k in keyframe_ids:
        keyframe = graph.keyframes[k]
        pairs = match_features(keyframe.features, features, ratio=MATCH_RATIO)
        track_ids = landmarks.feature_tracks[k][pairs[:, 0]]
        known = track_ids >= 0
        ids.append(track_ids[known])
        index.append(pairs[known, 1])
    all_ids, all_index = np.concatenate([*ids, np.zeros(0, np.int64)]), np.concatenate([*index, np.zeros(0, np.int64)])
    kept = first_of_each(all_ids)
    all_ids, all_index = all_ids[kept], all_index[kept]
    keep = first_of_each(all_index)
    return FeatureMatches(Tracks(all_ids[keep], features.pixels[all_index[keep]]), all_index[keep])


def estimate_pose(
    matches: FeatureMatches,
    camera: Camera,
    landmarks: LandmarkMap,
    graph: KeyframeGraph,
    *,
    reference: int,
    estimate: PairEstimate | NoEstimate,
    min_inliers: int,
    min_confirming: int | None = None,
    search_too: bool = False,
    unsure_depths: bool = False,
) -> EstimatedPose | PlaceNotMatched:
    """The pose of an image whose features match landmarks.

    Args:
        reference: the keyframe `estimate` (reference_from_image) speaks of.
        min_inliers: landmarks that must agree with a pose that rests on landmarks alone.
        min_confirming: landmarks that suffice where the predictor is confident and the pose agrees with it, for then
            they only have to give the length.
        search_too: search by consensus as well where most landmarks contradict the estimate, and take what more agree
            with.
        unsure_depths: let landmarks lie off along their rays by as much as their depths are unsure. More agree at the
            right pose, and at wrong ones too: only where an estimate that leaves little doubt agrees is it evidence.
    """
    confirming = min_inliers if min_confirming is None or not is_confident(estimate) else min_confirming
    placed = matches.where(landmarks.is_triangulated(matches.tracks.ids))
    if len(placed.tracks) < confirming:
        return PlaceNotMatched(f"{len(placed.tracks)} landmarks recognized, {confirming} needed", len(placed.tracks))
    points = landmarks.points_world(placed.tracks.ids, graph)
    start, prior = _start(points, placed.tracks.pixels, camera, graph.world_from_keyframe[reference], estimate)
    if start is None:
        start = search_pose(points, placed.tracks.pixels, camera, noise_px=FEATURE_NOISE_PX)
        prior = None
    if start is None:
        return PlaceNotMatched(f"no pose agrees with the {len(placed.tracks)} landmarks recognized")
    along = landmarks.depth_sigma_world(placed.tracks.ids, graph) if unsure_depths else None
    fit = optimize_pose(
        points, placed.tracks.pixels, camera, start, noise_px=FEATURE_NOISE_PX, depth_sigma_world=along, prior=prior
    )
    if search_too and prior is not None and fit.inlier_count < MIN_INLIER_RATIO * len(points):
        fit, prior = _better(fit, points, along, placed.tracks.pixels, camera, prior)
    confirmed = prior is not None and _agrees(fit.world_from_cam, prior.world_from_cam)
    needed = confirming if confirmed else min_inliers
    if fit.inlier_count < needed:
        agree = f"{fit.inlier_count} of {len(placed.tracks)} recognized landmarks agree"
        return PlaceNotMatched(f"{agree}, {needed} needed", fit.inlier_count)
    untriangulated = matches.tracks.where(~landmarks.is_triangulated(matches.tracks.ids))
    return EstimatedPose(fit, placed.where(fit.inliers), untriangulated)


def _better(
    fit: PoseFit,
    points: NDArray[np.float64],
    along: NDArray[np.float64] | None,
    pixels: NDArray[np.float32],
    camera: Camera,
    prior: PosePrior,
) -> tuple[PoseFit, PosePrior | None]:
    """The fit that began at a prior, or one found without it, whichever more landmarks agree with."""
    start = search_pose(points, pixels, camera, noise_px=FEATURE_NOISE_PX)
    if start is None:
        return fit, prior
    other = optimize_pose(points, pixels, camera, start, noise_px=FEATURE_NOISE_PX, depth_sigma_world=along)
    return (other, None) if other.inlier_count > fit.inlier_count else (fit, prior)


def refine_with_guided_matching(
    first: EstimatedPose,
    features: LocalFeatures,
    camera: Camera,
    ids: NDArray[np.int64],
    landmarks: LandmarkMap,
    graph: KeyframeGraph,
    *,
    radius_px: float,
    min_similarity: float,
    unsure_depths: bool = False,
) -> EstimatedPose:
    """A pose checked and sharpened: landmarks `ids` are looked for around where it says that they should be.

    At a wrong pose only chance agrees, and `share` stays small. `unsure_depths` as in `localize`.
    """
    fit, untriangulated = first.fit, first.untriangulated
    found = first.matches
    for radius in (2 * radius_px, radius_px):
        found = match_by_projection(fit.world_from_cam, features, camera, ids, landmarks, graph, radius, min_similarity)
        points = landmarks.points_world(found.tracks.ids, graph)
        along = landmarks.depth_sigma_world(found.tracks.ids, graph) if unsure_depths else None
        fit = optimize_pose(
            points, found.tracks.pixels, camera, fit.world_from_cam, noise_px=FEATURE_NOISE_PX, depth_sigma_world=along
        )
    agreeing = found.where(fit.inliers)
    taken = agreeing.tracks.pixels @ (1, 1j)  # a complex number is a pixel that can be compared
    return EstimatedPose(fit, agreeing, untriangulated.where(~np.isin(untriangulated.pixels @ (1, 1j), taken)))


def match_by_projection(
    world_from_cam: RigidTransform,
    features: LocalFeatures,
    camera: Camera,
    ids: NDArray[np.int64],
    landmarks: LandmarkMap,
    graph: KeyframeGraph,
    radius_px: float,
    min_similarity: float,
) -> FeatureMatches:
    """Landmarks (by id) and the most similar feature within a radius of where each should be seen, one to one."""
    rows, pixels = expected_in(landmarks.points_world(ids, graph), world_from_cam, camera)
    ids = ids[rows]
    rows, columns = one_to_one(
        *similar_nearby(pixels, landmarks.descriptor[ids], features, radius_px=radius_px, min_similarity=min_similarity)
    )
    return FeatureMatches(Tracks(ids[rows], features.pixels[columns]), columns)


def prior_confidence(
    world_from_cam: RigidTransform, estimate: PairEstimate | NoEstimate, world_from_i: Similarity
) -> float:
    """How much an estimate speaks for a pose that was found from landmarks: its confidence when they look the same way.

    0 when they do not, or when the estimate has no direction.
    """
    if not isinstance(estimate, PairEstimate) or estimate.i_from_j_direction is None:
        return 0.0
    predicted = world_from_i.rigid * rigid(estimate.i_from_j_rotation, np.zeros(3))
    return estimate.confidence if _agrees(world_from_cam, predicted) else 0.0


def _agrees(world_from_cam: RigidTransform, predicted: RigidTransform) -> bool:
    """Whether a refined pose still looks where the predictor said."""
    turned = rotation_matrix(predicted).T @ rotation_matrix(world_from_cam)
    return rotation_angle(turned) < AGREEMENT_RAD


def _start(
    points_world: NDArray[np.float64],
    pixels: NDArray[np.float32],
    camera: Camera,
    world_from_i: Similarity,
    estimate: PairEstimate | NoEstimate,
) -> tuple[RigidTransform | None, PosePrior | None]:
    """A first pose from the pair estimate, its length fitted to the landmarks; (None, None) when that fails."""
    if isinstance(estimate, NoEstimate) or estimate.i_from_j_direction is None:
        return None, None
    i_from_world = world_from_i.rigid.inv()
    fit = fit_length(
        np.asarray(i_from_world.apply(points_world)),
        camera.normalized(pixels),
        estimate.i_from_j_rotation,
        estimate.i_from_j_direction,
        noise=FEATURE_NOISE_PX / camera.mean_focal,
    )
    if not isinstance(fit, LengthFit):
        return None, None
    step = rigid(estimate.i_from_j_rotation, fit.length * estimate.i_from_j_direction)
    return world_from_i.rigid * step, pair_prior(world_from_i.rigid, estimate, fit.length)
