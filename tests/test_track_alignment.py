"""Alignment of tracks: what following from image to image adds up is removed, and nothing else is moved."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from relocalizer.config import FeaturesConfig
from slam.config.schema import TracksConfig
from slam.map.tracks import Tracks
from slam.tracking.klt import KltTracker
from slam.tracking.track_alignment import ANCHORS, EVERY, LARGEST_PX, TrackAlignment

WIDTH, HEIGHT = 320, 240
COUNT = 61


def texture(rng):
    """A wall of smooth patches, larger than the image."""
    noise = rng.uniform(0, 255, (2 * HEIGHT, 2 * WIDTH)).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2.5), None, 20, 235, cv2.NORM_MINMAX).astype(np.uint8)


def receding(k, turn_deg=0.0):
    """Homography of the wall into image k of a camera that moves back from it: a third is lost in the end."""
    scale = 1.3 * 0.7 ** (k / (COUNT - 1))
    c, s = scale * np.cos(np.radians(turn_deg * k)), scale * np.sin(np.radians(turn_deg * k))
    return np.array([[c, -s, WIDTH / 2], [s, c, HEIGHT / 2], [0, 0, 1]]) @ [[1, 0, -WIDTH], [0, 1, -HEIGHT], [0, 0, 1]]


def images(rng, **motion):
    wall = texture(rng)
    for k in range(COUNT):
        image = cv2.warpPerspective(wall, receding(k, **motion), (WIDTH, HEIGHT), flags=cv2.INTER_AREA)
        yield np.clip(image + rng.normal(0, 2, image.shape), 0, 255).astype(np.uint8)


def tracker():
    return KltTracker(TracksConfig(), FeaturesConfig())


def started(gray):
    pixels = tracker().detect(gray).pixels
    inside = ((pixels > 40) & (pixels < (WIDTH - 40, HEIGHT - 40))).all(axis=1)
    return Tracks(np.arange(inside.sum()), pixels[inside].astype(np.float32))


def drift(rng, *, is_aligned, **motion):
    """Distances (N,) of the tracks from their true pixels in the last image, pixels."""
    klt, alignment = tracker(), TrackAlignment(tracker())
    before, tracks, first = None, Tracks.none(), Tracks.none()
    for gray in images(rng, **motion):
        if before is None:
            tracks = first = started(gray)
        else:
            alignment.start(before, tracks)
            pixels, found = klt.follow(before, gray, tracks.pixels, tracks.pixels)
            tracks = Tracks(tracks.ids, pixels).where(found)
            if is_aligned:
                tracks = alignment.aligned(gray, tracks)
        before = gray
    last_from_first = receding(COUNT - 1, **motion) @ np.linalg.inv(receding(0, **motion))
    true = cv2.perspectiveTransform(first.pixels[tracks.ids][:, None], last_from_first)[:, 0]
    return np.linalg.norm(tracks.pixels - true, axis=1)


@pytest.mark.parametrize("turn_deg", [0.0, 0.5])
def test_the_drift_of_a_long_track_is_removed(turn_deg):
    plain = drift(np.random.default_rng(4), is_aligned=False, turn_deg=turn_deg)
    aligned = drift(np.random.default_rng(4), is_aligned=True, turn_deg=turn_deg)
    assert len(aligned) > 0.8 * len(plain) > 50
    assert np.median(aligned) < 0.5 * np.median(plain)
    assert np.median(aligned) < 0.15


def grid_of(count):
    rng = np.random.default_rng(0)
    return Tracks(np.arange(count), rng.uniform(40, 200, (count, 2)).astype(np.float32))


def test_a_track_that_is_far_off_is_not_moved_there():
    """A track that slid along an edge, or a point that moves: another place is no drift."""
    gray = next(images(np.random.default_rng(1)))
    alignment, tracks = TrackAlignment(tracker()), started(gray)
    alignment.start(gray, tracks)
    slid = tracks.pixels.copy()
    slid[:5] += 3 * LARGEST_PX
    off = Tracks(tracks.ids, slid)
    for _ in range(EVERY):
        aligned = alignment.aligned(gray, off)
    assert np.abs(aligned.pixels[:5] - slid[:5]).max() < LARGEST_PX
    np.testing.assert_allclose(aligned.pixels[5:], slid[5:], atol=0.1)


def test_tracks_keep_their_order_and_none_is_lost():
    gray = next(images(np.random.default_rng(2)))
    alignment = TrackAlignment(tracker())
    for ids in (np.arange(60), np.arange(30, 90)[::-1], np.arange(5), np.zeros(0, np.int64)):
        tracks = Tracks(ids, grid_of(len(ids)).pixels)
        for _ in range(EVERY):
            aligned = alignment.aligned(gray, tracks)
            np.testing.assert_array_equal(aligned.ids, tracks.ids)
            assert aligned.pixels.shape == tracks.pixels.shape
            assert np.isfinite(aligned.pixels).all()


def test_a_new_keyframe_puts_the_alignment_off():
    """Where keyframes follow each other quickly, their own features are exact enough, and the search costs time."""
    gray = next(images(np.random.default_rng(5)))
    alignment, tracks = TrackAlignment(tracker()), started(gray)
    moved = Tracks(tracks.ids, tracks.pixels + np.float32(0.4))
    for k in range(3 * EVERY):
        new = Tracks(np.arange(40) + 1000 * (k // (EVERY - 1) + 1), grid_of(40).pixels)
        alignment.start(gray, moved.joined(new) if k else tracks)
        np.testing.assert_array_equal(alignment.aligned(gray, moved).pixels, moved.pixels)


def test_images_are_not_kept_without_bound_and_may_change_their_size():
    alignment, rng = TrackAlignment(tracker()), np.random.default_rng(3)
    for k in range(3 * ANCHORS * EVERY):
        gray = rng.integers(0, 255, (HEIGHT, WIDTH + k // (ANCHORS * EVERY)), dtype=np.uint8)
        alignment.aligned(gray, Tracks(np.arange(40) + 40 * k, grid_of(40).pixels))
    assert len(alignment._anchors) == ANCHORS


def test_the_same_images_give_the_same_pixels():
    once, again = (drift(np.random.default_rng(7), is_aligned=True) for _ in range(2))
    np.testing.assert_array_equal(once, again)
