"""Calibrations in the formats of other programs."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import write_images

from relocalizer.camera import Camera
from relocalizer.camera_files import UnsizedCamera, read_camera_file
from relocalizer.errors import CameraError
from slam.input.open_source import open_source
from slam.input.rectification import UnsizedCalibration, read_calibration

PINHOLE = Camera(width=640, height=480, fx=465.5, fy=463.25, cx=318.125, cy=241.75)
RADTAN = replace(PINHOLE, model="radtan", distortion=(-0.21, 0.043, 0.0011, -0.0007))
RADTAN5 = replace(RADTAN, distortion=(*RADTAN.distortion, 0.0123))
RATIONAL = replace(RADTAN, distortion=(*RADTAN5.distortion, 0.01, -0.02, 0.003))
FISHEYE = replace(PINHOLE, model="fisheye", distortion=(0.0034, 0.0007, -0.0021, 0.0002))

ROWS = "465.5, 0.0, 318.125, 0.0, 463.25, 241.75, 0.0, 0.0, 1.0"
ORBSLAM = """%YAML:1.0

# Camera Parameters. Adjust them!
Camera.fx: 465.5
Camera.fy: 463.25
Camera.cx: 318.125
Camera.cy: 241.75
Camera.k1: -0.21
Camera.k2: 0.043
Camera.p1: 0.0011
Camera.p2: -0.0007
Camera.width: 640
Camera.height: 480
Camera.RGB: 1
ORBextractor.nFeatures: 1000
"""
ORBSLAM3 = '%YAML:1.0\n---\nFile.version: "1.0"\nCamera.type: "PinHole"\n' + ORBSLAM.partition("\n")[2].replace(
    "Camera.f", "Camera1.f"
).replace("Camera.c", "Camera1.c").replace("Camera.k", "Camera1.k").replace("Camera.p", "Camera1.p")
KANNALA = """%YAML:1.0
Camera.type: "KannalaBrandt8"
Camera1.fx: 465.5
Camera1.fy: 463.25
Camera1.cx: 318.125
Camera1.cy: 241.75
Camera1.k1: 0.0034
Camera1.k2: 0.0007
Camera1.k3: -0.0021
Camera1.k4: 0.0002
Camera.width: 640
Camera.height: 480
"""
OPENCV_YAML = f"""%YAML:1.0
---
calibration_time: "Mon 30 Nov 2026"
image_width: 640
image_height: 480
camera_matrix: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [ {ROWS.replace(".0,", ".,")} ]
distortion_coefficients: !!opencv-matrix
   rows: 1
   cols: 5
   dt: d
   data: [ -2.1e-01, 0.043, 1.1e-03,
       -7e-04, 0.0123 ]
"""
OPENCV_XML = f"""<?xml version="1.0"?>
<opencv_storage>
<image_Width>640</image_Width><image_Height>480</image_Height>
<Camera_Matrix type_id="opencv-matrix"><rows>3</rows><cols>3</cols><dt>d</dt>
<data>{ROWS.replace(",", " ")}</data></Camera_Matrix>
<Distortion_Coefficients type_id="opencv-matrix"><rows>4</rows><cols>1</cols><dt>d</dt>
<data>-0.21 0.043 0.0011 -0.0007</data></Distortion_Coefficients>
</opencv_storage>
"""
ROS = f"""image_width: 640
image_height: 480
camera_name: narrow_stereo
camera_matrix:
  rows: 3
  cols: 3
  data: [{ROWS}]
distortion_model: plumb_bob
distortion_coefficients:
  rows: 1
  cols: 5
  data: [-0.21, 0.043, 0.0011, -0.0007, 0.0123]
projection_matrix:
  rows: 3
  cols: 4
  data: [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]
"""
ROS_MESSAGE = f"""header:
  seq: 3
  frame_id: "camera"
height: 480
width: 640
distortion_model: "rational_polynomial"
D: [-0.21, 0.043, 0.0011, -0.0007, 0.0123, 0.01, -0.02, 0.003]
K: [{ROWS}]
R: [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
---
"""
KALIBR = """cam0:
  camera_model: pinhole
  distortion_coeffs: [0.0034, 0.0007, -0.0021, 0.0002]
  distortion_model: equidistant
  intrinsics: [465.5, 463.25, 318.125, 241.75]
  resolution: [640, 480]
  rostopic: /cam0/image_raw
cam1:
  camera_model: pinhole
"""
EUROC = """sensor_type: camera
T_BS: {cols: 4, rows: 4, data: [1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1]}
resolution: [640, 480]
camera_model: pinhole
intrinsics: [465.5, 463.25, 318.125, 241.75] #fu, fv, cu, cv
distortion_model: radial-tangential
distortion_coefficients: [-0.21, 0.043, 0.0011, -0.0007]
"""
STELLA = """Camera:
  name: "phone"
  setup: "monocular"
  model: "MODEL"
  fx: 465.5
  fy: 463.25
  cx: 318.125
  cy: 241.75
  K
  cols: 640
  rows: 480
"""
STELLA_RADTAN = STELLA.replace("MODEL", "perspective").replace("K", "{k1: 0}").replace(
    "  {k1: 0}", "  k1: -0.21\n  k2: 0.043\n  p1: 0.0011\n  p2: -0.0007\n  k3: 0.0123"
)  # fmt: skip
STELLA_FISHEYE = STELLA.replace("MODEL", "fisheye").replace(
    "  K", "  k1: 0.0034\n  k2: 0.0007\n  k3: -0.0021\n  k4: 0.0002"
)  # fmt: skip
MAST3R = "width: 640\nheight: 480\ncalibration: [465.5, 463.25, 318.125, 241.75, -0.21, 0.043, 0.0011, -0.0007]\n"
DROID = "465.5 463.25 318.125 241.75 -0.21 0.043 0.0011 -0.0007\n"
COLMAP = (
    "# Camera list\n# Number of cameras: 1\n1 OPENCV 640 480 465.5 463.25 318.625 242.25 -0.21 0.043 0.0011 -0.0007\n"
)
COLMAP_FISHEYE = "3 OPENCV_FISHEYE 640 480 465.5 463.25 318.625 242.25 0.0034 0.0007 -0.0021 0.0002\n"
NERF = {"w": 640, "h": 480, "fl_x": 465.5, "fl_y": 463.25, "cx": 318.625, "cy": 242.25, "frames": []}
NERF_OPENCV = json.dumps({**NERF, "camera_model": "OPENCV", "k1": -0.21, "k2": 0.043, "p1": 0.0011, "p2": -0.0007})
NERF_FISHEYE = json.dumps(
    {**NERF, "camera_model": "OPENCV_FISHEYE", "k1": 0.0034, "k2": 0.0007, "k3": -0.0021, "k4": 0.0002}
)
NERF_FRAMES = json.dumps({"camera_model": "PINHOLE", "frames": [{**NERF, "file_path": "a.jpg"}]})

FILES: dict[str, tuple[str, Camera]] = {
    "orbslam2.yaml": (ORBSLAM, replace(RADTAN5, distortion=(*RADTAN.distortion, 0.0))),
    "orbslam3.yaml": (ORBSLAM3, replace(RADTAN5, distortion=(*RADTAN.distortion, 0.0))),
    "orbslam3_fisheye.yaml": (KANNALA, FISHEYE),
    "opencv.yml": (OPENCV_YAML, RADTAN5),
    "opencv.xml": (OPENCV_XML, RADTAN),
    "opencv_fisheye.yml": (
        OPENCV_YAML.replace("-2.1e-01, 0.043, 1.1e-03,\n       -7e-04, 0.0123", "0.0034, 0.0007, -0.0021, 0.0002")
        + "fisheye_model: 1\n",
        FISHEYE,
    ),
    "ros.yaml": (ROS, RADTAN5),
    "ros_message.yaml": (ROS_MESSAGE, RATIONAL),
    "camchain.yaml": (KALIBR, FISHEYE),
    "sensor.yaml": (EUROC, RADTAN),
    "stella.yaml": (STELLA_RADTAN, RADTAN5),
    "stella_fisheye.yaml": (STELLA_FISHEYE, FISHEYE),
    "mast3r.yaml": (MAST3R, RADTAN),
    "droid.txt": (DROID, RADTAN),
    "droid_pinhole.txt": ("465.5, 463.25, 318.125, 241.75", PINHOLE),
    "cameras.txt": (COLMAP, RADTAN),
    "cameras_fisheye.txt": (COLMAP_FISHEYE, FISHEYE),
    "transforms.json": (NERF_OPENCV, replace(RADTAN5, distortion=(*RADTAN.distortion, 0.0))),
    "transforms_fisheye.json": (NERF_FISHEYE, FISHEYE),
    "transforms_frames.json": (NERF_FRAMES, PINHOLE),
    "camera.yaml": (RADTAN.to_yaml(), RADTAN),
}


def read(path: Path) -> Camera:
    camera = read_camera_file(path)
    return camera.of_size(640, 480) if isinstance(camera, UnsizedCamera) else camera


def pixels_of(camera: Camera) -> np.ndarray:
    x, y = np.meshgrid(np.linspace(-0.6, 0.6, 9), np.linspace(-0.5, 0.5, 7))
    return camera.distorted(np.column_stack([x.ravel(), y.ravel()]))


@pytest.mark.parametrize("name", FILES)
def test_a_calibration_is_the_camera_that_it_describes(tmp_path: Path, name: str) -> None:
    text, expected = FILES[name]
    (tmp_path / name).write_text(text)
    camera = read(tmp_path / name)
    assert (camera.width, camera.height) == (640, 480)
    assert np.abs(pixels_of(camera) - pixels_of(expected)).max() < 1e-9


def test_what_opencv_writes_is_read(tmp_path: Path) -> None:
    for name in ("a.yml", "a.xml"):
        storage = cv2.FileStorage(str(tmp_path / name), cv2.FILE_STORAGE_WRITE)
        storage.write("image_width", 640)
        storage.write("image_height", 480)
        storage.write("camera_matrix", RADTAN.matrix)
        storage.write("distortion_coefficients", np.array([RADTAN5.distortion]))
        storage.release()
        assert read(tmp_path / name) == RADTAN5


def test_a_binary_model_of_colmap_is_read(tmp_path: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    model = pycolmap.Reconstruction()
    numbers = [465.5, 463.25, 318.625, 242.25, *RADTAN.distortion]
    model.add_camera(pycolmap.Camera(camera_id=7, model="OPENCV", width=640, height=480, params=numbers))
    model.write_binary(str(tmp_path))
    assert read(tmp_path / "cameras.bin") == RADTAN


def test_a_model_with_one_lens_twice_has_one_camera(tmp_path: Path) -> None:
    (tmp_path / "cameras.txt").write_text(COLMAP + COLMAP.splitlines()[-1].replace("1 OPENCV", "2 OPENCV"))
    assert read(tmp_path / "cameras.txt") == RADTAN


def test_the_angle_of_instant_ngp_is_a_focal_length(tmp_path: Path) -> None:
    (tmp_path / "transforms.json").write_text(
        '{"camera_angle_x": 1.5707963267948966, "w": 640, "h": 480, "frames": []}'
    )
    camera = read(tmp_path / "transforms.json")
    assert (camera.fx, camera.cx, camera.cy) == (pytest.approx(320.0), 319.5, 239.5)


def test_a_calibration_without_a_size_is_of_the_images_that_are_read(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 2)
    (tmp_path / "calib.txt").write_text("150 150 79.5 59.5")
    source = open_source(images, camera=tmp_path / "calib.txt")
    assert (source.camera.width, source.camera.fx, source.camera.assumed) == (160, 150.0, False)
    (images / "camera.yaml").write_text("Camera.fx: 150\nCamera.fy: 150\nCamera.cx: 79.5\nCamera.cy: 59.5\n")
    assert open_source(images).camera == source.camera
    assert isinstance(read_calibration(tmp_path / "calib.txt"), UnsizedCalibration)


MANY = {
    "empty": "",
    "words": "just text",
    "a list": "[1, 2, 3]",
    "XML of another program": "<svg></svg>",
    "half XML": "<opencv_storage><a>",
    "half JSON": '{"w": 640',
    "three numbers": "1 2 3",
    "six numbers": "1 2 3 4 5 6",
    "number that is none": DROID.replace("-0.21", "nan"),
    "no focal length": ORBSLAM.replace("Camera.fy: 463.25\n", ""),
    "negative focal length": ORBSLAM.replace("465.5", "-465.5"),
    "word for a number": ORBSLAM.replace("465.5", "wide"),
    "width alone": ORBSLAM.replace("Camera.height: 480\n", ""),
    "half a pixel wide": ORBSLAM.replace("640", "640.5"),
    "unknown projection": ORBSLAM3.replace("PinHole", "Equirectangular"),
    "equirectangular": STELLA_RADTAN.replace("perspective", "equirectangular"),
    "matrix of 2x3": OPENCV_YAML.replace("0., 0., 1.0 ]", "0. ]"),
    "skew": ROS.replace("465.5, 0.0, 318", "465.5, 9.0, 318"),
    "transposed": ROS.replace(ROWS, "465.5, 0, 0, 0, 463.25, 0, 318.125, 241.75, 1"),
    "six coefficients": ROS.replace("0.0123]", "0.0123, 7, 8]"),
    "unknown distortion": ROS.replace("plumb_bob", "thin_prism"),
    "matrix of words": ROS.replace(ROWS, "a, b, c, d, e, f, g, h, i"),
    "omnidirectional": KALIBR.replace("camera_model: pinhole\n  distortion_c", "camera_model: omni\n  distortion_c"),
    "five intrinsics": KALIBR.replace("intrinsics: [", "intrinsics: [0.7, "),
    "no resolution": KALIBR.replace("  resolution: [640, 480]\n", ""),
    "three coefficients": KALIBR.replace("[0.0034, ", "["),
    "cam0 of nothing": "cam0: 3\n",
    "list of three": EUROC.replace("[465.5, ", "["),
    "double sphere": EUROC.replace("radial-tangential", "double-sphere"),
    "two lengths": EUROC.replace("[640, 480]", "[640]"),
    "short calibration": "width: 640\nheight: 480\ncalibration: [465.5, 463.25]\n",
    "unknown model of COLMAP": COLMAP.replace("OPENCV", "FOV"),
    "number missing": COLMAP.replace(" -0.0007", ""),
    "two lenses": COLMAP + COLMAP_FISHEYE,
    "no image size": '{"fl_x": 465.5, "cx": 3, "cy": 4}',
    "half a circle": '{"camera_angle_x": 3.2, "w": 640, "h": 480}',
    "fourth radial term": NERF_OPENCV.replace('"k1"', '"k4": 0.1, "k1"'),
    "a pointer": "version https://git-lfs.github.com/spec/v1\n",
    "unknown keys": "focal: 3\n",
    "forbidden characters": "fx: \x07\n",
}


@pytest.mark.parametrize("what", MANY)
def test_a_broken_calibration_is_refused_in_one_line(tmp_path: Path, what: str) -> None:
    path = tmp_path / "lens"
    path.write_text(MANY[what])
    with pytest.raises(CameraError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}")
    assert str(caught.value).count(str(path)) == 1
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x01", struct.pack("<Q", 1), struct.pack("<QiiQQ", 1, 1, 99, 640, 480), struct.pack("<Q", 0) + b"more"],
)
def test_a_broken_binary_model_is_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "cameras.bin"
    path.write_bytes(data)
    with pytest.raises(CameraError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
