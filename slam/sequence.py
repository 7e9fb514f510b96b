"""Pictures in order: how a source of them is opened, and the readers of pictures and videos.

What leaves here is upright, RGB, of one size, no larger than asked for, and undistorted; `Frame.camera` is
the pinhole camera of exactly that picture.
"""

from __future__ import annotations

import math
import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np

from relocalizer.errors import CameraError, SequenceError
from relocalizer.images import IMAGE_SUFFIXES, Camera, Image, bgr_to_rgb, read_image
from relocalizer.unfetched import why_unfetched
from slam.captures import open_capture, quiet_opencv
from slam.config import InputConfig
from slam.datasets import SequenceIndex, index_folder, is_video
from slam.frame_source import FrameSource, Selection
from slam.frames import Frame
from slam.live import LiveStream, Prefetched
from slam.optics import Calibration, Given, MapCameras, Optics, read_calibration
from slam.picture_sizes import PictureSizes, first_readable
from slam.plain_text import plain
from slam.trajectory import Trajectory

STREAM_SCHEMES = ("rtsp", "rtsps", "http", "https")
VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".m4v", ".webm")
NOMINAL_FPS = 30.0  # of a video whose header gives no sensible rate


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
    given: Given = MapCameras(tuple(known for known in map_cameras if not known.assumed))
    if camera is not None:
        given = read_calibration(camera)
    if spec.startswith("webcam:"):
        return _open_webcam(spec, given, config, selection)
    if scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", spec):
        if scheme[1].lower() not in STREAM_SCHEMES:
            raise SequenceError(
                f"{_without_password(spec)}: cannot open {scheme[1]}://; "
                "expected a folder, a video file, webcam:0, rtsp:// or http://"
            )
        return _open_address(spec, given, config, selection)
    path = Path(os.path.expanduser(spec))  # which leaves ~ of somebody unknown alone, as shells do
    return _prefetched(_open_path(path, given, config, selection), config.prefetch_frames)


class ImageSequence:
    """The pictures of a table, read one by one.

    Those that cannot be read, or are of another size than most, are skipped and counted.
    """

    def __init__(self, index: SequenceIndex, frames: range, optics: Optics, sizes: PictureSizes) -> None:
        """Take pictures `frames` of `index`, of these `sizes`; `open_images` is the way to get one."""
        self._index = index
        self._frames = frames
        self._optics = optics
        self._others = sizes.others(sizes.most_common)
        self.name = plain(index.name)
        self.description = plain("; ".join([index.description, optics.note, *sizes.notes(sizes.most_common)]))
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
                image = self._read(path)
            except SequenceError as error:
                self.skipped.append((path.name, str(error)))
                continue
            yield Frame(index=k, timestamp_ns=int(self._index.timestamps_ns[k]), image=image, camera=self.camera)

    def _read(self, path: Path) -> Image:
        if path in self._others:  # perhaps huge, and not to be decoded for being thrown away
            self._optics.expect(*self._others[path], str(path))
        return self._optics(read_image(path), str(path))

    def close(self) -> None:
        """Nothing is held open between pictures."""


def open_images(
    index: SequenceIndex, calibration: Given | None, config: InputConfig, selection: Selection
) -> ImageSequence:
    """A reader of a table's pictures; a camera that was given counts before the table's own, and that before a map's.

    Raises:
        SequenceError: none of the selected pictures can be read, or none of their sizes is that of most.
        CameraError: the camera is not of these pictures.
    """
    frames = selection.of(len(index.image_paths), index.name)
    if not isinstance(calibration, Calibration) and index.camera is not None:
        calibration = Calibration(index.camera, index.camera_source, index.ignored)
    sizes = PictureSizes.of([index.image_paths[k] for k in frames])
    height, width = first_readable(sizes.alike(sizes.of_more_than_half(index.name))).shape[:2]
    return ImageSequence(index, frames, Optics(width, height, calibration, config), sizes)


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
        self.name = plain(name)
        self.description = plain(f"{description}; {optics.note}")
        self.camera, self.calibration, self.mask = optics.camera, optics.calibration, optics.mask
        self.length = None if count is None else len(selection.of(count, name))
        self.ground_truth: Trajectory | None = None
        self.skipped: list[tuple[str, str]] = []
        self.dropped = 0

    def __iter__(self) -> Iterator[Frame]:
        self.skipped.clear()
        given, chosen = 0, 0
        capture = open_capture(self._target)
        try:
            for index, timestamp_ns in self._grab(capture):
                if not self._selection.takes(index):
                    continue
                chosen += 1
                try:
                    image = self._retrieve(capture, index)
                except SequenceError as error:
                    self.skipped.append((f"{self.name} frame {index}", str(error)))
                    continue
                yield Frame(index=index, timestamp_ns=timestamp_ns, image=image, camera=self.camera)
                given += 1
                if given == self._selection.max_frames:
                    return
        finally:
            capture.release()
        if not chosen:
            raise SequenceError(f"{self.name}: start {self._selection.start} is beyond the last picture of the video")
        if not given:
            raise SequenceError(f"{self.name}: none of {chosen} pictures can be used; the first: {self.skipped[0][1]}")

    def _retrieve(self, capture: cv2.VideoCapture, index: int) -> Image:
        ok, picture = capture.retrieve()
        if not ok:
            raise SequenceError("cannot be decoded")
        return self._optics(bgr_to_rgb(picture), f"{self.name}, frame {index}")

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
    target: str, name: str, calibration: Given | None, config: InputConfig, selection: Selection
) -> VideoFile:
    """A reader of a video, by absolute path or address.

    Raises:
        SequenceError: it cannot be opened, no picture in it decodes, or `start` is beyond its end.
        CameraError: the camera is not of these pictures.
    """
    shown = _without_password(target)
    capture = open_capture(target)
    try:
        if not capture.isOpened():
            raise SequenceError(
                f"{shown}: the video cannot be opened (cut off, damaged, or no video); does a player play it?"
            )
        picture = _first_picture(capture)
        if picture is None:
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


def _first_picture(capture: cv2.VideoCapture) -> Image | None:
    """The first picture that decodes, in OpenCV's colours."""
    while capture.grab():
        ok, picture = capture.retrieve()
        if ok:
            return np.asarray(picture)
    return None


def _prefetched(source: FrameSource, frames: int) -> FrameSource:
    return Prefetched(source, frames) if frames else source


def _open_path(path: Path, given: Given, config: InputConfig, selection: Selection) -> FrameSource:
    if os.path.isdir(path):
        index = index_folder(path)
        if index.video is None:
            return open_images(index, given, config, selection)
        if not isinstance(given, Calibration) and index.camera is not None:
            given = Calibration(index.camera, index.camera_source, index.ignored)
        return _open_video_folder(index, index.video, given, config, selection)
    beside = path.parent / "camera.yaml"
    video = _open_video_path(path, path.stem, given, config, selection)
    if not isinstance(given, Calibration) and os.path.isfile(beside):
        video.description += f" (there is {plain(str(beside))})"
    return video


def _open_video_folder(
    index: SequenceIndex, path: Path, given: Given, config: InputConfig, selection: Selection
) -> VideoFile:
    video = _open_video_path(path, index.name, given, config, selection)
    video.description = f"{plain(index.description)}; {video.description}"
    video.ground_truth = index.ground_truth
    return video


def _open_video_path(path: Path, name: str, given: Given, config: InputConfig, selection: Selection) -> VideoFile:
    try:
        status = path.stat()
    except (FileNotFoundError, ValueError):  # or a name that no file can have
        raise SequenceError(f"{path}: {why_unfetched(path) or 'no such file or folder'}") from None
    except OSError as error:
        raise SequenceError(f"{path}: {why_unfetched(path) or f'cannot be read ({error.strerror})'}") from None
    if not stat.S_ISREG(status.st_mode):
        raise SequenceError(f"{path}: not a file; a camera is named webcam:0, webcam:1 and so on")
    _expect_video(path, status.st_size)
    # An absolute path, as FFmpeg takes "name:rest" for a protocol.
    return open_video(os.path.abspath(path), name, given, config, selection)


def _expect_video(path: Path, size: int) -> None:
    if size == 0:
        raise SequenceError(f"{path}: an empty file; expected a video")
    if reason := why_unfetched(path):
        raise SequenceError(f"{path}: {reason}")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise SequenceError(f"{path}: a single picture; pass the folder that holds the sequence")
    if not os.access(path, os.R_OK):
        raise SequenceError(f"{path}: cannot be read (Permission denied)")
    if not is_video(path):
        raise SequenceError(
            f"{path}: not an MP4, MOV, AVI, MKV or WebM video; convert it, or pass a folder of pictures"
        )


def _open_webcam(spec: str, given: Given, config: InputConfig, selection: Selection) -> LiveStream:
    number = spec.partition(":")[2]
    if not re.fullmatch(r"[0-9]{1,3}", number):
        raise SequenceError(f"{spec}: expected webcam:0, webcam:1 and so on")
    backend = {"linux": cv2.CAP_V4L2, "darwin": cv2.CAP_AVFOUNDATION}.get(sys.platform, cv2.CAP_ANY)
    with quiet_opencv():
        capture = cv2.VideoCapture(int(number), backend)
    advice = "no such camera, or another program has it, or it may not be used"
    return _open_live(capture, spec, f"webcam-{number}", advice, given, config, selection)


def _open_address(address: str, given: Given, config: InputConfig, selection: Selection) -> FrameSource:
    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise SequenceError(f"{_without_password(address)}: not an address ({error})") from None
    name = parts.hostname or "stream"
    if parts.scheme.lower() in ("http", "https") and Path(parts.path).suffix.lower() in VIDEO_SUFFIXES:
        # A file somewhere else: every picture of it counts, and nothing is gained by dropping any.
        source = open_video(address, Path(parts.path).stem, given, config, selection)
        return _prefetched(source, config.prefetch_frames)
    shown = _without_password(address)
    advice = "is it running, and can this machine reach it?"
    return _open_live(open_capture(address), shown, name, advice, given, config, selection)


def _open_live(
    capture: cv2.VideoCapture,
    shown: str,
    name: str,
    advice: str,
    given: Given,
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


def _frame_rate(capture: cv2.VideoCapture) -> float:
    rate = capture.get(cv2.CAP_PROP_FPS)
    return rate if math.isfinite(rate) and 0.1 <= rate <= 1000 else NOMINAL_FPS


def _without_password(address: str) -> str:
    return re.sub(r"://[^/@]*@", "://", address)
