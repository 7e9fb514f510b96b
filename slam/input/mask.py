"""Parts of the image that do not show the world: a mask image and rectangles in camera.yaml say which.

A car's bonnet, a display's text or the own robot's arm stands still in the image while the world moves, and points on
it contradict every motion of the camera. Masks are as COLMAP and ORB-SLAM have them: black is ignored, white is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from relocalizer.camera import MASK_KEYS, Camera, load_camera, read_camera_yaml
from relocalizer.errors import MaskError, SequenceError
from relocalizer.images import read_image, size_within, to_gray

Mask = NDArray[np.uint8]  # (H, W), 255 where the image is used, 0 where it is ignored
Rectangle = tuple[float, float, float, float]  # left, top, right, bottom, as shares of the image's width and height


def mask_of(width: int, height: int, image: Path | None, ignored: Sequence[Rectangle] = ()) -> Mask | None:
    """The mask of width x height images: what is white in the mask image and in none of the rectangles is used.

    Args:
        image: of the images' own size, or of their shape and resized; None when there is none.

    Raises:
        MaskError: it cannot be read, is of another shape, masks nothing, or nothing is left to be used.
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
    """A mask image, for images of width x height.

    Whatever is darker than half of its brightest pixel is black: 0 and 1 mean the same as 0 and 255, and what JPEG
    makes of black stays black.

    Raises:
        MaskError: it cannot be read, is of another shape, or is of one brightness everywhere.
    """
    try:
        gray = to_gray(read_image(path))
    except SequenceError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise MaskError(f"{path}: cannot be read as a mask ({reason}); expected a grayscale image") from None
    theirs = gray.shape[1], gray.shape[0]
    small, large = sorted((theirs, (width, height)), key=max)
    if size_within(*large, max(small)) != small:
        raise MaskError(
            f"{path}: the mask is {theirs[0]}x{theirs[1]}, the images are {width}x{height}; "
            "it must be of their size, or of the same shape"
        )
    if gray.max() == 0:
        raise MaskError(f"{path}: black everywhere, so nothing would be used; what is to be used must be white")
    mask = binary(gray)
    if mask.all():
        raise MaskError(f"{path}: white everywhere, so it masks nothing; what is to be ignored must be black")
    return np.asarray(cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), dtype=np.uint8)


def binary(gray: NDArray[np.uint8]) -> Mask:
    """255 where (H, W) is brighter than half of its brightest pixel, else 0."""
    return np.where(gray > gray.max() / 2, 255, 0).astype(np.uint8)


def masked_share(mask: Mask | None) -> float:
    """Share of the image that is ignored, 0 to 1."""
    return 0.0 if mask is None else float((mask == 0).mean())


def expect_some_use(mask: Mask) -> Mask:
    """The mask itself. Raises MaskError when it ignores the whole image."""
    if not mask.any():
        raise MaskError("mask: the mask and the rectangles to ignore cover the whole image, so nothing would be used")
    return mask


def ignored_in(path: Path) -> tuple[Rectangle, ...]:
    """The rectangles that a camera.yaml says are to be ignored.

    Either `ignore: [[left, top, right, bottom], ...]`, pixels of the camera's own width x height, of which right and
    bottom are the first that are used again; or `mask_rectangles: [[x_min, x_max, y_min, y_max], ...]`, shares of width
    and height, as stella_vslam has them.

    Raises:
        MaskError: they are not such lists, are empty or lie outside the image.
        CameraError: the file cannot be read.
    """
    if path.suffix.lower() not in (".yaml", ".yml"):
        return ()
    data = read_camera_yaml(path)
    if not any(data.get(key) for key in MASK_KEYS):
        return ()
    camera = load_camera(path)
    in_pixels = [_from_pixels(path, row, camera) for row in _rows(path, data, "ignore", "left, top, right, bottom")]
    as_shares = [_from_shares(path, row) for row in _rows(path, data, "mask_rectangles", "x_min, x_max, y_min, y_max")]
    return (*in_pixels, *as_shares)


def _rows(path: Path, data: dict[str, object], key: str, names: str) -> list[list[float]]:
    """Rows of four finite numbers under a key of the file; none when it is not there."""
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
