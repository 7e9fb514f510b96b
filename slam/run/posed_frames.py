"""All posed images of a run for an export: read again from their source, at full size, undistorted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from relocalizer.camera import Camera, load_camera
from relocalizer.errors import MapError, SequenceError
from relocalizer.images import encode_jpeg
from relocalizer.maps.map_export import PosedImage, frame_poses, stem_of
from relocalizer.maps.reference_map import ReferenceMap
from slam.config.schema import InputConfig
from slam.input.frame_source import FrameSource, RereadableSource
from slam.input.open_source import open_source
from slam.input.rectification import GivenCamera
from slam.run.report import REPORT
from slam.run.run_folder import CAMERA

FULL_SIZE_PX = 4096  # maximum length of the longer side of an exported image
QUALITY = 95  # JPEG quality of exported images


def open_again(source: str, run_folder: Path) -> FrameSource:
    """The source of a run at full size, with the camera that the run knew or found.

    Raises:
        MapError: the folder is no run folder with a report.
        SequenceError, CameraError: the source cannot be read with that camera.
    """
    camera = _camera_of(run_folder)
    frames = open_source(source, config=InputConfig(max_side_px=FULL_SIZE_PX, calibrate_first=False))
    if not isinstance(frames, RereadableSource) or not frames.can_be_reread:
        frames.close()
        raise SequenceError(f"{source}: its images cannot be read again; expected the folder or file of the run")
    return frames.with_calibration(GivenCamera(camera, f"camera of {run_folder}"))


def posed_images(m: ReferenceMap, source: FrameSource, *, segment: int | None = None) -> Iterator[PosedImage]:
    """The images of all posed frames of a segment, in the order of the source.

    Raises:
        MapError: the map holds several sessions, or the source is not that of the run: it lacks images, or their names
            differ.
    """
    indices, world_from_cam = frame_poses(m, segment)
    poses = dict(zip(indices.tolist(), world_from_cam, strict=True))
    row_of = {int(index): row for row, index in enumerate(m.keyframes.frame_indices)}
    taken: set[str] = set()
    for frame in source:
        if frame.index not in poses:
            continue
        row = row_of.get(frame.index)
        if row is not None and m.image_name(row) not in ("", frame.name):
            raise MapError(
                f"{source.name}: image {frame.index} is {frame.name}, and in the run it was {m.image_name(row)}; "
                "expected the source of the run"
            )
        name = stem_of(frame.name) or f"{frame.index:06d}"
        name = f"{frame.index:06d}_{name}" if name in taken else name
        taken.add(name)
        yield PosedImage(name, frame.camera, poses.pop(frame.index), encode_jpeg(frame.image, QUALITY), row)
    if poses:
        raise MapError(f"{source.name}: {len(poses)} posed images are not there, the first is number {min(poses)}")


def _camera_of(run_folder: Path) -> Camera:
    """The camera of the source's images: the one that the run found, or else the one that it was given."""
    if (run_folder / CAMERA).is_file():
        return load_camera(run_folder / CAMERA)
    try:
        report: dict[str, Any] = json.loads((run_folder / REPORT).read_text(encoding="utf-8"))
        return Camera(**{**report["calibration"], "distortion": tuple(report["calibration"]["distortion"])})
    except (OSError, ValueError, KeyError, TypeError):
        raise MapError(f"{run_folder}: no run folder with a {REPORT}, which says what camera took the images") from None
