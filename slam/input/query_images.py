"""Query images for relocalization: their files and cameras."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from relocalizer.camera import Camera
from relocalizer.errors import CameraError, SequenceError
from relocalizer.images import read_image, shrink, size_within
from relocalizer.interfaces import CalibratedImage
from relocalizer.unfetched import why_unfetched
from slam.config.schema import InputConfig
from slam.input.dataset_layouts import index_folder
from slam.input.folder_listing import is_video
from slam.input.rectification import Calibration, GivenCamera, MapCameras, Rectifier, read_calibration
from slam.plain_text import plain

SECOND_NS = 1_000_000_000
NO_CAMERA = "no camera known, so compared with keyframes alone; with --camera landmarks count too"


@dataclass(frozen=True, slots=True, eq=False)
class QueryImage:
    """An image file, its timestamp in a trajectory, and its camera if its folder has a calibration."""

    path: Path
    timestamp_ns: int
    calibration: Calibration | None = None


def query_images(given: Sequence[str]) -> list[QueryImage]:
    """The images of folders, files and patterns such as 'holiday/*.jpg'.

    The images of a single folder keep its times; all others get times one second apart. Folders that match a pattern
    are ignored.

    Raises:
        SequenceError: there is no image, or a folder contains a video instead of images.
    """
    paths = [Path(os.path.expanduser(text)) for text in given]  # Keeps ~user of an unknown user.
    groups = [_images_at(path) for path in paths]
    images = [query for group in groups for query in group]
    if len(groups) == 1 and os.path.isdir(paths[0]):
        return images
    return [QueryImage(p.path, k * SECOND_NS, p.calibration) for k, p in enumerate(images)]


def _images_at(path: Path) -> list[QueryImage]:
    if os.path.isdir(path):
        index = index_folder(path)
        calibration: Calibration | None
        if index.video is not None:
            raise SequenceError(f"{path}: a video; slam run {path} --map MAP --localize-only follows it through a map")
        calibration = GivenCamera(index.camera, index.camera_source, index.ignored) if index.camera else _beside(path)
        times = index.timestamps_ns.tolist()
        return [QueryImage(p, time, calibration) for p, time in zip(index.image_paths, times, strict=True)]
    if os.path.exists(path):
        if is_video(path):
            raise SequenceError(f"{path}: a video; slam run {path} --map MAP --localize-only follows it through a map")
        return [QueryImage(path, 0, _beside(path.parent))]
    found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if os.path.isfile(name)]
    if not found:
        raise SequenceError(f"{path}: {why_unfetched(path) or 'no such image or folder'}")
    return [QueryImage(name, 0, _beside(name.parent)) for name in found]


def _beside(folder: Path) -> Calibration | None:
    """The camera.yaml of a folder of images, in the folder itself or in its parent."""
    paths = (folder / "camera.yaml", folder.resolve().parent / "camera.yaml")
    found = next((path for path in paths if os.path.isfile(path)), None)
    return read_calibration(found) if found is not None else None


class QueryReader:
    """Reads images and rectifies them to a pinhole camera.

    The camera is, in this order: the given one, that of the image's folder, a map's camera with the same aspect ratio.
    Without any, the image is not rectified, which is accepted if the predictor needs no camera.

    Attributes:
        notes: remarks about the cameras, one line per image size and camera.
    """

    def __init__(
        self, given: Path | None, map_cameras: Sequence[Camera], config: InputConfig, *, camera_needed: bool = True
    ) -> None:
        """`given` is a camera.yaml; `camera_needed` is whether the predictor needs a camera."""
        self._given = read_calibration(given) if given is not None else None
        self._map_cameras, self._config = MapCameras(tuple(map_cameras)), config
        self._camera_needed = camera_needed
        self._rectifiers: dict[tuple[int, int, str], Rectifier | None] = {}
        self.notes: list[str] = []

    def read(self, query: QueryImage) -> CalibratedImage:
        """The image and its camera.

        Raises:
            SequenceError: the image cannot be read.
            CameraError: the camera does not match the image, or none is known and one is needed.
        """
        image = read_image(query.path)
        height, width = image.shape[:2]
        calibration = self._given or query.calibration or self._of_map(query.path, width, height)
        key = (width, height, repr(calibration))
        if key not in self._rectifiers:
            self._rectifiers[key] = None if calibration is None else Rectifier(width, height, calibration, self._config)
            rectifier = self._rectifiers[key]
            note = f"{width}x{height}, {NO_CAMERA}" if rectifier is None else rectifier.note
            self.notes.append(plain(f"{query.path.name}: {note}"))
        rectifier = self._rectifiers[key]
        if rectifier is None:
            return CalibratedImage(shrink(image, *size_within(width, height, self._config.max_side_px)))
        return CalibratedImage(rectifier(image, str(query.path)), rectifier.camera, mask=rectifier.mask)

    def _of_map(self, path: Path, width: int, height: int) -> GivenCamera | None:
        found = self._map_cameras.of(width, height)
        if found is not None or not self._camera_needed:
            return found
        shapes = ", ".join(sorted({f"{c.width}x{c.height}" for c in self._map_cameras.cameras}))
        raise CameraError(
            f"{path}: {width}x{height}, and the map's cameras have another shape ({shapes}); "
            "add --camera camera.yaml with the intrinsics of these images"
        )
