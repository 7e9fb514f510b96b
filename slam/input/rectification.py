"""The camera of a source's images, and the resizing and undistortion of each image before it becomes a frame."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from relocalizer.camera import Camera, Undistorter
from relocalizer.camera_files import UnsizedCamera, read_camera_file
from relocalizer.errors import CameraError, SequenceError
from relocalizer.images import Image, shrink, size_within
from relocalizer.plausible_camera import angles_across_deg, expect_plausible
from slam.config.schema import InputConfig
from slam.input.mask import Mask, Rectangle, binary, expect_some_use, ignored_in, mask_of, masked_share

SAME_VIEW = 1.02  # Ratio of focal lengths up to which two cameras are considered equal.


@dataclass(frozen=True, slots=True)
class GivenCamera:
    """A known camera, its source (for messages), and the rectangles of its images that are to be ignored."""

    camera: Camera
    source: str
    ignored: tuple[Rectangle, ...] = ()


@dataclass(frozen=True, slots=True)
class UnsizedCalibration:
    """A known camera from a file that does not state the size of its images, which are taken to be those read."""

    camera: UnsizedCamera
    source: str
    ignored: tuple[Rectangle, ...] = ()

    def of(self, width: int, height: int) -> GivenCamera:
        """The camera for images of width x height."""
        return GivenCamera(self.camera.of_size(width, height), self.source, self.ignored)


Calibration = GivenCamera | UnsizedCalibration


def read_calibration(path: Path) -> Calibration:
    """The camera of a calibration file, in any format of `relocalizer.camera_files`.

    Raises:
        CameraError: it cannot be read, or is not plausible.
        MaskError: its rectangles to ignore are invalid.
    """
    camera = read_camera_file(path)
    if isinstance(camera, UnsizedCamera):
        return UnsizedCalibration(camera, str(path), ignored_in(path))
    expect_plausible(camera, str(path))
    guess = f"{path.name} says that its focal length of {camera.mean_focal:.0f} px is a guess"
    return GivenCamera(camera, guess if camera.assumed else str(path), ignored_in(path))


@dataclass(frozen=True, slots=True)
class MapCameras:
    """Cameras of the images of a map, used for new images without a given camera.

    A camera that is a guess itself is better than another guess, because the map was made with it; it stays assumed.
    """

    cameras: tuple[Camera, ...]

    def of(self, width: int, height: int) -> GivenCamera | None:
        """The first camera of this aspect ratio, None if there is none; its source states if others differ from it.

        A known camera precedes an assumed one.
        """
        fitting = [camera for camera in self.cameras if is_in_proportion(camera, width, height)]
        if not fitting:
            return None
        if fitting[0].assumed and any(not camera.assumed for camera in fitting):
            fitting = [camera for camera in fitting if not camera.assumed]
        views = [camera.mean_focal / camera.width for camera in fitting]
        several = f", the first of {len(fitting)} of this shape" if max(views) > SAME_VIEW * min(views) else ""
        if fitting[0].assumed:
            focal_px = fitting[0].resized(width, height).mean_focal
            return GivenCamera(fitting[0], f"focal length {focal_px:.0f} px of the map, a guess{several}")
        return GivenCamera(fitting[0], f"the map, as no other was named{several}")


CameraHint = Calibration | MapCameras  # A known camera, or a map's cameras to choose from if none is known.


def is_in_proportion(camera: Camera, width: int, height: int) -> bool:
    """Whether width x height, scaled and rounded, is the image size of a camera."""
    small, large = sorted(((camera.width, camera.height), (width, height)), key=max)
    return size_within(*large, max(small)) == small


class Rectifier:
    """Checks the size of each image of a source, shrinks it and removes distortion.

    Images are shrunk first, because distortion does not depend on the resolution and a smaller image is cheaper.

    Attributes:
        size: (width, height) of the input images.
        camera: the pinhole camera of the output images.
        calibration: the camera of the input images.
        mask: (H, W) of the output images, 0 where they are to be ignored; None if the whole image is used.
        note: remarks for the user, part of a description.
    """

    def __init__(self, width: int, height: int, calibration: CameraHint | None, config: InputConfig) -> None:
        self.size = (width, height)
        self._config = config
        self._shrunk = size_within(width, height, config.max_side_px)
        self.calibration, self.note = _camera_of_images(width, height, calibration, config.assumed_fov_deg)
        self._undistort = Undistorter(self.calibration.resized(*self._shrunk))
        self.camera = self._undistort.camera
        if self._shrunk != self.size:
            self.note += f", shrunk to {self._shrunk[0]}x{self._shrunk[1]}"
        if self.calibration.model != "pinhole":
            self.note += f", {self.calibration.model} distortion removed"
        if self._undistort.is_cut:
            self.note += f", cut to the middle {max(angles_across_deg(self.camera)):.0f} degrees"
        self._ignored = calibration.ignored if isinstance(calibration, Calibration) else ()
        self.mask = self._mask(mask_of(width, height, Path(config.mask) if config.mask else None, self._ignored))
        if self.mask is not None:
            self.note += f", {100 * masked_share(self.mask):.0f} % of the image masked"

    def with_calibration(self, calibration: GivenCamera) -> Rectifier:
        """A rectifier of the same images for another camera; what is ignored in them stays ignored."""
        kept = replace(calibration, ignored=calibration.ignored or self._ignored)
        return Rectifier(*self.size, kept, self._config)

    def _mask(self, mask: Mask | None) -> Mask | None:
        """The mask of the input images, converted to one of the output images."""
        if mask is None:
            return None
        return expect_some_use(binary(self._undistort(shrink(mask, *self._shrunk))))

    def expect(self, width: int, height: int, name: str) -> None:
        """Raises SequenceError if the size of an image is not that of the input images."""
        if (width, height) != self.size:
            raise SequenceError(
                f"{name}: this image is {width}x{height}, not {self.size[0]}x{self.size[1]}; "
                "a sequence needs images of one size"
            )

    def __call__(self, image: Image, name: str) -> Image:
        """The image as `camera` sees it.

        Raises:
            SequenceError: its size is not that of the input images.
        """
        self.expect(image.shape[1], image.shape[0], name)
        return self._undistort(shrink(image, *self._shrunk))


def _camera_of_images(width: int, height: int, calibration: CameraHint | None, fov_deg: float) -> tuple[Camera, str]:
    """The camera of width x height images, possibly with distortion, and remarks about it.

    Raises:
        CameraError: the calibration has another aspect ratio, or is not plausible.
    """
    size, mismatch = f"{width}x{height}", ""
    if isinstance(calibration, MapCameras):
        shapes = ", ".join(sorted({f"{camera.width}x{camera.height}" for camera in calibration.cameras}))
        mismatch = f", and those of the map are of another shape ({shapes})" if shapes else ""
        calibration = calibration.of(width, height)
    if isinstance(calibration, UnsizedCalibration):
        calibration = calibration.of(width, height)
    if calibration is None:
        assumed = Camera.assume(width, height, fov_deg=fov_deg)
        return assumed, (
            f"{size}, no camera given{mismatch}, so focal length {assumed.fx:.0f} px assumed "
            f"({fov_deg:g} degrees across the longer side; pass the real one with --camera camera.yaml)"
        )
    camera, source = calibration.camera, calibration.source
    expect_plausible(camera, source)
    short = Path(source).name
    if (camera.width, camera.height) == (width, height):
        return camera, f"{size}, no camera given; {source}" if camera.assumed else f"{size}, camera of {short}"
    calibrated = f"{camera.width}x{camera.height}"
    if is_in_proportion(camera, width, height) and camera.assumed:
        return camera.resized(width, height), f"{size}, no camera given; {source}"
    if is_in_proportion(camera, width, height):
        return camera.resized(width, height), f"{size}, camera of {short}, scaled from {calibrated}"
    hint = "pass --camera with one made for these images"
    if (camera.height, camera.width) == (width, height):
        hint = "images are turned as their rotation tag says; the camera must be that of the turned ones"
    raise CameraError(f"{source}: the camera is for {calibrated} images, but these are {size}; {hint}")
