"""Detection of focal length changes along a sequence, and standard deviations under correlated errors.

Every window of time has a focal length of its own, estimated without the others. Consecutive windows that agree form a
stretch; during a zoom no focal length fits, so that windows between two stretches belong to none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from relocalizer.epipolar_fit import (
    LOG_FOCAL,
    EpipolarFit,
    Influence,
    LensPrior,
    PairBatch,
    influence,
)
from relocalizer.geometry import FloatArray

_BLOCKS = 8  # maximum number of jackknife blocks
_WORSE_SIGMAS = 2.0  # minimum loss difference of a fit that is clearly worse, standard deviations
MISFIT = 1.0  # maximum loss per match in the median pair; 0.4 for Gaussian noise, 0.5 to 0.7 for images
_WINDOWS, _WINDOW_PAIRS = 12, 6  # maximum number of time windows, and minimum number of pairs in each
_GAUSSIAN_MISFIT = 0.4  # misfit of Gaussian noise; what exceeds it is no noise, and enlarges the standard deviation
_AGREE_SIGMAS = 3.0  # maximum difference of windows of one stretch, standard deviations
_SURE_SIGMAS = 8.0  # minimum difference of a single window from its neighbors to be a stretch, standard deviations
_WINDOW_SIGMA = 0.02  # relative error of a window's focal length due to model errors
OBSERVABLE_SIGMA = 0.06  # maximum relative standard deviation of a window's focal length to be used
_CHANGE, _CHANGE_SIGMAS = 0.05, 5.0  # minimum relative change of the focal length, and in standard deviations


@dataclass(frozen=True, slots=True)
class FocalStretch:
    """Consecutive images of one focal length.

    Attributes:
        first, last: positions of the first and the last image of which this is known.
        focal_px: focal length, pixels.
        sigma: standard deviation of its logarithm.
    """

    first: int
    last: int
    focal_px: float
    sigma: float

    def agrees_with(self, other: FocalStretch) -> bool:
        """Whether both may have one focal length."""
        return not FocalChange.between(self, other).is_clear


@dataclass(frozen=True, slots=True)
class FocalChange:
    """The focal length of images after `to_frame` is (1 + share) times that of images before `from_frame`.

    Attributes:
        focal_px: focal lengths before and after, pixels; None where their unit is not that of the source's images.
    """

    share: float
    sigma: float
    from_frame: int
    to_frame: int
    focal_px: tuple[float, float] | None = None

    @staticmethod
    def between(before: FocalStretch, after: FocalStretch) -> FocalChange:
        return FocalChange(
            share=after.focal_px / before.focal_px - 1.0,
            sigma=float(np.hypot(before.sigma, after.sigma)),
            from_frame=before.last,
            to_frame=after.first,
            focal_px=(before.focal_px, after.focal_px),
        )

    def scaled(self, ratio: float) -> FocalChange:
        """The change for images that are `ratio` times as large."""
        if self.focal_px is None:
            return self
        return replace(self, focal_px=(self.focal_px[0] * ratio, self.focal_px[1] * ratio))

    def __str__(self) -> str:
        pixels = "" if self.focal_px is None else f", from {self.focal_px[0]:.0f} to {self.focal_px[1]:.0f} px,"
        return (
            f"the focal length changes by {100 * self.share:+.0f} % (+- {100 * self.sigma:.0f} %){pixels} "
            f"between frames {self.from_frame} and {self.to_frame}"
        )

    @property
    def is_clear(self) -> bool:
        """Whether the change is large and significant."""
        return abs(self.share) > max(_CHANGE, _CHANGE_SIGMAS * self.sigma)


def largest_change(stretches: Sequence[FocalStretch]) -> FocalChange | None:
    """The most significant change between consecutive stretches; None without a clear one."""
    changes = [FocalChange.between(before, after) for before, after in pairwise(stretches)]
    return max((c for c in changes if c.is_clear), key=lambda c: abs(c.share) / c.sigma, default=None)


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


@dataclass(frozen=True, slots=True)
class Window:
    """The focal length of some consecutive pairs.

    Attributes:
        log_focal, sigma: its logarithm, and the standard deviation.
        misfit, loss: loss per match in the median pair, and of all.
        first, middle, last: positions of images: the first after the last pair that it does not explain, the middle one
            of all, and the last before the first pair that it does not explain.
    """

    log_focal: float
    sigma: float
    misfit: float
    loss: float
    first: int
    middle: int
    last: int

    @staticmethod
    def of(part: Chosen, fit: EpipolarFit, prior: LensPrior) -> Window:
        """From a fit of the focal length of some pairs, with the other lens parameters fixed."""
        [sigma] = sigmas_of(influence(part.batch, fit, [LOG_FOCAL], prior))
        misfits = _misfits(part.batch, fit)
        misfit = float(np.median(misfits))
        unexplained = np.flatnonzero(misfits > MISFIT)
        before, after = (
            part.frames[: unexplained.min(initial=len(misfits))],
            part.frames[unexplained.max(initial=-1) + 1 :],
        )
        return Window(
            log_focal=float(fit.lens[LOG_FOCAL]),
            sigma=float(np.hypot(sigma * max(1.0, misfit / _GAUSSIAN_MISFIT), _WINDOW_SIGMA)),
            misfit=misfit,
            loss=float(fit.loss.sum()),
            first=int(after.min(initial=part.frames.max())),
            middle=int(np.median(part.frames)),
            last=int(before.max(initial=part.frames.min())),
        )

    @property
    def is_observable(self) -> bool:
        """Whether the focal length is well determined; during a zoom no focal length fits."""
        return self.sigma < OBSERVABLE_SIGMA and self.misfit < MISFIT


def windows_of(chosen: Chosen) -> list[Chosen]:
    """The pairs in windows of time; none if they are too few for two windows."""
    count = len(chosen.batch)
    windows = min(_WINDOWS, count // _WINDOW_PAIRS)
    return [chosen.take(rows) for rows in np.array_split(np.arange(count), windows)] if windows > 1 else []


def agree(windows: Sequence[Window]) -> bool:
    """Whether one focal length explains all windows, and all of them determine it."""
    if not all(window.is_observable for window in windows):
        return False
    mean = _mean(windows)[0]
    return all(abs(window.log_focal - mean) < _AGREE_SIGMAS * window.sigma for window in windows)


def stretches_of(windows: Sequence[Window]) -> list[FocalStretch]:
    """The stretches of one focal length, in order of time; its unit is that of the windows.

    The two adjacent groups of windows that agree best are merged, until no two agree.
    """
    groups = _merged([[window] for window in windows if window.is_observable])
    sure = [group for n, group in enumerate(groups) if len(group) > 1 or _is_sure(groups, n)]
    groups = _merged(sure)
    return [_stretch(group, is_first=group is groups[0], is_last=group is groups[-1]) for group in groups]


def disagree(windows: Sequence[Window]) -> bool:
    """Whether windows that are well determined differ clearly, be they sure enough for stretches or not."""
    groups = _merged([[window] for window in windows if window.is_observable])
    return largest_change([_stretch(group, is_first=True, is_last=True) for group in groups]) is not None


def _is_sure(groups: Sequence[list[Window]], n: int) -> bool:
    """Whether a group of a single window is a stretch: far from its neighbors, and without images in common, since
    pairs of images before and after a change can agree by chance."""
    [window], before, after = groups[n], groups[max(n - 1, 0) : n], groups[n + 1 : n + 2]
    overlaps = [window.first <= group[-1].last for group in before] + [group[0].first <= window.last for group in after]
    if any(overlaps) or window.first >= window.last:
        return False
    return all(_difference(_mean(groups[n]), _mean(group)) > _SURE_SIGMAS for group in [*before, *after])


def _merged(groups: list[list[Window]]) -> list[list[Window]]:
    while len(groups) > 1:
        differences = [_difference(_mean(a), _mean(b)) for a, b in pairwise(groups)]
        n = int(np.argmin(differences))
        if differences[n] > _AGREE_SIGMAS:
            break
        groups = [*groups[:n], groups[n] + groups[n + 1], *groups[n + 2 :]]
    return groups


def _difference(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Difference of two means with their variances, standard deviations."""
    return abs(a[0] - b[0]) / float(np.sqrt(a[1] + b[1]))


def _stretch(group: Sequence[Window], *, is_first: bool, is_last: bool) -> FocalStretch:
    """The stretch of some windows; where another one follows, half of the last window may not belong to it."""
    mean, variance = _mean(group)
    several = len(group) > 1
    return FocalStretch(
        first=max(group[0].first, group[0].middle) if several and not is_first else group[0].first,
        last=min(group[-1].last, group[-1].middle) if several and not is_last else group[-1].last,
        focal_px=float(np.exp(mean)),
        sigma=float(np.sqrt(variance)),
    )


def misfit_of(batch: PairBatch, fit: EpipolarFit) -> float:
    """Loss per match in the median pair."""
    return float(np.median(_misfits(batch, fit)))


def _misfits(batch: PairBatch, fit: EpipolarFit) -> FloatArray:
    """Loss per match (P,) of each pair."""
    return np.asarray(fit.loss / batch.weight.sum(axis=1))


def _mean(parts: Sequence[Window]) -> tuple[float, float]:
    """The weighted mean of the logarithms and its variance, inflated by their scatter (reduced chi-square)."""
    values, weights = np.array([p.log_focal for p in parts]), np.array([p.sigma**-2 for p in parts])
    mean = float((weights * values).sum() / weights.sum())
    scatter = float((weights * (values - mean) ** 2).sum()) / max(len(parts) - 1, 1)
    return mean, max(1.0, scatter) / float(weights.sum())
