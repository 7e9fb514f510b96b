"""Footage in which part of the image is not the world: overlays that stand still in it, things that cross it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest

from relocalizer.camera import load_camera
from relocalizer.features import LocalFeatures
from relocalizer.geometry import exp_so3
from relocalizer.images import Image
from slam.config.schema import InputConfig, SlamConfig
from slam.evaluation.metrics import evaluate
from slam.evaluation.trajectory import Trajectory
from slam.evaluation.trajectory_files import read_tum
from slam.events import Event, FrameProcessed
from slam.input.open_source import open_source
from slam.map.frames import Frame
from slam.map.tracks import Tracks
from slam.run.run_statistics import RunStatistics
from slam.run.run_verdict import no_result
from slam.run.runner import RunOutcome, run
from slam.system import Slam
from slam.tracking.overlay import FADING, Overlay

BUNDLED = Path(__file__).parents[1] / "sequences" / "room_loop"
CAMERA = load_camera(BUNDLED / "camera.yaml")
Draw = Callable[[Image, int], None]


@cache
def room(count: int = 130) -> tuple[Image, ...]:
    """The first images of the bundled room."""
    return tuple(f.image for f in open_source(str(BUNDLED), config=InputConfig(), max_frames=count))


class Film:
    """A source of the room's images, by their numbers, with something drawn into copies of them."""

    def __init__(self, numbers: Sequence[int], draw: Draw, mask: Image | None = None) -> None:
        self._numbers, self._draw = numbers, draw
        self.name, self.description, self.length = "film", "", len(numbers)
        self.camera = self.calibration = CAMERA
        self.ground_truth, self.mask = None, mask
        self.skipped: list[tuple[str, str]] = []
        self.dropped = 0

    def __iter__(self) -> Iterator[Frame]:
        for k, number in enumerate(self._numbers):
            image = room()[number].copy()
            self._draw(image, k)
            yield Frame(index=k, timestamp_ns=k * 33_333_333, image=image, camera=CAMERA)

    def close(self) -> None:
        pass


def play(
    numbers: Sequence[int], draw: Draw, mask: Image | None = None
) -> tuple[RunOutcome, RunStatistics, list[Event]]:
    events: list[Event] = []
    statistics, film = RunStatistics(), Film(numbers, draw, mask)
    outcome = run(film, Slam.create(SlamConfig(), observers=[events.append, statistics], mask=mask))
    return outcome, statistics, events


def errors(outcome: RunOutcome, numbers: Sequence[int]) -> tuple[float, float]:
    """Root mean square of the position's error, and of that of the orientation relative to the first, degrees."""
    truth = read_tum(BUNDLED / "groundtruth.txt")
    times = np.arange(len(numbers), dtype=np.int64) * 33_333_333
    true = Trajectory(times, truth.world_from_cam[list(numbers)])
    found = outcome.result.trajectory
    turned, truly = (
        t.world_from_cam[0, :3, :3].T @ t.world_from_cam[np.isin(t.timestamps_ns, found.timestamps_ns), :3, :3]
        for t in (found, true)
    )
    cosines = (np.einsum("nij,nij->n", turned, truly) - 1) / 2
    angles = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    return evaluate(found, true).ate_sim3.rmse, float(np.sqrt(np.mean(angles**2)))


def texture(height: int, width: int, seed: int = 0) -> Image:
    blobs = np.random.default_rng(seed).normal(90, 40, (height // 10 + 1, width // 10 + 1, 3))
    return cv2.resize(np.clip(blobs, 0, 255).astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)


BONNET = np.array([[0, 480], [0, 360], [160, 330], [480, 330], [640, 360], [640, 480]])
BONNET_LOOK = texture(480, 640)


def bonnet_mask() -> Image:
    mask = np.full((480, 640), 255, np.uint8)
    cv2.fillPoly(mask, [BONNET], 0)
    return mask


def draw_bonnet(image: Image, k: int) -> None:
    hidden = bonnet_mask() == 0
    image[hidden] = BONNET_LOOK[hidden]


def draw_display(image: Image, k: int) -> None:
    """Lines and words as a drone's display has them, half of it seen through; a clock that runs."""
    drawn = image.copy()
    words = {(15, 30): "BAT 15.2V", (15, 60): f"REC 00:{k // 30:02d}", (480, 30): "ALT 12.4M", (480, 60): "HDG 274"}
    words |= {(15, 440): "LAT 48.1351", (15, 465): "LON 11.5820", (430, 440): "MODE: LOITER", (430, 465): "HOME 25M"}
    for place, text in words.items():
        cv2.putText(drawn, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.75, (255, 255, 255), 2, cv2.LINE_AA)
    cv2.circle(drawn, (320, 240), 12, (0, 255, 0), 2)
    for step in range(-3, 4):
        for x in (170, 440):
            cv2.line(drawn, (x, 240 + step * 40), (x + 30, 240 + step * 40), (255, 255, 255), 2)
    image[:] = cv2.addWeighted(image, 0.3, drawn, 0.7, 0)


def draw_half(image: Image, k: int) -> None:
    image[255:] = BONNET_LOOK[255:]


def draw_image(image: Image, k: int) -> None:
    image[20:215, 360:620] = texture(195, 260, 4)


CROSSING = texture(300, 200, 7)


def draw_crossing(image: Image, k: int, *, speed: float = 4.0, noise: float = 2.0) -> None:
    """A textured thing crosses a fifth of the image again and again; the image has noise."""
    rng = np.random.default_rng((5, k))
    image[:] = np.clip(image + rng.normal(0, noise, image.shape), 0, 255).astype(np.uint8)
    x, y = int(20 + k * speed) % 520, int(120 + 40 * np.sin(k / 20))
    width = min(200, 640 - x)
    image[y : y + 300, x : x + width] = CROSSING[:, :width]


# Overlays


@pytest.mark.parametrize("draw", [draw_bonnet, draw_display, draw_half, draw_image])
def test_what_stands_still_in_the_image_is_left_out(draw: Draw) -> None:
    numbers = range(90)
    outcome, statistics, _ = play(numbers, draw)
    position, angle = errors(outcome, numbers)
    assert len(outcome.result.trajectory) == len(numbers)
    assert position < 0.008
    assert angle < 0.3
    assert statistics.overlay_share > 0.02


def test_an_overlay_that_appears_on_the_way_is_left_out_as_well() -> None:
    numbers = range(130)
    outcome, _, events = play(numbers, lambda image, k: draw_bonnet(image, k) if k >= 60 else None)
    position, angle = errors(outcome, numbers)
    assert position < 0.008
    assert angle < 0.3
    shares = [event.overlay_share for event in events if isinstance(event, FrameProcessed)]
    assert max(shares[:60]) == 0.0
    assert shares[-1] > 0.1


def test_a_mask_that_names_the_region_does_the_same() -> None:
    numbers = range(90)
    outcome, _, events = play(numbers, draw_bonnet, bonnet_mask())
    position, angle = errors(outcome, numbers)
    assert position < 0.008
    assert angle < 0.3
    for event in events:
        if isinstance(event, FrameProcessed):
            x, y = np.rint(event.pixels).astype(int).T
            assert (bonnet_mask()[y, x] > 0).all()


def test_where_nothing_stands_still_nothing_is_left_out() -> None:
    _, statistics, _ = play(range(90), lambda image, k: None)
    assert statistics.overlay_share == 0.0
    assert statistics.resting == 0


# A camera that does not move


def test_a_thing_that_crosses_the_image_of_a_camera_that_rests_begins_no_map() -> None:
    numbers = [0] * 130
    outcome, statistics, _ = play(numbers, draw_crossing)
    assert len(outcome.result.trajectory) == 0
    why = no_result(outcome, statistics)
    assert "the camera does not move" in why
    assert "something crosses the image" in why
    assert statistics.resting > 0.8 * len(numbers)


def test_a_thing_that_crosses_does_not_drag_a_camera_that_stops_and_continues_after() -> None:
    numbers = [*range(70), *([69] * 60), *range(70, 120)]

    def draw(image: Image, k: int) -> None:
        if 70 <= k < 130:
            draw_crossing(image, k)

    outcome, statistics, _ = play(numbers, draw)
    position, angle = errors(outcome, numbers)
    assert len(outcome.result.trajectory) == len(numbers)
    assert position < 0.008
    assert angle < 0.3
    standing = outcome.result.trajectory.world_from_cam[75:130, :3, 3]
    assert np.linalg.norm(standing - standing[0], axis=1).max() < 0.01 * outcome.result.trajectory.length
    assert 40 < statistics.resting < 75


@pytest.mark.parametrize("crossing", [True, False])
def test_a_camera_that_trembles_on_its_tripod_begins_no_map(crossing: bool) -> None:
    rng = np.random.default_rng(11)

    def draw(image: Image, k: int) -> None:
        if crossing:
            draw_crossing(image, k)
        dx, dy = rng.normal(0, 0.7, 2)
        image[:] = cv2.warpAffine(image, np.array([[1, 0, dx], [0, 1, dy]]), (640, 480), borderMode=cv2.BORDER_REFLECT)

    outcome, statistics, _ = play([0] * 120, draw)
    assert len(outcome.result.trajectory) == 0
    assert statistics.resting > 60


# The overlay itself


def seen(step: int, *, standing: int = 20, count: int = 200) -> Tracks:
    """Tracks of a camera that turns, some 6 pixels a step, and of points that stand still among them."""
    rng = np.random.default_rng(3)
    rays = np.column_stack([CAMERA.normalized(rng.uniform([0, 0], [639, 479], (count, 2))), np.ones(count)])
    world = CAMERA.project(rays @ exp_so3(np.radians([0, 0.7 * step, 0])))
    still = rng.uniform([100, 100], [500, 400], (standing, 2)).astype(np.float32)
    pixels = np.concatenate([world, still]).astype(np.float32)
    return Tracks(np.arange(count + standing, dtype=np.int64), pixels)


STILL = texture(480, 640, 9)[..., 0].copy()


def overlay_after(steps: int) -> tuple[Overlay, list[int]]:
    overlay, found = Overlay(10.0), []
    for step in range(steps):
        tracks = seen(step)
        overlay.follow(STILL, STILL)
        found += overlay.look(tracks.where(~np.isin(tracks.ids, found)), Tracks.none(), CAMERA).tolist()
    return overlay, found


def features_at(pixels: Image) -> LocalFeatures:
    count = len(pixels)
    return LocalFeatures(np.asarray(pixels, np.float32), np.zeros((count, 128), np.float32), np.ones(count, np.float32))


def test_tracks_that_stand_still_among_moving_ones_are_found_once_they_did_so_twice() -> None:
    assert overlay_after(4)[1] == []
    overlay, found = overlay_after(12)
    assert set(found) <= set(range(200, 220))
    assert len(found) > 15
    assert overlay.count > 0.7 * len(found)


def test_features_on_the_overlay_are_no_features() -> None:
    overlay, found = overlay_after(12)
    at = seen(0).pixels[np.array(found)]
    kept = overlay.cleared(features_at(np.concatenate([at + 3, [[5.0, 5.0], [630.0, 470.0]]])))
    assert kept.pixels.tolist() == [[5.0, 5.0], [630.0, 470.0]]


def test_places_of_the_overlay_are_remembered_for_a_while_when_their_points_are_lost() -> None:
    overlay, found = overlay_after(12)
    overlay.follow(STILL, np.zeros_like(STILL))
    at = features_at(seen(0).pixels[np.array(found)])
    assert overlay.count == 0
    assert len(overlay.cleared(at)) == 0
    for step in range(12, 12 + 4 * FADING):
        overlay.look(seen(step, standing=0), Tracks.none(), CAMERA)
    assert len(overlay.cleared(at)) == len(at)


def test_points_of_the_overlay_that_are_taken_along_are_none_any_more() -> None:
    overlay, _ = overlay_after(12)
    before = overlay.count
    shifted = [np.roll(STILL, 2 * k, axis=1) for k in range(4)]
    overlay.follow(shifted[0], shifted[1])
    assert overlay.count > 0.5 * before
    overlay.follow(shifted[1], shifted[2])
    assert overlay.count < 0.2 * before


def test_while_what_agrees_with_the_map_stands_still_nothing_is_overlay() -> None:
    overlay = Overlay(10.0)
    for step in range(14):
        tracks = seen(step, standing=60)
        agreeing = tracks.where(tracks.ids >= 200)
        assert len(overlay.look(tracks, agreeing, CAMERA)) == 0
