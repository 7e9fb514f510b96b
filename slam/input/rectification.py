"""The camera of a source's images, and what is done to each of them once, before it becomes a frame."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from relocalizer.camera import Camera, Undistorter, load_camera
from relocalizer.errors import CameraError, SequenceError
from relocalizer.images import Image, shrink, size_within
from relocalizer.plausible_camera import angles_across_deg, expect_plausible
from slam.config.schema import InputConfig
from slam.input.mask import Mask, Rectangle, binary, expect_some_use, ignored_in, mask_of, masked_share

SAME_VIEW = 1.02  # ratio of focal lengths, below which it does not matter whose is taken


@dataclass(frozen=True, slots=True)
class GivenCamera:
    """A camera as somebody gave it, who did, and the rectangles of its images that are to be ignored."""

    camera: Camera
    source: str
    ignored: tuple[Rectangle, ...] = ()


def read_calibration(path: Path) -> GivenCamera:
    """That of a camera.yaml. Raises CameraError or MaskError when it cannot be read, or cannot be a camera's."""
    camera = load_camera(path)
    expect_plausible(camera, str(path))
    return GivenCamera(camera, str(path), ignored_in(path))


@dataclass(frozen=True, slots=True)
class MapCameras:
    """Cameras that images of a map were taken with, for new images that nobody names a camera of."""

    cameras: tuple[Camera, ...]

    def of(self, width: int, height: int) -> GivenCamera | None:
        """The first one of images of this shape; its source says when others of that shape differ from it."""
        fitting = [camera for camera in self.cameras if is_in_proportion(camera, width, height)]
        if not fitting:
            return None
        views = [camera.mean_focal / camera.width for camera in fitting]
        several = f", the first of {len(fitting)} of this shape" if max(views) > SAME_VIEW * min(views) else ""
        return GivenCamera(fitting[0], f"the map, as no other was named{several}")


CameraHint = GivenCamera | MapCameras  # the camera somebody gave, or a map's for when nobody did


def is_in_proportion(camera: Camera, width: int, height: int) -> bool:
    """Whether width x height images are those of a camera but for their size, whose sides were perhaps rounded."""
    theirs, ours = (camera.width, camera.height), (width, height)
    small, large = sorted((theirs, ours), key=max)
    return size_within(*large, max(small)) == small


class Rectifier:
    """What is done to each image of a source, once: its size is checked, it is shrunk and undistorted.

    Shrinking comes first, as distortion does not depend on the resolution and a smaller image is cheaper.

    Attributes:
        size: (width, height) of the images that go in.
        camera: the pinhole camera of the images that come out.
        calibration: the camera of those that go in.
        mask: (H, W) of the images that come out, 0 where they are to be ignored; None when nowhere.
        note: what the user should know about it, part of a description.
    """

    def __init__(self, width: int, height: int, calibration: CameraHint | None, config: InputConfig) -> None:
        self.size = (width, height)
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
        ignored = calibration.ignored if isinstance(calibration, GivenCamera) else ()
        self.mask = self._mask(mask_of(width, height, Path(config.mask) if config.mask else None, ignored))
        if self.mask is not None:
            self.note += f", {100 * masked_share(self.mask):.0f} % of the image masked"

    def _mask(self, mask: Mask | None) -> Mask | None:
        """The mask of the source's own images as one of those that come out."""
        if mask is None:
            return None
        return expect_some_use(binary(self._undistort(shrink(mask, *self._shrunk))))

    def expect(self, width: int, height: int, name: str) -> None:
        """Raises SequenceError for an image of another size than those that the camera is of."""
        if (width, height) != self.size:
            raise SequenceError(
                f"{name}: this image is {width}x{height}, not {self.size[0]}x{self.size[1]}; "
                "a sequence needs images of one size"
            )

    def __call__(self, image: Image, name: str) -> Image:
        """The image as `camera` sees it.

        Raises:
            SequenceError: the image is of another size than those that the camera is of.
        """
        self.expect(image.shape[1], image.shape[0], name)
        return self._undistort(shrink(image, *self._shrunk))


def _camera_of_images(width: int, height: int, calibration: CameraHint | None, fov_deg: float) -> tuple[Camera, str]:
    """The camera of width x height images, perhaps distorted, and what to say about it.

    Raises:
        CameraError: the calibration is of images of another shape, or of no camera there could be.
    """
    size, but = f"{width}x{height}", ""
    if isinstance(calibration, MapCameras):
        shapes = ", ".join(sorted({f"{camera.width}x{camera.height}" for camera in calibration.cameras}))
        but = f", and those of the map are of another shape ({shapes})" if shapes else ""
        calibration = calibration.of(width, height)
    if calibration is None:
        assumed = Camera.assume(width, height, fov_deg=fov_deg)
        return assumed, (
            f"{size}, no camera given{but}, so focal length {assumed.fx:.0f} px assumed "
            f"({fov_deg:g} degrees across the longer side; pass the real one with --camera camera.yaml)"
        )
    camera, source = calibration.camera, calibration.source
    expect_plausible(camera, source)
    short = Path(source).name
    if (camera.width, camera.height) == (width, height):
        return camera, f"{size}, camera of {short}"
    theirs = f"{camera.width}x{camera.height}"
    if is_in_proportion(camera, width, height):
        return camera.resized(width, height), f"{size}, camera of {short}, scaled from {theirs}"
    hint = "pass --camera with one made for these images"
    if (camera.height, camera.width) == (width, height):
        hint = "images are turned as their rotation tag says; the camera must be that of the turned ones"
    raise CameraError(f"{source}: the camera is for {theirs} images, but these are {size}; {hint}")
