"""KLT tracks: points followed from image to image, and the choice of new points to follow.

A track is an id and a pixel, without depth or pose; `slam.map.landmarks` holds the triangulated positions.
"""

from __future__ import annotations

from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from relocalizer.config import FeaturesConfig
from relocalizer.features import LocalFeatures, detect_features
from relocalizer.geometry import FloatArray
from relocalizer.images import Image, to_gray
from slam.config.schema import TracksConfig
from slam.map.tracks import Pixels

NEAR_LEVELS = 2  # number of pyramid levels in the search near a predicted pixel
# Maximum distance of a point from its predicted pixel for that search, as a fraction of the window: what moved farther
# may have met another part of the texture, and is searched with all levels.
NEAR_WINDOWS = 0.4
# Fraction of points not near their predictions above which the predictions are wrong, and none is searched near its
# own: after a wide step many pass the lenient check of that search.
MISPREDICTED = 0.5
# OpenCV computes rows of a window by eight pixels at a time and what is left of them one by one, which takes as long.
VECTOR_PX = 8
# The search for a point ends after this number of iterations, or with a step below this number of pixels.
ITERATIONS, STEP_PX = 15, 0.02


class PointTracker(Protocol):
    """Detects points and follows them. Works on gray images (H, W) uint8."""

    def gray(self, image: Image) -> Image: ...

    def detect(self, gray: Image) -> LocalFeatures: ...

    def follow(self, before: Image, after: Image, pixels: Pixels, guess: Pixels) -> tuple[Pixels, NDArray[np.bool_]]:
        """Pixels (N, 2) in `after` of the points at `pixels` (N, 2) in `before`, and a mask (N,) of those found.

        `guess` (N, 2) is the start of the search.
        """
        ...

    def follow_warped(
        self, before: Image, after: Image, pixels: Pixels, guess: Pixels, after_from_before: FloatArray
    ) -> tuple[Pixels, NDArray[np.bool_]]:
        """As `follow`, of an image whose view differs much, but after a homography little.

        Args:
            after_from_before: (3, 3) homography of pixels, such as that of a rotation of the camera.
        """
        ...

    def sharpness(self, gray: Image) -> float:
        """Measure that is larger for sharper images; comparable only between images of one stream."""
        ...


class KltTracker:
    """Pyramidal Lucas-Kanade with a forward-backward check.

    Bouguet, "Pyramidal implementation of the affine Lucas Kanade feature tracker", 2001;
    Kalal et al., "Forward-backward error", ICPR 2010.
    """

    def __init__(self, config: TracksConfig, features: FeaturesConfig, mask: NDArray[np.uint8] | None = None) -> None:
        """`mask` (H, W): points are detected and followed only where it is not zero."""
        self._config = config
        self._features = features
        self._mask = mask

    def gray(self, image: Image) -> Image:
        return to_gray(image)

    def detect(self, gray: Image) -> LocalFeatures:
        return detect_features(gray, self._features, self._mask)

    def follow(self, before: Image, after: Image, pixels: Pixels, guess: Pixels) -> tuple[Pixels, NDArray[np.bool_]]:
        """As `PointTracker.follow`; points near their guess cost half, because they need few pyramid levels."""
        start = np.ascontiguousarray(pixels, np.float32).reshape(-1, 2)
        found, ok = np.ascontiguousarray(guess, np.float32).reshape(-1, 2).copy(), np.zeros(len(start), bool)
        far, levels = np.ones(len(start), bool), self._config.pyramid_levels
        if not np.array_equal(found, start):  # a guess other than the place before is a prediction
            first = found.copy()
            found, ok = self._search(before, after, start, first, levels=NEAR_LEVELS, back_levels=1)
            far = ~ok | (np.linalg.norm(found - first, axis=1) > NEAR_WINDOWS * self._config.window_px)
            far |= far.mean() > MISPREDICTED
            found[far] = first[far]
        found[far], ok[far] = self._search(before, after, start[far], found[far], levels=levels, back_levels=levels)
        return found, ok if self._mask is None else ok & self._is_unmasked(found, self._mask)

    def follow_warped(
        self, before: Image, after: Image, pixels: Pixels, guess: Pixels, after_from_before: FloatArray
    ) -> tuple[Pixels, NDArray[np.bool_]]:
        """As `PointTracker.follow_warped`: the image before is warped into the view of the other one first."""
        height, width = before.shape
        warped = cv2.warpPerspective(before, after_from_before, (width, height), flags=cv2.INTER_LINEAR)
        start = cv2.perspectiveTransform(pixels.reshape(-1, 1, 2), after_from_before).reshape(-1, 2)
        return self.follow(np.asarray(warped, np.uint8), after, np.asarray(start, np.float32), guess)

    def _search(
        self, before: Image, after: Image, start: Pixels, guess: Pixels, *, levels: int, back_levels: int
    ) -> tuple[Pixels, NDArray[np.bool_]]:
        """Pixels (N, 2) in `after`, and the mask (N,) of those that pass the forward-backward check.

        The backward pass begins where it should end: with one level it is cheap, and too lenient after a wide step.
        """
        if len(start) == 0:
            return start.copy(), np.zeros(0, bool)
        found, status = self._flow(before, after, start, guess, levels)
        back, back_status = self._flow(after, before, found, start, back_levels)
        height, width = after.shape
        inside = ((found >= 1) & (found <= (width - 2, height - 2))).all(axis=1)
        near = np.linalg.norm(back - start, axis=1) < self._config.forward_backward_px
        return found, status & back_status & near & inside

    @staticmethod
    def _is_unmasked(pixels: Pixels, mask: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Mask (N,) of the pixels (N, 2) where the image mask is not zero."""
        height, width = mask.shape
        x, y = np.rint(np.nan_to_num(pixels)).T
        values = mask[np.clip(y, 0, height - 1).astype(int), np.clip(x, 0, width - 1).astype(int)]
        return np.asarray(values > 0)

    def _flow(
        self, before: Image, after: Image, start: Pixels, guess: Pixels, levels: int
    ) -> tuple[Pixels, NDArray[np.bool_]]:
        """Points (N, 2) in `after`, searched from a guess, and a mask (N,) of those found."""
        found, status, _ = cv2.calcOpticalFlowPyrLK(
            before,
            after,
            start.reshape(-1, 1, 2),
            guess.reshape(-1, 1, 2).copy(),
            winSize=window_size(self._config.window_px),
            maxLevel=min(levels, self._config.pyramid_levels) - 1,
            criteria=(cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, ITERATIONS, STEP_PX),
            flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
            minEigThreshold=1e-4,
        )
        return np.asarray(found, dtype=np.float32).reshape(-1, 2), np.asarray(status).ravel() == 1

    def sharpness(self, gray: Image) -> float:
        """Variance of the Laplacian at half resolution, which attenuates noise but not motion blur."""
        has_half = min(gray.shape) > 1
        half = cv2.resize(gray, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) if has_half else gray
        _, deviation = cv2.meanStdDev(cv2.Laplacian(half, cv2.CV_16S))  # a third of the time of NumPy's variance
        return float(deviation[0, 0] ** 2)


def window_size(side: int) -> tuple[int, int]:
    """Width and height of a window with about the area of a square of this side, and a width that is fast."""
    width = VECTOR_PX * max(1, round(side / VECTOR_PX))
    return width, max(3, round(side * side / width))


def choose_new(
    features: LocalFeatures, taken: Pixels, *, count: int, min_distance_px: float, size: tuple[int, int]
) -> NDArray[np.int64]:
    """Indices of at most `count` features, strongest first, none within `min_distance_px` of a pixel in `taken`.

    `size` is (width, height) of the image.
    """
    width, height = size
    free = np.full((height, width), 255, np.uint8)
    radius = max(1, round(min_distance_px))
    for x, y in np.rint(taken).astype(int):
        cv2.circle(free, (int(x), int(y)), radius, 0, -1)
    chosen: list[int] = []
    for k, (x, y) in enumerate(np.rint(features.pixels).astype(int)):
        if len(chosen) >= count:
            break
        if 0 <= x < width and 0 <= y < height and free[y, x]:
            chosen.append(k)
            cv2.circle(free, (int(x), int(y)), radius, 0, -1)
    return np.array(chosen, dtype=np.int64)
