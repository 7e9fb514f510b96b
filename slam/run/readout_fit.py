"""Readout time of a rolling shutter from points that are followed through consecutive images.

A point is seen later, and by a camera that has turned further, the later its row is read. For the right readout time
the rays of all points, each turned to the time of the middle row, satisfy one epipolar geometry per pair of images
(Dai, Li and Kneip, "Rolling shutter camera relative pose", CVPR 2016), also where the turn changes from one image to
the other. Rotation and direction of translation of every pair are eliminated; the readout is common to all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from relocalizer.camera import Camera
from relocalizer.geometry import FloatArray
from slam.input.rolling_shutter import AXES, Axis, Readout, TurnRate, fitted_turn

HUBER_PX = 0.5  # kernel of the epipolar errors, pixels of the images in which points are followed
POSE_ROUNDS = 6  # iterations for the relative pose of a pair
SHARE_ROUNDS = 5  # iterations for the readout
LONGEST_STEP = 0.3  # maximum change of a direction of translation in an iteration, radians
MODEL_SIGMA = 0.02  # error of a share because rotations between images are interpolated
FEWEST_PLACES = 4  # minimum number of places for an estimate


@dataclass(frozen=True, slots=True, eq=False)
class FollowedPoints:
    """Points that are followed from one image to a later one.

    Attributes:
        camera: of both images.
        pixels_first, pixels_last: (N, 2).
        first, last: (N, 3) unit vectors of the pixels.
        rate_first, rate_last: how the camera turns in the two images.
    """

    camera: Camera
    pixels_first: FloatArray
    pixels_last: FloatArray
    first: FloatArray
    last: FloatArray
    rate_first: TurnRate
    rate_last: TurnRate

    def displacement_px(self, axis: Axis) -> float:
        """Displacement of the pixels of the last image by a readout of share one, root mean square."""
        times = Readout(axis, 1.0).times(self.pixels_last, self.camera)
        moved = Rotation.from_rotvec(self.rate_last.turned(times)).apply(self.last)
        shift = self.camera.project(moved) - self.camera.project(self.last)
        return float(np.sqrt((shift**2).sum(axis=1).mean()))


@dataclass(frozen=True, slots=True)
class ReadoutEstimate:
    """A readout and the standard deviation of its share.

    Attributes:
        displacement: by which it moves pixels, root mean square, as a fraction of the longer side of the image.
    """

    readout: Readout
    sigma: float
    displacement: float

    @property
    def significance(self) -> float:
        """The share in standard deviations."""
        return abs(self.readout.share) / max(self.sigma, 1e-9)


def fitted_readouts(places: Sequence[Sequence[FollowedPoints]]) -> list[ReadoutEstimate]:
    """The readouts along rows and along columns that explain the points of all places; none with too few places.

    The standard deviation is that of the scatter between places, because errors within one are correlated.
    """
    if len(places) < FEWEST_PLACES:
        return []
    return [_fitted(places, axis) for axis in AXES]


def _fitted(places: Sequence[Sequence[FollowedPoints]], axis: Axis) -> ReadoutEstimate:
    share, sigma = 0.0, float("inf")
    for _ in range(SHARE_ROUNDS):
        sums = [np.sum([_information(points, Readout(axis, share)) for points in place], axis=0) for place in places]
        information, evidence = np.array(sums).T
        if information.sum() <= 0.0:
            break
        step = float(evidence.sum() / information.sum())
        scatter = np.sqrt(((evidence - step * information) ** 2).sum() * len(places) / (len(places) - 1))
        share, sigma = share + step, float(np.hypot(scatter / information.sum(), MODEL_SIGMA))
    return ReadoutEstimate(Readout(axis, share), sigma, abs(share) * displacement_at(places, axis))


def displacement_at(places: Sequence[Sequence[FollowedPoints]], axis: Axis) -> float:
    """Displacement of pixels by a readout of share one, root mean square, as a fraction of the longer side."""
    camera = places[0][0].camera
    moved = np.array([points.displacement_px(axis) for place in places for points in place])
    return float(np.sqrt((moved**2).mean())) / max(camera.width, camera.height)


def _information(points: FollowedPoints, readout: Readout) -> tuple[float, float]:
    """Information about the share of a readout, and the same times its best change, from one pair of images."""
    turned = _TurnedRays.of(points, readout)
    rotation = Rotation.from_rotvec(fitted_turn(turned.first, turned.last)).inv()
    weights, translation = np.ones(len(turned.first)), np.zeros(3)
    for number in range(POSE_ROUNDS):
        normals = np.cross(rotation.apply(turned.first), turned.last)
        if number == 0:  # the best direction without a change of the rotation
            translation = np.linalg.svd(normals, full_matrices=False)[2][-1]
        errors, by_pose, by_share = turned.linearized(rotation, translation)
        root = np.sqrt(weights)
        pose = np.linalg.lstsq(root[:, None] * by_pose, -root * errors, rcond=1e-6)[0]
        weights = np.minimum(1.0, HUBER_PX / np.maximum(np.abs(errors + by_pose @ pose), 1e-9))
        rotation = Rotation.from_rotvec(pose[:3]) * rotation
        translation = _moved_direction(translation, np.asarray(pose[3:], dtype=np.float64))
    basis, _ = np.linalg.qr(root[:, None] * by_pose)
    share, error = (root * column for column in (by_share, errors))
    share, error = share - basis @ (basis.T @ share), error - basis @ (basis.T @ error)
    return float(share @ share), float(-(share @ error))


@dataclass(frozen=True, slots=True, eq=False)
class _TurnedRays:
    """Rays (N, 3) of two images turned to the times of their middle rows, and how they move with the share."""

    focal: float
    first: FloatArray
    last: FloatArray
    first_by_share: FloatArray
    last_by_share: FloatArray

    @classmethod
    def of(cls, points: FollowedPoints, readout: Readout) -> _TurnedRays:
        unit = Readout(readout.axis, 1.0)
        found = []
        for pixels, rays, rate in (
            (points.pixels_first, points.first, points.rate_first),
            (points.pixels_last, points.last, points.rate_last),
        ):
            times = unit.times(pixels, points.camera)
            turned = Rotation.from_rotvec(rate.turned(readout.share * times)).apply(rays)
            found.append((turned, times[:, None] * np.cross(rate.velocity, turned)))
        (first, first_by_share), (last, last_by_share) = found
        return cls(points.camera.mean_focal, first, last, first_by_share, last_by_share)

    def linearized(self, rotation: Rotation, translation: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Distances from the epipolar lines, pixels (N,), and how they change with the pose (N, 5) and the share (N,).

        The pose has a rotation vector, and the two coordinates of `_tangents` of the translation.
        """
        first = rotation.apply(self.first)
        normals = np.cross(first, self.last)
        pixels = self.focal / np.maximum(np.linalg.norm(np.cross(translation, self.last), axis=1), 1e-3)
        by_turn = [np.cross(np.cross(axis, first), self.last) @ translation for axis in np.eye(3)]
        by_share = np.cross(rotation.apply(self.first_by_share), self.last) + np.cross(first, self.last_by_share)
        by_pose = np.column_stack([*by_turn, normals @ _tangents(translation).T])
        return pixels * (normals @ translation), pixels[:, None] * by_pose, pixels * (by_share @ translation)


def _tangents(direction: FloatArray) -> FloatArray:
    """Two unit vectors (2, 3) across a direction (3,)."""
    return np.asarray(np.linalg.svd(direction[None])[2][1:])


def _moved_direction(direction: FloatArray, step: FloatArray) -> FloatArray:
    """A direction (3,) moved by a step (2,) along its tangents, which is shortened if it is long."""
    shortened = step * min(1.0, LONGEST_STEP / max(float(np.linalg.norm(step)), 1e-9))
    moved = direction + shortened @ _tangents(direction)
    return np.asarray(moved / np.linalg.norm(moved))
