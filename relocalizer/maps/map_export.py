"""Export of a map to other formats: COLMAP and nerfstudio (posed images), PLY (points), TUM and KITTI (trajectories).

Segments of a map share no world, so an export contains one segment. COLMAP and nerfstudio define pixel (0, 0) as the
corner of the top-left pixel, this project as its center: half a pixel is added on export.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from relocalizer.camera import Camera
from relocalizer.errors import MapError, OutputError
from relocalizer.geometry import FloatArray, quaternion_xyzw_from_rotation
from relocalizer.maps.colmap_model import HALF_PIXEL, NO_POINT, ColmapImage, ColmapModel, ColmapPoint, exact_numbers
from relocalizer.maps.map_format import jpeg_of
from relocalizer.maps.reference_map import ReferenceMap

ExportFormat = Literal["colmap", "nerfstudio", "ply", "tum", "kitti"]
# Change from OpenCV camera axes (x right, y down, z forward) to OpenGL axes (x right, y up, z back) of nerfstudio.
OPENGL_FROM_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])


@dataclass(frozen=True, slots=True, eq=False)
class PosedImage:
    """An image of an export.

    Attributes:
        name: stem of its file, without characters that COLMAP or a file system would not take.
        camera: its pinhole camera. world_from_cam: (4, 4).
        jpeg: the image as a JPEG file.
        row: row of its keyframe; None for another frame, which has no observations in the map.
    """

    name: str
    camera: Camera
    world_from_cam: FloatArray
    jpeg: bytes
    row: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Written:
    """An image whose file is written: its number from 1 on, its file name, and what `PosedImage` says of it."""

    number: int
    file_name: str
    camera: Camera
    world_from_cam: FloatArray
    row: int | None


@dataclass(frozen=True, slots=True, eq=False)
class _Segment:
    """Rows of a segment's keyframes, and of the landmarks anchored in them."""

    rows: NDArray[np.int64]
    landmarks: NDArray[np.int64]


def export_map(
    reference_map: ReferenceMap,
    form: ExportFormat,
    out: Path,
    *,
    segment: int | None = None,
    images: Iterable[PosedImage] | None = None,
) -> list[Path]:
    """Export a segment of a map, by default the one with the most keyframes; returns the files or the folder written.

    `colmap` writes a folder with images/ and sparse/0, the model as text and binary; `nerfstudio` one with
    transforms.json, points3D.ply and images/; `ply` a file of colored points. `tum` and `kitti` write the poses of all
    frames, or of the keyframes when the map has no frames, in order of time, to one file per session (OUT, OUT_2, ...),
    because sessions may have different clocks.

    Args:
        images: the images of `colmap` and `nerfstudio`, written as they come; by default those of the keyframes, as
            they are stored in the map.

    Raises:
        MapError: the map has no keyframes or no such segment, or an image cannot be read.
        OutputError: `out` already exists, or writing fails.
        ValueError: the format is unknown.
    """
    if form not in get_args(ExportFormat):
        raise ValueError(f"export_map: no format {form!r}")
    exported = _segment_of(reference_map, segment)
    chosen = stored_images(reference_map, exported.rows) if images is None else images
    writers: Mapping[str, Callable[[ReferenceMap, _Segment, Path], list[Path]]] = {
        "colmap": lambda m, p, o: _write_colmap(m, p, o, chosen),
        "nerfstudio": lambda m, p, o: _write_nerfstudio(m, p, o, chosen),
        "ply": _write_ply,
        "tum": lambda m, p, o: _write_trajectories(m, p, o, _tum_lines),
        "kitti": lambda m, p, o: _write_trajectories(m, p, o, _kitti_lines),
    }
    try:
        return writers[form](reference_map, exported, out)
    except FileExistsError as error:
        raise OutputError(f"{error.filename}: is there already; choose another name or remove it") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{out}: cannot be written ({reason}); make room or choose another place") from None


def segments_by_size(reference_map: ReferenceMap) -> dict[int, int]:
    """Number of keyframes of each segment, in descending order."""
    numbers, counts = np.unique(reference_map.keyframes.segment, return_counts=True)
    order = np.lexsort((numbers, -counts))
    return {int(numbers[n]): int(counts[n]) for n in order}


def segment_number(m: ReferenceMap, segment: int | None) -> int:
    """The number of a segment; of the one with the most keyframes for None.

    Raises:
        MapError: the map has no keyframes or no such segment.
    """
    sizes = segments_by_size(m)
    if not sizes:
        raise MapError("map: it holds no keyframes, so there is nothing to export")
    if segment is not None and segment not in sizes:
        raise MapError(f"map: no segment {segment}; it has {', '.join(map(str, sorted(sizes)))}")
    return next(iter(sizes)) if segment is None else segment


def _segment_of(m: ReferenceMap, segment: int | None) -> _Segment:
    chosen = segment_number(m, segment)
    rows = np.flatnonzero(m.keyframes.segment == chosen)
    return _Segment(rows, np.flatnonzero(np.isin(m.landmarks.anchor, m.keyframes.ids[rows])))


def stored_images(m: ReferenceMap, rows: NDArray[np.int64]) -> Iterator[PosedImage]:
    """The images of keyframes (N,) as they are stored in a map."""
    for row in rows.tolist():
        yield PosedImage(_name_of_keyframe(m, row), m.camera_of(row), _pose_matrix(m, row), jpeg_of(m, row), row)


# --- COLMAP -------------------------------------------------------------------------------------------


def _write_colmap(m: ReferenceMap, segment: _Segment, out: Path, images: Iterable[PosedImage]) -> list[Path]:
    """The layout of COLMAP's datasets, which Gaussian splatting programs expect: sparse/0 and images."""
    out.mkdir(parents=True)
    written = _write_images(images, out / "images")
    cameras = list(dict.fromkeys(image.camera for image in written))
    numbers = {int(m.landmarks.ids[n]): number for number, n in enumerate(segment.landmarks.tolist(), start=1)}
    models = [_colmap_image(m, image, 1 + cameras.index(image.camera), numbers) for image in written]
    tracks: dict[int, list[tuple[int, int]]] = {number: [] for number in numbers.values()}
    for model in models:
        for n in np.flatnonzero(model.points != NO_POINT).tolist():
            tracks[int(model.points[n])].append((model.number, n))
    points, errors = m.points_world, mean_errors_px(m)
    landmarks = [
        ColmapPoint(number, points[n], m.landmarks.colors[n], float(errors[n]), tracks[number])
        for number, n in enumerate(segment.landmarks.tolist(), start=1)
    ]
    ColmapModel(cameras, models, landmarks).write(out / "sparse" / "0")
    return [out]


def _colmap_image(m: ReferenceMap, image: _Written, camera: int, numbers: Mapping[int, int]) -> ColmapImage:
    """An image with its observations, those of its keyframe; `numbers` are the ids of the points, by landmark."""
    cam_from_world = image.world_from_cam[:3, :3].T
    pixels, landmarks = np.zeros((0, 2)), np.zeros(0, np.int64)
    if image.row is not None:
        own = slice(int(m.observations.offsets[image.row]), int(m.observations.offsets[image.row + 1]))
        landmarks = m.observations.landmark[own]
        pixels = _pixels_in(image.camera, m.camera_of(image.row), m.observations.pixels[own].astype(np.float64))
    return ColmapImage(
        number=image.number,
        camera=camera,
        name=image.file_name,
        quaternion_wxyz=np.roll(quaternion_xyzw_from_rotation(cam_from_world), 1),
        translation=-cam_from_world @ image.world_from_cam[:3, 3],
        pixels=pixels + HALF_PIXEL,
        points=np.array([numbers.get(track, NO_POINT) for track in landmarks.tolist()], dtype=np.int64),
    )


def _pixels_in(camera: Camera, stored: Camera, pixels: FloatArray) -> FloatArray:
    """Pixels (N, 2) of the stored image of a keyframe as pixels of another image of the same view."""
    if camera == stored:
        return pixels
    rays = np.column_stack([stored.normalized(pixels), np.ones(len(pixels))])
    return camera.project(rays)


def mean_errors_px(m: ReferenceMap) -> FloatArray:
    """Mean reprojection error (M,) of each landmark, pixels; 0 without observations in front of the camera."""
    row_of_track = {int(track): n for n, track in enumerate(m.landmarks.ids)}
    sums, counts = np.zeros(len(m.landmarks)), np.zeros(len(m.landmarks))
    for row in range(len(m.keyframes)):
        own = slice(int(m.observations.offsets[row]), int(m.observations.offsets[row + 1]))
        found = np.array([row_of_track.get(t, -1) for t in m.observations.landmark[own].tolist()], dtype=np.int64)
        points = m.points_world[found[found >= 0]] - m.keyframes.translations[row]
        in_cam = points @ m.keyframes.rotations[row]
        front = in_cam[:, 2] > 1e-9
        error = m.camera_of(row).project(in_cam[front]) - m.observations.pixels[own][found >= 0][front]
        np.add.at(sums, found[found >= 0][front], np.linalg.norm(error, axis=1))
        np.add.at(counts, found[found >= 0][front], 1.0)
    return np.asarray(sums / np.maximum(counts, 1.0))


# --- nerfstudio ---------------------------------------------------------------------------------------


def _write_nerfstudio(m: ReferenceMap, segment: _Segment, out: Path, images: Iterable[PosedImage]) -> list[Path]:
    """https://docs.nerf.studio/quickstart/data_conventions.html; each frame has its own camera."""
    out.mkdir(parents=True)
    frames = [_nerfstudio_frame(image) for image in _write_images(images, out / "images")]
    transforms = {"camera_model": "OPENCV", "ply_file_path": "points3D.ply", "frames": frames}
    (out / "transforms.json").write_text(json.dumps(transforms, indent=1) + "\n", encoding="utf-8")
    _write_ply(m, segment, out / "points3D.ply")
    return [out]


def _nerfstudio_frame(image: _Written) -> dict[str, object]:
    camera = image.camera
    return {
        "file_path": f"images/{image.file_name}",
        "w": camera.width,
        "h": camera.height,
        "fl_x": camera.fx,
        "fl_y": camera.fy,
        "cx": camera.cx + HALF_PIXEL,
        "cy": camera.cy + HALF_PIXEL,
        "transform_matrix": (image.world_from_cam @ OPENGL_FROM_OPENCV).tolist(),
    }


def _pose_matrix(m: ReferenceMap, row: int) -> FloatArray:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = m.keyframes.rotations[row], m.keyframes.translations[row]
    return pose


# --- points -------------------------------------------------------------------------------------------


def _write_ply(m: ReferenceMap, segment: _Segment, out: Path) -> list[Path]:
    vertices = np.empty(len(segment.landmarks), dtype=[("position", "<f4", 3), ("color", "u1", 3)])
    vertices["position"], vertices["color"] = m.points_world[segment.landmarks], m.landmarks.colors[segment.landmarks]
    properties = [f"property float {axis}" for axis in "xyz"]
    properties += [f"property uchar {channel}" for channel in ("red", "green", "blue")]
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}", *properties, "end_header"]
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("xb") as file:
        file.write(("\n".join(head) + "\n").encode("ascii") + vertices.tobytes())
    return [out]


# --- trajectories -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Poses:
    """Poses (T, 4, 4) with their times, their frame numbers in the source, and the rows of their keyframes."""

    times: NDArray[np.int64]
    numbers: NDArray[np.int64]
    rows: NDArray[np.int64]
    world_from_cam: FloatArray


def frame_numbers(reference_map: ReferenceMap, segment: int | None = None) -> list[NDArray[np.int64]]:
    """Frame numbers (T,) in the source of the lines of a trajectory export, for each of its files.

    Raises:
        MapError: as `export_map`.
    """
    return [session.numbers for session in _sessions(reference_map, _segment_of(reference_map, segment))]


def frame_poses(reference_map: ReferenceMap, segment: int | None = None) -> tuple[NDArray[np.int64], FloatArray]:
    """Numbers (T,) in the source and world_from_cam (T, 4, 4) of the frames of a segment; of the keyframes if the map
    has no other frames.

    Raises:
        MapError: as `export_map`; or the map holds several sessions, so that a number is not one image.
    """
    if len(reference_map.sessions) > 1:
        raise MapError("map: it holds several runs, so a number of a frame is not one image; export the keyframes")
    sessions = _sessions(reference_map, _segment_of(reference_map, segment))
    return sessions[0].numbers, sessions[0].world_from_cam


def _sessions(m: ReferenceMap, segment: _Segment) -> list[_Poses]:
    """The poses of each session in order of time; of poses with equal times only the first is kept."""
    has_frames = len(m.frames.indices) > 0
    every = _all_frames(m) if has_frames else _all_keyframes(m)
    session_of = m.session_of_frame if has_frames else m.session_of_keyframe
    inside = np.isin(every.rows, segment.rows)
    found = []
    for session in np.unique(session_of[inside]):
        chosen = np.flatnonzero(inside & (session_of == session))
        _, first = np.unique(every.times[chosen], return_index=True)
        kept = chosen[first]
        found.append(_Poses(every.times[kept], every.numbers[kept], every.rows[kept], every.world_from_cam[kept]))
    return found


def _all_keyframes(m: ReferenceMap) -> _Poses:
    rows = np.arange(len(m.keyframes))
    poses = np.array([_pose_matrix(m, row) for row in rows.tolist()])
    return _Poses(m.keyframes.timestamps_ns, m.keyframes.frame_indices, rows, poses)


def _all_frames(m: ReferenceMap) -> _Poses:
    rows = np.array([m.row_of[int(k)] for k in m.frames.keyframe], dtype=np.int64)
    R, t, s = m.keyframes.rotations[rows], m.keyframes.translations[rows], m.keyframes.scales[rows]
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3, :3] = R @ m.frames.rotations
    poses[:, :3, 3] = s[:, None] * np.einsum("nij,nj->ni", R, m.frames.translations) + t
    return _Poses(m.frames.timestamps_ns, m.frames.indices, rows, poses)


def _write_trajectories(
    m: ReferenceMap, segment: _Segment, out: Path, lines_of: Callable[[NDArray[np.int64], FloatArray], list[str]]
) -> list[Path]:
    sessions = _sessions(m, segment)
    names = [out] + [out.with_name(f"{out.stem}_{n}{out.suffix}") for n in range(2, len(sessions) + 1)]
    out.parent.mkdir(parents=True, exist_ok=True)
    for path, session in zip(names, sessions, strict=True):
        _write_lines(path, lines_of(session.times, session.world_from_cam))
    return names


def _tum_lines(times: NDArray[np.int64], poses: FloatArray) -> list[str]:
    quaternions = quaternion_xyzw_from_rotation(poses[:, :3, :3])
    rows = zip(times.tolist(), poses[:, :3, 3], quaternions, strict=True)
    lines = [f"{t // 10**9}.{t % 10**9:09d} {_fixed([*position, *q])}" for t, position, q in rows]
    return ["# timestamp tx ty tz qx qy qz qw", *lines]


def _kitti_lines(times: NDArray[np.int64], poses: FloatArray) -> list[str]:
    return [exact_numbers(pose[:3].ravel()) for pose in poses]


# --- files --------------------------------------------------------------------------------------------


def _name_of_keyframe(m: ReferenceMap, row: int) -> str:
    """Name of an exported keyframe: that of its image's file, or the keyframe's id if it has none of its own."""
    by_id = f"{int(m.keyframes.ids[row]):06d}"
    stem = stem_of(m.image_name(row))
    if not stem:
        return by_id
    is_unique = sum(stem_of(name) == stem for name in m.image_names) == 1
    return stem if is_unique else f"{by_id}_{stem}"


def stem_of(name: str) -> str:
    """The name of a file without its suffix; characters other than letters, digits, points and hyphens become `_`.

    COLMAP separates names by blanks.
    """
    return re.sub(r"[^\w.-]", "_", name.rpartition(".")[0] or name)


def _write_images(images: Iterable[PosedImage], folder: Path) -> list[_Written]:
    """Write the images as they come, numbered from 1 on."""
    folder.mkdir()
    written = []
    for number, image in enumerate(images, start=1):
        file_name = f"{image.name}.jpg"
        (folder / file_name).write_bytes(image.jpeg)
        written.append(_Written(number, file_name, image.camera, image.world_from_cam, image.row))
    return written


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    with path.open("x", encoding="utf-8", newline="\n") as file:
        file.write("".join(f"{line}\n" for line in lines))


def _fixed(values: Sequence[float]) -> str:
    return " ".join(f"{value:.9f}" for value in values)
