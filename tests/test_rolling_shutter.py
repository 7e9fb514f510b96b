"""Rolling shutters: how the rows of an image are seen, the correction, and the estimate of the readout."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from relocalizer.camera import Camera
from relocalizer.errors import SequenceError
from slam.config.schema import InputConfig, SlamConfig
from slam.input.rectification import GivenCamera
from slam.input.rolling_shutter import (
    CorrectedFrames,
    Readout,
    ReadoutCorrection,
    SmallImages,
    TurnRate,
    fitted_turn,
)
from slam.map.frames import Frame
from slam.run.readout_fit import FollowedPoints, fitted_readouts
from slam.run.readout_pass import correct_readout, estimate_readout, is_used, sentence

CAMERA = Camera(width=320, height=240, fx=260.0, fy=260.0, cx=159.5, cy=119.5)


def clouds() -> np.ndarray:
    """A panorama with structure of several sizes."""
    rng = np.random.default_rng(7)
    layers = [
        cv2.resize(rng.random((700 // n, 1400 // n, 3)), (1400, 700), interpolation=cv2.INTER_CUBIC)
        for n in (4, 12, 36)
    ]
    return cv2.normalize(sum(layers), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


SKY = clouds()
ROWS = Readout("rows", 0.75)


# How rows are read, and how the camera turns meanwhile


def test_rows_are_read_about_the_time_of_the_middle_one():
    pixels = np.array([[10.0, -0.5], [10.0, 119.5], [10.0, 239.5]])
    assert Readout("rows", 0.8).times(pixels, CAMERA) == pytest.approx([-0.4, 0.0, 0.4])
    assert Readout("rows", -0.8).times(pixels, CAMERA) == pytest.approx([0.4, 0.0, -0.4])
    assert Readout("columns", 0.8).times(np.array([[319.5, 7.0]]), CAMERA) == pytest.approx([0.4])


def test_the_rate_of_a_turn_is_interpolated_between_two_rotations():
    rate = TurnRate.between(np.array([0.0, 0.1, 0.0]), np.array([0.0, 0.3, 0.0]))
    assert rate.velocity == pytest.approx([0.0, 0.2, 0.0])
    assert rate.acceleration == pytest.approx([0.0, 0.2, 0.0])
    assert rate.turned(np.array([1.0, -1.0]))[:, 1] == pytest.approx(
        [0.3, -0.1]
    )  # to the next image, to the one before


def test_the_rate_over_unequal_times_turns_as_far_as_was_measured():
    rate = TurnRate.between(np.array([0.2, 0.0, 0.0]), np.array([0.3, 0.0, 0.0]), gap_before=2, gap_after=1)
    assert rate.turned(np.array([1.0, -2.0]))[:, 0] == pytest.approx([0.3, -0.2])


def test_the_rate_is_that_of_the_one_rotation_that_is_known():
    one = np.array([0.0, 0.1, 0.0])
    assert TurnRate.between(one, None, gap_before=2).velocity == pytest.approx([0.0, 0.05, 0.0])
    assert TurnRate.between(None, one).velocity == pytest.approx(one)
    assert TurnRate.between(None, None).is_zero


def test_the_rotation_of_fixed_points_is_fitted_in_spite_of_moving_ones(rng):
    turn = np.array([0.02, -0.05, 0.03])
    rays = rng.normal(size=(100, 3)) * [0.3, 0.3, 0.0] + [0.0, 0.0, 1.0]
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    later = Rotation.from_rotvec(turn).inv().apply(rays)
    later[:25] += [0.05, 0.0, 0.0]
    assert fitted_turn(rays, later) == pytest.approx(turn, abs=1e-6)


# Images of a rotating camera


def orientation(time: float) -> Rotation:
    """World from camera of a hand that looks about, at a time in intervals."""
    return Rotation.from_rotvec([0.12 * np.sin(0.31 * time), 0.25 * np.sin(0.22 * time), 0.08 * np.cos(0.4 * time)])


def image_at(time: float, readout: Readout | None, turned: Callable[[float], Rotation] = orientation) -> np.ndarray:
    """The sky as a camera at one place sees it, each row (or column) at its own time."""
    x, y = np.meshgrid(np.arange(CAMERA.width), np.arange(CAMERA.height))
    pixels = np.stack([x, y], axis=-1).reshape(-1, 2).astype(np.float64)
    rays = np.column_stack([CAMERA.normalized(pixels), np.ones(len(pixels))])
    times = np.zeros(len(pixels)) if readout is None else readout.times(pixels, CAMERA)
    lines, line_of = np.unique(times, return_inverse=True)
    matrices = np.stack([turned(time + line).as_matrix() for line in lines])
    world = np.einsum("nij,nj->ni", matrices[line_of], rays)
    longitude, latitude = (
        np.arctan2(world[:, 0], world[:, 2]),
        np.arctan2(world[:, 1], np.hypot(world[:, 0], world[:, 2])),
    )
    u, v = (400.0 * longitude + 700.0).astype(np.float32), (400.0 * latitude + 350.0).astype(np.float32)
    shape = (CAMERA.height, CAMERA.width)
    return cv2.remap(SKY, u.reshape(shape), v.reshape(shape), cv2.INTER_LINEAR)


def difference(first: np.ndarray, second: np.ndarray) -> float:
    """Mean absolute difference of two images, without their margins."""
    return float(np.abs(first[16:-16, 16:-16].astype(float) - second[16:-16, 16:-16]).mean())


@pytest.mark.parametrize("readout", [ROWS, Readout("rows", -0.75), Readout("columns", 0.6)])
def test_a_corrected_image_is_that_of_a_global_shutter(readout):
    before, after = (orientation(8.0).inv() * orientation(8.0 + step) for step in (-1.0, 1.0))
    rate = TurnRate.between(before.inv().as_rotvec(), after.as_rotvec())
    rolling, still = image_at(8.0, readout), image_at(8.0, None)
    corrected = ReadoutCorrection(CAMERA, readout)(rolling, rate)
    assert corrected.shape == still.shape
    assert corrected.dtype == np.uint8
    assert difference(corrected, still) < 0.15 * difference(rolling, still)


def test_an_image_of_a_camera_at_rest_is_not_touched():
    image = image_at(0.0, None)
    assert ReadoutCorrection(CAMERA, ROWS)(image, TurnRate.between(None, None)) is image


class Footage:
    """Stored images of a rotating camera."""

    name, description, mask, ground_truth, dropped, can_be_reread = "sky", "a sky", None, None, 0, True

    def __init__(
        self, readout: Readout | None, length=200, left_out: tuple[int, ...] = (), slowness=1.0, rate_hz=30.0
    ) -> None:
        self.camera = self.calibration = CAMERA
        self._rate_hz = rate_hz
        self.length, self.skipped, self.closed = length, [], False
        self._readout, self._left_out, self._slowness = readout, left_out, slowness

    def at(self, position: int) -> np.ndarray:
        slower = None if self._readout is None else replace(self._readout, share=self._readout.share / self._slowness)
        return image_at(position / self._slowness, slower)

    def __iter__(self):
        for n in range(self.length):
            if n not in self._left_out:
                stamp_ns = round(1e9 * n / self._rate_hz) + 2_000_000 * (-1) ** n
                yield Frame(index=n, timestamp_ns=stamp_ns, image=self.at(n), camera=CAMERA)

    def random_access(self):
        return nullcontext(self.at)

    def with_calibration(self, calibration: GivenCamera):
        other = Footage(self._readout, self.length, rate_hz=self._rate_hz)
        other.camera = other.calibration = calibration.camera
        return other

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("left_out", [(), (4, 5)])
def test_every_frame_of_a_source_is_corrected(left_out):
    source = Footage(ROWS, 10, left_out)
    frames = list(CorrectedFrames(source, ROWS, "corrected"))
    assert [frame.index for frame in frames] == [frame.index for frame in source]
    assert [frame.timestamp_ns for frame in frames] == [frame.timestamp_ns for frame in source]
    for frame in frames[1:-1]:
        still = image_at(frame.index, None)
        assert difference(frame.image, still) < 0.35 * difference(source.at(frame.index), still)


def test_frames_far_apart_say_nothing_of_each_other():
    source = Footage(ROWS, 24, left_out=tuple(range(12, 20)))
    frames = {frame.index: frame.image for frame in CorrectedFrames(source, ROWS, "corrected")}
    still = image_at(20, None)
    assert difference(frames[20], still) < difference(source.at(20), still)  # by the rotation to frame 21 alone


@pytest.mark.parametrize("time", [0.0, 4.0, 8.0, 12.0])
def test_the_rotation_between_two_images_is_measured(time):
    images = SmallImages(CAMERA)
    truth = (orientation(time).inv() * orientation(time + 1.0)).as_rotvec()
    still, rolling = (
        images.turn(*(images.small(image_at(t, readout)) for t in (time, time + 1.0))) for readout in (None, ROWS)
    )
    assert np.linalg.norm(still - truth) < 2e-4
    assert np.linalg.norm(rolling - truth) < 0.12 * np.linalg.norm(truth)


def test_images_that_share_nothing_give_no_rotation():
    images = SmallImages(CAMERA)
    there = images.small(image_at(0.0, None, lambda _: Rotation.from_rotvec([0.0, 2.0, 0.0])))
    assert images.turn(images.small(image_at(0.0, None)), there) is None
    assert images.turn(np.zeros((240, 320), np.uint8), there) is None


def test_one_frame_is_returned_as_it_is():
    [frame] = CorrectedFrames(Footage(ROWS, 1), ROWS, "corrected")
    assert np.array_equal(frame.image, image_at(0, ROWS))


def test_the_frames_before_a_failure_are_returned_before_it():
    class Broken(Footage):
        def __iter__(self):
            yield from super().__iter__()
            raise SequenceError("the disk is gone")

    frames = iter(CorrectedFrames(Broken(ROWS, 3), ROWS, "corrected"))
    assert [next(frames).index for _ in range(3)] == [0, 1, 2]
    with pytest.raises(SequenceError, match="the disk is gone"):
        next(frames)


def test_corrected_frames_are_those_of_their_source_in_all_else():
    source = Footage(ROWS, 5)
    corrected = CorrectedFrames(source, ROWS, "rows are read slowly")
    assert (corrected.name, corrected.length, corrected.camera) == ("sky", 5, CAMERA)
    assert corrected.description == "a sky; rows are read slowly"
    other = corrected.with_calibration(GivenCamera(CAMERA.refocused((1.1, 1.1)), "another"))
    assert isinstance(other, CorrectedFrames)
    assert other.camera.fx == pytest.approx(286.0)
    corrected.close()
    assert source.closed


# The estimate


def followed(readout: Readout, *, places: int = 10, walk: float = 0.02, noise_px: float = 0.1, seed: int = 0):
    """Points at several depths as a camera that turns and walks sees them in two images, three apart."""
    rng = np.random.default_rng(seed)
    found = []
    for place in range(places):
        time = 7.3 * place
        points = (
            np.column_stack([rng.uniform(-1.5, 1.5, (80, 2)), rng.uniform(2.0, 4.0, 80)])
            @ orientation(time).as_matrix().T
        )
        velocity = walk * rng.normal(size=3)
        pixels = [_seen(points, time + step, velocity * (step + 1.5), readout) for step in (-1.5, 1.5)]
        pixels = [p + noise_px * rng.normal(size=p.shape) for p in pixels]
        rays = [np.column_stack([CAMERA.normalized(p), np.ones(len(p))]) for p in pixels]
        rays = [r / np.linalg.norm(r, axis=1, keepdims=True) for r in rays]
        rates = [
            TurnRate.between(
                (orientation(time + step - 1.0).inv() * orientation(time + step)).as_rotvec(),
                (orientation(time + step).inv() * orientation(time + step + 1.0)).as_rotvec(),
            )
            for step in (-1.5, 1.5)
        ]
        found.append([FollowedPoints(CAMERA, *pixels, *rays, *rates)])
    return found


def _seen(points: np.ndarray, time: float, center: np.ndarray, readout: Readout) -> np.ndarray:
    """Pixels of points, each at the time of its row."""
    pixels = np.full((len(points), 2), 119.5)
    for _ in range(6):
        turned = [orientation(time + t).inv() for t in readout.times(pixels, CAMERA)]
        pixels = CAMERA.project(np.stack([r.apply(p - center) for r, p in zip(turned, points, strict=True)]))
    return pixels


@pytest.mark.parametrize("readout", [ROWS, Readout("rows", -0.5), Readout("columns", 0.9)])
def test_the_readout_is_estimated_from_points_at_any_depth(readout):
    best = max(fitted_readouts(followed(readout)), key=lambda estimate: estimate.significance)
    assert best.readout.axis == readout.axis
    assert abs(best.readout.share - readout.share) < 3.0 * best.sigma + 0.02
    assert best.sigma < 0.05
    assert is_used(best)


def test_the_sigma_of_a_readout_holds():
    estimates = [fitted_readouts(followed(ROWS, noise_px=0.3, seed=seed))[0] for seed in range(10)]
    deviations = np.array([(estimate.readout.share - 0.75) / estimate.sigma for estimate in estimates])
    assert (np.abs(deviations) < 2.0).sum() >= 8
    assert np.abs(deviations).max() < 4.0


def test_a_global_shutter_has_no_readout():
    for seed in range(3):
        assert not any(is_used(e) for e in fitted_readouts(followed(Readout("rows", 0.0), noise_px=0.3, seed=seed)))


def test_too_few_places_give_no_estimate():
    assert fitted_readouts(followed(ROWS, places=3)) == []


def test_the_readout_of_footage_is_estimated_from_its_images():
    estimate = estimate_readout(Footage(ROWS), 200)
    assert estimate is not None
    assert abs(estimate.readout.share - 0.75) < max(3.0 * estimate.sigma, 0.05)
    assert is_used(estimate)
    assert sentence(estimate).startswith("rolling shutter corrected: rows are read during ")


def test_footage_of_a_rolling_shutter_is_corrected_and_says_so():
    source = correct_readout(Footage(ROWS), SlamConfig())
    assert "rolling shutter corrected: rows are read during 7" in source.description
    assert correct_readout(Footage(ROWS), SlamConfig(input=InputConfig(prefetch_frames=0))).description.startswith(
        "a sky; "
    )


@pytest.mark.parametrize(
    ("footage", "settings"),
    [
        (Footage(None), {}),
        (Footage(ROWS, slowness=20.0), {}),
        (Footage(ROWS, rate_hz=5.0), {}),
        (Footage(ROWS, length=60), {}),
        (Footage(ROWS, length=3), {}),
        (Footage(ROWS), {"correct_rolling_shutter": False}),
        (Footage(ROWS), {"unordered": True}),
    ],
    ids=[
        "global shutter",
        "slow turns",
        "slower than a sensor is",
        "too short",
        "three images",
        "not wanted",
        "photos",
    ],
)
def test_other_footage_is_read_as_it_is(footage, settings):
    assert correct_readout(footage, SlamConfig(input=InputConfig(**settings))) is footage


def test_a_stream_is_read_as_it_is():
    stream = Footage(ROWS)
    stream.length = None
    assert correct_readout(stream, SlamConfig()) is stream
