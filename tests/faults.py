"""Faults put into a clip: each takes the images of a clip and returns those with the fault in a range of frames."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from relocalizer.images import Image

Fault = Callable[[list[Image], range], list[Image]]


def read_clip(video: Path, count: int, *, width: int | None = None) -> list[Image]:
    """The first `count` images of a video, BGR, shrunk to `width`."""
    capture, images = cv2.VideoCapture(str(video)), []
    for _ in range(count):
        read, image = capture.read()
        if not read:
            break
        if width is not None:
            height = round(image.shape[0] * width / image.shape[1])
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        images.append(np.asarray(image, np.uint8))
    return images


def write_images(folder: Path, images: list[Image], camera: Path, *, focal: float = 1.0, width: int = 640) -> Path:
    """A folder of the images beside the bundled camera, whose focal length is multiplied by `focal`."""
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        cv2.imwrite(str(folder / f"{number:05d}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 95])
    values = dict(line.split(": ") for line in camera.read_text().splitlines() if ": " in line and line[0] != "#")
    size = width / float(values["width"])
    height = round(float(values["height"]) * size)
    center = [(float(values[name]) + 0.5) * size - 0.5 for name in ("cx", "cy")]
    focals = [float(values[name]) * size * focal for name in ("fx", "fy")]
    (folder / "camera.yaml").write_text(
        f"model: pinhole\nwidth: {width}\nheight: {height}\nfx: {focals[0]}\nfy: {focals[1]}\n"
        f"cx: {center[0]}\ncy: {center[1]}\ndistortion: []\n"
    )
    return folder


def changed(images: list[Image], frames: range, change: Callable[[Image, int], Image]) -> list[Image]:
    return [change(image, k) if k in frames else image for k, image in enumerate(images)]


def blackout(images: list[Image], frames: range) -> list[Image]:
    return changed(images, frames, lambda image, k: np.zeros_like(image))


def blur_burst(images: list[Image], frames: range) -> list[Image]:
    length = max(7, images[0].shape[1] // 20)
    kernel = np.full((1, length), 1.0 / length, np.float32)
    return changed(images, frames, lambda image, k: np.asarray(cv2.filter2D(image, -1, kernel), np.uint8))


def exposure_jump(images: list[Image], frames: range, gain: float = 1.7) -> list[Image]:
    return changed(images, frames, lambda image, k: np.asarray(cv2.convertScaleAbs(image, alpha=gain), np.uint8))


def frames_dropped(images: list[Image], frames: range) -> list[Image]:
    return [image for k, image in enumerate(images) if k not in frames]


def repeated_texture(images: list[Image], frames: range) -> list[Image]:
    height, width = images[0].shape[:2]
    side = width // 13
    tile = np.random.default_rng(3).integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
    tile = cv2.resize(np.tile(tile, (3, 3, 1)), (3 * side, 3 * side), interpolation=cv2.INTER_CUBIC)
    wall = np.tile(tile[side : 2 * side, side : 2 * side], (height // side + 3, width // side + 3, 1))

    def change(image: Image, k: int) -> Image:
        left = (7 * (k - frames.start)) % side
        return np.ascontiguousarray(wall[:height, left : left + width])

    return changed(images, frames, change)


def pure_rotation(images: list[Image], frames: range, deg_per_frame: float = 1.0) -> list[Image]:
    """The camera turns about its center, in front of what it saw in the first of the frames, mirrored at the border."""
    start = images[frames.start]
    height, width = start.shape[:2]
    canvas = cv2.copyMakeBorder(start, height, height, 2 * width, 2 * width, cv2.BORDER_REFLECT_101)
    focal = 465.0 * width / 640
    K = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])
    K_canvas = K.copy()
    K_canvas[:2, 2] += (2 * width, height)

    def change(image: Image, k: int) -> Image:
        turn = np.asarray(cv2.Rodrigues(np.array([0.0, np.radians(deg_per_frame) * (k - frames.start), 0.0]))[0])
        H = K_canvas @ turn @ np.linalg.inv(K)
        warped = cv2.warpPerspective(canvas, H, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        return np.asarray(warped, np.uint8)

    return changed(images, frames, change)


def covered_lens(images: list[Image], frames: range) -> list[Image]:
    """A finger before the lens: dark, without texture, over most of the image."""
    height, width = images[0].shape[:2]
    y, x = np.mgrid[:height, :width]
    edge = 0.85 * width
    cover = np.clip((edge - x + 0.15 * (y - height / 2)) / (0.05 * width), 0.0, 1.0)[..., None]
    finger = np.array([28.0, 24.0, 45.0])
    noise = np.random.default_rng(0).normal(0.0, 1.0, images[0].shape)
    return changed(
        images,
        frames,
        lambda image, k: np.clip(cover * (finger + noise) + (1 - cover) * image, 0, 255).astype(np.uint8),
    )


FAULTS: dict[str, Fault] = {
    "blackout": blackout,
    "blur": blur_burst,
    "exposure jump": exposure_jump,
    "dropped frames": frames_dropped,
    "repeated texture": repeated_texture,
    "pure rotation": pure_rotation,
    "covered lens": covered_lens,
}
