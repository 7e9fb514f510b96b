"""Frame source of a video file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice

import numpy as np

from relocalizer.errors import SequenceError
from relocalizer.gray_levels import GrayLevels
from relocalizer.images import Image
from slam.config.schema import InputConfig
from slam.evaluation.trajectory import Trajectory
from slam.input.captures import without_password
from slam.input.frame_source import Selection
from slam.input.rectification import CameraHint, GivenCamera, MapCameras, Rectifier, is_in_proportion
from slam.input.video_decoding import DecodedFrame, Values, VideoFacts, VideoReader
from slam.input.video_restoration import Restoration, are_interlaced, square_size
from slam.map.frames import Frame
from slam.plain_text import plain

GRABBED_FRAMES = 100  # Distance up to which a later frame is reached without seeking, frames; about one GOP of a codec.
# Images that are examined for interlacing: the first ones, and, of a video that is marked as interlaced, those at some
# places spread over it, since the camera may rest at first.
FIRST_IMAGES, PLACES, IMAGES_PER_PLACE = 24, 8, 3
SAMPLED_COLUMNS = 256  # minimum number of columns that are kept of an examined image


@dataclass(frozen=True, slots=True)
class _Video:
    """A video file: its path or address, its short name, the number of its images, if known, and their restoration."""

    target: str
    name: str
    count: int | None
    restoration: Restoration

    def opened(self) -> VideoReader:
        return VideoReader(self.target, without_password(self.target))


class VideoFile:
    """The images of a video file, upright and with square pixels, with the file's own timestamps.

    Timestamps are those of the container. Where one is missing or does not increase, it is one frame period after the
    previous one. A truncated file is read to its actual end, which is noted in `skipped`.
    """

    def __init__(self, video: _Video, description: str, rectifier: Rectifier, selection: Selection) -> None:
        """Use `open_video` instead."""
        self._video = video
        self._stated = description
        self._rectifier = rectifier
        self._selection = selection
        self.name = plain(video.name)
        self.description = plain(f"{description}; {rectifier.note}")
        self.camera, self.calibration, self.mask = rectifier.camera, rectifier.calibration, rectifier.mask
        self.length = None if video.count is None else len(selection.of(video.count, video.name))
        self.ground_truth: Trajectory | None = None
        self.skipped: list[tuple[str, str]] = []
        self.dropped = 0

    def __iter__(self) -> Iterator[Frame]:
        self.skipped.clear()
        given, selected = 0, 0
        with closing(self._video.opened()) as reader:
            for index, timestamp_ns, decoded in self._timed(reader):
                if not self._selection.takes(index):
                    continue
                selected += 1
                try:
                    image = self._image(decoded, index)
                except SequenceError as error:
                    self.skipped.append((f"{self.name} frame {index}", str(error)))
                    continue
                yield Frame(index=index, timestamp_ns=timestamp_ns, image=image, camera=self.camera)
                given += 1
                if given == self._selection.max_frames:
                    return
        if not selected:
            raise SequenceError(f"{self.name}: start {self._selection.start} is beyond the last image of the video")
        if not given:
            raise SequenceError(f"{self.name}: none of {selected} images can be used; the first: {self.skipped[0][1]}")

    @property
    def can_be_reread(self) -> bool:
        """Whether this is a local file with a known number of images."""
        return self.length is not None and "://" not in self._video.target

    @contextmanager
    def random_access(self) -> Iterator[Callable[[int], Image | None]]:
        """A reader of single images by their position; None if unreadable. Its file is closed at the end."""
        with closing(self._video.opened()) as reader:
            frames: Iterator[DecodedFrame] = iter(())
            following = -1  # number of the next image of `frames`; -1 if unknown

            def read(position: int) -> Image | None:
                nonlocal frames, following
                index = self._selection.start + position * self._selection.stride
                if following < 0 or not 0 <= index - following <= GRABBED_FRAMES:
                    frames, following = reader.frames(index), index
                decoded = next(islice(frames, index - following, None), None)
                following = -1 if decoded is None else index + 1
                try:
                    return None if decoded is None else self._image(decoded, index)
                except SequenceError:  # iteration reports it
                    return None

            yield read

    def with_calibration(self, calibration: GivenCamera) -> VideoFile:
        """The same images read as images of another camera."""
        rectifier = self._rectifier.with_calibration(calibration)
        video = VideoFile(self._video, self._stated, rectifier, self._selection)
        video.description = self.description.replace(plain(self._rectifier.note), plain(rectifier.note))
        video.ground_truth = self.ground_truth
        return video

    def _image(self, decoded: DecodedFrame, index: int) -> Image:
        return self._rectifier(self._video.restoration(decoded.read()), f"{self.name}, frame {index}")

    def _timed(self, reader: VideoReader) -> Iterator[tuple[int, int, DecodedFrame]]:
        """(index, timestamp in nanoseconds, image) of each; notes it in `skipped` when the file is truncated."""
        period_ns = round(1e9 / reader.facts.rate)
        index, last_ns = 0, -period_ns
        for decoded in reader.frames():
            is_later = decoded.time_ns is not None and decoded.time_ns > last_ns
            last_ns = decoded.time_ns if is_later and decoded.time_ns is not None else last_ns + period_ns
            yield index, last_ns, decoded
            index += 1
        # For containers without a frame count, it is computed from duration and rate, which may be off by a few frames.
        count = self._video.count
        if count is not None and count - index > max(1, 0.02 * count):
            self.skipped.append((self.name, f"the file ends after {index} of {count} images"))

    def close(self) -> None:
        """Do nothing: the file is open only during iteration."""


def open_video(
    target: str, name: str, calibration: CameraHint | None, config: InputConfig, selection: Selection
) -> VideoFile:
    """A reader of a video, given by its absolute path or address.

    Raises:
        SequenceError: the video cannot be opened, none of its images can be decoded, or `start` is beyond its end.
        CameraError: the camera does not match the images.
    """
    with closing(VideoReader(target, without_password(target))) as reader:
        facts = reader.facts
        samples = _samples(reader)
    levels = GrayLevels.of(samples) if samples and samples[0].dtype != np.uint8 else None
    stored = Restoration((facts.width, facts.height), (facts.width, facts.height), facts.quarter_turns)
    restoration = Restoration(
        stored_size=stored.size,
        size=stored.size if _is_of_stored(calibration, facts, stored) else square_size(facts),
        quarter_turns=facts.quarter_turns,
        is_interlaced=are_interlaced(samples),
        levels=levels,
    )
    rectifier = Rectifier(*restoration.upright_size, calibration, config)
    frames = "an unknown number of images" if facts.count is None else f"{facts.count} images"
    description = "; ".join([f"video: {frames} at {facts.rate:.4g} a second", *restoration.notes])
    return VideoFile(_Video(target, name, facts.count, restoration), description, rectifier, selection)


def _samples(reader: VideoReader) -> list[Values]:
    """Some images of a video as they are stored, all rows, and one column of every few."""
    first = list(islice(reader.frames(), FIRST_IMAGES))
    found = _readable(first)
    if reader.facts.count is not None and any(decoded.is_marked_interlaced for decoded in first):
        for place in range(1, PLACES):
            start = place * reader.facts.count // PLACES
            found += _readable(list(islice(reader.frames(start, exact=False), IMAGES_PER_PLACE)))
    return found


def _readable(frames: Sequence[DecodedFrame]) -> list[Values]:
    found = []
    for decoded in frames:
        with suppress(SequenceError):  # iteration reports it
            values = decoded.read()
            found.append(values[:, :: max(1, values.shape[1] // SAMPLED_COLUMNS)].copy())
    return found


def _is_of_stored(calibration: CameraHint | None, facts: VideoFacts, stored: Restoration) -> bool:
    """Whether a known camera is that of the stored images, with pixels that are not square."""
    square = Restoration(stored.stored_size, square_size(facts), facts.quarter_turns)
    if isinstance(calibration, GivenCamera):
        fits = [is_in_proportion(calibration.camera, *images.upright_size) for images in (stored, square)]
    elif isinstance(calibration, MapCameras):
        fits = [calibration.of(*images.upright_size) is not None for images in (stored, square)]
    else:
        return False
    return fits == [True, False]
