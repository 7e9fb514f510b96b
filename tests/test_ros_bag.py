"""ROS bags: ROS 1 and ROS 2 (sqlite3, MCAP), their images, cameras and poses."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from relocalizer.camera import Camera
from relocalizer.errors import SequenceError
from slam.config.loading import load_config
from slam.config.schema import InputConfig
from slam.input.frame_source import FrameSource, RereadableSource
from slam.input.open_source import open_source
from slam.input.ros_bag import is_bag
from slam.run.record_run import record_run

pytest.importorskip("rosbags")

from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import StoragePlugin
from rosbags.rosbag2 import Writer as Writer2
from rosbags.typesys import Stores, get_typestore

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("bag", "sqlite3", "mcap")
START_NS = 1_403_636_579_763_555_584
TOPIC = "/camera/image_raw"
CAMERA = Camera(width=64, height=48, fx=50.0, fy=51.0, cx=30.0, cy=25.0, model="radtan", distortion=(0.1, 0, 0, 0, 0))


class Bag:
    """Writes a bag of one of the kinds."""

    def __init__(self, path: Path, kind: str) -> None:
        self.is_ros1 = kind == "bag"
        self.path = path.with_suffix(".bag") if self.is_ros1 else path
        self.types = get_typestore(Stores.ROS1_NOETIC if self.is_ros1 else Stores.ROS2_HUMBLE)
        plugin = StoragePlugin.MCAP if kind == "mcap" else StoragePlugin.SQLITE3
        self.writer: Any = Writer1(self.path) if self.is_ros1 else Writer2(self.path, version=9, storage_plugin=plugin)
        self.connections: dict[str, Any] = {}

    def __enter__(self) -> Bag:
        self.writer.open()
        return self

    def __exit__(self, *error: object) -> None:
        self.writer.close()

    def message(self, name: str, **values: Any) -> Any:
        return self.types.types[name](**values)

    def header(self, time_ns: int) -> Any:
        parts = {"sec": time_ns // 10**9, "nanosec": time_ns % 10**9}
        stamp = self.message("builtin_interfaces/msg/Time", **parts)
        seq = {"seq": 0} if self.is_ros1 else {}
        return self.message("std_msgs/msg/Header", stamp=stamp, frame_id="camera", **seq)

    def write(self, topic: str, message: Any, time_ns: int) -> None:
        kind = message.__msgtype__
        if topic not in self.connections:
            self.connections[topic] = self.writer.add_connection(topic, kind, typestore=self.types)
        make = self.types.serialize_ros1 if self.is_ros1 else self.types.serialize_cdr
        self.writer.write(self.connections[topic], time_ns, make(message, kind))

    def image(
        self,
        values: NDArray[Any],
        encoding: str,
        time_ns: int,
        *,
        topic: str = TOPIC,
        padding: int = 0,
        stamp: bool = True,
    ) -> None:
        rows = values.reshape(values.shape[0], -1).view(np.uint8)
        data = np.pad(rows, ((0, 0), (0, padding)))
        message = self.message(
            "sensor_msgs/msg/Image", header=self.header(time_ns if stamp else 0), height=values.shape[0],
            width=values.shape[1], encoding=encoding, is_bigendian=0, step=data.shape[1], data=data.ravel(),
        )  # fmt: skip
        self.write(topic, message, time_ns + 1_000_000)  # recorded a millisecond later

    def compressed(self, image: NDArray[np.uint8], time_ns: int, *, topic: str = f"{TOPIC}/compressed") -> None:
        data = cv2.imencode(".png", image)[1].ravel()
        message = self.message(
            "sensor_msgs/msg/CompressedImage",
            header=self.header(time_ns),
            format="bgr8; png compressed bgr8",
            data=data,
        )
        self.write(topic, message, time_ns)

    def camera(self, camera: Camera, time_ns: int, *, topic: str = "/camera/camera_info", **changes: Any) -> None:
        f = camera
        roi = self.message(
            "sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
        )
        fields = {
            "d": np.array(f.distortion, np.float64),
            "k": np.array([f.fx, 0, f.cx, 0, f.fy, f.cy, 0, 0, 1.0]),
            "r": np.eye(3).ravel(),
            "p": np.array([40.0, 0, 31, 0, 0, 41, 24, 0, 0, 0, 1, 0]),
        }
        if self.is_ros1:
            fields = {name.upper(): value for name, value in fields.items()}
        values = {
            "header": self.header(time_ns), "height": f.height, "width": f.width,
            "distortion_model": {"fisheye": "equidistant"}.get(f.model, "plumb_bob"),
            **fields, "binning_x": 0, "binning_y": 0, "roi": roi, **changes,
        }  # fmt: skip
        self.write(topic, self.message("sensor_msgs/msg/CameraInfo", **values), time_ns)

    def pose(self, position: Sequence[float], time_ns: int, *, topic: str = "/vicon/pose") -> None:
        place = self.message("geometry_msgs/msg/Point", **dict(zip("xyz", map(float, position), strict=True)))
        turn = self.message("geometry_msgs/msg/Quaternion", x=0.0, y=0.0, z=0.0, w=1.0)
        pose = self.message("geometry_msgs/msg/Pose", position=place, orientation=turn)
        self.write(
            topic, self.message("geometry_msgs/msg/PoseStamped", header=self.header(time_ns), pose=pose), time_ns
        )


def flat(k: int) -> NDArray[np.uint8]:
    return np.full((48, 64, 3), 20 + 5 * k, np.uint8)


def time_of(k: int) -> int:
    return START_NS + 50_000_000 * k


def write_bag(path: Path, kind: str, *, count: int = 10) -> Path:
    with Bag(path, kind) as bag:
        bag.camera(CAMERA, START_NS)
        for k in range(count):
            bag.image(flat(k), "bgr8", time_of(k))
            bag.pose((k, 0, 1), time_of(k))
    return bag.path


def numbers(source: FrameSource) -> list[int]:
    return [round((float(np.median(frame.image)) - 20) / 5) for frame in source]


@pytest.mark.parametrize("kind", KINDS)
def test_the_images_of_a_bag_come_at_the_times_of_their_headers_with_its_camera(tmp_path: Path, kind: str) -> None:
    path = write_bag(tmp_path / "drive", kind)
    assert is_bag(path)
    source = open_source(path)
    assert numbers(source) == list(range(10))
    assert [frame.timestamp_ns for frame in open_source(path)] == [time_of(k) for k in range(10)]
    assert [frame.index for frame in open_source(path, start=1, stride=3, max_frames=2)] == [1, 4]
    assert (source.name, source.length) == ("drive", 10)
    assert source.calibration == CAMERA
    assert f"ROS bag: 10 images of {TOPIC}, poses in /vicon/pose are not used" in source.description
    assert "camera of camera_info" in source.description


@pytest.mark.parametrize(("kind", "suffix"), [("mcap", ".mcap"), ("sqlite3", ".db3")])
def test_the_file_of_a_bag_of_ros_2_is_read_without_its_folder(tmp_path: Path, kind: str, suffix: str) -> None:
    [file] = write_bag(tmp_path / "drive", kind).glob(f"*{suffix}")
    alone = file.rename(tmp_path / f"alone{suffix}")
    assert is_bag(alone)
    source = open_source(alone)
    assert (source.name, numbers(source)) == ("alone", list(range(10)))


@pytest.mark.parametrize("kind", KINDS)
def test_single_images_are_those_of_the_iteration(tmp_path: Path, kind: str) -> None:
    source = open_source(write_bag(tmp_path / "drive", kind), start=2)
    assert isinstance(source, RereadableSource)
    with source.random_access() as read:
        images = [read(k) for k in (7, 0, 3, 8)]
    assert [None if image is None else round((float(np.median(image)) - 20) / 5) for image in images] == [9, 2, 5, None]


@pytest.mark.parametrize("kind", KINDS)
def test_poses_of_a_topic_are_the_ground_truth_when_they_are_asked_for(tmp_path: Path, kind: str) -> None:
    source = open_source(write_bag(tmp_path / "drive", kind), config=InputConfig(truth_topic="/vicon/pose"))
    assert source.ground_truth is not None
    assert source.ground_truth.positions.tolist() == [[k, 0, 1] for k in range(10)]
    assert source.ground_truth.timestamps_ns.tolist() == [time_of(k) for k in range(10)]
    assert "ground truth: 10 poses of /vicon/pose, taken to be those of the camera" in source.description


def bayer(color: Sequence[int], pattern: str) -> NDArray[np.uint8]:
    """A Bayer image of one color (R, G, B)."""
    of = dict(zip("rgb", color, strict=True))
    image = np.zeros((48, 64), np.uint8)
    for n, letter in enumerate(pattern):
        image[n // 2 :: 2, n % 2 :: 2] = of[letter]
    return image


COLOR = (200, 100, 50)  # RGB
BGR = np.full((48, 64, 3), COLOR[::-1], np.uint8)
ENCODED: dict[str, Callable[[], NDArray[Any]]] = {
    "bgr8": lambda: BGR,
    "rgb8": lambda: np.ascontiguousarray(BGR[..., ::-1]),
    "bgra8": lambda: cv2.cvtColor(BGR, cv2.COLOR_BGR2BGRA),
    "rgba8": lambda: cv2.cvtColor(BGR, cv2.COLOR_BGR2RGBA),
    "yuv422": lambda: cv2.cvtColor(BGR, cv2.COLOR_BGR2YUV_UYVY),
    "yuv422_yuy2": lambda: cv2.cvtColor(BGR, cv2.COLOR_BGR2YUV_YUY2),
    **{f"bayer_{p}8": (lambda p=p: bayer(COLOR, p)) for p in ("rggb", "bggr", "gbrg", "grbg")},
}


@pytest.mark.parametrize("encoding", ENCODED)
@pytest.mark.parametrize("padding", [0, 6])
def test_encodings_give_their_colors(tmp_path: Path, encoding: str, padding: int) -> None:
    with Bag(tmp_path / "drive", "mcap") as bag:
        for k in range(2):
            bag.image(ENCODED[encoding](), encoding, time_of(k), padding=padding)
    image = next(iter(open_source(bag.path))).image
    assert image.shape == (48, 64, 3)
    assert np.abs(image[10:-10, 10:-10].astype(int) - COLOR).max() <= 3


@pytest.mark.parametrize("kind", KINDS)
def test_gray_images_of_more_than_8_bits_are_stretched_by_one_range(tmp_path: Path, kind: str) -> None:
    ramp = np.tile(np.linspace(0, 1000, 64), (48, 1))
    with Bag(tmp_path / "drive", kind) as bag:
        for k, gain in enumerate((1.0, 0.5)):
            bag.image((gain * ramp).astype(np.uint16), "mono16", time_of(k))
    source = open_source(bag.path)
    first, second = (frame.image for frame in source)
    assert np.abs(first[0, :, 0] - np.linspace(0, 255, 64)).max() < 2
    assert np.abs(second[0, :, 0] - np.linspace(0, 127.5, 64)).max() < 2
    assert "more than 8 bits, of which" in source.description


@pytest.mark.parametrize("kind", KINDS)
def test_topics_are_listed_when_it_is_not_clear_which_one_is_meant(tmp_path: Path, kind: str) -> None:
    with Bag(tmp_path / "drive", kind) as bag:
        bag.camera(CAMERA, START_NS)
        for k in range(3):
            bag.image(flat(k), "bgr8", time_of(k))
            bag.compressed(flat(2 * k), time_of(k))
            bag.image(flat(0)[..., 0].copy(), "mono8", time_of(k), topic="/left/image_rect")
    with pytest.raises(SequenceError) as caught:
        open_source(bag.path)
    listed = f"/camera/image_raw (3), {TOPIC}/compressed (3), /left/image_rect (3)"
    assert f"3 topics with images: {listed}; choose one with --topic" in str(caught.value)
    with pytest.raises(SequenceError, match="no images in topic /right; its topics with images are /camera"):
        open_source(bag.path, config=InputConfig(topic="/right"))
    source = open_source(bag.path, config=InputConfig(topic=f"{TOPIC}/compressed"))
    assert numbers(source) == [0, 2, 4]
    assert source.calibration == CAMERA
    assert open_source(bag.path, config=InputConfig(topic="/left/image_rect")).camera.assumed


def test_rectified_images_have_the_projection_and_no_distortion(tmp_path: Path) -> None:
    with Bag(tmp_path / "drive", "mcap") as bag:
        bag.camera(CAMERA, START_NS)
        bag.image(flat(0), "bgr8", time_of(0), topic="/camera/image_rect_color")
    camera = open_source(bag.path).calibration
    assert (camera.fx, camera.fy, camera.cx, camera.cy, camera.model) == (40.0, 41.0, 31.0, 24.0, "pinhole")


def test_a_camera_that_was_not_calibrated_is_no_camera(tmp_path: Path) -> None:
    with Bag(tmp_path / "drive", "mcap") as bag:
        bag.camera(CAMERA, START_NS, k=np.zeros(9))
        bag.image(flat(0), "bgr8", time_of(0))
    assert open_source(bag.path).camera.assumed


def test_images_without_a_stamp_have_the_time_of_the_recording_and_late_ones_are_skipped(tmp_path: Path) -> None:
    with Bag(tmp_path / "drive", "mcap") as bag:
        for k in range(3):
            bag.image(flat(k), "bgr8", time_of(k), stamp=False)
        bag.image(flat(3), "bgr8", time_of(1))
        bag.image(flat(4), "hdr99", time_of(4))
        bag.image(flat(5), "bgr8", time_of(5))
    source = open_source(bag.path)
    frames = list(source)
    assert [frame.timestamp_ns for frame in frames][:3] == [time_of(k) + 1_000_000 for k in range(3)]
    assert len(frames) == 4
    assert "its time is not later" in source.skipped[0][1]
    assert "encoding 'hdr99' is not supported" in source.skipped[1][1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_bag_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    path = write_bag(tmp_path / "drive", kind)
    [data] = [path] if path.is_file() else [p for p in path.iterdir() if p.name != "metadata.yaml"]
    data.write_bytes(data.read_bytes()[:200])
    with pytest.raises(SequenceError) as caught:
        list(open_source(path))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_bag_without_images_names_its_topics(tmp_path: Path) -> None:
    with Bag(tmp_path / "drive", "mcap") as bag:
        bag.pose((0, 0, 0), START_NS)
    with pytest.raises(SequenceError, match="no topic with images; its topics are /vicon/pose"):
        open_source(bag.path)


def test_without_its_reader_a_bag_is_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_bag(tmp_path / "drive", "bag", count=2)
    for name in ("rosbags", "rosbags.highlevel", "rosbags.highlevel.anyreader"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SequenceError, match="a ROS bag, which needs rosbags: pip install rosbags"):
        open_source(path)


def test_bags_of_all_kinds_give_the_trajectory_of_the_clip(tmp_path: Path) -> None:
    clip = ROOT / "sequences" / "room_loop"
    config = load_config([], [])
    record_run(open_source(clip, max_frames=40), out=tmp_path / "clip", config=config)
    expected = (tmp_path / "clip" / "trajectory.txt").read_bytes()
    assert len(expected.splitlines()) > 30
    images = [(frame.timestamp_ns, frame.image) for frame in open_source(clip, max_frames=40)]
    camera = open_source(clip).camera
    for kind in KINDS:
        with Bag(tmp_path / kind, kind) as bag:
            bag.camera(camera, 1)
            for time_ns, image in images:
                # A stamp of 0 means that there is none, so the recording's time is that of the first image.
                bag.image(np.ascontiguousarray(image[..., ::-1]), "bgr8", time_ns + 1_000_000)
        record_run(bag.path, out=tmp_path / f"run-{kind}", config=config)
        found = (tmp_path / f"run-{kind}" / "trajectory.txt").read_text().splitlines()
        poses = [line.split()[1:] for line in found]
        assert poses == [line.split()[1:] for line in expected.decode().splitlines()]
