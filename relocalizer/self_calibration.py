"""Self-calibration: focal length and radial distortion from matched points of image pairs, with uncertainty.

The epipolar geometry of two views of one camera is an essential matrix only for the correct focal length and radial
distortion (Hartley and Zisserman, "Multiple View Geometry", chapter 19; over many pairs: Sweeney et al., "Optimizing
the viewing graph for structure-from-motion", ICCV 2015). Only matched pixels are used, neither map nor poses, so the
result is independent evidence.

Errors of matches are correlated, within a pair and between pairs of the same images. Therefore the standard deviation
is that of a jackknife over blocks of time (Kuensch, "The jackknife and the bootstrap for general stationary
observations", 1989), at least the formal one. The spread of the focal length over different camera models is added:
with and without an offset of the principal point, with and without distortion.

A camera that hardly rotates, or a planar scene, constrains the intrinsics weakly; the standard deviation is then large.
One that only turns has no epipolar geometry, but determines its intrinsics best of all (`turning_pairs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from relocalizer.calibration_windows import (
    MISFIT,
    OBSERVABLE_SIGMA,
    Chosen,
    FocalStretch,
    Window,
    agree,
    disagree,
    is_worse,
    largest_change,
    misfit_of,
    sigmas_of,
    stretches_of,
    windows_of,
)
from relocalizer.camera import Camera
from relocalizer.epipolar_fit import (
    DIVISION,
    DIVISION_R4,
    LOG_FOCAL,
    LOG_STRETCH,
    OFFSET_X,
    OFFSET_Y,
    EpipolarFit,
    Influence,
    LensPrior,
    PairBatch,
    best_of,
    fit_poses,
    fundamental_distances,
    fundamental_matrix,
    influence,
    poses_of_fundamental,
    refine_lens,
    refine_poses,
    undistorted,
)
from relocalizer.geometry import FloatArray
from relocalizer.lens_estimates import (
    KNOWN_SIGMA,
    AspectEstimate,
    Distortion,
    FocalEstimate,
    NotDetermined,
    PrincipalEstimate,
)
from relocalizer.turning_pairs import spread, turn_spreads

FIELD_DEG = (20.0, 170.0)  # range of plausible angles of view along the longer side, degrees
PRIOR_SIGMA = 0.3  # standard deviation of the logarithm of an assumed focal length: 45 to 78 degrees for 60
_MODEL_SIGMA = 0.01  # relative error of the camera model itself: rolling shutter, separate center of distortion
# Prior standard deviations of the six lens parameters, in units of half the image's diagonal.
_PRIOR_SIGMAS = np.array([1.0, 0.15, 0.1, 0.03, 0.03, 0.3])
_SEARCHED = 3  # the initial search uses every n-th match of a pair
_GRID = 15  # number of focal lengths in the initial search over `FIELD_DEG`
_EPIPOLAR_PX = 2.0  # maximum distance of an inlier from its epipolar lines, pixels
_MIN_NOISE_PX = 0.2  # minimum standard deviation of a matched coordinate, pixels
_MIN_MATCHES, _MAX_MATCHES = 30, 120  # minimum and maximum number of matches of a pair
_MIN_INLIER_RATIO = 0.4  # minimum inlier ratio of a pair's epipolar geometry
_FLAT = 0.8  # inlier ratio of a homography above which a pair is degenerate: planar scene, or no parallax
# Maximum ratio of the distances from a rotation to those from an epipolar geometry for a pair to be a turn; both are
# known to a tenth.
_TURN_SPREAD = 1.2
_BENT = 0.02  # minimum distortion for which turns are searched again
_MIN_PAIRS = 5  # minimum number of usable pairs
_RIVAL = 8.0  # minimum loss difference of a second minimum to be excluded, for residuals that match their sigmas
_NEAR_RIVALS = 0.3  # maximum range of the log focal lengths of rival minima for the middle to be an estimate
_NEAR_RIVAL = 10.0 * _RIVAL  # minimum loss difference in the initial search of a minimum to be excluded by that alone
# Maximum number of minima that are refined, and maximum ratio to the smallest loss for a full refinement.
_MINIMA, _NEAR = 3, 1.3
_UNKNOWN_SIGMA = 0.15  # minimum standard deviation of a focal length that the pairs do not determine together
_USUAL = [LOG_FOCAL, DIVISION, OFFSET_X, OFFSET_Y]  # free lens parameters by default
_DISTORTION = [DIVISION, DIVISION_R4]  # distortion parameters
_STRONG = [LOG_FOCAL, DIVISION, OFFSET_X, OFFSET_Y, DIVISION_R4]  # free lens parameters with clear distortion


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


class SelfCalibration:
    """Estimates the intrinsics of one camera from its image pairs."""

    def __init__(self, pairs: Sequence[ViewPair], camera: Camera) -> None:
        """Args:
        camera: a pinhole camera whose principal point and ratio of focal lengths are assumed correct; its focal length
            is the initial value of `check` and `distortion`.
        """
        self._pairs = sorted(pairs, key=lambda pair: pair.first + pair.second)
        self._camera = camera
        self._unit = 0.5 * float(np.hypot(camera.width, camera.height))
        self._prior = LensPrior(np.array([self._log_focal(camera.mean_focal), 0.0, 0.0, 0.0, 0.0, 0.0]), _PRIOR_SIGMAS)

    def estimate(self) -> FocalEstimate | NotDetermined:
        """The focal length, searched over all plausible angles of view.

        Pairs between which the camera only turns are used if the others do not determine it better without them: a
        camera that moves along a wall can look as if it turned.
        """
        found, fits = self._searched(self._prior.mean, with_turns=False)
        lens = self._lens_of_turns(fits[0].lens if fits else None)
        if lens is None:
            return found
        return min(self._searched(lens, with_turns=True)[0], found, key=_uncertainty)

    def _searched(
        self, lens: FloatArray, *, with_turns: bool
    ) -> tuple[FocalEstimate | NotDetermined, list[EpipolarFit]]:
        """The estimate, and the fits at the minima of the search."""
        chosen = self._choose(lens, with_turns=with_turns)
        if isinstance(chosen, NotDetermined):
            return chosen, []
        fits = self._minima(chosen.thinned(_SEARCHED))
        best = fits[0]
        again = self._choose(best.lens, with_turns=with_turns)
        if isinstance(again, NotDetermined):
            return again, fits
        near = [f for f in fits[1:] if _SEARCHED * float(f.loss.sum() - best.loss.sum()) < _NEAR_RIVAL]
        refined = [self._refined(again, fit_poses(again.batch, again.F, f.lens)) for f in [best, *near]]
        fit = min(refined, key=self._loss)
        return self._judged(again, fit, rivals=[f for f in refined if f is not fit]), fits

    def check(self) -> FocalEstimate | NotDetermined:
        """The focal length, refined from that of the camera."""
        chosen = self._chosen
        if isinstance(chosen, NotDetermined):
            return chosen
        start = fit_poses(chosen.batch, chosen.F, self._prior.mean)
        return self._judged(chosen, self._refined(chosen, start), rivals=[])

    def distortion(self) -> Distortion:
        """The residual distortion, for a correct focal length and principal point."""
        chosen = self._chosen
        if isinstance(chosen, NotDetermined):
            return Distortion()
        free = [DIVISION]
        fit = fit_poses(chosen.batch, chosen.F, self._prior.mean)
        fit = refine_lens(chosen.batch, fit, free, self._prior, iterations=20)
        [sigma] = sigmas_of(influence(chosen.batch, fit, free, self._prior))
        return Distortion(float(fit.lens[DIVISION]), float(sigma))

    def aspect(self) -> AspectEstimate:
        """The ratio of the focal lengths in x and y; of infinite sigma where no lens explains the matched points."""
        chosen = self._chosen
        if isinstance(chosen, NotDetermined):
            return AspectEstimate()
        free = [*_USUAL, LOG_STRETCH]
        fit = fit_poses(chosen.batch, chosen.F, self._prior.mean)
        for _ in range(2):  # poses in a local minimum are estimated again in between
            fit = refine_lens(chosen.batch, fit, free, self._prior, iterations=20)
            fit = best_of(fit, fit_poses(chosen.batch, chosen.F, fit.lens))
        fit = refine_lens(chosen.batch, fit, free, self._prior, iterations=20)
        if misfit_of(chosen.batch, fit) > MISFIT:
            return AspectEstimate()
        sigma = sigmas_of(influence(chosen.batch, fit, free, self._prior))[-1]
        return AspectEstimate(float(np.exp(fit.lens[LOG_STRETCH])), float(np.hypot(sigma, _MODEL_SIGMA)))

    # --- the pairs -------------------------------------------------------------------------------------

    @cached_property
    def _chosen(self) -> Chosen | NotDetermined:
        """The usable pairs with parallax, without distortion."""
        return self._choose(self._prior.mean, with_turns=False)

    def _choose(self, lens: FloatArray, *, with_turns: bool) -> Chosen | NotDetermined:
        """The usable pairs, with their inlier matches under the distortion of a lens.

        Args:
            with_turns: whether pairs without parallax are used between which the camera only turns.
        """
        matched = self._matched(lens)
        if matched is None:
            return NotDetermined(_too_few(len(self._pairs), 0, 0))
        flat = matched.batch.turns
        used = np.flatnonzero(~flat | self._turning(matched, lens) if with_turns else ~flat)
        if len(used) < _MIN_PAIRS:
            return NotDetermined(_too_few(len(self._pairs), len(used), int(flat.sum())))
        return matched.take(used)

    def _matched(self, lens: FloatArray) -> Chosen | None:
        """All pairs with their inlier matches; those without parallax count as turns. None without any."""
        found = [(pair, matches) for pair in self._pairs if (matches := self._inliers(pair, lens)) is not None]
        if not found:
            return None
        batch = _padded([matches for _, matches in found], np.array([matches.is_flat for _, matches in found]))
        unit = np.diag([self._unit, self._unit, 1.0])
        F = np.array([unit @ matches.F @ unit for _, matches in found])
        distances = _distances(batch, F, lens)
        noise = max(1.4826 * float(np.median(np.abs(distances[batch.weight > 0]))), _MIN_NOISE_PX / self._unit)
        frames = np.array([[pair.first, pair.second] for pair, _ in found], dtype=np.int64)
        return Chosen(replace(batch, noise=noise), F, frames)

    def _inliers(self, pair: ViewPair, lens: FloatArray) -> _Matches | None:
        """The inliers of a pair's fundamental matrix; None when there are too few."""
        x, y = (
            self._camera.normalized(pixels) * (self._camera.mean_focal / self._unit)
            for pixels in (pair.pixels_first, pair.pixels_second)
        )
        if len(x) < _MIN_MATCHES:
            return None
        pixels_x, pixels_y = (np.asarray(undistorted(points, lens) * self._unit) for points in (x, y))
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
            most = _TURN_SPREAD * np.maximum(free, _MIN_NOISE_PX / self._unit)
            result[rows] = turn_spreads(flat.batch, lens, self._grid) < most
        return result

    def _lens_of_turns(self, found: FloatArray | None) -> FloatArray | None:
        """A lens (6,) by whose distortion enough pairs are turns of the camera; None if they are not.

        Turns of a distorted camera are neither turns without its distortion, nor quite without parallax.

        Args:
            found: the lens of the pairs with parallax; None if they are too few.
        """
        if self._are_turns(self._prior.mean):
            return self._prior.mean
        if found is None:
            matched = self._matched(self._prior.mean)
            if matched is None or matched.batch.turns.sum() < _MIN_PAIRS:
                return None
            flat = matched.take(np.flatnonzero(matched.batch.turns))
            found = self._minima(flat.thinned(_SEARCHED))[0].lens
        return found if abs(found[DIVISION]) > _BENT and self._are_turns(found) else None

    def _are_turns(self, lens: FloatArray) -> bool:
        """Whether enough pairs are turns of the camera by the distortion of a lens."""
        matched = self._matched(lens)
        return matched is not None and self._turning(matched, lens).sum() >= _MIN_PAIRS

    # --- the search ------------------------------------------------------------------------------------

    def _log_focal(self, focal_px: float) -> float:
        return float(np.log(focal_px / self._unit))

    @property
    def _grid(self) -> FloatArray:
        """Logarithms (G,) of the plausible focal lengths."""
        side = max(self._camera.width, self._camera.height)
        longest, shortest = (0.5 * side / np.tan(np.radians(0.5 * field)) for field in FIELD_DEG)
        return np.linspace(self._log_focal(shortest), self._log_focal(longest), _GRID)

    def _minima(self, chosen: Chosen) -> list[EpipolarFit]:
        """Fits at the local minima of the loss over the focal length, the best first."""
        fits = self._profile(chosen)
        minima = _minima_of([self._loss(fit) for fit in fits])[:_MINIMA]
        refined = [refine_lens(chosen.batch, fits[n], _USUAL, self._prior, iterations=10) for n in minima]
        refined.sort(key=self._loss)
        near = [self._loss(fit) < _NEAR * self._loss(refined[0]) for fit in refined]
        return sorted(
            [self._refined(chosen, f) if n else f for f, n in zip(refined, near, strict=True)], key=self._loss
        )

    def _refined(self, chosen: Chosen, fit: EpipolarFit) -> EpipolarFit:
        """The fit of all lens parameters; poses in a local minimum are estimated again in between."""
        for _ in range(2):
            fit = best_of(fit, fit_poses(chosen.batch, chosen.F, fit.lens))
            fit = refine_lens(chosen.batch, fit, _USUAL, self._prior, iterations=15)
        return fit

    def _loss(self, fit: EpipolarFit) -> float:
        return float(fit.loss.sum()) + self._prior.loss(fit.lens, _USUAL)

    def _profile(self, chosen: Chosen) -> list[EpipolarFit]:
        """Fits of poses and distortion at each focal length of a grid, each initialized from its neighbor."""
        grid = self._grid
        middle = int(np.argmin(np.abs(grid - self._prior.mean[LOG_FOCAL])))
        fits: dict[int, EpipolarFit] = {}
        start = fit_poses(chosen.batch, chosen.F, np.array([grid[middle], 0.0, 0.0, 0.0, 0.0, 0.0]))
        fits[middle] = refine_lens(chosen.batch, start, [DIVISION], self._prior, iterations=3)
        for direction in (range(middle, _GRID), range(middle, -1, -1)):
            for n, following in pairwise(direction):
                fits[following] = self._continued(chosen, fits[n], float(grid[following]))
        return [fits[n] for n in range(_GRID)]

    def _continued(self, chosen: Chosen, fit: EpipolarFit, log_focal: float) -> EpipolarFit:
        """The fit at another focal length, initialized from `fit`."""
        lens = fit.lens.copy()
        lens[LOG_FOCAL] = log_focal
        near = refine_poses(chosen.batch, replace(fit, lens=lens), iterations=3)
        other = refine_poses(chosen.batch, poses_of_fundamental(chosen.F, lens), iterations=3)
        return refine_lens(chosen.batch, best_of(near, other), [DIVISION], self._prior, iterations=2)

    # --- uncertainty ------------------------------------------------------------------------------------

    def _judged(self, chosen: Chosen, fit: EpipolarFit, *, rivals: Sequence[EpipolarFit]) -> FocalEstimate:
        """The estimate, with its uncertainty, from a fit of all lens parameters; `rivals` are fits at other minima."""
        best = fit
        logs = [float(fit.lens[LOG_FOCAL])]
        free, information, distortion = self._distortion_of(chosen, fit, _USUAL)
        if distortion.is_clear:
            fit = refine_lens(chosen.batch, fit, _STRONG, self._prior, iterations=20)
            free, information, distortion = self._distortion_of(chosen, fit, _STRONG)
            logs.append(float(fit.lens[LOG_FOCAL]))
        sigmas = sigmas_of(information)
        for simpler, fixed in self._simpler_models(distortion, free):
            lens = fit.lens.copy()
            lens[fixed] = 0.0
            start = refine_poses(chosen.batch, replace(fit, lens=lens), iterations=3)
            other = refine_lens(chosen.batch, start, simpler, self._prior, iterations=20)
            logs.append(float(other.lens[LOG_FOCAL]))
        formal = float(np.sqrt(np.linalg.inv(information.total)[LOG_FOCAL, LOG_FOCAL]))
        scatter = max(1.0, float(sigmas[LOG_FOCAL]) / formal) ** 2
        rivals = [rival for rival in rivals if not is_worse(rival, best, _RIVAL * scatter)]
        others = [*logs, *(float(rival.lens[LOG_FOCAL]) for rival in rivals)]
        if max(others) - min(others) < _NEAR_RIVALS:
            logs, rivals = others, []
        spread = 0.5 * (max(logs) - min(logs))
        sigma = float(np.sqrt(sigmas[LOG_FOCAL] ** 2 + spread**2 + _MODEL_SIGMA**2))
        focal = float(np.exp(0.5 * (max(logs) + min(logs)))) * self._unit
        estimate = FocalEstimate(
            focal_px=focal,
            sigma=sigma,
            distortion=distortion,
            pairs=len(chosen.batch),
            flaw=self._flaw(chosen, fit, focal, rivals),
            center=PrincipalEstimate(
                (float(fit.lens[OFFSET_X]) * self._unit, float(fit.lens[OFFSET_Y]) * self._unit),
                float(sigmas[[free.index(OFFSET_X), free.index(OFFSET_Y)]].max()) * self._unit,
            ),
        )
        windows = self._windows(chosen, fit, estimate)
        stretches = stretches_of(windows)
        return replace(
            estimate,
            stretches=tuple(self._in_pixels(stretch) for stretch in stretches) if largest_change(stretches) else (),
            is_uneven=disagree(windows)
            or ((bool(estimate.flaw) or sigma > _UNKNOWN_SIGMA) and any(window.is_observable for window in windows)),
        )

    def _distortion_of(
        self, chosen: Chosen, fit: EpipolarFit, free: list[int]
    ) -> tuple[list[int], Influence, Distortion]:
        """The free lens parameters of a fit, their information per pair, and the distortion."""
        information = influence(chosen.batch, fit, free, self._prior)
        sigma = float(sigmas_of(information)[free.index(DIVISION)])
        return free, information, Distortion(float(fit.lens[DIVISION]), sigma, float(fit.lens[DIVISION_R4]))

    def _windows(self, chosen: Chosen, fit: EpipolarFit, estimate: FocalEstimate) -> list[Window]:
        """The focal length in windows of time; none where one focal length explains them all.

        The distortion of the windows is that of the estimate, or what is clear of it, or none, whichever explains them
        best: without a distortion that the images have, windows differ in focal length as their points differ in
        radius, and a changing focal length looks like a distortion.
        """
        parts = windows_of(chosen)
        if not parts:
            return []
        constant = self._constant_part(fit, estimate.distortion)
        is_one = not estimate.flaw and estimate.sigma < OBSERVABLE_SIGMA
        if is_one and agree([self._window(part, constant, [fit.lens[LOG_FOCAL]]) for part in parts]):
            return []
        lenses = {lens.tobytes(): lens for lens in (constant, fit.lens, self._undistorted(fit))}.values()
        starts = [self._starts(part) for part in parts]
        found = [[self._window(part, lens, s) for part, s in zip(parts, starts, strict=True)] for lens in lenses]
        return min(found, key=lambda windows: sum(window.loss for window in windows))

    def _starts(self, part: Chosen) -> list[float]:
        """Logarithms of the focal lengths at the minima of the loss of a window, the best first."""
        fits = self._profile(part.thinned(_SEARCHED))
        return [float(fits[n].lens[LOG_FOCAL]) for n in _minima_of([float(fit.loss.sum()) for fit in fits])]

    def _window(self, part: Chosen, lens: FloatArray, starts: Sequence[float]) -> Window:
        """The best fit of the focal length of a window from some starts, with the other parameters of a lens."""
        fits = []
        for log_focal in starts[:_MINIMA]:
            start = lens.copy()
            start[LOG_FOCAL] = log_focal
            fit = fit_poses(part.batch, part.F, start)
            fits.append(refine_lens(part.batch, fit, [LOG_FOCAL], self._prior, iterations=15))
        return Window.of(part, min(fits, key=lambda fit: float(fit.loss.sum())), self._prior)

    def _in_pixels(self, stretch: FocalStretch) -> FocalStretch:
        return replace(stretch, focal_px=stretch.focal_px * self._unit)

    def _undistorted(self, fit: EpipolarFit) -> FloatArray:
        """The focal length of a fit alone."""
        lens = self._prior.mean.copy()
        lens[LOG_FOCAL] = fit.lens[LOG_FOCAL]
        return lens

    def _constant_part(self, fit: EpipolarFit, distortion: Distortion) -> FloatArray:
        """The lens with only a clear distortion, because a changing focal length biases the other parameters."""
        lens = self._undistorted(fit)
        if distortion.is_clear:
            lens[_DISTORTION] = fit.lens[_DISTORTION]
        return lens

    @staticmethod
    def _simpler_models(distortion: Distortion, free: list[int]) -> list[tuple[list[int], list[int]]]:
        """Simpler models of the lens: their free parameters, and the parameters fixed to zero."""
        offset = [OFFSET_X, OFFSET_Y]
        models = [([k for k in free if k not in offset], offset)]
        if not distortion.is_clear:
            models.append(([LOG_FOCAL, *offset], _DISTORTION))
        return models

    def _flaw(self, chosen: Chosen, fit: EpipolarFit, focal: float, rivals: Sequence[EpipolarFit]) -> str:
        """The reason to reject the focal length; empty without one."""
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
    return fundamental_distances(batch, F, np.where(np.isin(np.arange(len(lens)), _DISTORTION), lens, 0.0))


def _minima_of(loss: Sequence[float]) -> list[int]:
    """Positions of the local minima of a series, the smallest first."""
    values = np.array(loss)
    before, after = np.append(np.inf, values[:-1]), np.append(values[1:], np.inf)
    return sorted(np.flatnonzero((values <= before) & (values <= after)).tolist(), key=lambda n: float(values[n]))


def _uncertainty(found: FocalEstimate | NotDetermined) -> tuple[bool, bool, float]:
    """The order of estimates, the best first."""
    if isinstance(found, NotDetermined):
        return True, True, 0.0
    return False, bool(found.flaw), found.sigma


def _too_few(given: int, usable: int, flat: int) -> str:
    if flat > given // 2:
        return f"{flat} of {given} pairs of images show no parallax, or one plane"
    return f"{usable} of {given} pairs of images share enough points (needs {_MIN_PAIRS})"
