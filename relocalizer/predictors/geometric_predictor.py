"""Two-view pose from local features, for machines without a graphics card: no weights, any license."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

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

# Without translation, four fifths of the matches slide less than 2.6 noise deviations; with real noise, 4.5.
_PARALLAX_IN_NOISE = 6.0
_BENDS_IN_NOISE = 3.5
# From this share of matches on one plane a second pose is looked for.
_PLANE_SHARE = 0.85
# A second pose is out when it explains this many matches less, or these shares of the right and of the wrong
# ones: so many fall to either pose by chance.
_RIVAL_MATCHES = 5.0
_RIVAL_INLIERS = 0.03
_RIVAL_OUTLIERS = 0.05
# This share of wrong matches agrees with a pose by chance: the band around the epipolar lines, and the pose's choice.
_CHANCE = 0.05
# Where half of the poses are right, and how fast that changes: in agreeing matches, and in cells that hold some.
_ENOUGH_INLIERS = (12.0, 4.0)
_ENOUGH_CELLS = (7.2, 1.3)


@dataclass(frozen=True, slots=True, eq=False)
class GeometricEncoded:
    """What the geometric predictor remembers of an image.

    Attributes:
        features: its local features.
        camera: the pinhole camera that took it.
        order: a number made from the features; pairs are computed the smaller first, so that both
            directions of a pair are one computation.
    """

    features: LocalFeatures
    camera: Camera
    order: int


class GeometricPredictor:
    """SIFT, a robust essential matrix, and the two cases in which it lies: no parallax, and one plane."""

    name = "geometric"
    descriptor = "vlad"

    def __init__(self, features: FeaturesConfig, config: GeometricConfig, vlad: Vlad | None = None) -> None:
        """`vlad` describes images for place recognition; None takes the vocabulary that is shipped."""
        self._features = features
        self._config = config
        self._vlad = vlad

    def encode(self, views: Sequence[CalibratedImage]) -> list[Encoded]:
        """Local features of each image.

        Raises:
            CameraError: a view has no camera, or one that is not pinhole.
        """
        return [self._encode(view) for view in views]

    def encode_features(self, features: LocalFeatures, camera: Camera) -> GeometricEncoded:
        """The same from features that were detected already."""
        data = features.pixels.tobytes() + features.descriptors.tobytes()
        return GeometricEncoded(features, camera, zlib.crc32(data))

    def restore_encoding(
        self,
        features: LocalFeatures,
        camera: Camera,
        descriptor: NDArray[np.float32],
        image: Callable[[], Image],
    ) -> GeometricEncoded:
        """What is remembered of a keyframe of a saved map; its features suffice."""
        return self.encode_features(features, camera)

    def relate(self, pairs: Sequence[tuple[Encoded, Encoded]]) -> list[PairEstimate | NoEstimate]:
        """For each (i, j): the pose of camera j seen from camera i, or why there is none.

        `relate([(i, j)])` and `relate([(j, i)])` are the same evidence, reversed.
        """
        return [self._relate(cast(GeometricEncoded, i), cast(GeometricEncoded, j)) for i, j in pairs]

    def describe(self, encoded: Encoded) -> NDArray[np.float32]:
        """VLAD of the local features: a unit vector (D,), a pure function of the image."""
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
                f"{view.camera.model}; undistort it first"
            )
        features = view.features
        if features is None:
            features = detect_features(to_gray(view.image), self._features, view.mask)
        return self.encode_features(features, view.camera)

    def _relate(self, i: GeometricEncoded, j: GeometricEncoded) -> PairEstimate | NoEstimate:
        if i.order > j.order:
            estimate = self._relate(j, i)
            return estimate if isinstance(estimate, NoEstimate) else estimate.reversed()
        found = match_features(i.features, j.features, ratio=self._config.match_ratio)
        matches = Matches(
            i.features.pixels[found[:, 0]].astype(np.float64),
            j.features.pixels[found[:, 1]].astype(np.float64),
            i.camera,
            j.camera,
        )
        return relate_matches(matches.subset(~standing_still(matches)), self._config)


def build(features: FeaturesConfig, config: GeometricConfig) -> GeometricPredictor:
    """The predictor named "geometric" in the entry-point group reloc3r_slam.predictors."""
    return GeometricPredictor(features, config)


def relate_matches(matches: Matches, config: GeometricConfig) -> PairEstimate | NoEstimate:
    """Pose of camera j seen from camera i, from matched pixels of which some may be wrong."""
    if len(matches) < config.min_inliers:
        return NoEstimate(f"{len(matches)} matches (needs {config.min_inliers})")
    motion = find_motion(matches, config.epipolar_px)
    if motion is None:
        return NoEstimate(f"no pose agrees with 5 or more of the {len(matches)} matches")
    turn = estimate_rotation(matches, motion.rotation, config.epipolar_px)
    if _parallax_px(motion, turn) < _needed_parallax_px(motion, config):
        return _without_direction(matches, motion, turn, config)
    poses = [motion]
    if plane_share(matches.subset(motion.agrees), config.epipolar_px) > _PLANE_SHARE:
        poses = possible_poses([motion, *motions_of_plane(matches, config.epipolar_px)])
    best, inliers = poses[0], int(poses[0].agrees.sum())
    if inliers < config.min_inliers:
        return NoEstimate(f"{inliers} of {len(matches)} matches agree with one pose (needs {config.min_inliers})")
    apart = max(_RIVAL_MATCHES, _RIVAL_INLIERS * inliers, _RIVAL_OUTLIERS * (len(matches) - inliers))
    rivals = [pose for pose in poses[1:] if pose.cost - best.cost < apart]
    if rivals:
        return _two_poses(matches, best, max(rivals, key=lambda pose: pose_angle(best, pose)), apart)
    return PairEstimate(
        i_from_j_rotation=best.rotation,
        i_from_j_direction=best.direction,
        confidence=_confidence(matches, best.agrees),
        rotation_sigma_rad=best.rotation_sigma_rad,
        direction_sigma_rad=min(best.direction_sigma_rad, float(np.pi)),
        inliers=inliers,
    )


def _parallax_px(motion: Motion, turn: PureRotation) -> float:
    """How far the best rotation alone leaves a fifth of the agreeing matches, or more, from their place."""
    return float(np.quantile(turn.residual_px[motion.agrees], 0.8)) if motion.agrees.any() else 0.0


def _without_direction(
    matches: Matches, motion: Motion, turn: PureRotation, config: GeometricConfig
) -> PairEstimate | NoEstimate:
    """The rotation of a pair whose direction is noise."""
    parallax, needed = _parallax_px(motion, turn), _needed_parallax_px(motion, config)
    # Too little to tell the direction can be enough to bend a rotation that was fitted as if there were none.
    bent = parallax > _BENDS_IN_NOISE * motion.noise_px
    best = motion if bent else turn
    inliers = int(best.agrees.sum())
    if inliers < config.min_inliers:
        return NoEstimate(f"{inliers} of {len(matches)} matches agree with one rotation (needs {config.min_inliers})")
    return PairEstimate(
        i_from_j_rotation=best.rotation,
        i_from_j_direction=None,
        confidence=_confidence(matches, best.agrees),
        rotation_sigma_rad=best.rotation_sigma_rad,
        direction_sigma_rad=float(np.pi),
        inliers=inliers,
        direction_unknown=f"parallax {parallax:.1f} px (needs {needed:.1f})",
    )


def _needed_parallax_px(motion: Motion, config: GeometricConfig) -> float:
    return max(config.min_parallax_px, _PARALLAX_IN_NOISE * motion.noise_px)


def _two_poses(matches: Matches, best: Motion, rival: Motion, apart: float) -> PairEstimate:
    """One plane: the rotation halfway between the two poses, its sigma reaching both, and no direction."""
    half = 0.5 * log_so3(best.rotation.T @ rival.rotation)
    reason = (
        f"one plane and two poses {np.degrees(pose_angle(best, rival)):.0f} deg apart: "
        f"the worse explains {rival.cost - best.cost:.1f} matches less (needs {apart:.1f})"
    )
    return PairEstimate(
        i_from_j_rotation=best.rotation @ exp_so3(half),
        i_from_j_direction=None,
        confidence=_confidence(matches, best.agrees),
        rotation_sigma_rad=float(np.hypot(best.rotation_sigma_rad, np.linalg.norm(half))),
        direction_sigma_rad=float(np.pi),
        inliers=int(best.agrees.sum()),
        direction_unknown=reason,
    )


def _confidence(matches: Matches, agrees: NDArray[np.bool_]) -> float:
    """How likely the pose is right: enough matches beyond chance, and spread over both images.

    Two logistic steps; docs/experiments.md has the counts they were read off and how they hold elsewhere.
    """
    by_chance = _CHANCE * float((~agrees).sum())
    enough = _step(float(agrees.sum()) - by_chance, *_ENOUGH_INLIERS)
    spread = min(
        occupied_cells(matches.pixels_i[agrees], matches.camera_i),
        occupied_cells(matches.pixels_j[agrees], matches.camera_j),
    )
    return enough * _step(spread, *_ENOUGH_CELLS)


def _step(value: float, middle: float, width: float) -> float:
    return float(1.0 / (1.0 + np.exp(-(value - middle) / width)))
