"""Cameras of COLMAP models, in text and binary.

The center of COLMAP's first pixel is (0.5, 0.5); the principal points are converted to ours, where it is (0, 0).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Sequence

from relocalizer.camera import Camera, CameraModel
from relocalizer.errors import CameraError

# COLMAP's models by name: number (src/colmap/sensor/models.h), number of parameters, our model, and the split of the
# parameters into (fx, fy, cx, cy) and distortion.
_Split = Callable[[Sequence[float]], tuple[list[float], list[float]]]
MODELS: dict[str, tuple[int, int, CameraModel, _Split]] = {
    "SIMPLE_PINHOLE": (0, 3, "pinhole", lambda p: ([p[0], *p[:3]], [])),
    "PINHOLE": (1, 4, "pinhole", lambda p: (list(p[:4]), [])),
    "SIMPLE_RADIAL": (2, 4, "radtan", lambda p: ([p[0], *p[:3]], [p[3], 0.0, 0.0, 0.0])),
    "RADIAL": (3, 5, "radtan", lambda p: ([p[0], *p[:3]], [p[3], p[4], 0.0, 0.0])),
    "OPENCV": (4, 8, "radtan", lambda p: (list(p[:4]), list(p[4:8]))),
    "OPENCV_FISHEYE": (5, 8, "fisheye", lambda p: (list(p[:4]), list(p[4:8]))),
    "FULL_OPENCV": (6, 12, "radtan", lambda p: (list(p[:4]), list(p[4:12]))),
    "SIMPLE_RADIAL_FISHEYE": (8, 4, "fisheye", lambda p: ([p[0], *p[:3]], [p[3], 0.0, 0.0, 0.0])),
    "RADIAL_FISHEYE": (9, 5, "fisheye", lambda p: ([p[0], *p[:3]], [p[3], p[4], 0.0, 0.0])),
}
_LINE = re.compile(r"[0-9]+\s+[A-Z][A-Z_]+\s+[0-9]+\s+[0-9]+\s")
EXPECTED = f"expected CAMERA_ID MODEL WIDTH HEIGHT PARAMS, a MODEL of {', '.join(MODELS)}"


def is_colmap_text(text: str) -> bool:
    """Whether the first line that is not a comment is one of a cameras.txt."""
    first = next((line for line in text.splitlines() if line.strip() and not line.startswith("#")), "")
    return _LINE.match(first.strip()) is not None


def camera_of_line(line: str) -> tuple[str, Camera]:
    """Id and camera of a line of cameras.txt. Raises CameraError if it is none."""
    fields = line.split()
    if len(fields) < 5 or fields[1] not in MODELS:
        raise CameraError(EXPECTED)
    try:
        numbers = [float(field) for field in fields[2:]]
    except ValueError as error:
        raise CameraError(f"expected numbers ({error})") from None
    if not numbers[0].is_integer() or not numbers[1].is_integer():
        raise CameraError(f"expected a size in whole pixels, got {fields[2]} x {fields[3]}")
    return fields[0], _camera(fields[1], (int(numbers[0]), int(numbers[1])), numbers[2:])


def cameras_from_text(text: str) -> dict[str, Camera]:
    """The cameras of a cameras.txt by their id. Raises CameraError for a line that is none."""
    cameras: dict[str, Camera] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.startswith("#"):
            try:
                camera_id, camera = camera_of_line(line)
            except CameraError as error:
                raise CameraError(f"line {number}: {error}") from None
            cameras[camera_id] = camera
    return cameras


def cameras_from_binary(data: bytes) -> dict[str, Camera]:
    """The cameras of a cameras.bin by their id. Raises CameraError for data that are none."""
    try:
        return dict(_records(data))
    except struct.error:
        raise CameraError("not a cameras.bin of COLMAP, or cut off") from None


def _records(data: bytes) -> Iterator[tuple[str, Camera]]:
    names = {number: name for name, (number, *_) in MODELS.items()}
    (count,) = struct.unpack_from("<Q", data)
    offset = 8
    for _ in range(count):
        camera_id, model, width, height = struct.unpack_from("<iiQQ", data, offset)
        offset += struct.calcsize("<iiQQ")
        if model not in names:
            raise CameraError(f"camera model {model} is not supported, only {', '.join(MODELS)}")
        params = MODELS[names[model]][1]
        numbers = struct.unpack_from(f"<{params}d", data, offset)
        offset += 8 * params
        yield str(camera_id), _camera(names[model], (width, height), numbers)
    if offset != len(data):
        raise CameraError(f"not a cameras.bin of COLMAP: {len(data) - offset} bytes after its last camera")


def _camera(name: str, size: tuple[int, int], numbers: Sequence[float]) -> Camera:
    _, count, model, split = MODELS[name]
    if len(numbers) != count:
        raise CameraError(f"{name} has {count} numbers, got {len(numbers)}")
    (fx, fy, cx, cy), distortion = split(numbers)
    return Camera(
        width=size[0], height=size[1], fx=fx, fy=fy, cx=cx - 0.5, cy=cy - 0.5,
        model=model, distortion=tuple(distortion),
    )  # fmt: skip
