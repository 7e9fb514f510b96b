"""Localization of uploaded images in one map."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from relocalizer.answer_values import answer_values
from relocalizer.camera_files import UnsizedCamera, parse_camera_file
from relocalizer.features import detect_features
from relocalizer.image_headers import size_of_encoded
from relocalizer.images import Image, decode_image, shrink, size_within, to_gray
from relocalizer.interfaces import CalibratedImage
from relocalizer.maps.reference_map import ReferenceMap, features_of
from relocalizer.plausible_camera import expect_plausible
from relocalizer.relocalizer import Relocalizer
from slam.config.schema import InputConfig
from slam.input.rectification import Calibration, GivenCamera, MapCameras, Rectifier, UnsizedCalibration
from slam.serve.uploads import Upload, UploadError

MAX_PIXELS = 50_000_000  # pixels of an image; a small file can decode to gigabytes
MIN_SIDE_PX = 32  # shorter side of an image below which there is nothing to recognize
CACHED_RECTIFIERS = 8  # image sizes and cameras whose undistortion is remembered


@dataclass(frozen=True, slots=True, eq=False)
class PreparedImage:
    """An upload ready to be localized, and a note on the camera that it is seen with."""

    view: CalibratedImage
    note: str


class MapLocalizer:
    """Answers uploads in two steps, `prepare` and `locate`. Each has a thread of its own, as they share nothing.

    The camera of an image is, in this order: the one uploaded with it, the default of the service, a camera of the map
    with the same aspect ratio. Without any, the image is accepted if the predictor needs none.
    """

    def __init__(
        self,
        reference_map: ReferenceMap,
        relocalizer: Relocalizer,
        config: InputConfig,
        *,
        camera: Calibration | None = None,
        camera_needed: bool = True,
    ) -> None:
        """`camera` is the default; `camera_needed` is whether the predictor of the map needs one."""
        self._map, self._relocalizer, self._config = reference_map, relocalizer, config
        self._camera, self._camera_needed = camera, camera_needed
        self._features = features_of(reference_map.provenance)
        self._rectifier = lru_cache(maxsize=CACHED_RECTIFIERS)(
            lambda width, height, calibration: Rectifier(width, height, calibration, config)
        )

    def prepare(self, upload: Upload) -> PreparedImage:
        """The image decoded, undistorted, and with its local features.

        Raises:
            UserError: the image or its camera cannot be used.
        """
        calibration = _camera_of(upload.camera) if upload.camera is not None else None
        view, note = self._rectified(_decoded(upload.image), calibration)
        if view.camera is not None:
            view = replace(view, features=detect_features(to_gray(view.image), self._features, view.mask))
        return PreparedImage(view, note)

    def locate(self, prepared: PreparedImage) -> dict[str, Any]:
        """The answer as in `answer_values`, with the note on the camera."""
        return {**answer_values(self._relocalizer.locate(prepared.view), self._map), "camera": prepared.note}

    def _rectified(self, image: Image, given: Calibration | None) -> tuple[CalibratedImage, str]:
        height, width = image.shape[:2]
        calibration = given or self._camera or self._of_map(width, height)
        if calibration is None:
            small = shrink(image, *size_within(width, height, self._config.max_side_px))
            return CalibratedImage(small), "none, so compared with keyframes alone"
        rectifier = self._rectifier(width, height, calibration)
        return CalibratedImage(rectifier(image, "image"), rectifier.camera, mask=rectifier.mask), rectifier.note

    def _of_map(self, width: int, height: int) -> GivenCamera | None:
        found = MapCameras(self._map.cameras).of(width, height)
        if found is not None or not self._camera_needed:
            return found
        shapes = ", ".join(sorted({f"{c.width}x{c.height}" for c in self._map.cameras}))
        raise UploadError(
            422,
            f"image: {width}x{height}, and the map's cameras have another shape ({shapes}); send the calibration of "
            "this image as the form field 'camera'",
        )


def _camera_of(data: bytes) -> Calibration:
    camera, name = parse_camera_file(data, Path("camera")), "camera"
    if isinstance(camera, UnsizedCamera):
        return UnsizedCalibration(camera, name)
    expect_plausible(camera, name)
    return GivenCamera(camera, name)


def _decoded(data: bytes) -> Image:
    """The image of the bytes of a file. Its size is checked before it is decoded."""
    size = size_of_encoded(data)
    if size is not None and size[0] * size[1] > MAX_PIXELS:
        raise UploadError(
            413, f"image: {size[0]}x{size[1]} pixels, of at most {MAX_PIXELS // 1_000_000} million; send a smaller one"
        )
    image = decode_image(data, "image")
    if size is None:  # OpenCV decodes it, but what it would take was not known
        raise UploadError(415, "image: a format whose size cannot be read before decoding; send JPEG, PNG or WebP")
    if min(image.shape[:2]) < MIN_SIDE_PX:
        height, width = image.shape[:2]
        raise UploadError(422, f"image: {width}x{height} pixels, too small; at least {MIN_SIDE_PX} on each side")
    return image
