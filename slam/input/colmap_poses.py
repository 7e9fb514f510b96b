"""Images and cameras of a COLMAP model, in text or binary.

https://colmap.github.io/format.html
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from relocalizer.colmap_cameras import camera_of_line, cameras_from_binary
from relocalizer.errors import CameraError, TrajectoryError
from slam.input.rectification import GivenCamera
from slam.input.text_rows import lines_of

IMAGE = "<i7di"  # id, quaternion (w first), translation, id of the camera
OBSERVATION_BYTES = 24  # pixel, two float64, and the id of the point


@dataclass(frozen=True, slots=True)
class ModelImage:
    """An image of a model.

    Attributes:
        place: where it stands, for errors.
        pose: quaternion (w first) and translation of cam_from_world, as text.
    """

    place: str
    name: str
    pose: tuple[str, ...]
    camera: GivenCamera


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


# --- text ---------------------------------------------------------------------------------------------


def _text(model: Path) -> Iterator[ModelImage]:
    """images.txt and cameras.txt; a line of points follows every image line."""
    cameras = _cameras_of_text(model / "cameras.txt")
    # Empty lines count: an image without points has an empty second line.
    for place, line in list(lines_of(model / "images.txt"))[::2]:
        fields = line.split()
        if len(fields) < 10 or fields[8] not in cameras:
            raise TrajectoryError(
                f"{place}: expected IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME with a camera of cameras.txt"
            )
        yield ModelImage(place, " ".join(fields[9:]), tuple(fields[1:8]), cameras[fields[8]])


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
            offset = end + 9 + OBSERVATION_BYTES * observations
            if offset > len(data):
                raise ValueError("the observations are cut off")
            if str(camera) not in cameras:
                raise TrajectoryError(f"{path}: image {number}: no camera {camera} in {source.name}")
            yield ModelImage(f"{path}: image {number}", name, tuple(map(repr, pose)), cameras[str(camera)])
    except (struct.error, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise TrajectoryError(f"{path}: not an images.bin of COLMAP, or cut off ({error})") from None
    if offset != len(data):
        raise TrajectoryError(f"{path}: not an images.bin of COLMAP: {len(data) - offset} bytes after its last image")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TrajectoryError(f"{path}: cannot be read ({error.strerror})") from None
