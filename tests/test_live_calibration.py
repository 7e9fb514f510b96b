"""The camera of a live stream, estimated from its first images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import cv2
import numpy as np
import pytest
from textured_walk import FOCAL_PX, HEIGHT, WALLS, WIDTH, poses, rendered, textures

from relocalizer.camera import Camera
from relocalizer.images import Image
from slam.config.schema import InputConfig, SlamConfig
from slam.input.frame_source import ALL_IMAGES
from slam.input.live_stream import LiveStream
from slam.input.rectification import GivenCamera, Rectifier
from slam.map.frames import Frame
from slam.map.lens_evidence import LensState
from slam.run import live_calibration
from slam.run.camera_before_run import calibrate_first

CONFIG = SlamConfig()


class NoCapture:
    def read(self) -> tuple[bool, None]:
        return False, None

    def release(self) -> None:
        pass


class Stored(LiveStream):
    """A live stream whose consumer is never too slow."""

    def __init__(self, image_of: Callable[[int], Image], count: int, camera: GivenCamera | None = None) -> None:
        rectifier = Rectifier(WIDTH, HEIGHT, camera, InputConfig())
        super().__init__(NoCapture(), "camera", "live", rectifier, ALL_IMAGES)
        self._image_of, self._count = image_of, count
        self.given: list[int] = []

    def peek(self) -> Iterator[Frame]:
        for k in range(len(self.given), self._count):
            self.given.append(k)
            yield Frame(index=k, timestamp_ns=k, image=self._image_of(k), camera=self.camera)


@pytest.fixture(scope="module")
def walk() -> list[Image]:
    walls = textures(len(WALLS))
    return [rendered(walls, *pose) for pose in poses(150)]


def test_the_focal_length_of_a_stream_is_known_before_its_run(walk: list[Image]) -> None:
    stream = Stored(lambda k: walk[k], len(walk))
    shown: list[tuple[int, int]] = []
    found, calibration = calibrate_first(
        stream, CONFIG, on_progress=lambda what, done, total: shown.append((done, total))
    )
    assert calibration is not None
    assert calibration.evidence.state is LensState.KNOWN
    assert found.camera.assumed
    assert found.camera.mean_focal == pytest.approx(FOCAL_PX, rel=0.03)
    assert found.calibration.mean_focal == pytest.approx(calibration.focal_px)
    assert calibration.sentence in found.description
    assert shown[0] == (1, live_calibration.VIEWS[0])
    following = next(iter(found))
    assert (following.index, following.camera) == (len(shown), found.camera)  # its images were used up


def test_a_camera_at_rest_is_waited_for_and_then_assumed(walk: list[Image], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_calibration, "MOST_STILL_IMAGES", 20)
    stream = Stored(lambda k: walk[0], 1000)
    found, calibration = calibrate_first(stream, CONFIG)
    assert found is stream
    assert len(stream.given) == 1 + 20  # the first one is what the others are compared with
    assert calibration is not None
    assert not calibration.is_used
    assert calibration.sentence.startswith("focal length not determined before the run")


def test_images_before_the_first_motion_do_not_count(walk: list[Image], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_calibration, "MOST_IMAGES", 60)
    stream = Stored(lambda k: walk[max(0, k - 50)], 200)
    _, calibration = calibrate_first(stream, CONFIG)
    assert calibration is not None
    assert abs(np.log(calibration.focal_px / FOCAL_PX)) < 2 * calibration.focal_sigma
    assert len(stream.given) > 60


def test_a_covered_lens_gives_no_view(walk: list[Image]) -> None:
    dark = np.full_like(walk[0], 8)
    views = live_calibration.LiveViews(Stored(lambda k: dark if k < 30 else walk[0], 40))
    views.collect(10, lambda what, done, total: None)
    assert len(views.images) == 1
    assert np.array_equal(views.images[0], walk[0])


def test_a_stream_that_ends_early_is_calibrated_with_what_it_gave(walk: list[Image]) -> None:
    stream = Stored(lambda k: walk[k], 3)
    found, calibration = calibrate_first(stream, CONFIG)
    assert found is stream
    assert calibration is not None
    assert not calibration.is_used
    assert calibration.evidence.reason


def test_no_image_is_taken_when_the_camera_is_given_or_the_pass_is_off(walk: list[Image]) -> None:
    given = GivenCamera(replace(Camera.assume(WIDTH, HEIGHT, fov_deg=99.3), assumed=False), "the test")
    off = CONFIG.model_copy(update={"input": InputConfig(calibrate_first=False)})
    for stream, config in ((Stored(lambda k: walk[k], 9, given), CONFIG), (Stored(lambda k: walk[k], 9), off)):
        assert calibrate_first(stream, config) == (stream, None)
        assert stream.given == []


def test_views_are_the_images_between_which_the_image_moves() -> None:
    rng = np.random.default_rng(2)
    wide = cv2.GaussianBlur(rng.integers(0, 256, (HEIGHT, 2 * WIDTH, 3), dtype=np.uint8), (0, 0), 2.0)
    stream = Stored(lambda k: np.ascontiguousarray(wide[:, 5 * k : 5 * k + WIDTH]), 41)  # 5 of 400 px per image
    views = live_calibration.LiveViews(stream)
    views.collect(100, lambda what, done, total: None)
    assert len(views.images) == 1 + 40 // 3  # 3 % of the width are 12 px
