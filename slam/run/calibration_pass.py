"""Self-calibration before the run: the camera of a source without a calibration, from image pairs of its footage.

Tracking with a focal length that is wrong by more than about a quarter breaks the map into pieces, so an estimate at
the end of the run comes too late. Groups of images, spread evenly over the footage, are matched; frame rate and motion
are unknown, so the gap between the images of a group is adapted to how far the image moves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from relocalizer.calibration_pairs import ViewPair, with_more
from relocalizer.calibration_windows import FocalStretch
from relocalizer.camera import Camera, CameraModel
from relocalizer.config import FeaturesConfig
from relocalizer.division_camera import distorted_camera
from relocalizer.errors import CameraError
from relocalizer.features import LocalFeatures, detect_features, match_features, ordinary
from relocalizer.geometry import FloatArray
from relocalizer.images import Image, to_gray
from relocalizer.lens_estimates import Distortion
from relocalizer.self_calibration import PRIOR_SIGMA
from relocalizer.vlad import shipped_vlad
from slam.config.schema import SlamConfig
from slam.evaluation.verdict import Finding, Grade
from slam.input.frame_source import FrameSource, RereadableSource
from slam.input.mask import Mask
from slam.input.rectification import GivenCamera
from slam.map.lens_evidence import LensEvidence, LensState
from slam.mapping.lens_examination import MATCH_RATIO, LensFinding, examine_assumed
from slam.progress import Progress, no_progress
from slam.run.zoom import Zoom, longest_of, may_zoom, without_zoom, zoom_of
from slam.system import Slam

# Number of images per group, and minimum and maximum number of groups: a short run must not be spent on calibration.
IMAGES_PER_GROUP, FEWEST_GROUPS, MOST_GROUPS = 16, 10, 12
OFFSETS = (0, 1, 3)  # positions of the images of a group, gaps; their pairs are 1, 2 and 3 gaps apart
MAX_GAP = 64  # maximum gap between two images of a group, images
MAX_TRIALS = 6  # maximum number of gaps tried in a group
MIN_MATCHES = 40  # minimum number of matches of a pair
# Area of the image in which features are detected, pixels, and their maximum number: the focal length is as accurate as
# from the features of a keyframe, at a third of their cost. An image with fewer than a third of them is searched again
# at full resolution.
DETECTION_AREA_PX, MAX_FEATURES = 100_000, 600
MIN_SCALE = 0.25  # minimum scale of that image
# Range of the median displacement between images one gap apart, and its middle, as fractions of the longer side.
NEAREST, MIDDLE, FARTHEST = 0.03, 0.06, 0.12
# Maximum number of photos without an order that are matched, and the number of others that each is matched to.
MOST_PHOTOS, SIMILAR_PHOTOS = 40, 4
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


def calibrate_first(source: FrameSource, config: SlamConfig) -> tuple[FrameSource, CalibrationPass | None]:
    """The source with the camera that its own images determine, and how that was found.

    A live source, and one whose camera is given, are returned unchanged, with None; so is every source when
    `config.input.calibrate_first` is false. The camera remains `assumed`, because it is an estimate.
    """
    if not config.input.calibrate_first or not source.camera.assumed or not isinstance(source, RereadableSource):
        return source, None
    if not source.can_be_reread or source.length is None:
        return source, None
    sampled = photo_pairs if config.input.unordered else sampled_pairs
    camera, calibration = estimate_camera(source, source.length, config.features, sampled=sampled)
    if not calibration.is_used:
        return source, calibration
    estimated = source.with_calibration(GivenCamera(camera, calibration.sentence))
    return without_zoom(estimated, calibration.zoom), calibration


def zoom_with_given_camera(source: RereadableSource, config: SlamConfig) -> Zoom | None:
    """The change of the focal length of a source with a given camera; what has the given focal length is kept.

    None without a change, or where no part has the given focal length.
    """
    length, camera = source.length or 0, source.camera
    pairs = with_more(
        with_more(*(sampled_pairs(source, length, config.features, shift=shift) for shift in (0.0, 0.5))),
        pairs_between(source, length, config.features),
    )
    stretches = examine_assumed(pairs, camera).stretches
    given = FocalStretch(0, 0, camera.mean_focal, 0.0)
    return zoom_of(stretches, source, longest_of([s for s in stretches if s.agrees_with(given)]))


class PairSampler(Protocol):
    """Chooses pairs of a source's images, and matches them."""

    def __call__(
        self, source: RereadableSource, length: int, config: FeaturesConfig, *, on_progress: Progress
    ) -> list[ViewPair]: ...


def estimate_camera(
    source: RereadableSource,
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
    zoom = zoom_of(finding.stretches, source, longest_of(finding.stretches))
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


def pairs_between(
    source: RereadableSource, length: int, config: FeaturesConfig, *, on_progress: Progress = no_progress
) -> list[ViewPair]:
    """Pairs of the groups halfway between those of `sampled_pairs` without and with a shift of one half."""
    quarters = [sampled_pairs(source, length, config, on_progress=on_progress, shift=shift) for shift in (0.25, -0.25)]
    return with_more(*quarters)


def _corrected(assumed: Camera, finding: LensFinding) -> Camera:
    """The camera of the original images after the correction of an assumed pinhole camera by a finding."""
    camera, distortion = replace(assumed.refocused(finding.step.focal_ratio), assumed=True), finding.distortion
    if distortion == Distortion():
        return camera
    return distorted_camera(distortion.division, distortion.division_r4, camera)


def sampled_pairs(
    source: RereadableSource,
    length: int,
    config: FeaturesConfig,
    *,
    on_progress: Progress = no_progress,
    shift: float = 0.0,
) -> list[ViewPair]:
    """Matched pairs of images in groups spread evenly over the footage, or `shift` of their distances earlier."""
    if length < 2:
        return []
    camera = source.camera
    with source.random_access() as read:
        images = _Images(read, _cheaper(config, camera), source.mask)
        groups = _Groups(images, length, max(camera.width, camera.height))
        return groups.pairs(on_progress, shift=shift)


def photo_pairs(
    source: RereadableSource, length: int, config: FeaturesConfig, *, on_progress: Progress = no_progress
) -> list[ViewPair]:
    """Matched pairs of images without an order: each of some images with the most similar ones among them.

    Pairs between which the image hardly moves are left out: they say nothing about the camera.
    """
    positions = np.unique(np.linspace(0, length - 1, min(length, MOST_PHOTOS)).astype(int)).tolist()
    pairs = []
    with source.random_access() as read:
        images = _Images(read, config, source.mask)
        for number, position in enumerate(positions):
            on_progress("photos", number, len(positions))
            images.features(position)
        for first, second in _most_similar(images, positions, config):
            pair = images.match(first, second)
            if len(pair.pixels_first) < MIN_MATCHES:
                continue
            if displacement(pair) >= NEAREST * max(source.camera.width, source.camera.height):
                pairs.append(pair)
    return pairs


def _most_similar(images: _Images, positions: list[int], config: FeaturesConfig) -> list[tuple[int, int]]:
    """Each position with those whose images have the most similar place descriptors, in order."""
    vlad = shipped_vlad()
    descriptors = np.stack([vlad.describe(ordinary(images.features(position), config)) for position in positions])
    similarity = descriptors @ descriptors.T
    np.fill_diagonal(similarity, -np.inf)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, : min(SIMILAR_PHOTOS, len(positions) - 1)]
    pairs = {(min(n, m), max(n, m)) for n, row in enumerate(order.tolist()) for m in row}
    return [(positions[n], positions[m]) for n, m in sorted(pairs)]


def _cheaper(config: FeaturesConfig, camera: Camera) -> FeaturesConfig:
    """The settings of the local features of the pass."""
    scale = max(MIN_SCALE, float(np.sqrt(DETECTION_AREA_PX / (camera.width * camera.height))))
    fewer = {
        "detection_scale": min(scale, config.detection_scale),
        "max_features": min(MAX_FEATURES, config.max_features),
    }
    return config.model_copy(update=fewer)


class _Images:
    """Local features of single images and their matches, each computed once."""

    def __init__(self, read: Callable[[int], Image | None], config: FeaturesConfig, mask: Mask | None) -> None:
        self._read, self._config, self._mask = read, config, mask
        self._features: dict[int, LocalFeatures] = {}
        self._matched: dict[tuple[int, int], ViewPair] = {}

    def features(self, position: int) -> LocalFeatures:
        if position not in self._features:
            image = self._read(position)
            found = LocalFeatures.none() if image is None else detect_features(to_gray(image), self._config, self._mask)
            self._features[position] = found
        return self._features[position]

    def match(self, first: int, second: int) -> ViewPair:
        """The matches of two images; none when one is unreadable."""
        if (first, second) not in self._matched:
            a, b = self.features(first), self.features(second)
            rows = match_features(a, b, ratio=MATCH_RATIO)
            x, y = a.pixels[rows[:, 0]].astype(np.float64), b.pixels[rows[:, 1]].astype(np.float64)
            self._matched[first, second] = ViewPair(first, second, x, y)
        return self._matched[first, second]

    def known_near(self, position: int, gap: int) -> int:
        """The nearest position within `gap` whose features are known, else the position itself."""
        near = [p for p in self._features if abs(p - position) <= gap]
        return min(near, key=lambda p: (abs(p - position), p), default=position)

    def forget_before(self, position: int) -> None:
        """Free the features of the images before a position."""
        self._features = {p: features for p, features in self._features.items() if p >= position}


class _Groups:
    """Chooses the images of every group; the gap found in one group is where the search in the next begins."""

    def __init__(self, images: _Images, length: int, side_px: int) -> None:
        self._images, self._length, self._side_px = images, length, side_px
        self._gap = 1

    def pairs(self, on_progress: Progress, *, shift: float) -> list[ViewPair]:
        """The pairs of all groups, which are `shift` group distances earlier than evenly spread."""
        count = int(np.clip(self._length // IMAGES_PER_GROUP, FEWEST_GROUPS, MOST_GROUPS))
        pairs: dict[tuple[int, int], ViewPair] = {}
        for number in range(count):
            span = OFFSETS[-1] * self._gap
            first = round((number + 0.5 - shift) / count * self._length - 0.5 * span)
            first = max(0, min(first, self._length - 1 - span))
            self._images.forget_before(first - MAX_GAP)
            for pair in self._group(self._images.known_near(first, self._gap)):
                pairs[pair.first, pair.second] = pair
            on_progress("more groups of images" if shift else "groups of images", number + 1, count)
        return list(pairs.values())

    def _group(self, first: int) -> list[ViewPair]:
        gap = self._choose_gap(first)
        if gap is None:
            return []
        self._gap = gap
        found = [first + k * gap for k in OFFSETS if first + k * gap < self._length]
        pairs = [self._images.match(a, b) for n, a in enumerate(found) for b in found[n + 1 :]]
        return [pair for pair in pairs if len(pair.pixels_first) >= MIN_MATCHES]

    def _choose_gap(self, first: int) -> int | None:
        """The gap at which the image moves by about `MIDDLE`; None when no gap gives enough matches."""
        gap, best = self._gap, None
        tried: set[int] = set()
        for _ in range(MAX_TRIALS):
            gap = max(1, min(gap, MAX_GAP, self._length - 1 - first))
            if gap in tried:
                break
            tried.add(gap)
            pair = self._images.match(first, first + gap)
            if len(pair.pixels_first) < MIN_MATCHES:
                gap = gap // 2
                continue
            moved = displacement(pair) / self._side_px
            best = gap
            if NEAREST <= moved <= FARTHEST:
                break
            gap = round(gap * float(np.clip(MIDDLE / max(moved, 1e-6), 0.25, 4.0)))
        return best


def displacement(pair: ViewPair) -> float:
    """Median displacement of the matches of a pair, pixels."""
    moved: FloatArray = np.linalg.norm(pair.pixels_second - pair.pixels_first, axis=1)
    return float(np.median(moved))
