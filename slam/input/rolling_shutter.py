"""Correction of a rolling shutter: each image as if all its rows had been read at the time of its middle row.

Most cameras read an image row by row, for up to the time between two frames, so a camera that turns shows each row from
another orientation. At 100 degrees a second, 25 ms of readout displace pixels by up to a fiftieth of the image. The
rotation during the readout is interpolated from those between consecutive images (Ringaby and Forssen, "Efficient video
rectification and stabilisation for cell-phones", IJCV 2012), and each image is resampled. What translation displaces
stays, except its mean.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from relocalizer.camera import Camera
from relocalizer.geometry import FloatArray
from relocalizer.images import Image, to_gray
from slam.input.frame_source import RereadableSource
from slam.input.rectification import GivenCamera
from slam.map.frames import Frame

SMALL_SIDE_PX = 320  # longer side of the images in which points are followed
# Maximum number of points that are followed between two images, and minimum number and share of them that are found.
MOST_POINTS, FEWEST_POINTS, FOUND_SHARE = 200, 20, 0.25
POINT_QUALITY, POINT_DISTANCE_PX = 0.01, 7
WINDOW_PX, LEVELS = 15, 4  # of KLT
RETURN_PX = 0.5  # maximum distance of a point that is followed back from where it began, pixels
KEPT_SHARE, FIT_ROUNDS = 0.7, 6  # share of the points that a rotation is fitted to, those that agree best
LONGEST_GAP = 3  # maximum number of intervals between two images for their rotation to be used
INTERVALS = 15  # number of times between images of which the median is that between consecutive ones
NODE_PX = 16  # distance of the nodes between which displacements are interpolated, pixels
ROW_ROUNDS = 2  # fixed-point iterations for the row that a pixel is read from


Axis = Literal["rows", "columns"]
AXES: tuple[Axis, Axis] = ("rows", "columns")


@dataclass(frozen=True, slots=True)
class Readout:
    """How the sensor is read.

    Attributes:
        axis: "rows" if the image is read row by row, "columns" if it is turned by 90 degrees.
        share: time from the first row (or column) to the last, as a fraction of the time between two images; negative
            if the last is read first.
    """

    axis: Axis
    share: float

    def times(self, pixels: FloatArray, camera: Camera) -> FloatArray:
        """When pixels (..., 2) are read, relative to the middle of the image, in times between two images."""
        along, size = (1, camera.height) if self.axis == "rows" else (0, camera.width)
        return np.asarray(self.share * ((pixels[..., along] + 0.5) / size - 0.5))


@dataclass(frozen=True, slots=True, eq=False)
class TurnRate:
    """Rotation of a camera about the time of an image, in its axes, with time in those between two images.

    Attributes:
        velocity: (3,) angular velocity, radians per interval.
        acceleration: (3,) its change, radians per interval squared.
    """

    velocity: FloatArray
    acceleration: FloatArray

    @classmethod
    def between(
        cls, before: FloatArray | None, after: FloatArray | None, gap_before: float = 1.0, gap_after: float = 1.0
    ) -> TurnRate:
        """From the rotation vectors (3,) to an image and from it, over two times; None where one is not known."""
        known = [turn / gap for turn, gap in ((before, gap_before), (after, gap_after)) if turn is not None]
        if len(known) < 2:
            return cls(known[0] if known else np.zeros(3), np.zeros(3))
        first, second, both = *known, gap_before + gap_after
        return cls((gap_after * first + gap_before * second) / both, 2.0 * (second - first) / both)

    def turned(self, times: FloatArray) -> FloatArray:
        """Rotation vectors (..., 3) from the orientation at time 0 to those at other times."""
        t = times[..., None]
        return np.asarray(t * self.velocity + 0.5 * t**2 * self.acceleration)

    @property
    def is_zero(self) -> bool:
        return not (self.velocity.any() or self.acceleration.any())


class SmallImages:
    """Images of one camera, made small and gray, and the rotation of the camera between two of them.

    Attributes:
        camera: the camera of the small images.
    """

    def __init__(self, camera: Camera) -> None:
        ratio = min(1.0, SMALL_SIDE_PX / max(camera.width, camera.height))
        self.camera = camera.resized(max(1, round(ratio * camera.width)), max(1, round(ratio * camera.height)))

    def small(self, image: Image) -> Image:
        """The small gray image (h, w)."""
        size = (self.camera.width, self.camera.height)
        return np.asarray(cv2.resize(to_gray(image), size, interpolation=cv2.INTER_AREA), dtype=np.uint8)

    def turn(self, first: Image, second: Image) -> FloatArray | None:
        """Rotation vector (3,) of the camera from one small image to the next, in its axes; None if it is not found.

        Between images of a rolling shutter it is that of a middle row, for as long as the turn does not change.
        """
        start = corners(first)
        end, is_found = follow(first, second, start)
        if is_found.sum() < max(FEWEST_POINTS, FOUND_SHARE * len(start)):
            return None
        return fitted_turn(self.rays(start[is_found]), self.rays(end[is_found]))

    def rays(self, pixels: FloatArray) -> FloatArray:
        """Unit vectors (N, 3) of pixels (N, 2) of a small image."""
        rays = np.column_stack([self.camera.normalized(pixels), np.ones(len(pixels))])
        return np.asarray(rays / np.linalg.norm(rays, axis=1, keepdims=True))


def corners(image: Image) -> FloatArray:
    """Corners (N, 2) of a small image."""
    found = cv2.goodFeaturesToTrack(image, MOST_POINTS, POINT_QUALITY, POINT_DISTANCE_PX)
    return np.zeros((0, 2)) if found is None else np.asarray(found[:, 0], dtype=np.float64)


def follow(first: Image, second: Image, pixels: FloatArray) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Where points (N, 2) of an image are in the next, and which (N,) return to where they began."""
    if len(pixels) == 0:
        return pixels, np.zeros(0, bool)
    start = pixels.astype(np.float32)[:, None]
    end, there = _searched(first, second, start)
    back, again = _searched(second, first, end)
    returns = np.abs(back - start).max(axis=(1, 2)) < RETURN_PX
    return end[:, 0].astype(np.float64), there & again & returns


def _searched(
    first: Image, second: Image, points: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Where KLT finds points (N, 1, 2) of an image in the next, and which (N,) it finds."""
    found, status, _ = cv2.calcOpticalFlowPyrLK(
        first, second, points, np.zeros_like(points), winSize=(WINDOW_PX, WINDOW_PX), maxLevel=LEVELS
    )
    return np.asarray(found, dtype=np.float32), np.asarray(status).ravel() == 1


def fitted_turn(first: FloatArray, second: FloatArray) -> FloatArray:
    """Rotation vector (3,) of a camera to which most rays (N, 3) of fixed points turn from `first` to `second`.

    The points that agree least, of near or moving things, are left out.
    """
    kept = np.ones(len(first), bool)
    rotation = Rotation.identity()
    for _ in range(FIT_ROUNDS):
        rotation, _ = Rotation.align_vectors(first[kept], second[kept])
        errors = np.linalg.norm(rotation.apply(second) - first, axis=1)
        kept = errors <= np.quantile(errors, KEPT_SHARE)
    return np.asarray(rotation.as_rotvec())


class ReadoutCorrection:
    """Resamples images of one camera for the rotation during their readout."""

    def __init__(self, camera: Camera, readout: Readout) -> None:
        self._camera, self._readout = camera, readout
        # The nodes lie about the image too, so that nothing is extrapolated.
        x, y = (NODE_PX * (np.arange(-(-size // NODE_PX) + 2) - 0.5) - 0.5 for size in (camera.width, camera.height))
        self._nodes = np.stack(np.meshgrid(x, y), axis=-1)
        self._pixels = np.stack(
            np.meshgrid(np.arange(camera.width, dtype=np.float32), np.arange(camera.height, dtype=np.float32)), axis=-1
        )

    def __call__(self, image: Image, rate: TurnRate) -> Image:
        """The image as a camera with a global shutter takes it at the time of the middle row."""
        if rate.is_zero:
            return image
        shifts = (self._read_from(self._nodes, rate) - self._nodes).astype(np.float32)
        rows, columns = self._nodes.shape[:2]
        full = cv2.resize(shifts, (columns * NODE_PX, rows * NODE_PX), interpolation=cv2.INTER_LINEAR)
        inside = full[NODE_PX : NODE_PX + self._camera.height, NODE_PX : NODE_PX + self._camera.width]
        x, y = cv2.split(self._pixels + inside)
        moved = cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(moved, dtype=np.uint8)

    def _read_from(self, pixels: FloatArray, rate: TurnRate) -> FloatArray:
        """Where the image as it was read shows what the corrected one shows at `pixels` (..., 2)."""
        camera = self._camera
        rays = np.concatenate([camera.normalized(pixels.reshape(-1, 2)), np.ones((pixels.size // 2, 1))], axis=1)
        source = pixels
        for _ in range(ROW_ROUNDS):
            turned = rate.turned(self._readout.times(source, camera)).reshape(-1, 3)
            source = camera.project(Rotation.from_rotvec(-turned).apply(rays)).reshape(pixels.shape)
        return source


@dataclass(slots=True, eq=False)
class _Read:
    """A frame that was read, and the rotation from the one before it, which was read `gap` intervals earlier."""

    frame: Frame
    small: Image
    gap: int = 1
    turn: FloatArray | None = None


class CorrectedFrames:
    """The frames of a source of stored images, corrected for the rolling shutter of their camera.

    A frame is returned when the next one is read, because the rotation to that one is needed.
    """

    def __init__(self, source: RereadableSource, readout: Readout, note: str) -> None:
        """Args:
        note: remark for the user, part of the description.
        """
        self._source, self._readout, self._note = source, readout, note
        self.name = source.name
        self.description = f"{source.description}; {note}"
        self.camera, self.calibration, self.mask = source.camera, source.calibration, source.mask
        self.length = source.length
        self.ground_truth = source.ground_truth
        self.skipped = source.skipped  # the same list, which the source fills while it is read
        self.dropped = source.dropped

    def __iter__(self) -> Iterator[Frame]:
        images, correct = SmallImages(self.camera), ReadoutCorrection(self.camera, self._readout)
        gaps: deque[int] = deque(maxlen=INTERVALS)
        last: _Read | None = None
        try:
            for frame in self._source:
                read = _Read(frame, images.small(frame.image))
                if last is not None:
                    gaps.append(frame.timestamp_ns - last.frame.timestamp_ns)
                    # Timestamps are less even than images: those of cameras on a bus differ by a tenth of the interval.
                    read.gap = max(1, round(gaps[-1] / float(np.median(gaps))))
                    if read.gap <= LONGEST_GAP:
                        read.turn = images.turn(last.small, read.small)
                    yield _corrected(correct, last, read)
                last = read
        except Exception:
            if last is not None:  # the frame before the error is not lost
                yield _corrected(correct, last, None)
            raise
        if last is not None:
            yield _corrected(correct, last, None)

    @property
    def can_be_reread(self) -> bool:
        return self._source.can_be_reread

    def random_access(self) -> AbstractContextManager[Callable[[int], Image | None]]:
        """A reader of single images by their position, which are not corrected."""
        return self._source.random_access()

    def with_calibration(self, calibration: GivenCamera) -> CorrectedFrames:
        """The same frames read as images of another camera."""
        source = self._source.with_calibration(calibration)
        if not isinstance(source, RereadableSource):
            raise TypeError(f"{self.name}: the images of this source cannot be read twice")
        return CorrectedFrames(source, self._readout, self._note)

    def close(self) -> None:
        self._source.close()


def _corrected(correct: ReadoutCorrection, read: _Read, following: _Read | None) -> Frame:
    """A frame, corrected by the rotations from the one before it and to the one after it."""
    after, gap_after = (None, 1) if following is None else (following.turn, following.gap)
    rate = TurnRate.between(read.turn, after, read.gap, gap_after)
    return replace(read.frame, image=correct(read.frame.image, rate))
