"""Images with known poses, from data sets and other programs, read as a list of `PosedImage`.

| POSES | images |
|---|---|
| none | a data set whose folder contains poses: 7-Scenes (a sequence, or a scene with TrainSplit.txt), TUM, ... |
| a trajectory file | any folder with times: each image gets the pose at its time |
| a COLMAP model | `images.txt` and `cameras.txt`, or `.bin`; names relative to IMAGES |
| a list in Cambridge Landmarks format | `name x y z qw qx qy qz`; names relative to IMAGES |
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform, Rotation, Slerp

from relocalizer.errors import CameraError, SequenceError, TrajectoryError
from relocalizer.geometry import FloatArray, rigid, rotation_from_quaternion_wxyz
from relocalizer.gray_levels import GrayLevels
from relocalizer.images import Image, read_image
from relocalizer.maps.image_matching import PosedImage
from relocalizer.maps.reference_map import Ids
from slam.config.schema import InputConfig
from slam.evaluation.trajectory import Trajectory
from slam.evaluation.trajectory_files import read_trajectory, with_times
from slam.input.colmap_poses import model_folder, read_images
from slam.input.dataset_layouts import index_folder
from slam.input.frame_source import ALL_IMAGES, Selection
from slam.input.image_sizes import ImageSizes, common_levels, first_readable
from slam.input.rectification import Calibration, GivenCamera, Rectifier, read_calibration
from slam.input.text_rows import lines_of, path_inside, rows_of, text_of

MAX_GAP_NS = 50_000_000  # Maximum time between an image and the poses interpolated for it, nanoseconds.
CAMBRIDGE_HEADER = "Visual Landmark Dataset"
_QUATERNION_TOLERANCE = 0.01
_NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PosedSource:
    """Images with poses, the unit of the poses, and one line stating what was recognized."""

    images: list[PosedImage]
    units: str
    description: str


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """An image file with its pose and time, and its camera if the file of poses has one."""

    path: Path
    world_from_cam: RigidTransform
    timestamp_ns: int
    calibration: GivenCamera | None = None
    landmarks: Ids | None = None


def open_posed(
    images: Path,
    poses: Path | None,
    *,
    config: InputConfig,
    camera: Path | None = None,
    selection: Selection = ALL_IMAGES,
) -> PosedSource:
    """Images of a folder with their poses in any known format.

    Args:
        poses: a trajectory file, a COLMAP model's folder or a Cambridge list; None if the folder itself has poses.
        camera: a camera.yaml that overrides all other cameras.
        selection: which of the images that have a pose.

    Raises:
        SequenceError: the images cannot be read, or all of them are missing.
        TrajectoryError: the poses cannot be read, or their times do not match the images.
        CameraError: the camera file is invalid, or does not match the images.
    """
    if not os.path.isdir(images):
        raise SequenceError(f"{images}: no such folder; expected one with the images")
    entries, calibration, units, format_name = _recognize(images, poses)
    given = read_calibration(camera) if camera is not None else None
    chosen = selection.of(len(entries), str(images))
    posed, notes = _images([entries[k] for k in chosen], given, calibration, config)
    description = "; ".join([f"{format_name}: {len(posed)} images with poses", *notes])
    return PosedSource(images=posed, units=units, description=description)


def _recognize(images: Path, poses: Path | None) -> tuple[list[_Entry], GivenCamera | None, str, str]:
    """(entries, shared camera, unit, name of the format)."""
    if poses is None:
        scene = images / "TrainSplit.txt"
        if os.path.isfile(scene):
            return _seven_scenes_scene(images, scene)
        return _data_set(images, None)
    if not os.path.exists(poses):
        raise TrajectoryError(f"{poses}: no such file or folder; expected a trajectory, a COLMAP model or a list")
    if (model := model_folder(poses)) is not None:
        return _colmap(images, model), None, "map units", "COLMAP model"
    if os.path.isdir(poses):
        raise TrajectoryError(
            f"{poses}: expected a COLMAP model: images and cameras, as .txt or .bin, in the folder or in its sparse/0"
        )
    if _is_cambridge(poses):
        return _cambridge(images, poses), None, "meters", "Cambridge Landmarks list"
    return _data_set(images, poses)


# --- layouts ------------------------------------------------------------------------------------------


def _data_set(images: Path, poses: Path | None) -> tuple[list[_Entry], GivenCamera | None, str, str]:
    """A folder with times, and a trajectory interpolated at these times."""
    index = index_folder(images)
    truth = index.ground_truth if poses is None else read_trajectory(poses)
    if not index.image_paths:
        raise SequenceError(f"{images}: a video; expected single images")
    if truth is None:
        raise TrajectoryError(
            f"{images}: no poses in this folder; name them: a trajectory file, a COLMAP model or a Cambridge list"
        )
    if not truth.has_times:
        truth = _in_order(truth, index.timestamps_ns, str(poses))
    found = _poses_at(truth, index.timestamps_ns.tolist())
    entries = [
        _Entry(path, pose, time)
        for path, time, pose in zip(index.image_paths, index.timestamps_ns.tolist(), found, strict=True)
        if pose is not None and os.path.isfile(path)
    ]
    if not entries:
        raise TrajectoryError(
            f"{poses or images}: none of the poses is within {MAX_GAP_NS / 1e6:g} ms of an image; are the "
            "images' times known (rgb.txt with 'timestamp filename'), and on the clock of the poses?"
        )
    calibration = GivenCamera(index.camera, index.camera_source, index.ignored) if index.camera else None
    return entries, calibration, "meters", index.layout


def _in_order(untimed: Trajectory, times_ns: NDArray[np.int64], name: str) -> Trajectory:
    """Poses without times, given the times of the images. Raises TrajectoryError unless there is one per image."""
    if len(untimed) != len(times_ns):
        raise TrajectoryError(
            f"{name}: {len(untimed)} poses without times and {len(times_ns)} images: nothing tells which belong "
            "together; expected a line for each image, or poses with times (slam convert --times makes them)"
        )
    return with_times(untimed, times_ns, name)


def _seven_scenes_scene(scene: Path, split: Path) -> tuple[list[_Entry], GivenCamera | None, str, str]:
    """All training sequences of a 7-Scenes scene, which share one world. Their times are made consecutive."""
    entries: list[_Entry] = []
    calibration = None
    names = []
    for place, fields in rows_of(split):
        number = re.search(r"(\d+)$", fields[0])
        if number is None:
            raise SequenceError(f"{place}: expected 'sequence1' and so on, got {fields[0]!r}")
        names.append(f"seq-{int(number[1]):02d}")
        more, calibration, _, _ = _data_set(scene / names[-1], None)
        start = entries[-1].timestamp_ns + _NANOSECONDS if entries else 0
        entries += [replace(entry, timestamp_ns=entry.timestamp_ns + start) for entry in more]
    return entries, calibration, "meters", f"7-Scenes scene, {', '.join(names)}"


def _colmap(images: Path, model: Path) -> list[_Entry]:
    """The images of a COLMAP model; their poses are cam_from_world, quaternion w first."""
    entries = []
    for image in read_images(model):
        numbers = _numbers(image.place, list(image.pose))
        cam_from_world = rigid(_rotation(image.place, numbers[:4]), numbers[4:])
        path = path_inside(images, image.name, image.place)
        entries.append(_Entry(path, cam_from_world.inv(), 0, image.camera, image.points))
    return _numbered(images, sorted(entries, key=lambda entry: str(entry.path)), str(model))


def _is_cambridge(path: Path) -> bool:
    """Whether a file is a list with names in the first column, with or without the data set's header."""
    try:
        start = text_of(path)[:4096]
    except SequenceError:
        return False
    if start.startswith(CAMBRIDGE_HEADER):
        return True
    first = next((line.split() for line in start.splitlines() if line.strip() and not line.startswith("#")), [])
    return len(first) == 8 and Path(first[0]).suffix != "" and not re.fullmatch(r"[-+0-9.eE]+", first[0])


def _cambridge(images: Path, path: Path) -> list[_Entry]:
    """`name x y z qw qx qy qz`: the camera center in the world, and the rotation cam_from_world."""
    entries = []
    for place, line in lines_of(path):
        fields = line.split()
        if not fields or fields[0] in ("Visual", "ImageFile,"):  # The two lines of its header.
            continue
        if len(fields) != 8:
            raise TrajectoryError(f"{place}: expected 'name x y z qw qx qy qz', got {len(fields)} columns")
        numbers = _numbers(place, fields[1:])
        cam_from_world = _rotation(place, numbers[3:])
        entries.append(_Entry(path_inside(images, fields[0], place), rigid(cam_from_world.T, numbers[:3]), 0))
    return _numbered(images, entries, str(path))


def _numbered(images: Path, entries: Sequence[_Entry], source: str) -> list[_Entry]:
    """Entries whose images exist, one second apart, because these formats have no times."""
    existing = [entry for entry in entries if os.path.isfile(entry.path)]
    if not existing:
        first = f" (first: {entries[0].path})" if entries else ""
        raise SequenceError(
            f"{images}: none of the {len(entries)} images that {source} names is here{first}; "
            "pass the folder that its names start from"
        )
    return [replace(entry, timestamp_ns=k * _NANOSECONDS) for k, entry in enumerate(existing)]


def _numbers(place: str, fields: Sequence[str]) -> FloatArray:
    try:
        numbers = np.array([float(field) for field in fields])
    except ValueError as error:
        raise TrajectoryError(f"{place}: expected numbers ({error})") from None
    if not np.isfinite(numbers).all():
        raise TrajectoryError(f"{place}: expected finite numbers")
    return numbers


def _rotation(place: str, wxyz: FloatArray) -> FloatArray:
    if abs(float(np.linalg.norm(wxyz)) - 1.0) > _QUATERNION_TOLERANCE:
        raise TrajectoryError(f"{place}: expected a unit quaternion, got length {np.linalg.norm(wxyz):.3f}")
    return rotation_from_quaternion_wxyz(wxyz)


# --- poses at the images' times -----------------------------------------------------------------------


def _poses_at(truth: Trajectory, times_ns: Sequence[int]) -> list[RigidTransform | None]:
    """The pose at each time, interpolated between its two neighbors; None where they are too far away in time."""
    known = truth.timestamps_ns
    found: list[RigidTransform | None] = []
    for time in times_ns:
        after = int(np.searchsorted(known, time))
        before = after if after < len(known) and known[after] == time else after - 1
        if before < 0 or after >= len(known):
            found.append(None)
        elif before == after:
            found.append(RigidTransform.from_matrix(truth.world_from_cam[after]))
        elif max(time - int(known[before]), int(known[after]) - time) > MAX_GAP_NS:
            found.append(None)
        else:
            found.append(_between(truth, before, after, time))
    return found


def _between(truth: Trajectory, before: int, after: int, time_ns: int) -> RigidTransform:
    pair = truth.world_from_cam[[before, after]]
    span = int(truth.timestamps_ns[after] - truth.timestamps_ns[before])
    fraction = (time_ns - int(truth.timestamps_ns[before])) / span
    rotation = Slerp([0.0, 1.0], Rotation.from_matrix(pair[:, :3, :3]))(fraction)
    return rigid(rotation.as_matrix(), (1 - fraction) * pair[0, :3, 3] + fraction * pair[1, :3, 3])


# --- images -----------------------------------------------------------------------------------------


def _images(
    entries: Sequence[_Entry], given: Calibration | None, shared: GivenCamera | None, config: InputConfig
) -> tuple[list[PosedImage], list[str]]:
    """The usable images, and remarks about the excluded ones.

    Images are excluded if their size is not the most common one of their camera, or if their camera is not usable.

    Raises:
        SequenceError, CameraError: no image is usable.
    """
    by_camera: dict[str, list[_Entry]] = {}
    for entry in entries:
        by_camera.setdefault(repr(given or entry.calibration or shared), []).append(entry)
    optics: dict[Path, _Optics] = {}
    notes: list[str] = []
    for group in by_camera.values():
        sizes = ImageSizes.of([entry.path for entry in group])
        try:
            of_group = _optics_of(sizes, given or group[0].calibration or shared, config)
        except (SequenceError, CameraError) as error:
            if len(by_camera) == 1:
                raise
            notes.append(f"{len(group)} left out ({error})")
            continue
        others = sizes.others(sizes.most_common)
        notes += [*sizes.notes(sizes.most_common), *([of_group.levels.note] if of_group.levels else [])]
        optics |= {entry.path: of_group for entry in group if entry.path not in others}
    if not optics:
        raise SequenceError(f"none of {len(entries)} images can be used: {notes[0]}")
    return [_posed(entry, optics[entry.path]) for entry in entries if entry.path in optics], notes


@dataclass(frozen=True, slots=True, eq=False)
class _Optics:
    """What the images of one camera have in common: the rectification, and the range of those of more than 8 bits."""

    rectifier: Rectifier
    levels: GrayLevels | None

    def read(self, path: Path) -> Image:
        return self.rectifier(read_image(path, self.levels), str(path))


def _optics_of(sizes: ImageSizes, calibration: Calibration | None, config: InputConfig) -> _Optics:
    alike = sizes.alike(sizes.of_more_than_half(str(sizes.paths[0].parent)))
    first = first_readable(alike)
    height, width = first.shape[:2]
    return _Optics(Rectifier(width, height, calibration, config), common_levels(alike, first))


def _posed(entry: _Entry, optics: _Optics) -> PosedImage:
    return PosedImage(
        name=entry.path.name,
        read=lambda: optics.read(entry.path),
        camera=optics.rectifier.camera,
        world_from_cam=entry.world_from_cam,
        timestamp_ns=entry.timestamp_ns,
        mask=optics.rectifier.mask,
        landmarks=entry.landmarks,
    )
