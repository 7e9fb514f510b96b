"""What matched points of image pairs say of the camera that took them, and how far that is to be believed.

The epipolar geometry of two views of one camera fits no essential matrix but under the right focal length and radial
distortion (Hartley and Zisserman, "Multiple View Geometry", chapter 19; over many pairs: Sweeney et al., "Optimizing
the viewing graph for structure-from-motion", ICCV 2015). Nothing but matched pixels is used, no map and no pose, so
that what comes out is evidence of its own.

Errors of matches are correlated: within a pair, and between pairs of the same images. So the standard deviation is that
of a jackknife over blocks of time (Kuensch, "The jackknife and the bootstrap for general stationary observations",
1989), never less than the formal one. To it is added what the models of the camera disagree by: with and without an
offset of the principal point, with and without distortion.

A camera that hardly turns, or sees one plane, says little. Then the standard deviation is large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import cv2
import numpy as np

from relocalizer.calibration_windows import MISFIT, Chosen, FocalChange, find_change, misfit_of, sigmas_of
from relocalizer.camera import Camera
from relocalizer.epipolar_fit import (
    DIVISION,
    DIVISION_R4,
    LOG_FOCAL,
    OFFSET_X,
    OFFSET_Y,
    EpipolarFit,
    Influence,
    LensPull,
    PairBatch,
    best_of,
    fit_poses,
    fundamental_distances,
    influence,
    poses_of_fundamental,
    refine_lens,
    refine_poses,
    undistorted,
)
from relocalizer.geometry import FloatArray

FIELD_DEG = (20.0, 170.0)  # of view across the longer side: what lenses have
KNOWN_SIGMA = 0.03  # of a focal length: a larger one bends a map visibly
PRIOR_SIGMA = 0.3  # of the logarithm of an assumed focal length: 45 to 78 degrees for 60
_MODEL_SIGMA = 0.01  # what even a good fit does not see: rolling shutter, a center of distortion of its own
_SIGNIFICANT = 3.0  # standard deviations from none, for a distortion to be taken for one
# From both on a model without distortion has no say: a rolling shutter looks like a little of it.
_CLEAR_SIGMAS, _CLEAR_DIVISION = 6.0, 0.05
_PULL = np.array([1.0, 0.15, 0.1, 0.03, 0.03])  # standard deviations of the lens numbers, the unit half the diagonal
_GRID = 15  # focal lengths tried, over `FIELD_DEG`
_EPIPOLAR_PX = 2.0
_LEAST_NOISE_PX = 0.2
_LEAST_MATCHES, _MOST_MATCHES = 30, 120  # of a pair
_LEAST_SHARE = 0.4  # of a pair's matches that must agree with its epipolar geometry
_FLAT = 0.8  # one homography explains this share of a pair's matches: a plane, or no parallax
_LEAST_PAIRS = 5
_RIVAL = 8.0  # by this much a second minimum must be worse, where pairs tell as much as their scatter says
_MINIMA, _NEAR = 3, 1.3  # minima that are looked at, and times the least loss up to which they are fitted with care
_USUAL = [LOG_FOCAL, DIVISION, OFFSET_X, OFFSET_Y]
_BENDING = [DIVISION, DIVISION_R4]
_STRONG = [LOG_FOCAL, DIVISION, OFFSET_X, OFFSET_Y, DIVISION_R4]  # of a lens that distorts much


@dataclass(frozen=True, slots=True, eq=False)
class ViewPair:
    """Two images of one camera: where they stand in the footage, and pixels (N, 2) of points matched between them."""

    first: int
    second: int
    pixels_first: FloatArray
    pixels_second: FloatArray


@dataclass(frozen=True, slots=True)
class Distortion:
    """Radial distortion of the division model about the principal point, the unit half the image's diagonal.

    undistorted = distorted / (1 + division r^2 + division_r4 r^4) with r = |distorted|, so -0.1 moves the corners out
    by a tenth. `sigma` is that of `division`.
    """

    division: float = 0.0
    sigma: float = float("inf")
    division_r4: float = 0.0

    @property
    def is_significant(self) -> bool:
        """Whether there is some."""
        return abs(self.division) > _SIGNIFICANT * self.sigma

    @property
    def is_clear(self) -> bool:
        """Whether it can be nothing else."""
        return abs(self.division) > max(_CLEAR_DIVISION, _CLEAR_SIGMAS * self.sigma)


@dataclass(frozen=True, slots=True)
class FocalEstimate:
    """A focal length, mean of x and y, pixels; `sigma` is that of its logarithm, a share.

    Attributes:
        distortion: estimated with it.
        pairs: how many it rests on.
        flaw: why it is to be left alone, whatever sigma; empty when nothing is wrong with it.
        change: it is not one focal length.
    """

    focal_px: float
    sigma: float
    distortion: Distortion
    pairs: int
    flaw: str = ""
    change: FocalChange | None = None

    @property
    def is_known(self) -> bool:
        return not self.doubt

    @property
    def doubt(self) -> str:
        """Why it is not known; empty when it is."""
        if self.flaw or self.sigma <= KNOWN_SIGMA:
            return self.flaw
        return f"its standard deviation is {100 * self.sigma:.1f} %, {100 * KNOWN_SIGMA:.0f} % needed"


@dataclass(frozen=True, slots=True)
class NotDetermined:
    """Nothing could be estimated."""

    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class _Matches:
    """Matches of a pair that agree with a fundamental matrix, in pixels from the principal point.

    Attributes:
        x, y: (N, 2) as they were seen, the unit half the image's diagonal.
        F: (3, 3) of the undistorted pixels `straight_x`, `straight_y` (N, 2).
    """

    x: FloatArray
    y: FloatArray
    F: FloatArray
    straight_x: FloatArray
    straight_y: FloatArray

    @property
    def is_flat(self) -> bool:
        """Whether one homography explains most of them: one plane, or no parallax."""
        _, mask = cv2.findHomography(
            self.straight_x, self.straight_y, cv2.USAC_MAGSAC, _EPIPOLAR_PX, maxIters=1000, confidence=0.999
        )
        return mask is not None and bool(mask.sum() > _FLAT * len(self.x))

    def thinned(self, most: int) -> _Matches:
        """At most so many of them, evenly over all."""
        every = slice(None, None, -(-len(self.x) // most))
        return _Matches(self.x[every], self.y[every], self.F, self.straight_x[every], self.straight_y[every])


class SelfCalibration:
    """Estimates from the pairs of one camera; they are looked through once."""

    def __init__(self, pairs: Sequence[ViewPair], camera: Camera) -> None:
        """Args:
        camera: a pinhole camera whose principal point and ratio of focal lengths are believed; its focal length is
            where `check` and `distortion` begin.
        """
        self._pairs = sorted(pairs, key=lambda pair: pair.first + pair.second)
        self._camera = camera
        self._unit = 0.5 * float(np.hypot(camera.width, camera.height))
        self._pull = LensPull(np.array([self._log_focal(camera.mean_focal), 0.0, 0.0, 0.0, 0.0]), _PULL)

    def estimate(self) -> FocalEstimate | NotDetermined:
        """The focal length, looked for among all that lenses have."""
        chosen = self._choose(self._pull.mean)
        if isinstance(chosen, NotDetermined):
            return chosen
        fits = self._minima(chosen)
        best = fits[0]
        again = self._choose(best.lens)
        if isinstance(again, NotDetermined):
            return again
        fit = self._refined(again, fit_poses(again.batch, again.F, best.lens))
        return self._judged(again, fit, rivals=[(f, float(f.loss.sum() - best.loss.sum())) for f in fits[1:]])

    def check(self) -> FocalEstimate | NotDetermined:
        """The focal length, looked for near that of the camera."""
        chosen = self._choose(self._pull.mean)
        if isinstance(chosen, NotDetermined):
            return chosen
        start = fit_poses(chosen.batch, chosen.F, self._pull.mean)
        return self._judged(chosen, self._refined(chosen, start), rivals=[])

    def distortion(self) -> Distortion:
        """What the camera leaves, if its focal length and principal point are right."""
        chosen = self._choose(self._pull.mean)
        if isinstance(chosen, NotDetermined):
            return Distortion()
        free = [DIVISION]
        fit = fit_poses(chosen.batch, chosen.F, self._pull.mean)
        fit = refine_lens(chosen.batch, fit, free, self._pull, iterations=20)
        [sigma] = sigmas_of(influence(chosen.batch, fit, free, self._pull))
        return Distortion(float(fit.lens[DIVISION]), float(sigma))

    # --- the pairs -------------------------------------------------------------------------------------

    def _choose(self, lens: FloatArray) -> Chosen | NotDetermined:
        """The pairs that say something, their matches chosen under the distortion of a lens."""
        found, flat = [], 0
        for pair in self._pairs:
            matches = self._agreeing(pair, lens)
            if matches is not None and matches.is_flat:
                flat += 1
            elif matches is not None:
                found.append((pair, matches.thinned(_MOST_MATCHES)))
        if len(found) < _LEAST_PAIRS:
            return NotDetermined(_too_few(len(self._pairs), len(found), flat))
        batch = _padded([matches for _, matches in found])
        unit = np.diag([self._unit, self._unit, 1.0])
        F = np.array([unit @ matches.F @ unit for _, matches in found])
        distances = fundamental_distances(batch, F, np.where(np.isin(np.arange(len(lens)), _BENDING), lens, 0.0))
        noise = max(1.4826 * float(np.median(np.abs(distances[batch.weight > 0]))), _LEAST_NOISE_PX / self._unit)
        frames = np.array([[pair.first, pair.second] for pair, _ in found], dtype=np.int64)
        return Chosen(replace(batch, noise=noise), F, frames)

    def _agreeing(self, pair: ViewPair, lens: FloatArray) -> _Matches | None:
        """The matches of a pair that agree with one epipolar geometry; None when they are too few."""
        x, y = (
            self._camera.normalized(pixels) * (self._camera.mean_focal / self._unit)
            for pixels in (pair.pixels_first, pair.pixels_second)
        )
        if len(x) < _LEAST_MATCHES:
            return None
        straight_x, straight_y = (np.asarray(undistorted(points, lens) * self._unit) for points in (x, y))
        F, mask = cv2.findFundamentalMat(straight_x, straight_y, cv2.USAC_MAGSAC, _EPIPOLAR_PX, 0.999, 2000)
        if F is None or F.shape != (3, 3):
            return None
        rows = np.flatnonzero(mask.ravel())
        if len(rows) < max(_LEAST_MATCHES, _LEAST_SHARE * len(x)):
            return None
        return _Matches(x[rows], y[rows], np.asarray(F, dtype=np.float64), straight_x[rows], straight_y[rows])

    # --- the search ------------------------------------------------------------------------------------

    def _log_focal(self, focal_px: float) -> float:
        return float(np.log(focal_px / self._unit))

    def _minima(self, chosen: Chosen) -> list[EpipolarFit]:
        """The lens at each minimum of the loss over the focal lengths, the best first."""
        fits = self._profile(chosen)
        loss = np.array([self._loss(fit) for fit in fits])
        before, after = np.append(np.inf, loss[:-1]), np.append(loss[1:], np.inf)
        minima = sorted(np.flatnonzero((loss <= before) & (loss <= after)).tolist(), key=lambda n: float(loss[n]))
        refined = [refine_lens(chosen.batch, fits[n], _USUAL, self._pull, iterations=10) for n in minima[:_MINIMA]]
        refined.sort(key=self._loss)
        near = [self._loss(fit) < _NEAR * self._loss(refined[0]) for fit in refined]
        return sorted(
            [self._refined(chosen, f) if n else f for f, n in zip(refined, near, strict=True)], key=self._loss
        )

    def _refined(self, chosen: Chosen, fit: EpipolarFit) -> EpipolarFit:
        """All lens numbers fitted; poses caught in a minimum of their own are looked for anew on the way."""
        for _ in range(2):
            fit = best_of(fit, fit_poses(chosen.batch, chosen.F, fit.lens))
            fit = refine_lens(chosen.batch, fit, _USUAL, self._pull, iterations=15)
        return fit

    def _loss(self, fit: EpipolarFit) -> float:
        return float(fit.loss.sum()) + self._pull.loss(fit.lens, _USUAL)

    def _profile(self, chosen: Chosen) -> list[EpipolarFit]:
        """Poses and distortion fitted at each focal length of a grid, each begun from its neighbor's."""
        side = max(self._camera.width, self._camera.height)
        longest, shortest = (0.5 * side / np.tan(np.radians(0.5 * field)) for field in FIELD_DEG)
        grid = np.linspace(self._log_focal(shortest), self._log_focal(longest), _GRID)
        middle = int(np.argmin(np.abs(grid - self._pull.mean[LOG_FOCAL])))
        fits: dict[int, EpipolarFit] = {}
        start = fit_poses(chosen.batch, chosen.F, np.array([grid[middle], 0.0, 0.0, 0.0, 0.0]))
        fits[middle] = refine_lens(chosen.batch, start, [DIVISION], self._pull, iterations=3)
        for way in (range(middle, _GRID), range(middle, -1, -1)):
            for n, following in pairwise(way):
                fits[following] = self._carried(chosen, fits[n], float(grid[following]))
        return [fits[n] for n in range(_GRID)]

    def _carried(self, chosen: Chosen, fit: EpipolarFit, log_focal: float) -> EpipolarFit:
        """A fit taken over to another focal length."""
        lens = fit.lens.copy()
        lens[LOG_FOCAL] = log_focal
        near = refine_poses(chosen.batch, replace(fit, lens=lens), iterations=3)
        other = refine_poses(chosen.batch, poses_of_fundamental(chosen.F, lens), iterations=3)
        return refine_lens(chosen.batch, best_of(near, other), [DIVISION], self._pull, iterations=2)

    # --- how far it is to be believed ------------------------------------------------------------------

    def _judged(
        self, chosen: Chosen, fit: EpipolarFit, *, rivals: Sequence[tuple[EpipolarFit, float]]
    ) -> FocalEstimate:
        """The estimate at a fit of all lens numbers."""
        logs = [float(fit.lens[LOG_FOCAL])]
        free, seen, distortion = self._distortion_of(chosen, fit, _USUAL)
        if distortion.is_clear:
            fit = refine_lens(chosen.batch, fit, _STRONG, self._pull, iterations=20)
            free, seen, distortion = self._distortion_of(chosen, fit, _STRONG)
            logs.append(float(fit.lens[LOG_FOCAL]))
        sigmas = sigmas_of(seen)
        for simpler, held in self._simpler_models(distortion, free):
            lens = fit.lens.copy()
            lens[held] = 0.0
            start = refine_poses(chosen.batch, replace(fit, lens=lens), iterations=3)
            other = refine_lens(chosen.batch, start, simpler, self._pull, iterations=20)
            logs.append(float(other.lens[LOG_FOCAL]))
        spread = 0.5 * (max(logs) - min(logs))
        sigma = float(np.sqrt(sigmas[LOG_FOCAL] ** 2 + spread**2 + _MODEL_SIGMA**2))
        focal = float(np.exp(0.5 * (max(logs) + min(logs)))) * self._unit
        formal = float(np.sqrt(np.linalg.inv(seen.total)[LOG_FOCAL, LOG_FOCAL]))
        scatter = max(1.0, float(sigmas[LOG_FOCAL]) / formal) ** 2
        return FocalEstimate(
            focal_px=focal,
            sigma=sigma,
            distortion=distortion,
            pairs=len(chosen.batch),
            flaw=self._flaw(chosen, fit, focal, [f for f, worse in rivals if worse < _RIVAL * scatter]),
            change=find_change(chosen, self._constant_part(fit, distortion), self._pull),
        )

    def _distortion_of(
        self, chosen: Chosen, fit: EpipolarFit, free: list[int]
    ) -> tuple[list[int], Influence, Distortion]:
        """The free lens numbers of a fit, what says them, and the distortion among them."""
        seen = influence(chosen.batch, fit, free, self._pull)
        sigma = float(sigmas_of(seen)[free.index(DIVISION)])
        return free, seen, Distortion(float(fit.lens[DIVISION]), sigma, float(fit.lens[DIVISION_R4]))

    def _constant_part(self, fit: EpipolarFit, distortion: Distortion) -> FloatArray:
        """The lens without what a changing focal length would have bent: a clear distortion alone is believed."""
        lens = self._pull.mean.copy()
        lens[LOG_FOCAL] = fit.lens[LOG_FOCAL]
        if distortion.is_clear:
            lens[_BENDING] = fit.lens[_BENDING]
        return lens

    @staticmethod
    def _simpler_models(distortion: Distortion, free: list[int]) -> list[tuple[list[int], list[int]]]:
        """Other models of the lens: which numbers are free in them, and which are none."""
        offset = [OFFSET_X, OFFSET_Y]
        models = [([k for k in free if k not in offset], offset)]
        if not distortion.is_clear:
            models.append(([LOG_FOCAL, *offset], _BENDING))
        return models

    def _flaw(self, chosen: Chosen, fit: EpipolarFit, focal: float, rivals: Sequence[EpipolarFit]) -> str:
        """Why the focal length is to be left alone; empty when nothing is wrong with it."""
        side = max(self._camera.width, self._camera.height)
        field = float(np.degrees(2.0 * np.arctan(0.5 * side / focal)))
        others = [
            float(np.exp(f.lens[LOG_FOCAL])) * self._unit
            for f in rivals
            if abs(f.lens[LOG_FOCAL] - fit.lens[LOG_FOCAL]) > KNOWN_SIGMA
        ]
        if not FIELD_DEG[0] < field < FIELD_DEG[1]:
            return f"the best one means a field of view of {field:.0f} degrees"
        if misfit_of(chosen.batch, fit) > MISFIT:
            return "no focal length explains how the matched points move"
        if others:
            return f"{others[0] / focal:.2f} times as long a focal length explains the images as well"
        return ""


def _padded(matches: Sequence[_Matches]) -> PairBatch:
    """Points of pairs as a batch; its noise is set by the caller."""
    counts = np.array([len(m.x) for m in matches])
    most = int(counts.max())
    x, y = (
        np.array([np.pad(p, ((0, most - len(p)), (0, 0))) for p in points])
        for points in ([m.x for m in matches], [m.y for m in matches])
    )
    return PairBatch(x, y, (np.arange(most) < counts[:, None]).astype(np.float64), 1.0)


def _too_few(given: int, usable: int, flat: int) -> str:
    if flat > given // 2:
        return f"{flat} of {given} pairs of images show no parallax, or one plane"
    return f"{usable} of {given} pairs of images share enough points (needs {_LEAST_PAIRS})"
