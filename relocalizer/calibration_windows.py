"""Whether the focal length changes along the footage, and standard deviations that count correlated errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from relocalizer.epipolar_fit import (
    LOG_FOCAL,
    EpipolarFit,
    Influence,
    LensPull,
    PairBatch,
    fit_poses,
    influence,
    refine_lens,
)
from relocalizer.geometry import FloatArray

_BLOCKS = 8
MISFIT = 1.0  # loss of a match in the median pair; normal noise has 0.4, images 0.5 to 0.7
_WINDOWS, _WINDOW_PAIRS = 6, 5  # stretches of time that a focal length is fitted to alone
_WINDOW_SIGMA = 0.02  # what the model's errors do to one of them
_TOLD_SIGMA = 0.06  # one that is told no better than this says nothing of a change
_CHANGE, _CHANGE_SIGMAS = 0.05, 5.0  # of the focal length, to be called one


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
        """Whether it is large, and far larger than its error."""
        return abs(self.share) > max(_CHANGE, _CHANGE_SIGMAS * self.sigma)


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """Pairs whose matches agree with an epipolar geometry, in order of time.

    Attributes:
        F: (P, 3, 3) of the undistorted points.
        frames: (P, 2) the images' positions in the footage.
    """

    batch: PairBatch
    F: FloatArray
    frames: NDArray[np.int64]


def sigmas_of(seen: Influence) -> FloatArray:
    """Standard deviations (N,): of the one-step jackknife over blocks of time, widened as Student's t is for so few
    blocks, and never less than the formal ones."""
    count = len(seen.gradient)
    blocks = min(_BLOCKS, count)
    of = np.arange(count) * blocks // count
    left_out = np.array(
        [
            np.linalg.solve(seen.total - seen.information[of == n].sum(axis=0), seen.gradient[of == n].sum(axis=0))
            for n in range(blocks)
        ]
    )
    widened = float(stdtrit(blocks - 1, ndtr(2.0))) / 2.0
    jackknife = widened * np.sqrt((blocks - 1) / blocks * (left_out**2).sum(axis=0))
    return np.asarray(np.maximum(jackknife, np.sqrt(np.diag(np.linalg.inv(seen.total)))))


def find_change(chosen: Chosen, lens: FloatArray, pull: LensPull) -> FocalChange | None:
    """Whether early and late pairs want different focal lengths, with the rest of the lens as it is in `lens`."""
    count = len(chosen.batch)
    windows = min(_WINDOWS, count // _WINDOW_PAIRS)
    if windows < 2:
        return None
    of = np.arange(count) * windows // count
    parts = [_focal_of(chosen, np.flatnonzero(of == n), lens, pull) for n in range(windows)]
    parts = [part for part in parts if part.is_told]
    changes = []
    for split in range(1, len(parts)):
        (early, early_variance), (late, late_variance) = _mean(parts[:split]), _mean(parts[split:])
        sigma = float(np.sqrt(early_variance + late_variance))
        share = float(np.expm1(late - early))
        changes.append(FocalChange(share, sigma, parts[split - 1].middle, parts[split].middle))
    return max((c for c in changes if c.is_clear), key=lambda c: abs(c.share) / c.sigma, default=None)


@dataclass(frozen=True, slots=True)
class _Part:
    """The logarithm of the focal length that a stretch of the footage wants, its sigma, and the stretch's middle."""

    log_focal: float
    sigma: float
    misfit: float
    middle: int

    @property
    def is_told(self) -> bool:
        """In the middle of a zoom no focal length fits."""
        return self.sigma < _TOLD_SIGMA and self.misfit < MISFIT


def _focal_of(chosen: Chosen, rows: NDArray[np.int64], lens: FloatArray, pull: LensPull) -> _Part:
    """What some pairs want with the rest of the lens held."""
    batch, free = chosen.batch.take(rows), [LOG_FOCAL]
    fit = refine_lens(batch, fit_poses(batch, chosen.F[rows], lens), free, pull, iterations=15)
    [sigma] = sigmas_of(influence(batch, fit, free, pull))
    return _Part(
        log_focal=float(fit.lens[LOG_FOCAL]),
        sigma=float(np.hypot(sigma, _WINDOW_SIGMA)),
        misfit=misfit_of(batch, fit),
        middle=int(np.median(chosen.frames[rows])),
    )


def misfit_of(batch: PairBatch, fit: EpipolarFit) -> float:
    """Loss of a match in the median pair."""
    return float(np.median(fit.loss / batch.weight.sum(axis=1)))


def _mean(parts: Sequence[_Part]) -> tuple[float, float]:
    """The weighted mean of the logarithms and its variance, which their scatter widens."""
    values, weights = np.array([p.log_focal for p in parts]), np.array([p.sigma**-2 for p in parts])
    mean = float((weights * values).sum() / weights.sum())
    scatter = float((weights * (values - mean) ** 2).sum()) / max(len(parts) - 1, 1)
    return mean, max(1.0, scatter) / float(weights.sum())
