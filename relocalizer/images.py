"""Pictures and the camera that took them. BGR ends here: everything past this file is RGB.

A camera follows its pixels: resizing or cropping a picture goes with `Camera.resized` or `Camera.cropped`.
Pixel (0, 0) is the centre of the top-left pixel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from relocalizer.errors import CameraError, SequenceError
from relocalizer.geometry import FloatArray

Image = NDArray[np.uint8]
CameraModel = Literal["pinhole", "radtan", "fisheye"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    """Intrinsics in pixels. `distortion` is OpenCV's order: k1 k2 p1 p2 [k3] (radtan), k1 k2 k3 k4 (fisheye)."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    model: CameraModel = "pinhole"
    distortion: tuple[float, ...] = ()
    assumed: bool = False  # guessed from the picture's size, not given by anybody

    def __post_init__(self) -> None:
        numbers = (self.fx, self.fy, self.cx, self.cy, *self.distortion)
        if self.width < 1 or self.height < 1:
            raise CameraError(f"camera: width and height must be positive, got {self.width} x {self.height}")
        if not np.isfinite(numbers).all() or min(self.fx, self.fy) <= 0:
            raise CameraError(f"camera: fx, fy must be positive and all numbers finite, got {numbers}")
        allowed = {"pinhole": (0,), "radtan": (4, 5, 8), "fisheye": (4,)}.get(self.model)
        if allowed is None:
            raise CameraError(f"camera: model must be pinhole, radtan or fisheye, got {self.model!r}")
        if len(self.distortion) not in allowed:
            raise CameraError(
                f"camera: model {self.model} takes {' or '.join(map(str, allowed))} distortion numbers, "
                f"got {len(self.distortion)}"
            )

    @property
    def matrix(self) -> FloatArray:
        """K, (3, 3): pixel = K @ (x/z, y/z, 1)."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    @property
    def mean_focal(self) -> float:
        """Pixels a radian spans near the centre."""
        return 0.5 * (self.fx + self.fy)

    def resized(self, width: int, height: int) -> Camera:
        """The camera of the picture resized to width x height (pixel centres at integers)."""
        sx, sy = width / self.width, height / self.height
        return replace(
            self,
            width=width,
            height=height,
            fx=self.fx * sx,
            fy=self.fy * sy,
            cx=(self.cx + 0.5) * sx - 0.5,
            cy=(self.cy + 0.5) * sy - 0.5,
        )

    def cropped(self, left: int, top: int, width: int, height: int) -> Camera:
        """The camera of the picture cut to width x height pixels from (left, top)."""
        return replace(self, width=width, height=height, cx=self.cx - left, cy=self.cy - top)

    def project(self, points_cam: FloatArray) -> FloatArray:
        """Points (N, 3) in camera coordinates to pixels (N, 2). Pinhole only; points need z > 0 to mean anything."""
        x, y, z = np.asarray(points_cam, dtype=np.float64).T
        return np.stack([self.fx * x / z + self.cx, self.fy * y / z + self.cy], axis=1)

    def normalised(self, pixels: NDArray[Any]) -> FloatArray:
        """Pixels (N, 2) to coordinates on the plane z = 1, (N, 2). Pinhole only."""
        pixels = np.asarray(pixels, dtype=np.float64)
        return (pixels - np.array([self.cx, self.cy])) / np.array([self.fx, self.fy])

    def contains(self, pixels: FloatArray, *, margin: float = 0.0) -> NDArray[np.bool_]:
        """Which pixels (N, 2) lie inside the picture, at least `margin` pixels from its border."""
        x, y = pixels[:, 0], pixels[:, 1]
        inside = (x >= margin) & (x <= self.width - 1 - margin) & (y >= margin) & (y <= self.height - 1 - margin)
        return np.asarray(inside)

    @staticmethod
    def assume(width: int, height: int, *, fov_deg: float) -> Camera:
        """A pinhole camera with the given angle of view across its longer side and a centred principal point."""
        focal = 0.5 * max(width, height) / np.tan(0.5 * np.radians(fov_deg))
        return Camera(
            width=width, height=height, fx=focal, fy=focal, cx=(width - 1) / 2, cy=(height - 1) / 2, assumed=True
        )


def load_camera(path: Path) -> Camera:
    """Read a camera.yaml: model, width, height, fx, fy, cx, cy, distortion.

    Raises:
        CameraError: the file is missing, not YAML, lacks a key, has an unknown one, or its numbers do not fit.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CameraError(f"{path}: no such camera file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CameraError(f"{path}: not a readable YAML file ({str(error).splitlines()[0]})") from error
    if not isinstance(data, dict):
        raise CameraError(f"{path}: expected keys model, width, height, fx, fy, cx, cy, distortion")
    needed, optional = {"width", "height", "fx", "fy", "cx", "cy"}, {"model", "distortion"}
    missing, unknown = sorted(needed - data.keys()), sorted(map(str, data.keys() - needed - optional))
    if missing or unknown:
        parts = [f"missing {', '.join(missing)}"] * bool(missing) + [f"unknown {', '.join(unknown)}"] * bool(unknown)
        raise CameraError(f"{path}: {'; '.join(parts)} (expected model, width, height, fx, fy, cx, cy, distortion)")
    distortion = data.get("distortion") or []
    model = data.get("model", "radtan" if distortion else "pinhole")
    try:
        return Camera(
            width=int(data["width"]),
            height=int(data["height"]),
            model=model,
            distortion=tuple(float(k) for k in distortion),
            **{key: float(data[key]) for key in ("fx", "fy", "cx", "cy")},
        )
    except (TypeError, ValueError) as error:
        raise CameraError(f"{path}: a number is not a number ({error})") from error
    except CameraError as error:
        raise CameraError(f"{path}: {error}") from None


class Undistorter:
    """Removes lens distortion once, at the edge: pictures of `camera` become pictures of a pinhole camera."""

    def __init__(self, camera: Camera) -> None:
        self._maps: tuple[NDArray[Any], NDArray[Any]] | None = None
        self.camera = camera
        if camera.model == "pinhole":
            return
        K, distortion, size = camera.matrix, np.array(camera.distortion), (camera.width, camera.height)
        if camera.model == "fisheye":
            new_K = cv2.fisheye.estimateNewCameraMatrixForUndistortRectify(K, distortion, size, np.eye(3), balance=0.0)
            self._maps = cv2.fisheye.initUndistortRectifyMap(K, distortion, np.eye(3), new_K, size, cv2.CV_16SC2)
        else:
            # alpha 0 keeps only pixels that the lens really saw: no black border to track.
            new_K, _ = cv2.getOptimalNewCameraMatrix(K, distortion, size, 0.0)
            self._maps = cv2.initUndistortRectifyMap(K, distortion, np.eye(3), new_K, size, cv2.CV_16SC2)
        self.camera = replace(
            camera,
            model="pinhole",
            distortion=(),
            fx=float(new_K[0, 0]),
            fy=float(new_K[1, 1]),
            cx=float(new_K[0, 2]),
            cy=float(new_K[1, 2]),
        )

    def __call__(self, image: Image) -> Image:
        """The picture (H, W, 3) as the pinhole camera `self.camera` would have taken it."""
        if self._maps is None:
            return image
        return np.asarray(cv2.remap(image, *self._maps, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def read_image(path: Path) -> Image:
    """A picture file as RGB (H, W, 3) uint8; grey, RGBA and 16-bit files become that too.

    Raises:
        SequenceError: the file is missing, empty, truncated or not a picture.
    """
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise SequenceError(f"{path}: cannot be read ({error.strerror})") from None
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        raise SequenceError(f"{path}: not a picture that can be decoded")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def to_gray(image: Image) -> Image:
    """RGB (H, W, 3) to grey (H, W)."""
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
