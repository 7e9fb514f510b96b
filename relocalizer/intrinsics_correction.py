"""Corrections of the intrinsics found by bundle adjustment: focal length, radial distortion and principal point."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from relocalizer.camera import Camera, CameraModel
from relocalizer.errors import CameraError
from relocalizer.geometry import FloatArray
from relocalizer.images import Image

NEWTON_STEPS = 20  # maximum number of Newton iterations
NEWTON_CONVERGED = 1e-9  # step after which the next one would be a rounding error: convergence is quadratic
GRID_PX = 20  # spacing of the points to which a calibration is fitted, pixels
MIN_SLOPE = 0.1  # minimum radial derivative of the distortion; it reaches zero where the image folds
MARGIN = 1.1  # range in which a correction must be invertible, relative to the farthest pixel's distance
RADII = 200  # number of radii in this range at which invertibility is tested
BACK_PX = 0.01  # maximum round-trip error of undistortion and distortion, pixels
MAX_FOCAL_RATIO = 100.0  # maximum focal ratio of one correction, and of its inverse
MISFIT_PX = 1.0  # maximum error of a calibration that represents the corrections, pixels


@dataclass(frozen=True, slots=True)
class CorrectionStep:
    """One correction of a pinhole camera.

    Attributes:
        focal_ratio: ratios of the corrected to the previous focal lengths (x, y).
        radial: distortion (k1, k2) of its images, in OpenCV's convention.
        principal_px: shift of the principal point (x, y), pixels.
        is_guess: whether an assumed focal length remains `assumed` after the correction.
    """

    focal_ratio: tuple[float, float] = (1.0, 1.0)
    radial: tuple[float, float] = (0.0, 0.0)
    principal_px: tuple[float, float] = (0.0, 0.0)
    is_guess: bool = False

    @property
    def is_nothing(self) -> bool:
        return self.focal_ratio == (1.0, 1.0) and self.radial == self.principal_px == (0.0, 0.0)

    @property
    def has_distortion(self) -> bool:
        """Whether the correction includes distortion."""
        return self.radial != (0.0, 0.0)

    def camera(self, camera: Camera) -> Camera:
        """The pinhole camera of the undistorted images; it stays `assumed` until its focal length is known."""
        if self.is_nothing:
            return camera
        stays = self.is_guess or self.focal_ratio == (1.0, 1.0)
        cx, cy = camera.cx + self.principal_px[0], camera.cy + self.principal_px[1]
        return replace(camera.refocused(self.focal_ratio), cx=cx, cy=cy, assumed=camera.assumed and stays)

    def undistorted_pixels(self, pixels: NDArray[Any], camera: Camera) -> FloatArray:
        """Pixels (N, 2) in the corrected pinhole camera of `pixels` in the images of `camera`."""
        corrected, (k1, k2) = self.camera(camera), self.radial
        center, focal = (corrected.cx, corrected.cy), (corrected.fx, corrected.fy)
        distorted = (np.asarray(pixels, dtype=np.float64) - center) / focal
        distorted_radius = np.linalg.norm(distorted, axis=1)
        radius = distorted_radius.copy()
        with np.errstate(over="ignore", invalid="ignore"):  # there is no solution beyond a fold
            for _ in range(NEWTON_STEPS):
                squared = radius**2
                slope = np.maximum(1 + squared * (3 * k1 + 5 * squared * k2), MIN_SLOPE)
                step = (distorted_radius - radius * (1 + squared * (k1 + squared * k2))) / slope
                radius += step
                if np.abs(step).max(initial=0.0) < NEWTON_CONVERGED:
                    break
            return np.asarray(distorted * (radius / np.maximum(distorted_radius, 1e-12))[:, None] * focal + center)

    def distorted_pixels(self, pixels: NDArray[Any], camera: Camera) -> FloatArray:
        """Inverse of `undistorted_pixels`: pixels in the images of `camera` of `pixels` in the corrected camera."""
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
    """The sequence of corrections of one camera.

    Attributes:
        start: the camera before the first correction; None without corrections.
        steps: the corrections, the first one first.
    """

    start: Camera | None = None
    steps: tuple[CorrectionStep, ...] = ()

    @property
    def has_corrections(self) -> bool:
        """Whether there is any correction."""
        return bool(self.steps)

    @property
    def has_distortion(self) -> bool:
        """Whether any correction includes distortion."""
        return any(step.has_distortion for step in self.steps)

    def then(self, step: CorrectionStep, camera: Camera) -> IntrinsicsCorrection:
        """The sequence with one more correction, of the current `camera`."""
        return IntrinsicsCorrection(self.start or camera, (*self.steps, step))

    @property
    def camera(self) -> Camera:
        """The pinhole camera of the undistorted images. Raises ValueError without corrections."""
        return self._cameras()[-1]

    def undistorted_pixels(self, pixels: NDArray[Any]) -> FloatArray:
        """Pixels (N, 2) in the corrected pinhole camera of `pixels` in the images."""
        undistorted = np.asarray(pixels, dtype=np.float64)
        for step, camera in zip(self.steps, self._cameras(), strict=False):
            undistorted = step.undistorted_pixels(undistorted, camera)
        return undistorted

    def distorted_pixels(self, pixels: NDArray[Any]) -> FloatArray:
        """Inverse of `undistorted_pixels`."""
        distorted = np.asarray(pixels, dtype=np.float64)
        for step, camera in reversed(list(zip(self.steps, self._cameras(), strict=False))):
            distorted = step.distorted_pixels(distorted, camera)
        return distorted

    def undistort_image(self, image: Image) -> Image:
        """An image (H, W, 3) undistorted; beyond its border its edge pixels are repeated."""
        x, y = _undistortion_maps(self, image.shape[1], image.shape[0])
        undistorted = cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(undistorted, dtype=np.uint8)

    @property
    def max_displacement_px(self) -> float:
        """Largest displacement of an image corner by the distortion, pixels."""
        if self.start is None or not self.has_distortion:
            return 0.0
        corners = corners_of(self.start)
        displacement = self.camera.normalized(self.undistorted_pixels(corners)) - self.camera.normalized(corners)
        return float(np.linalg.norm(displacement * (self.camera.fx, self.camera.fy), axis=1).max())

    @property
    def is_invertible(self) -> bool:
        """Whether the mapping to the undistorted image is invertible and stable, within a margin of `MARGIN`.

        Distortion is radial, so it suffices to test the pixels between the principal point and the farthest corner.
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
            undistorted = self.undistorted_pixels(pixels)
            axis = corner - center
            slope = np.diff((undistorted - center) @ axis) / np.diff((pixels - center) @ axis)
            error = np.abs(self.distorted_pixels(undistorted) - pixels)
            return bool((slope > 0.0).all() and (slope < 1.0 / MIN_SLOPE).all() and (error < BACK_PX).all())

    def calibration(self, given: Camera) -> Camera | None:
        """One camera for the source's original images that combines the calibration `given` with all corrections.

        Args:
            given: calibration of these images, of any size, by which they were undistorted before the corrections.

        Returns:
            None when no camera of the model of `given` represents the corrections within `MISFIT_PX`.
        """
        if self.start is None:
            return given
        before = given.resized(self.start.width, self.start.height)
        pixels = _grid(before.width, before.height, GRID_PX)
        original = before.distorted(self.start.normalized(pixels))
        directions = self.camera.normalized(self.undistorted_pixels(pixels))
        found = fitted(before, directions, original)
        if found is None or np.abs(found.distorted(directions) - original).max() > MISFIT_PX:
            return None
        return replace(found.resized(given.width, given.height), assumed=self.camera.assumed)

    def _cameras(self) -> list[Camera]:
        """The cameras before each correction, and the one after the last."""
        if self.start is None:
            raise ValueError("Lens: there is no correction")
        cameras = [self.start]
        for step in self.steps:
            cameras.append(step.camera(cameras[-1]))
        return cameras


def radial_of(division: float, division_r4: float, camera: Camera) -> tuple[float, float]:
    """k1 and k2 nearest to a distortion of the division model: undistorted = distorted / (1 + a r^2 + b r^4).

    Args:
        division, division_r4: a and b, about the camera's principal point, with r relative to half the image diagonal.
        camera: the camera of the undistorted image.
    """
    reach = float(np.linalg.norm(corners_of(camera, margin=MARGIN) - (camera.cx, camera.cy), axis=1).max())
    distorted = np.linspace(0.0, reach, 100)[1:]
    squared = (distorted / (0.5 * np.hypot(camera.width, camera.height))) ** 2
    stretch = 1.0 + squared * (division + squared * division_r4)
    u = distorted / camera.mean_focal / stretch
    k1, k2 = np.linalg.lstsq(np.stack([u**3, u**5], axis=1), u * (stretch - 1.0), rcond=None)[0]
    return float(k1), float(k2)


def corners_of(camera: Camera, *, margin: float = 1.0) -> FloatArray:
    """Pixels (4, 2) of the image corners of a camera, scaled by `margin` about the principal point."""
    w, h = camera.width - 1.0, camera.height - 1.0
    center = np.array([camera.cx, camera.cy])
    return np.asarray(center + margin * (np.array([[0.0, 0.0], [w, 0.0], [0.0, h], [w, h]]) - center))


def fitted(start: Camera, directions: FloatArray, pixels: FloatArray) -> Camera | None:
    """Least-squares fit of a camera of the model of `start` to `directions` (N, 2; on the plane z = 1) and their
    `pixels` (N, 2).

    A pinhole model becomes radtan, to represent the distortion. None when the fit fails.
    """
    from scipy.optimize import least_squares  # takes 0.05 s and 9 MB to import

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
    except (CameraError, ValueError):  # a step to an invalid camera, or to non-finite numbers
        return None


@lru_cache(maxsize=2)
def _undistortion_maps(
    correction: IntrinsicsCorrection, width: int, height: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Columns and rows (H, W), in the image, of the pixels of the undistorted image; all images of a run share them."""
    at = correction.distorted_pixels(_grid(width, height, 1)).astype(np.float32).reshape(height, width, 2)
    return np.ascontiguousarray(at[..., 0]), np.ascontiguousarray(at[..., 1])


def _grid(width: int, height: int, step: int) -> FloatArray:
    """Pixels (N, 2) on a regular grid over an image."""
    x, y = np.meshgrid(np.arange(0, width, step), np.arange(0, height, step))
    return np.stack([x, y], axis=-1).reshape(-1, 2).astype(np.float64)
