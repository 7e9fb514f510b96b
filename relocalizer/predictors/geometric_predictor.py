"""Relative pose predictor based on local features, for machines without a GPU: no weights, any license."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from relocalizer.camera import Camera
from relocalizer.config import FeaturesConfig, GeometricConfig
from relocalizer.errors import CameraError
from relocalizer.features import LocalFeatures, detect_features, match_features, occupied_cells, ordinary
from relocalizer.geometry import exp_so3, log_so3
from relocalizer.image_static import standing_still
from relocalizer.images import Image, to_gray
from relocalizer.interfaces import CalibratedImage, Encoded, NoEstimate, PairEstimate
from relocalizer.two_view import (
    Matches,
    Motion,
    PureRotation,
    estimate_rotation,
    find_motion,
    motions_of_plane,
    plane_share,
    pose_angle,
    possible_poses,
)
from relocalizer.vlad import Vlad, shipped_vlad

# Minimum parallax of an observable direction, in standard deviations of the noise. Without translation the 80th
# percentile of the residuals of a pure rotation is 2.6 of them, and 4.5 with real noise.
_PARALLAX_IN_NOISE = 6.0
_ROTATION_BIAS_IN_NOISE = 3.5  # parallax that biases a pure rotation, in standard deviations of the noise
_PLANE_RATIO = 0.85  # minimum fraction of the matches on one plane for which a second pose is searched
# A second pose is ruled out when it explains fewer matches than the best one by at least the maximum of: this number,
# this fraction of the inliers, and this fraction of the outliers. Smaller differences occur by chance.
_RIVAL_MATCHES = 5.0
_RIVAL_INLIERS = 0.03
_RIVAL_OUTLIERS = 0.05
# Fraction of wrong matches that are inliers by chance, due to the epipolar band and the selection of the pose.
_CHANCE = 0.05
# Center and width of the logistic probability of a correct pose, in inliers, and in image cells with inliers.
_ENOUGH_INLIERS = (12.0, 4.0)
_ENOUGH_CELLS = (7.2, 1.3)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class GeometricEncoded:
    """The geometric predictor's encoding of an image.

    Attributes:
        features: its local features.
        camera: the pinhole camera that took it.
        order: checksum of the features. A pair is always computed with the smaller one first, so that (i, j) and
            (j, i) give the same result.
    """

    features: LocalFeatures
    camera: Camera
    order: int


class GeometricPredictor:
    """SIFT matches and a robust essential matrix, with tests for its degenerate cases: no parallax, planar scene."""

    name = "geometric"
    descriptor = "vlad"

    def __init__(self, features: FeaturesConfig, config: GeometricConfig, vlad: Vlad | None = None) -> None:
        """`vlad` computes the place descriptors; None uses the shipped vocabulary."""
        self._features = features
        self._config = config
        self._vlad = vlad
        # The estimates of pairs (i, j) of images in use, i.order <= j.order: photos are compared more than once.
        self._known: WeakKeyDictionary[
            GeometricEncoded, WeakKeyDictionary[GeometricEncoded, PairEstimate | NoEstimate]
        ] = WeakKeyDictionary()

    def encode(self, views: Sequence[CalibratedImage]) -> list[Encoded]:
        """Local features of each image.

        Raises:
            CameraError: a view has no camera, or one that is not pinhole.
        """
        return [self._encode(view) for view in views]

    def encode_features(self, features: LocalFeatures, camera: Camera) -> GeometricEncoded:
        """The encoding of an image from its extracted features."""
        data = features.pixels.tobytes() + features.descriptors.tobytes()
        return GeometricEncoded(features, camera, zlib.crc32(data))

    def restore_encoding(
        self,
        features: LocalFeatures,
        camera: Camera,
        descriptor: NDArray[np.float32],
        image: Callable[[], Image],
    ) -> GeometricEncoded:
        """The encoding of a keyframe of a saved map, from its stored features."""
        return self.encode_features(features, camera)

    def relate(self, pairs: Sequence[tuple[Encoded, Encoded]]) -> list[PairEstimate | NoEstimate]:
        """For each (i, j): the pose of camera j in camera i, or the reason why it cannot be estimated.

        `relate([(j, i)])` is the exact inverse of `relate([(i, j)])`.
        """
        return [self._relate(cast(GeometricEncoded, i), cast(GeometricEncoded, j)) for i, j in pairs]

    def describe(self, encoded: Encoded) -> NDArray[np.float32]:
        """VLAD of the local features, a unit vector (D,); deterministic."""
        vlad = self._vlad if self._vlad is not None else shipped_vlad()
        return vlad.describe(ordinary(cast(GeometricEncoded, encoded).features, self._features))

    def _encode(self, view: CalibratedImage) -> GeometricEncoded:
        if view.camera is None:
            raise CameraError(
                "geometric predictor: an image came without a camera; it needs the intrinsics, "
                "so pass a camera.yaml (width, height, fx, fy, cx, cy)"
            )
        if view.camera.model != "pinhole":
            raise CameraError(
                f"geometric predictor: expected an undistorted image (pinhole camera), got model "
                f"{view.camera.model}; undistort it by relocalizer.Undistorter first"
            )
        features = view.features
        if features is None:
            features = detect_features(to_gray(view.image), self._features, view.mask)
        return self.encode_features(features, view.camera)

    def _relate(self, i: GeometricEncoded, j: GeometricEncoded) -> PairEstimate | NoEstimate:
        if i.order > j.order:
            estimate = self._relate(j, i)
            return estimate if isinstance(estimate, NoEstimate) else estimate.reversed()
        known = self._known.setdefault(i, WeakKeyDictionary())
        if j not in known:
            known[j] = self._compute(i, j)
        return known[j]

    def _compute(self, i: GeometricEncoded, j: GeometricEncoded) -> PairEstimate | NoEstimate:
        found = match_features(i.features, j.features, ratio=self._config.match_ratio)
        matches = Matches(
            i.features.pixels[found[:, 0]].astype(np.float64),
            j.features.pixels[found[:, 1]].astype(np.float64),
            i.camera,
            j.camera,
        )
        return relate_matches(matches.subset(~standing_still(matches)), self._config)


def relate_matches(matches: Matches, config: GeometricConfig) -> PairEstimate | NoEstimate:
    """Relative pose of camera j in camera i, from matched pixels with outliers."""
    if len(matches) < config.min_inliers:
        return NoEstimate(f"{len(matches)} matches (needs {config.min_inliers})")
    motion = find_motion(matches, config.epipolar_px)
    if motion is None:
        return NoEstimate(f"no pose agrees with 5 or more of the {len(matches)} matches")
    rotation = estimate_rotation(matches, motion.rotation, config.epipolar_px)
    if _parallax_px(motion, rotation) < _needed_parallax_px(motion, config):
        return _without_direction(matches, motion, rotation, config)
    poses = [motion]
    if plane_share(matches.subset(motion.inliers), config.epipolar_px) > _PLANE_RATIO:
        poses = possible_poses([motion, *motions_of_plane(matches, config.epipolar_px)])
    best, inliers = poses[0], int(poses[0].inliers.sum())
    if inliers < config.min_inliers:
        return NoEstimate(f"{inliers} of {len(matches)} matches agree with one pose (needs {config.min_inliers})")
    margin = max(_RIVAL_MATCHES, _RIVAL_INLIERS * inliers, _RIVAL_OUTLIERS * (len(matches) - inliers))
    rivals = [pose for pose in poses[1:] if pose.cost - best.cost < margin]
    if rivals:
        return _ambiguous(matches, best, max(rivals, key=lambda pose: pose_angle(best, pose)), margin)
    return PairEstimate(
        i_from_j_rotation=best.rotation,
        i_from_j_direction=best.direction,
        confidence=_confidence(matches, best.inliers),
        rotation_sigma_rad=best.rotation_sigma_rad,
        direction_sigma_rad=min(best.direction_sigma_rad, float(np.pi)),
        inliers=inliers,
    )


def _parallax_px(motion: Motion, rotation: PureRotation) -> float:
    """80th percentile of the residuals that a pure rotation leaves on the inliers, pixels."""
    return float(np.quantile(rotation.residual_px[motion.inliers], 0.8)) if motion.inliers.any() else 0.0


def _without_direction(
    matches: Matches, motion: Motion, rotation: PureRotation, config: GeometricConfig
) -> PairEstimate | NoEstimate:
    """The estimate for a pair with too little parallax: a rotation without direction."""
    parallax, needed = _parallax_px(motion, rotation), _needed_parallax_px(motion, config)
    # Parallax too small for a direction can still bias the pure rotation, which assumes none.
    is_biased = parallax > _ROTATION_BIAS_IN_NOISE * motion.noise_px
    best = motion if is_biased else rotation
    inliers = int(best.inliers.sum())
    if inliers < config.min_inliers:
        return NoEstimate(f"{inliers} of {len(matches)} matches agree with one rotation (needs {config.min_inliers})")
    return PairEstimate(
        i_from_j_rotation=best.rotation,
        i_from_j_direction=None,
        confidence=_confidence(matches, best.inliers),
        rotation_sigma_rad=best.rotation_sigma_rad,
        direction_sigma_rad=float(np.pi),
        inliers=inliers,
        direction_unknown=f"parallax {parallax:.1f} px (needs {needed:.1f})",
    )


def _needed_parallax_px(motion: Motion, config: GeometricConfig) -> float:
    return max(config.min_parallax_px, _PARALLAX_IN_NOISE * motion.noise_px)


def _ambiguous(matches: Matches, best: Motion, rival: Motion, margin: float) -> PairEstimate:
    """The estimate for a planar scene with two poses: the mean rotation, a sigma that covers both, no direction."""
    half = 0.5 * log_so3(best.rotation.T @ rival.rotation)
    reason = (
        f"one plane and two poses {np.degrees(pose_angle(best, rival)):.0f} deg apart: "
        f"the worse explains {rival.cost - best.cost:.1f} matches less (needs {margin:.1f})"
    )
    return PairEstimate(
        i_from_j_rotation=best.rotation @ exp_so3(half),
        i_from_j_direction=None,
        confidence=_confidence(matches, best.inliers),
        rotation_sigma_rad=float(np.hypot(best.rotation_sigma_rad, np.linalg.norm(half))),
        direction_sigma_rad=float(np.pi),
        inliers=int(best.inliers.sum()),
        direction_unknown=reason,
    )


def _confidence(matches: Matches, inliers: NDArray[np.bool_]) -> float:
    """Probability that the pose is correct, from the number of inliers beyond chance and their coverage of both images.

    Product of two logistic functions; docs/experiments.md has the counts they were fitted to and their validation.
    """
    by_chance = _CHANCE * float((~inliers).sum())
    enough = _logistic(float(inliers.sum()) - by_chance, *_ENOUGH_INLIERS)
    cells = min(
        occupied_cells(matches.pixels_i[inliers], matches.camera_i),
        occupied_cells(matches.pixels_j[inliers], matches.camera_j),
    )
    return enough * _logistic(cells, *_ENOUGH_CELLS)


def _logistic(value: float, center: float, width: float) -> float:
    return float(1.0 / (1.0 + np.exp(-(value - center) / width)))
