from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from relocalizer.camera import Camera
from relocalizer.errors import SequenceError
from relocalizer.images import Image
from slam.config.schema import InputConfig
from slam.evaluation.trajectory import Trajectory
from slam.input.frame_source import Selection
from slam.input.live_stream import LiveStream
from slam.input.prefetch import Prefetched
from slam.input.rectification import Rectifier
from slam.map.frames import Frame

ALONE = InputConfig(prefetch_frames=0)


def shade(k: int) -> int:
    return 20 + 5 * k


def flat(k: int, width: int = 64, height: int = 48) -> Image:
    """An image of one gray that tells its number."""
    return np.full((height, width, 3), shade(k), dtype=np.uint8)


def number_of(frame: Frame) -> int:
    """The number that `flat` wrote; video encoders make such a gray up to 4 darker."""
    return round((float(np.median(frame.image)) - 18) / 5)


class FakeCamera:
    """A camera that gives numbered images, one each time `tick` is called, until `count` are given."""

    def __init__(self, count: int | None = None, fails_at: int | None = None) -> None:
        self._count, self._fails_at, self._given = count, fails_at, 0
        self._ticks = threading.Semaphore(0)
        self.unplugged = False
        self.released = threading.Event()
        self.reads = threading.Semaphore(0)

    def tick(self, images: int = 1) -> None:
        for _ in range(images):
            self.reads.acquire()  # the reader has come back for the next
            self._ticks.release()
        self.reads.acquire()
        self.reads.release()

    def read(self) -> tuple[bool, Image | None]:
        assert not self.released.is_set()
        self.reads.release()
        if self._given == self._count:
            return False, None
        while not self._ticks.acquire(timeout=0.05):
            if self.unplugged:
                return False, None
        if self._given == self._fails_at:
            raise cv2.error("the driver broke")
        self._given += 1
        return True, flat(self._given - 1)

    def release(self) -> None:
        self.released.set()


def live(camera: FakeCamera, selection: Selection = Selection()) -> LiveStream:  # noqa: B008 - frozen
    rectifier = Rectifier(64, 48, None, ALONE)
    return LiveStream(camera, "camera", "live", rectifier, selection)


def test_a_live_stream_gives_the_newest_image_and_counts_what_it_passed_over() -> None:
    camera = FakeCamera(count=10)
    stream = live(camera)
    frames = iter(stream)
    threading.Thread(target=camera.tick, args=(1,), daemon=True).start()
    assert next(frames).index == 0
    camera.tick(5)  # images 1 to 5 come while the consumer is busy
    latest = next(frames)
    assert (latest.index, number_of(latest), stream.dropped) == (5, 5, 4)
    camera.unplugged = True
    stream.close()


def test_a_live_stream_ends_after_its_last_image() -> None:
    camera = FakeCamera(count=3)
    stream = live(camera)
    threading.Thread(target=camera.tick, args=(3,), daemon=True).start()
    frames = list(stream)
    assert frames[-1].index == 2
    assert len(frames) + stream.dropped == 3
    assert camera.released.wait(2)
    assert list(stream) == []


def test_live_times_are_of_today_and_increase() -> None:
    camera = FakeCamera(count=4)
    stream = live(camera)
    before = time.time_ns()
    frames = iter(stream)
    threading.Thread(target=camera.tick, daemon=True).start()
    times = [next(frames).timestamp_ns]
    for _ in range(3):
        camera.tick()
        times.append(next(frames).timestamp_ns)
    assert times == sorted(set(times))
    assert before - 10**9 < times[0] < times[-1] < time.time_ns() + 10**9
    assert next(frames, None) is None


def test_a_live_stream_takes_every_other_image_when_asked_and_drops_none_for_it() -> None:
    camera = FakeCamera(count=7)
    stream = live(camera, Selection(start=1, stride=2, max_frames=2))
    frames = iter(stream)
    threading.Thread(target=camera.tick, args=(2,), daemon=True).start()
    assert next(frames).index == 1
    camera.tick(2)
    assert next(frames).index == 3
    camera.unplugged = True
    assert next(frames, None) is None
    assert stream.dropped == 0
    assert camera.released.wait(2)


def test_closing_a_live_stream_ends_a_consumer_that_waits_for_an_image() -> None:
    camera = FakeCamera()
    stream = live(camera)
    got: list[Frame] = []
    consumer = threading.Thread(target=lambda: got.extend(stream), daemon=True)
    consumer.start()
    camera.reads.acquire()
    camera.unplugged = True
    stream.close()
    consumer.join(5)
    assert not consumer.is_alive()
    assert got == []
    assert camera.released.is_set()


def test_leaving_the_loop_over_a_live_stream_releases_the_camera() -> None:
    camera = FakeCamera()
    frames = iter(live(camera))
    threading.Thread(target=camera.tick, args=(1,), daemon=True).start()
    next(frames)
    camera.unplugged = True
    frames.close()  # type: ignore[attr-defined]
    assert camera.released.wait(2)


def test_a_live_stream_that_is_never_read_releases_the_camera_on_close() -> None:
    camera = FakeCamera()
    stream = live(camera)
    stream.close()
    stream.close()
    assert camera.released.is_set()
    assert list(stream) == []


def test_an_error_of_the_driver_comes_out_where_the_images_are_used() -> None:
    camera = FakeCamera(fails_at=2)
    stream = live(camera)
    threading.Thread(target=camera.tick, args=(3,), daemon=True).start()
    with pytest.raises(cv2.error, match="the driver broke"):
        list(stream)
    assert camera.released.wait(2)


class ChangingCamera(FakeCamera):
    """Its images 1 and 2 are of another size."""

    def read(self) -> tuple[bool, Image | None]:
        ok, image = super().read()
        return ok, image if image is None or number_of_shade(image) not in (1, 2) else image[:24, :32]


def number_of_shade(image: Image) -> int:
    return (int(image[0, 0, 0]) - 20) // 5


def test_live_images_of_another_size_are_skipped_and_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    camera = ChangingCamera(count=4)
    stream = live(camera)
    frames = iter(stream)
    threading.Thread(target=camera.tick, daemon=True).start()
    assert next(frames).index == 0
    taken: list[int] = []
    consumer = threading.Thread(target=lambda: taken.extend(frame.index for frame in frames))
    consumer.start()
    for _ in range(3):
        camera.tick()
        wait_until_taken(stream)
    consumer.join(5)
    assert taken == [3]
    assert [name for name, _ in stream.skipped] == ["camera image 1", "camera image 2"]
    assert "32x24, not 64x48" in stream.skipped[0][1]
    assert caplog.text.count("32x24, not 64x48") == 1


def wait_until_taken(stream: LiveStream) -> None:
    """Until the consumer has taken the newest image, so that none is overtaken."""
    patience = time.monotonic() + 60
    while stream._newest is not None:
        assert time.monotonic() < patience
        time.sleep(0.001)


# Reading ahead


class Counted:
    """A source of flat images that notes how many it has given and whether it was closed."""

    def __init__(self, count: int, error: BaseException | None = None, delay_s: float = 0.0) -> None:
        self._count, self._error, self._delay_s = count, error, delay_s
        self.name, self.description, self.length = "counted", "", count
        self.camera = self.calibration = Camera.assume(64, 48, fov_deg=60)
        self.mask = None
        self.ground_truth: Trajectory | None = None
        self.skipped: list[tuple[str, str]] = []
        self.dropped = 0
        self.given = 0
        self.closed = 0

    def __iter__(self) -> Iterator[Frame]:
        for k in range(self._count):
            time.sleep(self._delay_s)
            self.given += 1
            yield Frame(index=k, timestamp_ns=k, image=flat(k % 20), camera=self.camera)
        if self._error:
            raise self._error

    def close(self) -> None:
        self.closed += 1


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("read counted")]


def test_reading_ahead_gives_every_frame_in_order() -> None:
    source = Counted(200)
    assert [frame.index for frame in Prefetched(source, 4)] == list(range(200))
    assert source.closed
    assert reading_threads() == []


def test_no_more_is_read_ahead_than_asked_for() -> None:
    source = Counted(100)
    ahead = Prefetched(source, 4)
    frames = iter(ahead)
    next(frames)
    time.sleep(0.1)
    assert source.given <= 1 + 4 + 1  # used, ready, and one in hand
    ahead.close()


def test_an_error_comes_after_the_frames_before_it() -> None:
    frames = iter(Prefetched(Counted(3, SequenceError("the disk went away")), 8))
    assert [next(frames).index for _ in range(3)] == [0, 1, 2]
    with pytest.raises(SequenceError, match="the disk went away"):
        next(frames)
    assert reading_threads() == []


def test_an_error_that_is_a_bug_comes_out_too() -> None:
    with pytest.raises(ZeroDivisionError):
        list(Prefetched(Counted(2, ZeroDivisionError()), 8))


def test_leaving_the_loop_stops_the_thread() -> None:
    source = Counted(10_000)
    for frame in Prefetched(source, 4):
        if frame.index == 3:
            break
    gc.collect()
    deadline = time.monotonic() + 60
    while reading_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert reading_threads() == []
    assert source.closed
    assert source.given < 20


def test_closing_while_the_thread_waits_for_room_does_not_hang() -> None:
    ahead = Prefetched(Counted(100), 2)
    frames = iter(ahead)
    next(frames)
    closing = threading.Thread(target=lambda: (ahead.close(), ahead.close()), daemon=True)
    closing.start()
    closing.join(30)
    assert not closing.is_alive()
    assert reading_threads() == []
    assert next(frames, None) is None


def test_closing_from_elsewhere_ends_a_consumer_that_waits() -> None:
    ahead = Prefetched(Counted(100, delay_s=0.2), 2)
    got: list[int] = []
    consumer = threading.Thread(target=lambda: got.extend(frame.index for frame in ahead), daemon=True)
    consumer.start()
    time.sleep(0.05)
    ahead.close()
    consumer.join(30)
    assert not consumer.is_alive()


def test_a_source_that_is_never_read_is_closed_all_the_same() -> None:
    source = Counted(3)
    Prefetched(source, 2).close()
    assert source.closed == 1
