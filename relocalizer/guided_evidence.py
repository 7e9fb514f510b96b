"""Evidence for a pose after guided matching, for images with few matches by descriptors alone.

At the right pose most landmarks near a feature that looks like them are inliers; at a wrong pose the inlier ratio stays
at chance level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from relocalizer.config import RelocalizationConfig
from relocalizer.interfaces import CONFIDENT

MIN_HYPOTHESIS = 8  # minimum number of inliers by descriptors of a pose that is refined by guided matching
MIN_INLIERS = 40  # minimum number of inliers after guided matching, without a pair estimate that confirms the pose
MIN_CELLS = 8  # minimum number of cells of the image, of 48, that contain inliers, without such a pair estimate
CHANCE_RATIO = 1 / 3  # expected inlier ratio at a wrong pose
MAX_RATIO = 0.5  # inlier ratio that is always enough


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidedEvidence:
    """Evidence for a pose after guided matching.

    Attributes:
        inliers: number of inlier landmarks, of `matches` that were matched near their projections.
        cells: number of cells of the image, of 48, that contain inliers.
        confirmation: confidence of a pair estimate that has the rotation of the pose; 0 without one.
    """

    inliers: int
    matches: int
    cells: int
    confirmation: float

    def rejection(self, config: RelocalizationConfig) -> str:
        """The reason to reject the pose; empty when it is accepted."""
        needed, ratio = self.min_inliers(config), self.min_ratio
        if self.inliers < needed or self.inliers < ratio * self.matches:
            return f"{self.inliers} of {self.matches} projected landmarks agree, {needed} and {ratio:.0%} needed"
        cells = config.min_cells if self.confirmation >= CONFIDENT else max(config.min_cells, MIN_CELLS)
        if self.cells < cells:
            return f"{self.inliers} landmarks agree, but in {self.cells} cells of the image, {cells} needed"
        return ""

    def min_inliers(self, config: RelocalizationConfig) -> int:
        """Minimum number of inliers: fewer with a more confident pair estimate, but at least that of the settings."""
        uncertainty = max(0.0, 1.0 - self.confirmation / CONFIDENT)
        return round(config.min_inliers + uncertainty * max(0, MIN_INLIERS - config.min_inliers))

    @property
    def min_ratio(self) -> float:
        """Minimum inlier ratio: two standard deviations above chance, one with a confident pair estimate."""
        deviation = float(np.sqrt(CHANCE_RATIO * (1 - CHANCE_RATIO) / max(self.matches, 1)))
        return min(MAX_RATIO, CHANCE_RATIO + (2 if self.confirmation < CONFIDENT else 1) * deviation)
