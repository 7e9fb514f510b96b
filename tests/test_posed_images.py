"""Poses as 7-Scenes, TUM, COLMAP and Cambridge write them: the same camera comes out whatever the file."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import write_images
from scipy.spatial.transform import RigidTransform, Rotation

from relocalizer.camera import Camera
from relocalizer.errors import CameraError, SequenceError, TrajectoryError
from relocalizer.geometry import exp_so3, rigid, rotation_matrix, translation_of
from slam.config.schema import InputConfig
from slam.input.frame_source import Selection
from slam.input.posed_images import open_posed

POSES = [rigid(exp_so3([0.1 * k, -0.2, 0.3]), [1.0 + k, 2.0, -0.5 * k]) for k in range(4)]
CAMERA = "width: 160\nheight: 120\nfx: 130\nfy: 131\ncx: 80\ncy: 60\n"


def open_(images, poses=None, **options):
    return open_posed(images, poses, config=InputConfig(), **options)


def same(images, poses):
    assert len(images) == len(poses)
    for image, pose in zip(images, poses, strict=True):
        np.testing.assert_allclose(image.world_from_cam.as_matrix(), pose.as_matrix(), atol=1e-6)


@pytest.fixture
def images(tmp_path):
    folder = write_images(tmp_path / "images", 4)
    (folder / "camera.yaml").write_text(CAMERA)
    return folder


def xyzw(pose):
    return pose.rotation.as_quat(canonical=True)


def numbers(values):
    return " ".join(f"{v:.9f}" for v in values)


# TUM


def tum(path, poses, *, step=1.0):
    lines = [f"{step * k:.6f} {numbers(translation_of(p))} {numbers(xyzw(p))}" for k, p in enumerate(poses)]
    path.write_text("# timestamp tx ty tz qx qy qz qw\n" + "\n".join(lines) + "\n")
    return path


def timed(folder, times):
    lines = [f"{t:.6f} {k:05d}.png" for k, t in enumerate(times)]
    (folder / "rgb.txt").write_text("\n".join(lines) + "\n")


def test_a_trajectory_file_gives_each_image_the_pose_at_its_time(images, tmp_path):
    timed(images, [0.0, 0.02, 0.04, 0.06])
    source = open_(images, tum(tmp_path / "poses.txt", POSES, step=0.02))
    same(source.images, POSES)
    assert source.units == "meters"
    assert source.images[1].timestamp_ns == 20_000_000


def test_an_image_of_another_size_than_most_is_left_out_and_reported_whichever_it_is(images, tmp_path):
    cv2.imwrite(str(images / "00000.png"), np.zeros((160, 120, 3), np.uint8))
    timed(images, [0.0, 0.02, 0.04, 0.06])
    source = open_(images, tum(tmp_path / "poses.txt", POSES, step=0.02))
    same(source.images, POSES[1:])
    assert "3 images with poses; 1 of another size than 160x120, left out (00000.png: 120x160)" in source.description


def test_a_first_image_that_cannot_be_read_does_not_matter_before_it_is_wanted(images, tmp_path):
    (images / "00000.png").write_bytes(b"")
    timed(images, [0.0, 0.02, 0.04, 0.06])
    source = open_(images, tum(tmp_path / "poses.txt", POSES, step=0.02))
    assert source.images[1].read().shape == (120, 160, 3)
    with pytest.raises(SequenceError, match=r"00000\.png: an empty file"):
        source.images[0].read()


def test_between_two_poses_an_image_gets_the_one_in_between(images, tmp_path):
    timed(images, [0.01, 0.5, 0.6, 0.7])
    ends = [rigid(np.eye(3), [0.0, 0, 0]), rigid(exp_so3([0, 0.2, 0]), [1.0, 0, 0])]
    [image] = open_(images, tum(tmp_path / "poses.txt", ends, step=0.02)).images
    same([image], [rigid(exp_so3([0, 0.1, 0]), [0.5, 0, 0])])


def test_a_hole_in_the_poses_leaves_its_images_out(images, tmp_path):
    timed(images, [0.0, 0.4, 1.0, 2.0])
    source = open_(images, tum(tmp_path / "poses.txt", POSES[:2], step=1.0))
    same(source.images, POSES[:2])


def test_poses_of_another_clock_are_refused_with_what_to_look_at(images, tmp_path):
    timed(images, [100.0, 101.0, 102.0, 103.0])
    with pytest.raises(TrajectoryError, match=r"none of the poses is within 50 ms of an image.*rgb\.txt"):
        open_(images, tum(tmp_path / "poses.txt", POSES))


def test_a_folder_of_a_data_set_brings_its_own_poses(images):
    timed(images, [0.0, 1.0, 2.0, 3.0])
    tum(images / "groundtruth.txt", POSES)
    same(open_(images).images, POSES)


def test_a_folder_without_poses_asks_for_them(images):
    with pytest.raises(TrajectoryError, match="no poses in this folder; name them: a trajectory file"):
        open_(images)


def test_every_nth_image_of_a_part_can_be_taken(images):
    timed(images, [0.0, 1.0, 2.0, 3.0])
    tum(images / "groundtruth.txt", POSES)
    same(open_(images, selection=Selection(1, 2)).images, [POSES[1], POSES[3]])
    same(open_(images, selection=Selection(max_frames=2)).images, POSES[:2])


# 7-Scenes


def seven_scenes(folder, poses):
    write_images(folder, len(poses))
    for k, pose in enumerate(poses):
        (folder / f"{k:05d}.png").rename(folder / f"frame-{k:06d}.color.png")
        np.savetxt(folder / f"frame-{k:06d}.pose.txt", pose.as_matrix())
    (folder / "camera.yaml").write_text(CAMERA)


def test_a_sequence_of_7_scenes_has_a_pose_file_for_each_image(tmp_path):
    seven_scenes(tmp_path / "seq-01", POSES)
    same(open_(tmp_path / "seq-01").images, POSES)


def test_a_scene_of_7_scenes_is_all_the_sequences_it_is_trained_on(tmp_path):
    seven_scenes(tmp_path / "seq-01", POSES[:2])
    seven_scenes(tmp_path / "seq-02", POSES[2:3])
    seven_scenes(tmp_path / "seq-04", POSES[3:])
    (tmp_path / "TrainSplit.txt").write_text("sequence1\nsequence4\n")
    source = open_(tmp_path)
    same(source.images, [*POSES[:2], POSES[3]])
    times = [p.timestamp_ns for p in source.images]
    assert times == sorted(set(times))
    assert "seq-01, seq-04" in source.description


# COLMAP


def colmap(folder, poses, *, camera="1 PINHOLE 160 120 130 131 80.5 60.5", name="{:05d}.png"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cameras.txt").write_text(f"# Camera list\n{camera}\n")
    lines = ["# Image list"]
    for k, pose in enumerate(poses):
        cam_from_world = pose.inv()
        wxyz = cam_from_world.rotation.as_quat(scalar_first=True)
        lines += [f"{k + 1} {numbers(wxyz)} {numbers(translation_of(cam_from_world))} 1 {name.format(k)}", ""]
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_a_colmap_model_gives_poses_cameras_and_no_meters(images, tmp_path):
    source = open_(images, colmap(tmp_path / "model", POSES))
    same(source.images, POSES)
    assert source.units == "map units"
    camera = source.images[0].camera
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (130, 131, 80, 60)  # COLMAP's first pixel is at a half


def test_a_colmap_project_is_found_by_its_folder_too(images, tmp_path):
    colmap(tmp_path / "project" / "sparse" / "0", POSES)
    same(open_(images, tmp_path / "project").images, POSES)


@pytest.mark.parametrize(
    ("camera", "model"),
    [
        ("1 SIMPLE_PINHOLE 160 120 130 80.5 60.5", "pinhole"),
        ("1 SIMPLE_RADIAL 160 120 130 80.5 60.5 -0.01", "radtan"),
        ("1 RADIAL 160 120 130 80.5 60.5 -0.01 0.001", "radtan"),
        ("1 OPENCV 160 120 130 131 80.5 60.5 -0.01 0.001 0 0", "radtan"),
        ("1 OPENCV_FISHEYE 160 120 130 131 80.5 60.5 0.01 0.001 0 0", "fisheye"),
    ],
)
def test_images_of_every_colmap_camera_come_out_as_a_pinhole_has_them(images, tmp_path, camera, model):
    image = open_(images, colmap(tmp_path / "model", POSES, camera=camera)).images[0]
    assert image.camera.model == "pinhole"
    assert image.read().shape == (120, 160, 3)


def test_a_camera_model_that_is_not_known_is_named_with_those_that_are(images, tmp_path):
    with pytest.raises(CameraError, match=r"cameras\.txt, line 2: expected .*SIMPLE_PINHOLE"):
        open_(images, colmap(tmp_path / "model", POSES, camera="1 FOV 160 120 130 131 80 60 0.9"))


def test_images_that_a_model_names_and_nobody_has_are_refused(images, tmp_path):
    model = colmap(tmp_path / "model", POSES, name="left/{:05d}.jpg")
    with pytest.raises(SequenceError, match=r"none of the 4 images that .* names is here \(first: .*left/00000\.jpg"):
        open_(images, model)


def test_a_name_that_leads_out_of_the_folder_is_refused(images, tmp_path):
    with pytest.raises(SequenceError, match="leads out"):
        open_(images, colmap(tmp_path / "model", POSES, name="../{:05d}.png"))


def binary(model):
    """The model in text as COLMAP itself writes it in binary."""
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed")
    (model / "points3D.txt").write_text("# 3D point list\n")
    folder = model.with_name("binary")
    folder.mkdir()
    pycolmap.Reconstruction(str(model)).write_binary(str(folder))
    assert not list(folder.glob("*.txt"))
    return folder


def test_a_binary_model_gives_the_same_as_one_in_text(images, tmp_path):
    source = open_(images, binary(colmap(tmp_path / "model", POSES)))
    same(source.images, POSES)
    camera = source.images[0].camera
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (130, 131, 80, 60)


@pytest.mark.parametrize("name", ["images.bin", "cameras.bin"])
def test_a_binary_model_that_is_cut_off_anywhere_is_one_line(images, tmp_path, name):
    folder = binary(colmap(tmp_path / "model", POSES))
    data = (folder / name).read_bytes()
    for length in range(0, len(data), 7):
        (folder / name).write_bytes(data[:length])
        with pytest.raises((TrajectoryError, CameraError), match=name):
            open_(images, folder)
    (folder / name).write_bytes(data + b"x")
    with pytest.raises((TrajectoryError, CameraError), match="after its last"):
        open_(images, folder)


def test_an_empty_folder_is_no_model(images, tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(TrajectoryError, match="expected a COLMAP model"):
        open_(images, tmp_path / "model")


def test_images_of_one_camera_of_many_that_cannot_be_are_left_out_and_reported(images, tmp_path):
    model = colmap(tmp_path / "model", POSES)
    cameras, listed = model / "cameras.txt", model / "images.txt"
    cameras.write_text(cameras.read_text() + "2 PINHOLE 160 120 0.8 0.8 80 60\n")
    listed.write_text(re.sub(r" [0-9]+ 00002\.png", " 2 00002.png", listed.read_text()))
    source = open_(images, model)
    same(source.images, [POSES[0], POSES[1], POSES[3]])
    assert "3 images with poses; 1 left out" in source.description
    assert "fx 0.8 and fy 0.8 in images of 160x120" in source.description
    cameras.write_text("".join(f"{k} PINHOLE 160 120 {k / 10} 0.8 80 60\n" for k in (1, 2, 7)))
    with pytest.raises(SequenceError, match=r"none of 4 images can be used: 3 left out"):
        open_(images, model)


# Cambridge Landmarks


def cambridge(path, poses, *, header=True):
    lines = ["Visual Landmark Dataset V1", "ImageFile, Camera Position [X Y Z W P Q R]", ""] if header else []
    for k, pose in enumerate(poses):
        wxyz = pose.inv().rotation.as_quat(scalar_first=True)
        lines.append(f"{k:05d}.png {numbers(translation_of(pose))} {numbers(wxyz)}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("header", [True, False])
def test_a_cambridge_list_has_centers_and_turns_of_the_world(images, tmp_path, header):
    source = open_(
        images, cambridge(tmp_path / "dataset_train.txt", POSES, header=header), camera=images / "camera.yaml"
    )
    same(source.images, POSES)
    assert source.units == "meters"
    assert source.images[0].camera.fx == 130


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("00000.png 1 2 3 1 0 0", "line 4: expected 'name x y z qw qx qy qz', got 7 columns"),
        ("00000.png 1 2 3 2 0 0 0", "line 4: expected a unit quaternion, got length 2.000"),
        ("00000.png 1 2 three 1 0 0 0", "line 4: expected numbers"),
        ("00000.png 1 2 nan 1 0 0 0", "line 4: expected finite numbers"),
    ],
)
def test_a_broken_line_of_a_list_is_named(images, tmp_path, line, complaint):
    path = tmp_path / "dataset_train.txt"
    path.write_text(f"Visual Landmark Dataset V1\nImageFile, Camera Position [X Y Z W P Q R]\n\n{line}\n")
    with pytest.raises(TrajectoryError, match=re.escape(complaint)):
        open_(images, path)


# Anything else


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SequenceError, match="no such folder; expected one with the images"):
        open_(tmp_path / "nowhere")


def test_poses_that_are_not_there_are_named(images, tmp_path):
    with pytest.raises(TrajectoryError, match="no such file or folder; expected a trajectory"):
        open_(images, tmp_path / "nowhere.txt")


def test_images_are_read_when_asked_for_and_not_before(images, tmp_path):
    source = open_(images, colmap(tmp_path / "model", POSES))
    (images / "00003.png").unlink()
    assert source.images[2].read().shape == (120, 160, 3)
    with pytest.raises(SequenceError, match=r"00003\.png"):
        source.images[3].read()


def test_the_rotation_of_a_list_is_the_inverse_of_the_pose(images, tmp_path):
    """A camera turned left by 30 degrees: the world turns right in its eyes."""
    turned = RigidTransform.from_components([0.0, 0.0, 0.0], Rotation.from_euler("y", -30, degrees=True))
    [image] = open_(images, cambridge(tmp_path / "list.txt", [turned]), camera=images / "camera.yaml").images
    forward = rotation_matrix(image.world_from_cam)[:, 2]
    np.testing.assert_allclose(forward, [-0.5, 0.0, np.sqrt(0.75)], atol=1e-8)


def kitti(path, poses):
    rows = [" ".join(f"{value:.9f}" for value in pose.as_matrix()[:3].ravel()) for pose in poses]
    path.write_text("\n".join(rows) + "\n")


def test_poses_without_times_belong_to_the_images_in_their_order(images, tmp_path):
    """Whatever the times of the images are: none that were made up for the poses are compared with them."""
    kitti(tmp_path / "poses.kitti", POSES)
    same(open_(images, tmp_path / "poses.kitti").images, POSES)
    timed(images, [7.0, 7.1, 7.3, 7.9])
    same(open_(images, tmp_path / "poses.kitti").images, POSES)


def test_poses_without_times_of_another_number_than_the_images_are_refused(images, tmp_path):
    kitti(tmp_path / "poses.kitti", POSES[:3])
    with pytest.raises(TrajectoryError, match=r"poses\.kitti: 3 poses without times and 4 images: nothing tells"):
        open_(images, tmp_path / "poses.kitti")


def test_deep_images_of_a_map_share_one_range(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for k, gain in enumerate((1.0, 0.5)):
        ramp = (7500 + gain * np.linspace(0, 600, 64)).astype(np.uint16)
        cv2.imwrite(str(folder / f"{k}.png"), np.tile(ramp, (48, 1)))
    camera = Camera.assume(64, 48, fov_deg=60)
    (folder / "camera.yaml").write_text(camera.to_yaml())
    (tmp_path / "poses.txt").write_text("0 0 0 0 0 0 0 1\n0.033333333 1 0 0 0 0 0 1\n")
    posed = open_posed(folder, tmp_path / "poses.txt", config=InputConfig())
    bright, dark = (image.read() for image in posed.images)
    assert np.abs(bright[0, :, 0] - np.linspace(0, 255, 64)).max() < 2
    assert np.abs(dark[0, :, 0] - np.linspace(0, 127.5, 64)).max() < 2
    assert "more than 8 bits" in posed.description
