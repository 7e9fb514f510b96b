"""Frame source of a ROS bag: ROS 1, or ROS 2 in sqlite3 or MCAP, read with rosbags and without ROS."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from relocalizer.camera import Camera
from relocalizer.errors import SequenceError
from relocalizer.gray_levels import GrayLevels
from relocalizer.images import Image, to_rgb
from slam.config.schema import InputConfig
from slam.evaluation.trajectory import Trajectory
from slam.input.frame_source import Selection
from slam.input.rectification import Calibration, CameraHint, GivenCamera, Rectifier
from slam.input.ros_messages import CAMERA_INFO, COMPRESSED, IMAGE, POSES, camera_of, pose_of, stamp_ns, values_of
from slam.map.frames import Frame
from slam.plain_text import plain

if TYPE_CHECKING:
    from rosbags.highlevel import AnyReader

BAG_STARTS = (b"#ROSBAG V2.0", b"\x89MCAP0\r\n", b"SQLite format 3\0")
METADATA, METADATA_KEY = "metadata.yaml", "rosbag2_bagfile_information"
LEVEL_IMAGES = 16  # number of images from which the range of images of more than 8 bits is determined


def is_bag(path: Path) -> bool:
    """Whether a path is a ROS bag: a .bag, .mcap or .db3 file, or a folder of ROS 2."""
    try:
        if os.path.isdir(path):
            return METADATA_KEY in (path / METADATA).read_text(encoding="utf-8", errors="replace")
        if not os.path.isfile(path):
            return False
        with path.open("rb") as file:
            return file.read(16).startswith(BAG_STARTS)
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class _Bag:
    """A bag and its topic of images: the path, the topic, the number of its messages, and the range of its images."""

    path: Path
    topic: str
    count: int
    levels: GrayLevels | None = None

    @contextmanager
    def messages(self) -> Iterator[_Messages]:
        with opened(self.path) as reader:
            yield _Messages(reader, self.topic)


class _Messages:
    """The messages of one topic of an open bag."""

    def __init__(self, reader: AnyReader, topic: str) -> None:
        self._reader = reader
        self._connections = [c for c in reader.connections if c.topic == topic]

    def raw(self, start: int | None = None, stop: int | None = None) -> Iterator[tuple[int, str, bytes]]:
        """(time of the recording, type, data) of the messages between two times of the recording, nanoseconds."""
        for connection, time_ns, data in self._reader.messages(self._connections, start, stop):
            yield time_ns, connection.msgtype, data

    def parsed(self, kind: str, data: bytes) -> Any:
        """A message. Raises SequenceError if its data are damaged."""
        from rosbags.highlevel.anyreader import AnyReaderError

        try:
            return self._reader.deserialize(data, kind)
        except (AnyReaderError, ValueError, IndexError) as error:
            raise SequenceError(f"a message that cannot be read ({error})") from None


@contextmanager
def opened(path: Path) -> Iterator[AnyReader]:
    """An open bag.

    Raises:
        SequenceError: rosbags is not installed, or the bag is damaged.
    """
    try:
        from rosbags.highlevel import AnyReader
        from rosbags.highlevel.anyreader import AnyReaderError, ReaderErrors
        from rosbags.typesys import Stores, get_typestore
    except ImportError:
        raise SequenceError(f"{path}: a ROS bag, which needs rosbags: pip install rosbags") from None
    try:
        with AnyReader([path], default_typestore=get_typestore(Stores.ROS2_HUMBLE)) as reader:
            yield reader
    except (AnyReaderError, *ReaderErrors) as error:
        hint = "; rosbag reindex may help" if path.suffix == ".bag" else ""
        raise SequenceError(f"{path}: the bag cannot be read ({' '.join(str(error).split())}){hint}") from None


class RosBag:
    """The images of a topic of a ROS bag, at the times of their headers; those of the recording where they have none.

    Messages that cannot be decoded, or whose time is not later than the one before, are skipped and listed in
    `skipped`.
    """

    def __init__(self, bag: _Bag, stated: str, rectifier: Rectifier, selection: Selection) -> None:
        """Use `open_bag` instead."""
        self._bag, self._stated, self._rectifier, self._selection = bag, stated, rectifier, selection
        self.name = plain(bag.path.stem if os.path.isfile(bag.path) else bag.path.name)
        self.description = plain(f"{stated}; {rectifier.note}")
        self.camera, self.calibration, self.mask = rectifier.camera, rectifier.calibration, rectifier.mask
        self.length: int | None = len(selection.of(bag.count, self.name))
        self.ground_truth: Trajectory | None = None
        self.skipped: list[tuple[str, str]] = []
        self.dropped = 0

    def __iter__(self) -> Iterator[Frame]:
        self.skipped.clear()
        given, last_ns = 0, -1
        with self._bag.messages() as messages:
            for index, (recorded_ns, kind, data) in enumerate(messages.raw()):
                if not self._selection.takes(index):
                    continue
                try:
                    message = messages.parsed(kind, data)
                    time_ns = stamp_ns(message) or recorded_ns
                    if time_ns <= last_ns:
                        raise SequenceError("its time is not later than that of the image before")
                    image = self._image(message, index)
                except SequenceError as error:
                    self.skipped.append((f"{self.name} message {index}", str(error)))
                    continue
                last_ns = time_ns
                yield Frame(index=index, timestamp_ns=time_ns, image=image, camera=self.camera)
                given += 1
                if given == self._selection.max_frames:
                    return
        if not given:
            why = f"; the first: {self.skipped[0][1]}" if self.skipped else ""
            raise SequenceError(f"{self.name}: none of the images of {self._bag.topic} can be used{why}")

    @property
    def can_be_reread(self) -> bool:
        return True

    @contextmanager
    def random_access(self) -> Iterator[Callable[[int], Image | None]]:
        """A reader of single images by their position; None if unreadable."""
        with self._bag.messages() as messages:
            times = [time_ns for time_ns, _, _ in messages.raw()]

            def read(position: int) -> Image | None:
                index = self._selection.start + position * self._selection.stride
                if index >= len(times):
                    return None
                _, kind, data = next(messages.raw(times[index], times[index] + 1))
                try:
                    return self._image(messages.parsed(kind, data), index)
                except SequenceError:  # iteration reports it
                    return None

            yield read

    def with_calibration(self, calibration: GivenCamera) -> RosBag:
        """The same images read as images of another camera."""
        rectifier = self._rectifier.with_calibration(calibration)
        bag = RosBag(self._bag, self._stated, rectifier, self._selection)
        bag.ground_truth = self.ground_truth
        return bag

    def _image(self, message: Any, index: int) -> Image:
        name = f"{self.name}, message {index}"
        return self._rectifier(to_rgb(values_of(message, name), self._bag.levels), name)

    def close(self) -> None:
        """Do nothing: the bag is open only during iteration."""


def open_bag(path: Path, given: CameraHint | None, config: InputConfig, selection: Selection) -> RosBag:
    """A reader of the images of a bag. A given camera takes precedence over that of its CameraInfo messages.

    Raises:
        SequenceError: the bag cannot be read, its topic of images is not clear, or none of its images can be decoded.
        CameraError: the camera does not match the images.
    """
    with opened(path) as reader:
        topic, count = _image_topic(path, reader, config.topic)
        first = _first_images(path, _Messages(reader, topic))
        levels = GrayLevels.of(first) if first[0].dtype != np.uint8 else None
        camera, camera_topic = _camera(reader, topic)
        truth, notes = _ground_truth(path, reader, config.truth_topic)
    if not isinstance(given, Calibration) and camera is not None:
        given = GivenCamera(camera, camera_topic)
    height, width = first[0].shape[:2]
    stated = ", ".join([f"ROS bag: {count} images of {topic}", *([levels.note] if levels else []), *notes])
    source = RosBag(_Bag(path, topic, count, levels), stated, Rectifier(width, height, given, config), selection)
    source.ground_truth = truth
    return source


def _topics_of(reader: AnyReader, kinds: Sequence[str]) -> dict[str, int]:
    """Number of messages of the topics of some types that have any, by name."""
    topics: dict[str, int] = {}
    for connection in reader.connections:
        if connection.msgtype in kinds and connection.msgcount:
            topics[connection.topic] = topics.get(connection.topic, 0) + connection.msgcount
    # Depth that is packed into PNG after a header of its own (compressed_depth_image_transport) is no image.
    return {topic: topics[topic] for topic in sorted(topics) if not topic.endswith("/compressedDepth")}


def _image_topic(path: Path, reader: AnyReader, wanted: str) -> tuple[str, int]:
    """The topic of the images, and the number of its messages."""
    topics = _topics_of(reader, (IMAGE, COMPRESSED))
    listed = ", ".join(f"{topic} ({count})" for topic, count in topics.items())
    if not topics:
        others = ", ".join(sorted({connection.topic for connection in reader.connections})[:8])
        raise SequenceError(f"{path}: no topic with images; its topics are {others or 'none'}")
    if wanted and wanted not in topics:
        raise SequenceError(f"{path}: no images in topic {wanted}; its topics with images are {listed}")
    if not wanted and len(topics) > 1:
        raise SequenceError(f"{path}: {len(topics)} topics with images: {listed}; choose one with --topic")
    topic = wanted or next(iter(topics))
    return topic, topics[topic]


def _first_images(path: Path, messages: _Messages) -> list[Any]:
    """The values of the first images that can be decoded."""
    found, reason = [], ""
    for _, kind, data in messages.raw():
        try:
            found.append(values_of(messages.parsed(kind, data), str(path)))
        except SequenceError as error:
            reason = reason or str(error)
        if len(found) == LEVEL_IMAGES or (found and found[0].dtype == np.uint8):
            break
    if not found:
        raise SequenceError(f"{path}: none of its images can be decoded; the first: {reason}")
    return found


def _camera(reader: AnyReader, topic: str) -> tuple[Camera | None, str]:
    """The camera of a topic of images from the CameraInfo messages of the same camera, and their topic."""
    namespace = topic.removesuffix("/compressed").rpartition("/")[0]
    camera_topic = f"{namespace}/camera_info"
    if camera_topic not in _topics_of(reader, (CAMERA_INFO,)):
        return None, ""
    messages = _Messages(reader, camera_topic)
    _, kind, data = next(messages.raw())
    source = f"topic {camera_topic}"
    return camera_of(messages.parsed(kind, data), is_rectified="image_rect" in topic, source=source), source


def _ground_truth(path: Path, reader: AnyReader, wanted: str) -> tuple[Trajectory | None, list[str]]:
    """The poses of a topic, taken to be those of the camera, and remarks."""
    topics = _topics_of(reader, POSES)
    if not wanted:
        return None, [f"poses in {', '.join(topics)} are not used (input.truth_topic takes one)"] if topics else []
    if wanted not in topics:
        raise SequenceError(
            f"{path}: no poses in topic {wanted}; its topics with poses are {', '.join(topics) or 'none'}"
        )
    messages, poses = _Messages(reader, wanted), {}
    for recorded_ns, kind, data in messages.raw():
        with suppress(SequenceError):  # one damaged pose of many is left out
            message = messages.parsed(kind, data)
            if (pose := pose_of(message)) is not None:
                poses[stamp_ns(message) or recorded_ns] = pose
    if not poses:
        raise SequenceError(f"{path}: none of the {topics[wanted]} poses in topic {wanted} can be used")
    times = sorted(poses)
    truth = Trajectory(np.array(times, dtype=np.int64), np.array([poses[time] for time in times]))
    return truth, [f"ground truth: {len(truth)} poses of {wanted}, taken to be those of the camera"]
