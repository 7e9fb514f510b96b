"""Scenes of the localization benchmarks: database and query images with their poses and cameras.

7-Scenes: Shotton et al., 2013; pseudo ground truth by structure from motion: Brachmann et al., 2021. Cambridge
Landmarks: Kendall et al., "PoseNet", 2015, with the poses of its reconstruction.nvm.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from relocalizer.camera import Camera
from relocalizer.geometry import FloatArray, rotation_from_quaternion_wxyz
from relocalizer.image_headers import image_size
from slam.benchmarks.benchmark_error import BenchmarkError
from slam.benchmarks.pair_data import rigid_inverse, rigid_matrix
from slam.benchmarks.slam_sequences import SCENES
from slam.input.dataset_calibrations import SEVEN_SCENES_CAMERA
from slam.input.folder_listing import images_in
from slam.input.text_rows import lines_of, path_inside, read_matrix, rows_of

CAMBRIDGE_SCENES = ("GreatCourt", "KingsCollege", "OldHospital", "ShopFacade", "StMarysChurch")
KINECT, SFM = "KinectFusion", "SfM"
SFM_FOLDERS = ("pgt/sfm/7scenes", "pgt/sfm", "sfm/7scenes", "7scenes_sfm")
SPLITS = ("TrainSplit.txt", "TestSplit.txt")
NVM, CAMBRIDGE_LISTS = "reconstruction.nvm", ("dataset_train.txt", "dataset_test.txt")
_UNIT_TOLERANCE = 1e-2  # Of the norm of a quaternion.


@dataclass(frozen=True, slots=True, eq=False)
class SceneImage:
    """An image of a scene; `name` is relative to the scene's folder, `world_from_cam` is (4, 4)."""

    name: str
    path: Path
    camera: Camera
    world_from_cam: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """Database and query images; `left_out` counts listed images without a pose."""

    name: str
    database: Sequence[SceneImage]
    queries: Sequence[SceneImage]
    left_out: int = 0


def seven_scenes(root: Path) -> dict[str, tuple[Path, str]]:
    """Folder and ground truth of each scene that is there, by name; pseudo ground truth where its files are."""
    found: dict[str, tuple[Path, str]] = {}
    for name in SCENES:
        if all((root / name / split).is_file() for split in SPLITS):
            found[name] = root / name, KINECT
            if _sfm_file(root, name, "train") is not None:
                found[f"{name}-{SFM}"] = root / name, SFM
    if not found:
        raise BenchmarkError(f"{root}: no scene with {' and '.join(SPLITS)} ({', '.join(SCENES)})")
    return found


def read_seven_scenes(folder: Path, name: str, truth: str) -> Scene:
    """A scene of 7-Scenes. Raises UserError if its files are not as published."""
    sides = [_listed_images(folder, split) for split in SPLITS]
    if truth == KINECT:
        posed = [[_with_kinect_pose(folder, image) for image in side] for side in sides]
    else:
        posed = [_with_sfm_poses(folder, side, part) for side, part in zip(sides, ("train", "test"), strict=True)]
    kept = [[image for image in side if image is not None] for side in posed]
    return Scene(name, kept[0], kept[1], sum(map(len, sides)) - sum(map(len, kept)))


def _listed_images(folder: Path, split: str) -> list[str]:
    """Names of the color images of the sequences of a split."""
    names: list[str] = []
    for place, fields in rows_of(folder / split):
        number = re.search(r"(\d+)$", fields[0])
        if number is None:
            raise BenchmarkError(f"{place}: expected 'sequence1' and so on, got {fields[0]!r}")
        sequence = folder / f"seq-{int(number[1]):02d}"
        images = [path.name for path in images_in(sequence) if ".color." in path.name]
        if not images:
            raise BenchmarkError(
                f"{sequence}: no images frame-NNNNNN.color.png; is seq-{int(number[1]):02d}.zip unpacked?"
            )
        names += [f"{sequence.name}/{image}" for image in images]
    return names


def _with_kinect_pose(folder: Path, name: str) -> SceneImage | None:
    """None for an image without a pose file, or with NaN or infinity in it."""
    path = folder / name
    pose_file = path.with_name(re.sub(r"\.color\.\w+$", ".pose.txt", path.name))
    if not pose_file.is_file():
        return None
    pose = read_matrix(pose_file)
    if not np.isfinite(pose).all():
        return None
    return SceneImage(name, path, SEVEN_SCENES_CAMERA, rigid_matrix(pose, str(pose_file)))


def _sfm_file(root: Path, scene: str, part: str) -> Path | None:
    paths = [root / folder / f"{scene}_{part}.txt" for folder in SFM_FOLDERS]
    return next((path for path in paths if path.is_file()), None)


def _with_sfm_poses(folder: Path, names: Sequence[str], part: str) -> list[SceneImage | None]:
    """Poses of `file qw qx qy qz tx ty tz f`, camera from world, with the focal length found with them."""
    path = _sfm_file(folder.parent, folder.name, part)
    if path is None:
        raise BenchmarkError(f"{folder.parent}: no {folder.name}_{part}.txt of the pseudo ground truth")
    poses: dict[str, tuple[FloatArray, float]] = {}
    for place, fields in rows_of(path):
        numbers = _numbers(place, fields[1:], 8)
        cam_from_world = np.column_stack([_rotation(place, numbers[:4]), numbers[4:7]])
        poses[fields[0]] = rigid_inverse(rigid_matrix(cam_from_world, place)), float(numbers[7])
    return [_posed(folder, name, *poses[name]) if name in poses else None for name in names]


def _posed(folder: Path, name: str, world_from_cam: FloatArray, focal: float) -> SceneImage:
    given = SEVEN_SCENES_CAMERA
    camera = Camera(width=given.width, height=given.height, fx=focal, fy=focal, cx=given.cx, cy=given.cy)
    return SceneImage(name, folder / name, camera, world_from_cam)


def cambridge(root: Path) -> dict[str, tuple[Path, str]]:
    """Folder and ground truth of each scene that is there, by name."""
    found = {name: (root / name, NVM) for name in CAMBRIDGE_SCENES if (root / name / NVM).is_file()}
    if not found:
        raise BenchmarkError(f"{root}: no scene with {NVM} ({', '.join(CAMBRIDGE_SCENES)})")
    return found


def read_cambridge(folder: Path, name: str, truth: str) -> Scene:
    """A scene of Cambridge Landmarks: names of the lists, poses and focal lengths of the reconstruction."""
    views = _read_nvm(folder / NVM)
    sides = [sorted(_names_of(folder / file)) for file in CAMBRIDGE_LISTS]
    images = [[_cambridge_image(folder, one, *views[one]) for one in side if one in views] for side in sides]
    return Scene(name, images[0], images[1], sum(map(len, sides)) - sum(map(len, images)))


def _names_of(path: Path) -> list[str]:
    """First columns of a list; its three header lines have no image name in them."""
    rows = [content.split() for _, content in lines_of(path)]
    return [row[0] for row in rows if len(row) == 8 and Path(row[0]).suffix]


def _read_nvm(path: Path) -> dict[str, tuple[FloatArray, float]]:
    """(world_from_cam, focal length) by name of `name f qw qx qy qz x y z ...`, camera from world and its center."""
    lines = list(lines_of(path))
    if not lines or not lines[0][1].startswith("NVM_V3"):
        raise BenchmarkError(f"{path}: expected a file of VisualSfM that begins with NVM_V3")
    counts = [k for k, (_, line) in enumerate(lines) if line.isdecimal()]
    if not counts:
        raise BenchmarkError(f"{path}: no number of images in it")
    first = counts[0] + 1
    views: dict[str, tuple[FloatArray, float]] = {}
    for place, line in lines[first : first + int(lines[counts[0]][1])]:
        fields = line.split()
        numbers = _numbers(place, fields[1:9], 8)
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = _rotation(place, numbers[1:5]).T, numbers[5:8]
        views[str(Path(fields[0]).with_suffix(".png"))] = matrix, float(numbers[0])
    return views


def _cambridge_image(folder: Path, name: str, world_from_cam: FloatArray, focal: float) -> SceneImage:
    path = path_inside(folder, name, str(folder / NVM))
    width, height = image_size(path) or (1920, 1080)
    camera = Camera(width=width, height=height, fx=focal, fy=focal, cx=(width - 1) / 2, cy=(height - 1) / 2)
    return SceneImage(name, path, camera, world_from_cam)


def _numbers(place: str, fields: Sequence[str], count: int) -> FloatArray:
    try:
        numbers = np.array([float(field) for field in fields])
    except ValueError as error:
        raise BenchmarkError(f"{place}: expected numbers ({error})") from None
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise BenchmarkError(f"{place}: expected {count} finite numbers after the name")
    return numbers


def _rotation(place: str, wxyz: FloatArray) -> FloatArray:
    if abs(float(np.linalg.norm(wxyz)) - 1.0) > _UNIT_TOLERANCE:
        raise BenchmarkError(f"{place}: expected a unit quaternion, got length {np.linalg.norm(wxyz):.3f}")
    return rotation_from_quaternion_wxyz(wxyz)
