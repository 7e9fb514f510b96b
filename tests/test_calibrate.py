"""`slam calibrate`: the camera of stored images, from image pairs or from a board."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import write_images

from relocalizer.board_calibration import (
    SYSTEMATIC_SIGMA,
    Board,
    BoardDetector,
    BoardView,
    calibrate_with_board,
    different_views,
)
from relocalizer.camera import Camera, load_camera
from relocalizer.errors import ConfigError
from relocalizer.images import Image

CHECKERBOARD, CHARUCO = "checkerboard:8x6:0.03", "charuco:9x7:0.03:0.022:DICT_5X5_100"
BUNDLED = Path(__file__).parents[1] / "sequences" / "room_loop"
SQUARE_PX = 40  # side of a square in the texture
PINHOLE = Camera(width=480, height=360, fx=400.0, fy=404.0, cx=246.0, cy=174.0)
RADTAN = Camera(
    width=480, height=360, fx=310.0, fy=310.0, cx=238.0, cy=181.0, model="radtan", distortion=(-0.25, 0.06, 0.0, 0.0)
)


def texture(board: Board) -> Image:
    """The board with a white border of one square."""
    if board.kind == "charuco":
        dictionary = cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, board.dictionary))
        size = (board.columns, board.rows)
        drawn = cv2.aruco.CharucoBoard(size, board.square_m, board.marker_m, dictionary)
        gray = drawn.generateImage((board.columns * SQUARE_PX, board.rows * SQUARE_PX))
    else:
        y, x = np.mgrid[: board.rows + 1, : board.columns + 1]
        gray = np.kron((x + y) % 2 * 255, np.ones((SQUARE_PX, SQUARE_PX))).astype(np.uint8)
    return np.pad(gray, SQUARE_PX, constant_values=255)


def seen(board: Board, camera: Camera, turn: tuple[float, float, float], place: tuple[float, float, float]) -> Image:
    """The image of a board; `turn` is a rotation vector, `place` the position of the board's middle, meters."""
    fine = camera.resized(2 * camera.width, 2 * camera.height)
    drawn = texture(board)
    rotation, meters = np.asarray(cv2.Rodrigues(np.array(turn))[0]), board.square_m / SQUARE_PX
    middle = 0.5 * (np.array(drawn.shape[::-1]) - 1.0)
    corner = np.array(place) - rotation[:, :2] @ middle * meters
    directions_from_texture = np.column_stack([rotation[:, :2] * meters, corner])
    pixels = np.stack(np.meshgrid(np.arange(fine.width), np.arange(fine.height)), axis=-1).reshape(-1, 1, 2)
    rays = cv2.undistortPoints(pixels.astype(np.float64), fine.matrix, np.array([*fine.distortion, 0.0, 0.0, 0.0, 0.0]))
    x = np.linalg.inv(directions_from_texture) @ np.column_stack([rays.reshape(-1, 2), np.ones(len(rays))]).T
    maps = [(x[k] / x[2]).reshape(fine.height, fine.width).astype(np.float32) for k in (0, 1)]
    image = cv2.remap(drawn, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=(120.0,))
    image = cv2.resize(image, (camera.width, camera.height), interpolation=cv2.INTER_AREA)
    noise = np.random.default_rng(1).normal(0.0, 2.0, image.shape)
    return cv2.cvtColor(np.clip(image + noise, 0, 255).astype(np.uint8), cv2.COLOR_GRAY2RGB)


def film(folder: Path, board: Board, camera: Camera, *, count: int = 16, tilt: float = 0.6) -> Path:
    """Images of a board held in different ways."""
    folder.mkdir()
    for number in range(count):
        angle = 2.4 * number
        turn = (tilt * np.cos(angle), tilt * np.sin(angle), 0.3 * np.sin(1.7 * number))
        place = (0.06 * np.sin(1.3 * number), 0.04 * np.cos(2.1 * number), 0.4 + 0.06 * np.sin(0.9 * number))
        cv2.imwrite(str(folder / f"{number:03d}.png"), seen(board, camera, turn, place))
    return folder


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films of a checkerboard and of a ChArUco board."""
    root = tmp_path_factory.mktemp("boards")
    film(root / "checkerboard", Board.parse(CHECKERBOARD), PINHOLE)
    film(root / "charuco", Board.parse(CHARUCO), RADTAN)
    return root


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Boards


def test_a_checkerboard_gives_the_pinhole_camera(slam_command: Any, boards: Path, here: Path) -> None:
    ended = slam_command("calibrate", boards / "checkerboard", "--board", CHECKERBOARD, "--json")
    assert ended.code == 0, ended.err
    found, camera = json.loads(ended.out), load_camera(here / "camera.yaml")
    assert found["state"] == "found"
    assert camera.model == "pinhole"
    assert camera.fx == pytest.approx(PINHOLE.fx, rel=2 * found["focal_sigma"])
    assert camera.fy == pytest.approx(PINHOLE.fy, rel=2 * found["focal_sigma"])
    assert (camera.cx, camera.cy) == pytest.approx((PINHOLE.cx, PINHOLE.cy), abs=2.0)
    assert 0.0 < found["rms_px"] < 0.5
    assert 0.0 < found["focal_sigma"] < 0.02


def test_a_charuco_board_gives_the_distortion(slam_command: Any, boards: Path, here: Path) -> None:
    ended = slam_command("calibrate", boards / "charuco", "--board", CHARUCO, "-o", "lens.yaml")
    assert ended.code == 0, ended.err
    camera = load_camera(here / "lens.yaml")
    assert camera.model == "radtan"
    assert camera.mean_focal == pytest.approx(RADTAN.fx, rel=0.01)
    directions = np.array([[0.5, 0.3], [-0.5, 0.2], [0.2, -0.4], [0.4, 0.4]])
    assert np.abs(camera.distorted(directions) - RADTAN.distorted(directions)).max() < 2.0
    assert "views of a charuco, reprojection error" in (here / "lens.yaml").read_text().splitlines()[0]
    assert "reprojection error" in ended.out
    assert "k1 -0.2" in ended.out


def test_a_board_seen_from_straight_ahead_does_not_pass_for_a_calibration(slam_command: Any, here: Path) -> None:
    folder = film(here / "flat", Board.parse(CHECKERBOARD), PINHOLE, tilt=0.0)
    ended = slam_command("calibrate", folder, "--board", CHECKERBOARD, "--json")
    if ended.code == 0:
        found = json.loads(ended.out)
        error = abs(np.log(found["focal_px"] / PINHOLE.mean_focal))
        assert error < max(3 * found["focal_sigma"], 0.003)
        assert found["state"] == "guess"
        assert "tilt the board more" in found["reason"]
    else:
        assert ended.code == 1
        assert not (here / "camera.yaml").exists()


def test_one_spoilt_view_does_not_bend_the_camera() -> None:
    board, rng = Board.parse(CHECKERBOARD), np.random.default_rng(2)
    views = []
    for number in range(12):
        turn = np.array([0.6 * np.cos(2.4 * number), 0.6 * np.sin(2.4 * number), 0.1])
        place = np.array([-0.1, -0.08, 0.5])
        pixels, _ = cv2.projectPoints(board.corners_m, turn, place, PINHOLE.matrix, np.zeros(4))
        noise = rng.normal(0.0, 8.0 if number == 5 else 0.1, (len(pixels), 2))
        views.append(BoardView(np.arange(len(pixels)), pixels.reshape(-1, 2) + noise))
    found = calibrate_with_board(board, views, 480, 360)
    assert found is not None
    assert found.views == 11
    assert found.camera.fx == pytest.approx(PINHOLE.fx, rel=0.005)
    assert found.rms_px < 0.2


def test_the_number_of_the_true_error_in_sigmas_is_small() -> None:
    """Standard deviations from OpenCV hold what they promise, over many boards."""
    board, errors = Board.parse(CHECKERBOARD), []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        views = []
        for _ in range(8):
            turn, place = rng.normal(0.0, 0.4, 3), np.array([-0.1, -0.08, 0.5]) + rng.normal(0.0, 0.03, 3)
            pixels, _ = cv2.projectPoints(board.corners_m, turn, place, PINHOLE.matrix, np.zeros(4))
            views.append(
                BoardView(np.arange(len(pixels)), pixels.reshape(-1, 2) + rng.normal(0, 0.3, (len(pixels), 2)))
            )
        found = calibrate_with_board(board, views, 480, 360)
        assert found is not None
        independent = np.sqrt(found.sigma**2 - SYSTEMATIC_SIGMA**2)
        errors.append(np.log(found.camera.mean_focal / PINHOLE.mean_focal) / independent)
    assert 0.5 < np.sqrt(np.mean(np.square(errors))) < 1.6


def test_views_that_do_not_differ_count_once() -> None:
    board = Board.parse(CHECKERBOARD)
    image = seen(board, PINHOLE, (0.3, 0.2, 0.0), (0.0, 0.0, 0.45))
    view = BoardDetector(board).view(image)
    assert view is not None
    assert len(different_views([view] * 10, 600.0)) == 1


def test_too_few_views_end_with_code_1(slam_command: Any, here: Path) -> None:
    folder = film(here / "few", Board.parse(CHECKERBOARD), PINHOLE, count=3)
    ended = slam_command("calibrate", folder, "--board", CHECKERBOARD)
    assert ended.code == 1
    assert "found in 3 of 3 images" in ended.complaint
    assert "at least 5 are needed" in ended.complaint
    assert not (here / "camera.yaml").exists()


def test_the_wrong_board_is_not_found(slam_command: Any, boards: Path, here: Path) -> None:
    ended = slam_command("calibrate", boards / "checkerboard", "--board", CHARUCO)
    assert ended.code == 1
    assert "found in 0 of 16 images" in ended.complaint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("chess", "expected checkerboard:COLUMNSxROWS:SQUARE"),
        ("checkerboard:9x6", "expected checkerboard:COLUMNSxROWS:SQUARE"),
        ("checkerboard:9x6:0", "must be positive"),
        ("checkerboard:9x6:1.2.3", "not a number"),
        ("checkerboard:1x6:0.02", "3 to 100 columns"),
        ("checkerboard:9x6:0.03:0.02", "no markers"),
        ("charuco:9x6:0.03", "needs the side of its markers"),
        ("charuco:9x6:0.03:0.04", "smaller than"),
        ("charuco:9x6:0.03:0.02:DICT_NONE", "no dictionary DICT_NONE"),
        ("charuco:30x30:0.03:0.02:DICT_5X5_50", "50 markers, too few"),
    ],
)
def test_a_board_that_cannot_be_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Board.parse(text)


# Image pairs


def test_the_bundled_sequence_is_calibrated_and_compared(slam_command: Any, here: Path) -> None:
    ended = slam_command("calibrate", BUNDLED, "--preview", "p.jpg")
    assert ended.code == 0, ended.err
    given, camera = load_camera(BUNDLED / "camera.yaml"), load_camera(here / "camera.yaml")
    assert camera.mean_focal == pytest.approx(given.mean_focal, rel=0.04)
    assert "has a calibration already" in ended.err
    assert "standard deviations" in ended.out
    assert "image pairs" in ended.out
    first = (here / "camera.yaml").read_text().splitlines()[0]
    assert first.startswith(f"# focal length {camera.mean_focal:.1f} px +- ")
    preview = cv2.imread(str(here / "p.jpg"))
    assert preview is not None
    assert preview.shape[:2] == (camera.height, 2 * camera.width)


def test_a_still_source_has_no_camera(slam_command: Any, here: Path) -> None:
    folder = here / "still"
    folder.mkdir()
    image = np.random.default_rng(1).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    for number in range(6):
        cv2.imwrite(str(folder / f"{number}.png"), image)
    ended = slam_command("calibrate", folder)
    assert ended.code == 1
    assert "the camera was not determined" in ended.complaint
    assert not (here / "camera.yaml").exists()


# What cannot be


def test_a_file_is_replaced_only_with_force(slam_command: Any, boards: Path, here: Path) -> None:
    (here / "camera.yaml").write_text("mine")
    ended = slam_command("calibrate", boards / "checkerboard", "--board", CHECKERBOARD)
    assert ended.code == 2
    assert "camera.yaml: is there already" in ended.complaint
    assert (here / "camera.yaml").read_text() == "mine"
    assert slam_command("calibrate", boards / "checkerboard", "--board", CHECKERBOARD, "--force").code == 0
    assert load_camera(here / "camera.yaml").fx == pytest.approx(PINHOLE.fx, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.mp4"], "none.mp4: no such file or folder"),
        (["images", "--board", "chess"], "board 'chess'"),
        (["images", "-o", "none/camera.yaml"], "there is no folder none"),
        (["images", "--preview", "p.txt"], "ends in .jpg"),
        (["images", "--start", "9"], "beyond its end"),
        (["images", "--set", "tracking.nothing=1"], "nothing"),
    ],
)
def test_what_a_person_can_fix_is_said_in_one_line(
    slam_command: Callable[..., Any], here: Path, arguments: list[str], said: str
) -> None:
    write_images(here / "images", 3)
    ended = slam_command("calibrate", *arguments)
    assert ended.code == 2
    assert said in ended.complaint
    assert not (here / "camera.yaml").exists()
