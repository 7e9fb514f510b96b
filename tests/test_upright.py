"""The upward direction of a map, estimated from how its cameras were held and where they went."""

from __future__ import annotations

import numpy as np
import pytest
from map_samples import small_map
from scipy.spatial.transform import Rotation

from relocalizer.geometry import FloatArray, Similarity
from relocalizer.maps.upright import (
    UpDirection,
    UprightMap,
    UpUnknown,
    estimate_up,
    in_east_north_up,
    rotation_to,
    transformed,
    upright,
)

LEVEL = Rotation.from_euler("x", -90, degrees=True)  # world_from_cam of a level camera in a world whose z is up
WORLD = Rotation.from_euler("xyz", [20, -35, 130], degrees=True)  # turns that world into one like a map's


def held(yaws_deg: FloatArray, *, pitch_deg: float = 0.0, roll_deg: float = 0.0, seed: int = 0) -> FloatArray:
    """Rotations (N, 3, 3) of cameras with these headings, pitched down, with rolls about zero, in the turned world."""
    rolls = np.random.default_rng(seed).normal(0.0, roll_deg, len(yaws_deg)) if roll_deg else np.zeros(len(yaws_deg))
    found = [
        WORLD
        * Rotation.from_euler("z", yaw, degrees=True)
        * LEVEL
        * Rotation.from_euler("x", -pitch_deg, degrees=True)
        * Rotation.from_euler("z", roll, degrees=True)
        for yaw, roll in zip(yaws_deg, rolls, strict=True)
    ]
    return np.stack([rotation.as_matrix() for rotation in found])


def error_deg(found: UpDirection | UpUnknown) -> float:
    assert isinstance(found, UpDirection)
    return float(np.degrees(np.arccos(np.clip(found.up @ WORLD.apply([0, 0, 1]), -1.0, 1.0))))


def test_cameras_that_turn_show_up_whatever_their_pitch() -> None:
    found = estimate_up(held(np.linspace(0, 90, 12), pitch_deg=30), np.zeros((12, 3)))
    assert error_deg(found) < 0.1
    assert isinstance(found, UpDirection)
    assert "horizontal axes of 12 images" in found.reason


def test_rolls_of_the_hand_average_out() -> None:
    assert error_deg(estimate_up(held(np.linspace(0, 200, 60), roll_deg=4.0), np.zeros((60, 3)))) < 2.0


def test_cameras_that_look_one_way_show_up_by_the_plane_of_their_path() -> None:
    rng = np.random.default_rng(0)
    ground = np.column_stack([rng.uniform(0, 5, 20), rng.uniform(0, 2, 20), rng.normal(0, 0.02, 20)])
    found = estimate_up(held(np.zeros(20), pitch_deg=15), WORLD.apply(ground))
    assert error_deg(found) < 1.5
    assert isinstance(found, UpDirection)
    assert "plane of the path" in found.reason


def test_on_a_straight_way_the_pitch_stays_unknown_and_is_said_to() -> None:
    line = np.column_stack([np.zeros(20), np.linspace(0, 5, 20), np.zeros(20)])
    found = estimate_up(held(np.zeros(20), pitch_deg=10), WORLD.apply(line))
    assert error_deg(found) == pytest.approx(10, abs=0.1)
    assert isinstance(found, UpDirection)
    assert "pitch is unknown" in found.reason


def test_cameras_held_any_way_show_no_up() -> None:
    found = estimate_up(Rotation.random(50, random_state=0).as_matrix(), np.zeros((50, 3)))
    assert isinstance(found, UpUnknown)
    assert "needed" in found.reason
    assert isinstance(estimate_up(np.zeros((0, 3, 3)), np.zeros((0, 3))), UpUnknown)


@pytest.mark.parametrize("axis", [(0.0, 0.0, 1.0), (0.0, -1.0, 0.0)])
def test_the_smallest_rotation_to_an_axis(axis: tuple[float, float, float]) -> None:
    for direction in (np.array([0.6, 0.0, 0.8]), np.array(axis), -np.array(axis)):
        R = rotation_to(axis, direction)
        assert np.allclose(R @ direction, axis)
        assert np.allclose(R @ R.T, np.eye(3))
        assert np.linalg.det(R) == pytest.approx(1.0)


def test_a_map_is_transformed_with_its_landmarks_and_the_others_segments_stay() -> None:
    m = small_map()
    new_from_world = Similarity(Rotation.from_euler("xyz", [10, 20, 30], degrees=True).as_matrix(), np.ones(3), 2.0)
    segment = int(m.keyframes.segment[0])
    moved = transformed(m, segment, new_from_world)
    inside = np.isin(m.landmarks.anchor, m.keyframes.ids[m.keyframes.segment == segment])
    assert np.allclose(moved.points_world[inside], new_from_world.apply(m.points_world[inside]))
    assert np.allclose(moved.points_world[~inside], m.points_world[~inside])


@pytest.mark.parametrize(("axis", "row"), [("z", 2), ("-y", 1)])
def test_an_upright_map_is_turned_about_its_origin(axis: str, row: int) -> None:
    m = small_map()
    turned = upright(m, axis=axis)  # type: ignore[arg-type]
    assert isinstance(turned, UprightMap)
    found = estimate_up(turned.map.keyframes.rotations, turned.map.keyframes.translations)
    assert isinstance(found, UpDirection)
    assert abs(found.up[row]) == pytest.approx(1.0)
    lengths = [np.linalg.norm(one.keyframes.translations, axis=1) for one in (m, turned.map)]
    assert np.allclose(*lengths)


@pytest.mark.parametrize("axis", ["z", "-y"])
def test_a_georeferenced_map_is_in_axes_of_the_earth(axis: str) -> None:
    m = small_map()
    enu_from_world = np.eye(4)
    enu_from_world[:3, :3] = Rotation.from_euler("xyz", [30, 40, 50], degrees=True).as_matrix()
    enu_from_world[:3, 3] = [5.0, 6.0, 7.0]
    enu = m.points_world @ enu_from_world[:3, :3].T + enu_from_world[:3, 3]
    moved = in_east_north_up(m, enu_from_world, axis=axis).points_world  # type: ignore[arg-type]
    assert np.allclose(moved, enu if axis == "z" else np.column_stack([enu[:, 0], -enu[:, 2], enu[:, 1]]))
