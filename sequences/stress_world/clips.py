"""The clips of the stress world: what is filmed, along which path, with which camera, and what goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from room.raster import Floats, Singles

from stress_world import motion, places
from stress_world.capture import HEIGHT, WIDTH, FilmCamera, Lens, Sensor, Shutter, lens_of
from stress_world.motion import Path
from stress_world.places import Place

Bytes = NDArray[np.uint8]
Rng = np.random.Generator


class Shot(NamedTuple):
    """A frame: its time in seconds, RGB image (H, W, 3), and world_from_cam (4, 4)."""

    time_s: float
    image: Bytes
    world_from_cam: Floats


def as_they_are(count: int, rng: Rng) -> Sequence[int]:
    return range(count)


def some_dropped(count: int, rng: Rng) -> Sequence[int]:
    """A tenth of the frames is missing, and ten in a row."""
    kept = rng.random(count) > 0.1
    kept[:10] = True
    kept[count // 2 : count // 2 + 10] = False
    return np.flatnonzero(kept).tolist()


def some_doubled(count: int, rng: Rng) -> Sequence[int]:
    """Every fifth frame or so shows the one before it again."""
    shown = np.arange(count)
    shown[1:] -= rng.random(count - 1) < 0.2
    return shown.tolist()


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A clip with exact ground truth.

    Attributes:
        about: what goes wrong, as a phrase.
        place, path: made from a generator.
        light: gain of each color channel of the light, (3,), at a time in seconds; None for white and constant.
        shown: which of the frames taken each frame shows, by their numbers.
        keeps_times: whether a frame that shows another one has that one's time (dropped frames), or its own (doubled).
        changed: changes the image of a frame, given its number.
        is_large: made on request only.
    """

    name: str
    about: str
    place: Callable[[Rng], Place] = places.rich_room
    path: Callable[[Rng], Path] = motion.loop
    fps: float = 30.0
    lens: Lens = field(default_factory=Lens)
    shutter: Shutter = field(default_factory=Shutter)
    sensor: Sensor = field(default_factory=Sensor)
    light: Callable[[float], Floats] | None = None
    shown: Callable[[int, Rng], Sequence[int]] = as_they_are
    keeps_times: bool = True
    changed: Callable[[Bytes, int, Rng], Bytes] | None = None
    is_large: bool = False


def film(clip: Clip, seed: int, frames: int | None = None) -> Iterator[Shot]:
    """The frames of a clip; the same seed gives the same bytes. `frames` is their maximum number."""
    camera_path = clip.path(np.random.default_rng([seed, 1]))
    camera = FilmCamera(clip.place(np.random.default_rng([seed, 2])), camera_path, clip.lens, clip.shutter)
    rng = np.random.default_rng([seed, 3])
    count = int(camera_path.seconds * clip.fps + 1e-6) + 1
    taken: tuple[int, Bytes] | None = None
    for number, source in enumerate(clip.shown(count, rng)[:frames]):
        time_s = source / clip.fps
        if taken is None or taken[0] != source:
            taken = source, _image(clip, camera, time_s, number, rng)
        shown_s = time_s if clip.keeps_times else number / clip.fps
        yield Shot(shown_s, taken[1], camera_path.at(time_s))


def _image(clip: Clip, camera: FilmCamera, time_s: float, number: int, rng: Rng) -> Bytes:
    rgb: Singles = camera.light(time_s)
    if clip.light is not None:
        rgb = rgb * np.sqrt(clip.light(time_s)).astype(np.float32)
    image = clip.sensor.develop(rgb, time_s, rng)
    return image if clip.changed is None else clip.changed(image, number, rng)


# --- what goes wrong ----------------------------------------------------------------------------------------------


def _jumping(time_s: float) -> float:
    """A new exposure every 1.3 s, between a third and 2.2 of the right one."""
    steps = (1.0, 0.45, 1.8, 0.8, 2.2, 0.33, 1.3, 0.6, 2.0, 1.0)
    return steps[int(time_s / 1.3) % len(steps)]


def _hunting(time_s: float) -> float:
    """An automatic exposure that swings about the right one, between 0.5 and 2 times, 1.2 times a second."""
    return float(2.0 ** np.sin(2 * np.pi * 1.2 * time_s))


def _zooming(time_s: float) -> float:
    """From 4 s to 6 s in to 1.6 times, from 8 s to 10 s out again."""
    share = float(np.clip((time_s - 4) / 2, 0, 1) - np.clip((time_s - 8) / 2, 0, 1))
    return 1.0 + 0.6 * share * share * (3 - 2 * share)


def _evening(time_s: float) -> Floats:
    """Daylight, and after 10 s dim and warm lamp light, within a second."""
    share = float(np.clip(time_s - 10, 0, 1))
    return (1 - share) * np.ones(3) + share * np.array([0.5, 0.33, 0.16])


def _covered(image: Bytes, number: int, rng: Rng) -> Bytes:
    """A finger before the lens, twice, for 12 frames."""
    if number not in (*range(120, 132), *range(240, 252)):
        return image
    finger = np.array([52.0, 26.0, 24.0]) + rng.normal(0, 1.5, image.shape)
    return np.clip(finger, 0, 255).astype(np.uint8)


def _reflecting(image: Bytes, number: int, rng: Rng) -> Bytes:
    """A pane before the camera that reflects lamps behind it, which stay where they are in the image."""
    pane = np.zeros((HEIGHT, WIDTH), np.float32)
    for x, y, radius in ((90, 70, 26), (370, 110, 34), (240, 290, 20)):
        cv2.circle(pane, (x, y), radius, 1.0, -1)
    pane = cv2.GaussianBlur(pane, (0, 0), 5)[..., None]
    return np.clip(image + 90 * pane, 0, 255).astype(np.uint8)


CLIPS = (
    Clip(name="clean", about="nothing; the measure of the others"),
    Clip(
        name="blur",
        about="a trembling hand, exposed for 28 of 33 ms",
        path=motion.shaken_loop,
        shutter=Shutter(open_s=0.028),
    ),
    Clip(name="rolling_shutter", about="28 ms from the first row to the last", shutter=Shutter(readout_s=0.028)),
    Clip(name="exposure_jumps", about="exposure jumps between 0.33 and 2.2 times", sensor=Sensor(gain=_jumping)),
    Clip(name="hunting_gain", about="automatic exposure that swings twofold", sensor=Sensor(gain=_hunting)),
    Clip(name="dark", about="shot noise of 120 electrons for white", sensor=Sensor(electrons=120.0)),
    Clip(name="vignetting", about="corners at a quarter of the gray levels", sensor=Sensor(vignetting=0.75)),
    Clip(name="fast_rotation", about="swings of 50 degrees at up to 170 degrees a second", path=motion.swinging_loop),
    Clip(name="pure_rotation", about="a full turn in place", path=motion.loop_with_turn),
    Clip(name="look_first", about="looks around without a step, then walks", path=motion.loop_after_look),
    Clip(name="turn_first", about="a full turn in place, then a walk", path=motion.walk_after_turn),
    Clip(name="planar_start", about="begins along a wall that fills the image", path=motion.from_the_wall),
    Clip(name="forward", about="straight along a corridor", place=places.corridor, path=motion.straight_on),
    Clip(name="backward", about="backwards away from a wall", path=motion.backward),
    Clip(name="fps_10", about="10 frames a second", fps=10.0),
    Clip(name="fps_5", about="5 frames a second", fps=5.0),
    Clip(name="fps_2", about="2 frames a second", fps=2.0),
    Clip(name="wide", about="110 degrees across", lens=lens_of(110.0)),
    Clip(name="narrow", about="35 degrees across", lens=lens_of(35.0)),
    Clip(
        name="fisheye",
        about="equidistant, 130 degrees across in an image circle",
        lens=Lens(focal=205.0, circle_deg=65.0),
    ),
    Clip(name="low_texture", about="painted walls, few things", place=places.bare_room),
    Clip(name="repeated_texture", about="one tile on all walls and the floor", place=places.room_alike),
    Clip(
        name="passers_by",
        about="four people walk along the walls, 6 % of the image",
        place=places.room_with_passers_by,
    ),
    Clip(name="moving_people", about="five people walk about, a fifth of the image", place=places.room_with_people),
    Clip(name="crowd", about="three people walk before the lens, a third of the image", place=places.room_with_crowd),
    Clip(name="mirror", about="a mirror of 2.6 x 1.7 m", place=places.room_with_mirror),
    Clip(name="reflections", about="lamps reflected in a pane before the lens", changed=_reflecting),
    Clip(name="covered", about="the lens covered twice, 12 frames each", changed=_covered),
    Clip(name="dropped", about="a tenth of the frames missing, and ten in a row", shown=some_dropped),
    Clip(name="doubled", about="a fifth of the frames shows the one before", shown=some_doubled, keeps_times=False),
    Clip(name="zoom", about="zooms in to 1.6 times and out again", lens=Lens(zoom=_zooming)),
    Clip(name="two_lights", about="the second lap in dim, warm light", path=motion.loop_twice, light=_evening),
    Clip(
        name="floor",
        about="5,000 frames through rooms and corridors",
        place=places.floor,
        path=motion.through_the_floor,
        is_large=True,
    ),
    Clip(
        name="street",
        about="5,000 frames around two blocks",
        place=places.street,
        path=motion.around_the_blocks,
        lens=Lens(focal=300.0),
        is_large=True,
    ),
)
