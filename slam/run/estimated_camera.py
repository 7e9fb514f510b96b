"""The camera that a run found, and whether the frames should be tracked again with it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from relocalizer.camera import Camera
from slam.map.lens_evidence import LensEvidence
from slam.run.calibration_pass import USED_SIGMA

if TYPE_CHECKING:
    from slam.result import SlamResult

# Minimum change of the logarithm of the focal length for a second pass, if all frames are in one map, and if the map
# broke. A change of less than this many standard deviations is no reason.
CHANGE, CHANGE_IF_BROKEN, SIGMAS = 0.025, 0.02, 1.0
# Minimum displacement of the image corners by distortion that was found, as a fraction of half the diagonal.
CORNER, CORNER_IF_BROKEN = 0.03, 0.015


@dataclass(frozen=True, slots=True)
class EstimatedCamera:
    """Camera that a run estimated.

    Attributes:
        camera: camera of the source's original images; it stays `assumed`, because it is an estimate.
        tracked_px: focal length with which the frames were tracked, pixels of the original images.
        evidence: evidence for the focal length.
        corner: displacement of the image corners by the distortion found, as a fraction of half the diagonal.
    """

    camera: Camera
    tracked_px: float
    evidence: LensEvidence
    corner: float

    @staticmethod
    def of(result: SlamResult, tracked: Camera) -> EstimatedCamera | None:
        """The camera of the largest segment of a result; None if the run did not change it, or no model represents it.

        Args:
            tracked: camera of the source's original images with which the frames were tracked.
        """
        found = result.lens.calibration(tracked) if result.lens.has_corrections else None
        if found is None or result.lens.start is None:
            return None
        half_diagonal = 0.5 * float(np.hypot(result.lens.start.width, result.lens.start.height))
        corner = result.lens.max_displacement_px / half_diagonal
        return EstimatedCamera(replace(found, assumed=True), tracked.mean_focal, result.lens_evidence, corner)

    @property
    def change(self) -> float:
        """Difference of the logarithms of the focal lengths, found and tracked with."""
        return float(np.log(self.camera.mean_focal / self.tracked_px))

    def is_worth_a_pass(self, *, is_broken: bool) -> bool:
        """Whether the frames should be tracked again with this camera.

        Args:
            is_broken: whether frames are missing in the largest map.
        """
        sigma = self.evidence.focal_sigma
        if self.evidence.change is not None or sigma is None or sigma > USED_SIGMA:
            return False
        change, corner = (CHANGE_IF_BROKEN, CORNER_IF_BROKEN) if is_broken else (CHANGE, CORNER)
        return abs(self.change) > max(change, SIGMAS * sigma) or self.corner > corner

    @property
    def sentence(self) -> str:
        """The change of the camera, in one line."""
        sigma = self.evidence.focal_sigma or 0.0
        distortion = f" and distortion of {100 * self.corner:.1f} % at the corners" if self.corner > CORNER else ""
        return (
            f"focal length {self.camera.mean_focal:.0f} px +- {100 * sigma:.1f} %{distortion} found by the first pass, "
            f"which tracked with {self.tracked_px:.0f} px"
        )
