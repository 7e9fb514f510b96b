"""Choice of the image pairs for self-calibration, and of their inlier matches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from relocalizer.calibration_windows import Chosen
from relocalizer.camera import Camera
from relocalizer.epipolar_fit import DIVISION, DIVISION_R4, PairBatch, fundamental_distances, undistorted
from relocalizer.geometry import FloatArray
from relocalizer.lens_estimates import NotDetermined
from relocalizer.pair_fits import fundamental_matrix
from relocalizer.turning_pairs import spread, turn_spreads

_EPIPOLAR_PX = 2.0  # maximum distance of an inlier from its epipolar lines, pixels
_MIN_NOISE_PX = 0.2  # minimum standard deviation of a matched coordinate, pixels
_MIN_MATCHES, _MAX_MATCHES = 30, 120  # minimum and maximum number of matches of a pair
_MIN_INLIER_RATIO = 0.4  # minimum inlier ratio of a pair's epipolar geometry
_FLAT = 0.8  # inlier ratio of a homography above which a pair is degenerate: planar scene, or no parallax
# Maximum ratio of the distances from a rotation to those from an epipolar geometry for a pair to be a turn; both are
# known to a tenth.
_TURN_SPREAD = 1.2
MIN_PAIRS = 5  # minimum number of usable pairs
DISTORTION = [DIVISION, DIVISION_R4]  # distortion parameters


@dataclass(frozen=True, slots=True, eq=False)
class ViewPair:
    """Two images of one camera: their positions in the sequence, and pixels (N, 2) of the matched points."""

    first: int
    second: int
    pixels_first: FloatArray
    pixels_second: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class _Matches:
    """Inlier matches of a pair and its fundamental matrix, relative to the principal point.

    Attributes:
        x, y: (N, 2) distorted points, in units of half the image's diagonal.
        F: (3, 3) fundamental matrix of the undistorted points.
        undistorted_x, undistorted_y: (N, 2) undistorted points, pixels.
    """

    x: FloatArray
    y: FloatArray
    F: FloatArray
    undistorted_x: FloatArray
    undistorted_y: FloatArray

    @property
    def is_flat(self) -> bool:
        """Whether one homography explains most matches: a planar scene, or no parallax."""
        _, mask = cv2.findHomography(
            self.undistorted_x, self.undistorted_y, cv2.USAC_MAGSAC, _EPIPOLAR_PX, maxIters=1000, confidence=0.999
        )
        return mask is not None and bool(mask.sum() > _FLAT * len(self.x))

    def thinned(self, limit: int) -> _Matches:
        """A regular subset of at most `limit` matches."""
        every = slice(None, None, -(-len(self.x) // limit))
        return _Matches(self.x[every], self.y[every], self.F, self.undistorted_x[every], self.undistorted_y[every])


class CalibrationPairs:
    """Pairs of images of one camera.

    Attributes:
        unit: half the image's diagonal, pixels.
    """

    def __init__(self, pairs: Sequence[ViewPair], camera: Camera, grid: FloatArray) -> None:
        """Args:
        camera: a pinhole camera; its focal length is not used.
        grid: logarithms (G,) of plausible focal lengths, in units of half the diagonal, ascending.
        """
        self.unit = 0.5 * float(np.hypot(camera.width, camera.height))
        self._pairs = sorted(pairs, key=lambda pair: pair.first + pair.second)
        self._camera, self._grid = camera, grid

    def choose(self, lens: FloatArray, *, with_turns: bool) -> Chosen | NotDetermined:
        """The usable pairs, with their inlier matches under the distortion of a lens.

        Args:
            with_turns: whether pairs without parallax are used between which the camera only turns.
        """
        matched = self.matched(lens)
        if matched is None:
            return NotDetermined(_too_few(len(self._pairs), 0, 0))
        flat = matched.batch.turns
        used = np.flatnonzero(~flat | self._turning(matched, lens) if with_turns else ~flat)
        if len(used) < MIN_PAIRS:
            return NotDetermined(_too_few(len(self._pairs), len(used), int(flat.sum())))
        return matched.take(used)

    def matched(self, lens: FloatArray) -> Chosen | None:
        """All pairs with their inlier matches; those without parallax count as turns. None without any."""
        found = [(pair, matches) for pair in self._pairs if (matches := self._inliers(pair, lens)) is not None]
        if not found:
            return None
        batch = _padded([matches for _, matches in found], np.array([matches.is_flat for _, matches in found]))
        unit = np.diag([self.unit, self.unit, 1.0])
        F = np.array([unit @ matches.F @ unit for _, matches in found])
        distances = _distances(batch, F, lens)
        noise = max(1.4826 * float(np.median(np.abs(distances[batch.weight > 0]))), _MIN_NOISE_PX / self.unit)
        frames = np.array([[pair.first, pair.second] for pair, _ in found], dtype=np.int64)
        return Chosen(replace(batch, noise=noise), F, frames)

    def _inliers(self, pair: ViewPair, lens: FloatArray) -> _Matches | None:
        """The inliers of a pair's fundamental matrix; None when there are too few."""
        x, y = (
            self._camera.normalized(pixels) * (self._camera.mean_focal / self.unit)
            for pixels in (pair.pixels_first, pair.pixels_second)
        )
        if len(x) < _MIN_MATCHES:
            return None
        pixels_x, pixels_y = (np.asarray(undistorted(points, lens) * self.unit) for points in (x, y))
        found = fundamental_matrix(pixels_x, pixels_y, max_px=_EPIPOLAR_PX)
        if found is None:
            return None
        F, rows = found
        if len(rows) < max(_MIN_MATCHES, _MIN_INLIER_RATIO * len(x)):
            return None
        return _Matches(x[rows], y[rows], F, pixels_x[rows], pixels_y[rows])

    def _turning(self, matched: Chosen, lens: FloatArray) -> NDArray[np.bool_]:
        """Which pairs (P,) a turn of the camera alone explains, as well as any epipolar geometry does."""
        rows = np.flatnonzero(matched.batch.turns)
        result = np.zeros(len(matched.batch), dtype=bool)
        if len(rows):
            flat = matched.take(rows)
            free = spread(_distances(flat.batch, flat.F, lens), flat.batch.weight)
            most = _TURN_SPREAD * np.maximum(free, _MIN_NOISE_PX / self.unit)
            result[rows] = turn_spreads(flat.batch, lens, self._grid) < most
        return result

    def are_turns(self, lens: FloatArray) -> bool:
        """Whether enough pairs are turns of the camera by the distortion of a lens."""
        matched = self.matched(lens)
        return matched is not None and self._turning(matched, lens).sum() >= MIN_PAIRS


def _padded(matches: Sequence[_Matches], turns: NDArray[np.bool_]) -> PairBatch:
    """The points of pairs, at most `_MAX_MATCHES` each, as a padded batch; the caller sets its noise."""
    half = _MAX_MATCHES // 2
    x, y = np.zeros((2, len(matches), 2, half, 2))
    weight = np.zeros((len(matches), 2, half))
    for n, (found, turning) in enumerate(zip(matches, turns, strict=True)):
        few = found.thinned(half if turning else _MAX_MATCHES)
        for k, rows in enumerate([slice(None)] * 2 if turning else [slice(0, None, 2), slice(1, None, 2)]):
            count = len(few.x[rows])
            x[n, k, :count], y[n, k, :count], weight[n, k, :count] = few.x[rows], few.y[rows], 1.0
    shape = (len(matches), 2 * half)
    return PairBatch(x.reshape(*shape, 2), y.reshape(*shape, 2), weight.reshape(shape), 1.0, turns)


def _distances(batch: PairBatch, F: FloatArray, lens: FloatArray) -> FloatArray:
    """Distances (P, M) to fundamental matrices (P, 3, 3) of the points without the distortion of a lens."""
    return fundamental_distances(batch, F, np.where(np.isin(np.arange(len(lens)), DISTORTION), lens, 0.0))


def _too_few(given: int, usable: int, flat: int) -> str:
    if flat > given // 2:
        return f"{flat} of {given} pairs of images show no parallax, or one plane"
    return f"{usable} of {given} pairs of images share enough points (needs {MIN_PAIRS})"


def with_more(pairs: list[ViewPair], more: list[ViewPair]) -> list[ViewPair]:
    """Pairs, and those of others that are not among them."""
    known = {(pair.first, pair.second) for pair in pairs}
    return pairs + [pair for pair in more if (pair.first, pair.second) not in known]
