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
from dataclasses import replace
from functools import cached_property

import numpy as np

from relocalizer.calibration_pairs import DISTORTION, MIN_PAIRS, CalibrationPairs, ViewPair
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
    best_of,
    fit_poses,
    influence,
    refine_lens,
    refine_poses,
)
from relocalizer.focal_search import FIELD_DEG, SEARCHED, USUAL, FocalSearch, plausible_focal_lengths
from relocalizer.geometry import FloatArray
from relocalizer.lens_estimates import (
    KNOWN_SIGMA,
    AspectEstimate,
    Distortion,
    FocalEstimate,
    NotDetermined,
    PrincipalEstimate,
)

PRIOR_SIGMA = 0.3  # standard deviation of the logarithm of an assumed focal length: 45 to 78 degrees for 60
_MODEL_SIGMA = 0.01  # relative error of the camera model itself: rolling shutter, separate center of distortion
# Prior standard deviations of the six lens parameters, in units of half the image's diagonal.
_PRIOR_SIGMAS = np.array([1.0, 0.15, 0.1, 0.03, 0.03, 0.3])
_BENT = 0.02  # minimum distortion for which turns are searched again
_RIVAL = 8.0  # minimum loss difference of a second minimum to be excluded, for residuals that match their sigmas
_NEAR_RIVALS = 0.3  # maximum range of the log focal lengths of rival minima for the middle to be an estimate
_NEAR_RIVAL = 10.0 * _RIVAL  # minimum loss difference in the initial search of a minimum to be excluded by that alone
_UNKNOWN_SIGMA = 0.15  # minimum standard deviation of a focal length that the pairs do not determine together
_STRONG = [LOG_FOCAL, DIVISION, OFFSET_X, OFFSET_Y, DIVISION_R4]  # free lens parameters with clear distortion


class SelfCalibration:
    """Estimates the intrinsics of one camera from its image pairs."""

    def __init__(self, pairs: Sequence[ViewPair], camera: Camera) -> None:
        """Args:
        camera: a pinhole camera whose principal point and ratio of focal lengths are assumed correct; its focal length
            is the initial value of `check` and `distortion`.
        """
        grid = plausible_focal_lengths(camera)
        self._camera = camera
        self._views = CalibrationPairs(pairs, camera, grid)
        self._unit = self._views.unit
        log_focal = float(np.log(camera.mean_focal / self._unit))
        self._prior = LensPrior(np.array([log_focal, 0.0, 0.0, 0.0, 0.0, 0.0]), _PRIOR_SIGMAS)
        self._search = FocalSearch(grid, self._prior)

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
        chosen = self._views.choose(lens, with_turns=with_turns)
        if isinstance(chosen, NotDetermined):
            return chosen, []
        fits = self._search.minima(chosen.thinned(SEARCHED))
        best = fits[0]
        again = self._views.choose(best.lens, with_turns=with_turns)
        if isinstance(again, NotDetermined):
            return again, fits
        near = [f for f in fits[1:] if SEARCHED * float(f.loss.sum() - best.loss.sum()) < _NEAR_RIVAL]
        refined = [self._search.refined(again, fit_poses(again.batch, again.F, f.lens)) for f in [best, *near]]
        fit = min(refined, key=self._search.loss)
        return self._judged(again, fit, rivals=[f for f in refined if f is not fit]), fits

    def check(self) -> FocalEstimate | NotDetermined:
        """The focal length, refined from that of the camera."""
        chosen = self._chosen
        if isinstance(chosen, NotDetermined):
            return chosen
        start = fit_poses(chosen.batch, chosen.F, self._prior.mean)
        return self._judged(chosen, self._search.refined(chosen, start), rivals=[])

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
        free = [*USUAL, LOG_STRETCH]
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
        return self._views.choose(self._prior.mean, with_turns=False)

    def _lens_of_turns(self, found: FloatArray | None) -> FloatArray | None:
        """A lens (6,) by whose distortion enough pairs are turns of the camera; None if they are not.

        Turns of a distorted camera are neither turns without its distortion, nor quite without parallax.

        Args:
            found: the lens of the pairs with parallax; None if they are too few.
        """
        if self._views.are_turns(self._prior.mean):
            return self._prior.mean
        if found is None:
            matched = self._views.matched(self._prior.mean)
            if matched is None or matched.batch.turns.sum() < MIN_PAIRS:
                return None
            flat = matched.take(np.flatnonzero(matched.batch.turns))
            found = self._search.minima(flat.thinned(SEARCHED))[0].lens
        return found if abs(found[DIVISION]) > _BENT and self._views.are_turns(found) else None

    # --- uncertainty ------------------------------------------------------------------------------------

    def _judged(self, chosen: Chosen, fit: EpipolarFit, *, rivals: Sequence[EpipolarFit]) -> FocalEstimate:
        """The estimate, with its uncertainty, from a fit of all lens parameters; `rivals` are fits at other minima."""
        best = fit
        logs = [float(fit.lens[LOG_FOCAL])]
        free, information, distortion = self._distortion_of(chosen, fit, USUAL)
        if distortion.is_clear:
            fit = refine_lens(chosen.batch, fit, _STRONG, self._prior, iterations=20)
            free, information, distortion = self._distortion_of(chosen, fit, _STRONG)
            logs.append(float(fit.lens[LOG_FOCAL]))
        sigmas = sigmas_of(information)
        logs += self._logs_of_simpler_models(chosen, fit, distortion, free)
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
        return self._along(estimate, self._windows(chosen, fit, estimate))

    def _along(self, estimate: FocalEstimate, windows: Sequence[Window]) -> FocalEstimate:
        """An estimate with what windows of time say of a change of the focal length."""
        stretches = stretches_of(windows)
        uncertain = bool(estimate.flaw) or estimate.sigma > _UNKNOWN_SIGMA
        return replace(
            estimate,
            stretches=tuple(self._in_pixels(stretch) for stretch in stretches) if largest_change(stretches) else (),
            is_uneven=disagree(windows) or (uncertain and any(window.is_observable for window in windows)),
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
        if is_one and agree([self._search.window(part, constant, [fit.lens[LOG_FOCAL]]) for part in parts]):
            return []
        lenses = {lens.tobytes(): lens for lens in (constant, fit.lens, self._undistorted(fit))}.values()
        starts = [self._search.starts(part) for part in parts]
        found = [[self._search.window(part, lens, s) for part, s in zip(parts, starts, strict=True)] for lens in lenses]
        return min(found, key=lambda windows: sum(window.loss for window in windows))

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
            lens[DISTORTION] = fit.lens[DISTORTION]
        return lens

    def _logs_of_simpler_models(
        self, chosen: Chosen, fit: EpipolarFit, distortion: Distortion, free: list[int]
    ) -> list[float]:
        """Logarithms of the focal length in simpler models of the lens."""
        logs = []
        for simpler, fixed in self._simpler_models(distortion, free):
            lens = fit.lens.copy()
            lens[fixed] = 0.0
            start = refine_poses(chosen.batch, replace(fit, lens=lens), iterations=3)
            other = refine_lens(chosen.batch, start, simpler, self._prior, iterations=20)
            logs.append(float(other.lens[LOG_FOCAL]))
        return logs

    @staticmethod
    def _simpler_models(distortion: Distortion, free: list[int]) -> list[tuple[list[int], list[int]]]:
        """Simpler models of the lens: their free parameters, and the parameters fixed to zero."""
        offset = [OFFSET_X, OFFSET_Y]
        models = [([k for k in free if k not in offset], offset)]
        if not distortion.is_clear:
            models.append(([LOG_FOCAL, *offset], DISTORTION))
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


def _uncertainty(found: FocalEstimate | NotDetermined) -> tuple[bool, bool, float]:
    """The order of estimates, the best first."""
    if isinstance(found, NotDetermined):
        return True, True, 0.0
    return False, bool(found.flaw), found.sigma
