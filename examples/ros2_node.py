"""A ROS 2 node: SLAM on the images of a camera; publishes its pose, its path and the landmarks. docs/ros.md

python examples/ros2_node.py --ros-args -r image:=/camera/image_raw -r camera_info:=/camera/camera_info
"""

import contextlib

import rclpy
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Path
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from sensor_msgs_py.point_cloud2 import create_cloud_xyz32

from relocalizer import Undistorter
from relocalizer.geometry import quaternion_xyzw_from_rotation
from relocalizer.images import to_rgb
from slam import Frame, Slam, SlamConfig
from slam.events import Event, LandmarksUpdated
from slam.input.ros_messages import camera_of, stamp_ns, values_of


class SlamNode(Node):
    def __init__(self) -> None:
        super().__init__("reloc3r_slam")
        self.slam, self.undistort, self.frames, self.path = None, None, 0, Path()
        self.pose_output = self.create_publisher(PoseStamped, "pose", 1)
        self.path_output = self.create_publisher(Path, "path", 1)
        self.points_output = self.create_publisher(PointCloud2, "points", 1)
        self.create_subscription(CameraInfo, "camera_info", self.on_camera, 1)
        self.create_subscription(Image, "image", self.on_image, 1)  # the newest image, when one takes long

    def on_camera(self, info: CameraInfo) -> None:
        if self.slam is None and (camera := camera_of(info, is_rectified=False, source="camera_info")):
            self.undistort, self.slam = Undistorter(camera), Slam.create(SlamConfig(), observers=[self.on_event])

    def on_image(self, message: Image) -> None:
        self.header = message.header
        if self.slam is None:
            return
        self.header.frame_id = "map"
        image = self.undistort(to_rgb(values_of(message, "image")))
        frame = Frame(index=self.frames, timestamp_ns=stamp_ns(message), image=image, camera=self.undistort.camera)
        self.frames, result = self.frames + 1, self.slam.step(frame)
        if result.world_from_cam is not None:
            self.publish_pose(result.world_from_cam)

    def publish_pose(self, world_from_cam) -> None:
        pose = PoseStamped(header=self.header)
        place, turn = pose.pose.position, pose.pose.orientation
        place.x, place.y, place.z = map(float, world_from_cam.translation)
        turn.x, turn.y, turn.z, turn.w = map(float, quaternion_xyzw_from_rotation(world_from_cam.rotation.as_matrix()))
        self.path.header = self.header
        self.path.poses.append(pose)
        self.pose_output.publish(pose)
        self.path_output.publish(self.path)

    def on_event(self, event: Event) -> None:
        if isinstance(event, LandmarksUpdated):
            self.points_output.publish(create_cloud_xyz32(self.header, event.points_world.tolist()))


def main() -> None:
    rclpy.init()
    node = SlamNode()
    with contextlib.suppress(KeyboardInterrupt):
        rclpy.spin(node)
    if node.slam is not None:
        print(f"{len(node.slam.finish().trajectory)} frames have a final pose")
        node.slam.save_map("map")


if __name__ == "__main__":
    main()
