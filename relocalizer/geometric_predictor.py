"""Two-view pose from local features, for machines without a graphics card: no weights, any licence."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from relocalizer.config import FeaturesConfig, GeometricConfig
from relocalizer.errors import CameraError
from relocalizer.features import LocalFeatures, detect_features, match_features
from relocalizer.geometry import exp_so3, log_so3
from relocalizer.images import Camera, to_gray
from relocalizer.interfaces import Encoded, NoEstimate, PairEstimate, View
from relocalizer.retrieval import Vlad, shipped_vlad
from relocalizer.two_view import (
    Matches,
    Motion,
    Turn,
    find_motion,
    find_turn,
    motions_of_plane,
    plane_share,
    pose_angle,
    rival_of,
)

# Without translation, four fifths of the matches slide less than 2.6 noise deviations; with real noise, 4.5.
_PARALLAX_IN_NOISE = 6.0
# From this share of matches on one plane a second pose is looked for.
_PLANE_SHARE = 0.85
# A rival pose is out when it explains this many matches less, or this share of them: chance gives it a few.
_RIVAL_MATCHES = 5.0
_RIVAL_SHARE = 0.03


@dataclass(frozen=True, slots=True, eq=False)
class GeometricEncoded:
    """What the geometric predictor remembers of a picture.

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

    def __init__(self, features: FeaturesConfig, config: GeometricConfig, vlad: Vlad | None = None) -> None:
        """`vlad` describes pictures for place recognition; None takes the vocabulary that is shipped."""
        self._features = features
        self._config = config
        self._vlad = vlad

    def encode(self, views: Sequence[View]) -> list[Encoded]:
        """Local features of each picture.

        Raises:
            CameraError: a view has no camera, or one that is not pinhole.
        """
        return [self._encode(view) for view in views]

    def encode_features(self, features: LocalFeatures, camera: Camera) -> GeometricEncoded:
        """The same from features that were detected already."""
        data = features.pixels.tobytes() + features.descriptors.tobytes()
        return GeometricEncoded(features, camera, zlib.crc32(data))

    def relate(self, pairs: Sequence[tuple[Encoded, Encoded]]) -> list[PairEstimate | NoEstimate]:
        """For each (i, j): the pose of camera j seen from camera i, or why there is none.

        `relate([(i, j)])` and `relate([(j, i)])` are the same evidence, reversed.
        """
        return [self._relate(cast(GeometricEncoded, i), cast(GeometricEncoded, j)) for i, j in pairs]

    def describe(self, encoded: Encoded) -> NDArray[np.float32]:
        """VLAD of the local features: a unit vector (D,), a pure function of the picture."""
        vlad = self._vlad if self._vlad is not None else shipped_vlad()
        return vlad.describe(cast(GeometricEncoded, encoded).features)

    def _encode(self, view: View) -> GeometricEncoded:
        if view.camera is None:
            raise CameraError(
                "geometric predictor: a picture came without a camera; it needs the intrinsics, "
                "so pass a camera.yaml (width, height, fx, fy, cx, cy)"
            )
        if view.camera.model != "pinhole":
            raise CameraError(
                f"geometric predictor: expected an undistorted picture (pinhole camera), got model "
                f"{view.camera.model}; undistort it first"
            )
        features = view.features
        if features is None:
            features = detect_features(to_gray(view.image), self._features)
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
        return relate_matches(matches, self._config)


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
    turn = find_turn(matches, motion.rotation, config.epipolar_px)
    parallax = _parallax_px(motion, turn)
    needed = max(config.min_parallax_px, _PARALLAX_IN_NOISE * motion.noise_px)
    if parallax < needed:
        return _turned_only(matches, turn, config, f"parallax {parallax:.1f} px (needs {needed:.1f})")
    rival = None
    if plane_share(matches.subset(motion.agrees), config.epipolar_px) > _PLANE_SHARE:
        found = sorted([motion, *motions_of_plane(matches, config.epipolar_px)], key=lambda pose: pose.cost)
        apart = max(_RIVAL_MATCHES, _RIVAL_SHARE * float(motion.agrees.sum()))
        motion, rival = found[0], rival_of(found[0], found[1:], matches_apart=apart)
    inliers = int(motion.agrees.sum())
    if inliers < config.min_inliers:
        return NoEstimate(
            f"{inliers} of {len(matches)} matches agree with one pose (needs {config.min_inliers})"
        )
    if rival is not None:
        return _two_poses(matches, motion, rival)
    return PairEstimate(
        i_from_j_rotation=motion.rotation,
        i_from_j_direction=motion.direction,
        confidence=_confidence(matches, motion.agrees),
        rotation_sigma_rad=motion.rotation_sigma_rad,
        direction_sigma_rad=min(motion.direction_sigma_rad, float(np.pi)),
        inliers=inliers,
    )


def _parallax_px(motion: Motion, turn: Turn) -> float:
    """How far the best rotation alone leaves a fifth of the agreeing matches, or more, from their place."""
    return float(np.quantile(turn.slide_px[motion.agrees], 0.8)) if motion.agrees.any() else 0.0


def _turned_only(
    matches: Matches, turn: Turn, config: GeometricConfig, reason: str
) -> PairEstimate | NoEstimate:
    inliers = int(turn.agrees.sum())
    if inliers < config.min_inliers:
        return NoEstimate(
            f"{inliers} of {len(matches)} matches agree with one rotation (needs {config.min_inliers})"
        )
    return PairEstimate(
        i_from_j_rotation=turn.rotation,
        i_from_j_direction=None,
        confidence=_confidence(matches, turn.agrees),
        rotation_sigma_rad=turn.rotation_sigma_rad,
        direction_sigma_rad=float(np.pi),
        inliers=inliers,
        direction_unknown=reason,
    )


def _two_poses(matches: Matches, best: Motion, rival: Motion) -> PairEstimate:
    """One plane: the rotation halfway between the two poses, its sigma reaching both, and no direction."""
    half = 0.5 * log_so3(best.rotation.T @ rival.rotation)
    reason = (
        f"one plane and two poses {np.degrees(pose_angle(best, rival)):.0f} deg apart: the worse fits "
        f"{rival.cost - best.cost:.1f} matches less (needs {_RIVAL_MATCHES} or more)"
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
    inliers = int(agrees.sum())
    return float(inliers / len(matches) * (1.0 - np.exp(-inliers / 50.0)))
