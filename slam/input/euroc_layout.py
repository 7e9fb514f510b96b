"""The layout of EuRoC, also used by TUM-VI: mav0/cam0 with the images, their times, the camera and ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relocalizer.camera import Camera
from relocalizer.geometry import FloatArray
from slam.evaluation.trajectory import Trajectory
from slam.evaluation.trajectory_files import read_euroc
from slam.input.dataset_calibrations import euroc_sensor, kalibr_with_imu
from slam.input.folder_listing import images_in
from slam.input.name_times import times_in_names
from slam.input.sequence_index import SequenceIndex
from slam.input.text_rows import increasing, integer_nanoseconds, path_inside, rows_of

# Ground truth of the IMU body: EuRoC's estimate, and TUM-VI's motion capture in the frame of the IMU.
TRUTHS = ("state_groundtruth_estimate0", "mocap0")
CAMCHAINS = ("dso/camchain.yaml", "camchain.yaml")  # calibrations of TUM-VI, relative to the sequence's folder


@dataclass(frozen=True, slots=True, eq=False)
class _BodyCamera:
    """Camera 0, its pose in the body (4, 4), and where both are from; None where unknown."""

    camera: Camera | None = None
    body_from_cam: FloatArray | None = None
    source: str = ""


def euroc(folder: Path) -> SequenceIndex | None:
    """EuRoC and TUM-VI: mav0/cam0/ with data.csv or images named by times, sensor.yaml or a camchain, ground truth."""
    root = folder / "mav0" if (folder / "mav0").is_dir() else folder
    cam0 = root / "cam0"
    images = _listed(cam0)
    if images is None:
        return None
    paths, times, notes = images
    body_camera = _camera_of(root)
    if body_camera.camera is None:
        notes.append("no cam0/sensor.yaml and no dso/camchain.yaml")
    ground_truth, truth_notes = _ground_truth(root, body_camera)
    return SequenceIndex(
        name=folder.parent.name if folder.name == "mav0" else folder.name,
        layout="EuRoC",
        image_paths=tuple(paths),
        timestamps_ns=times,
        camera=body_camera.camera,
        camera_source=body_camera.source,
        ground_truth=ground_truth,
        notes=("camera 0 alone", *notes, *truth_notes),
    )


def _listed(cam0: Path) -> tuple[Sequence[Path], NDArray[np.int64], list[str]] | None:
    """The images of a camera, their times and remarks; None if there is neither a list nor names that are times."""
    if (cam0 / "data.csv").is_file():
        rows = list(rows_of(cam0 / "data.csv", separator=","))
        times = increasing([(place, fields[0], integer_nanoseconds(place, fields[0])) for place, fields in rows])
        return [path_inside(cam0 / "data", fields[-1], place) for place, fields in rows], times, []
    named = times_in_names(images_in(cam0 / "data"))
    return None if named is None else (named.paths, named.timestamps_ns, [named.note])


def _camera_of(root: Path) -> _BodyCamera:
    sensor = root / "cam0" / "sensor.yaml"
    if sensor.is_file():
        return _BodyCamera(*euroc_sensor(sensor), str(sensor))
    chain = next((path for name in CAMCHAINS for path in (root.parent / name, root / name) if path.is_file()), None)
    if chain is None:
        return _BodyCamera()
    return _BodyCamera(*kalibr_with_imu(chain), str(chain))


def _ground_truth(root: Path, body_camera: _BodyCamera) -> tuple[Trajectory | None, list[str]]:
    """The poses of the camera, and remarks."""
    truth = next((path for name in TRUTHS if (path := root / name / "data.csv").is_file()), None)
    if truth is None:
        return None, []
    if body_camera.body_from_cam is None:
        return None, ["its ground truth is the body's, and the pose of the camera in the body is unknown"]
    world_from_body = read_euroc(truth)
    return Trajectory(world_from_body.timestamps_ns, world_from_body.world_from_cam @ body_camera.body_from_cam), []
