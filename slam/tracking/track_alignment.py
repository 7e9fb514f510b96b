"""Alignment of tracks with the images in which they were anchored, which removes their drift.

A point that is followed from each image to the next adds the error of every step: half a pixel after some fifty
images, and then no bundle adjustment removes it. So where no keyframe is inserted, the points are searched every few
images near their pixels in an earlier image as well, which is warped into the newest one first (as Shi and Tomasi's
affine consistency check compares with the first image, "Good features to track", CVPR 1994; and as the feature
alignment of Forster et al., "SVO", ICRA 2014).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from relocalizer.geometry import FloatArray
from relocalizer.images import Image
from slam.map.tracks import Pixels, Tracks, among
from slam.tracking.klt import PointTracker

EVERY = 12  # interval between a keyframe or an alignment and the next alignment, frames
ANCHORS = 5  # maximum number of earlier images that tracks are anchored in
FEWEST = 20  # minimum number of tracks of an anchor that are aligned, as a homography is fitted to them
HOMOGRAPHY_PX = 4.0  # maximum distance of the inliers of that homography
LARGEST_PX = 1.5  # maximum correction of a track, pixels; a larger one found another place


@dataclass(frozen=True, slots=True, eq=False)
class Anchor:
    """An earlier gray image and the tracks whose pixels in it are the reference of later ones."""

    gray: Image
    tracks: Tracks


class TrackAlignment:
    """The anchors of the tracks of one stream of images."""

    def __init__(self, tracker: PointTracker) -> None:
        self._tracker = tracker
        self._anchors: deque[Anchor] = deque(maxlen=ANCHORS)
        self._known = np.zeros(0, np.int64)  # ids of the tracks of the last image
        self._frames = 0  # since the last keyframe or alignment

    def start(self, gray: Image, tracks: Tracks) -> None:
        """Anchor the tracks that begin in an image, if it is a keyframe's; to be called for each image."""
        started = tracks.where(~among(tracks.ids, self._known))
        self._known = tracks.ids
        if len(started) >= FEWEST:
            self._anchors.append(Anchor(gray, started))
            self._frames = 0

    def aligned(self, gray: Image, tracks: Tracks) -> Tracks:
        """The tracks of the next image, without their drift `EVERY` images after the last keyframe or alignment."""
        self._frames += 1
        if self._frames < EVERY:
            return tracks
        self._frames = 0
        pixels, is_anchored = tracks.pixels.copy(), np.zeros(len(tracks), bool)
        for anchor in self._anchors:
            rows, found = self._found(anchor, gray, tracks.where(~is_anchored))
            rows = np.flatnonzero(~is_anchored)[rows]
            pixels[rows], is_anchored[rows] = found, True
        aligned = Tracks(tracks.ids, pixels)
        if (~is_anchored).sum() >= FEWEST:
            self._anchors.append(Anchor(gray, aligned.where(~is_anchored)))
        return aligned

    def _found(self, anchor: Anchor, gray: Image, tracks: Tracks) -> tuple[NDArray[np.int64], Pixels]:
        """Rows of the tracks that are found near their pixels from the image of an anchor, and where, (N, 2)."""
        nothing = np.zeros(0, np.int64), np.zeros((0, 2), np.float32)
        if anchor.gray.shape != gray.shape:
            return nothing
        _, before, now = np.intersect1d(anchor.tracks.ids, tracks.ids, assume_unique=True, return_indices=True)
        if len(now) < FEWEST:
            return nothing
        start, guess = anchor.tracks.pixels[before], tracks.pixels[now]
        homography = homography_of(start, guess)
        if homography is None:
            return nothing
        pixels, found = self._tracker.follow_warped(anchor.gray, gray, start, guess, homography)
        near = found & (np.linalg.norm(pixels - guess, axis=1) < LARGEST_PX)  # False for NaN
        return now[near], pixels[near]


def homography_of(first: Pixels, second: Pixels) -> FloatArray | None:
    """The homography (3, 3) second_from_first of most of some points (N, 2) of two images; None without one."""
    found, _ = cv2.findHomography(first, second, cv2.RANSAC, HOMOGRAPHY_PX)
    if found is None or not np.isfinite(found).all():
        return None
    return np.asarray(found, np.float64)
