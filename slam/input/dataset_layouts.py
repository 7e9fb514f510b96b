"""Data set layouts: each layout is a function from a folder to a `SequenceIndex`.

A layout recognizes its folder by the files in it, never by the folder's name, and returns None for other folders;
`index_folder` tries each of `LAYOUTS` in turn. A new data set is one more function in that tuple (docs/datasets.md
has the recipe). Of the images, only headers are read here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relocalizer.errors import SequenceError
from relocalizer.geometry import FloatArray, nearest_rotation
from relocalizer.images import IMAGE_SUFFIXES
from relocalizer.unfetched import leads_nowhere, why_unfetched
from slam.evaluation.trajectory import Trajectory
from slam.evaluation.trajectory_files import read_kitti, read_tum
from slam.input.dataset_calibrations import (
    ICL_NUIM_CAMERA,
    SEVEN_SCENES_CAMERA,
    camera_of,
    folder_camera,
    kitti_projection,
    tum_camera,
)
from slam.input.euroc_layout import euroc
from slam.input.folder_listing import (
    NOMINAL_FPS,
    TABLES,
    entries_of,
    files,
    images_in,
    is_video,
    missing_images,
    nominal_times,
    number_in,
    readable_images,
    what_was_seen,
)
from slam.input.mask import ignored_in
from slam.input.name_times import times_in_names
from slam.input.sequence_index import SequenceIndex
from slam.input.text_rows import increasing, nanoseconds_of, path_inside, read_matrix, rows_of

KITTI_FPS = 10  # Frame rate of the odometry sequences, images per second.

# ICL-NUIM's camera and world have their y axis up (its fy is -480): this converts both to ours, with y down.
_FLIP_Y = np.diag([1.0, -1.0, 1.0, 1.0])


Layout = Callable[[Path], SequenceIndex | None]


def index_folder(folder: Path) -> SequenceIndex:
    """The index of a folder with any known layout.

    A camera.yaml in the folder overrides the published calibration of its data set.

    Raises:
        SequenceError: there is no such folder, it has no known layout, or its files are inconsistent.
        CameraError, MaskError, TrajectoryError: the calibration or the ground truth cannot be read.
    """
    folder = Path(os.path.abspath(folder))  # Absolute, so that "." has a name; links are not resolved.
    entries = entries_of(folder)
    for path in entries:  # Ignoring them silently would lose the images' times or camera.
        if path.name in TABLES and leads_nowhere(path):
            raise SequenceError(f"{path}: {why_unfetched(path)}")
    try:
        index = next((index for layout in LAYOUTS if (index := layout(folder)) is not None), None)
    except OSError as error:
        raise SequenceError(f"{error.filename or folder}: cannot be read ({error.strerror})") from None
    if index is None:
        raise SequenceError(what_was_seen(folder, entries))
    index = replace(index, notes=(*missing_images(folder, index.image_paths), *index.notes))
    own_camera = folder / "camera.yaml"
    if os.path.isfile(own_camera):
        index = replace(index, camera=folder_camera(own_camera, index.image_paths), camera_source=str(own_camera))
        index = replace(index, ignored=ignored_in(own_camera))
    return index


def kitti(folder: Path) -> SequenceIndex | None:
    """KITTI odometry: calib.txt, times.txt, image_2/ (color) or image_0/ (gray), and the poses of camera 0.

    The poses are in poses.txt, or at the benchmark's own path, ../../poses/NN.txt.
    """
    camera_number = next((k for k in (2, 0, 3, 1) if images_in(folder / f"image_{k}")), None)
    calibration = folder / "calib.txt"
    if camera_number is None or not calibration.is_file():
        return None
    paths = images_in(folder / f"image_{camera_number}")
    numbers = [number_in(path) for path in paths]
    times, notes = _kitti_times(folder / "times.txt", max(numbers))
    projection = kitti_projection(calibration, camera_number)
    return SequenceIndex(
        name=folder.name,
        layout="KITTI odometry",
        image_paths=tuple(paths),
        timestamps_ns=times[numbers],
        camera=camera_of(paths, projection, str(calibration)),
        camera_source=str(calibration),
        ground_truth=_kitti_ground_truth(folder, times, projection),
        notes=(f"image_{camera_number}", *notes),
    )


def seven_scenes(folder: Path) -> SequenceIndex | None:
    """7-Scenes: frame-NNNNNN.color.png with frame-NNNNNN.pose.txt; times are the frame number at 30 Hz.

    The data set is published with the Kinect's default color focal length only. Its poses are those of
    KinectFusion's depth camera, a few centimeters from the color camera.
    """
    paths = [path for path in images_in(folder) if re.fullmatch(r"frame-\d+\.color\.\w+", path.name)]
    if not paths:
        return None
    times = nominal_times([number_in(path) for path in paths], NOMINAL_FPS)
    poses = [folder / re.sub(r"\.color\.\w+$", ".pose.txt", path.name) for path in paths]
    return SequenceIndex(
        name=f"{folder.parent.name}-{folder.name}",
        layout="7-Scenes",
        image_paths=tuple(paths),
        timestamps_ns=times,
        camera=SEVEN_SCENES_CAMERA,
        camera_source="7-Scenes' published default (focal 525, center 320, 240)",
        ground_truth=_pose_files(times, poses),
        notes=("times at 30 Hz",),
    )


def scannet(folder: Path) -> SequenceIndex | None:
    """ScanNet, exported: color/N.jpg, pose/N.txt, intrinsic/intrinsic_color.txt; times are N at 30 Hz."""
    paths = images_in(folder / "color")
    if not paths or not (folder / "pose").is_dir():
        return None
    times = nominal_times([number_in(path) for path in paths], NOMINAL_FPS)
    camera, source = None, ""
    for intrinsics in (folder / "intrinsic" / "intrinsic_color.txt", folder / "intrinsic_color.txt"):
        if intrinsics.is_file():
            camera, source = camera_of(paths, read_matrix(intrinsics), str(intrinsics)), str(intrinsics)
            break
    return SequenceIndex(
        name=folder.name,
        layout="ScanNet",
        image_paths=tuple(paths),
        timestamps_ns=times,
        camera=camera,
        camera_source=source,
        ground_truth=_pose_files(times, [folder / "pose" / f"{path.stem}.txt" for path in paths]),
        notes=("times at 30 Hz",),
    )


def icl_nuim(folder: Path) -> SequenceIndex | None:
    """ICL-NUIM, the "TUM compatible" download: rgb/N.png, associations.txt, *.gt.freiburg.

    Images and ground truth have numbers instead of times: number N is converted to N / 30 s. The renderer's axes are
    left-handed with y up; the poses are converted to y down in both camera and world, which gives an ordinary camera
    with a positive fy.
    """
    paths = images_in(folder / "rgb")
    truths = sorted(folder.glob("*.gt.freiburg"))
    if not paths or not (truths or _counts_images(folder / "associations.txt")):
        return None
    if (folder / "rgb.txt").is_file() and not truths:
        return None
    ground_truth = None
    if truths:
        numbered = read_tum(truths[0])
        numbers = [round(time / 1e9) for time in numbered.timestamps_ns.tolist()]
        poses = _FLIP_Y @ numbered.world_from_cam @ _FLIP_Y
        ground_truth = Trajectory(nominal_times(numbers, NOMINAL_FPS), poses)
    return SequenceIndex(
        name=folder.name,
        layout="ICL-NUIM",
        image_paths=tuple(paths),
        timestamps_ns=nominal_times([number_in(path) for path in paths], NOMINAL_FPS),
        camera=ICL_NUIM_CAMERA,
        camera_source="ICL-NUIM's published calibration",
        ground_truth=ground_truth,
        notes=("times at 30 Hz",),
    )


def timed_list(folder: Path) -> SequenceIndex | None:
    """rgb.txt with lines `timestamp filename`: TUM RGB-D, or, with a camera.yaml, this project's own layout."""
    table = folder / "rgb.txt"
    if not table.is_file():
        return None
    rows = list(rows_of(table, most_fields=2))
    for place, fields in rows:
        if len(fields) != 2:
            raise SequenceError(f"{place}: expected 'timestamp filename', got {' '.join(fields)!r}")
    times = increasing([(place, fields[0], nanoseconds_of(place, fields[0])) for place, fields in rows])
    ground_truth, notes = _ground_truth_beside(folder, times)
    camera, source = None, ""
    if not (folder / "camera.yaml").is_file():
        camera, source = tum_camera(table, folder.name)
        notes = [source, *notes] if camera else notes
    return SequenceIndex(
        name=folder.name,
        layout="timed list" if (folder / "camera.yaml").is_file() else "TUM RGB-D",
        image_paths=tuple(path_inside(folder, fields[1], place) for place, fields in rows),
        timestamps_ns=times,
        camera=camera,
        camera_source=source,
        ground_truth=ground_truth,
        notes=tuple(notes),
    )


def video_folder(folder: Path) -> SequenceIndex | None:
    """One video, optionally with camera.yaml and groundtruth.txt beside it."""
    videos = [path for path in files(folder) if path.suffix.lower() not in IMAGE_SUFFIXES and is_video(path)]
    if not videos or images_in(folder):
        return None
    if len(videos) > 1:
        names = ", ".join(path.name for path in videos[:4])
        raise SequenceError(f"{folder}: {len(videos)} videos ({names}); pass the one to use")
    truth = folder / "groundtruth.txt"
    return SequenceIndex(
        name=folder.name,
        layout="video folder",
        timestamps_ns=np.zeros(0, dtype=np.int64),
        ground_truth=read_tum(truth) if truth.is_file() else None,
        video=videos[0],
    )


def image_folder(folder: Path) -> SequenceIndex | None:
    """Images in natural order (2 before 10), in the folder itself or in its only subfolder with images."""
    holder = folder
    if not images_in(folder):
        holders = [path for path in sorted(folder.iterdir()) if readable_images(path)]
        if len(holders) != 1:
            return None
        holder = holders[0]
    paths, named = images_in(holder), times_in_names(images_in(holder))
    times = nominal_times(range(len(paths)), NOMINAL_FPS) if named is None else named.timestamps_ns
    ground_truth, notes = _ground_truth_beside(folder, times)
    place = [] if holder == folder else [f"in {holder.name}/"]
    clock = f"no times, so {NOMINAL_FPS} images a second assumed" if named is None else named.note
    return SequenceIndex(
        name=folder.name,
        layout="image folder",
        image_paths=tuple(paths) if named is None else named.paths,
        timestamps_ns=times,
        ground_truth=ground_truth,
        notes=(*place, clock, *notes),
    )


# From the most specific to the most general: the last one would also match folders of most other layouts.
LAYOUTS: tuple[Layout, ...] = (
    euroc,
    kitti,
    seven_scenes,
    scannet,
    icl_nuim,
    timed_list,
    video_folder,
    image_folder,
)


def _ground_truth_beside(folder: Path, times: NDArray[np.int64]) -> tuple[Trajectory | None, list[str]]:
    """groundtruth.txt, and remarks. It is None, with the reason, if its times do not overlap those of the images."""
    path = folder / "groundtruth.txt"
    if not path.is_file():
        return None, []
    truth = read_tum(path)
    if not truth.has_times:
        return None, ["groundtruth.txt has no times, so it is not used"]
    if truth.timestamps_ns[-1] < times[0] or truth.timestamps_ns[0] > times[-1]:
        return None, ["groundtruth.txt shares no time with the images, so it is not used"]
    return truth, []


def _pose_files(times: NDArray[np.int64], paths: Sequence[Path]) -> Trajectory | None:
    """One 4x4 world_from_cam per file. Frames without a file, or with infinity or NaN in it, have no pose."""
    posed = []
    for time_ns, path in zip(times.tolist(), paths, strict=True):
        if not path.is_file():
            continue
        pose = read_matrix(path)
        if pose.shape != (4, 4):
            raise SequenceError(f"{path}: expected a 4x4 pose, got {pose.shape[0]}x{pose.shape[1]} numbers")
        if np.isfinite(pose).all():
            pose[:3, :3] = nearest_rotation(pose[:3, :3])
            pose[3] = (0.0, 0.0, 0.0, 1.0)
            posed.append((time_ns, pose))
    if not posed:
        return None
    return Trajectory(np.array([time for time, _ in posed]), np.array([pose for _, pose in posed]))


def _kitti_times(path: Path, last_frame: int) -> tuple[NDArray[np.int64], list[str]]:
    """Times of all frames of the sequence, which may have more frames than images, and remarks."""
    if not path.is_file():
        times = nominal_times(range(last_frame + 1), KITTI_FPS)
        return times, [f"no times.txt, so {KITTI_FPS} images a second assumed"]
    times = increasing([(place, fields[0], nanoseconds_of(place, fields[0])) for place, fields in rows_of(path)])
    if last_frame >= len(times):
        raise SequenceError(
            f"{path}: {len(times)} times, but there is an image numbered {last_frame}; "
            "expected a line for each image, from 0 on"
        )
    return times, []


def _kitti_ground_truth(folder: Path, times: NDArray[np.int64], projection: FloatArray) -> Trajectory | None:
    """The poses of camera 0, converted to those of the camera with this `projection` (3, 4)."""
    for path in (folder / "poses.txt", folder.parent.parent / "poses" / f"{folder.name}.txt"):
        if path.is_file():
            cam0_from_cam = np.eye(4)
            cam0_from_cam[:3, 3] = -np.linalg.solve(projection[:, :3], projection[:, 3])
            world_from_cam0 = read_kitti(path, times)
            return Trajectory(times, world_from_cam0.world_from_cam @ cam0_from_cam)
    return None


def _counts_images(associations: Path) -> bool:
    """Whether associations.txt numbers its images (ICL-NUIM) rather than giving their times (TUM RGB-D)."""
    if not associations.is_file():
        return False
    return all(fields[0].isdecimal() for _, fields in rows_of(associations))
