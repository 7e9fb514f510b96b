"""How likely a pose is right, from what speaks for it.

Two things have to hold: the place is the right one, and the pose is within the error bound there. The first is a
logistic curve fitted to poses from sparse maps and worsened images of five sequences, and to images of other
places; the second is what the position's own sigma says. docs/results.md has the reliability on another sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import erf, exp, log, sqrt

# docs/experiments/relocalization.py fit: 1, log(inliers - rival), log(cells).
_RIGHT_PLACE = (-6.2, 2.42, 2.43)
# A rival with all but this share of the landmarks makes a coin toss of the two places, however many they are.
_CLEAR_OF_RIVAL = 0.3
# Errors are this much larger than the sigmas: features share errors, and the map's poses have some of their own.
_SIGMAS_TOO_SMALL = 2.0
# Pairs of local features were right wherever two of them agreed. A network's are not that independent, so this is
# set and not fitted: 0.70, 0.91, 0.97 for two, three, four views.
_DOUBT_A_VIEW = 1.2


@dataclass(frozen=True, slots=True, kw_only=True)
class LandmarkEvidence:
    """What speaks for a pose that landmarks gave.

    Attributes:
        inliers: features that agree. matches: features that looked like landmarks.
        cells: parts of the image, of 48, that hold some that agree.
        rival: features that agree with the next best pose elsewhere.
        views: keyframes whose rotations agree with their average.
        disagreement_deg: angle between that average and the pose; NaN without any.
        position_sigma: standard deviation of the position where it is largest, in units of the error bound.
    """

    inliers: int
    matches: int
    cells: int
    rival: int
    views: int
    disagreement_deg: float
    position_sigma: float

    @property
    def confidence(self) -> float:
        constant, count, spread = _RIGHT_PLACE
        lead = max(self.inliers - self.rival, 1)
        place = 1.0 / (1.0 + exp(-(constant + count * log(lead) + spread * log(max(self.cells, 1)))))
        share = max(0.0, 1.0 - self.rival / max(self.inliers, 1))
        return place * min(1.0, share / _CLEAR_OF_RIVAL) * _within_bound(self.position_sigma)


@dataclass(frozen=True, slots=True, kw_only=True)
class AveragedEvidence:
    """What speaks for a pose that was averaged.

    Attributes:
        views: keyframes that agree with it in rotation and direction, of `related`.
        position_sigma: standard deviation of the position where it is largest, in units of the error bound.
    """

    views: int
    covisible: int
    position_sigma: float

    @property
    def confidence(self) -> float:
        place = 1.0 - exp(-_DOUBT_A_VIEW * max(self.views - 1, 0))
        return place * _within_bound(self.position_sigma)


def _within_bound(position_sigma: float) -> float:
    """Probability that an error along the least known direction stays within the bound."""
    return erf(1.0 / (sqrt(2.0) * _SIGMAS_TOO_SMALL * max(position_sigma, 1e-9)))
