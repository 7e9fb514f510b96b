"""Local features: points that can be found again, and the descriptors to match them by."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from relocalizer.camera import Camera
from relocalizer.config import FeaturesConfig
from relocalizer.images import Image

DESCRIPTOR_SIZE = 128
CELLS = (8, 6)  # of an image, across and down, in which points are counted
# OpenCV's default keeps only strong corners; walls and floors need weak ones, and the grid drops the surplus.
_CONTRAST = 0.01
# In an image with little to see, even fainter points are looked for, at full size: blank walls have some.
_FAINT = 0.003
_POOR = 1 / 3  # of the points wanted
_SMALLEST = 1.79  # pixels, diameter of SIFT's smallest points in the image that is searched
# The image is cut into about this many cells; each gives its strong points before any gives its weak ones.
_CELLS = 64
_ROUNDING = 1e-6
_KEPT = 31 << 20  # bytes; the C library learns from a freed block only where it is smaller than 32 MiB


@dataclass(frozen=True, slots=True, eq=False)
class LocalFeatures:
    """Points of one image and their descriptors, strongest first.

    Attributes:
        pixels: (N, 2) float32.
        descriptors: (N, 128) float32, unit rows (RootSIFT).
        scales: (N,) float32, diameter of the described patch in pixels.
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
    """SIFT points (Lowe 2004) spread over the image, with RootSIFT descriptors (Arandjelovic 2012).

    Points are looked for in the image shrunk by `config.detection_scale`: SIFT doubles its input first, and
    most of the doubled image's time goes into points that are not found again.

    Points are taken cell by cell, so a poorly textured part keeps its best points even where another part
    has thousands of stronger ones. An image that gives few points is searched again, unshrunk and for fainter ones.
    The same image gives the same features.

    Args:
        gray: (H, W) uint8.
        mask: (H, W) uint8, points only where it is not zero.

    Raises:
        ValueError: `gray` is not (H, W) uint8.
    """
    if gray.ndim != 2 or gray.dtype != np.uint8:
        raise ValueError(f"detect_features: expected (H, W) uint8, got {gray.shape} {gray.dtype}")
    _keep_freed_memory()
    small, sift, keypoints = _find(gray, mask, config.detection_scale, _CONTRAST)
    if len(keypoints) < _POOR * config.max_features:
        small, sift, keypoints = _find(gray, mask, 1.0, _FAINT)
    if not keypoints:
        return LocalFeatures.none()
    chosen = spread(
        np.array([k.pt for k in keypoints], dtype=np.float32),
        np.array([k.response for k in keypoints], dtype=np.float32),
        small.shape,
        config.max_features,
    )
    described, raw = sift.compute(small, [keypoints[k] for k in chosen])
    # Pixel centers are at integers, in the small image and in the given one.
    zoom = np.array(gray.shape[::-1], dtype=np.float32) / np.array(small.shape[::-1], dtype=np.float32)
    pixels = np.array([k.pt for k in described], dtype=np.float32).reshape(-1, 2)
    sizes = np.array([k.size for k in described], dtype=np.float32)
    return LocalFeatures(
        pixels=np.asarray((pixels + 0.5) * zoom - 0.5, dtype=np.float32),
        descriptors=root_sift(np.asarray(raw, dtype=np.float32)),
        scales=sizes * zoom.mean(),
    )


def occupied_cells(pixels: NDArray[np.floating], camera: Camera) -> int:
    """How many cells of an image, of `CELLS` across and down, hold at least one of the pixels (N, 2)."""
    cell = np.floor(pixels / [camera.width, camera.height] * CELLS).astype(np.int64)
    return len(np.unique(np.clip(cell, 0, np.array(CELLS) - 1), axis=0))


def ordinary(features: LocalFeatures, config: FeaturesConfig) -> LocalFeatures:
    """Without the points that only the search for fainter ones finds: they are smaller, and poor at telling places."""
    return features.where(features.scales >= _SMALLEST / config.detection_scale)


def _keep_freed_memory() -> None:
    """Free a large block, so that glibc stops giving freed memory back to the system at once.

    SIFT's pyramids are freed after every image and asked for again with the next: a third of its time went into
    pages that came anew. glibc keeps up to twice the largest block that it has seen freed (mallopt(3),
    M_MMAP_THRESHOLD); other C libraries are not changed by this. The block is never touched, so it takes no memory.
    """
    np.empty(_KEPT, dtype=np.uint8)


def _find(
    gray: Image, mask: NDArray[np.uint8] | None, scale: float, contrast: float
) -> tuple[Image, cv2.SIFT, list[cv2.KeyPoint]]:
    """The image as it was searched, the detector, and the points found."""
    small = _shrunk(gray, scale, cv2.INTER_AREA)
    small_mask = None if mask is None else _shrunk(mask, scale, cv2.INTER_NEAREST)
    sift = cv2.SIFT.create(contrastThreshold=contrast, enable_precise_upscale=True)
    # SIFT gives a point once for every orientation it may have: one is enough to match by, and is one point.
    return small, sift, list({keypoint.pt: keypoint for keypoint in sift.detect(small, small_mask)}.values())


def spread(
    pixels: NDArray[np.float32], strengths: NDArray[np.float32], shape: tuple[int, ...], count: int
) -> NDArray[np.int64]:
    """Indices of at most `count` points, even over the image, strongest first.

    Every point is ranked among its cell's points; all first-ranked points come before all second-ranked
    ones. Of the last rank that fits only in part, the strongest are kept.

    Args:
        pixels: (N, 2); strengths: (N,); shape: of the image, height first.
    """
    height, width = shape[0], shape[1]
    side = max(1.0, float(np.sqrt(height * width / _CELLS)))
    columns = int(np.ceil(width / side))
    cell = (pixels[:, 1] // side).astype(np.int64) * columns + (pixels[:, 0] // side).astype(np.int64)
    # Ties are broken by position, so the order does not hang on the detector's own order.
    order = np.lexsort((pixels[:, 0], pixels[:, 1], -strengths, cell))
    starts = np.flatnonzero(np.r_[True, np.diff(cell[order]) != 0])
    lengths = np.diff(np.r_[starts, len(order)])
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(starts, lengths)
    chosen = np.lexsort((pixels[:, 0], pixels[:, 1], -strengths, rank))[:count]
    return chosen[np.lexsort((pixels[chosen, 0], pixels[chosen, 1], -strengths[chosen]))]


def root_sift(raw: NDArray[np.float32]) -> NDArray[np.float32]:
    """SIFT descriptors (N, 128) to unit rows whose inner product is the Hellinger kernel.

    Arandjelovic and Zisserman, "Three things everyone should know to improve object retrieval", 2012.
    """
    total = np.maximum(raw.sum(axis=1, keepdims=True), np.float32(1e-7))
    return np.asarray(np.sqrt(raw / total), dtype=np.float32)


def match_features(
    a: LocalFeatures | NDArray[np.float32], b: LocalFeatures | NDArray[np.float32], *, ratio: float
) -> NDArray[np.int64]:
    """Mutual nearest neighbors that are clearly nearer than the second nearest, seen from both sides.

    The test is symmetric: swapping a and b swaps the columns and nothing else.

    Args:
        a, b: features, or their unit descriptors (N, D) and (M, D).
        ratio: a match's distance must be below this share of the distance to the second nearest (Lowe 2004).

    Returns:
        (K, 2) indices into a and b, rising in a. Empty when either side has fewer than two descriptors,
        for then there is no second nearest to compare with.
    """
    left = a.descriptors if isinstance(a, LocalFeatures) else a
    right = b.descriptors if isinstance(b, LocalFeatures) else b
    if len(left) < 2 or len(right) < 2:
        return np.empty((0, 2), dtype=np.int64)
    similarity = left @ right.T
    best_right, clear_left = _nearest(similarity, ratio)
    best_left, clear_right = _nearest(np.ascontiguousarray(similarity.T), ratio)
    rows = np.arange(len(left))
    kept = clear_left & (best_left[best_right] == rows) & clear_right[best_right]
    return np.stack([rows[kept], best_right[kept]], axis=1)


def _nearest(similarity: NDArray[np.float32], ratio: float) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Per row: the most similar column, and whether it passes the ratio test. Restores what it touches."""
    rows = np.arange(len(similarity))
    best = similarity.argmax(axis=1)
    first = similarity[rows, best]
    similarity[rows, best] = -2.0
    second = similarity.max(axis=1)
    similarity[rows, best] = first
    # Between unit vectors the squared distance is 2 - 2 s; twins differ by rounding alone.
    return best, (1.0 - first) + _ROUNDING < ratio * ratio * (1.0 - second)


def _shrunk(gray: Image, scale: float, interpolation: int) -> Image:
    if scale == 1.0:
        return gray
    height, width = (max(1, round(side * scale)) for side in gray.shape)
    return np.asarray(cv2.resize(gray, (width, height), interpolation=interpolation), dtype=np.uint8)
