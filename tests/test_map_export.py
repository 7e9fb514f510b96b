"""A map in the formats of other programs, read back by others where they are there."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from map_samples import CAMERA, small_map
from scipy.spatial.transform import Rotation

from relocalizer.errors import MapError, OutputError
from relocalizer.maps.map_export import export_map, frame_numbers, mean_errors_px
from relocalizer.maps.map_writer import save_map
from relocalizer.maps.reference_map import FrameTable, Session
from slam.evaluation.trajectory_files import read_trajectory


def with_segments(segments):
    m = small_map()
    return replace(m, keyframes=replace(m.keyframes, segment=np.array(segments)))


# --- COLMAP -------------------------------------------------------------------------------------------


@pytest.fixture(params=["txt", "bin"])
def model(request, tmp_path):
    """The exported model, read by COLMAP from its text files or from its binary ones."""
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed")
    export_map(small_map(), "colmap", tmp_path / "model")
    folder = tmp_path / request.param
    folder.mkdir()
    for name in ("cameras", "images", "points3D"):
        shutil.copy(tmp_path / "model" / "sparse" / "0" / f"{name}.{request.param}", folder)
    return pycolmap.Reconstruction(str(folder))


def test_the_folder_is_laid_out_as_splatting_programs_expect_it(tmp_path):
    export_map(small_map(), "colmap", tmp_path / "model")
    files = sorted(path.relative_to(tmp_path / "model").as_posix() for path in (tmp_path / "model").rglob("*.*"))
    model = [f"sparse/0/{name}.{form}" for name in ("cameras", "images", "points3D") for form in ("bin", "txt")]
    images = [f"images/{k:06d}.jpg" for k in small_map().keyframes.ids]
    assert files == sorted([*images, *model])


def test_pycolmap_reads_every_image_point_and_observation(model):
    m = small_map()
    assert (model.num_reg_images(), model.num_points3D()) == (len(m.keyframes), len(m.landmarks))
    assert model.compute_num_observations() == len(m.observations.landmark)


def test_pycolmap_sees_the_poses_that_the_map_holds(model):
    m = small_map()
    for row in range(len(m.keyframes)):
        image = model.image(row + 1)
        assert image.name == f"{m.keyframes.ids[row]:06d}.jpg"
        cam_from_world = image.cam_from_world()
        assert np.allclose(cam_from_world.rotation.matrix().T, m.keyframes.rotations[row], atol=1e-12)
        assert np.allclose(image.projection_center(), m.keyframes.translations[row], atol=1e-12)


def test_pycolmap_projects_the_points_to_where_they_were_seen(model):
    """Only when camera, pose, half a pixel and tracks all agree."""
    model.update_point_3d_errors()
    assert model.compute_mean_reprojection_error() < 1e-3  # pixels are written with six digits


def test_pycolmap_sees_the_intrinsics_from_the_corner_of_the_image(model):
    [camera] = model.cameras.values()
    assert camera.model_name == "PINHOLE"
    assert np.allclose(camera.params, [CAMERA.fx, CAMERA.fy, CAMERA.cx + 0.5, CAMERA.cy + 0.5])


def test_colors_and_images_go_along(model, tmp_path):
    m = small_map()
    assert np.array_equal(model.point3D(3).color, m.landmarks.colors[2])
    assert cv2.imread(str(tmp_path / "model" / "images" / "000006.jpg")).shape == (48, 64, 3)


def test_an_observation_of_a_track_without_a_place_belongs_to_no_point(tmp_path):
    m = small_map()
    kept = slice(0, 11)
    landmarks = replace(
        m.landmarks,
        **{
            name: getattr(m.landmarks, name)[kept]
            for name in ("ids", "anchor", "points_in_anchor", "inverse_depth_sigma", "descriptors", "colors")
        },
    )
    export_map(replace(m, landmarks=landmarks), "colmap", tmp_path / "model")
    lines = (tmp_path / "model" / "sparse" / "0" / "images.txt").read_text().splitlines()
    assert lines[2].endswith(" -1")


# --- nerfstudio ---------------------------------------------------------------------------------------


def test_nerfstudio_poses_project_the_points_to_where_they_were_seen(tmp_path):
    """By nerfstudio's own rule: y up, looking along -z, pixels counted from the corner."""
    m = small_map()
    export_map(m, "nerfstudio", tmp_path / "scene")
    transforms = json.loads((tmp_path / "scene" / "transforms.json").read_text())
    for row, frame in enumerate(transforms["frames"]):
        in_cam = (m.points_world - np.array(frame["transform_matrix"])[:3, 3]) @ np.array(frame["transform_matrix"])[
            :3, :3
        ]
        x = frame["cx"] + frame["fl_x"] * in_cam[:, 0] / -in_cam[:, 2]
        y = frame["cy"] - frame["fl_y"] * in_cam[:, 1] / -in_cam[:, 2]
        seen = m.observations.pixels[m.observations.offsets[row] : m.observations.offsets[row + 1]] + 0.5
        assert np.abs(np.stack([x, y], axis=1) - seen).max() < 1e-3
        assert (tmp_path / "scene" / frame["file_path"]).is_file()


# --- points -------------------------------------------------------------------------------------------


def test_the_points_of_a_ply_file_are_those_of_the_map(tmp_path):
    m = small_map()
    export_map(m, "ply", tmp_path / "points.ply")
    head, _, body = (tmp_path / "points.ply").read_bytes().partition(b"end_header\n")
    assert b"element vertex 12\n" in head
    vertices = np.frombuffer(body, dtype=[("xyz", "<f4", 3), ("rgb", "u1", 3)])
    assert np.allclose(vertices["xyz"], m.points_world, atol=1e-6)
    assert np.array_equal(vertices["rgb"], m.landmarks.colors)


# --- trajectories -------------------------------------------------------------------------------------


def true_poses(m):
    rows = np.repeat(np.arange(len(m.keyframes)), 2)  # two frames hang off each keyframe, at its place
    return m.keyframes.rotations[rows], m.keyframes.translations[rows]


@pytest.mark.parametrize("form", ["tum", "kitti"])
def test_trajectories_hold_every_frame(tmp_path, form):
    m = small_map()
    export_map(m, form, tmp_path / f"poses.{form}")
    read = read_trajectory(tmp_path / f"poses.{form}", form)
    rotations, translations = true_poses(m)
    assert np.allclose(read.positions, translations, atol=1e-8)
    turned = Rotation.from_matrix(read.world_from_cam[:, :3, :3]) * Rotation.from_matrix(rotations).inv()
    assert turned.magnitude().max() < 1e-7
    if form == "tum":
        assert np.array_equal(read.timestamps_ns, m.frames.timestamps_ns)


def test_frames_move_with_the_unit_of_their_keyframe(tmp_path):
    m = small_map()
    frames = replace(m.frames, translations=np.tile([0.0, 0.0, 1.0], (8, 1)))
    stretched = replace(m, keyframes=replace(m.keyframes, scales=np.full(4, 2.5)), frames=frames)
    [path] = export_map(stretched, "tum", tmp_path / "poses.txt")
    rotations, translations = true_poses(m)
    assert np.allclose(read_trajectory(path).positions, translations + 2.5 * rotations[:, :, 2], atol=1e-8)


def test_a_second_session_whose_clock_begins_again_gets_a_file_of_its_own(tmp_path):
    m = small_map()
    times = np.array([0, 10, 5, 15]) * 10**9
    frame_times = np.array([0, 1, 10, 11, 5, 6, 15, 16]) * 10**9
    m = replace(
        m,
        keyframes=replace(m.keyframes, timestamps_ns=times),
        frames=replace(m.frames, timestamps_ns=frame_times),
        sessions=(Session(0, 0), Session(6, 4)),
    )
    files = export_map(m, "tum", tmp_path / "poses.txt")
    assert [path.name for path in files] == ["poses.txt", "poses_2.txt"]
    assert [len(read_trajectory(path)) for path in files] == [4, 4]


def test_a_frame_belongs_to_its_own_session_where_it_hangs_off_a_keyframe_of_an_earlier_one(tmp_path):
    m = small_map()
    files = export_map(replace(m, sessions=(Session(0, 0), Session(6, 2))), "tum", tmp_path / "poses.txt")
    assert [len(read_trajectory(path)) for path in files] == [2, 6]


@pytest.mark.parametrize("frames", [True, False])
def test_a_keyframe_that_was_recognized_late_begins_no_session_and_stands_in_its_time(tmp_path, frames):
    """When a run ends, a frame becomes a keyframe after those that came later."""
    m = small_map()
    late = np.array([10, 20, 0, 30]) * 10**9
    frame_times = np.array([10, 11, 20, 21, 0, 1, 30, 31]) * 10**9
    in_time = np.argsort(frame_times)  # the order that frames are kept in
    table = replace(m.frames, timestamps_ns=frame_times[in_time], keyframe=m.frames.keyframe[in_time])
    m = replace(m, keyframes=replace(m.keyframes, timestamps_ns=late), frames=table if frames else FrameTable.none())
    [path] = export_map(m, "tum", tmp_path / "poses.txt")
    read = read_trajectory(path)
    assert read.timestamps_ns.tolist() == sorted((frame_times if frames else late).tolist())
    assert np.allclose(read.positions[0], m.keyframes.translations[2])


def test_the_frames_that_the_lines_of_a_trajectory_are_can_be_listed():
    m = small_map()
    assert [numbers.tolist() for numbers in frame_numbers(m)] == [list(range(8))]
    several = replace(m, sessions=(Session(0, 0), Session(6, 2)))
    assert [numbers.tolist() for numbers in frame_numbers(several)] == [[0, 1], [2, 3, 4, 5, 6, 7]]
    assert [numbers.tolist() for numbers in frame_numbers(replace(m, frames=FrameTable.none()))] == [[0, 10, 20, 30]]


def test_an_export_without_times_says_when_its_lines_are_no_frames(tmp_path, slam_command):
    m = small_map()
    numbers = np.array([0, 1, 2, 5, 6, 7, 8, 11])
    save_map(tmp_path / "lost", replace(m, frames=replace(m.frames, indices=numbers)))
    save_map(tmp_path / "whole", m)
    for form, name, said in (("kitti", "lost", True), ("tum", "lost", False), ("kitti", "whole", False)):
        out = tmp_path / f"{name}.{form}"
        ended = slam_command("map", "export", tmp_path / name, "--format", form, "-o", out)
        assert ended.code == 0
        sentence = f"{out}: its 8 lines are 8 of the frames 0 to 11, so a line is no longer a frame"
        assert (sentence in ended.err) is said


def test_a_map_without_frames_gives_its_keyframes(tmp_path):
    m = small_map()
    [path] = export_map(replace(m, frames=FrameTable.none()), "tum", tmp_path / "poses.txt")
    read = read_trajectory(path)
    assert np.array_equal(read.timestamps_ns, m.keyframes.timestamps_ns)
    assert np.allclose(read.positions, m.keyframes.translations, atol=1e-8)


# --- segments and refusals ----------------------------------------------------------------------------


def test_the_largest_segment_is_exported(tmp_path):
    export_map(with_segments([0, 2, 2, 2]), "nerfstudio", tmp_path / "scene")
    frames = json.loads((tmp_path / "scene" / "transforms.json").read_text())["frames"]
    assert [frame["file_path"] for frame in frames] == ["images/000003.jpg", "images/000006.jpg", "images/000009.jpg"]


def test_a_segment_that_is_not_there_is_named(tmp_path):
    with pytest.raises(MapError, match="no segment 5; it has 0, 2"):
        export_map(with_segments([0, 2, 2, 2]), "ply", tmp_path / "points.ply", segment=5)


@pytest.mark.parametrize("form", ["colmap", "nerfstudio", "ply", "tum", "kitti"])
def test_nothing_is_overwritten(tmp_path, form):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="is there already; choose another name or remove it"):
        export_map(small_map(), form, tmp_path / "out")
    assert list(Path(tmp_path / "out").iterdir()) == []


def test_errors_of_landmarks_are_how_far_their_observations_are_off():
    m = small_map()
    pixels = m.observations.pixels.copy()
    pixels[m.observations.landmark == 4] += np.array([3.0, 4.0], np.float32)
    errors = mean_errors_px(replace(m, observations=replace(m.observations, pixels=pixels)))
    assert np.allclose(errors, np.where(np.arange(12) == 4, 5.0, 0.0), atol=1e-4)
