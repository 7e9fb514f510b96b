"""The stress world: what its camera does to light, and that its ground truth is what its images show."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from relocalizer.camera_files import read_camera_file
from slam.input.open_source import open_source
from slam.run.record_run import record_run

sys.path.append(str(Path(__file__).resolve().parent.parent / "sequences"))
from room.raster import Quad, Rasteriser
from stress import write
from stress_world import clips, places
from stress_world.capture import BANDS, HEIGHT, WIDTH, FilmCamera, Lens, Sensor, Shutter, lens_of
from stress_world.clips import CLIPS, Clip, film
from stress_world.motion import RATE_HZ
from stress_world.motion import Path as CameraPath

SIZE = np.array([6.0, 5.0, 2.7])


def wall(corner, right, down, seed):
    rng = np.random.default_rng(seed)
    image = cv2.resize(rng.integers(20, 236, (40, 60, 3), dtype=np.uint8), (600, 400), interpolation=cv2.INTER_CUBIC)
    return places.cut(np.array(corner, float), np.array(right, float), np.array(down, float), image)


@pytest.fixture(scope="module")
def place():
    """A wall of 8 x 6 m at y = 4, all that the camera sees."""
    return places.Place(wall((-4, 4, 4), (8, 0, 0), (0, 0, -6), 1))


@pytest.fixture(scope="module")
def path():
    """To the right along the wall at 2 m/s, for a second."""
    poses = np.tile(np.eye(4), (RATE_HZ + 1, 1, 1))
    poses[:, :3, :3] = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])  # looks along y, z up
    poses[:, 0, 3] = 2.0 * np.arange(RATE_HZ + 1) / RATE_HZ - 1.0
    poses[:, 2, 3] = 1.0
    return CameraPath(poses)


def light_of(place, path, time_s, **options):
    return FilmCamera(place, path, options.pop("lens", Lens()), Shutter(**options)).light(time_s)


def test_a_long_exposure_is_the_mean_of_what_is_seen_while_the_shutter_is_open(place, path):
    blurred = light_of(place, path, 0.5, open_s=0.03, steps=3)
    plain = Rasteriser(place.quads, Lens().pinhole(), supersampling=1, anisotropic=False)
    instants = [plain.render(path.at(t)).rgb for t in (0.49, 0.5, 0.51)]
    np.testing.assert_allclose(blurred, np.sqrt(np.mean(np.square(instants), axis=0)), atol=1e-3)
    assert np.abs(blurred - instants[1]).mean() > 1


def test_each_row_of_a_rolling_shutter_is_taken_at_its_own_time(place, path):
    readout_s = 0.03
    rolling = light_of(place, path, 0.5, readout_s=readout_s)
    rows = HEIGHT // BANDS
    for band in (0, BANDS // 2, BANDS - 1):
        later = readout_s * ((band + 0.5) / BANDS - 0.5)
        instant = light_of(place, path, 0.5 + later)
        inner = slice(band * rows + 1, (band + 1) * rows - 1)  # the filter for supersampling ends at the band
        np.testing.assert_allclose(rolling[inner], instant[inner], atol=0.5)


def test_a_fisheye_shows_a_point_where_its_camera_file_says(tmp_path, path):
    spot = np.zeros((400, 400, 3), np.uint8)
    spot[195:205, 195:205] = 255
    target = np.array([2.5, 4.0, 2.2])
    seen = places.Place([Quad(target + np.array([-0.5, 0, 0.5]), np.array([1.0, 0, 0]), np.array([0, 0, -1.0]), spot)])
    lens = Lens(focal=205.0, circle_deg=65.0)
    image = light_of(seen, path, 0.5, lens=lens).mean(axis=2)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    found = np.array([(x * image).sum(), (y * image).sum()]) / image.sum()
    (tmp_path / "camera.yaml").write_text(lens.yaml)
    cam = np.linalg.inv(path.at(0.5)) @ [*target, 1.0]
    [expected] = read_camera_file(tmp_path / "camera.yaml").distorted(cam[None, :2] / cam[2])
    np.testing.assert_allclose(found, expected, atol=0.3)


def test_a_mirror_shows_a_point_where_its_image_behind_the_mirror_is(place):
    quad = place.quads[0]
    [behind] = places.mirrored([quad], 6.0)
    u, v = 0.3, 0.8
    point = quad.origin + u * quad.right + v * quad.down
    image = behind.origin + (1 - u) * behind.right + v * behind.down
    np.testing.assert_allclose(image, point * [-1, 1, 1] + [12, 0, 0])
    np.testing.assert_allclose(behind.normal, quad.normal * [-1, 1, 1])  # still seen from its front


def test_pieces_of_a_wall_cover_it_but_for_its_holes():
    image = np.zeros((300, 600, 3), np.uint8)
    pieces = places.cut(np.array([0.0, 0, 3]), np.array([6.0, 0, 0]), np.array([0, 0, -3.0]), image, [(1, 2, 0, 2)])
    area = sum(np.linalg.norm(piece.right) * np.linalg.norm(piece.down) for piece in pieces)
    assert area == pytest.approx(18 - 2)
    centers = np.array([piece.origin + piece.right / 2 + piece.down / 2 for piece in pieces])
    assert not ((centers[:, 0] > 1) & (centers[:, 0] < 2) & (centers[:, 2] < 2)).any()


def test_moving_things_are_where_their_motion_says(path):
    spot = np.full((40, 40, 3), 255, np.uint8)
    quads = [Quad(np.array([-0.1, 3.0, 1.1]), np.array([0.2, 0, 0]), np.array([0, 0, -0.2]), spot)]
    moving = places.Place(quads, [(range(1), lambda time_s: np.array([time_s, 0.0, 0.0]))])
    image = light_of(moving, path, 0.5).mean(axis=2)
    column = (np.arange(WIDTH) * image.sum(axis=0)).sum() / image.sum()
    assert column == pytest.approx((WIDTH - 1) / 2 + 349.0 * 0.5 / 3.0, abs=0.3)


def test_a_zoom_changes_the_focal_length_and_not_the_camera_file():
    lens = Lens(zoom=lambda time_s: 1 + time_s)
    assert lens.pinhole(1.0).fx == 2 * lens.pinhole(0.0).fx
    assert f"fx: {lens.pinhole(0.0).fx}" in lens.yaml
    assert np.degrees(2 * np.arctan(0.5 * WIDTH / lens_of(110.0).focal)) == pytest.approx(110)


def test_a_sensor_adds_gain_noise_and_dark_corners():
    rng, gray = np.random.default_rng(0), np.full((HEIGHT, WIDTH, 3), 100, np.float32)
    plain = Sensor(vignetting=0.0, noise=0.0)
    assert (plain.develop(gray, 0.0, rng) == 100).all()
    assert (replace(plain, gain=lambda t: 4.0).develop(gray, 0.0, rng) == 200).all()
    assert (replace(plain, gain=lambda t: 9.0).develop(gray, 0.0, rng) == 255).all()
    corner = replace(plain, vignetting=0.75).develop(gray, 0.0, rng)
    assert (corner[0, 0, 0], corner[HEIGHT // 2, WIDTH // 2, 0]) == (25, 100)
    dark = replace(plain, electrons=100.0).develop(gray, 0.0, rng).astype(float)
    light = 100 * (dark / 255) ** 2
    expected = 100 * (100 / 255) ** 2
    assert light.std() == pytest.approx(np.sqrt(expected + 9), rel=0.05)


def short(name: str, place: places.Place, path: CameraPath) -> Clip:
    """A clip of the catalog, with its fault, in the small place."""
    [clip] = [clip for clip in CLIPS if clip.name == name]
    return replace(clip, place=lambda rng: place, path=lambda rng: path)


def test_doubled_frames_have_times_of_their_own_and_dropped_frames_leave_gaps(place, path):
    shots = list(film(short("doubled", place, path), 7))
    np.testing.assert_allclose(np.diff([shot.time_s for shot in shots]), 1 / 30)
    same = [np.array_equal(a.image, b.image) for a, b in pairwise(shots)]
    assert 0.1 < np.mean(same) < 0.3
    poses = [np.array_equal(a.world_from_cam, b.world_from_cam) for a, b in pairwise(shots)]
    assert poses == same
    dropped = list(film(short("dropped", place, path), 7))
    steps = np.diff([shot.time_s for shot in dropped])
    assert steps.max() == pytest.approx(11 / 30, abs=0.07)
    assert len(dropped) < len(shots) - 10


def test_the_same_seed_gives_the_same_bytes(place, path):
    clip = short("dark", place, path)
    one, again = (next(film(clip, 7)).image for _ in range(2))
    np.testing.assert_array_equal(one, again)
    assert (next(film(clip, 8)).image != one).any()


def test_names_are_unique_and_large_places_are_made_on_request_only():
    assert len({clip.name for clip in CLIPS}) == len(CLIPS)
    assert [clip.name for clip in CLIPS if clip.is_large] == ["floor", "street"]


def test_a_written_clip_is_a_sequence_with_ground_truth(tmp_path, place, path):
    count = write(tmp_path / "clip", CLIPS[0], film(short("fps_10", place, path), 7, frames=4))
    source = open_source(tmp_path / "clip")
    assert source.length == count == 4
    assert [frame.timestamp_ns for frame in source] == [0, 10**8, 2 * 10**8, 3 * 10**8]
    assert source.ground_truth is not None
    np.testing.assert_allclose(source.ground_truth.world_from_cam[2], path.at(0.2), atol=1e-8)


@pytest.fixture(scope="module")
def rich_room():
    return places.rich_room(np.random.default_rng(1))


@pytest.mark.parametrize("name", ["clean", "exposure_jumps"])
def test_a_short_clip_is_tracked_with_little_error(tmp_path, rich_room, name):
    """The exposure jumps within the frames taken."""
    [clip] = [clip for clip in clips.CLIPS if clip.name == name]
    write(tmp_path / name, clip, film(replace(clip, place=lambda rng: rich_room), 7, frames=50))
    report = record_run(tmp_path / name, out=tmp_path / "run")
    assert report.coverage == 1.0
    assert report.values["evaluation"]["ate_percent"] < 1.0


def test_all_places_stand_on_the_path_of_their_clips():
    """The camera is inside of every place: the way points keep away from walls and things."""
    for clip in CLIPS:
        if clip.path in (clips.motion.through_the_floor, clips.motion.around_the_blocks):
            continue
        walked = clip.path(np.random.default_rng([7, 1]))
        positions = np.array([walked.at(t)[:3, 3] for t in np.linspace(0, walked.seconds, 60)])
        low, high = (
            ([0.4, 0.7, 1.0], [21.6, 1.5, 1.9]) if clip.name == "forward" else ([0.9, 0.9, 1.0], [5.2, 4.2, 2.0])
        )
        assert (positions > low).all(), clip.name
        assert (positions < high).all(), clip.name
