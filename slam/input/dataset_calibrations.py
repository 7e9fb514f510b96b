"""Calibrations of data sets: published values, and readers of their calibration files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from relocalizer.camera import Camera, read_camera_yaml
from relocalizer.errors import CameraError
from relocalizer.geometry import FloatArray, nearest_rotation
from slam.input.image_sizes import ImageSizes
from slam.input.text_rows import rows_of, text_of

# Calibrations published by the authors, but not contained in the data sets.
TUM_CAMERAS = {  # fx, fy, cx, cy, distortion by the number in "freiburgN", from the benchmark's file_formats page.
    "1": (517.3, 516.5, 318.6, 255.3, (0.2624, -0.9531, -0.0054, 0.0026, 1.1633)),
    "2": (520.9, 521.0, 325.1, 249.7, (0.2312, -0.7849, -0.0033, -0.0001, 0.9172)),
    "3": (535.4, 539.2, 320.1, 247.6, ()),
}
SEVEN_SCENES_CAMERA = Camera(width=640, height=480, fx=525.0, fy=525.0, cx=320.0, cy=240.0)
ICL_NUIM_CAMERA = Camera(width=640, height=480, fx=481.2, fy=480.0, cx=319.5, cy=239.5)


def camera_of(paths: Sequence[Path], K: ArrayLike, source: str) -> Camera | None:
    """The camera of a calibration matrix K (3, 3) or larger, for the most common image size.

    None if no image size is known, which the reader of the images reports.

    Raises:
        CameraError: the matrix is too small, or its principal point is far from the center of the images.
    """
    K = np.asarray(K, dtype=np.float64)
    if K.shape[0] < 3 or K.shape[1] < 3:
        raise CameraError(f"{source}: expected at least 3x3 numbers, got {K.shape[0]}x{K.shape[1]}")
    sizes = ImageSizes.of(paths)
    if sizes.most_common is None:
        return None
    (width, height), name = sizes.most_common, sizes.first(sizes.most_common).name
    if not (0.25 * width < K[0, 2] < 0.75 * width and 0.25 * height < K[1, 2] < 0.75 * height):
        raise CameraError(
            f"{source}: its center ({K[0, 2]:.1f}, {K[1, 2]:.1f}) is not that of {name}, "
            f"{width}x{height}; were the images resized? Pass --camera with one made for them"
        )
    return Camera(width=width, height=height, fx=K[0, 0], fy=K[1, 1], cx=K[0, 2], cy=K[1, 2])


def euroc_sensor(path: Path) -> tuple[Camera, FloatArray]:
    """The camera of a sensor.yaml, and body_from_cam (4, 4), which EuRoC calls T_BS.

    Raises:
        CameraError: the file cannot be read, or its distortion model is not known.
    """
    data = read_camera_yaml(path)
    models = {"radial-tangential": "radtan", "radtan": "radtan", "equidistant": "fisheye"}
    model = models.get(str(data.get("distortion_model")))
    if model is None:
        raise CameraError(
            f"{path}: distortion_model: expected {' or '.join(models)}, got {data.get('distortion_model')!r}"
        )
    try:
        width, height = (int(n) for n in data["resolution"])
        fx, fy, cx, cy = (float(n) for n in data["intrinsics"])
        distortion = tuple(float(k) for k in data["distortion_coefficients"])
        body_from_cam = np.array(data["T_BS"]["data"], dtype=np.float64).reshape(4, 4)
    except KeyError as error:
        raise CameraError(f"{path}: missing {error.args[0]}") from None
    except (TypeError, ValueError) as error:
        raise CameraError(f"{path}: resolution, intrinsics or T_BS have not the expected numbers ({error})") from None
    body_from_cam[:3, :3] = nearest_rotation(body_from_cam[:3, :3])
    camera = Camera(
        width=width,
        height=height,
        fx=fx,
        fy=fy,
        cx=cx,
        cy=cy,
        model="fisheye" if model == "fisheye" else "radtan",
        distortion=distortion,
    )
    return camera, body_from_cam


def kitti_projection(path: Path, camera_number: int) -> FloatArray:
    """P0 to P3 of a calib.txt, (3, 4): projects points in camera 0 to pixels of that camera.

    Raises:
        CameraError: there is no such line, or it has not 12 numbers.
    """
    for place, fields in rows_of(path):
        if fields[0] == f"P{camera_number}:":
            try:
                return np.array([float(field) for field in fields[1:]]).reshape(3, 4)
            except ValueError:
                raise CameraError(f"{place}: expected 12 numbers after P{camera_number}:") from None
    raise CameraError(f"{path}: no line P{camera_number}:, the calibration of image_{camera_number}")


def tum_camera(table: Path, folder_name: str) -> tuple[Camera | None, str]:
    """The published calibration of freiburg1, 2 or 3, and its source; the header of rgb.txt or the folder names it.

    (None, "") if neither does.
    """
    header = [line for line in text_of(table).splitlines() if line.startswith("#")]
    named = re.search(r"freiburg([123])", " ".join([*header, folder_name]))
    if not named:
        return None, ""
    fx, fy, cx, cy, distortion = TUM_CAMERAS[named[1]]
    camera = Camera(
        width=640,
        height=480,
        fx=fx,
        fy=fy,
        cx=cx,
        cy=cy,
        model="radtan" if distortion else "pinhole",
        distortion=distortion,
    )
    return camera, f"published calibration of freiburg{named[1]}"
