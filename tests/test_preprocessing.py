"""Images are prepared byte for byte as the reference does it, and the camera follows its pixels."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from relocalizer.camera import Camera
from relocalizer.errors import CameraError, SequenceError
from relocalizer.images import Image
from relocalizer.predictors.preprocessing import network_input, prepare, prepare_calibrated, prepare_loose, trained_size

PARITY = os.environ.get("RELOC3R_PARITY")
SIZES = [
    (640, 480),
    (480, 640),
    (1024, 768),
    (1296, 968),
    (1920, 1080),
    (500, 500),
    (512, 512),
    (300, 200),
    (1000, 667),
    (333, 517),
    (1241, 376),
    (752, 480),
    (517, 400),
    (400, 517),
    (224, 224),
    (229, 227),
]


def formula_image(width: int, height: int) -> Image:
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    values = x * x * (c + 1) // 64 + y * (3 * c + 5) + x * y // (37 + 11 * c)
    return np.asarray(values % 256, dtype=np.uint8)


def camera_of(width: int, height: int, **change: Any) -> Camera:
    numbers = {"fx": 0.9 * width, "fy": 0.9 * width, "cx": width / 2, "cy": height / 2} | change
    return Camera(width=width, height=height, **numbers)


def dot_at(width: int, height: int, x: int, y: int) -> Image:
    image = np.zeros((height, width, 3), np.uint8)
    image[y - 2 : y + 3, x - 2 : x + 3] = 255
    return image


def centroid(pixels: Image) -> Any:
    weights = pixels[:, :, 0].astype(float)
    ys, xs = np.mgrid[: weights.shape[0], : weights.shape[1]]
    return np.array([(weights * xs).sum(), (weights * ys).sum()]) / weights.sum()


@pytest.mark.skipif(PARITY is None, reason="RELOC3R_PARITY does not name the folder of reference values")
@pytest.mark.parametrize("variant", [224, 512])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_prepared_bytes_equal_the_reference(width: int, height: int, variant: Any) -> None:
    golden = np.load(Path(str(PARITY)) / "prims" / "golden.npz", allow_pickle=False)
    key = f"image/{width}x{height}/{variant}"
    pixels = prepare_loose(formula_image(width, height), variant).pixels
    assert pixels.shape[:2] == tuple(golden[f"{key}/shape"])
    assert np.abs(pixels[::16, ::16].astype(int) - golden[f"{key}/sample"]).max() <= 1
    assert hashlib.sha256(pixels.tobytes()).digest() == golden[f"{key}/sha256"].tobytes()


@pytest.mark.parametrize(
    ("size", "prepared"),
    [
        ((640, 480), (512, 384)),
        ((1920, 1080), (512, 288)),
        ((1296, 968), (512, 368)),
        ((752, 480), (512, 320)),
        ((1241, 376), (512, 144)),
        ((480, 640), (384, 512)),
        ((500, 500), (512, 384)),
    ],
)
def test_loose_images_of_the_512_network_get_the_published_sizes(
    size: tuple[int, int], prepared: tuple[int, int]
) -> None:
    assert prepare_loose(np.zeros((*size[::-1], 3), np.uint8), 512).pixels.shape[:2] == prepared[::-1]


@pytest.mark.parametrize("size", [(640, 480), (333, 517), (20, 300)])
def test_loose_images_of_the_224_network_are_square(size: tuple[int, int]) -> None:
    assert prepare_loose(np.zeros((*size[::-1], 3), np.uint8), 224).pixels.shape == (224, 224, 3)


@pytest.mark.parametrize(
    ("size", "prepared"),
    [
        ((640, 480), (512, 384)),
        ((1920, 1080), (512, 288)),
        ((752, 480), (512, 336)),
        ((1241, 376), (512, 160)),
        ((480, 640), (384, 512)),
        ((1080, 1920), (288, 512)),
        ((500, 520), (512, 384)),
    ],
)
def test_calibrated_images_get_the_trained_size_that_keeps_most(
    size: tuple[int, int], prepared: tuple[int, int]
) -> None:
    image = prepare(np.zeros((*size[::-1], 3), np.uint8), camera_of(*size), 512)
    assert image.pixels.shape[:2] == prepared[::-1]


def test_a_calibrated_image_of_the_224_network_is_square() -> None:
    image, camera = np.zeros((480, 640, 3), np.uint8), camera_of(640, 480)
    assert trained_size(image, camera, 224) == (224, 224)
    assert prepare(image, camera, 224).pixels.shape == (224, 224, 3)


@pytest.mark.parametrize(("width", "height"), [(640, 480), (480, 640), (1241, 376)])
@pytest.mark.parametrize("variant", [224, 512])
def test_a_point_of_the_scene_stays_under_the_camera_that_follows(width: int, height: int, variant: Any) -> None:
    camera = camera_of(width, height, cx=0.53 * width, cy=0.46 * height)
    seen = np.array([width // 2 + 20, height // 2 - 15])
    prepared = prepare(dot_at(width, height, *seen), camera, variant)
    assert prepared.camera is not None
    point = np.append(camera.normalized(seen[None])[0], 1.0)[None]
    assert np.abs(prepared.camera.project(point)[0] - centroid(prepared.pixels)).max() < 0.1


def test_the_principal_point_of_a_calibrated_image_is_its_middle() -> None:
    camera = camera_of(640, 480, cx=350.0, cy=225.0)
    prepared = prepare(np.zeros((480, 640, 3), np.uint8), camera, 512)
    assert prepared.camera is not None
    assert (prepared.camera.width, prepared.camera.height) == (512, 384)
    assert prepared.camera.cx == pytest.approx(256, abs=1.0)
    assert prepared.camera.cy == pytest.approx(192, abs=1.0)
    assert prepared.camera.fx == pytest.approx(prepared.camera.fy, rel=5e-3)


def test_pixels_lead_back_to_where_they_came_from() -> None:
    prepared = prepare_loose(dot_at(752, 480, 400, 200), 512)
    assert np.abs(prepared.to_source([centroid(prepared.pixels)]) - [400, 200]).max() < 0.1
    corners = np.array([[0.0, 0.0], [751.0, 479.0]])
    assert np.allclose(prepared.to_source(prepared.from_source(corners)), corners)


def test_crop_and_resize_of_a_known_image_are_where_they_should_be() -> None:
    # 448 x 448 around the middle of 640 x 448, halved: prepared = (source - 96 + 0.5) / 2 - 0.5
    prepared = prepare_calibrated(np.zeros((448, 640, 3), np.uint8), camera_of(640, 448), (224, 224))
    assert np.allclose(prepared.from_source([[96, 0], [320, 224]]), [[-0.25, -0.25], [111.75, 111.75]])


def test_gray_and_transparent_images_are_taken_as_rgb() -> None:
    rgb = formula_image(64, 48)
    gray = prepare_loose(rgb[:, :, 0], 224).pixels
    assert np.array_equal(gray[:, :, 0], gray[:, :, 2])
    assert np.array_equal(gray, prepare_loose(rgb[:, :, :1], 224).pixels)
    rgba = np.dstack([rgb, np.full((48, 64), 7, np.uint8)])
    assert np.array_equal(prepare_loose(rgba, 224).pixels, prepare_loose(rgb, 224).pixels)


def test_the_network_reads_numbers_from_minus_one_to_one_channels_first() -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[0, 1] = (255, 0, 51)
    values = network_input(pixels)
    assert values.shape == (3, 16, 32)
    assert values[:, 0, 1].tolist() == pytest.approx([1.0, -1.0, -0.6])


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (np.zeros((15, 100, 3), np.uint8), "image of 100 x 15: smaller than one patch of 16 x 16"),
        (np.zeros((20, 900, 3), np.uint8), "image of 900 x 20: too narrow for the network"),
        (np.zeros((64, 64, 3), np.float32), r"expected uint8 \(H, W, 3\), got float32"),
        (np.zeros((64, 64, 2), np.uint8), r"expected uint8 \(H, W, 3\), got uint8 \(64, 64, 2\)"),
    ],
)
def test_images_that_cannot_be_prepared_are_explained(image: Any, sentence: str) -> None:
    with pytest.raises(SequenceError, match=sentence):
        prepare_loose(image, 512)


def test_a_camera_of_another_image_is_refused() -> None:
    with pytest.raises(CameraError, match="camera of 640 x 480 pixels does not fit an image of 320 x 240"):
        prepare(np.zeros((240, 320, 3), np.uint8), camera_of(640, 480), 512)


def test_a_principal_point_near_the_border_is_refused() -> None:
    with pytest.raises(CameraError, match="nearer to its border than a fifth of its side"):
        prepare(np.zeros((480, 640, 3), np.uint8), camera_of(640, 480, cx=100.0), 512)
