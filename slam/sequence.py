"""Pictures in order: what a source promises, how one is opened, and the readers of pictures and videos.

What leaves here is upright, RGB, of one size, no larger than asked for, and undistorted; `Frame.camera` is
the pinhole camera of exactly that picture.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import cv2

from relocalizer.errors import CameraError, SequenceError
from relocalizer.images import (
    IMAGE_SUFFIXES,
    Camera,
    Image,
    Undistorter,
    bgr_to_rgb,
    load_camera,
    read_image,
    shrink,
    size_within,
)
from slam.config import InputConfig
from slam.datasets import SequenceIndex, index_folder, is_video
from slam.frames import Frame
from slam.live import LiveStream, Prefetched
from slam.mask import Mask, Rectangle, binary, expect_some_use, ignored_in, mask_of, masked_share
from slam.trajectory import Trajectory

STREAM_SCHEMES = ("rtsp", "rtsps", "http", "https")
VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".m4v", ".webm")
NOMINAL_FPS = 30.0  # of a video whose header gives no sensible rate
CONNECT_TIMEOUT_MS = 10_000
SAME_VIEW = 1.02  # ratio of focal lengths, below which it does not matter whose is taken


class FrameSource(Protocol):
    """A stream of frames, read once from the front.

    Attributes:
        name: short, for titles and folder names.
        description: one line that says what was recognised ("TUM RGB-D layout: 613 pictures, ...").
        camera: the pinhole camera of every frame it will give (after undistortion).
        calibration: the camera of its own pictures, before they are shrunk and undistorted; given or assumed.
        mask: (H, W) of every frame, 0 where the image is to be ignored; None when all of it is used.
        length: frames to come, None for a live stream. A damaged file may give fewer.
        ground_truth: when the source has it.
        skipped: pictures that could not be read so far, as (name, reason).
        dropped: live frames that were overtaken by newer ones so far.
    """

    name: str
    description: str
    camera: Camera
    calibration: Camera
    mask: Mask | None
    length: int | None
    ground_truth: Trajectory | None
    skipped: list[tuple[str, str]]
    dropped: int

    def __iter__(self) -> Iterator[Frame]: ...

    def close(self) -> None: ...


def open_source(
    spec: str,
    *,
    config: InputConfig,
    camera: Path | None = None,
    map_cameras: Sequence[Camera] = (),
    start: int = 0,
    stride: int = 1,
    max_frames: int | None = None,
) -> FrameSource:
    """Open pictures by whatever names them; what was recognised is said in `.description`.

    Args:
        spec: a folder (pictures, a video, or a data set of a known layout), a video file, `webcam:0`, or an
            rtsp://, http:// or https:// address.
        camera: a camera.yaml that counts before any that the source has itself.
        map_cameras: those of a map the pictures belong to; of pictures that nobody names a camera of, one of the same
            shape counts, unless it was itself assumed.
        start, stride, max_frames: every `stride`-th picture from number `start` on, at most `max_frames`.

    Raises:
        SequenceError: there is nothing there that can be read.
        CameraError: the camera file cannot be used, or is not of these pictures.
        TrajectoryError: the source's ground truth cannot be read.
    """
    selection = Selection(start, stride, max_frames)
    given: _Given = MapCameras(tuple(known for known in map_cameras if not known.assumed))
    if camera is not None:
        given = Calibration.load(camera)
    if spec.startswith("webcam:"):
        return _open_webcam(spec, given, config, selection)
    if scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", spec):
        if scheme[1].lower() not in STREAM_SCHEMES:
            raise SequenceError(
                f"{_without_password(spec)}: cannot open {scheme[1]}://; "
                "expected a folder, a video file, webcam:0, rtsp:// or http://"
            )
        return _open_address(spec, given, config, selection)
    return _prefetched(_open_path(Path(spec).expanduser(), given, config, selection), config.prefetch_frames)


@dataclass(frozen=True, slots=True)
class Selection:
    """Every `stride`-th picture from number `start` on, at most `max_frames` of them."""

    start: int = 0
    stride: int = 1
    max_frames: int | None = None

    def __post_init__(self) -> None:
        if self.start < 0:
            raise SequenceError(f"start: expected 0 or more, got {self.start}")
        if self.stride < 1:
            raise SequenceError(f"stride: expected 1 or more, got {self.stride}")
        if self.max_frames is not None and self.max_frames < 1:
            raise SequenceError(f"max_frames: expected 1 or more, got {self.max_frames}")

    def of(self, count: int, name: str) -> range:
        """The numbers it takes out of `count` pictures. Raises SequenceError when there are none."""
        if self.start >= count:
            raise SequenceError(f"{name}: start {self.start} is beyond its end ({count} pictures, the first is 0)")
        return range(self.start, count, self.stride)[: self.max_frames]

    def takes(self, index: int) -> bool:
        """Whether picture `index` is one of them, not counting `max_frames`."""
        return index >= self.start and (index - self.start) % self.stride == 0


@dataclass(frozen=True, slots=True)
class Calibration:
    """A camera as somebody gave it, who did, and the rectangles of its images that are to be ignored."""

    camera: Camera
    source: str
    ignored: tuple[Rectangle, ...] = ()

    @staticmethod
    def load(path: Path) -> Calibration:
        """The calibration in a camera.yaml. Raises CameraError or MaskError when it cannot be used."""
        return Calibration(load_camera(path), str(path), ignored_in(path))


@dataclass(frozen=True, slots=True)
class MapCameras:
    """Cameras that pictures of a map were taken with, for new pictures that nobody names a camera of."""

    cameras: tuple[Camera, ...]

    def of(self, width: int, height: int) -> Calibration | None:
        """The first one of pictures of this shape; its source says when others of that shape differ from it."""
        fitting = [camera for camera in self.cameras if is_in_proportion(camera, width, height)]
        if not fitting:
            return None
        views = [camera.mean_focal / camera.width for camera in fitting]
        several = f", the first of {len(fitting)} of this shape" if max(views) > SAME_VIEW * min(views) else ""
        return Calibration(fitting[0], f"the map, as no other was named{several}")


_Given = Calibration | MapCameras


def is_in_proportion(camera: Camera, width: int, height: int) -> bool:
    """Whether width x height pictures are those of a camera but for their size, whose sides were perhaps rounded."""
    theirs, ours = (camera.width, camera.height), (width, height)
    small, large = sorted((theirs, ours), key=max)
    return size_within(*large, max(small)) == small


class Optics:
    """What is done to each picture of a source, once: its size is checked, it is shrunk and undistorted.

    Shrinking comes first, as distortion does not depend on the resolution and a smaller picture is cheaper.

    Attributes:
        camera: the pinhole camera of the pictures that come out.
        calibration: the camera of those that go in.
        mask: (H, W) of the pictures that come out, 0 where they are to be ignored; None when nowhere.
        note: what the user should know about it, part of a description.
    """

    def __init__(self, width: int, height: int, calibration: _Given | None, config: InputConfig) -> None:
        self._size = (width, height)
        self._shrunk = size_within(width, height, config.max_side_px)
        self.calibration, self.note = _camera_of_pictures(width, height, calibration, config.assumed_fov_deg)
        self._undistort = Undistorter(self.calibration.resized(*self._shrunk))
        self.camera = self._undistort.camera
        if self._shrunk != self._size:
            self.note += f", shrunk to {self._shrunk[0]}x{self._shrunk[1]}"
        if self.calibration.model != "pinhole":
            self.note += f", {self.calibration.model} distortion removed"
        ignored = calibration.ignored if isinstance(calibration, Calibration) else ()
        self.mask = self._mask(mask_of(width, height, Path(config.mask) if config.mask else None, ignored))
        if self.mask is not None:
            self.note += f", {masked_share(self.mask):.0%} of the image masked".replace("%", " %")

    def _mask(self, mask: Mask | None) -> Mask | None:
        """The mask of the source's own pictures as one of those that come out."""
        if mask is None:
            return None
        return expect_some_use(binary(self._undistort(shrink(mask, *self._shrunk))))

    def __call__(self, image: Image, name: str) -> Image:
        """The picture as `camera` sees it.

        Raises:
            SequenceError: the picture's size is not that of the first.
        """
        height, width = image.shape[:2]
        if (width, height) != self._size:
            raise SequenceError(
                f"{name}: this picture is {width}x{height}, those before it {self._size[0]}x{self._size[1]}; "
                "a sequence needs pictures of one size"
            )
        return self._undistort(shrink(image, *self._shrunk))


class ImageSequence:
    """The pictures of a table, read one by one. Those that cannot be read are skipped and counted."""

    def __init__(self, index: SequenceIndex, frames: range, optics: Optics) -> None:
        """Take pictures `frames` of `index`; `open_images` is the way to get one."""
        self._index = index
        self._frames = frames
        self._optics = optics
        self.name = index.name
        self.description = f"{index.description}; {optics.note}"
        self.camera, self.calibration, self.mask = optics.camera, optics.calibration, optics.mask
        self.length: int | None = len(frames)
        self.ground_truth = index.ground_truth
        self.skipped: list[tuple[str, str]] = []
        self.dropped = 0

    def __iter__(self) -> Iterator[Frame]:
        self.skipped.clear()
        for k in self._frames:
            path = self._index.image_paths[k]
            try:
                image = read_image(path)
            except SequenceError as error:
                self.skipped.append((path.name, str(error)))
                continue
            yield Frame(
                index=k,
                timestamp_ns=int(self._index.timestamps_ns[k]),
                image=self._optics(image, str(path)),
                camera=self.camera,
            )

    def close(self) -> None:
        """Nothing is held open between pictures."""


def open_images(
    index: SequenceIndex, calibration: _Given | None, config: InputConfig, selection: Selection
) -> ImageSequence:
    """A reader of a table's pictures; a camera that was given counts before the table's own, and that before a map's.

    Raises:
        SequenceError: none of the selected pictures can be read.
        CameraError: the camera is not of these pictures.
    """
    frames = selection.of(len(index.image_paths), index.name)
    if not isinstance(calibration, Calibration) and index.camera is not None:
        calibration = Calibration(index.camera, index.camera_source, index.ignored)
    height, width = _first_readable([index.image_paths[k] for k in frames]).shape[:2]
    return ImageSequence(index, frames, Optics(width, height, calibration, config))


class VideoFile:
    """The pictures of a video file, upright, with the file's own timestamps.

    Timestamps are those of the container, and where it has none or repeats one, a frame's length after the
    last. A file that ends before its header says is played as far as it goes, and `skipped` says so.
    """

    def __init__(
        self,
        target: str,
        name: str,
        description: str,
        optics: Optics,
        count: int | None,
        selection: Selection,
    ) -> None:
        """`open_video` is the way to get one."""
        self._target = target
        self._optics = optics
        self._count = count
        self._selection = selection
        self.name = name
        self.description = f"{description}; {optics.note}"
        self.camera, self.calibration, self.mask = optics.camera, optics.calibration, optics.mask
        self.length = None if count is None else len(selection.of(count, name))
        self.ground_truth: Trajectory | None = None
        self.skipped: list[tuple[str, str]] = []
        self.dropped = 0

    def __iter__(self) -> Iterator[Frame]:
        self.skipped.clear()
        given = 0
        capture = _open_capture(self._target)
        try:
            for index, timestamp_ns in self._grab(capture):
                if not self._selection.takes(index):
                    continue
                ok, picture = capture.retrieve()
                if not ok:
                    self.skipped.append((f"{self.name} frame {index}", "cannot be decoded"))
                    continue
                image = self._optics(bgr_to_rgb(picture), f"{self.name}, frame {index}")
                yield Frame(index=index, timestamp_ns=timestamp_ns, image=image, camera=self.camera)
                given += 1
                if given == self._selection.max_frames:
                    return
        finally:
            capture.release()
        if not given:
            raise SequenceError(f"{self.name}: start {self._selection.start} is beyond the last picture of the video")

    def _grab(self, capture: cv2.VideoCapture) -> Iterator[tuple[int, int]]:
        """(number, nanoseconds) of each frame to the end; notes an end that comes too early."""
        frame_ns = round(1e9 / _frame_rate(capture))
        index, last_ns = 0, -frame_ns
        while capture.grab():
            time_ms = capture.get(cv2.CAP_PROP_POS_MSEC)
            time_ns = round(time_ms * 1e6) if math.isfinite(time_ms) else last_ns
            last_ns = time_ns if time_ns > last_ns else last_ns + frame_ns
            yield index, last_ns
            index += 1
        # Containers without a frame count get theirs from duration and rate, which is a frame or so off.
        if self._count is not None and self._count - index > max(1, 0.02 * self._count):
            self.skipped.append((self.name, f"the file ends after {index} of {self._count} pictures"))

    def close(self) -> None:
        """The file is open only while it is being read."""


def open_video(
    target: str, name: str, calibration: _Given | None, config: InputConfig, selection: Selection
) -> VideoFile:
    """A reader of a video, by absolute path or address.

    Raises:
        SequenceError: it cannot be opened, no picture in it decodes, or `start` is beyond its end.
        CameraError: the camera is not of these pictures.
    """
    shown = _without_password(target)
    capture = _open_capture(target)
    try:
        if not capture.isOpened():
            raise SequenceError(
                f"{shown}: the video cannot be opened (cut off, damaged, or no video); does a player play it?"
            )
        ok, picture = capture.read()
        if not ok:
            raise SequenceError(f"{shown}: no picture in this video can be decoded")
        said = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        rate = _frame_rate(capture)
    finally:
        capture.release()
    count = int(said) if 0 < said < 2**53 else None
    height, width = picture.shape[:2]
    optics = Optics(width, height, calibration, config)
    frames = "an unknown number of pictures" if count is None else f"{count} pictures"
    return VideoFile(target, name, f"video: {frames} at {rate:.4g} a second", optics, count, selection)


def _prefetched(source: FrameSource, frames: int) -> FrameSource:
    return Prefetched(source, frames) if frames else source


def _open_path(path: Path, given: _Given, config: InputConfig, selection: Selection) -> FrameSource:
    if path.is_dir():
        index = index_folder(path)
        if index.video is None:
            return open_images(index, given, config, selection)
        if not isinstance(given, Calibration) and index.camera is not None:
            given = Calibration(index.camera, index.camera_source, index.ignored)
        return _open_video_folder(index, index.video, given, config, selection)
    if not path.exists():
        raise SequenceError(f"{path}: no such file or folder")
    beside = path.parent / "camera.yaml"
    video = _open_video_path(path, path.stem, given, config, selection)
    if not isinstance(given, Calibration) and beside.is_file():
        video.description += f" (there is {beside})"
    return video


def _open_video_folder(
    index: SequenceIndex, path: Path, given: _Given, config: InputConfig, selection: Selection
) -> VideoFile:
    video = _open_video_path(path, index.name, given, config, selection)
    video.description = f"{index.description}; {video.description}"
    video.ground_truth = index.ground_truth
    return video


def _open_video_path(path: Path, name: str, given: _Given, config: InputConfig, selection: Selection) -> VideoFile:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise SequenceError(f"{path}: cannot be read ({error.strerror})") from None
    if not path.is_file():
        raise SequenceError(f"{path}: not a file; a camera is named webcam:0, webcam:1 and so on")
    if size == 0:
        raise SequenceError(f"{path}: an empty file; expected a video")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise SequenceError(f"{path}: a single picture; pass the folder that holds the sequence")
    if not is_video(path):
        raise SequenceError(
            f"{path}: not an MP4, MOV, AVI, MKV or WebM video; convert it, or pass a folder of pictures"
        )
    # An absolute path, as FFmpeg takes "name:rest" for a protocol.
    return open_video(os.path.abspath(path), name, given, config, selection)


def _open_webcam(spec: str, given: _Given, config: InputConfig, selection: Selection) -> LiveStream:
    number = spec.partition(":")[2]
    if not re.fullmatch(r"[0-9]{1,3}", number):
        raise SequenceError(f"{spec}: expected webcam:0, webcam:1 and so on")
    backend = {"linux": cv2.CAP_V4L2, "darwin": cv2.CAP_AVFOUNDATION}.get(sys.platform, cv2.CAP_ANY)
    with _quiet_opencv():
        capture = cv2.VideoCapture(int(number), backend)
    advice = "no such camera, or another program has it, or it may not be used"
    return _open_live(capture, spec, f"webcam-{number}", advice, given, config, selection)


def _open_address(address: str, given: _Given, config: InputConfig, selection: Selection) -> FrameSource:
    parts = urlsplit(address)
    name = parts.hostname or "stream"
    if parts.scheme.lower() in ("http", "https") and Path(parts.path).suffix.lower() in VIDEO_SUFFIXES:
        # A file somewhere else: every picture of it counts, and nothing is gained by dropping any.
        source = open_video(address, Path(parts.path).stem, given, config, selection)
        return _prefetched(source, config.prefetch_frames)
    shown = _without_password(address)
    advice = "is it running, and can this machine reach it?"
    return _open_live(_open_capture(address), shown, name, advice, given, config, selection)


def _open_live(
    capture: cv2.VideoCapture,
    shown: str,
    name: str,
    advice: str,
    given: _Given,
    config: InputConfig,
    selection: Selection,
) -> LiveStream:
    try:
        if not capture.isOpened():
            raise SequenceError(f"{shown}: cannot be opened ({advice})")
        ok, picture = capture.read()
        if not ok:
            raise SequenceError(f"{shown}: opened, but gives no picture ({advice})")
        height, width = picture.shape[:2]
        optics = Optics(width, height, given, config)
    except (SequenceError, CameraError):
        capture.release()
        raise
    return LiveStream(capture, name, f"live stream {shown}: newest picture first", optics, selection)


def _camera_of_pictures(width: int, height: int, calibration: _Given | None, fov_deg: float) -> tuple[Camera, str]:
    """The camera of width x height pictures, perhaps distorted, and what to say about it."""
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
    short = Path(source).name
    if (camera.width, camera.height) == (width, height):
        return camera, f"{size}, camera of {short}"
    theirs = f"{camera.width}x{camera.height}"
    if is_in_proportion(camera, width, height):
        return camera.resized(width, height), f"{size}, camera of {short}, scaled from {theirs}"
    hint = "pass --camera with one made for these pictures"
    if (camera.height, camera.width) == (width, height):
        hint = "pictures are turned as their rotation tag says; the camera must be that of the turned ones"
    raise CameraError(f"{source}: the camera is for {theirs} pictures, but these are {size}; {hint}")


def _first_readable(paths: Sequence[Path]) -> Image:
    reason = ""
    for path in paths:
        try:
            return read_image(path)
        except SequenceError as error:
            reason = reason or str(error)
    raise SequenceError(f"none of {len(paths)} pictures can be read; the first: {reason}")


def _frame_rate(capture: cv2.VideoCapture) -> float:
    rate = capture.get(cv2.CAP_PROP_FPS)
    return rate if math.isfinite(rate) and 0.1 <= rate <= 1000 else NOMINAL_FPS


def _open_capture(target: str) -> cv2.VideoCapture:
    """A capture through FFmpeg, opened or not; what went wrong is told by us and not on stderr."""
    # FFmpeg takes its log level from here when it is first used, and never again.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    timeouts = [
        cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
        CONNECT_TIMEOUT_MS,
        cv2.CAP_PROP_READ_TIMEOUT_MSEC,
        CONNECT_TIMEOUT_MS,
    ]
    with _quiet_opencv():
        capture = cv2.VideoCapture(target, cv2.CAP_FFMPEG, timeouts)
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
    return capture


@contextmanager
def _quiet_opencv() -> Iterator[None]:
    """OpenCV prints what it could not open, line by line; the error we raise says it once."""
    levels = cv2.utils.logging
    before = levels.setLogLevel(levels.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        levels.setLogLevel(before)


def _without_password(address: str) -> str:
    return re.sub(r"://[^/@]*@", "://", address)
