"""Self-calibration before the run: the camera of a source without a calibration, from image pairs of its footage.

Tracking with a focal length that is wrong by more than about a quarter breaks the map into pieces, so an estimate at
the end of the run comes too late. `slam.run.pair_sampling` chooses the pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from relocalizer.calibration_pairs import with_more
from relocalizer.calibration_windows import FocalStretch
from relocalizer.camera import Camera, CameraModel
from relocalizer.config import FeaturesConfig
from relocalizer.division_camera import distorted_camera
from relocalizer.errors import CameraError
from relocalizer.lens_estimates import Distortion
from relocalizer.self_calibration import PRIOR_SIGMA
from slam.config.schema import SlamConfig
from slam.evaluation.verdict import Finding, Grade
from slam.input.frame_source import RereadableSource
from slam.input.rectification import GivenCamera
from slam.map.lens_evidence import LensEvidence, LensState
from slam.mapping.lens_examination import LensFinding, examine_assumed
from slam.progress import Progress, no_progress
from slam.run.pair_sampling import CalibrationImages, PairSampler, pairs_between, photo_pairs, sampled_pairs
from slam.run.zoom import Zoom, longest_of, may_zoom, zoom_of
from slam.system import Slam

MORE_SIGMA = 0.06  # minimum standard deviation of an estimate for which more images are used
USED_SIGMA = 0.5 * PRIOR_SIGMA  # maximum standard deviation of an estimate that replaces the assumption


@dataclass(frozen=True, slots=True)
class CalibrationPass:
    """Result of the self-calibration before a run; focal lengths in pixels of the source's original images.

    Attributes:
        assumed_px: focal length assumed without it.
        focal_px: focal length with which the run begins.
        pairs: number of matched image pairs; 0 for the camera that a first pass over the frames found.
        evidence: how far the focal length is known.
        is_used: whether the run begins with the estimate, not with the assumption.
        radial: first two coefficients of the distortion with which the run begins.
        model: model of this distortion.
        zoom: change of the focal length along the footage, and the frames that are kept; None without one.
    """

    assumed_px: float
    focal_px: float
    pairs: int
    evidence: LensEvidence
    is_used: bool = False
    radial: tuple[float, float] = (0.0, 0.0)
    model: CameraModel = "radtan"
    zoom: Zoom | None = None

    @classmethod
    def of_first_pass(cls, camera: Camera, tracked_px: float, evidence: LensEvidence) -> CalibrationPass:
        """The camera of the original images that a first pass found, which tracked with `tracked_px`."""
        return cls(tracked_px, camera.mean_focal, 0, evidence, is_used=True)._of(camera)

    def _of(self, camera: Camera) -> CalibrationPass:
        """The same with the distortion of a camera."""
        k1, k2, *_ = *camera.distortion, 0.0, 0.0
        return replace(self, radial=(k1, k2), model="fisheye" if camera.model == "fisheye" else "radtan")

    @property
    def focal_sigma(self) -> float:
        """Standard deviation of the logarithm of the focal length with which the run begins."""
        sigma = self.evidence.focal_sigma
        return sigma if self.is_used and sigma is not None else PRIOR_SIGMA

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for report.json."""
        return {
            "state": self.evidence.state,
            "is_used": self.is_used,
            "focal_px": self.focal_px,
            "focal_sigma": self.evidence.focal_sigma,
            "assumed_px": self.assumed_px,
            "radial": list(self.radial),
            "model": self.model,
            "pairs": self.pairs,
            "reason": self.evidence.reason,
            "zoom": None if self.zoom is None else str(self.zoom),
        }

    @property
    def left_out(self) -> int:
        """Number of frames that are not tracked, because they have another focal length."""
        return 0 if self.zoom is None else self.zoom.left_out

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Findings that lower the verdict on the run."""
        return () if self.zoom is None else (Finding(Grade.PARTIAL, str(self.zoom)),)

    @property
    def sentence(self) -> str:
        """What was estimated, or why nothing was, in one line."""
        if not self.is_used:
            reason = self.evidence.reason or "the estimate is too uncertain"
            return f"focal length not determined before the run ({reason}): {self.assumed_px:.0f} px assumed"
        zoom = "" if self.zoom is None else f"; {self.zoom}"
        guess = "" if self.evidence.state is LensState.KNOWN else "a guess, "
        model = "fisheye " if self.model == "fisheye" else ""
        k1, k2 = self.radial
        distortion = f", {model}distortion k1 {k1:.3f} k2 {k2:.3f}" if model or k1 or k2 else ""
        return (
            f"focal length {self.focal_px:.0f} px +- {100 * self.focal_sigma:.1f} %{distortion}, {guess}estimated from "
            f"{self.pairs} image pairs before the run (assumed: {self.assumed_px:.0f}){zoom}"
        )


def set_up(slam: Slam, calibration: CalibrationPass | None) -> None:
    """State to the system how well the camera of a pass is known."""
    if calibration is not None and calibration.is_used:
        slam.set_focal_sigma(calibration.focal_sigma)


def zoom_with_given_camera(source: RereadableSource, config: SlamConfig) -> Zoom | None:
    """The change of the focal length of a source with a given camera; what has the given focal length is kept.

    None without a change, or where no part has the given focal length.
    """
    length, camera = source.length or 0, source.camera
    pairs = sampled_pairs(source, length, config.features)
    if not may_zoom(examine_assumed(pairs, camera)):  # keyframes are fewer, and their windows may differ by chance
        return None
    pairs = with_more(pairs, sampled_pairs(source, length, config.features, shift=0.5))
    pairs = with_more(pairs, pairs_between(source, length, config.features))
    stretches = examine_assumed(pairs, camera).stretches
    given = FocalStretch(0, 0, camera.mean_focal, 0.0)
    return zoom_of(stretches, longest_of([s for s in stretches if s.agrees_with(given)]), length, scale=_scale(source))


def estimate_camera(
    source: CalibrationImages,
    length: int,
    config: FeaturesConfig,
    *,
    sampled: PairSampler | None = None,
    on_progress: Progress = no_progress,
) -> tuple[Camera, CalibrationPass]:
    """The camera of a source's original images from pairs of its images, and how it was found.

    More images are used where the estimate is uncertain, because a wrong one costs a second pass over all frames.

    Args:
        source: a source whose camera is assumed; `length` is the number of its images.
        sampled: how the pairs are chosen: `sampled_pairs`, the default, or `photo_pairs`.
        on_progress: called for each group of images, or for each image.

    Returns:
        The camera, still `assumed` because it is an estimate. If the estimate is not used, it is that of the source.
    """
    pairs = (sampled or sampled_pairs)(source, length, config, on_progress=on_progress)
    finding = examine_assumed(pairs, source.camera)
    if sampled is not photo_pairs:
        if needs_more(finding):
            pairs = with_more(pairs, sampled_pairs(source, length, config, on_progress=on_progress, shift=0.5))
            finding = examine_assumed(pairs, source.camera)
        if may_zoom(finding):
            pairs = with_more(pairs, pairs_between(source, length, config, on_progress=on_progress))
            finding = examine_assumed(pairs, source.camera)
    zoom = zoom_of(finding.stretches, longest_of(finding.stretches), length, scale=_scale(source))
    if zoom is not None:
        kept = [pair for pair in pairs if any(pair.first in part and pair.second in part for part in zoom.kept)]
        finding = examine_assumed(kept, source.camera)
    start = source.calibration.mean_focal
    unused = CalibrationPass(start, start, len(pairs), finding.evidence)
    if finding.step.is_nothing or (finding.evidence.focal_sigma or 0.0) > USED_SIGMA:
        return source.calibration, unused
    camera = _corrected(source.calibration, finding)
    try:
        source.with_calibration(GivenCamera(camera, "the estimate"))
    except CameraError as error:
        return source.calibration, replace(unused, evidence=LensEvidence(LensState.GUESS, reason=str(error)))
    return camera, replace(unused, focal_px=camera.mean_focal, is_used=True, zoom=zoom)._of(camera)


def needs_more(finding: LensFinding) -> bool:
    """Whether more images may determine what these do not: the estimate is uncertain, or there is none."""
    sigma = finding.evidence.focal_sigma
    return bool(finding.stretches) or sigma is None or sigma > MORE_SIGMA


def _scale(source: CalibrationImages) -> float:
    """Size of the original images relative to those of `camera`."""
    return source.calibration.mean_focal / source.camera.mean_focal


def _corrected(assumed: Camera, finding: LensFinding) -> Camera:
    """The camera of the original images after the correction of an assumed pinhole camera by a finding."""
    camera, distortion = replace(assumed.refocused(finding.step.focal_ratio), assumed=True), finding.distortion
    if distortion == Distortion():
        return camera
    return distorted_camera(distortion.division, distortion.division_r4, camera)
