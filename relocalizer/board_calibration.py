"""Calibration of a camera from images of a board: a checkerboard or a ChArUco board.

Zhang, "A flexible new technique for camera calibration", PAMI 2000, as in OpenCV's `calibrateCamera`. Focal length
and distance of the board are separated only by boards that are seen obliquely; the standard deviation shows when they
were not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np

from relocalizer.camera import Camera
from relocalizer.errors import ConfigError
from relocalizer.geometry import FloatArray
from relocalizer.images import Image, to_gray

FEWEST_VIEWS, MOST_VIEWS = 5, 60  # minimum and maximum number of views of the board in a calibration
FEWEST_CORNERS = 8  # minimum number of corners of a view; a checkerboard is always seen whole
MIN_MOVE = 0.02  # minimum mean displacement of the corners between two used views, fraction of the diagonal
OUTLYING = 3.0  # ratio of the reprojection error of a view to the median from which the view is left out
# Standard deviation of a focal length by errors that the corners of a board share, such as those of their detection;
# the standard deviations of OpenCV assume independent errors.
SYSTEMATIC_SIGMA = 0.003
MIN_DISTORTION_PX = 1.0  # minimum displacement of a corner of the image by a distortion, pixels
DICTIONARY = "DICT_5X5_250"
_FORM = re.compile(r"(checkerboard|charuco):(\d+)x(\d+):([\d.]+)(?::([\d.]+)(?::(\w+))?)?")
_FORMS = "checkerboard:COLUMNSxROWS:SQUARE or charuco:COLUMNSxROWS:SQUARE:MARKER[:DICTIONARY]"


@dataclass(frozen=True, slots=True)
class Board:
    """A planar calibration board.

    Attributes:
        columns, rows: number of inner corners of a checkerboard; number of squares of a ChArUco board.
        square_m, marker_m: length of the side of a square, and of a marker (ChArUco only), meters.
        dictionary: name of the markers' dictionary in `cv2.aruco` (ChArUco only).
    """

    kind: Literal["checkerboard", "charuco"]
    columns: int
    rows: int
    square_m: float
    marker_m: float = 0.0
    dictionary: str = DICTIONARY

    @staticmethod
    def parse(text: str) -> Board:
        """The board of a description such as checkerboard:9x6:0.025 or charuco:7x5:0.04:0.03:DICT_5X5_100.

        Raises:
            ConfigError: the description has another form, or no such board is possible.
        """
        form = _FORM.fullmatch(text)
        if form is None:
            raise ConfigError(f"board {text!r}: expected {_FORMS}, lengths in meters")
        kind, columns, rows, square, marker, dictionary = form.groups()
        try:
            lengths = float(square), float(marker or 0.0)
        except ValueError:
            raise ConfigError(f"board {text!r}: the side of a square or marker is not a number") from None
        board = Board(
            "charuco" if kind == "charuco" else "checkerboard", int(columns), int(rows), *lengths,
            dictionary=dictionary or DICTIONARY,
        )  # fmt: skip
        if problem := board._problem(has_marker=marker is not None):
            raise ConfigError(f"board {text!r}: {problem}")
        return board

    def _problem(self, *, has_marker: bool) -> str:
        """Why no such board is possible; empty when it is."""
        if min(self.columns, self.rows) < 3 or max(self.columns, self.rows) > 100:
            return "expected 3 to 100 columns and rows"
        if self.square_m <= 0:
            return "the side of a square must be positive"
        if self.kind == "checkerboard":
            return f"a checkerboard has no markers; expected {_FORMS}" if has_marker else ""
        if not has_marker or not 0 < self.marker_m < self.square_m:
            return "a ChArUco board needs the side of its markers, smaller than that of its squares"
        if not self.dictionary.startswith("DICT_") or not hasattr(cv2.aruco, self.dictionary):
            return f"OpenCV has no dictionary {self.dictionary}; expected a name such as {DICTIONARY}"
        markers = len(cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, self.dictionary)).bytesList)
        if self.columns * self.rows // 2 > markers:
            return f"{self.dictionary} has {markers} markers, too few for this board"
        return ""

    @property
    def corners_m(self) -> FloatArray:
        """(N, 3) inner corners on the board, z = 0, meters, in the order of their numbers."""
        less = 1 if self.kind == "charuco" else 0
        y, x = np.mgrid[: self.rows - less, : self.columns - less]
        return np.column_stack([x.ravel(), y.ravel(), np.zeros(x.size)]) * self.square_m


@dataclass(frozen=True, slots=True, eq=False)
class BoardView:
    """Corners of a board in one image: their numbers (N,), and pixels (N, 2)."""

    numbers: np.ndarray[tuple[int], np.dtype[np.int64]]
    pixels: FloatArray


class BoardDetector:
    """Finds one board in images."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._charuco: cv2.aruco.CharucoDetector | None = None
        if board.kind == "charuco":
            dictionary = cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, board.dictionary))
            size = (board.columns, board.rows)
            drawn = cv2.aruco.CharucoBoard(size, board.square_m, board.marker_m, dictionary)
            self._charuco = cv2.aruco.CharucoDetector(drawn)

    def view(self, image: Image) -> BoardView | None:
        """The board in an image (H, W, 3); None when it is not visible (a checkerboard: not whole)."""
        gray = to_gray(image)
        if self._charuco is None:
            size = (self._board.columns, self._board.rows)
            found, corners = cv2.findChessboardCornersSB(gray, size, flags=cv2.CALIB_CB_NORMALIZE_IMAGE)
            numbers: Any = np.arange(size[0] * size[1])
        else:
            corners, numbers, _, _ = self._charuco.detectBoard(gray)
            found = corners is not None and len(corners) >= FEWEST_CORNERS
        if not found:
            return None
        view = BoardView(np.array(numbers, np.int64).ravel(), np.array(corners, np.float64).reshape(-1, 2))
        on_board = self._board.corners_m[view.numbers]
        return None if np.linalg.matrix_rank(on_board - on_board.mean(axis=0)) < 2 else view  # corners on one line


@dataclass(frozen=True, slots=True)
class BoardCalibration:
    """A camera calibrated with a board.

    Attributes:
        camera: the camera, pinhole or radtan.
        sigma: standard deviation of the logarithm of the focal length, from the residuals of the
            corners and the systematic error of a board.
        views: number of views used.
        rms_px: root mean square of the reprojection errors, pixels.
    """

    camera: Camera
    sigma: float
    views: int
    rms_px: float


def different_views(views: list[BoardView], diagonal_px: float) -> list[BoardView]:
    """The views that differ from all those before them, at most `MOST_VIEWS`, evenly chosen."""
    kept: list[BoardView] = []
    for view in views:
        if all(_displacement(view, other) > MIN_MOVE * diagonal_px for other in kept):
            kept.append(view)
    if len(kept) > MOST_VIEWS:
        kept = [kept[n] for n in np.linspace(0, len(kept) - 1, MOST_VIEWS).round().astype(int)]
    return kept


def _displacement(a: BoardView, b: BoardView) -> float:
    """Mean displacement of the corners that two views share, pixels; infinite without any."""
    _, rows_a, rows_b = np.intersect1d(a.numbers, b.numbers, return_indices=True)
    if not len(rows_a):
        return float("inf")
    return float(np.linalg.norm(a.pixels[rows_a] - b.pixels[rows_b], axis=1).mean())


def calibrate_with_board(board: Board, views: list[BoardView], width: int, height: int) -> BoardCalibration | None:
    """The camera of width x height images from views of a board; None where OpenCV finds no solution.

    Distortion (radtan: k1 k2 p1 p2) is part of the camera if it lowers the Bayesian information criterion and moves a
    corner of the image by more than `MIN_DISTORTION_PX`: systematic errors of detected corners look like a small one.

    Raises:
        ValueError: fewer than `FEWEST_VIEWS` views.
    """
    if len(views) < FEWEST_VIEWS:
        raise ValueError(f"calibrate_with_board: expected at least {FEWEST_VIEWS} views, got {len(views)}")
    fits = [_Fit.of(board, views, (width, height), flags) for flags in (_RADTAN, _PINHOLE)]
    found = [fit.without_outliers() for fit in fits if fit is not None]
    # Criteria compare models on the same views: those of the first, which has the smaller errors.
    found = [again for fit in found if (again := _Fit.of(board, found[0].views, (width, height), fit.flags))]
    found = [fit for fit in found if fit.flags == _PINHOLE or fit.displacement_px > MIN_DISTORTION_PX] or found
    return min(found, key=lambda fit: fit.criterion).calibration if found else None


_PINHOLE = cv2.CALIB_ZERO_TANGENT_DIST | cv2.CALIB_FIX_K1 | cv2.CALIB_FIX_K2 | cv2.CALIB_FIX_K3
_RADTAN = cv2.CALIB_FIX_K3


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    """One solution of OpenCV.

    Attributes:
        flags: parameters held fixed.
        numbers: fx, fy, cx, cy, k1, k2, p1, p2; `sigmas`: their standard deviations.
        errors_px: root mean square of the reprojection errors of each view.
    """

    board: Board
    views: list[BoardView]
    size: tuple[int, int]
    flags: int
    numbers: FloatArray
    sigmas: FloatArray
    errors_px: FloatArray
    rms_px: float

    @staticmethod
    def of(board: Board, views: list[BoardView], size: tuple[int, int], flags: int) -> _Fit | None:
        on_board = [board.corners_m[view.numbers].astype(np.float32) for view in views]
        pixels = [view.pixels.astype(np.float32) for view in views]
        start = Camera.assume(*size, fov_deg=60.0).matrix
        try:
            rms, K, distortion, _, _, sigmas, _, errors = cv2.calibrateCameraExtended(
                on_board, pixels, size, start, np.zeros(5), flags=flags | cv2.CALIB_USE_INTRINSIC_GUESS
            )
        except cv2.error:  # no solution: views without any perspective
            return None
        numbers = np.array([K[0, 0], K[1, 1], K[0, 2], K[1, 2], *distortion.ravel()[:4]])
        if not (np.isfinite(numbers).all() and np.isfinite(sigmas).all() and rms > 0 and min(numbers[:2]) > 0):
            return None
        spread, each = np.array(sigmas, np.float64).ravel()[:8], np.array(errors, np.float64).ravel()
        return _Fit(board, views, size, flags, numbers, spread, each, float(rms))

    @property
    def criterion(self) -> float:
        """Bayesian information criterion, up to a constant of the views."""
        measured = 2 * sum(len(view.numbers) for view in self.views)
        lens = 4 if self.flags == _PINHOLE else 8
        return float(measured * np.log(self.rms_px**2) + lens * np.log(measured))

    @property
    def displacement_px(self) -> float:
        """Largest displacement of a corner of the image by the distortion, pixels."""
        camera, (width, height) = self.calibration.camera, self.size
        corners = np.array([[0.0, 0.0], [width - 1.0, 0.0], [0.0, height - 1.0], [width - 1.0, height - 1.0]])
        return float(np.linalg.norm(camera.distorted(camera.normalized(corners)) - corners, axis=1).max())

    def without_outliers(self) -> _Fit:
        """The fit without views of outlying error: a moved or blurred board, or swapped corners."""
        good = self.errors_px <= OUTLYING * np.median(self.errors_px)
        kept = [view for view, is_good in zip(self.views, good, strict=True) if is_good]
        if len(kept) == len(self.views) or len(kept) < FEWEST_VIEWS:
            return self
        return _Fit.of(self.board, kept, self.size, self.flags) or self

    @property
    def calibration(self) -> BoardCalibration:
        fx, fy, cx, cy = (float(number) for number in self.numbers[:4])
        width, height = self.size
        camera = Camera(width=width, height=height, fx=fx, fy=fy, cx=cx, cy=cy)
        if self.flags != _PINHOLE:
            distortion = tuple(float(number) for number in self.numbers[4:])
            camera = Camera(
                width=width, height=height, fx=fx, fy=fy, cx=cx, cy=cy, model="radtan", distortion=distortion
            )
        # fx and fy are strongly correlated through the distance of the board, so their mean is no better than each.
        sigma = float(np.max(self.sigmas[:2] / self.numbers[:2]))
        return BoardCalibration(camera, float(np.hypot(sigma, SYSTEMATIC_SIGMA)), len(self.views), self.rms_px)
