"""A map for other programs: COLMAP and nerfstudio (images with poses), PLY (points), TUM and KITTI (trajectories).

Segments of a map share no world, so each export holds one of them. COLMAP and nerfstudio put pixel (0, 0) at the
corner of the top-left pixel, we put it at its center: half a pixel is added on the way out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from relocalizer.errors import MapError, OutputError
from relocalizer.geometry import FloatArray, quaternion_xyzw_from_rotation
from relocalizer.maps.map_format import jpeg_of
from relocalizer.maps.reference_map import ReferenceMap

ExportFormat = Literal["colmap", "nerfstudio", "ply", "tum", "kitti"]
HALF_PIXEL = 0.5
# From our camera axes (x right, y down, z forward) to OpenGL's (x right, y up, z back), in which nerfstudio writes.
OPENGL_FROM_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """What one segment holds: rows of its keyframes and of the landmarks that hang off them."""

    rows: NDArray[np.int64]
    landmarks: NDArray[np.int64]


def export_map(reference_map: ReferenceMap, form: ExportFormat, out: Path, *, segment: int | None = None) -> list[Path]:
    """Write a segment of a map, by default the one with the most keyframes; the files or the folder made.

    `colmap` makes a folder with cameras.txt, images.txt, points3D.txt and images/; `nerfstudio` one with
    transforms.json, points3D.ply and images/; `ply` a file of colored points. `tum` and `kitti` make a file with the
    poses of all frames, or of the keyframes when the map holds no frames, in order of time; each session, which may
    have a clock of its own, has its own file (OUT, OUT_2, ...).

    Raises:
        MapError: the map holds no keyframes, or not this segment, or an image cannot be read.
        OutputError: `out` is there already, or the disk refuses.
        ValueError: there is no such format.
    """
    if form not in get_args(ExportFormat):
        raise ValueError(f"export_map: no format {form!r}")
    part = _part_of(reference_map, segment)
    writers: Mapping[str, Callable[[ReferenceMap, _Part, Path], list[Path]]] = {
        "colmap": _write_colmap,
        "nerfstudio": _write_nerfstudio,
        "ply": _write_ply,
        "tum": lambda m, p, o: _write_trajectories(m, p, o, _tum_lines),
        "kitti": lambda m, p, o: _write_trajectories(m, p, o, _kitti_lines),
    }
    try:
        return writers[form](reference_map, part, out)
    except FileExistsError as error:
        raise OutputError(f"{error.filename}: is there already; choose another name or remove it") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{out}: cannot be written ({reason}); make room or choose another place") from None


def segments_by_size(reference_map: ReferenceMap) -> dict[int, int]:
    """Keyframes of each segment, the largest first."""
    numbers, counts = np.unique(reference_map.keyframes.segment, return_counts=True)
    order = np.lexsort((numbers, -counts))
    return {int(numbers[n]): int(counts[n]) for n in order}


def _part_of(m: ReferenceMap, segment: int | None) -> _Part:
    sizes = segments_by_size(m)
    if not sizes:
        raise MapError("map: it holds no keyframes, so there is nothing to export")
    if segment is not None and segment not in sizes:
        raise MapError(f"map: no segment {segment}; it has {', '.join(map(str, sorted(sizes)))}")
    chosen = next(iter(sizes)) if segment is None else segment
    rows = np.flatnonzero(m.keyframes.segment == chosen)
    return _Part(rows, np.flatnonzero(np.isin(m.landmarks.anchor, m.keyframes.ids[rows])))


# --- COLMAP -------------------------------------------------------------------------------------------


def _write_colmap(m: ReferenceMap, part: _Part, out: Path) -> list[Path]:
    """https://colmap.github.io/format.html#text-format; image and point numbers begin at 1."""
    out.mkdir(parents=True)
    tracks: dict[int, list[tuple[int, int]]] = {int(m.landmarks.ids[n]): [] for n in part.landmarks}
    number_of = {track: number for number, track in enumerate(tracks, start=1)}
    images = [
        "# Image list: IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME, then POINTS2D[] as X, Y, POINT3D_ID"
    ]
    for row in part.rows.tolist():
        images += _image_lines(m, row, tracks, number_of)
    _write_lines(out / "images.txt", images)
    _write_lines(out / "cameras.txt", _camera_lines(m))
    _write_lines(out / "points3D.txt", _point_lines(m, part, tracks))
    _write_images(m, part, out / "images")
    return [out]


def _camera_lines(m: ReferenceMap) -> list[str]:
    lines = ["# Camera list: CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[] (fx, fy, cx, cy)"]
    for number, c in enumerate(m.cameras, start=1):
        numbers = (c.fx, c.fy, c.cx + HALF_PIXEL, c.cy + HALF_PIXEL)
        lines.append(f"{number} PINHOLE {c.width} {c.height} {' '.join(map(repr, map(float, numbers)))}")
    return lines


def _image_lines(
    m: ReferenceMap, row: int, tracks: dict[int, list[tuple[int, int]]], number_of: Mapping[int, int]
) -> list[str]:
    """The two lines of a keyframe; its observations are noted with their tracks."""
    cam_from_world = m.keyframes.rotations[row].T
    x, y, z, w = quaternion_xyzw_from_rotation(cam_from_world)
    position = -cam_from_world @ m.keyframes.translations[row]
    camera = int(m.keyframes.camera[row]) + 1
    head = f"{row + 1} {_numbers([w, x, y, z, *position])} {camera} {_image_name(m, row)}"
    seen = m.observations
    points = []
    for n, k in enumerate(range(int(seen.offsets[row]), int(seen.offsets[row + 1]))):
        track, (px, py) = int(seen.landmark[k]), seen.pixels[k].astype(np.float64) + HALF_PIXEL
        if track in tracks:
            tracks[track].append((row + 1, n))
        points.append(f"{px:.6g} {py:.6g} {number_of.get(track, -1)}")
    return [head, " ".join(points)]


def _point_lines(m: ReferenceMap, part: _Part, tracks: Mapping[int, Sequence[tuple[int, int]]]) -> list[str]:
    lines = ["# 3D point list: POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[] as (IMAGE_ID, POINT2D_IDX)"]
    points, errors = m.points_world, mean_errors_px(m)
    for number, n in enumerate(part.landmarks.tolist(), start=1):
        track = tracks[int(m.landmarks.ids[n])]
        color = " ".join(str(int(c)) for c in m.landmarks.colors[n])
        seen = " ".join(f"{image} {point}" for image, point in track)
        lines.append(f"{number} {_numbers(points[n])} {color} {errors[n]:.6g} {seen}".rstrip())
    return lines


def mean_errors_px(m: ReferenceMap) -> FloatArray:
    """Mean distance (M,) of each landmark's observations from where it projects, pixels; 0 without any in front."""
    row_of_track = {int(track): n for n, track in enumerate(m.landmarks.ids)}
    sums, counts = np.zeros(len(m.landmarks)), np.zeros(len(m.landmarks))
    for row in range(len(m.keyframes)):
        part = slice(int(m.observations.offsets[row]), int(m.observations.offsets[row + 1]))
        found = np.array([row_of_track.get(t, -1) for t in m.observations.landmark[part].tolist()], dtype=np.int64)
        points = m.points_world[found[found >= 0]] - m.keyframes.translations[row]
        in_cam = points @ m.keyframes.rotations[row]
        front = in_cam[:, 2] > 1e-9
        off = m.camera_of(row).project(in_cam[front]) - m.observations.pixels[part][found >= 0][front]
        np.add.at(sums, found[found >= 0][front], np.linalg.norm(off, axis=1))
        np.add.at(counts, found[found >= 0][front], 1.0)
    return np.asarray(sums / np.maximum(counts, 1.0))


# --- nerfstudio ---------------------------------------------------------------------------------------


def _write_nerfstudio(m: ReferenceMap, part: _Part, out: Path) -> list[Path]:
    """https://docs.nerf.studio/quickstart/data_conventions.html; each frame has its own camera."""
    out.mkdir(parents=True)
    frames = [_nerfstudio_frame(m, row) for row in part.rows.tolist()]
    transforms = {"camera_model": "OPENCV", "ply_file_path": "points3D.ply", "frames": frames}
    (out / "transforms.json").write_text(json.dumps(transforms, indent=1) + "\n", encoding="utf-8")
    _write_ply(m, part, out / "points3D.ply")
    _write_images(m, part, out / "images")
    return [out]


def _nerfstudio_frame(m: ReferenceMap, row: int) -> dict[str, object]:
    camera = m.camera_of(row)
    return {
        "file_path": f"images/{_image_name(m, row)}",
        "w": camera.width,
        "h": camera.height,
        "fl_x": camera.fx,
        "fl_y": camera.fy,
        "cx": camera.cx + HALF_PIXEL,
        "cy": camera.cy + HALF_PIXEL,
        "transform_matrix": (_pose_matrix(m, row) @ OPENGL_FROM_OPENCV).tolist(),
    }


def _pose_matrix(m: ReferenceMap, row: int) -> FloatArray:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = m.keyframes.rotations[row], m.keyframes.translations[row]
    return pose


# --- points -------------------------------------------------------------------------------------------


def _write_ply(m: ReferenceMap, part: _Part, out: Path) -> list[Path]:
    vertices = np.empty(len(part.landmarks), dtype=[("position", "<f4", 3), ("color", "u1", 3)])
    vertices["position"], vertices["color"] = m.points_world[part.landmarks], m.landmarks.colors[part.landmarks]
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
    """Poses (T, 4, 4) with their times, their frames' numbers in the source, and the rows of their keyframes."""

    times: NDArray[np.int64]
    numbers: NDArray[np.int64]
    rows: NDArray[np.int64]
    world_from_cam: FloatArray


def frame_numbers(reference_map: ReferenceMap, segment: int | None = None) -> list[NDArray[np.int64]]:
    """The number (T,) in its source of each frame that a trajectory export writes, by line, for each of its files.

    Raises:
        MapError: as `export_map`.
    """
    return [session.numbers for session in _sessions(reference_map, _part_of(reference_map, segment))]


def _sessions(m: ReferenceMap, part: _Part) -> list[_Poses]:
    """The poses of each session, by time; of equal times the first counts."""
    has_frames = len(m.frames.indices) > 0
    every = _all_frames(m) if has_frames else _all_keyframes(m)
    session_of = m.session_of_frame if has_frames else m.session_of_keyframe
    inside = np.isin(every.rows, part.rows)
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
    m: ReferenceMap, part: _Part, out: Path, lines_of: Callable[[NDArray[np.int64], FloatArray], list[str]]
) -> list[Path]:
    sessions = _sessions(m, part)
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
    return [_numbers(pose[:3].ravel()) for pose in poses]


# --- files --------------------------------------------------------------------------------------------


def _image_name(m: ReferenceMap, row: int) -> str:
    return f"{int(m.keyframes.ids[row]):06d}.jpg"


def _write_images(m: ReferenceMap, part: _Part, folder: Path) -> None:
    folder.mkdir()
    for row in part.rows.tolist():
        (folder / _image_name(m, row)).write_bytes(jpeg_of(m, row))


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    with path.open("x", encoding="ascii", newline="\n") as file:
        file.write("".join(f"{line}\n" for line in lines))


def _numbers(values: Sequence[float] | FloatArray) -> str:
    """With all their digits, so that nothing is lost."""
    return " ".join(repr(float(value)) for value in values)


def _fixed(values: Sequence[float]) -> str:
    return " ".join(f"{value:.9f}" for value in values)
