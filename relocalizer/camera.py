"""Camera model (intrinsics and distortion), camera.yaml, and undistortion to a pinhole camera."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from relocalizer.errors import CameraError
from relocalizer.geometry import FloatArray
from relocalizer.images import Image
from relocalizer.radial_profile import RadialProfile
from relocalizer.unfetched import pointer_words, why_unfetched

CameraModel = Literal["pinhole", "radtan", "fisheye"]

CAMERA_KEYS = ("width", "height", "fx", "fy", "cx", "cy", "model", "distortion", "assumed")
MASK_KEYS = ("ignore", "mask_rectangles")  # keys of the same file that slam.input.mask reads
DISTORTION_COUNTS = {"pinhole": (0,), "radtan": (4, 5, 8), "fisheye": (4,)}
# Maximum angle of view of an undistorted image along its longer side, degrees. At this angle an undistorted TUM-VI
# image of 512 pixels is as sharp as the original.
MOST_ACROSS_DEG = 110.0
# Tolerated border without image content, as a fraction of the width: OpenCV samples only a few points per side to find
# the valid rectangle.
UNSEEN_BORDER = 0.01
_FOCAL_STEP, _FOCAL_STEPS = 1.02, 200  # ratio and maximum number of the steps that narrow a view
BORDER_POINTS = 65  # number of points per side at which a view's border is checked


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    """Camera intrinsics in pixels, and lens distortion.

    Attributes:
        distortion: coefficients in OpenCV's order: k1 k2 p1 p2 [k3 [k4 k5 k6]] for radtan, k1 k2 k3 k4 for fisheye.
        assumed: whether the focal length is a guess, from the image's size or from footage that does not determine it.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    model: CameraModel = "pinhole"
    distortion: tuple[float, ...] = ()
    assumed: bool = False

    def __post_init__(self) -> None:
        numbers = (self.fx, self.fy, self.cx, self.cy, *self.distortion)
        if self.width < 1 or self.height < 1:
            raise CameraError(f"camera: width and height must be positive, got {self.width} x {self.height}")
        if not np.isfinite(numbers).all() or min(self.fx, self.fy) <= 0:
            got = ", ".join(f"{number:g}" for number in numbers)
            raise CameraError(f"camera: fx, fy must be positive and all numbers finite, got {got}")
        if self.model not in tuple(DISTORTION_COUNTS):
            raise CameraError(f"camera: model must be pinhole, radtan or fisheye, got {self.model!r}")
        allowed = DISTORTION_COUNTS[self.model]
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
        """Mean of fx and fy: pixels per radian near the image center."""
        return 0.5 * (self.fx + self.fy)

    def refocused(self, ratio: tuple[float, float]) -> Camera:
        """The camera with its focal lengths (x, y) multiplied by `ratio`, and no longer `assumed`."""
        return replace(self, fx=self.fx * ratio[0], fy=self.fy * ratio[1], assumed=False)

    def to_yaml(self) -> str:
        """The text of a camera.yaml that `load_camera` reads."""
        size = {"width": int(self.width), "height": int(self.height)}
        numbers = {key: float(getattr(self, key)) for key in ("fx", "fy", "cx", "cy")}
        distortion = [float(number) for number in self.distortion]
        guess = {"assumed": True} if self.assumed else {}
        values = {"model": self.model, **size, **numbers, "distortion": distortion, **guess}
        return yaml.safe_dump(values, sort_keys=False)

    def resized(self, width: int, height: int) -> Camera:
        """The camera of the image resized to width x height (pixel centers at integers)."""
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
        """The camera of the image cut to width x height pixels from (left, top)."""
        return replace(self, width=width, height=height, cx=self.cx - left, cy=self.cy - top)

    def project(self, points_cam: FloatArray) -> FloatArray:
        """Project points (N, 3) in camera coordinates to pixels (N, 2). Pinhole only; z must be positive."""
        x, y, z = np.asarray(points_cam, dtype=np.float64).T
        return np.stack([self.fx * x / z + self.cx, self.fy * y / z + self.cy], axis=1)

    def normalized(self, pixels: NDArray[Any]) -> FloatArray:
        """Normalized image coordinates (N, 2), on the plane z = 1, of pixels (N, 2). Pinhole only."""
        centered = np.asarray(pixels, dtype=np.float64) - np.array([self.cx, self.cy])
        return np.asarray(centered / np.array([self.fx, self.fy]), dtype=np.float64)

    def distorted(self, directions: NDArray[Any]) -> FloatArray:
        """Pixels (N, 2) of normalized image coordinates (N, 2), with the distortion of `model`."""
        ahead = np.column_stack([directions, np.ones(len(directions))]).reshape(-1, 1, 3).astype(np.float64)
        still, distortion = np.zeros(3), np.array(self.distortion, dtype=np.float64)
        if self.model == "fisheye":
            pixels, _ = cv2.fisheye.projectPoints(ahead, still, still, self.matrix, distortion)
        else:
            pixels, _ = cv2.projectPoints(ahead, still, still, self.matrix, distortion)
        return np.asarray(pixels, dtype=np.float64).reshape(-1, 2)

    def contains(self, pixels: FloatArray, *, margin: float = 0.0) -> NDArray[np.bool_]:
        """Mask (N,) of the pixels (N, 2) inside the image, at least `margin` pixels from its border."""
        x, y = pixels[:, 0], pixels[:, 1]
        inside = (x >= margin) & (x <= self.width - 1 - margin) & (y >= margin) & (y <= self.height - 1 - margin)
        return np.asarray(inside)

    @staticmethod
    def assume(width: int, height: int, *, fov_deg: float) -> Camera:
        """A centered pinhole camera with the given angle of view along its longer side."""
        focal = 0.5 * max(width, height) / np.tan(0.5 * np.radians(fov_deg))
        return Camera(
            width=width,
            height=height,
            fx=focal,
            fy=focal,
            cx=(width - 1) / 2,
            cy=(height - 1) / 2,
            assumed=True,
        )


def load_camera(path: Path) -> Camera:
    """Read a camera.yaml: model, width, height, fx, fy, cx, cy, distortion, and `assumed: true` for a guess.

    The default of `model` is radtan when there is distortion, else pinhole. `camera_files.read_camera_file` also reads
    the formats of other programs.

    Raises:
        CameraError: the file is missing, is not YAML, lacks a key, has an unknown key, or has invalid numbers.
    """
    data = read_camera_yaml(path)
    try:
        return camera_from_yaml(data)
    except CameraError as error:
        raise CameraError(f"{path}: {error}") from None


def camera_from_yaml(data: Mapping[str, Any]) -> Camera:
    """The camera of the values of a camera.yaml. Raises CameraError, without the file, as `load_camera`."""
    missing = [key for key in CAMERA_KEYS[:6] if key not in data]
    unknown = sorted(str(key) for key in data if key not in (*CAMERA_KEYS, *MASK_KEYS))
    if missing or unknown:
        parts = [f"missing {', '.join(missing)}"] * bool(missing) + [f"unknown {', '.join(unknown)}"] * bool(unknown)
        raise CameraError(f"{'; '.join(parts)} (expected {', '.join(CAMERA_KEYS)})")
    distortion = data.get("distortion") or []
    if not isinstance(distortion, list):
        raise CameraError(f"distortion: expected a list such as [k1, k2, p1, p2], got {distortion!r}")
    return Camera(
        width=_whole("width", data["width"]),
        height=_whole("height", data["height"]),
        fx=number_of("fx", data["fx"]),
        fy=number_of("fy", data["fy"]),
        cx=number_of("cx", data["cx"]),
        cy=number_of("cy", data["cy"]),
        model=data.get("model", "radtan" if distortion else "pinhole"),
        distortion=tuple(number_of("distortion", k) for k in distortion),
        assumed=_truth("assumed", data.get("assumed", False)),
    )


def _truth(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise CameraError(f"{key}: expected true or false, got {value!r}")
    return value


def read_camera_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file with a camera calibration, in our format or in that of another program.

    Raises:
        CameraError: the file is missing, unreadable, not YAML, or not a mapping.
    """
    return parse_yaml(path, text_of(path, read_bytes(path)))


def read_bytes(path: Path) -> bytes:
    """The content of a camera file. Raises CameraError when it is missing, unreadable or not fetched."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CameraError(f"{path}: {why_unfetched(path) or 'no such camera file'}") from None
    except OSError as error:
        raise CameraError(f"{path}: cannot be read ({error.strerror})") from None
    if reason := pointer_words(data):
        raise CameraError(f"{path}: {reason}")
    return data


def text_of(path: Path, data: bytes) -> str:
    """The text of a camera file's content. Raises CameraError when it is none."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CameraError(f"{path}: not a text file, so not a camera description") from None


def parse_yaml(path: Path, text: str) -> dict[str, Any]:
    """The mapping in the first document of a YAML text, also of one written by OpenCV; `path` is for errors.

    Raises:
        CameraError: it is not YAML, or not a mapping.
    """
    try:
        # OpenCV begins its files with "%YAML:1.0", which is no directive of YAML.
        data = next(yaml.load_all(re.sub(r"\A\s*%YAML[^\n]*", "", text), Loader=_CameraLoader), None)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise CameraError(f"{path}{line}: not YAML ({error.problem})") from None
    except yaml.YAMLError:
        raise CameraError(f"{path}: not YAML (it holds characters that YAML forbids)") from None
    except RecursionError:
        raise CameraError(f"{path}: nested too deeply for a camera description") from None
    if not isinstance(data, dict):
        raise CameraError(f"{path}: expected lines such as 'fx: 525.0', with keys {', '.join(CAMERA_KEYS)}")
    return data


class _CameraLoader(yaml.SafeLoader):
    """Reads matrices of OpenCV, tagged `!!opencv-matrix`, as mappings.

    References to other nodes are refused: no calibration has them, and a few lines of them expand to gigabytes.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            problem = "a camera description has no references such as *name"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.get_mark())
        return super().compose_node(parent, index)


def _matrix(loader: _CameraLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    return loader.construct_mapping(node, deep=True)


_CameraLoader.add_constructor("tag:yaml.org,2002:opencv-matrix", _matrix)


def number_of(key: str, value: object) -> float:
    """A number in a camera file; `key` is its name in the error. Raises CameraError if it is none."""
    # PyYAML parses 5e2 as text, so numeric text is accepted; booleans are rejected.
    try:
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            return float(value)
    except (ValueError, OverflowError):
        pass
    raise CameraError(f"{key}: expected a number, got {value!r}")


def _whole(key: str, value: object) -> int:
    number = number_of(key, value)
    if not number.is_integer():
        raise CameraError(f"{key}: expected a whole number of pixels, got {value!r}")
    return int(number)


class Undistorter:
    """Undistorts images of the camera `given` to images of a pinhole camera. Applied once, when images are read.

    A pinhole image uses more pixels per degree the farther from the center: at 150 degrees its middle has a quarter of
    the pixels of the original, and the rest is stretched border. Therefore the view is cropped to MOST_ACROSS_DEG.

    Attributes:
        given: the camera as calibrated.
        camera: the pinhole camera of the undistorted images, of the same size. Its field of view is the largest in
            which every pixel has image content, so that no black border can be tracked.
        is_cut: whether the view was cropped.
    """

    def __init__(self, given: Camera) -> None:
        self.given = given
        self.camera = given
        self.is_cut = False
        self._maps: tuple[NDArray[Any], NDArray[Any]] | None = None
        if given.model == "pinhole":
            return
        if given.model == "radtan" and not any(given.distortion):
            self.camera = replace(given, model="pinhole", distortion=())
            return
        whole = _whole_view(given)
        self.is_cut = whole is None
        self.camera = whole or _middle_view(given)
        K, new_K, size = given.matrix, self.camera.matrix, (given.width, given.height)
        distortion = np.array(given.distortion, dtype=np.float64)
        rectify = cv2.fisheye.initUndistortRectifyMap if given.model == "fisheye" else cv2.initUndistortRectifyMap
        self._maps = rectify(K, distortion, np.eye(3), new_K, size, cv2.CV_16SC2)

    def __call__(self, image: Image) -> Image:
        """The image (H, W, 3) undistorted to the pinhole camera `self.camera`.

        Raises:
            ValueError: the image's size differs from the camera's.
        """
        if image.shape[:2] != (self.given.height, self.given.width):
            raise ValueError(
                f"Undistorter: expected a {self.given.width}x{self.given.height} image, "
                f"got {image.shape[1]}x{image.shape[0]}"
            )
        if self._maps is None:
            return image
        undistorted = cv2.remap(image, *self._maps, interpolation=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(undistorted, dtype=np.uint8)


def _whole_view(given: Camera) -> Camera | None:
    """OpenCV's pinhole camera for the lens's whole field of view; None when it is too wide or degenerate."""
    K, distortion, size = given.matrix, np.array(given.distortion, dtype=np.float64), (given.width, given.height)
    if given.model == "fisheye":
        new_K = cv2.fisheye.estimateNewCameraMatrixForUndistortRectify(K, distortion, size, np.eye(3), balance=0.0)
    else:
        new_K, _ = cv2.getOptimalNewCameraMatrix(K, distortion, size, 0.0)
    if not np.isfinite(new_K).all() or min(new_K[0, 0], new_K[1, 1]) <= 0:
        return None
    view = _pinhole(given, *(float(new_K[row, column]) for row, column in ((0, 0), (1, 1), (0, 2), (1, 2))))
    across_deg = np.degrees(2 * np.arctan(0.5 * max(view.width / view.fx, view.height / view.fy)))
    fits = across_deg <= MOST_ACROSS_DEG and _shows_all(given, view, margin=UNSEEN_BORDER * given.width)
    return view if fits else None


def _middle_view(given: Camera) -> Camera:
    """The pinhole camera along the optical axis, MOST_ACROSS_DEG wide or narrower if not all of that has content.

    Raises:
        CameraError: the distortion is not monotonic even near the center.
    """
    half = float(np.tan(np.radians(0.5 * MOST_ACROSS_DEG)))
    widest = max(0.5 * given.width / (half * given.fx), 0.5 * given.height / (half * given.fy))
    for step in range(_FOCAL_STEPS):
        ratio = widest * _FOCAL_STEP**step
        view = _pinhole(given, ratio * given.fx, ratio * given.fy, given.cx, given.cy)
        if _shows_all(given, view):
            return view
    raise CameraError("camera: its distortion folds the image over near its center; is it that of this model?")


def _pinhole(given: Camera, fx: float, fy: float, cx: float, cy: float) -> Camera:
    return replace(given, model="pinhole", distortion=(), fx=fx, fy=fy, cx=cx, cy=cy)


def _shows_all(given: Camera, view: Camera, *, margin: float = 0.0) -> bool:
    """Whether all of a view has image content: its border maps into the image, where the distortion is monotonic.

    Border points up to `margin` pixels outside the image are accepted.
    """
    x, y = np.linspace(0, view.width - 1, BORDER_POINTS), np.linspace(0, view.height - 1, BORDER_POINTS)
    across = [np.column_stack([x, np.full_like(x, row)]) for row in (0, view.height - 1)]
    down = [np.column_stack([np.full_like(y, column), y]) for column in (0, view.width - 1)]
    directions = view.normalized(np.concatenate([*across, *down]))
    widest = RadialProfile.of(given.model, given.distortion).widest
    if np.arctan(np.linalg.norm(directions, axis=1)).max() >= widest:
        return False
    return bool(given.contains(given.distorted(directions), margin=-margin).all())
