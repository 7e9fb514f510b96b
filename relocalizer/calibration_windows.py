"""Detection of focal length changes along a sequence, and standard deviations under correlated errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from relocalizer.epipolar_fit import (
    LOG_FOCAL,
    EpipolarFit,
    Influence,
    LensPrior,
    PairBatch,
    fit_poses,
    influence,
    refine_lens,
)
from relocalizer.geometry import FloatArray

_BLOCKS = 8  # maximum number of jackknife blocks
_WORSE_SIGMAS = 2.0  # minimum loss difference of a fit that is clearly worse, standard deviations
MISFIT = 1.0  # maximum loss per match in the median pair; 0.4 for Gaussian noise, 0.5 to 0.7 for images
_WINDOWS, _WINDOW_PAIRS = 6, 5  # maximum number of time windows, and minimum number of pairs in each
_WINDOW_SIGMA = 0.02  # relative error of a window's focal length due to model errors
_OBSERVABLE_SIGMA = 0.06  # maximum relative standard deviation of a window's focal length to be used
_CHANGE, _CHANGE_SIGMAS = 0.05, 5.0  # minimum relative change of the focal length, and in standard deviations


@dataclass(frozen=True, slots=True)
class FocalChange:
    """The focal length of images after `to_frame` is (1 + share) times that of images before `from_frame`."""

    share: float
    sigma: float
    from_frame: int
    to_frame: int

    def __str__(self) -> str:
        return (
            f"the focal length changes by {100 * self.share:+.0f} % (+- {100 * self.sigma:.0f} %) "
            f"between frames {self.from_frame} and {self.to_frame}"
        )

    @property
    def is_clear(self) -> bool:
        """Whether the change is large and significant."""
        return abs(self.share) > max(_CHANGE, _CHANGE_SIGMAS * self.sigma)


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """Pairs with their inlier matches, in order of time.

    Attributes:
        F: (P, 3, 3) fundamental matrices of the undistorted points.
        frames: (P, 2) positions of the images in the sequence.
    """

    batch: PairBatch
    F: FloatArray
    frames: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> Chosen:
        return Chosen(self.batch.take(rows), self.F[rows], self.frames[rows])

    def thinned(self, every: int) -> Chosen:
        """The same pairs with every n-th of their matches."""
        return replace(self, batch=self.batch.thinned(every))


def sigmas_of(pairs: Influence) -> FloatArray:
    """Standard deviations (N,) by a one-step jackknife over blocks of time, at least the formal ones.

    They are inflated by Student's t for the small number of blocks.
    """
    count = len(pairs.gradient)
    blocks = min(_BLOCKS, count)
    block_of = np.arange(count) * blocks // count
    members = [block_of == n for n in range(blocks)]
    steps = np.array(
        [
            np.linalg.solve(pairs.total - pairs.information[m].sum(axis=0), pairs.gradient[m].sum(axis=0))
            for m in members
        ]
    )
    inflation = float(stdtrit(blocks - 1, ndtr(2.0))) / 2.0
    jackknife = inflation * np.sqrt((blocks - 1) / blocks * (steps**2).sum(axis=0))
    return np.asarray(np.maximum(jackknife, np.sqrt(np.diag(np.linalg.inv(pairs.total)))))


def is_worse(fit: EpipolarFit, best: EpipolarFit, least: float) -> bool:
    """Whether a fit explains the pairs clearly worse than the best one, whose loss is lower by `least` at least.

    By Vuong's test of models that are not nested ("Likelihood ratio tests for model selection and non-nested
    hypotheses", 1989) over blocks of time: a few pairs with large losses must not decide.
    """
    worse = fit.loss - best.loss
    blocks = np.array([part.sum() for part in np.array_split(worse, min(_BLOCKS, len(worse)))])
    deviation = float(np.sqrt(len(blocks)) * blocks.std(ddof=1))
    return bool(worse.sum() >= max(least, _WORSE_SIGMAS * deviation))


def find_change(chosen: Chosen, lens: FloatArray, prior: LensPrior) -> FocalChange | None:
    """The most significant change of the focal length along the sequence, with the other lens parameters fixed."""
    count = len(chosen.batch)
    windows = min(_WINDOWS, count // _WINDOW_PAIRS)
    if windows < 2:
        return None
    window_of = np.arange(count) * windows // count
    parts = [_focal_of(chosen, np.flatnonzero(window_of == n), lens, prior) for n in range(windows)]
    parts = [part for part in parts if part.is_observable]
    changes = []
    for split in range(1, len(parts)):
        (early, early_variance), (late, late_variance) = _mean(parts[:split]), _mean(parts[split:])
        sigma = float(np.sqrt(early_variance + late_variance))
        share = float(np.expm1(late - early))
        changes.append(FocalChange(share, sigma, parts[split - 1].middle, parts[split].middle))
    return max((c for c in changes if c.is_clear), key=lambda c: abs(c.share) / c.sigma, default=None)


@dataclass(frozen=True, slots=True)
class _Window:
    """The logarithm of the focal length in a time window, its sigma and misfit, and the window's middle frame."""

    log_focal: float
    sigma: float
    misfit: float
    middle: int

    @property
    def is_observable(self) -> bool:
        """Whether the focal length is well determined; during a zoom no focal length fits."""
        return self.sigma < _OBSERVABLE_SIGMA and self.misfit < MISFIT


def _focal_of(chosen: Chosen, rows: NDArray[np.int64], lens: FloatArray, prior: LensPrior) -> _Window:
    """The focal length of some pairs, with the other lens parameters fixed."""
    batch, free = chosen.batch.take(rows), [LOG_FOCAL]
    fit = refine_lens(batch, fit_poses(batch, chosen.F[rows], lens), free, prior, iterations=15)
    [sigma] = sigmas_of(influence(batch, fit, free, prior))
    return _Window(
        log_focal=float(fit.lens[LOG_FOCAL]),
        sigma=float(np.hypot(sigma, _WINDOW_SIGMA)),
        misfit=misfit_of(batch, fit),
        middle=int(np.median(chosen.frames[rows])),
    )


def misfit_of(batch: PairBatch, fit: EpipolarFit) -> float:
    """Loss per match in the median pair."""
    return float(np.median(fit.loss / batch.weight.sum(axis=1)))


def _mean(parts: Sequence[_Window]) -> tuple[float, float]:
    """The weighted mean of the logarithms and its variance, inflated by their scatter (reduced chi-square)."""
    values, weights = np.array([p.log_focal for p in parts]), np.array([p.sigma**-2 for p in parts])
    mean = float((weights * values).sum() / weights.sum())
    scatter = float((weights * (values - mean) ** 2).sum()) / max(len(parts) - 1, 1)
    return mean, max(1.0, scatter) / float(weights.sum())
