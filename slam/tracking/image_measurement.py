"""Measurements of an image and of its tracks, for the diagnosis of a run: about 0.2 ms per image of 640x480 pixels."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from relocalizer.camera import Camera
from relocalizer.geometry import FloatArray
from relocalizer.images import Image
from slam.map.frame_measurement import FrameMeasurement
from slam.map.tracks import Pixels, Tracks
from slam.tracking.keyframe_policy import common_pixels

Cells = NDArray[np.float32]

CELLS = (8, 6)  # grid, (columns, rows), whose cells are measured one by one
FLAT = 10.0  # sharpness of a cell below which it has no texture, gray levels squared
BLACK = 16.0  # mean gray level below which a cell is black
UNIFORM = 2.0  # standard deviation of the cells' means below which an image has no contrast, gray levels
CHANGED, CHANGED_LEVELS = 0.25, 8.0  # minimum change of a cell beyond the gain: relative, and in gray levels
REPETITION_SIZE = (128, 96)  # size (width, height) at which the autocorrelation is computed, pixels
REPETITION_EVERY = 15  # interval between two measurements of it, frames
ABRUPT = 0.08  # fraction of the image changed, or log of the gain, at which it is measured at once
REPEATING = 0.4  # autocorrelation above which it is measured in every frame
MIN_PERIOD = 3  # minimum shift at which the autocorrelation is looked at, pixels at that size
PEAKS = 12  # number of its peaks that are compared
ROTATION_EVERY = 5  # interval between two measurements of the rotation, frames
ROTATION_FRAMES = 10  # number of frames over which it is measured
ROTATION_TRACKS = 80  # maximum number of tracks that it is measured on
ROTATION_LEAST = 40  # minimum number of tracks for it
ROTATION_RAD = 0.003  # maximum residual of a track that a rotation explains, radians
MIN_TRACKS = 12  # minimum number of tracks for a measurement on them
SMALLEST = 32  # minimum side of an image that is measured, pixels


@dataclass(frozen=True, slots=True, eq=False)
class ImageLook:
    """One image as measured.

    Attributes:
        sharpness: variance of the Laplacian at half resolution; fineness: relative to that at quarter resolution.
        means, textures: (rows, columns), of each cell of a grid: mean gray level, and sharpness at quarter resolution.
    """

    sharpness: float
    fineness: float
    means: Cells
    textures: Cells


def look_at(gray: Image, sharpness: float) -> ImageLook | None:
    """Measure a gray image whose sharpness at half resolution is known; None if it is too small."""
    if min(gray.shape, default=0) < SMALLEST:
        return None
    half = cv2.resize(gray, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    quarter = cv2.resize(half, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    edges = cv2.Laplacian(quarter, cv2.CV_32F)
    coarse = float(edges.var())
    means = cv2.resize(quarter.astype(np.float32), CELLS, interpolation=cv2.INTER_AREA)
    textures = cv2.resize(cv2.multiply(edges, edges), CELLS, interpolation=cv2.INTER_AREA)
    return ImageLook(sharpness, sharpness / max(coarse, 1e-6), np.asarray(means), np.asarray(textures))


def gain_between(before: Cells, now: Cells) -> tuple[float, float]:
    """The common factor of the cells' means, and the fraction of the cells that it does not explain."""
    gain = float(np.median((now + 1.0) / (before + 1.0)))
    difference = np.abs(now - gain * before)
    return gain, float((difference > np.maximum(CHANGED_LEVELS, CHANGED * np.maximum(now, gain * before))).mean())


def correlation_of(before: Cells, now: Cells) -> float:
    """Correlation of the cells' means; 1 for two images without contrast."""
    a, b = (cells.ravel().astype(np.float64) - cells.mean() for cells in (before, now))
    contrast = max(float(a.std()), float(b.std()))
    return 1.0 if contrast < UNIFORM else float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-9))


def repetition_of(gray: Image) -> float:
    """Height of the second-highest peak of the autocorrelation above the dip before it: 1 for a periodic image.

    The image is high-pass filtered and padded, so that shading and the image border have no part in it; each shift is
    normalized by the energy of the two parts that overlap. Shifts beyond half of the image are not considered. A
    straight edge is like itself at any shift along it, without a dip between, and does not count.
    """
    small = cv2.resize(gray, REPETITION_SIZE, interpolation=cv2.INTER_AREA).astype(np.float32)
    small -= cv2.GaussianBlur(small, (0, 0), 4.0)
    width, height = REPETITION_SIZE
    deviation = float(small.std())
    if deviation < 1.0:
        return float(np.nan)
    padded = np.zeros((2 * height, 2 * width), np.float32)
    # Clipped, so that a few strong edges do not outweigh the rest.
    padded[:height, :width] = np.clip(small, -2.0 * deviation, 2.0 * deviation)
    spectrum = cv2.dft(padded)
    correlation = cv2.idft(cv2.mulSpectrums(spectrum, spectrum, 0, conjB=True))
    # The autocorrelation is symmetric, so that shifts down and to both sides are enough.
    right, left = (
        correlation[: height // 2, : width // 2],
        np.roll(correlation[: height // 2, ::-1], 1, axis=1)[:, : width // 2],
    )
    return max(_rise(part * _shift_weights() / correlation[0, 0]) for part in (right, left))


def rotation_residuals(before: FloatArray, now: FloatArray, camera: Camera) -> FloatArray:
    """Angles (N,), radians, by which the rotation that explains most of the points (N, 2) of two images misses each.

    Kabsch's rotation of the viewing rays, reweighted with a Geman-McClure kernel whose width shrinks to the noise.
    """
    a, b = (_rays(pixels, camera) for pixels in (before, now))
    weights = np.ones(len(a))
    residuals = np.zeros(len(a))
    for width in (0.06, 0.02, 0.01, ROTATION_RAD, ROTATION_RAD, ROTATION_RAD):
        left, _, right = np.linalg.svd((a * weights[:, None]).T @ b)
        flip = np.array([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
        residuals = np.linalg.norm(a - b @ ((left * flip) @ right).T, axis=1)
        weights = 1.0 / (1.0 + (residuals / width) ** 2) ** 2
    return residuals


def _rays(pixels: FloatArray, camera: Camera) -> FloatArray:
    """Unit viewing rays (N, 3) of pixels (N, 2)."""
    rays = np.column_stack([camera.normalized(pixels), np.ones(len(pixels))])
    return np.asarray(rays / np.linalg.norm(rays, axis=1, keepdims=True))


def _rise(correlation: Cells) -> float:
    """The largest height of a peak (down, sideways) above the lowest value on the line to it from no shift."""
    peaks = (correlation == cv2.dilate(correlation, np.ones((5, 5), np.uint8))) & (correlation > 0)
    y, x = np.nonzero(peaks)
    highest = np.argsort(-correlation[y, x])[:PEAKS]
    y, x = y[highest], x[highest]
    steps = np.linspace(0.2, 0.8, 13)[:, None]
    between = correlation[np.rint(steps * y).astype(int), np.rint(steps * x).astype(int)]
    dips = np.where(_shift_weights()[np.rint(steps * y).astype(int), np.rint(steps * x).astype(int)] > 0, between, 1.0)
    rises = correlation[y, x] - np.clip(dips.min(axis=0, initial=1.0), 0.0, None)
    return float(rises.max(initial=0.0))


@cache
def _shift_weights() -> Cells:
    """Weight of each shift (down, sideways): the inverse of the overlap of the two parts; 0 for small shifts."""
    width, height = REPETITION_SIZE
    y, x = np.mgrid[: height // 2, : width // 2]
    overlap = (1.0 - y / height) * (1.0 - x / width)
    return np.where(np.hypot(x, y) < MIN_PERIOD, 0.0, 1.0 / overlap).astype(np.float32)


class FrameMeter:
    """Measures frame after frame; `measurement` is that of the newest one.

    Attributes:
        look: of the newest image; None if that is too small.
    """

    def __init__(self) -> None:
        self.look: ImageLook | None = None
        self._values: dict[str, float] = {}
        self._count = 0
        self._repetition = 0.0  # as last measured
        self._recent: deque[Tracks] = deque(maxlen=ROTATION_FRAMES)
        self._ids = np.zeros(0, np.int64)  # of the tracks, ascending
        self._since = np.zeros(0, np.int64)  # number of the image in which each of them was first seen

    @property
    def measurement(self) -> FrameMeasurement:
        """What was measured in the newest frame, with four significant digits."""
        return FrameMeasurement(**{name: float(f"{value:.4g}") for name, value in self._values.items()})

    def see(self, gray: Image, sharpness: float) -> None:
        """Measure the next image, whose sharpness at half resolution is known."""
        before, self.look, self._values = self.look, look_at(gray, sharpness), {}
        self._count += 1
        look = self.look
        if look is None:
            return
        self._values = {
            "brightness": float(look.means.mean()),
            "sharpness": look.sharpness,
            "fineness": look.fineness,
            "flat": float((look.textures < FLAT).mean()),
            "dark": float((look.means < BLACK).mean()),
        }
        if before is not None:
            self._values["gain"], self._values["changed"] = gain_between(before.means, look.means)
            self._values["correlation"] = correlation_of(before.means, look.means)
        if self._is_repetition_due():
            self._values["repetition"] = self._repetition = repetition_of(gray)

    def _is_repetition_due(self) -> bool:
        """At intervals, after an abrupt change of the image, and in every frame while it repeats itself."""
        values = self._values
        abrupt = values.get("changed", 0.0) > ABRUPT or abs(np.log(values.get("gain", 1.0))) > ABRUPT
        return self._count % REPETITION_EVERY == 1 or abrupt or self._repetition > REPEATING

    def followed(self, before: Pixels, predicted: Pixels, now: Pixels, found: NDArray[np.bool_]) -> None:
        """Measure the motion of tracks: pixels (N, 2) in the last image, predicted and found, and whether found."""
        count = len(before)
        if count < MIN_TRACKS:
            return
        self._values["followed"] = float(found.mean())
        if found.sum() >= MIN_TRACKS:
            self._values["moved_px"] = _median_distance(now[found], before[found])
            self._values["surprise_px"] = _median_distance(now[found], predicted[found])

    def tracked(self, tracks: Tracks, camera: Camera) -> None:
        """Measure how far a pure rotation explains the motion of the tracks over the last frames."""
        if self._count % ROTATION_EVERY == 0 and len(self._recent) == ROTATION_FRAMES:
            before, now = common_pixels(self._recent[0], tracks)
            if len(now) >= ROTATION_LEAST:
                self._measure_rotation(before, now, camera)
        self._recent.append(tracks)
        ids = np.unique(tracks.ids)
        self._ids, self._since = ids, self._count - self.ages_of(ids)

    def ages_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of images (N,) that each track has been followed for; 0 for a new one."""
        if not len(self._ids):
            return np.zeros(len(ids), np.int64)
        at = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        return np.where(self._ids[at] == ids, self._count - self._since[at], 0)

    def _measure_rotation(self, before: Pixels, now: Pixels, camera: Camera) -> None:
        step = -(-len(now) // ROTATION_TRACKS)
        first, last = before[::step].astype(np.float64), now[::step].astype(np.float64)
        self._values["turned_px"] = _median_distance(last, first)
        self._values["rotation_only"] = float((rotation_residuals(first, last, camera) < ROTATION_RAD).mean())


def _median_distance(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    step = a - b
    return float(np.sqrt(np.median((step * step).sum(axis=1))))
