"""COLMAP models: cameras, posed images with their observations, and points, written as text and in binary form.

https://colmap.github.io/format.html. COLMAP defines pixel (0, 0) as the corner of the top-left pixel.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relocalizer.camera import Camera
from relocalizer.geometry import FloatArray

PINHOLE = 1  # COLMAP's number of the camera model with fx, fy, cx, cy
NO_POINT = -1  # id of the point of an observation that has none
HALF_PIXEL = 0.5  # offset of COLMAP's pixels from those whose centers are at integers


@dataclass(frozen=True, slots=True, eq=False)
class ColmapImage:
    """A posed image.

    Attributes:
        number: its id, from 1 on. camera: id of its camera.
        quaternion_wxyz, translation: (4,) and (3,) of cam_from_world.
        pixels: (N, 2) observations, in COLMAP's convention. points: (N,) ids of their points, or `NO_POINT`.
    """

    number: int
    camera: int
    name: str
    quaternion_wxyz: FloatArray
    translation: FloatArray
    pixels: FloatArray
    points: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class ColmapPoint:
    """A point: its id from 1 on, position (3,), color (3,), mean error in pixels, and observations (image, number)."""

    number: int
    position: FloatArray
    color: NDArray[np.uint8]
    error_px: float
    track: Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True, eq=False)
class ColmapModel:
    """Cameras by id, from 1 on; images; points."""

    cameras: Sequence[Camera]
    images: Sequence[ColmapImage]
    points: Sequence[ColmapPoint]

    def write(self, folder: Path) -> None:
        """Write cameras, images and points3D, each as .txt and as .bin; none of the files may exist."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, lines in (
            ("cameras", self._camera_lines()),
            ("images", self._image_lines()),
            ("points3D", self._point_lines()),
        ):
            with (folder / f"{name}.txt").open("x", encoding="utf-8", newline="\n") as file:
                file.write("".join(f"{line}\n" for line in lines))
        for name, data in (
            ("cameras", self._camera_bytes()),
            ("images", self._image_bytes()),
            ("points3D", self._point_bytes()),
        ):
            with (folder / f"{name}.bin").open("xb") as binary:
                binary.write(data)

    # --- text -----------------------------------------------------------------------------------------

    def _camera_lines(self) -> list[str]:
        lines = ["# Camera list: CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[] (fx, fy, cx, cy)"]
        for number, camera in enumerate(self.cameras, start=1):
            lines.append(f"{number} PINHOLE {camera.width} {camera.height} {exact_numbers(_parameters(camera))}")
        return lines

    def _image_lines(self) -> list[str]:
        lines = [
            "# Image list: IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME, then POINTS2D[] as X, Y, POINT3D_ID"
        ]
        for image in self.images:
            pose = exact_numbers([*image.quaternion_wxyz, *image.translation])
            lines.append(f"{image.number} {pose} {image.camera} {image.name}")
            observations = zip(image.pixels.tolist(), image.points.tolist(), strict=True)
            lines.append(" ".join(f"{x:.6g} {y:.6g} {point}" for (x, y), point in observations))
        return lines

    def _point_lines(self) -> list[str]:
        lines = ["# 3D point list: POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[] as (IMAGE_ID, POINT2D_IDX)"]
        for point in self.points:
            color = " ".join(str(int(channel)) for channel in point.color)
            track = " ".join(f"{image} {number}" for image, number in point.track)
            lines.append(
                f"{point.number} {exact_numbers(point.position)} {color} {point.error_px:.6g} {track}".rstrip()
            )
        return lines

    # --- binary ---------------------------------------------------------------------------------------

    def _camera_bytes(self) -> bytes:
        records = [
            struct.pack("<iiQQ4d", number, PINHOLE, camera.width, camera.height, *_parameters(camera))
            for number, camera in enumerate(self.cameras, start=1)
        ]
        return struct.pack("<Q", len(records)) + b"".join(records)

    def _image_bytes(self) -> bytes:
        kind = np.dtype([("pixel", "<f8", 2), ("point", "<i8")])
        records = [struct.pack("<Q", len(self.images))]
        for image in self.images:
            pose = (*image.quaternion_wxyz, *image.translation)
            observations = np.empty(len(image.points), kind)
            observations["pixel"], observations["point"] = image.pixels, image.points
            records.append(struct.pack("<i7di", image.number, *pose, image.camera))
            records.append(image.name.encode("utf-8") + b"\0")
            records.append(struct.pack("<Q", len(observations)) + observations.tobytes())
        return b"".join(records)

    def _point_bytes(self) -> bytes:
        records = [struct.pack("<Q", len(self.points))]
        for point in self.points:
            color = (int(channel) for channel in point.color)
            records.append(struct.pack("<Q3d3Bd", point.number, *point.position, *color, point.error_px))
            records.append(struct.pack("<Q", len(point.track)) + np.array(point.track, "<i4").tobytes())
        return b"".join(records)


def _parameters(camera: Camera) -> tuple[float, float, float, float]:
    """fx, fy, cx and cy in COLMAP's convention, pixels."""
    return float(camera.fx), float(camera.fy), float(camera.cx + HALF_PIXEL), float(camera.cy + HALF_PIXEL)


def exact_numbers(values: Sequence[float] | FloatArray) -> str:
    """Numbers with all digits, so that the conversion is lossless."""
    return " ".join(repr(float(value)) for value in values)
