"""Thumbnails of keyframes, and two of them side by side with their matches."""

from __future__ import annotations

import cv2
import numpy as np
import rerun as rr

from relocalizer.camera import Camera
from relocalizer.images import Image, decode_image, encode_jpeg
from slam.map.image_points import MatchedPoints
from slam.viz.canvas import INLIER, OUTLIER, Canvas, screen_radius

WIDTH = 320  # width of a thumbnail, pixels
JPEG_QUALITY = 70


class KeyframeThumbnails:
    """The thumbnails of all keyframes so far, each about 10 kB."""

    def __init__(self) -> None:
        self._jpeg: dict[int, bytes] = {}
        self._scale: dict[int, float] = {}  # pixels of the thumbnail per pixel of the image

    def add(self, keyframe_id: int, image: Image | None, camera: Camera) -> None:
        """Keep the thumbnail of a keyframe, if there is one."""
        if image is not None and image.size:
            small, self._scale[keyframe_id] = shrunk(image, camera)
            self._jpeg[keyframe_id] = encode_jpeg(small, JPEG_QUALITY)

    def get(self, keyframe_id: int) -> tuple[Image, float] | None:
        """The thumbnail of a keyframe, and its pixels per pixel of the image; None if there is none."""
        if keyframe_id not in self._jpeg:
            return None
        return decode_image(self._jpeg[keyframe_id], f"keyframe {keyframe_id}"), self._scale[keyframe_id]


def shrunk(image: Image, camera: Camera) -> tuple[Image, float]:
    """The image at the width of a thumbnail, and its pixels per pixel of the camera, whose image may be larger."""
    if image.shape[1] > WIDTH:
        size = (WIDTH, max(1, round(image.shape[0] * WIDTH / image.shape[1])))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    return image, image.shape[1] / camera.width


def log_pair(
    canvas: Canvas, path: str, left: tuple[Image, float], right: tuple[Image, float], matches: MatchedPoints
) -> None:
    """Log two thumbnails side by side as one image at `path`, with lines between the matches."""
    (first, first_scale), (second, second_scale) = left, right
    height, offset = max(first.shape[0], second.shape[0]), first.shape[1]
    both = np.zeros((height, offset + second.shape[1], 3), np.uint8)
    both[: first.shape[0], :offset] = first
    both[: second.shape[0], offset:] = second
    encoded = rr.EncodedImage(contents=encode_jpeg(both, JPEG_QUALITY), media_type="image/jpeg")
    canvas.recording.log(path, encoded)
    # Rerun's pixel (0, 0) is the corner of the image, ours the center of its first pixel.
    start = (matches.pixels_i + 0.5) * first_scale
    end = (matches.pixels_j + 0.5) * second_scale + np.array([offset, 0], np.float32)
    lines = np.stack([start, end], axis=1).astype(np.float32).reshape(-1, 2, 2)
    for name, chosen, color, radius in (
        ("outliers", ~matches.is_inlier, OUTLIER, 0.5),
        ("inliers", matches.is_inlier, INLIER, 0.7),
    ):
        strips = rr.LineStrips2D(lines[chosen], colors=color, radii=screen_radius(radius))
        canvas.recording.log(f"{path}/{name}", strips)
