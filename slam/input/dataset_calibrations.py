"""Calibrations of data sets: published values, and readers of their calibration files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from relocalizer.camera import Camera, read_camera_yaml
from relocalizer.camera_files import read_camera_file
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


def folder_camera(path: Path, image_paths: Sequence[Path]) -> Camera:
    """The camera file of a folder of images, in any format; one without a size is of the most common image size.

    Raises:
        CameraError: it cannot be read, or has no size and there are no images of known size.
    """
    camera = read_camera_file(path)
    if isinstance(camera, Camera):
        return camera
    size = ImageSizes.of(image_paths).most_common
    if size is None:
        raise CameraError(f"{path}: does not state the size of its images; add width and height")
    return camera.of_size(*size)


def euroc_sensor(path: Path) -> tuple[Camera, FloatArray]:
    """The camera of a sensor.yaml, and body_from_cam (4, 4), which EuRoC calls T_BS.

    Raises:
        CameraError: the file cannot be read, or its distortion model is not known.
    """
    camera = read_camera_file(path)
    pose = read_camera_yaml(path).get("T_BS")
    body_from_cam = _transform(path, "T_BS", pose.get("data") if isinstance(pose, dict) else pose)
    if not isinstance(camera, Camera):
        raise CameraError(f"{path}: missing resolution")
    return camera, body_from_cam


def kalibr_with_imu(path: Path) -> tuple[Camera, FloatArray | None]:
    """Camera 0 of a Kalibr camchain, and body_from_cam (4, 4) of its IMU, None if it has none.

    Kalibr's T_cam_imu maps points of the IMU's frame to that of the camera.

    Raises:
        CameraError: the file cannot be read, or is not such a camchain.
    """
    camera, values = read_camera_file(path), read_camera_yaml(path).get("cam0")
    if not isinstance(camera, Camera) or not isinstance(values, dict):
        raise CameraError(f"{path}: expected a Kalibr camchain with cam0 and its resolution")
    if "T_cam_imu" not in values:
        return camera, None
    cam_from_body = _transform(path, "cam0: T_cam_imu", values["T_cam_imu"])
    return camera, np.asarray(np.linalg.inv(cam_from_body), dtype=np.float64)


def _transform(path: Path, name: str, rows: object) -> FloatArray:
    """A rigid transform (4, 4) from its 16 numbers; its rotation is made orthonormal."""
    try:
        transform = np.array(rows, dtype=np.float64).reshape(4, 4)
    except (TypeError, ValueError) as error:
        raise CameraError(f"{path}: {name}: expected 4x4 numbers ({error})") from None
    if not np.isfinite(transform).all():
        raise CameraError(f"{path}: {name}: expected finite numbers")
    transform[:3, :3] = nearest_rotation(transform[:3, :3])
    return transform


def kitti_projection(path: Path, camera_number: int) -> FloatArray:
    """P0 to P3 of a calib.txt, (3, 4): projects points in camera 0 to pixels of that camera.

    Raises:
        CameraError: there is no such line, or its 12 numbers are no projection.
    """
    for place, fields in rows_of(path):
        if fields[0] == f"P{camera_number}:":
            try:
                projection = np.array([float(field) for field in fields[1:]]).reshape(3, 4)
            except ValueError:
                raise CameraError(f"{place}: expected 12 numbers after P{camera_number}:") from None
            if not np.isfinite(projection).all() or np.linalg.matrix_rank(projection[:, :3]) < 3:
                raise CameraError(f"{place}: expected a 3x4 projection of finite numbers after P{camera_number}:")
            return projection
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
