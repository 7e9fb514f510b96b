"""Every known layout, built small: recognized by its files, with the right times, camera and poses."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import slam.input.dataset_layouts
from relocalizer.camera import Camera, load_camera
from relocalizer.errors import CameraError, SequenceError, TrajectoryError, UserError
from slam.config.schema import InputConfig
from slam.evaluation.trajectory import Trajectory
from slam.evaluation.trajectory_files import read_tum
from slam.input.dataset_layouts import index_folder
from slam.input.folder_listing import is_video
from slam.input.open_source import open_source
from slam.input.sequence_index import SequenceIndex

TUM_LINES = "{0} 1 2 3 0 0 0 1\n{1} 2 2 3 0 0 0 1\n"
POSE = "1 0 0 {x}\n0 1 0 2\n0 0 1 3\n0 0 0 1\n"
CAMERA_YAML = "width: 64\nheight: 48\nfx: 50\nfy: 50\ncx: 32\ncy: 24\n"
SENSOR_YAML = """#Default imu sensor yaml file
sensor_type: camera
T_BS:
  cols: 4
  rows: 4
  data: [0.0, -1.0, 0.0, 0.5,
         1.0, 0.0, 0.0, 0.0,
         0.0, 0.0, 1.0, 0.0,
         0.0, 0.0, 0.0, 1.0]
rate_hz: 20
resolution: [64, 48]
camera_model: pinhole
intrinsics: [45.0, 46.0, 31.0, 23.0] #fu, fv, cu, cv
distortion_model: radial-tangential
distortion_coefficients: [-0.28, 0.07, 0.0002, 1.8e-05]
"""


def write_image(path: Path, width: int = 64, height: int = 48, *, shade: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((height, width, 3), shade, dtype=np.uint8))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def build_project(folder: Path) -> Path:
    for k in range(3):
        write_image(folder / "images" / f"{k}.png")
    write(folder / "rgb.txt", "# timestamp filename\n0.0 images/0.png\n0.1 images/1.png\n0.25 images/2.png\n")
    write(folder / "groundtruth.txt", "# timestamp tx ty tz qx qy qz qw\n" + TUM_LINES.format(0.0, 0.1))
    write(folder / "camera.yaml", CAMERA_YAML)
    return folder


def build_tum(folder: Path, name: str = "freiburg1") -> Path:
    for stamp in ("1305031102.175304", "1305031102.211214"):
        write_image(folder / "rgb" / f"{stamp}.png", 640, 480)
    write(
        folder / "rgb.txt",
        f"# color images\n# file: 'rgbd_dataset_{name}_xyz.bag'\n# timestamp filename\n"
        "1305031102.175304 rgb/1305031102.175304.png\n1305031102.211214 rgb/1305031102.211214.png\n",
    )
    write(folder / "groundtruth.txt", TUM_LINES.format(1305031102.1758, 1305031102.2158))
    return folder


def build_euroc(folder: Path) -> Path:
    cam0 = folder / "mav0" / "cam0"
    stamps = (1403636579763555584, 1403636579813555456)
    for stamp in stamps:
        write_image(cam0 / "data" / f"{stamp}.png")
    lines = "".join(f"{stamp},{stamp}.png\r\n" for stamp in stamps)
    write(cam0 / "data.csv", "#timestamp [ns],filename\r\n" + lines)
    write(cam0 / "sensor.yaml", SENSOR_YAML)
    # The body at (1, 2, 3), turned a quarter about z (w x y z = sqrt(1/2), 0, 0, sqrt(1/2)).
    row = ",1,2,3,0.70710678,0,0,0.70710678" + ",0" * 9
    write(
        folder / "mav0" / "state_groundtruth_estimate0" / "data.csv",
        "#timestamp, p_RS_R_x [m], ...\n" + "".join(f"{stamp}{row}\n" for stamp in stamps),
    )
    return folder


def build_kitti(root: Path, image: str = "image_2") -> Path:
    folder = root / "sequences" / "07"
    for k in range(3):
        write_image(folder / image / f"{k:06d}.png")
    write(
        folder / "calib.txt",
        "P0: 40 0 32 0 0 40 24 0 0 0 1 0\nP1: 40 0 32 -20 0 40 24 0 0 0 1 0\n"
        "P2: 40 0 32 4 0 40 24 0 0 0 1 0\nP3: 40 0 32 -16 0 40 24 0 0 0 1 0\nTr: 1 0 0 0 0 1 0 0 0 0 1 0\n",
    )
    write(folder / "times.txt", "0.000000e+00\n1.038751e-01\n2.078943e-01\n")
    write(
        root / "poses" / "07.txt",
        "1 0 0 0 0 1 0 0 0 0 1 0\n1 0 0 0 0 1 0 0 0 0 1 1\n0 0 1 5 0 1 0 0 -1 0 0 2\n",
    )
    return folder


def build_seven_scenes(folder: Path) -> Path:
    for k, text in enumerate((POSE.format(x=1), POSE.format(x=2), POSE.format(x="-inf"), POSE.format(x=4))):
        write_image(folder / f"frame-{k:06d}.color.png", 640, 480)
        write_image(folder / f"frame-{k:06d}.depth.png", 640, 480)
        write(folder / f"frame-{k:06d}.pose.txt", text)
    return folder


def build_scannet(folder: Path) -> Path:
    for k in (0, 20, 100):
        write_image(folder / "color" / f"{k}.jpg")
        write(folder / "pose" / f"{k}.txt", POSE.format(x=k))
    write(folder / "pose" / "20.txt", "-inf -inf -inf -inf\n" * 4)
    write(folder / "intrinsic" / "intrinsic_color.txt", "57.8 0 31.9 0\n0 57.9 24.1 0\n0 0 1 0\n0 0 0 1\n")
    return folder


def build_icl(folder: Path) -> Path:
    for k in (1, 2, 10):
        write_image(folder / "rgb" / f"{k}.png", 640, 480)
        write_image(folder / "depth" / f"{k}.png", 640, 480)
    write(folder / "associations.txt", "".join(f"{k} depth/{k}.png {k} rgb/{k}.png\n" for k in (1, 2, 10)))
    # Then one unit up in the renderer's axes, and turned by 90 degrees about its x axis.
    write(folder / "livingRoom0.gt.freiburg", "1 0 0 0 0 0 0 1\n2 0 1 0 0.70710678 0 0 0.70710678\n")
    return folder


def build_video(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(folder / "video.mp4"), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"mp4v"), 20.0, (64, 48))
    for k in range(5):
        writer.write(np.full((48, 64, 3), 40 * k, dtype=np.uint8))
    writer.release()
    write(folder / "camera.yaml", CAMERA_YAML)
    write(folder / "groundtruth.txt", TUM_LINES.format(0.0, 0.05))
    return folder


def build_images(folder: Path) -> Path:
    for k in (1, 2, 10):
        write_image(folder / f"shot{k}.jpg")
    return folder


BUILDERS: dict[str, Callable[[Path], Path]] = {
    "timed list": build_project,
    "TUM RGB-D": build_tum,
    "EuRoC": build_euroc,
    "KITTI odometry": build_kitti,
    "7-Scenes": build_seven_scenes,
    "ScanNet": build_scannet,
    "ICL-NUIM": build_icl,
    "video folder": build_video,
    "image folder": build_images,
}


def truth_of(index: SequenceIndex) -> Trajectory:
    assert index.ground_truth is not None
    return index.ground_truth


# All layouts


@pytest.mark.parametrize("layout", BUILDERS)
def test_a_layout_is_recognized_by_its_files_whatever_the_folder_is_called(tmp_path: Path, layout: str) -> None:
    index = index_folder(BUILDERS[layout](tmp_path / "some folder"))
    assert index.layout == layout
    assert index.description.startswith(f"{layout} layout: ")


@pytest.mark.parametrize("layout", BUILDERS)
def test_every_image_of_a_layout_becomes_a_frame(tmp_path: Path, layout: str) -> None:
    source = open_source(str(BUILDERS[layout](tmp_path / "folder")), config=InputConfig())
    frames = list(source)
    assert len(frames) == source.length
    assert len(frames) == {"7-Scenes": 4, "TUM RGB-D": 2, "EuRoC": 2, "video folder": 5}.get(layout, 3)
    assert source.skipped == []
    assert (source.ground_truth is not None) == (layout != "image folder")


@pytest.mark.parametrize("layout", BUILDERS)
def test_a_camera_file_in_the_folder_counts_before_the_published_calibration(tmp_path: Path, layout: str) -> None:
    folder = BUILDERS[layout](tmp_path / "folder")
    write(folder / "camera.yaml", CAMERA_YAML.replace("fx: 50", "fx: 51.5"))
    index = index_folder(folder)
    assert index.camera == load_camera(folder / "camera.yaml")
    assert index.camera_source == str(folder / "camera.yaml")


def test_the_name_of_the_current_folder_is_its_real_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(build_images(tmp_path / "holiday"))
    assert index_folder(Path(".")).name == "holiday"


# One by one


def test_the_project_layout_gives_paths_times_and_ground_truth(tmp_path: Path) -> None:
    index = index_folder(build_project(tmp_path))
    assert index.timestamps_ns.tolist() == [0, 100_000_000, 250_000_000]
    assert [path.name for path in index.image_paths] == ["0.png", "1.png", "2.png"]
    assert truth_of(index).positions.tolist() == [[1, 2, 3], [2, 2, 3]]
    assert index.description == "timed list layout: 3 images, ground truth found (2 poses)"


def test_a_listed_name_may_hold_spaces_and_the_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    write_image(tmp_path / "my shots" / "a 1.png")
    (tmp_path / "rgb.txt").write_bytes(b"\xef\xbb\xbf0.5 my shots/a 1.png\r\n")
    index = index_folder(tmp_path)
    assert index.image_paths == (tmp_path / "my shots" / "a 1.png",)
    assert index.timestamps_ns.tolist() == [500_000_000]


def test_tum_takes_the_published_calibration_that_the_list_names(tmp_path: Path) -> None:
    index = index_folder(build_tum(tmp_path / "desk", "freiburg1"))
    assert index.camera is not None
    assert (index.camera.fx, index.camera.model, len(index.camera.distortion)) == (517.3, "radtan", 5)
    assert "published calibration of freiburg1" in index.description
    assert index.timestamps_ns.tolist() == [1305031102175304000, 1305031102211214000]


def test_tum_takes_the_calibration_that_the_folder_names_when_the_list_does_not(tmp_path: Path) -> None:
    folder = build_tum(tmp_path / "rgbd_dataset_freiburg3_teddy", "unknown")
    camera = index_folder(folder).camera
    assert camera is not None
    assert (camera.fx, camera.fy, camera.model) == (535.4, 539.2, "pinhole")


def test_tum_without_a_known_name_has_no_camera(tmp_path: Path) -> None:
    index = index_folder(build_tum(tmp_path / "desk", "unknown"))
    assert index.camera is None
    source = open_source(str(tmp_path / "desk"), config=InputConfig())
    assert "no camera given" in source.description


def test_euroc_moves_the_body_pose_to_the_camera(tmp_path: Path) -> None:
    index = index_folder(build_euroc(tmp_path))
    # The camera is half a unit along the body's x, which the body's quarter turn makes the world's y.
    assert np.allclose(truth_of(index).positions, [[1, 2.5, 3], [1, 2.5, 3]])
    # A quarter turn of the body after a quarter turn of the camera: half a turn about z.
    assert np.allclose(truth_of(index).world_from_cam[0, :3, :3], np.diag([-1.0, -1.0, 1.0]), atol=1e-7)
    assert index.timestamps_ns.tolist() == [1403636579763555584, 1403636579813555456]
    assert index.camera is not None
    assert (index.camera.fx, index.camera.cy, index.camera.model) == (45.0, 23.0, "radtan")


def test_euroc_may_be_given_by_its_mav0_folder(tmp_path: Path) -> None:
    folder = build_euroc(tmp_path / "V1_01_easy")
    assert index_folder(folder / "mav0").name == "V1_01_easy"


def test_euroc_with_an_equidistant_lens_is_a_fisheye(tmp_path: Path) -> None:
    folder = build_euroc(tmp_path)
    write(folder / "mav0" / "cam0" / "sensor.yaml", SENSOR_YAML.replace("radial-tangential", "equidistant"))
    camera = index_folder(folder).camera
    assert camera is not None
    assert camera.model == "fisheye"


def test_euroc_without_its_sensor_file_has_no_ground_truth_of_the_camera(tmp_path: Path) -> None:
    folder = build_euroc(tmp_path)
    (folder / "mav0" / "cam0" / "sensor.yaml").unlink()
    index = index_folder(folder)
    assert index.ground_truth is None
    assert "no cam0/sensor.yaml and no dso/camchain.yaml" in index.description
    assert "the pose of the camera in the body is unknown" in index.description


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("radial-tangential", "double-sphere", "lens model 'double-sphere' is not supported"),
        ("resolution: [64, 48]\n", "", "no calibration of a known format"),
        ("intrinsics: [45.0, 46.0, 31.0, 23.0]", "intrinsics: [45.0]", r"intrinsics: expected \[fx, fy, cx, cy\]"),
        ("0.0, 0.0, 0.0, 1.0]", "1.0]", "T_BS: expected 4x4 numbers"),
    ],
)
def test_a_broken_euroc_sensor_file_is_explained(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    folder = build_euroc(tmp_path)
    assert old in SENSOR_YAML
    write(folder / "mav0" / "cam0" / "sensor.yaml", SENSOR_YAML.replace(old, new))
    with pytest.raises(CameraError, match=sentence):
        index_folder(folder)


def test_kitti_moves_camera_0_poses_to_the_color_camera(tmp_path: Path) -> None:
    index = index_folder(build_kitti(tmp_path))
    # P2's fourth column over the focal length, 4 / 40: camera 2 is 0.1 to the left of camera 0.
    assert np.allclose(truth_of(index).positions, [[-0.1, 0, 0], [-0.1, 0, 1], [5, 0, 2.1]])
    assert index.timestamps_ns.tolist() == [0, 103_875_100, 207_894_300]
    assert index.camera is not None
    assert (index.camera.width, index.camera.height, index.camera.fx) == (64, 48, 40.0)


def test_kitti_gray_has_the_poses_as_they_stand(tmp_path: Path) -> None:
    index = index_folder(build_kitti(tmp_path, "image_0"))
    assert np.allclose(truth_of(index).positions, [[0, 0, 0], [0, 0, 1], [5, 0, 2]])
    assert "image_0" in index.description


def test_kitti_images_may_be_a_part_of_the_sequence(tmp_path: Path) -> None:
    folder = build_kitti(tmp_path)
    (folder / "image_2" / "000000.png").unlink()
    index = index_folder(folder)
    assert index.timestamps_ns.tolist() == [103_875_100, 207_894_300]
    assert len(truth_of(index)) == 3


def test_kitti_without_times_assumes_ten_a_second_and_says_so(tmp_path: Path) -> None:
    folder = build_kitti(tmp_path)
    (folder / "times.txt").unlink()
    index = index_folder(folder)
    assert index.timestamps_ns.tolist() == [0, 100_000_000, 200_000_000]
    assert "no times.txt, so 10 images a second assumed" in index.description


def test_kitti_with_fewer_times_than_images_is_refused(tmp_path: Path) -> None:
    folder = build_kitti(tmp_path)
    write(folder / "times.txt", "0\n0.1\n")
    with pytest.raises(SequenceError, match="2 times, but there is an image numbered 2"):
        index_folder(folder)


def test_kitti_with_fewer_poses_than_times_is_refused(tmp_path: Path) -> None:
    folder = build_kitti(tmp_path)
    write(folder / "poses.txt", "1 0 0 0 0 1 0 0 0 0 1 0\n")
    with pytest.raises(TrajectoryError, match="1 poses, but 3 timestamps"):
        index_folder(folder)


def test_kitti_without_the_camera_in_its_calibration_is_refused(tmp_path: Path) -> None:
    folder = build_kitti(tmp_path)
    write(folder / "calib.txt", "P0: 40 0 32 0 0 40 24 0 0 0 1 0\n")
    with pytest.raises(CameraError, match="no line P2:"):
        index_folder(folder)
    write(folder / "calib.txt", "P2: 40 0 32\n")
    with pytest.raises(CameraError, match="expected 12 numbers after P2:"):
        index_folder(folder)
    for wrong in ("nan", "inf", "0"):  # not finite, or without an inverse
        write(folder / "calib.txt", f"P2: {wrong} 0 32 0 0 40 24 0 0 0 1 0\n")
        with pytest.raises(CameraError, match=r"calib.txt, line 1: expected .* after P2:"):
            index_folder(folder)


def test_seven_scenes_drops_poses_with_infinity_and_takes_no_depth_for_images(tmp_path: Path) -> None:
    index = index_folder(build_seven_scenes(tmp_path / "heads" / "seq-01"))
    assert index.name == "heads-seq-01"
    assert len(index.image_paths) == 4
    assert truth_of(index).positions[:, 0].tolist() == [1, 2, 4]
    assert truth_of(index).timestamps_ns.tolist() == [0, 33_333_333, 100_000_000]
    assert index.camera is not None
    assert (index.camera.fx, index.camera.cx, index.camera.cy) == (525.0, 320.0, 240.0)


def test_seven_scenes_says_that_its_calibration_is_a_published_default(tmp_path: Path) -> None:
    source = open_source(str(build_seven_scenes(tmp_path)), config=InputConfig())
    assert "7-Scenes' published default (focal 525, center 320, 240)" in source.description


def test_a_pose_file_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = build_seven_scenes(tmp_path)
    write(folder / "frame-000001.pose.txt", "1 0 0 0\n0 1 0 0\n0 0 1 0\n")
    with pytest.raises(SequenceError, match=r"frame-000001\.pose\.txt: expected a 4x4 pose, got 3x4"):
        index_folder(folder)
    write(folder / "frame-000001.pose.txt", "1 0 0 0\n0 1 0\n")
    with pytest.raises(SequenceError, match="its lines differ in length"):
        index_folder(folder)
    write(folder / "frame-000001.pose.txt", "a b c d\n")
    with pytest.raises(SequenceError, match="expected a matrix of numbers"):
        index_folder(folder)


def test_scannet_takes_times_from_frame_numbers_and_drops_poses_with_infinity(tmp_path: Path) -> None:
    index = index_folder(build_scannet(tmp_path))
    assert [path.name for path in index.image_paths] == ["0.jpg", "20.jpg", "100.jpg"]
    assert index.timestamps_ns.tolist() == [0, 666_666_667, 3_333_333_333]
    assert truth_of(index).positions[:, 0].tolist() == [0, 100]
    assert index.camera is not None
    assert (index.camera.width, index.camera.height, index.camera.fx) == (64, 48, 57.8)


def test_scannet_intrinsics_that_are_not_of_these_images_are_refused(tmp_path: Path) -> None:
    folder = build_scannet(tmp_path)
    write(folder / "intrinsic" / "intrinsic_color.txt", "1170 0 648 0\n0 1170 484 0\n0 0 1 0\n0 0 0 1\n")
    with pytest.raises(CameraError, match=r"its center \(648\.0, 484\.0\) is not that of 0\.jpg, 64x48"):
        index_folder(folder)


def test_icl_nuim_is_turned_from_y_up_to_y_down(tmp_path: Path) -> None:
    index = index_folder(build_icl(tmp_path))
    assert index.timestamps_ns.tolist() == [33_333_333, 66_666_667, 333_333_333]
    assert truth_of(index).timestamps_ns.tolist() == [33_333_333, 66_666_667]
    assert np.allclose(truth_of(index).positions, [[0, 0, 0], [0, -1, 0]])
    # Forward was (0, -1, 0) with y up, straight down; with y down that is (0, 1, 0).
    assert np.allclose(truth_of(index).world_from_cam[1, :3, 2], [0, 1, 0], atol=1e-7)
    assert index.camera is not None
    assert (index.camera.fx, index.camera.fy) == (481.2, 480.0)


def test_icl_nuim_is_recognized_by_numbered_associations_too(tmp_path: Path) -> None:
    folder = build_icl(tmp_path)
    (folder / "livingRoom0.gt.freiburg").unlink()
    index = index_folder(folder)
    assert (index.layout, index.ground_truth) == ("ICL-NUIM", None)


def test_timed_associations_do_not_make_a_folder_icl_nuim(tmp_path: Path) -> None:
    folder = build_icl(tmp_path)
    (folder / "livingRoom0.gt.freiburg").unlink()
    write(folder / "associations.txt", "1305031102.17 rgb/1.png 1305031102.16 depth/1.png\n")
    with pytest.raises(SequenceError, match=r"in 2 folders in it \(depth, rgb\)"):
        index_folder(folder)


def test_a_video_folder_names_its_video(tmp_path: Path) -> None:
    index = index_folder(build_video(tmp_path / "room_loop"))
    assert index.video == tmp_path / "room_loop" / "video.mp4"
    assert index.name == "room_loop"
    assert len(truth_of(index)) == 2


def test_two_videos_in_a_folder_are_one_too_many(tmp_path: Path) -> None:
    folder = build_video(tmp_path)
    (folder / "again.mp4").write_bytes((folder / "video.mp4").read_bytes())
    with pytest.raises(SequenceError, match=r"2 videos \(again\.mp4, video\.mp4\); pass the one to use"):
        index_folder(folder)


def test_images_are_taken_in_natural_order_at_a_stated_rate(tmp_path: Path) -> None:
    folder = build_images(tmp_path)
    write_image(folder / ".hidden.jpg")
    index = index_folder(folder)
    assert [path.name for path in index.image_paths] == ["shot1.jpg", "shot2.jpg", "shot10.jpg"]
    assert index.timestamps_ns.tolist() == [0, 33_333_333, 66_666_667]
    assert "no times, so 30 images a second assumed" in index.description


def test_images_in_the_only_subfolder_that_has_any_are_found(tmp_path: Path) -> None:
    build_images(tmp_path / "images")
    (tmp_path / "notes").mkdir()
    assert "in images/" in index_folder(tmp_path).description


def test_ground_truth_of_another_time_is_not_used_and_that_is_said(tmp_path: Path) -> None:
    folder = build_project(tmp_path)
    write(folder / "groundtruth.txt", TUM_LINES.format(1305031102, 1305031103))
    index = index_folder(folder)
    assert index.ground_truth is None
    assert "groundtruth.txt shares no time with the images, so it is not used" in index.description


def test_ground_truth_without_times_is_not_used_and_that_is_said(tmp_path: Path) -> None:
    folder = build_project(tmp_path)
    write(folder / "groundtruth.txt", f"# times are not known: pose k stands at k / 10 s\n{TUM_LINES.format(0, 1)}")
    index = index_folder(folder)
    assert index.ground_truth is None
    assert "groundtruth.txt has no times, so it is not used" in index.description


# What a user can fix


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(SequenceError, match="nowhere: no such file or folder"):
        index_folder(tmp_path / "nowhere")


def test_an_empty_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(SequenceError, match="the folder is empty"):
        index_folder(tmp_path)


def test_a_folder_without_images_says_what_was_seen(tmp_path: Path) -> None:
    for name in ("a.doc", "b.DOC", "notes.txt"):
        write(tmp_path / name, "?")
    (tmp_path / "more").mkdir()
    with pytest.raises(SequenceError, match=r"no images or video found .*saw 2 \.doc, 1 \.txt, 1 folders"):
        index_folder(tmp_path)


def test_a_folder_of_sequences_names_them(tmp_path: Path) -> None:
    for name in ("seq-01", "seq-02"):
        build_images(tmp_path / name)
    with pytest.raises(SequenceError, match=r"in 2 folders in it \(seq-01, seq-02\); pass one of them"):
        index_folder(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0)
    try:
        with pytest.raises(SequenceError, match="Permission denied"):
            index_folder(tmp_path)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("0.2 a.png\n0.1 b.png\n", r"rgb\.txt, line 2: timestamps must increase, but 0\.1 comes after 0\.2"),
        ("0.1 a.png\n# again\n0.10 b.png\n", r"rgb\.txt, line 3: timestamps must increase, but 0\.10 is there twice"),
        ("now a.png\n", r"rgb\.txt, line 1: expected a time in seconds, got 'now'"),
        ("nan a.png\n", r"rgb\.txt, line 1: expected a time in seconds, got 'nan'"),
        ("1403636579763555584 a.png\n", r"is it in nanoseconds\?"),
        ("0.1\n", r"rgb\.txt, line 1: expected 'timestamp filename', got '0\.1'"),
        ("# nothing\n", r"rgb\.txt: holds no lines but comments"),
        ("0.1 ../secret.png\n", r"line 1: \.\./secret\.png leads out of the sequence's folder"),
        ("0.1 images/../../secret.png\n", "leads out of the sequence's folder"),
        ("0.1 /etc/secret.png\n", "leads out of the sequence's folder"),
    ],
)
def test_a_broken_list_is_one_line_with_file_and_row(tmp_path: Path, lines: str, sentence: str) -> None:
    write(tmp_path / "rgb.txt", lines)
    with pytest.raises(SequenceError, match=sentence) as caught:
        index_folder(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_list_that_is_no_text_is_said(tmp_path: Path) -> None:
    (tmp_path / "rgb.txt").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(SequenceError, match=r"rgb\.txt: not a text file"):
        index_folder(tmp_path)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("1403636579763555584,a.png\n1403636579763555583,b.png\n", "comes after 1403636579763555584"),
        ("1403636579.7,a.png\n", r"expected a time in integer nanoseconds, got '1403636579\.7'"),
        ("1403636579763555584,../../a.png\n", "leads out of the sequence's folder"),
    ],
)
def test_a_broken_euroc_table_is_explained(tmp_path: Path, lines: str, sentence: str) -> None:
    folder = build_euroc(tmp_path)
    write(folder / "mav0" / "cam0" / "data.csv", lines)
    with pytest.raises(SequenceError, match=sentence):
        index_folder(folder)


def test_missing_images_are_counted(tmp_path: Path) -> None:
    folder = build_project(tmp_path)
    (folder / "images" / "1.png").unlink()
    assert "3 images, 1 of them missing" in index_folder(folder).description


def test_a_list_of_which_every_image_is_missing_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "rgb.txt", "0.1 images/a.png\n0.2 images/b.png\n")
    with pytest.raises(SequenceError, match=r"none of the 2 images it lists is there \(first: .*a\.png\)"):
        index_folder(tmp_path)


def test_two_images_of_one_frame_number_are_refused(tmp_path: Path) -> None:
    folder = build_scannet(tmp_path)
    write_image(folder / "color" / "020.jpg")
    with pytest.raises(SequenceError, match="frame 20 follows frame 20"):
        index_folder(folder)


@pytest.mark.parametrize("name", ["cover.jpg", "20240101123000.jpg"])
def test_an_image_without_a_usable_frame_number_is_refused(tmp_path: Path, name: str) -> None:
    folder = build_scannet(tmp_path)
    write_image(folder / "color" / name)
    with pytest.raises(SequenceError, match="expected a frame number in the image's name"):
        index_folder(folder)


def test_a_broken_ground_truth_is_an_error_and_not_ignored(tmp_path: Path) -> None:
    folder = build_project(tmp_path)
    write(folder / "groundtruth.txt", "0.0 1 2 3\n")
    with pytest.raises(TrajectoryError, match=r"groundtruth\.txt, line 1: expected 8 columns"):
        index_folder(folder)


def test_a_broken_camera_file_is_an_error_and_not_ignored(tmp_path: Path) -> None:
    folder = build_project(tmp_path)
    write(folder / "camera.yaml", "fx: 500\n")
    with pytest.raises(UserError, match="missing width, height"):
        index_folder(folder)


def test_videos_are_recognized_by_their_first_bytes(tmp_path: Path) -> None:
    video = build_video(tmp_path) / "video.mp4"
    with_current_ids = tmp_path / "clip.dat"
    with_current_ids.write_bytes(video.read_bytes())
    assert is_video(with_current_ids)
    for name, data in {"a.mp4": b"hello world, hello", "b.mp4": b"", "c.mp4": b"#EXTM3U\n#EXTINF"}.items():
        (tmp_path / name).write_bytes(data)
        assert not is_video(tmp_path / name)
    assert not is_video(tmp_path)


def test_an_index_whose_times_do_not_fit_its_images_cannot_be_made(tmp_path: Path) -> None:
    index = index_folder(build_images(tmp_path))
    with pytest.raises(ValueError, match=r"\(2,\) timestamps for 3 images"):
        replace(index, timestamps_ns=np.array([0, 1]))
    with pytest.raises(ValueError, match="must increase"):
        replace(index, timestamps_ns=np.array([0, 1, 1]))


# The recipe in the documentation


def test_the_documented_recipe_for_a_new_data_set_works(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "datasets.md").read_text(encoding="utf-8")
    (recipe,) = [block for block in text.split("```python\n")[1:] if block.startswith("def ")]
    names: dict[str, Any] = {**vars(slam.input.dataset_layouts), "Camera": Camera, "Rotation": Rotation}
    exec("from __future__ import annotations\n" + recipe.partition("```")[0], names)
    for k in range(2):
        write_image(tmp_path / "image_left" / f"{k:06d}_left.png", 640, 480)
    write(tmp_path / "pose_left.txt", "1 2 3 0 0 0 1\n2 2 3 0 0 0 1\n")
    index = names["tartanair"](tmp_path)
    # Not turned at all, their camera looks along the world's x: one step forward is one step along its z.
    assert truth_of(index).world_from_cam[0, :3, 2].tolist() == [1, 0, 0]
    assert truth_of(index).world_from_cam[0, :3, 0].tolist() == [0, 1, 0]
    assert truth_of(index).positions.tolist() == [[1, 2, 3], [2, 2, 3]]


# Real sequences

REAL = os.environ.get("SLAM_SEQUENCES", "")


@pytest.mark.skipif(not REAL, reason="SLAM_SEQUENCES does not name a folder of real sequences")
def test_every_real_sequence_opens_decodes_and_finds_its_ground_truth() -> None:
    folders = [path for path in sorted(Path(REAL).iterdir()) if (path / "rgb.txt").is_file()]
    assert folders
    for folder in folders:
        source = open_source(str(folder), config=InputConfig())
        listed = [line for line in (folder / "rgb.txt").read_text().splitlines() if line[:1] not in ("", "#")]
        frames = 0
        for frame in source:
            frames += 1
            assert frame.image.shape == (source.camera.height, source.camera.width, 3)
        assert (folder.name, frames, source.skipped) == (folder.name, len(listed), [])
        truth = folder / "groundtruth.txt"
        assert (source.ground_truth is not None) == truth.is_file()
        if source.ground_truth is not None:
            assert len(source.ground_truth) == len(read_tum(truth))


CAMCHAIN = """cam0:
  T_cam_imu:
  - [0.0, 1.0, 0.0, 0.0]
  - [-1.0, 0.0, 0.0, 0.5]
  - [0.0, 0.0, 1.0, 0.0]
  - [0.0, 0.0, 0.0, 1.0]
  camera_model: pinhole
  distortion_coeffs: [0.0034, 0.0007, -0.0021, 0.0002]
  distortion_model: equidistant
  intrinsics: [21.0, 21.0, 31.0, 23.0]
  resolution: [64, 48]
"""


def test_tum_vi_takes_its_camera_chain_and_its_motion_capture(tmp_path: Path) -> None:
    folder = build_euroc(tmp_path)
    (folder / "mav0" / "cam0" / "sensor.yaml").unlink()
    (folder / "mav0" / "state_groundtruth_estimate0").rename(folder / "mav0" / "mocap0")
    write(folder / "dso" / "camchain.yaml", CAMCHAIN)
    index = index_folder(folder)
    assert index.camera is not None
    assert (index.camera.model, index.camera.fx) == ("fisheye", 21.0)
    # The inverse of T_cam_imu puts the camera half a unit along the body's x, which is the world's y.
    assert np.allclose(truth_of(index).positions, [[1, 2.5, 3], [1, 2.5, 3]])
    assert np.allclose(truth_of(index).world_from_cam[0, :3, :3], np.diag([-1.0, -1.0, 1.0]), atol=1e-7)


def test_euroc_images_without_a_list_have_the_times_in_their_names(tmp_path: Path) -> None:
    folder = build_euroc(tmp_path)
    (folder / "mav0" / "cam0" / "data.csv").unlink()
    index = index_folder(folder)
    assert (index.layout, index.timestamps_ns.tolist()) == ("EuRoC", [1403636579763555584, 1403636579813555456])
    assert "times from the names of the images (nanoseconds)" in index.description
    assert index.ground_truth is not None


@pytest.mark.parametrize(
    ("names", "times_ns", "unit"),
    [
        (["1403636579.75", "1403636579.8", "1403636579.7"], [700_000_000, 750_000_000, 800_000_000], "seconds"),
        (["12.5", "9.25", "101.0"], [9_250_000_000, 12_500_000_000, 101_000_000_000], "seconds"),
        (["1403636579763555584", "1403636579713555584"], [713555584, 763555584], "nanoseconds"),
        (["left_1403636579763555", "left_1403636579713555"], [713_555_000, 763_555_000], "microseconds"),
        (["1403636579763-raw", "1403636579713-raw"], [713_000_000, 763_000_000], "milliseconds"),
        (["1403636580", "1403636579"], [0, 1_000_000_000], "seconds"),
        (["1403636579_763555584", "1403636579_013555584"], [13555584, 763555584], "seconds and nanoseconds"),
    ],
)
def test_names_that_are_all_times_are_sorted_as_numbers_and_give_the_times(
    tmp_path: Path, names: list[str], times_ns: list[int], unit: str
) -> None:
    for name in names:
        write_image(tmp_path / f"{name}.png")
    index = index_folder(tmp_path)
    found = index.timestamps_ns - (1403636579_000000000 if "1403636579" in "".join(names) else 0)
    assert found.tolist() == times_ns
    assert [path.stem for path in index.image_paths] != names
    assert f"times from the names of the images ({unit})" in index.description


@pytest.mark.parametrize(
    "names",
    [
        ["1", "2", "10"],
        ["0000000001", "0000000002", "0000000010"],  # KITTI's raw data
        ["frame1.5", "frame1.6", "frame1.7"],
        ["1.0001", "1.0002", "1.0010"],  # numbered images of take 1
        ["1.1", "1.2", "1.10"],
        ["1403636579.7", "1403636579.8", "last"],
        ["20261130120000", "20261130120001", "20261130120002"],
    ],
)
def test_names_that_are_numbers_but_not_times_are_in_natural_order(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        write_image(tmp_path / f"{name}.png")
    index = index_folder(tmp_path)
    assert [path.stem for path in index.image_paths] == names
    assert "no times, so 30 images a second assumed" in index.description
