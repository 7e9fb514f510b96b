"""Search of the focal length of image pairs over all plausible angles of view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from relocalizer.calibration_windows import Chosen, Window
from relocalizer.camera import Camera
from relocalizer.epipolar_fit import (
    DIVISION,
    LOG_FOCAL,
    OFFSET_X,
    OFFSET_Y,
    EpipolarFit,
    LensPrior,
    best_of,
    fit_poses,
    poses_of_fundamental,
    refine_lens,
    refine_poses,
)
from relocalizer.geometry import FloatArray

FIELD_DEG = (20.0, 170.0)  # range of plausible angles of view along the longer side, degrees
SEARCHED = 3  # the initial search uses every n-th match of a pair
_GRID = 15  # number of focal lengths in the initial search over `FIELD_DEG`
# Maximum number of minima that are refined, and maximum ratio to the smallest loss for a full refinement.
_MINIMA, _NEAR = 3, 1.3
USUAL = [LOG_FOCAL, DIVISION, OFFSET_X, OFFSET_Y]  # free lens parameters by default


def plausible_focal_lengths(camera: Camera) -> FloatArray:
    """Logarithms (G,) of focal lengths over `FIELD_DEG`, in units of half the image's diagonal, ascending."""
    unit = 0.5 * float(np.hypot(camera.width, camera.height))
    side = max(camera.width, camera.height)
    longest, shortest = (0.5 * side / np.tan(np.radians(0.5 * field)) for field in FIELD_DEG)
    return np.linspace(float(np.log(shortest / unit)), float(np.log(longest / unit)), _GRID)


class FocalSearch:
    """Fits of the lens, and of its focal length alone, from starts over a range of focal lengths."""

    def __init__(self, grid: FloatArray, prior: LensPrior) -> None:
        """Args:
        grid: as of `plausible_focal_lengths`.
        """
        self._grid, self._prior = grid, prior

    def minima(self, chosen: Chosen) -> list[EpipolarFit]:
        """Fits at the local minima of the loss over the focal length, the best first."""
        fits = self._profile(chosen)
        minima = _minima_of([self.loss(fit) for fit in fits])[:_MINIMA]
        refined = [refine_lens(chosen.batch, fits[n], USUAL, self._prior, iterations=10) for n in minima]
        refined.sort(key=self.loss)
        near = [self.loss(fit) < _NEAR * self.loss(refined[0]) for fit in refined]
        return sorted([self.refined(chosen, f) if n else f for f, n in zip(refined, near, strict=True)], key=self.loss)

    def refined(self, chosen: Chosen, fit: EpipolarFit) -> EpipolarFit:
        """The fit of all lens parameters; poses in a local minimum are estimated again in between."""
        for _ in range(2):
            fit = best_of(fit, fit_poses(chosen.batch, chosen.F, fit.lens))
            fit = refine_lens(chosen.batch, fit, USUAL, self._prior, iterations=15)
        return fit

    def loss(self, fit: EpipolarFit) -> float:
        return float(fit.loss.sum()) + self._prior.loss(fit.lens, USUAL)

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

    def starts(self, part: Chosen) -> list[float]:
        """Logarithms of the focal lengths at the minima of the loss of a window, the best first."""
        fits = self._profile(part.thinned(SEARCHED))
        return [float(fits[n].lens[LOG_FOCAL]) for n in _minima_of([float(fit.loss.sum()) for fit in fits])]

    def window(self, part: Chosen, lens: FloatArray, starts: Sequence[float]) -> Window:
        """The best fit of the focal length of a window from some starts, with the other parameters of a lens."""
        fits = []
        for log_focal in starts[:_MINIMA]:
            start = lens.copy()
            start[LOG_FOCAL] = log_focal
            fit = fit_poses(part.batch, part.F, start)
            fits.append(refine_lens(part.batch, fit, [LOG_FOCAL], self._prior, iterations=15))
        return Window.of(part, min(fits, key=lambda fit: float(fit.loss.sum())), self._prior)


def _minima_of(loss: Sequence[float]) -> list[int]:
    """Positions of the local minima of a series, the smallest first."""
    values = np.array(loss)
    before, after = np.append(np.inf, values[:-1]), np.append(values[1:], np.inf)
    return sorted(np.flatnonzero((values <= before) & (values <= after)).tolist(), key=lambda n: float(values[n]))
