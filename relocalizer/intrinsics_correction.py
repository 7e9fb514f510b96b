"""What a joint refinement found of the lens that the calibration does not say."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from relocalizer.camera import Camera, CameraModel
from relocalizer.errors import CameraError
from relocalizer.geometry import FloatArray
from relocalizer.images import Image

NEWTON_STEPS = 20  # quadratic from the start for any lens that is nearly a pinhole
GRID_PX = 20  # between the points a calibration is fitted to
MIN_SLOPE = 0.1  # of the distortion along a radius: a lens that folds pixels onto one another has none left
MARGIN = 1.1  # times the farthest pixel's distance, up to where a correction must have an inverse
RADII = 200  # at which a lens is tried, from the principal point to there
BACK_PX = 0.01  # by which the way there and back may miss
MAX_FOCAL_RATIO = 100.0  # of one correction, either way
MISFIT_PX = 1.0  # a calibration farther off than this says something else than what was found


@dataclass(frozen=True, slots=True)
class CorrectionStep:
    """One correction of a camera taken for a pinhole.

    Attributes:
        focal_ratio: by how much its focal lengths (x, y) have grown.
        radial: distortion (k1, k2) of its images, in OpenCV's convention.
        is_guess: an assumed focal length stays an assumed one, if a better one.
    """

    focal_ratio: tuple[float, float] = (1.0, 1.0)
    radial: tuple[float, float] = (0.0, 0.0)
    is_guess: bool = False

    @property
    def is_nothing(self) -> bool:
        return self.focal_ratio == (1.0, 1.0) and self.radial == (0.0, 0.0)

    @property
    def has_distortion(self) -> bool:
        """Whether it says anything of distortion."""
        return self.radial != (0.0, 0.0)

    def camera(self, camera: Camera) -> Camera:
        """The pinhole camera of the straightened images; an assumed one is a guess until a focal length is known."""
        if self.is_nothing:
            return camera
        stays = self.is_guess or self.focal_ratio == (1.0, 1.0)
        return replace(camera.refocused(self.focal_ratio), assumed=camera.assumed and stays)

    def undistorted_pixels(self, pixels: NDArray[Any], camera: Camera) -> FloatArray:
        """Where the corrected pinhole camera sees what `camera`'s images show at `pixels` (N, 2)."""
        corrected, (k1, k2) = self.camera(camera), self.radial
        center, focal = (corrected.cx, corrected.cy), (corrected.fx, corrected.fy)
        seen = (np.asarray(pixels, dtype=np.float64) - center) / focal
        distorted_pixels = np.linalg.norm(seen, axis=1)
        straight = distorted_pixels.copy()
        with np.errstate(over="ignore", invalid="ignore"):  # a lens that folds the image has no answer
            for _ in range(NEWTON_STEPS):
                squared = straight**2
                slope = np.maximum(1 + squared * (3 * k1 + 5 * squared * k2), MIN_SLOPE)
                straight += (distorted_pixels - straight * (1 + squared * (k1 + squared * k2))) / slope
            return np.asarray(seen * (straight / np.maximum(distorted_pixels, 1e-12))[:, None] * focal + center)

    def distorted_pixels(self, pixels: NDArray[Any], camera: Camera) -> FloatArray:
        """The way back of `straightened`: where `camera`'s images show what the corrected camera sees at `pixels`."""
        corrected = self.camera(camera)
        directions = corrected.normalized(pixels)
        squared = (directions**2).sum(axis=1, keepdims=True)
        k1, k2 = self.radial
        return np.asarray(
            directions * (1 + squared * (k1 + squared * k2)) * (corrected.fx, corrected.fy)
            + (corrected.cx, corrected.cy)
        )


@dataclass(frozen=True, slots=True)
class IntrinsicsCorrection:
    """All corrections of one camera, the first one first; none at the start.

    Attributes:
        start: the camera before any; None without corrections.
    """

    start: Camera | None = None
    steps: tuple[CorrectionStep, ...] = ()

    @property
    def is_known_better(self) -> bool:
        """Whether there is anything the calibration did not say."""
        return bool(self.steps)

    @property
    def has_distortion(self) -> bool:
        """Whether a distortion was found."""
        return any(step.has_distortion for step in self.steps)

    def then(self, step: CorrectionStep, camera: Camera) -> IntrinsicsCorrection:
        """With one more correction, of `camera` as it is now."""
        return IntrinsicsCorrection(self.start or camera, (*self.steps, step))

    @property
    def camera(self) -> Camera:
        """The pinhole camera of the straightened images. Raises ValueError without corrections."""
        return self._cameras()[-1]

    def undistorted_pixels(self, pixels: NDArray[Any]) -> FloatArray:
        """Where the corrected pinhole camera sees what the images show at `pixels` (N, 2)."""
        straight = np.asarray(pixels, dtype=np.float64)
        for step, camera in zip(self.steps, self._cameras(), strict=False):
            straight = step.undistorted_pixels(straight, camera)
        return straight

    def distorted_pixels(self, pixels: NDArray[Any]) -> FloatArray:
        """The way back of `straightened`."""
        distorted_pixels = np.asarray(pixels, dtype=np.float64)
        for step, camera in reversed(list(zip(self.steps, self._cameras(), strict=False))):
            distorted_pixels = step.distorted_pixels(distorted_pixels, camera)
        return distorted_pixels

    def undistort_image(self, image: Image) -> Image:
        """An image (H, W, 3) straightened; what it does not show at its border is its edge repeated."""
        height, width = image.shape[:2]
        at = self.distorted_pixels(_grid(width, height, 1)).astype(np.float32).reshape(height, width, 2)
        straight = cv2.remap(image, at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(straight, dtype=np.uint8)

    @property
    def max_displacement_px(self) -> float:
        """How far the images are bent where they are bent most, pixels."""
        if self.start is None:
            return 0.0
        corners = corners_of(self.start)
        unbent = self.camera.normalized(self.undistorted_pixels(corners)) - self.camera.normalized(corners)
        return float(np.linalg.norm(unbent * (self.camera.fx, self.camera.fy), axis=1).max())

    @property
    def is_invertible(self) -> bool:
        """Whether every pixel has one place in the undistorted image, and a stable one; with a margin of `MARGIN`.

        Distortion is radial, so the pixels between the principal point and the farthest corner tell.
        """
        if self.start is None:
            return True
        ratios = np.array([step.focal_ratio for step in self.steps])
        if not ((ratios > 1.0 / MAX_FOCAL_RATIO) & (ratios < MAX_FOCAL_RATIO)).all():  # never with NaN
            return False
        corners, center = corners_of(self.start, margin=MARGIN), np.array([self.start.cx, self.start.cy])
        corner = corners[np.linalg.norm(corners - center, axis=1).argmax()]
        pixels = center + np.linspace(0.0, 1.0, RADII)[:, None] * (corner - center)
        with np.errstate(over="ignore", invalid="ignore"):
            straight = self.undistorted_pixels(pixels)
            wider = np.diff((straight - center) @ (corner - center)) / np.diff((pixels - center) @ (corner - center))
            back = np.abs(self.distorted_pixels(straight) - pixels)
            return bool((wider > 0.0).all() and (wider < 1.0 / MIN_SLOPE).all() and (back < BACK_PX).all())

    def calibration(self, given: Camera) -> Camera | None:
        """One camera that says what `given` says and what was found, for the source's own images.

        Args:
            given: of those images, of any size; they were undistorted by it before anything was found.

        Returns:
            None when no camera of the model of `given` comes within `MISFIT_PX` of it.
        """
        if self.start is None:
            return given
        before = given.resized(self.start.width, self.start.height)
        pixels = _grid(before.width, before.height, GRID_PX)
        seen = before.distorted(self.start.normalized(pixels))
        directions = self.camera.normalized(self.undistorted_pixels(pixels))
        found = fitted(before, directions, seen)
        if found is None or np.abs(found.distorted(directions) - seen).max() > MISFIT_PX:
            return None
        return replace(found.resized(given.width, given.height), assumed=self.camera.assumed)

    def _cameras(self) -> list[Camera]:
        """The camera before each correction, and after the last one."""
        if self.start is None:
            raise ValueError("Lens: there is no correction")
        cameras = [self.start]
        for step in self.steps:
            cameras.append(step.camera(cameras[-1]))
        return cameras


def radial_of(division: float, division_r4: float, camera: Camera) -> tuple[float, float]:
    """k1 and k2 nearest to a distortion of the division model: undistorted = distorted / (1 + a r^2 + b r^4).

    Args:
        division, division_r4: a and b, about the camera's principal point, with r in halves of its image's diagonal.
        camera: whose focal length the undistorted image has.
    """
    reach = float(np.linalg.norm(corners_of(camera, margin=MARGIN) - (camera.cx, camera.cy), axis=1).max())
    distorted = np.linspace(0.0, reach, 100)[1:]
    squared = (distorted / (0.5 * np.hypot(camera.width, camera.height))) ** 2
    stretch = 1.0 + squared * (division + squared * division_r4)
    u = distorted / camera.mean_focal / stretch
    k1, k2 = np.linalg.lstsq(np.stack([u**3, u**5], axis=1), u * (stretch - 1.0), rcond=None)[0]
    return float(k1), float(k2)


def corners_of(camera: Camera, *, margin: float = 1.0) -> FloatArray:
    """Pixels (4, 2) of the corners of a camera's images, `margin` times as far from the principal point."""
    w, h = camera.width - 1.0, camera.height - 1.0
    center = np.array([camera.cx, camera.cy])
    return np.asarray(center + margin * (np.array([[0.0, 0.0], [w, 0.0], [0.0, h], [w, h]]) - center))


def fitted(start: Camera, directions: FloatArray, pixels: FloatArray) -> Camera | None:
    """The camera that sees `directions` (N, 2; on the plane z = 1) at `pixels` (N, 2), of the model of `start`.

    Least squares. A pinhole becomes radtan, as a lens bends more than that. None where that has no answer.
    """
    model: CameraModel = "fisheye" if start.model == "fisheye" else "radtan"
    count = max(len(start.distortion), 4 if model == "fisheye" else 5)

    def camera_of(numbers: NDArray[Any]) -> Camera:
        fx, fy, cx, cy, *distortion = (round(float(number), 9) for number in numbers)
        return replace(
            start, fx=fx, fy=fy, cx=cx, cy=cy, model=model, distortion=tuple(distortion), assumed=False
        )  # fmt: skip

    first = np.zeros(4 + count)
    first[:4] = start.fx, start.fy, start.cx, start.cy
    first[4 : 4 + len(start.distortion)] = start.distortion
    scale = np.array([start.mean_focal] * 4 + [1.0] * count)

    def residuals(shares: FloatArray) -> FloatArray:
        return (camera_of(shares * scale).distorted(directions) - pixels).ravel()

    if not np.isfinite(residuals(first / scale)).all():
        return None
    try:
        return camera_of(least_squares(residuals, first / scale, x_scale="jac").x * scale)
    except (CameraError, ValueError):  # a step to a camera that there is not, or to numbers that are none
        return None


def _grid(width: int, height: int, step: int) -> FloatArray:
    """Pixels (N, 2) all over an image."""
    x, y = np.meshgrid(np.arange(0, width, step), np.arange(0, height, step))
    return np.stack([x, y], axis=-1).reshape(-1, 2).astype(np.float64)
