"""trajectory.png: what is drawn of a run, and where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from map_samples import in_two_segments, small_map
from scipy.spatial.transform import Rotation

from relocalizer.errors import TrajectoryError
from relocalizer.images import read_image
from relocalizer.maps.map_writer import save_map
from relocalizer.maps.reference_map import ReferenceMap
from slam.evaluation.top_view import REACH, extent, thinned, top_view_axes
from slam.evaluation.trajectory import Trajectory
from slam.evaluation.trajectory_files import write_tum
from slam.run import top_view_image as drawing
from slam.run.report import report_text
from slam.run.trajectory_plot import top_view, write_plot

FRAME_NS = 33_000_000


def poses_of(rotations: np.ndarray, positions: np.ndarray) -> np.ndarray:
    poses = np.tile(np.eye(4), (len(positions), 1, 1))
    poses[:, :3, :3], poses[:, :3, 3] = rotations, positions
    return poses


def run_folder(folder: Path, *, untracked: tuple[int, ...] = (), note: str = "") -> tuple[Path, ReferenceMap]:
    """A run along x with the keyframes of `small_map`, a unit apart, and a loop closure of the first two of them."""
    folder.mkdir()
    saved = small_map(keyframes=6)
    table = replace(saved.keyframes, translations=10 * saved.keyframes.translations)
    is_loop = np.arange(len(saved.edges.i)) == 0
    saved = replace(saved, keyframes=table, edges=replace(saved.edges, is_loop=is_loop))
    count = 10 * (len(table) - 1) + 1
    frames = FRAME_NS * np.arange(count)
    positions = np.stack([0.1 * np.arange(count), np.zeros(count), np.zeros(count)], axis=1)
    tracked = np.setdiff1d(np.arange(count), untracked)
    path = Trajectory(frames[tracked], poses_of(np.eye(3)[None], positions[tracked]))
    write_tum(folder / "trajectory.txt", path, note=note)
    keyframes = Trajectory(table.timestamps_ns, poses_of(table.rotations, table.translations))
    write_tum(folder / "keyframes.txt", keyframes, note=note)
    lines = [f"{k},{k * 0.033:.9f},,{'tracking' if k in tracked else 'lost'},0,50" for k in range(count)]
    (folder / "frames.csv").write_text("\n".join(["index,timestamp,name,state,keyframe,inliers", *lines]) + "\n")
    return folder, saved


def has(image: np.ndarray, color: drawing.Color) -> bool:
    """Whether a color is within the axes, where the legend is not."""
    left, top, right, bottom = drawing.FRAME
    difference = np.abs(image[top:bottom, left:right].astype(int) - color).sum(axis=2)
    return bool((difference < 20).any())


def test_a_run_is_drawn_with_its_map(tmp_path: Path) -> None:
    view = top_view(*run_folder(tmp_path / "run"), "room")
    assert view.title == "room, seen from above"
    assert view.facts == ("51 of 51 frames with a pose, 6 keyframes, 12 landmarks, 1 loop closure, path of 5 map units")
    assert (len(view.path), len(view.lost), view.loops.shape) == (1, 0, (1, 2, 2))
    image = drawing.draw_top_view(view)
    shown = (drawing.PATH, drawing.KEYFRAME, drawing.LANDMARK, drawing.LOOP, drawing.START, drawing.END)
    assert all(has(image, color) for color in shown)
    assert not has(image, drawing.LOST)
    assert [text for _, _, text in drawing.legend_of(view)] == [
        "path", "start", "end", "keyframes", "landmarks", "loop closures (1)",
    ]  # fmt: skip


def test_lost_stretches_are_gaps_of_the_path(tmp_path: Path) -> None:
    folder, saved = run_folder(tmp_path / "run", untracked=(0, 1, 20, 21, 22, 35))
    view = top_view(folder, saved, "room")
    assert [len(piece) for piece in view.path] == [18, 12, 15]
    assert view.lost == [3, 1]  # those before the first pose are not between two pieces
    assert has(drawing.draw_top_view(view), drawing.LOST)
    assert "no pose (2 times, 4 frames)" in [text for _, _, text in drawing.legend_of(view)]
    assert view.facts.startswith("45 of 51 frames with a pose")


def test_a_run_without_a_map_and_a_table_of_frames_is_its_path(tmp_path: Path) -> None:
    folder, _ = run_folder(tmp_path / "run")
    (folder / "frames.csv").unlink()
    (folder / "keyframes.txt").unlink()
    view = top_view(folder, None, "room")
    assert view.facts == "51 frames with a pose, 0 keyframes, no loop closures, path of 5 map units"
    assert has(drawing.draw_top_view(view), drawing.PATH)


def test_a_map_of_another_world_is_not_drawn(tmp_path: Path) -> None:
    folder, saved = run_folder(tmp_path / "run")
    moved = replace(saved, keyframes=replace(saved.keyframes, translations=saved.keyframes.translations + 5.0))
    assert len(top_view(folder, moved, "room").landmarks) == 0


def test_only_the_segment_of_the_path_is_drawn(tmp_path: Path) -> None:
    folder, saved = run_folder(tmp_path / "run")
    view = top_view(folder, in_two_segments(saved, 2.0), "room")
    assert len(view.keyframes) == 3
    (folder / "trajectory_segment2.txt").write_text("")
    assert top_view(folder, saved, "room").facts.endswith("1 unconnected part not drawn")


def test_meters_are_named(tmp_path: Path) -> None:
    folder, saved = run_folder(tmp_path / "run", note="lengths in meters: markers")
    assert top_view(folder, saved, "room").units == "meters"


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    folder, saved = run_folder(tmp_path / "run")
    for name in ("a.png", "b.png"):
        write_plot(tmp_path / name, folder, saved, "a name that is longer than the axes are wide " * 5)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert read_image(tmp_path / "a.png").shape == (*drawing.SIZE[::-1], 3)


@pytest.mark.parametrize("content", [None, "", "# timestamp tx ty tz qx qy qz qw\n"])
def test_a_run_without_poses_is_said(tmp_path: Path, content: str | None) -> None:
    folder, saved = run_folder(tmp_path / "run")
    (folder / "trajectory.txt").unlink()
    if content is not None:
        (folder / "trajectory.txt").write_text(content)
    with pytest.raises(TrajectoryError, match="no frame of this run has a pose, so there is nothing to draw"):
        top_view(folder, saved, "room")


def test_a_camera_at_rest_is_a_point_in_axes(tmp_path: Path) -> None:
    none = np.zeros((0, 2))
    view = drawing.TopView(
        title="", facts="", units="map units", path=[np.zeros((3, 2))], lost=[], keyframes=none, landmarks=none,
        loops=np.zeros((0, 2, 2)),
    )  # fmt: skip
    assert has(drawing.draw_top_view(view), drawing.END)


def test_the_command_draws_into_the_folder_or_a_file(slam_command: Callable[..., Any], tmp_path: Path) -> None:
    folder, saved = run_folder(tmp_path / "run")
    save_map(folder / "map", saved)
    (folder / "report.json").write_text(report_text({"format": 1, "source": {"name": "room"}}))
    assert slam_command("plot", folder).code == 0
    ended = slam_command("plot", folder, "-o", tmp_path / "mine.png")
    assert (ended.code, ended.err) == (0, f"wrote {tmp_path / 'mine.png'}\n")
    assert (tmp_path / "mine.png").read_bytes() == (folder / "trajectory.png").read_bytes()
    assert "is there already" in slam_command("plot", folder, "-o", tmp_path / "mine.png").complaint
    assert "not a run folder" in slam_command("plot", tmp_path).complaint


# --- the view ------------------------------------------------------------------------------------------


def test_right_and_ahead_are_those_of_the_first_camera() -> None:
    np.testing.assert_allclose(top_view_axes(np.eye(4)[None]), [[1, 0, 0], [0, 0, 1]], atol=1e-12)


def test_up_is_that_of_the_cameras_whatever_the_world(rng: np.random.Generator) -> None:
    """Cameras that turn about the vertical, tilted a little, in a world whose up is any direction."""
    world = Rotation.random(rng=rng)
    tilted = Rotation.from_euler("YX", np.stack([np.linspace(0, 300, 40), rng.normal(0, 10, 40)], axis=1), degrees=True)
    right, ahead = top_view_axes(poses_of((world * tilted).as_matrix(), rng.normal(size=(40, 3))))
    assert np.cross(right, ahead) @ world.apply([0, -1, 0]) > 0.99
    assert abs(right @ ahead) < 1e-12


def test_of_cameras_that_look_down_and_turn_the_plane_of_the_path_is_the_ground(rng: np.random.Generator) -> None:
    """As of a drone: x right, y back, z down, turning about z; it flies in the plane of x and y."""
    turning = Rotation.from_euler("Z", np.linspace(0, 350, 36)[:, None], degrees=True).as_matrix()
    positions = np.column_stack([rng.normal(size=(36, 2)), rng.normal(0, 0.01, 36)])
    right, ahead = top_view_axes(poses_of(turning, positions))
    assert np.cross(right, ahead)[2] < -0.99


def test_far_landmarks_do_not_shrink_the_path() -> None:
    path = np.array([[0.0, 0.0], [10.0, 0.0]])
    near = np.stack([np.linspace(0, 10, 99), np.linspace(-2, 2, 99)], axis=1)
    for far in ([[1e6, 1e6]], 1e6 * near):  # one of them, half of them
        low, high = extent(path, np.vstack([near, far]))
        assert (high - low).max() < 1.1 * 10 * (1 + 2 * REACH) + 1e-6
        assert (low <= path.min(axis=0)).all()


def test_ticks_are_round() -> None:
    assert [drawing.tick_step(length) for length in (0.07, 1.0, 9.0, 700.0)] == [0.01, 0.2, 2.0, 100.0]
    np.testing.assert_allclose(drawing.ticks(-0.3, 0.31, 0.1), [-0.3, -0.2, -0.1, 0, 0.1, 0.2, 0.3], atol=1e-12)
    assert thinned(np.arange(10), 3).tolist() == [0, 4, 9]


def test_opencv_reads_back_what_is_written(tmp_path: Path) -> None:
    folder, saved = run_folder(tmp_path / "run")
    write_plot(tmp_path / "a.png", folder, saved, "room")
    assert cv2.imread(str(tmp_path / "a.png")) is not None
