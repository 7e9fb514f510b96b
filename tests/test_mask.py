"""Parts of the image that are to be ignored: a mask image, and rectangles in camera.yaml."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import Ended, write_images

from relocalizer.camera import Camera, load_camera
from relocalizer.config import FeaturesConfig, GeometricConfig
from relocalizer.errors import CameraError, MaskError
from relocalizer.interfaces import CalibratedImage
from relocalizer.predictors.geometric_predictor import GeometricPredictor
from slam.config.schema import InputConfig, TracksConfig
from slam.input.mask import ignored_in, mask_of
from slam.input.open_source import open_source
from slam.input.posed_images import open_posed
from slam.input.query_images import QueryReader, query_images
from slam.input.rectification import GivenCamera, Rectifier
from slam.run.summary import summary_rows
from slam.tracking.klt import KltTracker

CAMERA = "width: 160\nheight: 120\nfx: 130\nfy: 130\ncx: 80\ncy: 60\n"
DISTORTED = CAMERA + "distortion: [-0.3, 0.05, 0, 0]\n"


def written(path: Path, image: np.ndarray[Any, Any]) -> Path:
    assert cv2.imwrite(str(path), image)
    return path


def lower_half(width: int = 160, height: int = 120, *, white: int = 255) -> np.ndarray[Any, Any]:
    """Black below: the lower half is to be ignored."""
    image = np.zeros((height, width), np.uint8)
    image[: height // 2] = white
    return image


# Reading


@pytest.mark.parametrize("white", [255, 200, 1])
def test_black_is_ignored_and_white_is_used_however_white_is_written(tmp_path: Path, white: int) -> None:
    mask = mask_of(160, 120, written(tmp_path / "m.png", lower_half(white=white)))
    assert mask is not None
    assert (mask.dtype, mask.shape) == (np.uint8, (120, 160))
    assert np.array_equal(mask, lower_half())


def test_a_mask_saved_as_jpeg_is_black_where_it_is_nearly_black(tmp_path: Path) -> None:
    mask = mask_of(160, 120, written(tmp_path / "m.jpg", lower_half()))
    assert mask is not None
    assert (mask[:58] == 255).all()
    assert (mask[62:] == 0).all()


def test_a_mask_in_proportion_is_resized_to_the_images(tmp_path: Path) -> None:
    mask = mask_of(160, 120, written(tmp_path / "m.png", lower_half(640, 480)))
    assert np.array_equal(mask, lower_half())  # type: ignore[arg-type]


def test_without_a_mask_and_without_rectangles_there_is_none() -> None:
    assert mask_of(160, 120, None) is None


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        (np.zeros((120, 160), np.uint8), r"m\.png: black everywhere, so nothing would be used; .*white"),
        (np.full((120, 160), 255, np.uint8), r"m\.png: white everywhere, so it masks nothing; .*black"),
        (lower_half(160, 160), r"m\.png: the mask is 160x160, the images are 160x120; .*same shape"),
        (lower_half(120, 160), r"m\.png: the mask is 120x160, the images are 160x120; .*same shape"),
    ],
)
def test_a_mask_that_cannot_be_meant_is_refused(tmp_path: Path, image: np.ndarray[Any, Any], complaint: str) -> None:
    with pytest.raises(MaskError, match=complaint):
        mask_of(160, 120, written(tmp_path / "m.png", image))


def test_a_mask_that_is_not_there_or_no_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match=r"none\.png: cannot be read as a mask"):
        mask_of(160, 120, tmp_path / "none.png")
    (tmp_path / "text.png").write_text("black below")
    with pytest.raises(MaskError, match=r"text\.png: cannot be read as a mask"):
        mask_of(160, 120, tmp_path / "text.png")


# Rectangles


def test_rectangles_in_pixels_and_as_shares_are_the_same_regions(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(CAMERA + "ignore: [[0, 90, 160, 120], [16, 0, 32, 12]]\n")
    (tmp_path / "b.yaml").write_text(CAMERA + "mask_rectangles: [[0.0, 1.0, 0.75, 1.0], [0.1, 0.2, 0.0, 0.1]]\n")
    masks = [mask_of(160, 120, None, ignored_in(tmp_path / name)) for name in ("a.yaml", "b.yaml")]
    expected = np.full((120, 160), 255, np.uint8)
    expected[90:] = 0
    expected[:12, 16:32] = 0
    assert np.array_equal(masks[0], expected)  # type: ignore[arg-type]
    assert np.array_equal(masks[1], expected)  # type: ignore[arg-type]


def test_the_camera_itself_is_read_as_without_rectangles(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(CAMERA + "ignore: [[0, 90, 160, 120]]\n")
    (tmp_path / "b.yaml").write_text(CAMERA)
    assert load_camera(tmp_path / "a.yaml") == load_camera(tmp_path / "b.yaml")
    assert ignored_in(tmp_path / "b.yaml") == ()


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("ignore: 5", r"ignore: expected a list of \[left, top, right, bottom\]"),
        ("ignore: [[1, 2, 3]]", r"ignore: expected \[left, top, right, bottom\], got \[1, 2, 3\]"),
        ("ignore: [[a, 2, 3, 4]]", r"ignore: expected \[left, top, right, bottom\]"),
        ("ignore: [[.nan, 2, 3, 4]]", r"ignore: expected \[left, top, right, bottom\]"),
        ("ignore: [[30, 2, 3, 40]]", r"ignore: \[30, 2, 3, 40\]: right must be larger than left"),
        ("ignore: [[3, 50, 30, 40]]", r"ignore: \[3, 50, 30, 40\]: .*bottom .*larger than top"),
        ("ignore: [[200, 0, 300, 40]]", r"ignore: \[200, 0, 300, 40\]: outside the 160x120 image"),
        ("ignore: [[0, 0, 160, 120]]", "cover the whole image"),
        ("mask_rectangles: [[0.0, 160, 0.75, 1.0]]", r"mask_rectangles: \[0.0, 160, 0.75, 1.0\]: .*from 0 to 1"),
        ("mask_rectangles: [[0.5, 0.2, 0.75, 1.0]]", r"mask_rectangles: .*x_max must be larger than x_min"),
    ],
)
def test_rectangles_that_cannot_be_meant_are_refused(tmp_path: Path, lines: str, complaint: str) -> None:
    (tmp_path / "camera.yaml").write_text(CAMERA + lines + "\n")
    with pytest.raises((MaskError, CameraError), match=rf"camera\.yaml: .*{complaint}|{complaint}"):
        mask_of(160, 120, None, ignored_in(tmp_path / "camera.yaml"))


# Through the optics


def test_the_mask_is_shrunk_with_the_images(tmp_path: Path) -> None:
    path = written(tmp_path / "m.png", lower_half(640, 480))
    rectifier = Rectifier(640, 480, None, InputConfig(max_side_px=160, mask=str(path)))
    assert np.array_equal(rectifier.mask, lower_half())  # type: ignore[arg-type]
    assert "50 % of the image masked" in rectifier.note


def test_the_mask_is_undistorted_with_the_images(tmp_path: Path) -> None:
    (tmp_path / "camera.yaml").write_text(DISTORTED)
    drawn = np.full((120, 160), 255, np.uint8)
    cv2.circle(drawn, (130, 90), 12, 0, -1)
    calibration = GivenCamera(load_camera(tmp_path / "camera.yaml"), "camera.yaml")
    rectifier = Rectifier(160, 120, calibration, InputConfig(mask=str(written(tmp_path / "m.png", drawn))))
    seen = rectifier(np.repeat(drawn[..., None], 3, axis=2), "it")[..., 0]
    assert rectifier.mask is not None
    assert set(np.unique(rectifier.mask)) == {0, 255}
    assert np.array_equal(rectifier.mask > 0, seen > 127)
    assert not np.array_equal(rectifier.mask, drawn)


def test_rectangles_are_in_pixels_of_the_camera_and_follow_images_of_another_size(tmp_path: Path) -> None:
    (tmp_path / "camera.yaml").write_text(CAMERA + "ignore: [[0, 60, 160, 120]]\n")
    folder = write_images(tmp_path / "big", 2, width=320, height=240)
    source = open_source(str(folder), config=InputConfig(), camera=tmp_path / "camera.yaml")
    assert np.array_equal(source.mask, lower_half(320, 240))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["images", "video"])
def test_every_kind_of_source_has_the_mask_of_the_camera_in_its_folder(tmp_path: Path, kind: str) -> None:
    folder = write_images(tmp_path / "walk", 3)
    if kind == "video":
        images = [cv2.imread(str(path)) for path in sorted(folder.glob("*.png"))]
        folder = tmp_path / "film"
        folder.mkdir()
        writer = cv2.VideoWriter(str(folder / "video.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 30, (160, 120))
        for image in images:
            writer.write(image)
        writer.release()
    (folder / "camera.yaml").write_text(CAMERA + "ignore: [[0, 60, 160, 120]]\n")
    for ahead in (0, 2):
        source = open_source(str(folder), config=InputConfig(prefetch_frames=ahead))
        assert np.array_equal(source.mask, lower_half())  # type: ignore[arg-type]
        source.close()


# Where points are found


def test_the_tracker_neither_finds_nor_follows_points_in_the_mask(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "walk", 2, width=320, height=240)
    first, second = (cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in sorted(folder.glob("*.png")))
    tracker = KltTracker(TracksConfig(), FeaturesConfig(), lower_half(320, 240))
    features = tracker.detect(first)
    assert len(features) > 50
    assert (features.pixels[:, 1] < 120).all()
    pixels = KltTracker(TracksConfig(), FeaturesConfig()).detect(first).pixels
    found, ok = tracker.follow(first, second, pixels, pixels)
    assert 50 < ok.sum() < len(ok)
    assert (found[ok, 1] < 120).all()


def test_the_predictor_finds_no_points_in_the_mask_of_a_view(tmp_path: Path) -> None:
    image = cv2.imread(str(sorted(write_images(tmp_path / "w", 1, width=320, height=240).glob("*.png"))[0]))
    camera = Camera.assume(320, 240, fov_deg=60)
    predictor = GeometricPredictor(FeaturesConfig(), GeometricConfig())
    [encoded] = predictor.encode([CalibratedImage(image, camera, mask=lower_half(320, 240))])
    assert len(encoded.features) > 50  # type: ignore[attr-defined]
    assert (encoded.features.pixels[:, 1] < 120).all()  # type: ignore[attr-defined]


def test_images_to_be_located_and_those_of_a_map_from_poses_have_the_mask(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "walk", 3)
    (folder / "camera.yaml").write_text(CAMERA + "ignore: [[0, 60, 160, 120]]\n")
    [image, *_] = query_images([str(folder)])
    view = QueryReader(None, (), InputConfig()).read(image)
    assert np.array_equal(view.mask, lower_half())  # type: ignore[arg-type]
    poses = "".join(f"{k / 30:.9f} {k} 0 0 0 0 0 1\n" for k in range(3))
    (tmp_path / "poses.txt").write_text(poses)
    source = open_posed(folder, tmp_path / "poses.txt", config=InputConfig())
    assert all(np.array_equal(p.mask, lower_half()) for p in source.images)  # type: ignore[arg-type]


# At the terminal


def test_a_run_says_how_much_of_the_image_is_masked(
    tmp_path: Path, slam_command: Callable[..., Ended], straight_slam: Callable[..., None]
) -> None:
    straight_slam()
    folder, mask = write_images(tmp_path / "walk", 12), written(tmp_path / "m.png", lower_half())
    ended = slam_command("run", folder, "-o", tmp_path / "run", "--mask", mask)
    assert "50 % of the image masked" in ended.err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["masked_share"] == pytest.approx(0.5)
    assert str(mask) in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.parametrize("verb", ["run", "bench"])
def test_a_mask_of_another_shape_is_refused_in_one_line(
    tmp_path: Path, slam_command: Callable[..., Ended], verb: str
) -> None:
    folder, mask = write_images(tmp_path / "walk", 3), written(tmp_path / "m.png", lower_half(100, 100))
    ended = slam_command(verb, folder, "--mask", mask)
    assert ended.code == 2
    assert "m.png: the mask is 100x100, the images are 160x120" in ended.complaint


def test_the_option_is_explained_by_every_verb_that_finds_points(slam_command: Callable[..., Ended]) -> None:
    for verb in (["run"], ["bench"], ["relocalize"], ["map", "from-poses"]):
        said = " ".join(slam_command(*verb, "--help").out.split())
        assert "--mask" in said, verb


def test_the_summary_says_what_of_the_image_was_no_world(
    tmp_path: Path, slam_command: Callable[..., Ended], straight_slam: Callable[..., None]
) -> None:
    straight_slam()
    folder, mask = write_images(tmp_path / "walk", 12), written(tmp_path / "m.png", lower_half())
    assert "50.0 % of the image" in slam_command("run", folder, "-o", tmp_path / "run", "--mask", mask).out
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["overlay_share"], report["frames_resting"]) == (0.0, 0)
    assert not {"overlay", "at rest"} & dict(summary_rows(report)).keys()
    rows = dict(summary_rows({**report, "overlay_share": 0.12, "frames_resting": 6}))
    assert rows["overlay"].startswith("12.0 % of the points never move in the image (an overlay?); they were left out")
    assert "--mask" in rows["overlay"]
    assert rows["at rest"] == "the camera did not move in 50.0 % of the frames"
