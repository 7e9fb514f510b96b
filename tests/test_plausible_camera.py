"""Calibrations that cannot be of any camera's images are refused, those of unusual lenses are not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from relocalizer.camera import Camera
from relocalizer.errors import CameraError
from relocalizer.plausible_camera import angles_across_deg, expect_plausible

ROOM = Camera(width=640, height=480, fx=465.0, fy=465.0, cx=319.5, cy=239.5)
EUROC = (-0.28340811, 0.07395907, 0.00019359, 1.76187114e-05)
T265 = (-0.014216, 0.060412, -0.054711, 0.011151)
NONE = (0.0, 0.0, 0.0, 0.0)


def camera(
    width: int, height: int, fx: float, fy: float, cx: float, cy: float, model: str = "pinhole", *distortion: float
) -> Camera:
    values: dict[str, Any] = {"model": model, "distortion": distortion}
    return Camera(width=width, height=height, fx=fx, fy=fy, cx=cx, cy=cy, **values)


def seen(across_deg: float, model: str = "pinhole", width: int = 640, height: int = 480) -> Camera:
    """A camera of equal focal lengths that sees so much across its longer side."""
    half = np.radians(0.5 * across_deg)
    focal = 0.5 * max(width, height) / (half if model == "fisheye" else np.tan(half))
    distortion = NONE if model == "fisheye" else ()
    return camera(width, height, focal, focal, 0.5 * (width - 1), 0.5 * (height - 1), model, *distortion)


LEGITIMATE = {
    "room": ROOM,
    "EuRoC": camera(752, 480, 458.654, 457.296, 367.215, 248.375, "radtan", *EUROC),
    "TUM fr1": camera(640, 480, 517.3, 516.5, 318.6, 255.3, "radtan", 0.2624, -0.9531, -0.0054, 0.0026, 1.1633),
    "TUM fr2": camera(640, 480, 520.9, 521.0, 325.1, 249.7, "radtan", 0.2312, -0.7849, -0.0033, -0.0001, 0.9172),
    "KITTI": camera(1241, 376, 718.856, 718.856, 607.1928, 185.2157),
    "raw KITTI": camera(
        1392, 512, 984.2439, 980.8141, 690.0, 233.1966,
        "radtan", -0.3728755, 0.2037299, 0.002219027, 0.001383707, -0.07233722,
    ),
    "KITTI as networks take it": camera(640, 192, 370.7, 367.0, 313.1, 94.6),
    "TUM-VI": camera(512, 512, 190.978, 190.973, 254.932, 256.897, "fisheye", 0.00348, 0.000715, -0.00205, 0.0002),
    "T265": camera(848, 800, 284.5091, 282.941856, 421.896335, 398.100316, "fisheye", *T265),
    "GoPro, radtan": camera(1920, 1440, 900.0, 900.0, 960.0, 720.0, "radtan", -0.25, 0.06, 0.0, 0.0),
    "GoPro, fisheye": camera(1920, 1080, 857.48, 876.71, 968.06, 556.37, "fisheye", 0.05, 0.02, -0.01, 0.002),
    "EndoMapper": camera(1440, 1080, 717.0, 717.2, 735.4, 552.8, "fisheye", -0.13893, -0.00124, 0.00091, -4e-05),
    "rational": camera(
        1280, 960, 520.0, 520.0, 640.0, 480.0, "radtan", 0.5, 0.05, 0.0, 0.0, 0.001, 0.85, 0.2, 0.01
    ),
    "phone, upright": camera(1080, 1920, 1500.0, 1500.0, 539.5, 959.5),
    "telephoto": seen(10.5),
    "narrow strip": camera(1280, 64, 1400.0, 1400.0, 639.5, 31.5),
    "an off-center crop": ROOM.cropped(100, 0, 440, 480),
    "lower half cut off": ROOM.cropped(0, 0, 640, 340),
    "a crop as wide as the center is off": ROOM.cropped(70, 0, 570, 400),
    "one field of interlaced images": ROOM.resized(640, 240),
    "anamorphic PAL": camera(720, 576, 500.0, 730.0, 359.5, 287.5),
    "squeezed for a wide screen": camera(1920, 1080, 1000.0, 2010.0, 959.5, 539.5),
    "widest pinhole": seen(149.0),
    "widest fisheye": seen(219.0, "fisheye", 480, 480),
    "fisheye circle inside a wide image": seen(330.0, "fisheye", 1920, 1080),
    "fisheye model of an ordinary lens": camera(
        752, 480, 461.6, 460.2, 362.7, 248.1, "fisheye", -0.01, 0.01, -0.03, 0.02
    ),
    "square, center exact": camera(512, 512, 400.0, 400.0, 255.5, 255.5),
    "square, center off": camera(512, 512, 400.0, 400.0, 240.0, 270.0),
    "fold in the corners alone": camera(640, 480, 330.0, 330.0, 319.5, 239.5, "radtan", -0.13, 0.0, 0.0, 0.0),
}  # fmt: skip

IMPOSSIBLE = {
    "normalized": (camera(640, 480, 0.7266, 0.96875, 0.5, 0.5), "179.7 degrees, expected 10 to 150"),
    "millimetres": (replace(ROOM, fx=4.2, fy=4.2), "an angle of view of 178.5 degrees"),
    "ten times too long": (replace(ROOM, fx=4650.0, fy=4650.0), "an angle of view of 7.9 degrees"),
    "narrower than 10 degrees": (seen(9.5), "9.5 degrees"),
    "wider than 150 degrees": (seen(151.0), "151.0 degrees"),
    "normalized fisheye": (camera(640, 480, 0.45, 0.6, 0.5, 0.5, "fisheye", *T265), "angle of view"),
    "fisheye of another size": (replace(seen(190.0, "fisheye", 480, 480), fx=60.0, fy=60.0), "10 to 220"),
    "long fisheye": (camera(640, 480, 4650.0, 4650.0, 319.5, 239.5, "fisheye", *NONE), "with model fisheye"),
    "exchanged": (replace(ROOM, cx=239.5, cy=319.5), "cx 239.5 and cy 319.5 are exchanged"),
    "exchanged, EuRoC": (
        camera(752, 480, 458.654, 457.296, 248.375, 367.215, "radtan", *EUROC),
        "cx 248.4 and cy 367.2 are exchanged",
    ),
    "exchanged, TUM fr1": (camera(640, 480, 517.3, 516.5, 255.3, 318.6), "exchanged"),
    "exchanged, KITTI": (camera(1241, 376, 718.856, 718.856, 185.2157, 607.1928), "exchanged"),
    "exchanged, upright": (camera(1080, 1920, 1500.0, 1500.0, 959.5, 539.5), "exchanged"),
    "center of images twice the size": (replace(ROOM, cx=639.5, cy=479.5), "is not in the middle half"),
    "center at the corner": (replace(ROOM, cx=0.0, cy=0.0), "its center (0.0, 0.0) is not in the middle half"),
    "center outside": (replace(ROOM, cy=-240.0), "is not in the middle half"),
    "one focal length mistyped": (replace(ROOM, fy=46.5), "differ by a factor of 10"),
    "focal lengths of another image": (replace(ROOM, fx=150.0), "differ by a factor of 3.1"),
    "fold inside": (
        camera(640, 480, 500.0, 500.0, 319.5, 239.5, "radtan", -0.5, 0.0, 0.0, 0.0),
        "its distortion folds the image over 272 px from the center",
    ),
    "a fisheye distorted far too much": (
        camera(640, 480, 300.0, 300.0, 319.5, 239.5, "fisheye", -2.0, 0.0, 0.0, 0.0),
        "folds the image over 82 px from the center",
    ),
    "numbers in another order": (
        camera(640, 480, 517.3, 516.5, 318.6, 255.3, "radtan", -0.9531, -1.1633, 0.26, 0.0, 0.0),
        "in the order of model radtan",
    ),
}  # fmt: skip


@pytest.mark.parametrize("given", LEGITIMATE.values(), ids=LEGITIMATE)
def test_the_camera_of_an_unusual_lens_is_taken(given: Camera) -> None:
    expect_plausible(given, "camera.yaml")


@pytest.mark.parametrize("given", LEGITIMATE.values(), ids=LEGITIMATE)
def test_so_it_is_at_any_size_of_its_images(given: Camera) -> None:
    for share in (0.25, 4.0):
        expect_plausible(given.resized(round(given.width * share), round(given.height * share)), "camera.yaml")


@pytest.mark.parametrize(("given", "sentence"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_a_camera_that_cannot_be_is_refused_in_one_line(given: Camera, sentence: str) -> None:
    with pytest.raises(CameraError) as caught:
        expect_plausible(given, "camera.yaml")
    said = str(caught.value)
    assert said.startswith("camera.yaml: ")
    assert sentence in said
    assert said.endswith("pass --camera with one made for these images")
    assert "\n" not in said


def test_the_angle_of_view_is_that_of_the_middle_row_and_column() -> None:
    across, down = angles_across_deg(seen(90.0))
    assert across == pytest.approx(90.0)
    assert down == pytest.approx(2 * np.degrees(np.arctan(0.75)))
    assert angles_across_deg(seen(190.0, "fisheye"))[0] == pytest.approx(190.0, abs=0.1)
