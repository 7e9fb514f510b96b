"""Opens a frame source by its name: a folder, a video file, a webcam or an address.

All sources give upright, undistorted RGB images of one size, no larger than configured; `Frame.camera` is the
pinhole camera of exactly these images.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import cv2

from relocalizer.camera import Camera
from relocalizer.errors import CameraError, SequenceError
from relocalizer.images import IMAGE_SUFFIXES, quiet_opencv
from relocalizer.unfetched import why_unfetched
from slam.config.schema import InputConfig
from slam.input.captures import as_utf8, open_capture, without_password
from slam.input.dataset_layouts import index_folder
from slam.input.folder_listing import is_video
from slam.input.frame_source import FrameSource, Selection
from slam.input.image_list import expand, index_images
from slam.input.image_sequence import open_images
from slam.input.live_stream import LiveStream
from slam.input.prefetch import Prefetched
from slam.input.rectification import Calibration, CameraHint, GivenCamera, MapCameras, Rectifier, read_calibration
from slam.input.ros_bag import is_bag, open_bag
from slam.input.sequence_index import SequenceIndex
from slam.plain_text import plain

if TYPE_CHECKING:
    from slam.input.video import VideoFile

STREAM_SCHEMES = ("rtsp", "rtsps", "http", "https")
VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".m4v", ".webm")


def open_source(
    spec: str | Path | Sequence[str | Path],
    *,
    config: InputConfig | None = None,
    camera: str | Path | None = None,
    map_cameras: Sequence[Camera] = (),
    start: int = 0,
    stride: int = 1,
    max_frames: int | None = None,
) -> FrameSource:
    """Open a source of frames; its `description` states what was recognized.

    Args:
        spec: a folder (images, a video, or a data set of a known layout), a video file, a ROS bag, `webcam:0`, an
            rtsp://, http:// or https:// address, or a pattern such as 'photos/*.jpg'; or several image files.
        camera: a calibration file that overrides the source's own camera.
        map_cameras: cameras of a map the images belong to. If no camera is given otherwise, one with the images'
            aspect ratio is used; one that was itself assumed remains a guess.
        start, stride, max_frames: every `stride`-th image from number `start` on, at most `max_frames`.

    Raises:
        SequenceError: the source cannot be read.
        CameraError: the camera file is invalid, or does not match the images.
        TrajectoryError: the source's ground truth cannot be read.
    """
    config = InputConfig() if config is None else config
    specs = [str(spec)] if isinstance(spec, str | Path) else [str(one) for one in spec]
    selection = Selection(start, stride, max_frames)
    given: CameraHint = MapCameras(tuple(map_cameras))
    if camera is not None:
        given = read_calibration(Path(camera))
    if len(specs) == 1 and (live := _open_stream(specs[0], given, config, selection)) is not None:
        return live
    paths = expand(specs)
    if len(paths) > 1:
        return _prefetched(open_images(index_images(paths), given, config, selection), config.prefetch_frames)
    if not paths:
        raise SequenceError("no source was named; expected a folder, a video file, webcam:0, rtsp:// or http://")
    return _prefetched(_open_path(paths[0], given, config, selection), config.prefetch_frames)


def _open_stream(spec: str, given: CameraHint, config: InputConfig, selection: Selection) -> FrameSource | None:
    """A camera or an address; None if the source is neither."""
    if spec.startswith("webcam:"):
        return _open_webcam(spec, given, config, selection)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", spec)
    if scheme is None:
        return None
    if scheme[1].lower() not in STREAM_SCHEMES:
        raise SequenceError(
            f"{without_password(spec)}: cannot open {scheme[1]}://; "
            "expected a folder, a video file, webcam:0, rtsp:// or http://"
        )
    return _open_address(spec, given, config, selection)


def _prefetched(source: FrameSource, frames: int) -> FrameSource:
    return Prefetched(source, frames) if frames else source


def _open_path(path: Path, given: CameraHint, config: InputConfig, selection: Selection) -> FrameSource:
    if is_bag(path):
        return open_bag(path, given, config, selection)
    if os.path.isdir(path):
        index = index_folder(path)
        if index.video is None:
            return open_images(index, given, config, selection)
        if not isinstance(given, Calibration) and index.camera is not None:
            given = GivenCamera(index.camera, index.camera_source, index.ignored)
        return _open_video_folder(index, index.video, given, config, selection)
    beside = path.parent / "camera.yaml"
    video = _open_video_path(path, path.stem, given, config, selection)
    if not isinstance(given, Calibration) and os.path.isfile(beside):
        video.description += f" (there is {plain(str(beside))})"
    return video


def _open_video_folder(
    index: SequenceIndex, path: Path, given: CameraHint, config: InputConfig, selection: Selection
) -> VideoFile:
    video = _open_video_path(path, index.name, given, config, selection)
    video.description = f"{plain(index.description)}; {video.description}"
    video.ground_truth = index.ground_truth
    return video


def _open_video_path(path: Path, name: str, given: CameraHint, config: InputConfig, selection: Selection) -> VideoFile:
    try:
        status = path.stat()
    except (FileNotFoundError, ValueError):  # ValueError: an invalid file name.
        raise SequenceError(f"{path}: {why_unfetched(path) or 'no such file or folder'}") from None
    except OSError as error:
        raise SequenceError(f"{path}: {why_unfetched(path) or f'cannot be read ({error.strerror})'}") from None
    if not stat.S_ISREG(status.st_mode):
        raise SequenceError(f"{path}: not a file; a camera is named webcam:0, webcam:1 and so on")
    _expect_video(path, status.st_size)
    from slam.input.video import open_video  # its decoder is needed for no other source: 15 MB and 50 ms

    # An absolute path, because FFmpeg would interpret "name:rest" as a protocol.
    return open_video(os.path.abspath(path), name, given, config, selection)


def _expect_video(path: Path, size: int) -> None:
    if size == 0:
        raise SequenceError(f"{path}: an empty file; expected a video")
    if reason := why_unfetched(path):
        raise SequenceError(f"{path}: {reason}")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise SequenceError(f"{path}: a single image; pass the folder that holds the sequence")
    if not os.access(path, os.R_OK):
        raise SequenceError(f"{path}: cannot be read (Permission denied)")
    if not is_video(path):
        raise SequenceError(
            f"{path}: not a video of a known format (MP4, MOV, MKV, WebM, AVI, MPEG, WMV, ...); convert it, or pass "
            "a folder of images"
        )


def _open_webcam(spec: str, given: CameraHint, config: InputConfig, selection: Selection) -> LiveStream:
    number = spec.partition(":")[2]
    if not re.fullmatch(r"[0-9]{1,3}", number):
        raise SequenceError(f"{spec}: expected webcam:0, webcam:1 and so on")
    backend = {"linux": cv2.CAP_V4L2, "darwin": cv2.CAP_AVFOUNDATION}.get(sys.platform, cv2.CAP_ANY)
    with quiet_opencv():
        capture = cv2.VideoCapture(int(number), backend)
    advice = "no such camera, or another program has it, or it may not be used"
    return _open_live(_Capture(capture, spec, f"webcam-{number}", advice), given, config, selection)


def _open_address(address: str, given: CameraHint, config: InputConfig, selection: Selection) -> FrameSource:
    from slam.input.video import open_video

    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise SequenceError(f"{without_password(address)}: not an address ({error})") from None
    name = parts.hostname or "stream"
    if parts.scheme.lower() in ("http", "https") and Path(parts.path).suffix.lower() in VIDEO_SUFFIXES:
        # A remote file is read completely, without dropping images as for a live stream.
        source = open_video(as_utf8(address), Path(parts.path).stem, given, config, selection)
        return _prefetched(source, config.prefetch_frames)
    shown = without_password(address)
    advice = "is it running, and can this machine reach it?"
    return _open_live(_Capture(open_capture(address), shown, name, advice), given, config, selection)


@dataclass(frozen=True, slots=True, eq=False)
class _Capture:
    """A camera or a stream in OpenCV.

    Attributes:
        shown: its address, without a password.
        name: short name.
        advice: what may be wrong if it cannot be opened or gives no image.
    """

    stream: cv2.VideoCapture
    shown: str
    name: str
    advice: str


def _open_live(capture: _Capture, given: CameraHint, config: InputConfig, selection: Selection) -> LiveStream:
    stream, shown = capture.stream, capture.shown
    try:
        if not stream.isOpened():
            raise SequenceError(f"{shown}: cannot be opened ({capture.advice})")
        ok, image = stream.read()
        if not ok:
            raise SequenceError(f"{shown}: opened, but gives no image ({capture.advice})")
        height, width = image.shape[:2]
        rectifier = Rectifier(width, height, given, config)
    except (SequenceError, CameraError):
        stream.release()
        raise
    return LiveStream(stream, capture.name, f"live stream {shown}: newest image first", rectifier, selection)
