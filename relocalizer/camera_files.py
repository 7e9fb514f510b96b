"""Camera calibrations as other programs write them, recognized by their content.

| format | recognized by |
|---|---|
| camera.yaml of this project | `fx`, `fy`, `cx`, `cy` |
| ORB-SLAM2 and 3, stella_vslam | `Camera.fx` or `Camera1.fx`, or `Camera:` with `fx` |
| OpenCV (YAML, XML), ROS camera_info | `camera_matrix` or `K` |
| Kalibr camchain | `cam0` |
| EuRoC sensor.yaml | `intrinsics` and `resolution` |
| MASt3R-SLAM | `calibration` |
| nerfstudio and instant-ngp transforms.json | `fl_x` or `camera_angle_x` |
| COLMAP cameras.txt and cameras.bin | the name, or a line `CAMERA_ID MODEL WIDTH HEIGHT PARAMS` |
| DROID-SLAM | four to nine numbers in one line |

In those of COLMAP and nerfstudio the center of the first pixel is (0.5, 0.5); in all others it is (0, 0), as here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from relocalizer.camera import (
    CAMERA_KEYS,
    DISTORTION_COUNTS,
    Camera,
    CameraModel,
    camera_from_yaml,
    number_of,
    parse_yaml,
    read_bytes,
    text_of,
)
from relocalizer.colmap_cameras import cameras_from_binary, cameras_from_text, is_colmap_text
from relocalizer.errors import CameraError

# Names of distortion models in the formats of ROS, Kalibr, EuRoC, ORB-SLAM, stella_vslam, COLMAP and nerfstudio.
MODELS: dict[str, CameraModel] = {
    "": "radtan", "none": "pinhole", "pinhole": "radtan", "rectified": "pinhole", "perspective": "radtan",
    "radtan": "radtan", "radial-tangential": "radtan", "plumb_bob": "radtan", "rational_polynomial": "radtan",
    "opencv": "radtan", "simple_pinhole": "pinhole", "simple_radial": "radtan", "radial": "radtan",
    "full_opencv": "radtan",
    "equidistant": "fisheye", "fisheye": "fisheye", "kannalabrandt8": "fisheye", "kannala_brandt4": "fisheye",
    "opencv_fisheye": "fisheye", "simple_radial_fisheye": "fisheye", "radial_fisheye": "fisheye",
}  # fmt: skip
MATRICES = (
    "camera_matrix",
    "Camera_Matrix",
    "cameraMatrix",
    "camera_Matrix",
    "K",
    "k",
    "intrinsic_matrix",
    "M1",
    "mtx",
)
COEFFICIENTS = (
    "distortion_coefficients", "Distortion_Coefficients", "distCoeffs", "dist_coeffs", "dist_coeff", "distortion",
    "D", "d", "D1", "dist",
)  # fmt: skip
WIDTHS = ("image_width", "image_Width", "width", "w", "cols")
HEIGHTS = ("image_height", "image_Height", "height", "h", "rows")
EXPECTED = (
    "expected camera.yaml, ORB-SLAM, stella_vslam, OpenCV, ROS camera_info, Kalibr, EuRoC sensor.yaml, COLMAP, "
    "nerfstudio transforms.json, or fx fy cx cy in one line"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsizedCamera:
    """A camera from a file that does not state the size of its images; numbers as in `Camera`."""

    fx: float
    fy: float
    cx: float
    cy: float
    model: CameraModel
    distortion: tuple[float, ...]

    def of_size(self, width: int, height: int) -> Camera:
        """The camera for images of width x height."""
        return Camera(
            width=width, height=height, fx=self.fx, fy=self.fy, cx=self.cx, cy=self.cy,
            model=self.model, distortion=self.distortion,
        )  # fmt: skip


AnyCamera = Camera | UnsizedCamera
Values = Mapping[str, Any]


def read_camera_file(path: Path) -> AnyCamera:
    """The camera of a calibration file in any of the formats above; of several cameras, the first.

    Raises:
        CameraError: the file cannot be read, has none of these formats, or has invalid numbers; one line.
    """
    return parse_camera_file(read_bytes(path), path)


def parse_camera_file(data: bytes, path: Path) -> AnyCamera:
    """The camera of the content of a calibration file; `path` is its name in errors, and its suffix may matter.

    Raises:
        CameraError: as `read_camera_file`.
    """
    try:
        if path.suffix == ".bin":
            return _only(cameras_from_binary(data))
        text = text_of(path, data)
        if text.lstrip().startswith("<"):
            return _of_values(_xml_values(text))
        if is_colmap_text(text):
            return _only(cameras_from_text(text))
        if numbers := _bare_numbers(text):
            return _of_numbers(numbers)
        return _of_values(parse_yaml(path, text))
    except CameraError as error:
        reason = str(error)
        raise CameraError(reason if reason.startswith(str(path)) else f"{path}: {reason}") from None


def _of_values(values: Values) -> AnyCamera:
    for is_format, camera_of in FORMATS:
        if is_format(values):
            return camera_of(values)
    keys = ", ".join(sorted(map(str, values))[:6])
    raise CameraError(f"no calibration of a known format ({EXPECTED}); its keys are {keys}")


# --- formats ---------------------------------------------------------------------------------------------


def _flat(values: Values) -> dict[str, Any]:
    """Keys of ORB-SLAM without their prefix: `Camera.fx`, `Camera1.fx`, or `fx` in a mapping `Camera`."""
    nested = values.get("Camera")
    flat = dict(nested) if isinstance(nested, Mapping) else {}
    for prefix in ("Camera.", "Camera1."):
        flat |= {key.removeprefix(prefix): value for key, value in values.items() if str(key).startswith(prefix)}
    return flat


def _orbslam(values: Values) -> AnyCamera:
    """ORB-SLAM and stella_vslam: k1 k2 p1 p2 [k3], or k1 k2 k3 k4 of the fisheye model; missing ones are 0."""
    flat = _flat(values)
    model = _model(flat.get("model", flat.get("type", "")))
    names = ("k1", "k2", "k3", "k4") if model == "fisheye" else ("k1", "k2", "p1", "p2", "k3")
    distortion = [number_of(name, flat.get(name, 0.0)) for name in names]
    return _camera(_size(flat), _numbers_at(flat, ("fx", "fy", "cx", "cy")), model, distortion)


def _matrix_file(values: Values) -> AnyCamera:
    """OpenCV and ROS: a 3 x 3 matrix, row by row, and coefficients in OpenCV's order."""
    matrix = _list("camera matrix", _first(values, MATRICES))
    if len(matrix) != 9:
        raise CameraError(f"camera matrix: expected 3x3 numbers, got {len(matrix)}")
    fx, skew, cx, below, fy, cy, *last = matrix
    if abs(skew) > 1e-6 * abs(fx) or below or last != [0.0, 0.0, 1.0]:
        raise CameraError(f"camera matrix: expected [fx, 0, cx, 0, fy, cy, 0, 0, 1], got {matrix}")
    coefficients = _first(values, COEFFICIENTS)
    distortion = [] if coefficients is None else _list("distortion coefficients", coefficients)
    is_fisheye = bool(values.get("fisheye_model"))
    model = "fisheye" if is_fisheye else _model(values.get("distortion_model", values.get("camera_model", "")))
    return _camera(_size(values), [fx, fy, cx, cy], model, distortion)


def _kalibr(values: Values) -> AnyCamera:
    return kalibr_camera(values["cam0"])


def kalibr_camera(cam: object) -> AnyCamera:
    """One camera of a Kalibr camchain; its "equidistant" model is the fisheye model.

    Raises:
        CameraError: it has another projection than pinhole, or invalid numbers.
    """
    if not isinstance(cam, Mapping):
        raise CameraError(f"cam0: expected camera_model, intrinsics, resolution, got {cam!r}")
    if cam.get("camera_model") != "pinhole":
        raise CameraError(f"cam0: camera_model {cam.get('camera_model')!r} is not supported, only pinhole")
    distortion = _list("distortion_coeffs", cam.get("distortion_coeffs", []))
    return _camera(_resolution(cam), _intrinsics(cam), _model(cam.get("distortion_model", "none")), distortion)


def _euroc(values: Values) -> AnyCamera:
    if str(values.get("camera_model", "pinhole")) != "pinhole":
        raise CameraError(f"camera_model {values.get('camera_model')!r} is not supported, only pinhole")
    name = "distortion_coefficients" if "distortion_coefficients" in values else "distortion_coeffs"
    distortion = _list(name, values.get(name, []))
    return _camera(_resolution(values), _intrinsics(values), _model(values.get("distortion_model", "")), distortion)


def _mast3r(values: Values) -> AnyCamera:
    numbers = _list("calibration", values["calibration"])
    if len(numbers) < 4:
        raise CameraError(f"calibration: expected fx, fy, cx, cy and distortion, got {numbers}")
    return _camera(_size(values), numbers[:4], "radtan", numbers[4:])


def _nerfstudio(values: Values) -> AnyCamera:
    """transforms.json; values that it has for each image are those of the first."""
    frames = values.get("frames")
    first = frames[0] if isinstance(frames, list) and frames and isinstance(frames[0], Mapping) else {}
    merged = {**first, **values}
    size = _size(merged)
    if size is None:
        raise CameraError("expected w and h, the size of the images")
    if "fl_x" not in merged:
        angle = number_of("camera_angle_x", merged["camera_angle_x"])
        if not 0.0 < angle < math.pi:
            raise CameraError(f"camera_angle_x: expected an angle between 0 and pi, got {angle:g}")
        merged["fl_x"] = 0.5 * size[0] / math.tan(0.5 * angle)
    cx, cy = (number_of(k, merged.get(k, 0.5 * side)) - 0.5 for k, side in zip(("cx", "cy"), size, strict=True))
    fx = number_of("fl_x", merged["fl_x"])
    fy = number_of("fl_y", merged.get("fl_y", fx))
    is_fisheye = bool(merged.get("is_fisheye"))  # of instant-ngp
    model = "fisheye" if is_fisheye else _model(merged.get("camera_model", ""))
    names = ("k1", "k2", "k3", "k4") if model == "fisheye" else ("k1", "k2", "p1", "p2", "k3")
    distortion = [number_of(name, merged.get(name, 0.0)) for name in names]
    if model != "fisheye" and number_of("k4", merged.get("k4", 0.0)):
        raise CameraError("k4: model OPENCV has none; is it OPENCV_FISHEYE?")
    return _camera(size, [fx, fy, cx, cy], model, distortion)


# Formats of files with named values: whether the values are of the format, and their camera.
FORMATS: tuple[tuple[Callable[[Values], bool], Callable[[Values], AnyCamera]], ...] = (
    (lambda v: "fl_x" in v or "camera_angle_x" in v or _frames_have_focal(v), _nerfstudio),
    (lambda v: "cam0" in v, _kalibr),
    (lambda v: "intrinsics" in v and "resolution" in v, _euroc),
    (lambda v: "calibration" in v, _mast3r),
    (lambda v: _first(v, MATRICES) is not None, _matrix_file),
    (lambda v: "fx" in _flat(v), _orbslam),
    (lambda v: any(key in v for key in CAMERA_KEYS), camera_from_yaml),
)


def _frames_have_focal(values: Values) -> bool:
    frames = values.get("frames")
    return isinstance(frames, list) and bool(frames) and isinstance(frames[0], Mapping) and "fl_x" in frames[0]


def _only(cameras: Mapping[str, Camera]) -> Camera:
    """The camera of a COLMAP model that has one, or several equal ones."""
    different = list(dict.fromkeys(cameras.values()))
    if len(different) != 1:
        raise CameraError(f"{len(different)} different cameras; expected a model with one, that of these images")
    return different[0]


def _bare_numbers(text: str) -> list[float]:
    """The numbers of a file that holds nothing else; empty otherwise."""
    lines = [line.partition("#")[0].replace(",", " ").split() for line in text.splitlines()]
    try:
        return [float(field) for fields in lines for field in fields]
    except ValueError:
        return []


def _of_numbers(numbers: Sequence[float]) -> UnsizedCamera:
    """DROID-SLAM: fx fy cx cy [k1 k2 p1 p2 [k3]]."""
    if len(numbers) not in (4, 8, 9):
        raise CameraError(f"expected fx fy cx cy [k1 k2 p1 p2 [k3]], got {len(numbers)} numbers")
    camera = _camera(None, numbers[:4], "radtan", numbers[4:])
    assert isinstance(camera, UnsizedCamera)
    return camera


# --- values ----------------------------------------------------------------------------------------------


def _camera(
    size: tuple[int, int] | None, focal_and_center: Sequence[float], model: CameraModel, distortion: Sequence[float]
) -> AnyCamera:
    """A camera from (width, height), (fx, fy, cx, cy) and coefficients in OpenCV's order; checked as `Camera`."""
    fx, fy, cx, cy = focal_and_center
    kept = list(distortion)
    if model != "fisheye":
        while kept and kept[-1] == 0.0 and len(kept) not in DISTORTION_COUNTS["radtan"]:
            kept.pop()
        if model == "pinhole" and any(kept):
            raise CameraError(f"distortion: expected none with this lens model, got {kept}")
        model = "radtan" if any(kept) else "pinhole"
        kept = kept if model == "radtan" else []
    unsized = UnsizedCamera(fx=fx, fy=fy, cx=cx, cy=cy, model=model, distortion=tuple(kept))
    checked = unsized.of_size(*(size or (1, 1)))
    return unsized if size is None else checked


def _model(name: object) -> CameraModel:
    model = MODELS.get(str(name).strip().lower())
    if model is None:
        known = ", ".join(key for key in MODELS if key)
        raise CameraError(f"lens model {name!r} is not supported (known: {known})")
    return model


def _first(values: Values, names: Sequence[str]) -> Any:
    return next((values[name] for name in names if values.get(name) is not None), None)


def _size(values: Values) -> tuple[int, int] | None:
    """(width, height); None if the file has neither."""
    pair = values.get("image_size")
    if isinstance(pair, list | Mapping):
        numbers = _list("image_size", pair)
        if len(numbers) == 2:
            return _pixels("image_size", numbers[0]), _pixels("image_size", numbers[1])
    width, height = _first(values, WIDTHS), _first(values, HEIGHTS)
    if width is None and height is None:
        return None
    if width is None or height is None:
        raise CameraError(f"expected both the width and the height of the images, got {width!r} x {height!r}")
    return _pixels("width", width), _pixels("height", height)


def _resolution(values: Values) -> tuple[int, int]:
    numbers = _list("resolution", values.get("resolution", []))
    if len(numbers) != 2:
        raise CameraError(f"resolution: expected [width, height], got {values.get('resolution')!r}")
    return _pixels("resolution", numbers[0]), _pixels("resolution", numbers[1])


def _intrinsics(values: Values) -> list[float]:
    numbers = _list("intrinsics", values.get("intrinsics", []))
    if len(numbers) != 4:
        raise CameraError(f"intrinsics: expected [fx, fy, cx, cy], got {values.get('intrinsics')!r}")
    return numbers


def _numbers_at(values: Values, names: Sequence[str]) -> list[float]:
    missing = [name for name in names if name not in values]
    if missing:
        raise CameraError(f"missing {', '.join(missing)}")
    return [number_of(name, values[name]) for name in names]


def _pixels(name: str, value: object) -> int:
    number = number_of(name, value)
    if not number.is_integer() or number < 1:
        raise CameraError(f"{name}: expected a whole number of pixels, got {value!r}")
    return int(number)


def _list(name: str, value: object) -> list[float]:
    """Numbers of a list, of lists in a list, or of a matrix with `data`; of text with blanks between them (XML)."""
    if isinstance(value, Mapping):
        value = value.get("data")
    if isinstance(value, str):
        value = value.replace(",", " ").split()
    if not isinstance(value, list):
        raise CameraError(f"{name}: expected a list of numbers, got {value!r}")
    rows = [row if isinstance(row, list) else [row] for row in value]
    return [number_of(name, number) for row in rows for number in row]


def _xml_values(text: str) -> dict[str, Any]:
    """The entries of an OpenCV XML file: text, or a mapping for a matrix."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise CameraError(f"not XML ({error})") from None
    if root.tag != "opencv_storage":
        raise CameraError(f"XML of another program ({root.tag}); expected opencv_storage")
    return {child.tag: {c.tag: c.text or "" for c in child} if len(child) else child.text for child in root}
