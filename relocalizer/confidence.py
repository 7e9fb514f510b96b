"""How likely a pose is right, from what speaks for it: logistic curves read off sequences with known poses.

docs/results.md has the reliability tables, on sequences that the curves were not fitted to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class LandmarkEvidence:
    """What speaks for a pose that landmarks gave.

    Attributes:
        inliers: features that agree. matches: features that looked like landmarks.
        cells: parts of the picture, of 48, that hold some that agree.
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
        spread = np.log(max(self.cells, 1))
        count = np.log(max(self.inliers - self.rival, 1))
        return float(1.0 / (1.0 + np.exp(-(-9.0 + 2.0 * count + 1.5 * spread))))


@dataclass(frozen=True, slots=True, kw_only=True)
class AveragedEvidence:
    """What speaks for a pose that was averaged.

    Attributes:
        views: keyframes that agree with it in rotation and direction, of `related`.
        position_sigma: standard deviation of the position where it is largest, in units of the error bound.
    """

    views: int
    related: int
    position_sigma: float

    @property
    def confidence(self) -> float:
        # A right average errs normally; one of few views may not be right at all.
        within = float(np.exp(-0.5 * self.position_sigma**2)) if self.position_sigma > 1 else 1.0
        return within * float(1.0 / (1.0 + np.exp(-(self.views - 2.0) * 1.5)))
