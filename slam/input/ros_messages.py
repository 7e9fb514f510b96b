"""Messages of ROS 1 and 2 as images, cameras and poses.

The functions take any object with the fields of the message, as rosbags, rospy and rclpy make them; ROS 1 writes the
fields of CameraInfo in capitals.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from relocalizer.camera import Camera, CameraModel
from relocalizer.errors import CameraError, SequenceError
from relocalizer.geometry import FloatArray, rotation_from_quaternion_xyzw
from relocalizer.images import decode_values

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
POSES = (
    "geometry_msgs/msg/PoseStamped",
    "geometry_msgs/msg/PoseWithCovarianceStamped",
    "geometry_msgs/msg/TransformStamped",
    "nav_msgs/msg/Odometry",
)

# Encodings of sensor_msgs/Image (image_encodings.h): type, channels, and the conversion to BGR, None if it is BGR or
# gray already. OpenCV names a Bayer pattern by the second and third pixel of the second row.
_ENCODINGS: dict[str, tuple[type, int, int | None]] = {
    "mono8": (np.uint8, 1, None), "8UC1": (np.uint8, 1, None),
    "mono16": (np.uint16, 1, None), "16UC1": (np.uint16, 1, None),
    "bgr8": (np.uint8, 3, None), "8UC3": (np.uint8, 3, None), "rgb8": (np.uint8, 3, cv2.COLOR_RGB2BGR),
    "bgra8": (np.uint8, 4, cv2.COLOR_BGRA2BGR), "8UC4": (np.uint8, 4, cv2.COLOR_BGRA2BGR),
    "rgba8": (np.uint8, 4, cv2.COLOR_RGBA2BGR),
    "bgr16": (np.uint16, 3, None), "rgb16": (np.uint16, 3, cv2.COLOR_RGB2BGR),
    "bayer_rggb8": (np.uint8, 1, cv2.COLOR_BayerBG2BGR), "bayer_bggr8": (np.uint8, 1, cv2.COLOR_BayerRG2BGR),
    "bayer_gbrg8": (np.uint8, 1, cv2.COLOR_BayerGR2BGR), "bayer_grbg8": (np.uint8, 1, cv2.COLOR_BayerGB2BGR),
    "bayer_rggb16": (np.uint16, 1, cv2.COLOR_BayerBG2BGR), "bayer_bggr16": (np.uint16, 1, cv2.COLOR_BayerRG2BGR),
    "bayer_gbrg16": (np.uint16, 1, cv2.COLOR_BayerGR2BGR), "bayer_grbg16": (np.uint16, 1, cv2.COLOR_BayerGB2BGR),
    "uyvy": (np.uint8, 2, cv2.COLOR_YUV2BGR_UYVY), "yuv422": (np.uint8, 2, cv2.COLOR_YUV2BGR_UYVY),
    "yuyv": (np.uint8, 2, cv2.COLOR_YUV2BGR_YUY2), "yuv422_yuy2": (np.uint8, 2, cv2.COLOR_YUV2BGR_YUY2),
    "32FC1": (np.float32, 1, None),
}  # fmt: skip
_DISTORTION: dict[str, CameraModel] = {
    "plumb_bob": "radtan", "rational_polynomial": "radtan", "equidistant": "fisheye", "fisheye": "fisheye",
    "": "radtan", "none": "radtan",
}  # fmt: skip


def stamp_ns(message: Any) -> int:
    """The time of a message's header, nanoseconds; 0 if it was not set. ROS 1 and 2 name its parts differently."""
    stamp = message.header.stamp
    if hasattr(stamp, "nanosec"):
        return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)
    seconds, nanoseconds = (stamp.secs, stamp.nsecs) if hasattr(stamp, "secs") else (stamp.sec, stamp.nsec)
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def values_of(message: Any, name: str) -> NDArray[Any]:
    """The values of an Image or CompressedImage: BGR (H, W, 3) or gray (H, W); see `relocalizer.images.to_rgb`.

    Raises:
        SequenceError: the encoding is not supported, or the data are damaged; `name` is the image's name in the error.
    """
    if not hasattr(message, "encoding"):
        return decode_values(bytes(message.data), name)
    known = _ENCODINGS.get(message.encoding)
    if known is None:
        raise SequenceError(f"{name}: encoding {message.encoding!r} is not supported (known: {', '.join(_ENCODINGS)})")
    dtype, channels, conversion = known
    height, width, step = int(message.height), int(message.width), int(message.step)
    item = np.dtype(dtype).newbyteorder(">" if message.is_bigendian else "<")
    data = np.frombuffer(bytes(message.data), np.uint8)
    row_bytes = width * channels * item.itemsize
    if height < 1 or width < 1 or step < row_bytes or len(data) < height * step:
        raise SequenceError(f"{name}: {len(data)} bytes are too few for {width}x{height} {message.encoding}")
    rows = data[: height * step].reshape(height, step)[:, :row_bytes]
    values: NDArray[Any] = np.ascontiguousarray(rows).view(item).astype(dtype).reshape(height, width, channels)
    if conversion is not None:
        return np.asarray(cv2.cvtColor(values, conversion))
    return values[..., 0] if channels == 1 else values


def camera_of(info: Any, *, is_rectified: bool, source: str) -> Camera | None:
    """The camera of a CameraInfo message; None if the camera was not calibrated.

    Args:
        is_rectified: whether its images are undistorted already, so that the projection matrix P holds.
        source: name of the topic, for errors.

    Raises:
        CameraError: the lens model or the numbers are not valid.
    """
    matrix: FloatArray = np.array(_field(info, "p" if is_rectified else "k"), dtype=np.float64).reshape(3, -1)
    if matrix[0, 0] == 0.0:
        return None
    distortion = () if is_rectified else tuple(float(k) for k in _field(info, "d"))
    model = _DISTORTION.get(str(info.distortion_model))
    if model is None:
        raise CameraError(f"{source}: lens model {info.distortion_model!r} is not supported")
    if not any(distortion) and (model != "fisheye" or is_rectified):
        model, distortion = "pinhole", ()
    try:
        camera = Camera(
            width=int(info.width), height=int(info.height),
            fx=float(matrix[0, 0]), fy=float(matrix[1, 1]), cx=float(matrix[0, 2]), cy=float(matrix[1, 2]),
            model=model, distortion=distortion,
        )  # fmt: skip
    except CameraError as error:
        raise CameraError(f"{source}: {error}") from None
    return _of_region(camera, info.roi)


def _of_region(camera: Camera, region: Any) -> Camera:
    """The camera of the part of the sensor that was read."""
    if not region.width or not region.height or (region.width, region.height) == (camera.width, camera.height):
        return camera
    return camera.cropped(int(region.x_offset), int(region.y_offset), int(region.width), int(region.height))


def _field(info: Any, name: str) -> Any:
    return getattr(info, name) if hasattr(info, name) else getattr(info, name.upper())


def pose_of(message: Any) -> FloatArray | None:
    """The pose (4, 4) in a message of one of the types `POSES`; None if its numbers are no pose."""
    if hasattr(message, "transform"):
        place, turn = message.transform.translation, message.transform.rotation
    else:
        pose = message.pose.pose if hasattr(message.pose, "pose") else message.pose
        place, turn = pose.position, pose.orientation
    xyzw = np.array([turn.x, turn.y, turn.z, turn.w], dtype=np.float64)
    matrix = np.eye(4)
    matrix[:3, 3] = (place.x, place.y, place.z)
    if not np.isfinite(matrix).all() or not np.isfinite(xyzw).all() or abs(np.linalg.norm(xyzw) - 1.0) > 1e-2:
        return None
    matrix[:3, :3] = rotation_from_quaternion_xyzw(xyzw)
    return matrix
