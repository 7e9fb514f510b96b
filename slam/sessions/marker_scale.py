"""Metric scale from markers of known size (ArUco, AprilTag) that stand in the scene.

The corners of each marker are triangulated from the keyframes that see it, under their poses in the finished map; the
length of its sides in map units gives the scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from relocalizer.camera import Camera
from relocalizer.geometry import FloatArray, Similarity
from relocalizer.images import Image, to_gray
from slam.evaluation.trajectory import Trajectory
from slam.sessions.scale_estimate import LARGEST_SIGMA, FinishedMap, ScaleError, ScaleEstimate

FEWEST_SIGHTINGS = 2  # minimum number of keyframes that see a marker
CORNER_PX = 0.5  # standard deviation of a detected corner, pixels; more if the corners do not agree
OUTLYING_PX = 3.0  # root mean square of the reprojection error from which a sighting is left out, pixels
_ITERATIONS = 10


@dataclass(frozen=True, slots=True)
class MarkerSize:
    """Scale reference: every marker of a dictionary has sides of `meters`; with `number`, only that marker.

    Attributes:
        dictionary: name in `cv2.aruco`, such as DICT_4X4_50 or DICT_APRILTAG_36h11.
    """

    dictionary: str
    meters: float
    number: int | None = None

    @property
    def spec(self) -> str:
        """The reference as an argument of `--scale-from`."""
        return f"marker:{self.dictionary}:{self.meters:g}" + ("" if self.number is None else f":{self.number}")

    @property
    def source(self) -> str:
        """Source of the metric scale, in words."""
        which = "markers" if self.number is None else f"marker {self.number}"
        return f"{which} of {self.dictionary} with sides of {self.meters:g} m"

    def expect(self, ground_truth: Trajectory | None) -> None:
        """Check that OpenCV has the dictionary. Raises ScaleError otherwise."""
        if not self.dictionary.startswith("DICT_") or not hasattr(cv2.aruco, self.dictionary):
            raise ScaleError(
                f"--scale-from {self.spec}: OpenCV has no dictionary {self.dictionary}; expected a name such as "
                "DICT_4X4_50 or DICT_APRILTAG_36h11"
            )

    def measure(self, finished: FinishedMap) -> ScaleEstimate:
        """The scale of the largest segment. Raises ScaleError if no marker determines it."""
        self.expect(None)
        sightings = self._sightings(finished)
        measured, reasons = [], []
        for number in sorted(sightings):
            found = _measured(sightings[number])
            if isinstance(found, str):
                reasons.append(f"marker {number}: {found}")
            else:
                measured.append(found)
        if not measured:
            why = "; ".join(reasons[:3]) or "no keyframe sees one"
            raise ScaleError(f"--scale-from {self.spec}: no marker determines the scale ({why})")
        side, sigma = _weighted_mean(measured)
        seen = sum(len(views) for number, views in sightings.items())
        evidence = f"{len(measured)} of them seen in {seen} views" if self.number is None else f"seen in {seen} views"
        return ScaleEstimate(self.meters / side, sigma, evidence)

    def _sightings(self, finished: FinishedMap) -> Mapping[int, list[Sighting]]:
        """The views of each marker, by its number."""
        if finished.image is None:
            raise ScaleError(f"--scale-from {self.spec}: the images of the keyframes were not kept")
        detect = _detector(self.dictionary)
        found: dict[int, list[Sighting]] = {}
        for k in finished.slam_map.graph.segment(finished.result.segment):
            pose, camera = finished.slam_map.graph.world_from_keyframe[k], finished.slam_map.camera_of(k)
            for number, corners in detect(finished.image(k)):
                if self.number in (None, number):
                    found.setdefault(number, []).append(Sighting(camera, pose, corners))
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Sighting:
    """A marker in one keyframe: its camera, its pose in map units, and the corners (4, 2), pixels, in their order."""

    camera: Camera
    world_from_keyframe: Similarity
    corners: FloatArray

    def residuals(self, corner: int, point_world: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Reprojection error (2,) of a corner at a point, and its derivative (2, 3) by the point, pixels."""
        rotation = self.world_from_keyframe.rotation
        x, y, z = rotation.T @ (point_world - self.world_from_keyframe.translation)
        z = max(z, 1e-9)
        fx, fy = self.camera.fx, self.camera.fy
        projected = np.array([fx * x / z + self.camera.cx, fy * y / z + self.camera.cy])
        by_point = np.array([[fx / z, 0.0, -fx * x / z**2], [0.0, fy / z, -fy * y / z**2]]) @ rotation.T
        return projected - self.corners[corner], by_point


@dataclass(frozen=True, slots=True)
class _Measured:
    """The mean side of a marker, map units, and the standard deviation of its logarithm."""

    side: float
    sigma: float


def _detector(dictionary: str) -> Callable[[Image], Iterator[tuple[int, FloatArray]]]:
    parameters = cv2.aruco.DetectorParameters()
    parameters.cornerRefinementMethod = cv2.aruco.CORNER_REFINE_SUBPIX
    markers = cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, dictionary))
    detector = cv2.aruco.ArucoDetector(markers, parameters)

    def detect(image: Image) -> Iterator[tuple[int, FloatArray]]:
        corners, numbers, _ = detector.detectMarkers(to_gray(image))
        if numbers is not None:
            for four, number in zip(corners, np.ravel(numbers), strict=True):
                yield int(number), np.asarray(four, dtype=np.float64).reshape(4, 2)

    return detect


def _measured(sightings: Sequence[Sighting]) -> _Measured | str:
    """The size of a marker in the map, or why it cannot be measured."""
    kept = list(sightings)
    while len(kept) >= FEWEST_SIGHTINGS:
        points, covariances, errors = _triangulated(kept)
        worst = int(np.argmax(errors))
        if errors[worst] <= OUTLYING_PX:
            return _size(points, covariances)
        kept.pop(worst)
    if len(sightings) < FEWEST_SIGHTINGS:
        return f"seen in {len(sightings)} keyframe, {FEWEST_SIGHTINGS} needed"
    return "it is not at one place in the map (did it move?)"


def _triangulated(sightings: Sequence[Sighting]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Corners (4, 3) in the map, their covariances (4, 3, 3), and the error of each sighting, pixels."""
    points = np.zeros((4, 3))
    inverses, squares = np.zeros((4, 3, 3)), np.zeros(len(sightings))
    for corner in range(4):
        point = _nearest_to_rays(sightings, corner)
        for _ in range(_ITERATIONS):
            pairs = [sighting.residuals(corner, point) for sighting in sightings]
            error, jacobian = np.concatenate([r for r, _ in pairs]), np.concatenate([J for _, J in pairs])
            point = point - np.linalg.lstsq(jacobian, error, rcond=None)[0]
        points[corner] = point
        pairs = [sighting.residuals(corner, point) for sighting in sightings]
        jacobian = np.concatenate([J for _, J in pairs])
        inverses[corner] = np.linalg.pinv(jacobian.T @ jacobian)
        squares += [float(r @ r) for r, _ in pairs]
    errors = np.sqrt(squares / 8.0)
    degrees = max(1, 8 * len(sightings) - 12)
    noise = max(CORNER_PX, float(np.sqrt(squares.sum() / degrees)))
    return points, inverses * noise**2, errors


def _nearest_to_rays(sightings: Sequence[Sighting], corner: int) -> FloatArray:
    """The point (3,) nearest to the rays of a corner, in the sense of least squares."""
    A, b = np.zeros((3, 3)), np.zeros(3)
    for sighting in sightings:
        [direction] = sighting.camera.normalized(sighting.corners[corner : corner + 1])
        ray = sighting.world_from_keyframe.rotation @ np.append(direction, 1.0)
        ray /= np.linalg.norm(ray)
        across = np.eye(3) - np.outer(ray, ray)
        A += across
        b += across @ sighting.world_from_keyframe.translation
    return np.asarray(np.linalg.lstsq(A, b, rcond=None)[0], dtype=np.float64)


def _size(points: FloatArray, covariances: FloatArray) -> _Measured | str:
    """The mean side of four corners; its uncertainty is at least the scatter of the sides, which are equal."""
    edges = np.roll(points, -1, axis=0) - points
    sides = np.linalg.norm(edges, axis=1)
    if not (sides > 0).all():
        return "its corners are at one place in the map"
    units = edges / sides[:, None]
    # The mean of the sides changes with corner k by the side that ends in it and the one that begins there.
    by_corner = (np.roll(units, 1, axis=0) - units) / 4.0
    variance = float(np.einsum("ki,kij,kj->", by_corner, covariances, by_corner))
    side = float(sides.mean())
    scatter = float(sides.std(ddof=1)) / 2.0
    sigma = max(np.sqrt(variance), scatter) / side
    if sigma > LARGEST_SIGMA:
        return f"its size is known to {100 * sigma:.0f} % only; it must be seen from places farther apart"
    return _Measured(side, float(sigma))


def _weighted_mean(measured: Sequence[_Measured]) -> tuple[float, float]:
    """The common side of several markers, and the standard deviation of its logarithm, larger if they disagree."""
    logs, sigmas = np.log([one.side for one in measured]), np.array([one.sigma for one in measured])
    weights = 1.0 / sigmas**2
    mean = float((weights * logs).sum() / weights.sum())
    sigma = float(1.0 / np.sqrt(weights.sum()))
    if len(measured) > 1:
        sigma *= max(1.0, float(np.sqrt((weights * (logs - mean) ** 2).sum() / (len(measured) - 1))))
    return float(np.exp(mean)), sigma
