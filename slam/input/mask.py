"""Masks of image parts that do not show the scene, from a mask image and from rectangles in camera.yaml.

A car's hood, overlaid text or a robot's own arm is static in the image while the scene moves, so points on it are
inconsistent with the camera's motion. As in COLMAP, black is ignored and white is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from relocalizer.camera import MASK_KEYS, Camera, read_camera_yaml
from relocalizer.camera_files import read_camera_file
from relocalizer.errors import MaskError, SequenceError
from relocalizer.images import read_image, size_within, to_gray

Mask = NDArray[np.uint8]  # (H, W), 255 where the image is used, 0 where it is ignored.
Rectangle = tuple[float, float, float, float]  # Left, top, right, bottom, as fractions of the image's width and height.


def mask_of(width: int, height: int, image: Path | None, ignored: Sequence[Rectangle] = ()) -> Mask | None:
    """The mask of width x height images: used are pixels that are white in the mask image and in no rectangle.

    Args:
        image: mask image of the same size, or of the same aspect ratio (then it is resized); None if there is none.

    Returns:
        The mask; None if there is neither a mask image nor a rectangle.

    Raises:
        MaskError: the mask image cannot be read, has another aspect ratio or masks nothing, or everything is masked.
    """
    if image is None and not ignored:
        return None
    mask = np.full((height, width), 255, np.uint8) if image is None else read_mask(image, width, height)
    for left, top, right, bottom in ignored:
        x = np.rint(np.array([left, right]) * width).astype(int)
        y = np.rint(np.array([top, bottom]) * height).astype(int)
        mask[y[0] : y[1], x[0] : x[1]] = 0
    return expect_some_use(mask)


def read_mask(path: Path, width: int, height: int) -> Mask:
    """Read a mask image, resized to width x height.

    Pixels not brighter than half of the brightest one are black: 0 and 1 are equivalent to 0 and 255, and compression
    artifacts of JPEG have no effect.

    Raises:
        MaskError: it cannot be read, has another aspect ratio, or is uniformly black or white.
    """
    try:
        gray = to_gray(read_image(path))
    except SequenceError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise MaskError(f"{path}: cannot be read as a mask ({reason}); expected a grayscale image") from None
    size = gray.shape[1], gray.shape[0]
    small, large = sorted((size, (width, height)), key=max)
    if size_within(*large, max(small)) != small:
        raise MaskError(
            f"{path}: the mask is {size[0]}x{size[1]}, the images are {width}x{height}; "
            "it must be of their size, or of the same shape"
        )
    if gray.max() == 0:
        raise MaskError(f"{path}: black everywhere, so nothing would be used; what is to be used must be white")
    mask = binary(gray)
    if mask.all():
        raise MaskError(f"{path}: white everywhere, so it masks nothing; what is to be ignored must be black")
    return np.asarray(cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), dtype=np.uint8)


def binary(gray: NDArray[np.uint8]) -> Mask:
    """255 where an image (H, W) is brighter than half of its brightest pixel, otherwise 0."""
    return np.where(gray > gray.max() / 2, 255, 0).astype(np.uint8)


def masked_share(mask: Mask | None) -> float:
    """Fraction of the image that is ignored, 0 to 1."""
    return 0.0 if mask is None else float((mask == 0).mean())


def expect_some_use(mask: Mask) -> Mask:
    """Return the mask. Raises MaskError when it ignores the whole image."""
    if not mask.any():
        raise MaskError("mask: the mask and the rectangles to ignore cover the whole image, so nothing would be used")
    return mask


def ignored_in(path: Path) -> tuple[Rectangle, ...]:
    """The rectangles of a camera.yaml that are to be ignored.

    Either `ignore: [[left, top, right, bottom], ...]`, in pixels of the camera's width x height, with right and bottom
    exclusive; or `mask_rectangles: [[x_min, x_max, y_min, y_max], ...]`, in fractions of width and height, as in
    stella_vslam.

    Raises:
        MaskError: the entries are not such lists, or a rectangle is empty or outside the image.
        CameraError: the file cannot be read.
    """
    if path.suffix.lower() not in (".yaml", ".yml"):
        return ()
    data = read_camera_yaml(path)
    if not any(data.get(key) for key in MASK_KEYS):
        return ()
    camera = read_camera_file(path)
    if not isinstance(camera, Camera):
        if data.get("ignore"):
            raise MaskError(f"{path}: ignore: needs the size of the images in the same file")
        return tuple(
            _from_shares(path, row) for row in _rows(path, data, "mask_rectangles", "x_min, x_max, y_min, y_max")
        )
    in_pixels = [_from_pixels(path, row, camera) for row in _rows(path, data, "ignore", "left, top, right, bottom")]
    as_shares = [_from_shares(path, row) for row in _rows(path, data, "mask_rectangles", "x_min, x_max, y_min, y_max")]
    return (*in_pixels, *as_shares)


def _rows(path: Path, data: dict[str, object], key: str, names: str) -> list[list[float]]:
    """Rows of four finite numbers under a key of the file; empty if the key is missing."""
    rows = data.get(key) or []
    if not isinstance(rows, list):
        raise MaskError(f"{path}: {key}: expected a list of [{names}], got {rows!r}")
    for row in rows:
        is_four = isinstance(row, list) and len(row) == 4
        if not is_four or not all(_is_number(number) for number in row):
            raise MaskError(f"{path}: {key}: expected [{names}], got {row!r}")
    return rows


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _from_pixels(path: Path, row: list[float], camera: Camera) -> Rectangle:
    left, top, right, bottom = row
    if right <= left or bottom <= top:
        raise MaskError(
            f"{path}: ignore: {row}: right must be larger than left, and bottom (counted downwards) larger than top"
        )
    if right <= 0 or bottom <= 0 or left >= camera.width or top >= camera.height:
        raise MaskError(f"{path}: ignore: {row}: outside the {camera.width}x{camera.height} image")
    x, y = (
        np.clip(ends, 0, side) / side for ends, side in (((left, right), camera.width), ((top, bottom), camera.height))
    )
    return float(x[0]), float(y[0]), float(x[1]), float(y[1])


def _from_shares(path: Path, row: list[float]) -> Rectangle:
    x_min, x_max, y_min, y_max = row
    if min(row) < 0 or max(row) > 1:
        raise MaskError(f"{path}: mask_rectangles: {row}: expected shares of the width and the height, from 0 to 1")
    if x_max <= x_min or y_max <= y_min:
        raise MaskError(f"{path}: mask_rectangles: {row}: x_max must be larger than x_min, and y_max than y_min")
    return x_min, y_min, x_max, y_max
