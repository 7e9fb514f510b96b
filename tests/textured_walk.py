"""A rendered clip of a walk through a textured room, seen with a wide lens."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from relocalizer.geometry import FloatArray
from relocalizer.images import Image

WIDTH, HEIGHT, FOCAL_PX = 400, 300, 170.0  # 99 degrees across; 346 px are assumed
FRAMES = 60
# Walls of a room open toward the camera: a corner and the two sides of each, meters, x right, y down, z forward.
WALLS = [
    ((-3.0, -1.5, 7.0), (6.0, 0.0, 0.0), (0.0, 3.0, 0.0)),
    ((-3.0, 1.5, 0.5), (6.0, 0.0, 0.0), (0.0, 0.0, 6.5)),
    ((-3.0, -1.5, 0.5), (6.0, 0.0, 0.0), (0.0, 0.0, 6.5)),
    ((-3.0, -1.5, 0.5), (0.0, 0.0, 6.5), (0.0, 3.0, 0.0)),
    ((3.0, -1.5, 0.5), (0.0, 0.0, 6.5), (0.0, 3.0, 0.0)),
]
TEXELS = 600  # side of a wall's texture, pixels


def textures(count: int) -> list[Image]:
    rng = np.random.default_rng(1)
    fine = [rng.integers(0, 256, (TEXELS // 6, TEXELS // 6, 3), dtype=np.uint8) for _ in range(count)]
    return [cv2.resize(noise, (TEXELS, TEXELS), interpolation=cv2.INTER_CUBIC) for noise in fine]


def poses(count: int) -> list[tuple[FloatArray, FloatArray]]:
    """Rotation to the camera, and position of the camera, on a swaying way into the room."""
    found = []
    for t in np.linspace(0.0, 1.0, count):
        turn = np.array([0.12 * np.sin(7 * t), 0.45 * np.sin(9 * t), 0.1 * np.cos(8 * t)])
        position = np.array([0.9 * np.sin(6 * t), 0.3 * np.cos(5 * t), -0.6 + 0.9 * t])
        found.append((np.asarray(cv2.Rodrigues(turn)[0]), position))
    return found


def rendered(walls: list[Image], rotation: FloatArray, position: FloatArray) -> Image:
    K = np.array([[FOCAL_PX, 0, (WIDTH - 1) / 2], [0, FOCAL_PX, (HEIGHT - 1) / 2], [0, 0, 1.0]])
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for texture, (corner, right, down) in zip(walls, WALLS, strict=False):
        plane = np.column_stack([np.array(right) / TEXELS, np.array(down) / TEXELS, np.array(corner) - position])
        H = K @ rotation @ plane
        cv2.warpPerspective(
            texture, H, (WIDTH, HEIGHT), dst=image, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_TRANSPARENT
        )
    return image


def write_clip(folder: Path, images: list[Image]) -> Path:
    folder.mkdir()
    for number, image in enumerate(images):
        cv2.imwrite(str(folder / f"{number:04d}.png"), image)
    return folder


def write_walk(folder: Path) -> Path:
    """Images of the walk in a new folder."""
    walls = textures(len(WALLS))
    return write_clip(folder, [rendered(walls, *pose) for pose in poses(FRAMES)])
