"""The metric scale of a finished map, and what it is measured from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from relocalizer.errors import UserError
from relocalizer.images import Image
from slam.evaluation.trajectory import Trajectory
from slam.map.slam_map import SlamMap
from slam.result import Georeference, SlamResult

LARGEST_SIGMA = 0.2  # largest standard deviation of the logarithm of a scale that is accepted


class ScaleError(UserError):
    """A scale reference that does not determine the scale."""


@dataclass(frozen=True, slots=True, eq=False)
class FinishedMap:
    """A finished run, in map units.

    Attributes:
        ground_truth: that of the source; None without one.
        image: the undistorted image (H, W, 3) of a keyframe; None if images were not kept.
    """

    result: SlamResult
    slam_map: SlamMap
    ground_truth: Trajectory | None = None
    image: Callable[[int], Image] | None = None


@dataclass(frozen=True, slots=True)
class ScaleEstimate:
    """A metric scale.

    Attributes:
        sigma: standard deviation of the logarithm of `meters_per_unit`; None if it is not known.
        evidence: what it was measured from, in words.
        georeference: where the scaled map lies on the earth, if it was measured from that.
    """

    meters_per_unit: float
    sigma: float | None = None
    evidence: str = ""
    georeference: Georeference | None = None

    def source_in_words(self, reference: str) -> str:
        """What the scale was measured from, with its uncertainty."""
        evidence = f", {self.evidence}" if self.evidence else ""
        return reference + evidence + (f", +- {100 * self.sigma:.2g} %" if self.sigma is not None else "")
