"""Images, cameras and points of a COLMAP model, in text or binary.

https://colmap.github.io/format.html
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relocalizer.colmap_cameras import camera_of_line, cameras_from_binary
from relocalizer.errors import CameraError, TrajectoryError
from relocalizer.geometry import FloatArray
from relocalizer.maps.reference_map import Ids
from slam.input.rectification import GivenCamera
from slam.input.text_rows import lines_of

IMAGE = "<i7di"  # id, quaternion (w first), translation, id of the camera
OBSERVATION = np.dtype([("pixel", "<f8", 2), ("point", "<i8")])
POINT = "<q3d3BdQ"  # id, position, color, error, length of the track
TRACK_BYTES = 8  # of an element of a track: ids of the image and of its observation, int32


@dataclass(frozen=True, slots=True, eq=False)
class ModelImage:
    """An image of a model.

    Attributes:
        place: where it stands, for errors.
        pose: quaternion (w first) and translation of cam_from_world, as text.
        points: ids of the points that it sees, sorted.
    """

    place: str
    name: str
    pose: tuple[str, ...]
    camera: GivenCamera
    points: Ids


def model_folder(folder: Path) -> Path | None:
    """The folder of the model in a folder or in its sparse/0; None if there is none. Text is preferred to binary."""
    places = (folder, folder / "sparse" / "0", folder / "0")
    for name in ("images.txt", "images.bin"):
        for place in places:
            if os.path.isfile(place / name):
                return place
    return None


def read_images(model: Path) -> list[ModelImage]:
    """The images of a model.

    Raises:
        TrajectoryError: a file is damaged.
        CameraError: a camera is not supported.
        SequenceError: a file cannot be read.
    """
    return list(_text(model) if os.path.isfile(model / "images.txt") else _binary(model))


def read_points(model: Path) -> tuple[Ids, FloatArray]:
    """Ids (N,), sorted, and positions (N, 3) of the points of a model.

    Raises:
        TrajectoryError: the file is missing or damaged.
        SequenceError: a text file cannot be read.
    """
    found = list(_points_text(model) if os.path.isfile(model / "points3D.txt") else _points_binary(model))
    ids = np.array([number for number, *_ in found], np.int64)
    order = np.argsort(ids)
    return ids[order], np.array([position for _, *position in found], float).reshape(-1, 3)[order]


# --- text ---------------------------------------------------------------------------------------------


def _text(model: Path) -> Iterator[ModelImage]:
    """images.txt and cameras.txt; a line of points follows every image line."""
    cameras = _cameras_of_text(model / "cameras.txt")
    # Empty lines count: an image without points has an empty second line.
    lines = list(lines_of(model / "images.txt"))
    for (place, line), (place_of_points, points) in zip_longest(lines[::2], lines[1::2], fillvalue=("", "")):
        fields = line.split()
        if len(fields) < 10 or fields[8] not in cameras:
            raise TrajectoryError(
                f"{place}: expected IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME with a camera of cameras.txt"
            )
        name, seen = " ".join(fields[9:]), _points_of_line(place_of_points, points)
        yield ModelImage(place, name, tuple(fields[1:8]), cameras[fields[8]], seen)


def _points_of_line(place: str, line: str) -> Ids:
    """Ids in a line of observations, `X Y POINT3D_ID` each."""
    fields = line.split()
    try:
        if len(fields) % 3 == 0:
            return _known(np.array(fields[2::3], np.int64))
    except (ValueError, OverflowError):
        pass
    raise TrajectoryError(f"{place}: expected the observations of an image: X Y POINT3D_ID each")


def _known(points: NDArray[np.int64]) -> Ids:
    """The ids among those of observations, of which those without a point have -1."""
    return np.unique(points[points >= 0])


def _cameras_of_text(path: Path) -> dict[str, GivenCamera]:
    """The cameras of a cameras.txt by their id."""
    cameras: dict[str, GivenCamera] = {}
    for place, line in lines_of(path):
        try:
            camera_id, camera = camera_of_line(line)
        except CameraError as error:
            raise CameraError(f"{place}: {error}") from None
        cameras[camera_id] = GivenCamera(camera, str(path))
    return cameras


def _points_text(model: Path) -> Iterator[tuple[int, float, float, float]]:
    for place, line in lines_of(model / "points3D.txt"):
        if not line:
            continue
        try:
            number, x, y, z = line.split(None, 4)[:4]
            yield int(number), float(x), float(y), float(z)
        except ValueError:
            raise TrajectoryError(f"{place}: expected POINT3D_ID X Y Z and more") from None


# --- binary -------------------------------------------------------------------------------------------


def _binary(model: Path) -> Iterator[ModelImage]:
    """images.bin and cameras.bin."""
    path, source = model / "images.bin", model / "cameras.bin"
    try:
        cameras = {number: GivenCamera(c, str(source)) for number, c in cameras_from_binary(_bytes(source)).items()}
    except CameraError as error:
        raise CameraError(f"{source}: {error}") from None
    data, offset = _bytes(path), 8
    try:
        (count,) = struct.unpack_from("<Q", data)
        for _ in range(count):
            number, *pose, camera = struct.unpack_from(IMAGE, data, offset)
            offset += struct.calcsize(IMAGE)
            end = data.index(b"\0", offset)
            name = data[offset:end].decode("utf-8")
            (observations,) = struct.unpack_from("<Q", data, end + 1)
            start, offset = end + 9, end + 9 + OBSERVATION.itemsize * observations
            if offset > len(data):
                raise ValueError("the observations are cut off")
            if str(camera) not in cameras:
                raise TrajectoryError(f"{path}: image {number}: no camera {camera} in {source.name}")
            seen = _known(np.frombuffer(data, OBSERVATION, observations, start)["point"])
            yield ModelImage(f"{path}: image {number}", name, tuple(map(repr, pose)), cameras[str(camera)], seen)
    except (struct.error, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise TrajectoryError(f"{path}: not an images.bin of COLMAP, or cut off ({error})") from None
    if offset != len(data):
        raise TrajectoryError(f"{path}: not an images.bin of COLMAP: {len(data) - offset} bytes after its last image")


def _points_binary(model: Path) -> Iterator[tuple[int, float, float, float]]:
    path = model / "points3D.bin"
    data, offset = _bytes(path), 8
    try:
        (count,) = struct.unpack_from("<Q", data)
        for _ in range(count):
            number, x, y, z, *_, track = struct.unpack_from(POINT, data, offset)
            yield number, x, y, z
            offset += struct.calcsize(POINT) + TRACK_BYTES * track
    except struct.error as error:
        raise TrajectoryError(f"{path}: not a points3D.bin of COLMAP, or cut off ({error})") from None
    if offset != len(data):
        raise TrajectoryError(f"{path}: not a points3D.bin of COLMAP, or cut off")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TrajectoryError(f"{path}: cannot be read ({error.strerror})") from None
