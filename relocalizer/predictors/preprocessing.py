"""Preprocessing of images for Reloc3r, with the mapping back to the original pixels and camera.

Resizing uses Pillow, which filters when downsampling and was used in training. `prepare_calibrated` is for images with
a known camera (as in the published evaluation), `prepare_loose` for images without.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image as pillow

from relocalizer.camera import Camera
from relocalizer.errors import CameraError, SequenceError
from relocalizer.geometry import FloatArray
from relocalizer.images import Image

Variant = Literal[224, 512]

PATCH = 16  # side of a patch, pixels; the sides of prepared images are multiples of it
TRAINED_SIZES: dict[Variant, tuple[tuple[int, int], ...]] = {
    224: ((224, 224),),
    512: ((512, 384), (512, 336), (512, 288), (512, 256), (512, 160)),
}  # (width, height); swapped for portrait images
NEARLY_SQUARE = 1.1  # minimum ratio of height to width of a portrait image
BORDER_SHARE = 5  # ratio of a side to the minimum distance of the principal point from the border along it
SIZE_SLACK = 1e-8  # offset of the scale against rounding that would make a resized side one pixel too short


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PreparedImage:
    """An image at the network's size.

    Attributes:
        pixels: RGB uint8 (H, W, 3), H and W multiples of 16.
        scale: (x, y), prepared pixels per pixel of the source.
        offset: (x, y), with prepared = scale * source + offset.
        camera: the camera of these pixels, if that of the source is known.
    """

    pixels: Image
    scale: tuple[float, float]
    offset: tuple[float, float]
    camera: Camera | None

    def to_source(self, pixels: ArrayLike) -> FloatArray:
        """Map pixels (N, 2) of the prepared image to its source."""
        return np.asarray((np.asarray(pixels, dtype=np.float64) - self.offset) / np.asarray(self.scale))

    def from_source(self, pixels: ArrayLike) -> FloatArray:
        """Map pixels (N, 2) of the source to the prepared image; they may lie outside of it."""
        return np.asarray(pixels, dtype=np.float64) * self.scale + self.offset


def prepare(image: Image, camera: Camera | None, variant: Variant) -> PreparedImage:
    """Prepare an image, with its camera if it has one, for the 224 or the 512 network.

    Raises:
        SequenceError: the image is smaller than a patch, too narrow, or not uint8.
        CameraError: the camera does not fit the image, or its principal point is too near to the border.
    """
    if camera is None:
        return prepare_loose(image, variant)
    return prepare_calibrated(image, camera, trained_size(image, camera, variant))


def prepare_loose(image: Image, variant: Variant, camera: Camera | None = None) -> PreparedImage:
    """The center crop of an image of any camera, resized to a long edge of 512 or a short edge of 224.

    Raises:
        SequenceError: the image is smaller than a patch, too narrow, or not uint8.
    """
    step = _Preparation(_rgb(image), camera)
    width, height = step.size
    longest = max(width, height)
    target = 512 if variant == 512 else round(224 * max(width / height, height / width))
    # Upsampling is bicubic as in the reference, because Lanczos would ring.
    filtering = pillow.Resampling.LANCZOS if longest > target else pillow.Resampling.BICUBIC
    step.resize(round(width * target / longest), round(height * target / longest), filtering)
    half_width, half_height = _half_sizes(step.size, variant)
    if min(half_width, half_height) < PATCH // 2:
        raise SequenceError(f"image of {width} x {height}: too narrow for the network")
    left, top = step.size[0] // 2 - half_width, step.size[1] // 2 - half_height
    step.crop(left, top, 2 * half_width, 2 * half_height)
    return step.result()


def prepare_calibrated(image: Image, camera: Camera, size: tuple[int, int]) -> PreparedImage:
    """Crop of an image centered at its principal point, resized to `size` (width, height), width >= height.

    Width and height are swapped for portrait images; nearly square images count as landscape.

    Raises:
        SequenceError: the image is smaller than a patch, or not uint8.
        CameraError: the camera does not fit the image, or its principal point is too near to the border.
    """
    step = _Preparation(_rgb(image), camera)
    left, top, width, height = _centered_window(step.size, camera)
    step.crop(left, top, width, height)
    target_width, target_height = _oriented(size, width, height)
    scale = max(target_width / width, target_height / height) + SIZE_SLACK
    step.resize(int(width * scale), int(height * scale), pillow.Resampling.LANCZOS)
    left, top = round((step.size[0] - target_width) / 2), round((step.size[1] - target_height) / 2)
    step.crop(left, top, target_width, target_height)
    return step.result()


def trained_size(image: Image, camera: Camera, variant: Variant) -> tuple[int, int]:
    """The training size (width, height), width >= height, that crops the image least.

    Raises:
        CameraError: the camera does not fit the image, or its principal point is too near to the border.
    """
    _, _, width, height = _centered_window((image.shape[1], image.shape[0]), camera)
    return _nearest_size(width, height, variant)


def calibrated_size(camera: Camera, variant: Variant) -> tuple[int, int]:
    """Size (width, height) of the prepared images of a camera.

    Raises:
        CameraError: its principal point is too near to the border.
    """
    _, _, width, height = _centered_window((camera.width, camera.height), camera)
    return _oriented(_nearest_size(width, height, variant), width, height)


def fitted_size(camera: Camera, size: tuple[int, int]) -> tuple[int, int]:
    """Size (width, height) of the images of a camera that `prepare_calibrated` gives for `size`.

    Raises:
        CameraError: its principal point is too near to the border.
    """
    _, _, width, height = _centered_window((camera.width, camera.height), camera)
    return _oriented(size, width, height)


def nearest_size(camera: Camera, variant: Variant) -> tuple[int, int]:
    """The training size (width, height), width >= height, that crops the images of a camera least.

    Raises:
        CameraError: its principal point is too near to the border.
    """
    _, _, width, height = _centered_window((camera.width, camera.height), camera)
    return _nearest_size(width, height, variant)


def network_input(pixels: Image) -> NDArray[np.float32]:
    """Network input (3, H, W), float32 in [-1, 1], of prepared pixels (H, W, 3)."""
    return np.ascontiguousarray(((pixels.astype(np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1))


class _Preparation:
    """Intermediate state of a preparation: the image, its camera, and the mapping from the source's pixels."""

    def __init__(self, image: pillow.Image, camera: Camera | None) -> None:
        self._image = image
        self._camera = camera
        self._scale, self._offset = np.ones(2), np.zeros(2)

    @property
    def size(self) -> tuple[int, int]:
        return self._image.size

    def crop(self, left: int, top: int, width: int, height: int) -> None:
        self._image = self._image.crop((left, top, left + width, top + height))
        self._offset = self._offset - (left, top)
        if self._camera is not None:
            self._camera = self._camera.cropped(left, top, width, height)

    def resize(self, width: int, height: int, filtering: pillow.Resampling) -> None:
        factor = np.array([width, height]) / self.size
        self._image = self._image.resize((width, height), filtering)
        self._scale, self._offset = self._scale * factor, (self._offset + 0.5) * factor - 0.5
        if self._camera is not None:
            self._camera = self._camera.resized(width, height)

    def result(self) -> PreparedImage:
        pixels = np.array(self._image, dtype=np.uint8)
        pixels.setflags(write=False)
        (sx, sy), (ox, oy) = self._scale.tolist(), self._offset.tolist()
        return PreparedImage(pixels=pixels, scale=(sx, sy), offset=(ox, oy), camera=self._camera)


def _half_sizes(size: tuple[int, int], variant: Variant) -> tuple[int, int]:
    """Half of the width and height of the center crop of a resized image."""
    width, height = size
    if variant == 224:
        half = min(width // 2, height // 2)
        return half, half
    half_width, half_height = (PATCH // 2 * (2 * (side // 2) // PATCH) for side in size)
    return half_width, 3 * half_width // 4 if width == height else half_height


def _nearest_size(width: int, height: int, variant: Variant) -> tuple[int, int]:
    is_portrait = height > NEARLY_SQUARE * width
    ratio = height / width if is_portrait else width / height

    def kept_fraction(size: tuple[int, int]) -> float:
        relative = ratio * size[1] / size[0]
        return min(relative, 1 / relative)

    return max(TRAINED_SIZES[variant], key=kept_fraction)


def _oriented(size: tuple[int, int], width: int, height: int) -> tuple[int, int]:
    """A training size (width, height), swapped if an image of this width and height is portrait."""
    return size[::-1] if height > NEARLY_SQUARE * width else size


def _centered_window(size: tuple[int, int], camera: Camera) -> tuple[int, int, int, int]:
    """The largest window (left, top, width, height) centered at the principal point."""
    width, height = size
    if (camera.width, camera.height) != size:
        raise CameraError(
            f"camera of {camera.width} x {camera.height} pixels does not fit an image of {width} x {height}"
        )
    x, y = round(camera.cx), round(camera.cy)
    margin_x, margin_y = min(x, width - x), min(y, height - y)
    if margin_x <= width / BORDER_SHARE or margin_y <= height / BORDER_SHARE:
        raise CameraError(
            f"camera: principal point ({camera.cx:.1f}, {camera.cy:.1f}) of an image of {width} x {height} lies "
            "nearer to its border than a fifth of its side; check cx and cy, or crop the images"
        )
    return x - margin_x, y - margin_y, 2 * margin_x, 2 * margin_y


def _rgb(image: Image) -> pillow.Image:
    """Convert an image to Pillow RGB; gray is replicated to three channels, and alpha is dropped."""
    shape = image.shape
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and shape[2] not in (1, 3, 4)):
        raise SequenceError(f"image: expected uint8 (H, W, 3), got {image.dtype} {shape}")
    if min(shape[:2]) < PATCH:
        raise SequenceError(f"image of {shape[1]} x {shape[0]}: smaller than one patch of {PATCH} x {PATCH} pixels")
    squeezed = image[:, :, 0] if image.ndim == 3 and shape[2] == 1 else image
    return pillow.fromarray(np.ascontiguousarray(squeezed)).convert("RGB")
