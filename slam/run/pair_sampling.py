"""Matched image pairs for the self-calibration before the run.

Groups of images, spread evenly over the footage, are matched; frame rate and motion are unknown, so the gap between the
images of a group is adapted to how far the image moves. Photos without an order are matched to the most similar ones.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np

from relocalizer.calibration_pairs import ViewPair, with_more
from relocalizer.camera import Camera
from relocalizer.config import FeaturesConfig
from relocalizer.features import LocalFeatures, detect_features, match_features, ordinary
from relocalizer.geometry import FloatArray
from relocalizer.images import Image, to_gray
from relocalizer.vlad import shipped_vlad
from slam.input.frame_source import FrameSource
from slam.input.mask import Mask
from slam.input.rectification import GivenCamera
from slam.mapping.lens_examination import MATCH_RATIO
from slam.progress import Progress, no_progress

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


class CalibrationImages(Protocol):
    """Images of an assumed camera from which it is estimated; a `RereadableSource` is one."""

    @property
    def camera(self) -> Camera: ...

    @property
    def calibration(self) -> Camera: ...

    @property
    def mask(self) -> Mask | None: ...

    def random_access(self) -> AbstractContextManager[Callable[[int], Image | None]]:
        """As `RereadableSource.random_access`."""
        ...

    def with_calibration(self, calibration: GivenCamera) -> FrameSource:
        """As `RereadableSource.with_calibration`."""
        ...


class PairSampler(Protocol):
    """Chooses pairs of a source's images, and matches them."""

    def __call__(
        self, source: CalibrationImages, length: int, config: FeaturesConfig, *, on_progress: Progress
    ) -> list[ViewPair]: ...


def pairs_between(
    source: CalibrationImages, length: int, config: FeaturesConfig, *, on_progress: Progress = no_progress
) -> list[ViewPair]:
    """Pairs of the groups halfway between those of `sampled_pairs` without and with a shift of one half."""
    quarters = [sampled_pairs(source, length, config, on_progress=on_progress, shift=shift) for shift in (0.25, -0.25)]
    return with_more(*quarters)


def sampled_pairs(
    source: CalibrationImages,
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
    source: CalibrationImages, length: int, config: FeaturesConfig, *, on_progress: Progress = no_progress
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
