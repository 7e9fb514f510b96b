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
from relocalizer.images import Camera, to_gray
from relocalizer.interfaces import Encoded, NoEstimate, PairEstimate, View
from relocalizer.retrieval import Vlad, shipped_vlad
from relocalizer.two_view import Matches, fit_rotation, in_front, noise_of, refine_motion, robust_essential


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
        return self.encode_features(detect_features(to_gray(view.image), self._features), view.camera)

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
    found = robust_essential(matches, config.epipolar_px)
    if found is None:
        return NoEstimate(f"no essential matrix fits any of the {len(matches)} matches")
    rotation, direction, _ = found
    motion = refine_motion(matches, rotation, direction, config.epipolar_px)
    turned, slide = fit_rotation(matches.subset(motion.agrees), motion.rotation, config.epipolar_px)
    parallax = float(np.median(np.linalg.norm(slide, axis=1))) if motion.agrees.any() else 0.0
    noise = noise_of(slide)
    if parallax < 1.5 * config.epipolar_px:
        inliers = int((np.linalg.norm(slide, axis=1) < 2 * config.epipolar_px).sum())
        if inliers < config.min_inliers:
            return NoEstimate(f"{inliers} matches agree with a rotation (needs {config.min_inliers})")
        return PairEstimate(
            i_from_j_rotation=turned,
            i_from_j_direction=None,
            confidence=_confidence(inliers, len(matches)),
            rotation_sigma_rad=float(noise / matches.camera_i.mean_focal / np.sqrt(max(inliers, 1))) + 1e-4,
            direction_sigma_rad=float(np.pi),
            inliers=inliers,
            direction_unknown=f"parallax {parallax:.2f} px (needs {1.5 * config.epipolar_px:.2f})",
        )
    agrees = motion.agrees & in_front(matches, motion.rotation, motion.direction)
    inliers = int(agrees.sum())
    if inliers < config.min_inliers:
        return NoEstimate(
            f"{inliers} of {len(matches)} matches agree with one pose (needs {config.min_inliers})"
        )
    variance = np.diag(motion.covariance)
    return PairEstimate(
        i_from_j_rotation=motion.rotation,
        i_from_j_direction=motion.direction,
        confidence=_confidence(inliers, len(matches)),
        rotation_sigma_rad=float(np.sqrt(variance[:3].mean())) + 1e-4,
        direction_sigma_rad=min(float(np.sqrt(variance[3:].mean())) + 1e-3, float(np.pi)),
        inliers=inliers,
    )


def _confidence(inliers: int, matches: int) -> float:
    return float(inliers / matches * (1.0 - np.exp(-inliers / 50.0)))
