"""The bundled sequences are complete, small, and their ground truth is what the images show."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

SEQUENCES = Path(__file__).parents[1] / "sequences"
NAMES = ("room_loop", "room_revisit")
SIZE_LIMIT_BYTES = 15_000_000
FPS = 30.0

Floats = NDArray[np.float64]
# Pairs with enough parallax for the direction of motion to be sharp; the last ones close the loop.
PAIRS = [
    ("room_loop", 0, 20),
    ("room_loop", 100, 120),
    ("room_loop", 200, 220),
    ("room_loop", 300, 320),
    ("room_loop", 0, 380),
    ("room_revisit", 30, 50),
    ("room_revisit", 90, 110),
]


@cache
def gray_frames(name: str) -> list[NDArray[np.uint8]]:
    video = cv2.VideoCapture(str(SEQUENCES / name / "video.mp4"))
    frames: list[NDArray[np.uint8]] = []
    while True:
        ok, frame = video.read()
        if not ok:
            return frames
        frames.append(np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), np.uint8))


@cache
def rows(name: str) -> Floats:
    return np.loadtxt(SEQUENCES / name / "groundtruth.txt")


def world_from_cam(name: str, i: int) -> Floats:
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_quat(rows(name)[i, 4:]).as_matrix()
    pose[:3, 3] = rows(name)[i, 1:4]
    return pose


def camera_matrix(name: str) -> Floats:
    camera = yaml.safe_load((SEQUENCES / name / "camera.yaml").read_text())
    return np.array([[camera["fx"], 0, camera["cx"]], [0, camera["fy"], camera["cy"]], [0, 0, 1]])


def matched_points(name_i: str, i: int, name_j: str, j: int) -> tuple[Floats, Floats]:
    sift = cv2.SIFT.create(1500)
    keys_i, found_i = sift.detectAndCompute(gray_frames(name_i)[i], None)
    keys_j, found_j = sift.detectAndCompute(gray_frames(name_j)[j], None)
    pairs = cv2.BFMatcher().knnMatch(found_i, found_j, 2)
    good = [a for a, b in pairs if a.distance < 0.75 * b.distance]
    return np.array([keys_i[m.queryIdx].pt for m in good]), np.array([keys_j[m.trainIdx].pt for m in good])


def angle_deg(a: Floats, b: Floats) -> float:
    return float(np.degrees(np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1))))


def test_both_videos_together_are_small_enough_for_a_repository() -> None:
    total = sum(path.stat().st_size for name in NAMES for path in (SEQUENCES / name).iterdir())
    assert total < SIZE_LIMIT_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_every_frame_has_one_row_of_ground_truth(name: str) -> None:
    assert len(gray_frames(name)) == len(rows(name))


def test_the_sequences_are_long_enough() -> None:
    assert len(rows("room_loop")) >= 300
    assert 100 <= len(rows("room_revisit")) <= 150


@pytest.mark.parametrize("name", NAMES)
def test_frames_have_the_size_that_camera_yaml_states(name: str) -> None:
    camera = yaml.safe_load((SEQUENCES / name / "camera.yaml").read_text())
    assert (camera["model"], camera["width"], camera["height"], camera["distortion"]) == ("pinhole", 640, 480, [])
    assert {frame.shape for frame in gray_frames(name)} == {(480, 640)}


@pytest.mark.parametrize("name", NAMES)
def test_timestamps_are_the_frame_times_of_the_video(name: str) -> None:
    video = cv2.VideoCapture(str(SEQUENCES / name / "video.mp4"))
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(FPS)
    np.testing.assert_allclose(rows(name)[:, 0], np.arange(len(rows(name))) / FPS, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_quaternions_have_unit_length(name: str) -> None:
    np.testing.assert_allclose(np.linalg.norm(rows(name)[:, 4:], axis=1), 1, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_the_camera_moves_in_every_frame_but_never_jumps(name: str) -> None:
    steps = np.linalg.norm(np.diff(rows(name)[:, 1:4], axis=0), axis=1)
    assert steps.min() > 0.003
    assert steps.max() < 0.06


@pytest.mark.parametrize("name", NAMES)
def test_the_camera_stays_upright_inside_the_room(name: str) -> None:
    assert (rows(name)[:, 1:4] > 0.5).all()
    assert (rows(name)[:, 1:4] < [5.5, 4.5, 2.2]).all()
    downs = Rotation.from_quat(rows(name)[:, 4:]).apply([0.0, 1.0, 0.0])
    assert (downs[:, 2] < -0.85).all()


@pytest.mark.parametrize(("name", "i", "j"), PAIRS)
def test_epipolar_geometry_of_the_images_agrees_with_ground_truth(name: str, i: int, j: int) -> None:
    K = camera_matrix(name)
    points_i, points_j = matched_points(name, i, name, j)
    E, inliers = cv2.findEssentialMat(points_i, points_j, K, cv2.USAC_MAGSAC, 0.9999, 0.6)
    _, rotation, direction, _ = cv2.recoverPose(E, points_i, points_j, K, mask=inliers)
    j_from_i = np.linalg.inv(world_from_cam(name, j)) @ world_from_cam(name, i)
    assert np.degrees(Rotation.from_matrix(rotation @ j_from_i[:3, :3].T).magnitude()) < 1.0
    assert angle_deg(np.asarray(direction[:, 0], np.float64), j_from_i[:3, 3]) < 1.0


def test_points_triangulated_with_ground_truth_reproject_in_both_sequences() -> None:
    """The two sequences share one world frame: a pair across them fits its ground truth to a pixel."""
    K = camera_matrix("room_loop")
    points_i, points_j = matched_points("room_loop", 30, "room_revisit", 66)
    j_from_i = np.linalg.inv(world_from_cam("room_revisit", 66)) @ world_from_cam("room_loop", 30)
    x, y, z = j_from_i[:3, 3]
    F = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ j_from_i[:3, :3]
    F = np.linalg.inv(K).T @ F @ np.linalg.inv(K)
    lines = np.column_stack([points_i, np.ones(len(points_i))]) @ F.T
    across = np.abs((lines * np.column_stack([points_j, np.ones(len(points_j))])).sum(1)) / np.hypot(*lines.T[:2])
    assert (across < 1.0).sum() >= 100


def test_the_loop_closes() -> None:
    gaps = [np.linalg.inv(world_from_cam("room_loop", i)) @ world_from_cam("room_loop", -1) for i in range(60)]
    meters = np.array([np.linalg.norm(gap[:3, 3]) for gap in gaps])
    degrees = np.array([np.degrees(Rotation.from_matrix(gap[:3, :3]).magnitude()) for gap in gaps])
    assert ((meters < 0.4) & (degrees < 20)).any()


def test_the_loop_looks_elsewhere_in_between() -> None:
    forward = Rotation.from_quat(rows("room_loop")[:, 4:]).apply([0.0, 0.0, 1.0])
    assert (forward[130:270] @ forward[0] < 0).all()


def test_the_end_of_the_loop_shows_what_its_beginning_showed() -> None:
    points_i, points_j = matched_points("room_loop", 15, "room_loop", 402)
    _, inliers = cv2.findEssentialMat(points_i, points_j, camera_matrix("room_loop"), cv2.USAC_MAGSAC, 0.9999, 0.6)
    assert inliers.sum() > 300


@pytest.mark.parametrize("name", NAMES)
def test_no_frame_is_dominated_by_a_blank_wall(name: str) -> None:
    for i, frame in enumerate(gray_frames(name)[::10]):
        corners = cv2.goodFeaturesToTrack(frame, 3000, 0.01, 8)[:, 0]
        cells = set(zip(corners[:, 0] // 160, corners[:, 1] // 120, strict=True))
        assert len(corners) >= 250, f"frame {10 * i}"
        assert len(cells) >= 10, f"frame {10 * i}"
