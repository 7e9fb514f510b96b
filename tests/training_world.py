"""A small box with textured walls, drawn by the rasterizer of the bundled room, as images with exact poses."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from scipy.spatial.transform import RigidTransform, Rotation

from relocalizer.camera import Camera
from relocalizer.maps.image_matching import PosedImage
from relocalizer.network.model import Architecture
from relocalizer.training.pair_data import PairSet, View

sys.path.append(str(Path(__file__).resolve().parent.parent / "sequences"))
from room.raster import Pinhole, Quad, Rasteriser

SIZE = np.array([6.0, 3.2, 6.0])  # meters, of the box
WIDTH, HEIGHT = 48, 36
CAMERA = Camera(width=WIDTH, height=HEIGHT, fx=36.0, fy=36.0, cx=(WIDTH - 1) / 2, cy=(HEIGHT - 1) / 2)
SMALL = Architecture(
    patch_size=6, enc_embed_dim=64, enc_depth=2, enc_num_heads=2, dec_embed_dim=64, dec_depth=3, dec_num_heads=2
)


def rasterizer(seed: int = 0, camera: Camera = CAMERA) -> Rasteriser:
    """The box, its walls painted at random."""
    rng = np.random.default_rng(seed)
    w, h, d = SIZE / 2
    corners = {
        "front": ([-w, -h, d], [2 * w, 0, 0], [0, 2 * h, 0]),
        "back": ([w, -h, -d], [-2 * w, 0, 0], [0, 2 * h, 0]),
        "left": ([-w, -h, -d], [0, 0, 2 * d], [0, 2 * h, 0]),
        "right": ([w, -h, d], [0, 0, -2 * d], [0, 2 * h, 0]),
        "floor": ([-w, h, d], [2 * w, 0, 0], [0, 0, -2 * d]),
        "ceiling": ([-w, -h, -d], [2 * w, 0, 0], [0, 0, 2 * d]),
    }
    quads = []
    for origin, right, down in corners.values():
        coarse = rng.integers(20, 236, (8, 10, 3), dtype=np.uint8)
        texture = cv2.resize(coarse, (128, 96), interpolation=cv2.INTER_CUBIC)
        quads.append(Quad(np.array(origin), np.array(right), np.array(down), texture, two_sided=True))
    return Rasteriser(quads, Pinhole(camera.width, camera.height, camera.fx, camera.fy, camera.cx, camera.cy))


def pose(rng: np.random.Generator, turn_deg: float = 45.0) -> np.ndarray:
    """world_from_cam within `turn_deg` of the front wall."""
    matrix = np.eye(4)
    angles = rng.uniform(-1, 1, 3) * np.radians([turn_deg, turn_deg * 0.3, turn_deg * 0.2])
    matrix[:3, :3] = Rotation.from_euler("yxz", angles).as_matrix()
    matrix[:3, 3] = rng.uniform(-1, 1, 3) * (SIZE / 2 - [1.2, 0.8, 1.2])
    return matrix


def moved(world_from_cam: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another pose nearby: up to 40, 16 and 12 degrees turned, 0.5 to 1.2 m away."""
    other = world_from_cam.copy()
    turn = Rotation.from_euler("yxz", rng.uniform(-1, 1, 3) * np.radians([40, 16, 12]))
    other[:3, :3] = world_from_cam[:3, :3] @ turn.as_matrix()
    step = rng.standard_normal(3)
    other[:3, 3] += step / np.linalg.norm(step) * rng.uniform(0.5, 1.2)
    other[:3, 3] = np.clip(other[:3, 3], -SIZE / 2 + 0.2, SIZE / 2 - 0.2)
    return other


@cache
def rendered(count: int, seed: int = 0) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """(images, poses) of `count` pairs: images 2k and 2k + 1 are a pair. Made once per process."""
    rng, drawn = np.random.default_rng(seed + 1), rasterizer()
    poses = []
    for _ in range(count):
        first = pose(rng)
        poses += [first, moved(first, rng)]
    images = tuple(np.clip(drawn.render(p).rgb, 0, 255).astype(np.uint8) for p in poses)
    return images, np.array(poses)


def pair_set(count: int, *, seed: int = 0, name: str = "box") -> PairSet:
    """`count` pairs in memory."""
    images, poses = rendered(count, seed)

    def view(k: int) -> View:
        return View(
            name=f"{name} {k}",
            identity=f"{name} {seed} {k}",
            read=lambda: images[k],
            camera=CAMERA,
            world_from_cam=poses[k],
        )

    return PairSet(
        name=name,
        pairs=np.arange(2 * count).reshape(-1, 2),
        view=view,
        identity=lambda k: f"{name} {seed} {k}",
        has_direction=np.ones(count, bool),
    )


def walk(count: int, seed: int = 0, camera: Camera = CAMERA) -> list[PosedImage]:
    """Images of a smooth path through the box, turning slowly."""
    drawn = rasterizer(seed, camera)
    found = []
    for k in range(count):
        t = k / 12
        matrix = np.eye(4)
        matrix[:3, :3] = Rotation.from_euler("yx", [0.5 * np.sin(0.7 * t), 0.1 * np.cos(t)]).as_matrix()
        matrix[:3, 3] = [1.4 * np.sin(t), 0.3 * np.sin(1.7 * t), 1.2 * np.cos(0.8 * t) - 1.0]
        image = np.clip(drawn.render(matrix).rgb, 0, 255).astype(np.uint8)
        found.append(
            PosedImage(
                name=f"{k:04d}.png",
                read=lambda image=image: image,
                camera=camera,
                world_from_cam=RigidTransform.from_matrix(matrix),
                timestamp_ns=k * 100_000_000,
            )
        )
    return found
