"""The ROS 2 node of examples/, with stand-ins for the packages of ROS."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from slam.input.open_source import open_source

ROOT = Path(__file__).resolve().parent.parent


class Message(SimpleNamespace):
    """A message: fields are made when they are first used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = [] if name == "poses" else Message()
        setattr(self, name, value)
        return value


class StandInNode:
    def __init__(self, name: str) -> None:
        self.name = name
        self.published: dict[str, list[Any]] = {}
        self.callbacks: dict[str, Any] = {}

    def create_publisher(self, kind: type, topic: str, depth: int) -> Any:
        messages = self.published.setdefault(topic, [])
        return SimpleNamespace(publish=messages.append)

    def create_subscription(self, kind: type, topic: str, callback: Any, depth: int) -> None:
        self.callbacks[topic] = callback


@pytest.fixture
def node_code(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the program defines."""
    names = {
        "rclpy": {}, "rclpy.node": {"Node": StandInNode}, "nav_msgs.msg": {"Path": Message},
        "geometry_msgs.msg": {"PoseStamped": Message}, "sensor_msgs_py": {},
        "sensor_msgs.msg": {"CameraInfo": Message, "Image": Message, "PointCloud2": Message},
        "sensor_msgs_py.point_cloud2": {"create_cloud_xyz32": lambda header, points: (header, points)},
        "nav_msgs": {}, "geometry_msgs": {}, "sensor_msgs": {},
    }  # fmt: skip
    for name, values in names.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    return runpy.run_path(str(ROOT / "examples" / "ros2_node.py"))


def header(time_ns: int) -> Message:
    return Message(stamp=SimpleNamespace(sec=time_ns // 10**9, nanosec=time_ns % 10**9), frame_id="camera")


def test_the_documented_node_publishes_poses_a_path_and_points(
    node_code: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = node_code["SlamNode"]()
    source = open_source(ROOT / "sequences" / "room_loop", max_frames=30)
    c = source.camera
    roi = SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0)
    node.callbacks["camera_info"](
        SimpleNamespace(width=640, height=480, k=[c.fx, 0, c.cx, 0, c.fy, c.cy, 0, 0, 1], d=[0.0] * 5,
                        distortion_model="plumb_bob", roi=roi)
    )  # fmt: skip
    for frame in source:
        data = np.ascontiguousarray(frame.image)
        node.callbacks["image"](
            SimpleNamespace(header=header(frame.timestamp_ns + 1), encoding="rgb8", height=480, width=640, step=1920,
                            is_bigendian=0, data=data.tobytes())
        )  # fmt: skip
    poses = node.published["pose"]
    assert 15 < len(poses) <= 30
    assert len(node.published["path"]) == len(poses)
    last = poses[-1].pose
    turn = last.orientation
    assert np.isclose(turn.x**2 + turn.y**2 + turn.z**2 + turn.w**2, 1.0)
    assert abs(last.position.x) > 0.01
    assert len(node.published["points"][-1][1]) > 60
    monkeypatch.chdir(tmp_path)
    assert len(node.slam.finish().trajectory) == 30
