"""Sources that are lists of images and patterns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import write_images

from relocalizer.camera import Camera
from relocalizer.errors import SequenceError
from slam.input.open_source import open_source


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = write_images(tmp_path / "photos", 12)
    for path in folder.iterdir():
        path.rename(folder / f"img{int(path.stem)}.png")
    (folder / "notes.txt").write_text("?")
    return folder


def names(source: object) -> list[str]:
    """Names of the images in the order in which they are read."""
    return [path.stem for path in source._source._index.image_paths]  # type: ignore[attr-defined]


EXPECTED = [f"img{k}" for k in range(12)]


@pytest.mark.parametrize("pattern", ["photos/*.png", "photos/*", "**/img*.png", "photos/img?*.png"])
def test_a_pattern_is_the_images_that_match_it_in_natural_order(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    monkeypatch.chdir(tmp_path)
    source = open_source(pattern)
    assert (names(source), source.length, source.name) == (EXPECTED, 12, "photos")
    assert [frame.index for frame in source] == list(range(12))
    assert "list of images layout: 12 images, no times" in source.description


def test_names_that_a_shell_made_of_a_pattern_are_in_natural_order(photos: Path) -> None:
    source = open_source(sorted(photos.glob("*.png")))
    assert names(source) == EXPECTED


def test_any_other_order_is_kept(photos: Path) -> None:
    given = [photos / f"img{k}.png" for k in (3, 1, 2)]
    assert names(open_source(given)) == ["img3", "img1", "img2"]


def test_times_in_the_names_and_the_camera_beside_them_are_used(photos: Path) -> None:
    for k in range(3):
        (photos / f"img{k}.png").rename(photos / f"1403636579.{9 - k}.png")
    camera = replace(Camera.assume(160, 120, fov_deg=70), assumed=False)
    (photos / "camera.yaml").write_text(camera.to_yaml())
    source = open_source(str(photos / "14*.png"))
    assert [frame.timestamp_ns for frame in source] == [1403636579_700_000_000 + k * 100_000_000 for k in range(3)]
    assert source.camera.fx == pytest.approx(camera.fx)
    assert not source.camera.assumed


def test_a_pattern_of_one_folder_is_the_folder(tmp_path: Path, photos: Path) -> None:
    assert open_source(str(tmp_path / "pho*")).length == 12


def test_a_name_that_looks_like_a_pattern_is_a_name(tmp_path: Path) -> None:
    assert open_source(str(write_images(tmp_path / "desk[1]", 3))).length == 3


def test_a_broken_link_among_them_is_skipped_and_counted(photos: Path) -> None:
    (photos / "img5.png").unlink()
    (photos / "img5.png").symlink_to("nowhere")
    source = open_source(str(photos / "*.png"))
    assert "1 of them missing: links that lead nowhere" in source.description
    assert len(list(source)) == 11


def test_what_cannot_be_a_list_of_images_is_refused_in_one_line(tmp_path: Path, photos: Path) -> None:
    image = photos / "img1.png"
    for given, sentence in (
        ([str(tmp_path / "*.png")], "nothing matches this pattern"),
        ([image, photos / "notes.txt"], "notes.txt: not an image; of several sources each must be one"),
        ([image, photos], "photos: not an image"),
        ([image, image], "img1.png: named twice"),
        ([image, photos / "img99.png"], "img99.png: no such file"),
        ([image], "a single image; pass the folder"),
        ([], "no source was named"),
        (["webcam:0", image], "webcam:0: no such file"),
    ):
        with pytest.raises(SequenceError) as caught:
            open_source(given)
        assert sentence in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_command_takes_several_images_and_says_how_to_continue(
    photos: Path, tmp_path: Path, slam_command, straight_slam, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight_slam()
    monkeypatch.chdir(tmp_path)
    ended = slam_command("run", *sorted(photos.glob("*.png")), "--out", tmp_path / "out")
    assert "list of images layout: 12 images" in ended.err
    assert (
        len((tmp_path / "out" / "trajectory.txt").read_text().splitlines()) == 1 + 10
    )  # those before the initial pair have no pose
