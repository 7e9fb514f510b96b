import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from relocalizer.errors import OutputError, TrajectoryError
from relocalizer.geometry import Similarity
from slam.evaluation.trajectory import Trajectory, frames_missing, nanoseconds_from_seconds, seconds_from_nanoseconds
from slam.evaluation.trajectory_files import (
    read_euroc,
    read_kitti,
    read_note,
    read_trajectory,
    read_trajectory_file,
    read_tum,
    write_euroc,
    write_kitti,
    write_trajectory,
    write_tum,
)

QUARTER_TURN_ABOUT_Z = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
TUM_GOOD = "1.0 1 2 3 0 0 0 1\n2.0 1 2 4 0 0 0 1\n"
EUROC_GOOD = "1000000000,1,2,3,1,0,0,0\n2000000000,1,2,4,1,0,0,0\n"
KITTI_GOOD = "1 0 0 1 0 1 0 2 0 0 1 3\n1 0 0 1 0 1 0 2 0 0 1 4\n"
READERS = {"tum": read_tum, "euroc": read_euroc, "kitti": read_kitti}
GOOD = {"tum": TUM_GOOD, "euroc": EUROC_GOOD, "kitti": KITTI_GOOD}


def written(tmp_path: Path, text: str, name: str = "poses.txt") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def wandering(count: int = 50, seed: int = 0, step_ns: int = 33_333_333) -> Trajectory:
    rng = np.random.default_rng(seed)
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, :3] = Rotation.random(count, rng=rng).as_matrix()
    poses[:, :3, 3] = rng.normal(size=(count, 3)).cumsum(axis=0)
    return Trajectory(1_403_636_579_763_555_584 + step_ns * np.arange(count), poses)


def test_a_tum_line_is_seconds_position_and_quaternion_x_y_z_w(tmp_path: Path) -> None:
    half = np.sqrt(0.5)
    path = written(tmp_path, f"# a comment\n\n12.5 1 2 3 0 0 {half} {half}  # another\n")
    trajectory = read_tum(path)
    assert trajectory.timestamps_ns.tolist() == [12_500_000_000]
    np.testing.assert_allclose(trajectory.positions, [[1, 2, 3]])
    np.testing.assert_allclose(trajectory.world_from_cam[0, :3, :3], QUARTER_TURN_ABOUT_Z, atol=1e-12)


def test_a_euroc_line_is_nanoseconds_position_and_quaternion_w_x_y_z(tmp_path: Path) -> None:
    half = np.sqrt(0.5)
    path = written(tmp_path, f"#timestamp [ns],p\n1403636579763555584,1,2,3,{half},0,0,{half}\n")
    trajectory = read_euroc(path)
    assert trajectory.timestamps_ns.tolist() == [1_403_636_579_763_555_584]
    np.testing.assert_allclose(trajectory.positions, [[1, 2, 3]])
    np.testing.assert_allclose(trajectory.world_from_cam[0, :3, :3], QUARTER_TURN_ABOUT_Z, atol=1e-12)


def test_the_velocity_and_bias_columns_of_euroc_are_not_used(tmp_path: Path) -> None:
    path = written(tmp_path, "1000,1,2,3,1,0,0,0,9,9,9,9,9,9,9,9,9\n")
    np.testing.assert_allclose(read_euroc(path).positions, [[1, 2, 3]])


def test_a_kitti_line_is_the_three_rows_of_the_pose(tmp_path: Path) -> None:
    trajectory = read_kitti(written(tmp_path, "0 -1 0 5 1 0 0 6 0 0 1 7\n"))
    np.testing.assert_allclose(trajectory.positions, [[5, 6, 7]])
    np.testing.assert_allclose(trajectory.world_from_cam[0, :3, :3], QUARTER_TURN_ABOUT_Z, atol=1e-12)


def test_a_kitti_file_without_times_runs_at_ten_hertz(tmp_path: Path) -> None:
    assert read_kitti(written(tmp_path, KITTI_GOOD)).timestamps_ns.tolist() == [0, 100_000_000]


def test_a_kitti_file_takes_the_times_it_is_given(tmp_path: Path) -> None:
    assert read_kitti(written(tmp_path, KITTI_GOOD), [5, 9]).timestamps_ns.tolist() == [5, 9]


def test_a_kitti_rotation_with_few_digits_becomes_a_rotation(tmp_path: Path) -> None:
    path = written(tmp_path, "0.99 0.141 0 0 -0.141 0.99 0 0 0 0 1 0\n")
    rotation = read_kitti(path).world_from_cam[0, :3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)


def test_a_quaternion_with_few_digits_becomes_a_rotation(tmp_path: Path) -> None:
    rotation = read_tum(written(tmp_path, "0 0 0 0 0.7 0 0 0.7\n")).world_from_cam[0, :3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)


@pytest.mark.parametrize("format", ["tum", "euroc"])
def test_nanoseconds_of_nineteen_digits_survive_a_round_trip(tmp_path: Path, format: str) -> None:
    stamps = [1_403_636_579_763_555_583, 1_403_636_579_763_555_584, 1_403_636_579_763_555_585]
    path = tmp_path / "poses"
    write_trajectory(path, Trajectory(np.array(stamps), np.tile(np.eye(4), (3, 1, 1))), format)  # type: ignore[arg-type]
    assert READERS[format](path).timestamps_ns.tolist() == stamps


@pytest.mark.parametrize("format", ["tum", "euroc", "kitti"])
def test_poses_survive_a_round_trip_to_the_written_digits(tmp_path: Path, format: str) -> None:
    trajectory = wandering()
    path = tmp_path / "poses"
    write_trajectory(path, trajectory, format)  # type: ignore[arg-type]
    back = read_trajectory(path)
    np.testing.assert_allclose(back.positions, trajectory.positions, atol=6e-10)
    np.testing.assert_allclose(back.world_from_cam, trajectory.world_from_cam, atol=6e-9)


@pytest.mark.parametrize("format", ["tum", "euroc"])
def test_writing_what_was_read_gives_the_same_bytes(tmp_path: Path, format: str) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write_trajectory(first, wandering(), format)  # type: ignore[arg-type]
    write_trajectory(second, read_trajectory(first), format)  # type: ignore[arg-type]
    assert first.read_bytes() == second.read_bytes()


def test_the_bytes_of_a_tum_file_are_these(tmp_path: Path) -> None:
    path = tmp_path / "poses.txt"
    pose = np.eye(4)
    pose[:3, 3] = [-1e-12, 2.5, -3.0]
    write_tum(path, Trajectory(np.array([1_500_000_001]), pose[None]))
    assert path.read_bytes() == (
        b"# timestamp tx ty tz qx qy qz qw\n"
        b"1.500000001 0.000000000 2.500000000 -3.000000000 0.000000000 0.000000000 0.000000000 1.000000000\n"
    )


def test_the_bytes_of_a_euroc_line_are_these(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    pose = np.eye(4)
    pose[:3, :3] = np.diag([1.0, -1.0, -1.0])
    write_euroc(path, Trajectory(np.array([42]), pose[None]))
    last = path.read_text().splitlines()[-1]
    assert last == ("42,0.000000000,0.000000000,0.000000000,0.000000000,1.000000000,0.000000000,0.000000000")


def test_the_bytes_of_a_kitti_line_are_these(tmp_path: Path) -> None:
    path = tmp_path / "poses.kitti"
    pose = np.eye(4)
    pose[:3, 3] = [1, 2, 3]
    write_kitti(path, Trajectory(np.array([42]), pose[None]))
    o, i = "0.000000000", "1.000000000"
    assert path.read_text() == f"{i} {o} {o} {i} {o} {i} {o} 2.000000000 {o} {o} {i} 3.000000000\n"


@given(st.integers(min_value=-(2**62), max_value=2**62))
@settings(max_examples=200, deadline=None)
def test_every_nanosecond_has_its_own_decimal_seconds(timestamp_ns: int) -> None:
    assert nanoseconds_from_seconds(seconds_from_nanoseconds(timestamp_ns)) == timestamp_ns


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("1403636579.763555584", 1_403_636_579_763_555_584),
        ("1.403636579763555584e+09", 1_403_636_579_763_555_584),
        ("0", 0),
        ("-0.000000001", -1),
        ("0.0333333333333", 33_333_333),
    ],
)
def test_seconds_are_parsed_from_their_digits(text: str, nanoseconds: int) -> None:
    assert nanoseconds_from_seconds(text) == nanoseconds


@pytest.mark.parametrize("text", ["nan", "inf", "1e999999", "abc", ""])
def test_what_is_no_time_in_seconds_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a time in seconds"):
        nanoseconds_from_seconds(text)


@pytest.mark.parametrize(
    ("text", "format"),
    [
        (TUM_GOOD, "tum"),
        (KITTI_GOOD, "kitti"),
        (EUROC_GOOD, "euroc"),
        ("# 1,2,3\n" + TUM_GOOD, "tum"),
        ("\ufeff" + TUM_GOOD, "tum"),
        ("1000, 1, 2, 3, 1, 0, 0, 0\n", "euroc"),
        (TUM_GOOD.replace("\n", "\r\n"), "tum"),
    ],
)
def test_the_format_is_recognized_from_the_first_line(tmp_path: Path, text: str, format: str) -> None:
    path = written(tmp_path, text)
    np.testing.assert_array_equal(read_trajectory(path).world_from_cam, READERS[format](path).world_from_cam)


def test_the_format_that_is_asked_for_wins(tmp_path: Path) -> None:
    with pytest.raises(TrajectoryError, match="expected 12 columns"):
        read_trajectory(written(tmp_path, TUM_GOOD), "kitti")


@pytest.mark.parametrize(
    ("name", "begins"), [("a.csv", "#timestamp [ns]"), ("a.txt", "# timestamp"), ("a.kitti", "1.0000")]
)
def test_the_suffix_decides_what_is_written(tmp_path: Path, name: str, begins: str) -> None:
    write_trajectory(tmp_path / name, Trajectory(np.array([0]), np.eye(4)[None]))
    assert (tmp_path / name).read_text().startswith(begins)


def test_a_suffix_that_means_no_format_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrajectoryError, match=r"a\.json: the suffix '\.json' names no trajectory format"):
        write_trajectory(tmp_path / "a.json", wandering())


@pytest.mark.parametrize(
    ("format", "line", "sentence"),
    [
        ("tum", "3.0 1 2 3 0 0 0", r"line 3: expected 8 columns \(timestamp tx .*\), got 7"),
        ("tum", "3.0 nan 2 3 0 0 0 1", "line 3: holds NaN or infinity"),
        ("tum", "3.0 1 inf 3 0 0 0 1", "line 3: holds NaN or infinity"),
        ("tum", "3.0 1 2 x 0 0 0 1", "line 3: expected numbers .*'x'"),
        ("tum", "3.0 1 2 3 0 0 0 0", "line 3: expected a unit quaternion, got one of length 0"),
        ("tum", "3.0 1 2 3 1 1 1 1", "line 3: expected a unit quaternion, got one of length 2"),
        ("tum", "nan 1 2 3 0 0 0 1", "line 3: expected a time in seconds, got 'nan'"),
        (
            "tum",
            "2.0 1 2 3 0 0 0 1",
            "line 3: timestamps must increase, but 2.000000000 s follows 2.000000000",
        ),
        ("tum", "1.5 1 2 3 0 0 0 1", "line 3: timestamps must increase"),
        (
            "tum",
            "1403636579763555584 1 2 3 0 0 0 1",
            r"line 3: expected a time in seconds.*is it in nanoseconds",
        ),
        ("euroc", "3000000000,1,2,3,1,0,0", "line 3: expected 8 or 17 columns .*, got 7"),
        ("euroc", "3000000000,1,2,nan,1,0,0,0", "line 3: holds NaN or infinity"),
        ("euroc", "3000000000,1,2,,1,0,0,0", "line 3: expected numbers"),
        ("euroc", "3000000000,1,2,3,0,0,0,0", "line 3: expected a unit quaternion"),
        ("euroc", "3.5,1,2,3,1,0,0,0", "line 3: expected a time in integer nanoseconds, got '3.5'"),
        ("euroc", "99999999999999999999,1,2,3,1,0,0,0", "line 3: .* more than 64 bits"),
        ("euroc", "2000000000,1,2,3,1,0,0,0", "line 3: timestamps must increase"),
        ("kitti", "1 0 0 1 0 1 0 2 0 0 1", "line 3: expected 12 columns .*, got 11"),
        ("kitti", "1 0 0 1 0 1 0 nan 0 0 1 3", "line 3: holds NaN or infinity"),
        ("kitti", "1 0 0 1 0 2 0 2 0 0 1 3", "line 3: expected a rotation .*, off by 3"),
        ("kitti", "1 0 0 1 0 1 0 2 0 0 -1 3", "line 3: expected a rotation"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, format: str, line: str, sentence: str) -> None:
    path = written(tmp_path, GOOD[format] + line + "\n")
    with pytest.raises(TrajectoryError, match=r"poses\.txt, " + sentence):
        READERS[format](path)


@pytest.mark.parametrize("format", ["tum", "euroc", "kitti"])
@pytest.mark.parametrize("text", ["", "# only a comment\n\n"])
def test_a_file_without_poses_is_an_error(tmp_path: Path, format: str, text: str) -> None:
    path = written(tmp_path, text)
    for read in (READERS[format], read_trajectory):
        with pytest.raises(TrajectoryError, match=r"poses\.txt: holds no poses"):
            read(path)


def test_a_file_of_an_unknown_format_says_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(TrajectoryError, match=r"line 1: no known trajectory format: 3 columns \(TUM has 8"):
        read_trajectory(written(tmp_path, "1 2 3\n"))


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrajectoryError, match="no such trajectory file"):
        read_trajectory(tmp_path / "none.txt")


def test_a_folder_is_not_a_trajectory(tmp_path: Path) -> None:
    with pytest.raises(TrajectoryError, match="a folder; expected a trajectory file, such as one in it"):
        read_trajectory(tmp_path)


def test_an_image_is_not_a_trajectory(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xff")
    with pytest.raises(TrajectoryError, match="not a text file"):
        read_trajectory(path)


def test_as_many_kitti_times_as_poses_are_expected(tmp_path: Path) -> None:
    with pytest.raises(TrajectoryError, match="2 poses, but 3 timestamps were given"):
        read_kitti(written(tmp_path, KITTI_GOOD), [1, 2, 3])


def test_kitti_times_must_increase(tmp_path: Path) -> None:
    with pytest.raises(TrajectoryError, match="do not increase"):
        read_kitti(written(tmp_path, KITTI_GOOD), [2, 2])


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_tum(tmp_path / "no_such_folder" / "poses.txt", wandering())


def test_a_trajectory_moved_by_a_similarity_stretches_and_turns() -> None:
    pose = np.eye(4)
    pose[:3, 3] = [1, 0, 0]
    moved = Trajectory(np.array([0]), pose[None]).transformed(
        Similarity(QUARTER_TURN_ABOUT_Z, np.array([0.0, 0.0, 5.0]), 2.0)
    )
    np.testing.assert_allclose(moved.positions, [[0, 2, 5]], atol=1e-12)
    np.testing.assert_allclose(moved.world_from_cam[0, :3, :3], QUARTER_TURN_ABOUT_Z, atol=1e-12)


def test_length_and_duration_of_a_square_walk() -> None:
    poses = np.tile(np.eye(4), (4, 1, 1))
    poses[:, :3, 3] = [[0, 0, 0], [2, 0, 0], [2, 2, 0], [0, 2, 0]]
    trajectory = Trajectory(np.array([0, 1, 2, 3]) * 500_000_000, poses)
    assert (trajectory.length, trajectory.duration_s) == pytest.approx((6.0, 1.5))
    assert str(trajectory) == "4 poses, 6.000 units long, 1.5 s"


def test_a_trajectory_cannot_be_written_into() -> None:
    with pytest.raises(ValueError, match="read-only"):
        wandering().world_from_cam[0, 0, 0] = 5.0


@pytest.mark.skipif("SLAM_SEQUENCES" not in os.environ, reason="SLAM_SEQUENCES names no folder of sequences")
def test_real_trajectories_keep_their_stamps_through_tum(tmp_path: Path) -> None:
    paths = sorted(Path(os.environ["SLAM_SEQUENCES"]).glob("trajectories/*.txt"))[::10]
    assert paths
    for path in paths:
        trajectory = read_trajectory(path)
        write_tum(tmp_path / "a.txt", trajectory)
        np.testing.assert_array_equal(read_tum(tmp_path / "a.txt").timestamps_ns, trajectory.timestamps_ns)


def test_a_note_stands_under_the_header_and_is_read_back(tmp_path):
    path = tmp_path / "path.txt"
    poses = np.tile(np.eye(4), (2, 1, 1))
    write_tum(path, Trajectory(np.array([0, 10]), poses), note="lengths in meters: given by hand")
    assert path.read_text().splitlines()[:2] == [
        "# timestamp tx ty tz qx qy qz qw",
        "# lengths in meters: given by hand",
    ]
    assert read_note(path) == "lengths in meters: given by hand"
    assert len(read_tum(path)) == 2


@pytest.mark.parametrize(
    "text",
    ["", "0 0 0 0 0 0 0 1\n", "# timestamp tx ty tz qx qy qz qw\n0 0 0 0 0 0 0 1\n", "# made by hand\n# today\n"],
)
def test_files_without_a_note_have_none(tmp_path, text):
    (tmp_path / "path.txt").write_text(text)
    assert read_note(tmp_path / "path.txt") == ""
    assert read_note(tmp_path / "nowhere.txt") == ""


# --- headers that name the columns --------------------------------------------------------------------

# One pose, a quarter turn about z, with its columns in many orders.
HALF_TURN = repr(float(np.sqrt(0.5)))
NAMED = {
    "EuRoC's own header": "#timestamp [ns],p_RS_R_x [m],p_RS_R_y [m],p_RS_R_z [m],"
    f"q_RS_w [],q_RS_x [],q_RS_y [],q_RS_z []\n12500000000,1,2,3,{HALF_TURN},0,0,{HALF_TURN}\n",
    "EuRoC's columns with blanks, as DROID-SLAM ships them": "#timestamp [ns] p_RS_R_x [m] p_RS_R_y [m] p_RS_R_z [m] "
    f"q_RS_w [] q_RS_x [] q_RS_y [] q_RS_z []\n12500000000.0000000000 1 2 3 {HALF_TURN} 0 0 {HALF_TURN}\n",
    "TUM with w first": f"# timestamp tx ty tz qw qx qy qz\n12.5 1 2 3 {HALF_TURN} 0 0 {HALF_TURN}\n",
    "commas and w last": "#timestamp [ns],p_x [m],p_y [m],p_z [m],q_x [],q_y [],q_z [],q_w []\n"
    f"12500000000,1,2,3,0,0,{HALF_TURN},{HALF_TURN}\n",
    "commas and seconds": f"timestamp[s],tx,ty,tz,qx,qy,qz,qw\n12.5,1,2,3,0,0,{HALF_TURN},{HALF_TURN}\n",
    "commas, no unit, fractions": f"# time, x, y, z, qx, qy, qz, qw\n12.5, 1, 2, 3, 0, 0, {HALF_TURN}, {HALF_TURN}\n",
    "semicolons": f"timestamp;tx;ty;tz;qw;qx;qy;qz\n12.5;1;2;3;{HALF_TURN};0;0;{HALF_TURN}\n",
    "quaternion before position": f"# timestamp qx qy qz qw tx ty tz\n12.5 0 0 {HALF_TURN} {HALF_TURN} 1 2 3\n",
    "more columns than a pose needs": "# timestamp(s) tx ty tz qx qy qz qw Pr11 Pr12\n"
    f"12.5 1 2 3 0 0 {HALF_TURN} {HALF_TURN} 9 9\n",
    "columns before the time": "seq,field.header.stamp,field.pose.position.x,field.pose.position.y,"
    "field.pose.position.z,field.pose.orientation.x,field.pose.orientation.y,field.pose.orientation.z,"
    f"field.pose.orientation.w\n7,12500000000,1,2,3,0,0,{HALF_TURN},{HALF_TURN}\n",
    "milliseconds": f"# timestamp[ms] tx ty tz qx qy qz qw\n12500 1 2 3 0 0 {HALF_TURN} {HALF_TURN}\n",
    "microseconds": f"# time_us tx ty tz qx qy qz qw\n12500000 1 2 3 0 0 {HALF_TURN} {HALF_TURN}\n",
    "words after the names": "# timestamp tx ty tz qw qx qy qz   (camera-to-world: x right, y down, z forward)\n"
    f"12.5 1 2 3 {HALF_TURN} 0 0 {HALF_TURN}\n",
    "a word before the names": f"# columns: timestamp tx ty tz qw qx qy qz\n12.5 1 2 3 {HALF_TURN} 0 0 {HALF_TURN}\n",
    "a mark at the start, CRLF and a comment above": "\ufeff# ground truth\r\n# time tx ty tz qw qx qy qz\r\n"
    f"12.5 1 2 3 {HALF_TURN} 0 0 {HALF_TURN}\r\n",
    "scientific notation": f"#timestamp [ns],px,py,pz,qw,qx,qy,qz\n1.25e10,1e0,2e0,3,{HALF_TURN},0,0,{HALF_TURN}\n",
    "times of fractions under a header that says nanoseconds": "# timestamp[ns] tx ty tz qw qx qy qz\n"
    f"12.500000000 1 2 3 {HALF_TURN} 0 0 {HALF_TURN}\n12.533333333 1 2 3 {HALF_TURN} 0 0 {HALF_TURN}\n",
}  # fmt: skip


@pytest.mark.parametrize("text", NAMED.values(), ids=NAMED)
def test_a_header_that_names_the_columns_decides_their_order_and_the_unit_of_time(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    trajectory = read_trajectory(path)
    assert trajectory.timestamps_ns[0] == 12_500_000_000
    np.testing.assert_allclose(trajectory.positions[0], [1, 2, 3])
    np.testing.assert_allclose(trajectory.world_from_cam[0, :3, :3], QUARTER_TURN_ABOUT_Z, atol=1e-12)
    assert read_trajectory_file(path).assumed_order == ""


@pytest.mark.parametrize("format", ["tum", "euroc"])
def test_a_header_decides_for_whoever_names_the_format_too(tmp_path: Path, format: str) -> None:
    text = NAMED["TUM with w first"] if format == "tum" else NAMED["commas and w last"]
    trajectory = READERS[format](written(tmp_path, text))
    np.testing.assert_allclose(trajectory.world_from_cam[0, :3, :3], QUARTER_TURN_ABOUT_Z, atol=1e-12)


@pytest.mark.parametrize(
    "header",
    ["", "# made by hand\n", "# the camera moves along x, y and z\n", "# tx ty tz\n", "#timestamp x y z i j k w\n"],
)
def test_a_header_that_does_not_name_them_all_decides_nothing(tmp_path: Path, header: str) -> None:
    path = written(tmp_path, header + TUM_GOOD)
    np.testing.assert_allclose(read_trajectory(path).world_from_cam[0, :3, :3], np.eye(3))
    assert read_trajectory_file(path).assumed_order == "x y z w"


def test_what_a_header_says_wrongly_of_the_time_is_said(tmp_path: Path) -> None:
    path = written(tmp_path, NAMED["times of fractions under a header that says nanoseconds"])
    assert read_trajectory_file(path).remarks == (
        "its header says nanoseconds, but its times have fractions, so they are read as seconds",
    )


def test_nanoseconds_where_seconds_belong_are_read_aloud_when_all_of_them_are(tmp_path: Path) -> None:
    path = written(tmp_path, "1403636579763555584 1 2 3 0 0 0 1\n1403636579813555456 1 2 4 0 0 0 1\n")
    assert read_trajectory(path).timestamps_ns.tolist() == [1_403_636_579_763_555_584, 1_403_636_579_813_555_456]
    assert read_trajectory_file(path).remarks == ("its times are too large for seconds and are read as nanoseconds",)


def test_a_time_in_some_other_unit_is_refused_with_what_to_write(tmp_path: Path) -> None:
    path = written(tmp_path, "1403636579763 1 2 3 0 0 0 1\n1403636579813 1 2 4 0 0 0 1\n")
    with pytest.raises(TrajectoryError, match=r"line 1: .*name the unit in a header: # timestamp\[ms\] tx ty tz qx"):
        read_trajectory(path)


def test_commas_with_fractions_of_seconds_and_no_header_are_refused_with_what_to_write(tmp_path: Path) -> None:
    path = written(tmp_path, "1.5,1,2,3,0,0,0,1\n2.5,1,2,4,0,0,0,1\n")
    with pytest.raises(TrajectoryError, match=r"integer nanoseconds, got '1\.5'.*# timestamp\[s\],tx,ty,tz,qx,qy"):
        read_trajectory(path)


def test_a_line_that_is_shorter_than_the_header_says_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, NAMED["more columns than a pose needs"] + "13.5 1 2 3 0 0 0 1 9\n")
    with pytest.raises(TrajectoryError, match="line 3: expected 10 columns, as in line 2, got 9"):
        read_trajectory(path)


@pytest.mark.parametrize(("columns", "count"), [("0 0 0 0 0 0 1", 7), ("0 0 0 0 0 0 0 1 5", 9)])
def test_columns_that_nothing_names_are_refused_with_what_to_write(tmp_path: Path, columns: str, count: int) -> None:
    with pytest.raises(TrajectoryError, match=rf"{count} columns.*a header line may name them: # timestamp tx ty tz"):
        read_trajectory(written(tmp_path, f"{columns}\n"))


def test_a_whole_matrix_a_line_is_read_as_kitti(tmp_path: Path) -> None:
    trajectory = read_trajectory(written(tmp_path, "0 -1 0 5 1 0 0 6 0 0 1 7 0 0 0 1\n"))
    np.testing.assert_allclose(trajectory.positions, [[5, 6, 7]])
    assert not trajectory.has_times


def test_a_matrix_with_another_last_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrajectoryError, match="line 1: expected 0 0 0 1 in columns 13-16"):
        read_trajectory(written(tmp_path, "0 -1 0 0 1 0 0 0 0 0 1 0 5 6 7 1\n"))


def test_a_mirrored_rotation_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(TrajectoryError, match=r"line 1: .*a mirrored one \(determinant -1\).*left-handed"):
        read_trajectory(written(tmp_path, "1 0 0 1 0 1 0 2 0 0 -1 3\n"))


def test_a_position_beyond_all_measure_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrajectoryError, match=r"line 1: 1e\+?308 is no position"):
        read_trajectory(written(tmp_path, "0 1e308 2 3 0 0 0 1\n"))
    with pytest.raises(TrajectoryError, match=r"line 1: -1e\+?13 is no position"):
        read_trajectory(written(tmp_path, "1 0 0 0 0 1 0 -1e13 0 0 1 0\n"))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_file_that_windows_wrote_in_sixteen_bits_is_read(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "poses.txt"
    mark = "" if encoding == "utf-16" else "\ufeff"  # PowerShell's redirection writes one, and so does utf-16
    path.write_bytes((mark + TUM_GOOD.replace("\n", "\r\n")).encode(encoding))
    assert read_trajectory(path).timestamps_ns.tolist() == [1_000_000_000, 2_000_000_000]


def test_a_compressed_file_is_to_be_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "poses.txt.gz"
    path.write_bytes(gzip.compress(TUM_GOOD.encode()))
    with pytest.raises(TrajectoryError, match="compressed; unpack it first"):
        read_trajectory(path)


# --- poses without times ------------------------------------------------------------------------------


def test_a_kitti_file_has_no_times_until_they_are_given(tmp_path: Path) -> None:
    path = written(tmp_path, KITTI_GOOD)
    assert not read_kitti(path).has_times
    assert not read_trajectory(path).has_times
    assert read_kitti(path, [5, 9]).has_times
    assert read_trajectory(written(tmp_path, TUM_GOOD)).has_times


def test_moved_poses_have_no_times_either(tmp_path: Path) -> None:
    untimed = read_kitti(written(tmp_path, KITTI_GOOD))
    assert not untimed.transformed(Similarity.identity()).has_times
    assert str(untimed) == "2 poses, 1.000 units long, without times"


@pytest.mark.parametrize("format", ["tum", "euroc"])
def test_times_that_were_made_up_are_not_taken_for_real_when_they_are_read_back(tmp_path: Path, format: str) -> None:
    untimed, path = read_kitti(written(tmp_path, KITTI_GOOD)), tmp_path / "again"
    write_trajectory(path, untimed, format, note="lengths in meters: as given")  # type: ignore[arg-type]
    assert not read_trajectory(path).has_times
    assert READERS[format](path).timestamps_ns.tolist() == [0, 100_000_000]
    if format == "tum":
        assert read_note(path) == "lengths in meters: as given"
        write_tum(path, untimed)
        assert read_note(path) == ""


def test_frames_without_a_pose_are_seen_in_the_steps_of_time() -> None:
    steps = np.full(40, 33_333_333)
    steps[[5, 20, 21]] = 33_333_333 * np.array([2, 8, 3])
    assert frames_missing(np.cumsum(steps)) == 1 + 7 + 2
    assert frames_missing(np.arange(10)) == 0
    assert frames_missing(np.array([4])) == 0


def test_a_phone_that_takes_images_unevenly_misses_none() -> None:
    steps = 33_000_000 * np.random.default_rng(0).uniform(0.8, 1.2, 500)
    assert frames_missing(np.cumsum(steps).astype(np.int64)) == 0


def test_half_of_the_frames_may_be_gone() -> None:
    kept = np.sort(np.random.default_rng(1).choice(1000, 550, replace=False))
    missing = kept[-1] - kept[0] + 1 - len(kept)
    assert frames_missing(kept * 100_000_000) == missing
