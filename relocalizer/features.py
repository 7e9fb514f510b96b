"""Local features: keypoints and their descriptors, and descriptor matching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import cv2
import numpy as np
from numpy.typing import NDArray

from relocalizer.camera import Camera
from relocalizer.config import FeaturesConfig
from relocalizer.images import Image

DESCRIPTOR_SIZE = 128
CELLS = (8, 6)  # columns and rows of the grid in which the coverage of an image is measured
# SIFT contrast threshold. OpenCV's default finds only strong corners; walls and floors need weaker ones, and the grid
# of `spread` drops the surplus.
_CONTRAST = 0.01
# Contrast threshold for images with few features, searched at full resolution: even blank walls have some.
_LOW_CONTRAST = 0.003
_LOW_COUNT_RATIO = 1 / 3  # fraction of the wanted features below which an image has few features
_SIGMA = 1.6  # blur of the first layer of SIFT's first octave, in its pixels: OpenCV's default, Lowe's value
# Ratio of the size of an image to that of the downsampled one up to which descriptors are computed in the image itself,
# nearly as well as in the doubled one. In the downsampled one they take half as long, and matches are 4 % fewer.
_MAX_DESCRIBED_ZOOM = 1.5
_MIN_DIAMETER_PX = 1.79  # diameter of SIFT's smallest keypoints in the image that is searched, pixels
_SPREAD_CELLS = 64  # approximate number of cells of the grid in which `spread` ranks points by strength
_ROUNDING = 1e-6  # rounding error of an inner product of unit descriptors
_HEAP_BLOCK_BYTES = 31 << 20  # glibc adapts its threshold only to freed blocks below 32 MiB, bytes
_LOOSEST_RATIO = 0.85  # ratio of Lowe's test up to which the matches of two images are kept
_SMALLEST_DISTANCE = np.float32(1e-12)  # squared distance of identical descriptors, whose ratios are not defined


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class LocalFeatures:
    """Keypoints of one image and their descriptors, strongest first.

    Attributes:
        pixels: (N, 2) float32.
        descriptors: (N, 128) float32, unit rows (RootSIFT).
        scales: (N,) float32, diameter of the described patch, pixels.
    """

    pixels: NDArray[np.float32]
    descriptors: NDArray[np.float32]
    scales: NDArray[np.float32]

    @staticmethod
    def none() -> LocalFeatures:
        return LocalFeatures(
            pixels=np.empty((0, 2), np.float32),
            descriptors=np.empty((0, DESCRIPTOR_SIZE), np.float32),
            scales=np.empty(0, np.float32),
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def where(self, keep: NDArray[np.bool_]) -> LocalFeatures:
        return LocalFeatures(self.pixels[keep], self.descriptors[keep], self.scales[keep])


def detect_features(gray: Image, config: FeaturesConfig, mask: NDArray[np.uint8] | None = None) -> LocalFeatures:
    """SIFT keypoints (Lowe 2004) spread over the image, with RootSIFT descriptors (Arandjelovic 2012).

    Detection runs on the image downsampled by `config.detection_scale`: SIFT first doubles its input, and most
    keypoints of the doubled image are not repeatable.

    Keypoints are selected cell by cell, so a weakly textured part keeps its best ones even when another part has
    thousands of stronger ones. An image with few keypoints is searched again at full size with a lower contrast
    threshold. The result is deterministic.

    Args:
        gray: (H, W) uint8.
        mask: (H, W) uint8; keypoints are detected only where it is nonzero.

    Raises:
        ValueError: `gray` is not (H, W) uint8.
    """
    if gray.ndim != 2 or gray.dtype != np.uint8:
        raise ValueError(f"detect_features: expected (H, W) uint8, got {gray.shape} {gray.dtype}")
    _keep_freed_memory()
    small, keypoints = _detect(gray, mask, config.detection_scale, _CONTRAST)
    if len(keypoints) < _LOW_COUNT_RATIO * config.max_features:
        small, keypoints = _detect(gray, mask, 1.0, _LOW_CONTRAST)
    if not keypoints:
        return LocalFeatures.none()
    points = np.array([k.pt for k in keypoints], dtype=np.float32)
    strengths = np.array([k.response for k in keypoints], dtype=np.float32)
    chosen = spread(points, strengths, small.shape, config.max_features)
    keypoints = [keypoints[k] for k in chosen]
    zoom = _zoom(gray, small)
    sizes = np.array([k.size for k in keypoints], dtype=np.float32)
    is_larger = float(zoom.mean()) > _MAX_DESCRIBED_ZOOM
    return LocalFeatures(
        pixels=_zoomed(points[chosen], zoom),
        descriptors=root_sift(_describe(small if is_larger else gray, small, keypoints)),
        scales=sizes * zoom.mean(),
    )


def occupied_cells(pixels: NDArray[np.floating], camera: Camera) -> int:
    """Number of cells of the `CELLS` grid that contain at least one of the pixels (N, 2)."""
    cell = np.floor(pixels / [camera.width, camera.height] * CELLS).astype(np.int64)
    return len(np.unique(np.clip(cell, 0, np.array(CELLS) - 1), axis=0))


def ordinary(features: LocalFeatures, config: FeaturesConfig) -> LocalFeatures:
    """Drops features found only by the low-contrast search; they are unreliable for place recognition."""
    return features.where(features.scales >= _MIN_DIAMETER_PX / config.detection_scale)


def _keep_freed_memory() -> None:
    """Free a large block, so that glibc does not return freed memory to the system at once.

    SIFT's pyramids are freed after every image and allocated again for the next; page faults took a third of its
    time. glibc keeps up to twice the largest block it has seen freed (mallopt(3), M_MMAP_THRESHOLD); other C
    libraries are not affected. The block is never written, so it uses no memory.
    """
    np.empty(_HEAP_BLOCK_BYTES, dtype=np.uint8)


def _detect(
    gray: Image, mask: NDArray[np.uint8] | None, scale: float, contrast: float
) -> tuple[Image, list[cv2.KeyPoint]]:
    """The downsampled image, and the keypoints in that image."""
    small = _resized(gray, scale, cv2.INTER_AREA)
    small_mask = None if mask is None else _resized(mask, scale, cv2.INTER_NEAREST)
    sift = cv2.SIFT.create(contrastThreshold=contrast, enable_precise_upscale=True)
    # SIFT returns a keypoint once per dominant orientation; only one of them is kept.
    return small, list({keypoint.pt: keypoint for keypoint in sift.detect(small, small_mask)}.values())


def _describe(image: Image, searched: Image, keypoints: Sequence[cv2.KeyPoint]) -> NDArray[np.float32]:
    """SIFT descriptors (N, 128) of keypoints that were detected in `searched`, computed in `image`.

    SIFT doubles the image that it searches and would describe most keypoints in the doubled one, where their patches
    have several times as many pixels. Here each is described in `image`, in the octave and layer of the same blur: the
    pyramid of `image` begins with the blur that the doubled image has, and its octaves count one higher.
    """
    zoom = _zoom(image, searched)
    scale = float(zoom.mean())
    points = _zoomed(np.array([k.pt for k in keypoints], dtype=np.float32), zoom).tolist()
    moved = [
        cv2.KeyPoint(x, y, k.size * scale, k.angle, k.response, (k.octave & ~0xFF) | (k.octave + 1 & 0xFF))
        for (x, y), k in zip(points, keypoints, strict=True)
    ]
    _, raw = cv2.SIFT.create(nfeatures=0, sigma=0.5 * _SIGMA * scale).compute(image, moved)
    return np.asarray(raw, dtype=np.float32)


def _zoom(image: Image, small: Image) -> NDArray[np.float32]:
    """Ratios (2,) of the width and the height of two images."""
    return np.asarray(np.array(image.shape[::-1]) / np.array(small.shape[::-1]), dtype=np.float32)


def _zoomed(points: NDArray[np.float32], zoom: NDArray[np.float32]) -> NDArray[np.float32]:
    """Points (N, 2) in an image enlarged by `zoom` (2,) in x and y; pixel centers are at integers in both."""
    return np.asarray((points + np.float32(0.5)) * zoom - np.float32(0.5), dtype=np.float32)


def spread(
    pixels: NDArray[np.float32], strengths: NDArray[np.float32], shape: tuple[int, ...], count: int
) -> NDArray[np.int64]:
    """Indices of at most `count` points, spread evenly over the image, strongest first.

    Every point is ranked by strength within its grid cell; all first-ranked points precede all second-ranked
    ones. The last rank that fits only in part contributes its strongest points.

    Args:
        pixels: (N, 2); strengths: (N,); shape: shape of the image, height first.
    """
    height, width = shape[0], shape[1]
    side = max(1.0, float(np.sqrt(height * width / _SPREAD_CELLS)))
    columns = int(np.ceil(width / side))
    cell = (pixels[:, 1] // side).astype(np.int64) * columns + (pixels[:, 0] // side).astype(np.int64)
    # Ties are broken by position, so the result does not depend on the detector's order.
    order = np.lexsort((pixels[:, 0], pixels[:, 1], -strengths, cell))
    starts = np.flatnonzero(np.r_[True, np.diff(cell[order]) != 0])
    lengths = np.diff(np.r_[starts, len(order)])
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(starts, lengths)
    chosen = np.lexsort((pixels[:, 0], pixels[:, 1], -strengths, rank))[:count]
    return chosen[np.lexsort((pixels[chosen, 0], pixels[chosen, 1], -strengths[chosen]))]


def root_sift(raw: NDArray[np.float32]) -> NDArray[np.float32]:
    """RootSIFT: SIFT descriptors (N, 128) mapped to unit rows whose inner product is the Hellinger kernel.

    Arandjelovic and Zisserman, "Three things everyone should know to improve object retrieval", 2012.
    """
    total = np.maximum(raw.sum(axis=1, keepdims=True), np.float32(1e-7))
    return np.asarray(np.sqrt(raw / total), dtype=np.float32)


def match_features(
    a: LocalFeatures | NDArray[np.float32], b: LocalFeatures | NDArray[np.float32], *, ratio: float
) -> NDArray[np.int64]:
    """Mutual nearest neighbors that pass the ratio test in both directions.

    The test is symmetric: swapping a and b only swaps the columns.

    Args:
        a, b: features, or their unit descriptors (N, D) and (M, D).
        ratio: maximum ratio of the distances to the nearest and the second nearest neighbor (Lowe 2004).

    Returns:
        (K, 2) indices into a and b, ascending in a. Empty when either side has fewer than two descriptors,
        because the ratio test needs a second nearest neighbor.
    """
    if isinstance(a, LocalFeatures) and isinstance(b, LocalFeatures) and ratio <= _LOOSEST_RATIO:
        found = _kept_matches(a, b)
    else:
        left, right = (f.descriptors if isinstance(f, LocalFeatures) else f for f in (a, b))
        found = _mutual_matches(left, right, ratio)
    return found.pairs[found.ratios < ratio]


@dataclass(frozen=True, slots=True, eq=False)
class _MutualMatches:
    """Mutual nearest neighbors: `pairs` (K, 2), ascending in the first column, and their `ratios` (K,) of Lowe's test.

    A ratio is the larger one of both directions.
    """

    pairs: NDArray[np.int64]
    ratios: NDArray[np.float32]

    def reversed(self) -> _MutualMatches:
        order = np.argsort(self.pairs[:, 1])
        return _MutualMatches(self.pairs[order, ::-1], self.ratios[order])


# The matches of images in use. The same two images are matched for their relative pose, for the landmarks of one in
# the other, and as a loop.
_kept: WeakKeyDictionary[LocalFeatures, WeakKeyDictionary[LocalFeatures, _MutualMatches]] = WeakKeyDictionary()


def _kept_matches(a: LocalFeatures, b: LocalFeatures) -> _MutualMatches:
    """The matches of two images within `_LOOSEST_RATIO`, computed once for as long as both are in use."""
    of_a, of_b = (_kept.setdefault(features, WeakKeyDictionary()) for features in (a, b))
    if (found := of_a.get(b)) is not None:
        return found
    if (found := of_b.get(a)) is not None:
        return found.reversed()
    found = of_a[b] = _mutual_matches(a.descriptors, b.descriptors, _LOOSEST_RATIO)
    return found


def _mutual_matches(left: NDArray[np.float32], right: NDArray[np.float32], most: float) -> _MutualMatches:
    """Mutual nearest neighbors of descriptors (N, D) and (M, D) whose ratio is below `most`."""
    if len(left) < 2 or len(right) < 2:
        return _MutualMatches(np.empty((0, 2), np.int64), np.empty(0, np.float32))
    similarity = left @ right.T
    best_right, ratio_left = _nearest(similarity)
    rows = np.flatnonzero(ratio_left < most)
    columns = best_right[rows]
    best_left, ratio_right = _nearest(np.ascontiguousarray(similarity[:, columns].T))
    kept = (ratio_right < most) & (best_left == rows)
    ratios = np.maximum(ratio_left[rows], ratio_right)
    return _MutualMatches(np.stack([rows[kept], columns[kept]], axis=1), ratios[kept])


def _nearest(similarity: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Per row: the most similar column, and the ratio of its distance to that of the second. Restores `similarity`."""
    rows = np.arange(len(similarity))
    best = similarity.argmax(axis=1)
    first = similarity[rows, best]
    similarity[rows, best] = -2.0
    second = similarity.max(axis=1)
    similarity[rows, best] = first
    # The squared distance of unit vectors is 2 - 2 s; identical descriptors differ only by rounding.
    squared = np.maximum(1.0 - first + _ROUNDING, 0.0) / np.maximum(1.0 - second, _SMALLEST_DISTANCE)
    return best, np.sqrt(squared)


def _resized(gray: Image, scale: float, interpolation: int) -> Image:
    if scale == 1.0:
        return gray
    height, width = (max(1, round(side * scale)) for side in gray.shape)
    return np.asarray(cv2.resize(gray, (width, height), interpolation=interpolation), dtype=np.uint8)
