"""Decoding of video files with PyAV (FFmpeg), which reads the codecs that OpenCV lacks and gives exact times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, dropwhile, islice

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from relocalizer.errors import SequenceError

TIMEOUT_S = 10.0  # Timeout for opening an address and for reading from it, seconds.
SEEK_EARLIER_S = (0.0, 1.0, 4.0, 16.0)  # times before an image that are searched for, one after another, seconds
NOMINAL_FPS = 30.0  # Frame rate assumed for a video whose header has no plausible one, images per second.
PLAUSIBLE_FPS = (0.1, 1000.0)
PLAUSIBLE_ASPECT = (0.2, 5.0)  # range of pixel aspect ratios; others are mistakes of the header
_NANOSECONDS = 1_000_000_000

Values = NDArray[np.uint8] | NDArray[np.uint16]  # RGB (H, W, 3) uint8, or gray (H, W) uint16 of a deep gray video


@dataclass(frozen=True, slots=True, eq=False)
class DecodedFrame:
    """One image of a video.

    Attributes:
        time_ns: time since the start of the video, nanoseconds; None if the file has none.
        is_marked_interlaced: whether the file says that it consists of two fields.
        read: gives the image as it is stored, not turned upright; raises SequenceError if it cannot be decoded.
    """

    time_ns: int | None
    is_marked_interlaced: bool
    read: Callable[[], Values]


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What the header of a video and its first image say.

    Attributes:
        count: number of images; None if unknown. It may be computed from the duration, and off by a few.
        rate: images per second.
        width, height: size of the stored images, pixels.
        pixel_aspect: width of a pixel divided by its height.
        quarter_turns: number of counterclockwise quarter turns that make the image upright.
    """

    count: int | None
    rate: float
    width: int
    height: int
    pixel_aspect: Fraction = Fraction(1)
    quarter_turns: int = 0


class VideoReader:
    """An open video file. Close it after use.

    Attributes:
        facts: the description of the video.
    """

    def __init__(self, target: str, shown: str) -> None:
        """Open an absolute path or an address, which is named `shown` in errors.

        Raises:
            SequenceError: it cannot be opened, holds no video, or none of its images can be decoded.
        """
        self._target, self._shown = target, shown
        self._container, self._stream = self._opened()
        self._is_at_start = False
        try:
            first = self._first_image()
            self.facts = _facts(self._container, self._stream, first)
            self._rewind()
        except BaseException:
            self.close()
            raise

    def frames(self, start: int = 0, *, exact: bool = True) -> Iterator[DecodedFrame]:
        """The images from number `start` on; ends any earlier iteration.

        After a seek in a video of variable rate, the first image may be a few images off.

        Args:
            exact: False begins at the nearest image before `start` that is decoded without others, which is faster.
        """
        found = self._from(start, exact=exact) if start else None
        if found is None:
            self._rewind()
            self._is_at_start = False
            found = islice(self._decoded(), start, None)
        yield from found

    def _from(self, start: int, *, exact: bool) -> Iterator[DecodedFrame] | None:
        """The images from number `start` on after a seek; None if the file cannot be searched.

        Files without an index are searched for the time, and the place found may be behind it.
        """
        start_ns = round((start - 0.5) * _NANOSECONDS / self.facts.rate)
        for earlier_s in SEEK_EARLIER_S:
            if not self._seek(start_ns - round(earlier_s * _NANOSECONDS)):
                return None
            decoded = self._decoded()
            first = next(decoded, None)
            if first is None or first.time_ns is None:
                continue
            if not exact:
                return chain([first], decoded)
            if first.time_ns <= start_ns + _NANOSECONDS / self.facts.rate:
                return dropwhile(
                    lambda image: image.time_ns is not None and image.time_ns < start_ns, chain([first], decoded)
                )
        return None

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        self._container.close()

    def _opened(self) -> tuple[InputContainer, VideoStream]:
        try:
            container = av.open(self._target, timeout=TIMEOUT_S, metadata_errors="replace")
        except av.FFmpegError:
            raise SequenceError(
                f"{self._shown}: the video cannot be opened (cut off, damaged, or no video); does a player play it?"
            ) from None
        stream = container.streams.best("video")
        if not isinstance(stream, VideoStream):
            container.close()
            raise SequenceError(f"{self._shown}: holds no video that can be decoded")
        stream.thread_type = "AUTO"
        return container, stream

    def _rewind(self) -> None:
        if self._is_at_start:
            return
        self._is_at_start = True
        self.close()
        self._container, self._stream = self._opened()

    def _seek(self, time_ns: int) -> bool:
        """Go to the last key image not after a time; False if the file cannot be searched."""
        self._is_at_start = False
        base = self._stream.time_base
        if base is None or self._stream.start_time is None:
            return False
        try:
            offset = self._stream.start_time + round(Fraction(time_ns, _NANOSECONDS) / base)
            self._container.seek(offset, stream=self._stream)
        except av.FFmpegError:
            return False
        return True

    def _decoded(self) -> Iterator[DecodedFrame]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError:  # the file is cut off here
                return
            if packet is None:
                return
            try:
                images = packet.decode()
            except av.FFmpegError:
                yield DecodedFrame(None, False, _not_decoded)
                continue
            for image in images:
                if isinstance(image, VideoFrame):
                    yield DecodedFrame(self._time_ns(image), image.interlaced_frame, _reader(image))

    def _time_ns(self, image: VideoFrame) -> int | None:
        if image.pts is None or image.time_base is None:
            return None
        return round((image.pts - (self._stream.start_time or 0)) * Fraction(image.time_base) * _NANOSECONDS)

    def _first_image(self) -> VideoFrame:
        with suppress(av.FFmpegError):
            for packet in self._container.demux(self._stream):
                with suppress(av.FFmpegError):
                    for image in packet.decode():
                        if isinstance(image, VideoFrame):
                            return image
        codec = self._stream.codec_context.name if self._stream.codec_context is not None else "unknown"
        raise SequenceError(
            f"{self._shown}: no image in this video can be decoded (codec {codec}); does a player play it?"
        )


def _facts(container: InputContainer, stream: VideoStream, first: VideoFrame) -> VideoFacts:
    stated = [float(rate) for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate) if rate]
    rate = next((rate for rate in stated if PLAUSIBLE_FPS[0] <= rate <= PLAUSIBLE_FPS[1]), NOMINAL_FPS)
    aspect = stream.sample_aspect_ratio or Fraction(1)
    is_plausible = PLAUSIBLE_ASPECT[0] <= aspect <= PLAUSIBLE_ASPECT[1]
    return VideoFacts(
        count=_count(container, stream, rate),
        rate=rate,
        width=first.width,
        height=first.height,
        pixel_aspect=Fraction(aspect) if is_plausible else Fraction(1),
        quarter_turns=round(first.rotation / 90) % 4,
    )


def _count(container: InputContainer, stream: VideoStream, rate: float) -> int | None:
    if stream.frames > 0:
        return stream.frames
    if stream.duration is not None and stream.time_base is not None:
        return max(1, round(float(stream.duration * stream.time_base) * rate))
    if container.duration is not None and container.duration > 0:
        return max(1, round(container.duration / av.time_base * rate))
    return None


def _reader(image: VideoFrame) -> Callable[[], Values]:
    def read() -> Values:
        # FFmpeg's names of gray formats of more than 8 bits are gray9le to gray16be.
        is_deep = image.format.name.startswith("gray") and image.format.name not in ("gray", "gray8")
        try:
            values = image.to_ndarray(format="gray16le" if is_deep else "rgb24")
        except (av.FFmpegError, ValueError):
            return _not_decoded()
        return values.astype(np.uint16, copy=False) if is_deep else values.astype(np.uint8, copy=False)

    return read


def _not_decoded() -> Values:
    raise SequenceError("cannot be decoded")
