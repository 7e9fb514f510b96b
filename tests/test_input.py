"""Sources of images: folders, videos and live streams, whole and broken, and the thread that reads ahead."""

from __future__ import annotations

import functools
import http.server
import os
import re
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from relocalizer.camera import Camera
from relocalizer.errors import CameraError, SequenceError, UserError
from relocalizer.images import Image
from slam.config.schema import InputConfig
from slam.input.frame_source import FrameSource, RereadableSource
from slam.input.open_source import open_source
from slam.input.rectification import GivenCamera, Rectifier
from slam.input.video_decoding import DecodedFrame, VideoFacts
from slam.map.frames import Frame

CAMERA_YAML = "width: 64\nheight: 48\nfx: 50\nfy: 50\ncx: 32\ncy: 24\n"
AHEAD = InputConfig(prefetch_frames=3)
ALONE = InputConfig(prefetch_frames=0)


def shade(k: int) -> int:
    return 20 + 5 * k


def flat(k: int, width: int = 64, height: int = 48) -> Image:
    """An image of one gray that tells its number."""
    return np.full((height, width, 3), shade(k), dtype=np.uint8)


def number_of(frame: Frame) -> int:
    """The number that `flat` wrote; video encoders make such a gray up to 4 darker."""
    return round((float(np.median(frame.image)) - 18) / 5)


def write_images(folder: Path, count: int, width: int = 64, height: int = 48) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        assert cv2.imwrite(str(folder / f"{k:03d}.png"), flat(k, width, height))
    return folder


def write_video(path: Path, count: int = 20, code: str = "mp4v", width: int = 64, height: int = 48) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*code), 20.0, (width, height))
    assert writer.isOpened()
    for k in range(count):
        writer.write(flat(k, width, height))
    writer.release()
    return path


def opened(place: Path | str, config: InputConfig = AHEAD, **options: Any) -> FrameSource:
    return open_source(str(place), config=config, **options)


def refusal(place: Path | str, **options: Any) -> str:
    """The one line that is said instead of opening or of reading to the end."""
    with pytest.raises(UserError) as caught:
        list(opened(place, **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Images


def test_images_come_in_order_with_index_time_and_camera(tmp_path: Path) -> None:
    source = opened(write_images(tmp_path / "walk", 5))
    frames = list(source)
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]
    assert [number_of(frame) for frame in frames] == [0, 1, 2, 3, 4]
    assert [frame.timestamp_ns for frame in frames][:3] == [0, 33_333_333, 66_666_667]
    assert all(frame.camera is source.camera for frame in frames)
    assert (source.name, source.length, source.dropped) == ("walk", 5, 0)


@pytest.mark.parametrize(
    ("start", "stride", "most", "expected"),
    [
        (0, 1, None, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (3, 1, None, [3, 4, 5, 6, 7, 8, 9]),
        (0, 4, None, [0, 4, 8]),
        (1, 3, 2, [1, 4]),
        (9, 5, 100, [9]),
        (0, 1, 3, [0, 1, 2]),
    ],
)
@pytest.mark.parametrize("kind", ["images", "video"])
def test_start_stride_and_max_frames_choose_images_by_their_number_in_the_source(
    tmp_path: Path, kind: str, start: int, stride: int, most: int | None, expected: list[int]
) -> None:
    place = write_images(tmp_path / "a", 10) if kind == "images" else write_video(tmp_path / "a.avi", 10, "MJPG")
    source = opened(place, start=start, stride=stride, max_frames=most)
    frames = list(source)
    assert [frame.index for frame in frames] == expected
    assert [number_of(frame) for frame in frames] == expected
    assert source.length == len(expected)


def test_timestamps_do_not_depend_on_which_images_are_chosen(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", 10)
    times = {frame.index: frame.timestamp_ns for frame in opened(video)}
    assert all(times[frame.index] == frame.timestamp_ns for frame in opened(video, start=1, stride=3))


def test_one_image_is_a_sequence(tmp_path: Path) -> None:
    assert [frame.index for frame in opened(write_images(tmp_path, 1))] == [0]


def test_reading_twice_gives_the_same(tmp_path: Path) -> None:
    folder = write_images(tmp_path, 4)
    (folder / "002.png").write_bytes(b"")
    source = opened(folder, ALONE)
    once, twice = [frame.index for frame in source], [frame.index for frame in source]
    assert once == twice == [0, 1, 3]
    assert len(source.skipped) == 1


# Images that cannot be read


@pytest.mark.parametrize("config", [AHEAD, ALONE], ids=["ahead", "alone"])
def test_broken_images_are_skipped_and_reported_and_the_others_keep_their_number(
    tmp_path: Path, config: InputConfig
) -> None:
    folder = write_images(tmp_path, 8)
    whole = (folder / "001.png").read_bytes()
    (folder / "001.png").write_bytes(whole[: len(whole) // 2])
    (folder / "002.png").write_bytes(b"")
    (folder / "005.png").write_bytes(b"this is no image")
    source = opened(folder, config)
    assert [frame.index for frame in source] == [0, 3, 4, 6, 7]
    assert [name for name, _ in source.skipped] == ["001.png", "002.png", "005.png"]
    assert "cut off" in source.skipped[0][1]
    assert "an empty file" in source.skipped[1][1]
    assert "not an image" in source.skipped[2][1]


def test_a_truncated_jpeg_is_skipped_and_not_filled_with_gray(tmp_path: Path) -> None:
    for k in range(3):
        cv2.imwrite(str(tmp_path / f"{k}.jpg"), np.random.default_rng(k).integers(0, 255, (48, 64, 3), np.uint8))
    whole = (tmp_path / "1.jpg").read_bytes()
    (tmp_path / "1.jpg").write_bytes(whole[: len(whole) * 3 // 4])
    source = opened(tmp_path)
    assert [frame.index for frame in source] == [0, 2]
    assert [name for name, _ in source.skipped] == ["1.jpg"]


@pytest.mark.parametrize("config", [AHEAD, ALONE], ids=["ahead", "alone"])
def test_at_each_image_just_those_before_it_have_been_skipped(tmp_path: Path, config: InputConfig) -> None:
    folder = write_images(tmp_path, 6)
    for k in (1, 3, 5):
        (folder / f"00{k}.png").write_bytes(b"")
    source = opened(folder, config)
    seen = [(frame.index, len(source.skipped)) for frame in source]
    assert seen == [(0, 0), (2, 1), (4, 2)]
    assert len(source.skipped) == 3


def test_a_first_image_that_is_broken_does_not_matter(tmp_path: Path) -> None:
    folder = write_images(tmp_path, 3)
    (folder / "000.png").write_bytes(b"")
    assert [frame.index for frame in opened(folder)] == [1, 2]


def test_images_that_are_all_broken_are_an_error(tmp_path: Path) -> None:
    folder = write_images(tmp_path, 3)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:40])
    said = refusal(folder)
    assert "none of 3 images can be read" in said
    assert "000.png: the image is cut off" in said


def test_images_that_the_list_names_and_that_are_not_there_are_skipped(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 2)
    (tmp_path / "rgb.txt").write_text("0.0 images/000.png\n0.1 images/gone.png\n0.2 images/001.png\n")
    source = opened(tmp_path)
    assert [frame.index for frame in source] == [0, 2]
    assert [name for name, _ in source.skipped] == ["gone.png"]


# Images of several sizes


@pytest.mark.parametrize("config", [AHEAD, ALONE], ids=["ahead", "alone"])
@pytest.mark.parametrize("odd", [0, 3, 4])
def test_an_image_of_another_size_is_named_before_the_run_and_skipped(
    tmp_path: Path, config: InputConfig, odd: int
) -> None:
    folder = write_images(tmp_path, 5)
    cv2.imwrite(str(folder / f"00{odd}.png"), flat(odd, 48, 64))
    source = opened(folder, config)
    assert f"1 of another size than 64x48, left out (00{odd}.png: 48x64)" in source.description
    assert [frame.index for frame in source] == [k for k in range(5) if k != odd]
    assert [name for name, _ in source.skipped] == [f"00{odd}.png"]
    assert "48x64" in source.skipped[0][1]
    assert "64x48" in source.skipped[0][1]


def test_the_size_of_most_images_counts_and_not_that_of_the_first(tmp_path: Path) -> None:
    folder = write_images(tmp_path, 7)
    for k in range(3):
        cv2.imwrite(str(folder / f"00{k}.png"), flat(k, 32, 24))
    source = opened(folder)
    assert (source.camera.width, source.camera.height) == (64, 48)
    assert "3 of another size than 64x48, left out (000.png: 32x24, 001.png: 32x24, ...)" in source.description
    assert [frame.index for frame in source] == [3, 4, 5, 6]


def test_only_images_that_were_chosen_count(tmp_path: Path) -> None:
    folder = write_images(tmp_path, 9)
    for k in range(4):
        cv2.imwrite(str(folder / f"00{k}.png"), flat(k, 32, 24))
    assert [frame.image.shape for frame in opened(folder, max_frames=4)] == [(24, 32, 3)] * 4
    assert [frame.index for frame in opened(folder, start=4)] == [4, 5, 6, 7, 8]


@pytest.mark.parametrize("sizes", [[(64, 48), (32, 24)] * 3, [(64, 48), (48, 64), (32, 24), (24, 32), (64, 48)]])
def test_images_of_which_no_size_has_more_than_half_are_refused_with_their_sizes(
    tmp_path: Path, sizes: list[tuple[int, int]]
) -> None:
    for k, size in enumerate(sizes):
        cv2.imwrite(str(tmp_path / f"{k}.png"), flat(k, *size))
    said = refusal(tmp_path)
    count = sizes.count((64, 48))
    assert f"{count} images are 64x48 (first: 0.png)" in said
    assert "a sequence needs images of one size" in said


def exif_turned(jpeg: bytes, orientation: int = 6) -> bytes:
    """A JPEG with the tag that says how it is to be turned."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0" + bytes([orientation]) + b"\0\0\0\0\0\0"
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


def test_an_image_counts_as_large_as_it_is_when_turned_upright(tmp_path: Path) -> None:
    """Photos of one phone: stored alike, but one was taken upright; and one stored turned that is like the others."""
    for k in range(5):
        data = cv2.imencode(".jpg", flat(k, 48, 64) if k == 4 else flat(k))[1].tobytes()
        (tmp_path / f"{k}.jpg").write_bytes(exif_turned(data) if k in (2, 4) else data)
    source = opened(tmp_path)
    assert "1 of another size than 64x48, left out (2.jpg: 48x64)" in source.description
    assert [frame.index for frame in source] == [0, 1, 3, 4]


@pytest.mark.parametrize("usual", [1, 6, 8, 3])
@pytest.mark.parametrize("held", [1, 6, 8, 3])
def test_images_of_one_camera_held_in_two_ways_are_turned_alike(tmp_path: Path, usual: int, held: int) -> None:
    """All files store the same sensor's pixels: what is left is one image, turned as most of them are."""
    sensor = np.full((48, 64, 3), 40, np.uint8)
    sensor[:24, :32], sensor[:24, 32:], sensor[24:, :32] = 90, 140, 220
    data = cv2.imencode(".jpg", sensor, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    for k in range(5):
        (tmp_path / f"{k}.jpg").write_bytes(exif_turned(data, held if k in (1, 3) else usual))
    source = opened(tmp_path)
    images = [frame.image for frame in source]
    assert len(images) == 5
    size = "48x64" if usual in (6, 8) else "64x48"
    assert f"{images[0].shape[1]}x{images[0].shape[0]}" == size
    if (held in (6, 8)) == (usual in (6, 8)):  # of one size: nothing to settle
        assert "turned" not in source.description
        return
    assert f"2 of {size[3:]}x{size[:2]} turned to {size}, " in source.description
    assert "(1.jpg, ...)" in source.description
    assert all(np.array_equal(image, images[0]) for image in images)
    assert isinstance(source, RereadableSource)
    with source.with_calibration(GivenCamera(source.camera, "again")).random_access() as read:  # as for an export
        again = read(1)
    assert again is not None
    assert np.array_equal(again, images[0])


def test_portrait_and_landscape_images_in_equal_number_have_one_size_by_their_tags(tmp_path: Path) -> None:
    for k in range(4):
        data = cv2.imencode(".jpg", flat(k))[1].tobytes()
        (tmp_path / f"{k}.jpg").write_bytes(exif_turned(data, (1, 6)[k % 2]))
    assert [frame.image.shape[:2] for frame in opened(tmp_path)] == [(48, 64)] * 4


def test_an_image_of_another_size_is_left_out_whatever_its_tag(tmp_path: Path) -> None:
    for k in range(4):
        data = cv2.imencode(".jpg", flat(k, 32, 24) if k == 2 else flat(k))[1].tobytes()
        (tmp_path / f"{k}.jpg").write_bytes(exif_turned(data, 6 if k == 2 else 1))
    assert [frame.index for frame in opened(tmp_path)] == [0, 1, 3]


def test_a_data_sets_camera_is_of_the_size_that_most_images_have(tmp_path: Path) -> None:
    write_images(tmp_path / "image_0", 4)
    cv2.imwrite(str(tmp_path / "image_0" / "000.png"), flat(0, 32, 24))
    (tmp_path / "calib.txt").write_text("P0: 60 0 31.5 0 0 60 23.5 0 0 0 1 0\n")
    source = opened(tmp_path)
    assert (source.camera.width, source.camera.fx) == (64, 60.0)
    assert [frame.index for frame in source] == [1, 2, 3]


class ChangingVideo:
    """Stands in for the reader of a video whose images change their size from number `at` on, for three images."""

    def __init__(self, count: int = 10, at: int = 4) -> None:
        self.facts = VideoFacts(count=count, rate=20.0, width=64, height=48)
        self._odd = range(at, at + 3)

    def frames(self, start: int = 0, *, exact: bool = True) -> Iterator[DecodedFrame]:
        for k in range(start, self.facts.count or 0):
            yield DecodedFrame(50_000_000 * k, False, functools.partial(self.read, k))

    def read(self, k: int) -> Image:
        return flat(k, 32, 24) if k in self._odd else flat(k)

    def close(self) -> None:
        pass


def test_images_of_a_video_that_changes_its_size_midway_are_skipped_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slam.input.video.VideoReader", lambda target, shown: ChangingVideo())
    source = opened(write_video(tmp_path / "a.mp4", 2))
    assert [frame.index for frame in source] == [0, 1, 2, 3, 7, 8, 9]
    assert [name for name, _ in source.skipped] == ["a frame 4", "a frame 5", "a frame 6"]
    assert "32x24" in source.skipped[0][1]


# Images that have not been fetched

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
ANNEX = b"/annex/objects/SHA256E-s31390--f50d7ac4c6b9031379986bc362fcefb65f1e.png\n"


def test_links_that_lead_nowhere_are_missing_images_and_keep_their_place_in_time(tmp_path: Path) -> None:
    folder = write_images(tmp_path, 10)
    for k in (0, 4):
        (folder / f"00{k}.png").unlink()
        (folder / f"00{k}.png").symlink_to(f".git/annex/objects/{k}")
    source = opened(folder)
    assert "10 images, 2 of them missing: links that lead nowhere" in source.description
    assert "git annex get" in source.description
    frames = list(source)
    assert [frame.index for frame in frames] == [1, 2, 3, 5, 6, 7, 8, 9]
    assert frames[-1].timestamp_ns == 300_000_000
    assert [name for name, _ in source.skipped] == ["000.png", "004.png"]
    assert "a link that leads nowhere (to .git/annex/objects/0)" in source.skipped[0][1]


def test_a_folder_of_nothing_but_such_links_says_so(tmp_path: Path) -> None:
    for k in range(20):
        (tmp_path / f"{k}.png").symlink_to(f".git/annex/objects/{k}")
    said = refusal(tmp_path)
    assert "all 20 images are links that lead nowhere (first: 0.png)" in said
    assert "git annex get or dvc pull" in said


def test_a_link_that_leads_to_itself_is_one_of_them(tmp_path: Path) -> None:
    folder = write_images(tmp_path, 3)
    (folder / "003.png").symlink_to("003.png")
    source = opened(folder)
    assert len(list(source)) == 3
    assert "a link that leads nowhere" in source.skipped[0][1]


@pytest.mark.parametrize(("pointer", "advice"), [(LFS, "git lfs pull"), (ANNEX, "git annex get")])
def test_pointers_in_place_of_images_are_distinguished_from_damaged_ones(
    tmp_path: Path, pointer: bytes, advice: str
) -> None:
    folder = write_images(tmp_path, 6)
    for k in (2, 3):
        (folder / f"00{k}.png").write_bytes(pointer)
    source = opened(folder)
    assert "2 of them not fetched" in source.description
    assert advice in source.description
    frames = list(source)
    assert [frame.index for frame in frames] == [0, 1, 4, 5]
    assert frames[-1].timestamp_ns == 166_666_667
    assert advice in source.skipped[0][1]


@pytest.mark.parametrize(("pointer", "advice"), [(LFS, "git lfs pull"), (ANNEX, "git annex get")])
def test_a_folder_of_nothing_but_pointers_says_what_they_are(tmp_path: Path, pointer: bytes, advice: str) -> None:
    for k in range(3):
        (tmp_path / f"{k}.png").write_bytes(pointer)
    assert advice in refusal(tmp_path)


@pytest.mark.parametrize("given", ["the file", "its folder"])
@pytest.mark.parametrize("kind", ["lfs", "annex", "link"])
def test_a_video_that_has_not_been_fetched_is_distinguished_from_a_damaged_one(
    tmp_path: Path, given: str, kind: str
) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    video = folder / "clip.mp4"
    video.symlink_to(".git/annex/objects/7") if kind == "link" else video.write_bytes(LFS if kind == "lfs" else ANNEX)
    said = refusal(video if given == "the file" else folder)
    assert "clip.mp4" in said
    assert {"lfs": "a Git LFS pointer", "annex": "a git-annex pointer", "link": "a link that leads nowhere"}[
        kind
    ] in said
    assert {"lfs": "git lfs pull", "annex": "git annex get", "link": "git annex get or dvc pull"}[kind] in said


@pytest.mark.parametrize("name", ["rgb.txt", "camera.yaml"])
@pytest.mark.parametrize("kind", ["lfs", "link"])
def test_times_and_cameras_that_have_not_been_fetched_are_not_done_without(
    tmp_path: Path, name: str, kind: str
) -> None:
    folder = write_images(tmp_path / "a", 3)
    (folder / name).write_bytes(LFS) if kind == "lfs" else (folder / name).symlink_to(".git/annex/objects/7")
    said = refusal(folder)
    assert said.startswith(f"{folder / name}: a ")
    assert ("git lfs pull" if kind == "lfs" else "git annex get") in said


def test_a_path_that_is_a_link_to_nowhere_is_no_missing_path(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("/mnt/card/a")
    assert "a link that leads nowhere (to /mnt/card/a)" in refusal(tmp_path / "a")


# Cameras


def test_without_a_camera_one_is_assumed_and_that_is_said_with_the_way_out(tmp_path: Path) -> None:
    source = opened(write_images(tmp_path, 2), InputConfig(assumed_fov_deg=90.0))
    assert source.camera.assumed
    assert source.camera.fx == pytest.approx(32.0)
    assert "no camera given, so focal length 32 px assumed" in source.description
    assert "--camera camera.yaml" in source.description


def test_a_camera_given_by_the_user_counts_before_the_folders_own(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "a", 2)
    (folder / "camera.yaml").write_text(CAMERA_YAML)
    mine = tmp_path / "mine.yaml"
    mine.write_text(CAMERA_YAML.replace("fx: 50", "fx: 77"))
    assert opened(folder).camera.fx == 50.0
    source = opened(folder, camera=mine)
    assert source.camera.fx == 77.0
    assert "mine.yaml" in source.description


def test_a_camera_of_images_in_proportion_is_scaled_and_that_is_said(tmp_path: Path) -> None:
    folder = write_images(tmp_path, 2, 32, 24)
    (folder / "camera.yaml").write_text(CAMERA_YAML)
    source = opened(folder)
    assert (source.camera.width, source.camera.height, source.camera.fx) == (32, 24, 25.0)
    assert source.camera.cx == pytest.approx(15.75)  # (32 + 0.5) / 2 - 0.5
    assert "32x24, camera of camera.yaml, scaled from 64x48" in source.description


@pytest.mark.parametrize("kind", ["images", "video"])
def test_a_camera_of_another_shape_is_refused_with_both_sizes(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    if kind == "images":
        write_images(folder, 2, 64, 40)
    else:
        write_video(folder / "a.avi", 2, "MJPG", 64, 40)
    (folder / "camera.yaml").write_text(CAMERA_YAML)
    said = refusal(folder)
    assert f"{folder / 'camera.yaml'}: the camera is for 64x48 images, but these are 64x40" in said


def test_a_camera_of_the_image_as_it_was_shrunk_is_scaled_back_however_its_sides_were_rounded(tmp_path: Path) -> None:
    folder = write_images(tmp_path, 2, 129, 76)
    (folder / "camera.yaml").write_text(CAMERA_YAML.replace("height: 48", "height: 38"))  # 37.7 was rounded
    source = opened(folder)
    assert source.camera.fx == pytest.approx(50.0 * 129 / 64)
    assert "129x76, camera of camera.yaml, scaled from 64x38" in source.description


OF_MAP = Camera(width=64, height=48, fx=50.0, fy=50.0, cx=32.0, cy=24.0)


def test_a_camera_of_the_map_counts_where_no_other_is_known_and_that_is_said(tmp_path: Path) -> None:
    source = opened(write_images(tmp_path, 2), map_cameras=(OF_MAP,))
    assert source.camera == OF_MAP
    assert next(iter(source)).camera == OF_MAP
    assert source.description.endswith("64x48, camera of the map, as no other was named")


def test_a_camera_of_the_map_is_scaled_to_the_images(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.avi", 2, "MJPG", 256, 192)
    source = opened(video, InputConfig(max_side_px=160), map_cameras=(OF_MAP,))
    assert (source.camera.width, source.camera.fx) == (160, 125.0)
    assert "256x192, camera of the map, as no other was named, scaled from 64x48, shrunk to 160" in source.description


@pytest.mark.parametrize("kind", ["images", "video"])
def test_the_folders_own_camera_counts_before_that_of_the_map(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    write_images(folder, 2) if kind == "images" else write_video(folder / "a.avi", 2, "MJPG")
    (folder / "camera.yaml").write_text(CAMERA_YAML.replace("fx: 50", "fx: 77"))
    assert opened(folder, map_cameras=(OF_MAP,)).camera.fx == 77.0


def test_a_camera_given_by_the_user_counts_before_that_of_the_map(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(CAMERA_YAML.replace("fx: 50", "fx: 77"))
    assert opened(write_images(tmp_path / "a", 2), camera=mine, map_cameras=(OF_MAP,)).camera.fx == 77.0


def test_a_camera_that_the_map_itself_only_assumed_is_taken_and_remains_a_guess(tmp_path: Path) -> None:
    guessed = replace(OF_MAP, assumed=True)
    source = opened(write_images(tmp_path, 2), map_cameras=(guessed,))
    assert source.camera == guessed
    assert source.description.endswith("64x48, no camera given; focal length 50 px of the map, a guess")


def test_a_guess_of_the_map_is_scaled_to_the_images_and_remains_a_guess(tmp_path: Path) -> None:
    guessed = replace(OF_MAP, assumed=True)
    source = opened(write_images(tmp_path, 2, 256, 192), map_cameras=(guessed,))
    assert source.camera.assumed
    assert source.camera.fx == 200.0
    assert source.description.endswith("256x192, no camera given; focal length 200 px of the map, a guess")


def test_a_known_camera_of_the_map_counts_before_one_that_is_a_guess(tmp_path: Path) -> None:
    guessed = replace(OF_MAP, fx=30.0, fy=30.0, assumed=True)
    source = opened(write_images(tmp_path, 2), map_cameras=(guessed, OF_MAP))
    assert source.camera == OF_MAP
    assert source.description.endswith("64x48, camera of the map, as no other was named")


def test_images_of_another_shape_than_the_maps_get_an_assumed_camera_and_the_reason(tmp_path: Path) -> None:
    source = opened(write_images(tmp_path, 2, 64, 40), map_cameras=(OF_MAP,))
    assert source.camera.assumed
    assert "no camera given, and those of the map are of another shape (64x48), so focal length" in source.description


def test_of_two_cameras_of_the_map_the_first_is_taken_and_that_there_are_two_is_said(tmp_path: Path) -> None:
    wide = replace(OF_MAP, fx=30.0, fy=30.0)
    source = opened(write_images(tmp_path, 2), map_cameras=(OF_MAP, wide))
    assert source.camera == OF_MAP
    assert "camera of the map, as no other was named, the first of 2 of this shape" in source.description


EXCHANGED_YAML = CAMERA_YAML.replace("cx: 32\ncy: 24", "cx: 24\ncy: 32")


@pytest.mark.parametrize("kind", ["images", "video"])
@pytest.mark.parametrize("whose", ["mine.yaml", "camera.yaml", "the map"])
def test_a_camera_that_cannot_be_is_refused_whoever_gives_it(tmp_path: Path, kind: str, whose: str) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    write_images(folder, 2) if kind == "images" else write_video(folder / "a.avi", 2, "MJPG")
    mine, options = tmp_path / "mine.yaml", {}
    if whose == "the map":
        options = {"map_cameras": (replace(OF_MAP, cx=24.0, cy=32.0),)}
    elif whose == "mine.yaml":
        mine.write_text(EXCHANGED_YAML)
        options = {"camera": mine}
    else:
        (folder / "camera.yaml").write_text(EXCHANGED_YAML)
    said = refusal(folder, **options)
    assert "cx 24.0 and cy 32.0 are exchanged" in said
    assert whose in said


def test_a_data_sets_calibration_that_cannot_be_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "image_0", 2)
    (tmp_path / "calib.txt").write_text("P0: 0.8 0 31.5 0 0 0.8 23.5 0 0 0 1 0\n")
    said = refusal(tmp_path)
    assert said.startswith(f"{tmp_path / 'calib.txt'}: fx 0.8 and fy 0.8 in images of 64x48")


def test_a_camera_of_the_image_before_it_was_turned_is_refused_with_the_reason(tmp_path: Path) -> None:
    folder = write_images(tmp_path, 2, 48, 64)
    (folder / "camera.yaml").write_text(CAMERA_YAML)
    assert "turned as their rotation tag says" in refusal(folder)


def test_a_missing_camera_file_is_said_before_anything_is_opened(tmp_path: Path) -> None:
    assert "no such camera file" in refusal(tmp_path / "nowhere", camera=tmp_path / "camera.yaml")


def test_large_images_are_shrunk_and_the_camera_with_them(tmp_path: Path) -> None:
    folder = write_images(tmp_path, 2, 320, 240)
    (folder / "camera.yaml").write_text("width: 320\nheight: 240\nfx: 300\nfy: 300\ncx: 159.5\ncy: 119.5\n")
    source = opened(folder, InputConfig(max_side_px=160))
    frame = next(iter(source))
    assert frame.image.shape == (120, 160, 3)
    assert (frame.camera.fx, frame.camera.cx, frame.camera.cy) == (150.0, 79.5, 59.5)
    assert "shrunk to 160x120" in source.description


def test_portrait_images_stay_portrait(tmp_path: Path) -> None:
    source = opened(write_images(tmp_path, 2, 240, 320), InputConfig(max_side_px=160))
    assert next(iter(source)).image.shape == (160, 120, 3)
    assert (source.camera.width, source.camera.height) == (120, 160)


@pytest.mark.parametrize("lens", ["radtan", "fisheye"])
def test_distorted_images_come_out_of_a_pinhole_camera(tmp_path: Path, lens: str) -> None:
    given = Camera(
        width=320,
        height=240,
        fx=160.0,
        fy=160.0,
        cx=160.0,
        cy=120.0,
        model="fisheye" if lens == "fisheye" else "radtan",
        distortion=(-0.2, 0.05, 0.0, 0.0),
    )
    # A bright dot where the lens puts a known ray; it must come out where the pinhole camera projects that ray.
    ray = np.array([[0.35, -0.25, 1.0]])
    project = cv2.fisheye.projectPoints if lens == "fisheye" else cv2.projectPoints
    rays = ray[:, None] if lens == "fisheye" else ray
    (x, y) = project(rays, np.zeros(3), np.zeros(3), given.matrix, np.array(given.distortion))[0].reshape(2)
    rows, columns = np.mgrid[:240, :320]
    dot = (255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "0.png"), dot)
    (tmp_path / "camera.yaml").write_text(
        f"model: {lens}\nwidth: 320\nheight: 240\nfx: 160\nfy: 160\ncx: 160\ncy: 120\ndistortion: [-0.2, 0.05, 0, 0]\n"
    )
    source = opened(tmp_path, InputConfig(max_side_px=240))
    frame = next(iter(source))
    seen = frame.image[..., 0].astype(float)
    rows, columns = np.mgrid[: seen.shape[0], : seen.shape[1]]
    center = np.array([(seen * columns).sum(), (seen * rows).sum()]) / seen.sum()
    assert (frame.camera.model, seen.shape) == ("pinhole", (180, 240))
    assert np.allclose(center, frame.camera.project(ray)[0], atol=0.3)
    assert f"{lens} distortion removed" in source.description


# Videos


@pytest.mark.parametrize(
    ("name", "code"), [("a.mp4", "mp4v"), ("a.mov", "mp4v"), ("a.avi", "MJPG"), ("a.mkv", "MJPG"), ("a.webm", "VP80")]
)
def test_a_video_gives_its_images_at_the_times_of_its_file(tmp_path: Path, name: str, code: str) -> None:
    source = opened(write_video(tmp_path / name, 20, code))
    frames = list(source)
    assert [frame.index for frame in frames] == list(range(20))
    assert [number_of(frame) for frame in frames] == list(range(20))
    assert np.allclose([frame.timestamp_ns for frame in frames], np.arange(20) * 50_000_000, atol=1000)
    assert (source.name, source.length, source.skipped) == ("a", 20, [])
    assert "video: 20 images at 20 a second" in source.description


def test_a_video_in_red_is_red(tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"MJPG"), 20.0, (64, 48))
    writer.write(np.full((48, 64, 3), (0, 0, 250), dtype=np.uint8))
    writer.release()
    assert np.abs(next(iter(opened(tmp_path / "a.avi"))).image[24, 32].astype(int) - (250, 0, 0)).max() < 12


# The rotation matrix of a track header, 16.16 fixed point, for an image to be turned clockwise by so much.
TURNS = {
    90: (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30),
    180: (-65536, 0, 0, 0, -65536, 0, 0, 0, 1 << 30),
    270: (0, -65536, 0, 65536, 0, 0, 0, 0, 1 << 30),
}


@pytest.mark.parametrize(
    ("turn", "size", "corner"), [(90, (48, 64), (0, -1)), (180, (64, 48), (-1, -1)), (270, (48, 64), (-1, 0))]
)
def test_a_phone_video_comes_out_upright(
    tmp_path: Path, turn: int, size: tuple[int, int], corner: tuple[int, int]
) -> None:
    path = tmp_path / "a.mp4"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"mp4v"), 20.0, (64, 48))
    shown = np.zeros((48, 64, 3), dtype=np.uint8)
    shown[:16, :16] = 255  # the white top left corner moves with the turn
    for _ in range(3):
        writer.write(shown)
    writer.release()
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44  # ISO/IEC 14496-12, 8.3.2, version 0
    assert struct.unpack_from(">9i", data, matrix)[0] == 65536
    struct.pack_into(">9i", data, matrix, *TURNS[turn])
    path.write_bytes(data)
    source = opened(path)
    image = next(iter(source)).image
    assert (image.shape[1], image.shape[0]) == size
    assert (source.camera.width, source.camera.height) == size
    bright = {(row, column): int(image[row * 4, column * 4, 0]) for row in (0, -1) for column in (0, -1)}
    assert max(bright, key=lambda place: bright[place]) == corner


def test_a_video_folder_brings_its_camera_and_ground_truth(tmp_path: Path) -> None:
    folder = tmp_path / "room_loop"
    folder.mkdir()
    write_video(folder / "video.mp4", 5)
    (folder / "camera.yaml").write_text(CAMERA_YAML)
    (folder / "groundtruth.txt").write_text("0.0 0 0 0 0 0 0 1\n0.05 1 0 0 0 0 0 1\n")
    source = opened(folder)
    assert source.name == "room_loop"
    assert source.camera.fx == 50.0
    assert source.ground_truth is not None
    assert len(list(source)) == 5
    assert source.description.startswith("video folder layout: video.mp4, ground truth found (2 poses); video: 5 ima")


def test_a_video_beside_a_camera_file_says_that_there_is_one(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", 3)
    (tmp_path / "camera.yaml").write_text(CAMERA_YAML)
    source = opened(video)
    assert source.camera.assumed
    assert f"there is {tmp_path / 'camera.yaml'}" in source.description


def test_a_video_is_recognized_by_its_content_and_not_by_its_suffix(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 3).rename(tmp_path / "concat:clip 1.dat")
    assert len(list(opened(tmp_path / "concat:clip 1.dat"))) == 3


class ClockedVideo(ChangingVideo):
    """A video whose container gives these times, in milliseconds."""

    def __init__(self, times_ms: list[float | None], fps: float) -> None:
        super().__init__(len(times_ms), at=99)
        self._times = times_ms
        self.facts = replace(self.facts, rate=fps)

    def frames(self, start: int = 0, *, exact: bool = True) -> Iterator[DecodedFrame]:
        for k, decoded in enumerate(super().frames()):
            time_ms = self._times[k]
            yield replace(decoded, time_ns=None if time_ms is None else round(time_ms * 1e6))


@pytest.mark.parametrize(
    ("times_ms", "fps", "expected_ms"),
    [
        ([0, 40, 90, 200], 25, [0, 40, 90, 200]),  # a phone's variable rate
        ([0, 0, 0, 0], 25, [0, 40, 80, 120]),  # no times: the rate
        ([0, 40, 40, 120], 25, [0, 40, 80, 120]),  # one repeated
        ([500, 540, 460, 620], 25, [500, 540, 580, 620]),  # one gone back
        ([0, None, 100, 150], 25, [0, 40, 100, 150]),
        ([None, None, None, None], 30, [0, 100 / 3, 200 / 3, 100]),
    ],
)
def test_video_times_increase_whatever_the_container_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times_ms: list[float | None], fps: float, expected_ms: list[float]
) -> None:
    monkeypatch.setattr("slam.input.video.VideoReader", lambda target, shown: ClockedVideo(times_ms, fps))
    times = [frame.timestamp_ns for frame in opened(write_video(tmp_path / "a.mp4", 2))]
    assert np.allclose(times, np.array(expected_ms) * 1e6, atol=2)


@pytest.mark.parametrize(("name", "code"), [("a.avi", "MJPG"), ("a.mkv", "MJPG")])
def test_a_video_cut_in_the_middle_is_played_as_far_as_it_goes_and_that_is_reported(
    tmp_path: Path, name: str, code: str
) -> None:
    path = write_video(tmp_path / name, 40, code)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    source = opened(path)
    frames = list(source)
    assert 5 < len(frames) < 35
    assert [number_of(frame) for frame in frames] == list(range(len(frames)))
    damaged = [(f"a frame {len(frames)}", "cannot be decoded")] * (len(source.skipped) - 1)  # where it was cut
    assert len(damaged) <= 1
    assert source.skipped == [*damaged, ("a", f"the file ends after {len(frames) + len(damaged)} of 40 images")]


class SpoiltVideo(ChangingVideo):
    """A video of which one image decodes."""

    def __init__(self, good: int) -> None:
        super().__init__(at=99)
        self._good = good

    def read(self, k: int) -> Image:
        if k != self._good:
            raise SequenceError("cannot be decoded")
        return flat(k)


def test_a_video_whose_first_images_do_not_decode_is_read_from_the_first_that_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slam.input.video.VideoReader", lambda target, shown: SpoiltVideo(good=3))
    source = opened(write_video(tmp_path / "a.mp4", 2))
    assert [frame.index for frame in source] == [3]
    assert len(source.skipped) == 9


def test_a_video_in_which_nothing_decodes_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", 5, "MJPG")
    data = path.read_bytes()
    path.write_bytes(re.sub(rb"\xff\xd8\xff.*?\xff\xd9", lambda image: bytes(len(image[0])), data, flags=re.DOTALL))
    assert "no image in this video can be decoded (codec mjpeg)" in refusal(path)
    path.write_bytes(data.replace(b"MJPG", b"QQQQ"))
    assert "no image in this video can be decoded (codec unknown)" in refusal(path)


def test_a_video_none_of_whose_chosen_images_decode_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slam.input.video.VideoReader", lambda target, shown: SpoiltVideo(good=0))
    source = opened(write_video(tmp_path / "a.mp4", 2), start=2, stride=3)
    with pytest.raises(SequenceError, match=r"a: none of 3 images can be used; the first: cannot be decoded"):
        list(source)
    assert [name for name, _ in source.skipped] == ["a frame 2", "a frame 5", "a frame 8"]


def test_a_chosen_end_is_no_early_end(tmp_path: Path) -> None:
    source = opened(write_video(tmp_path / "a.mp4", 40), max_frames=5)
    assert len(list(source)) == 5
    assert source.skipped == []


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (lambda data: data[: len(data) // 2], "the video cannot be opened (cut off, damaged, or no video)"),
        (lambda data: b"", "an empty file; expected a video"),
        (lambda data: b"plain text, no video, whatever its name says", "not a video of a known format"),
        (lambda data: data[:32] + bytes(len(data)), "the video cannot be opened"),
        (lambda data: b"#EXTM3U\n#EXTINF:10,\nhttp://example.invalid/a.ts\n", "not a video of a known format"),
    ],
    ids=["cut off", "empty", "text", "zeros", "playlist"],
)
def test_a_file_that_is_no_video_is_refused_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], broken: Callable[[bytes], bytes], sentence: str
) -> None:
    path = write_video(tmp_path / "a.mp4", 20)
    path.write_bytes(broken(path.read_bytes()))
    capfd.readouterr()
    said = refusal(path)
    assert sentence in said
    assert said.startswith(str(path))
    assert "global cap.cpp" not in capfd.readouterr().err


def test_libraries_say_nothing_of_a_broken_video_on_standard_error(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 20)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    program = f"""
        from relocalizer.errors import UserError
        from slam.config.schema import InputConfig
        from slam.input.open_source import open_source
        try:
            open_source({str(path)!r}, config=InputConfig())
        except UserError as error:
            print(error)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert ended.stderr == ""
    assert "the video cannot be opened" in ended.stdout


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    assert "pipe: not a file; a camera is named webcam:0" in refusal(tmp_path / "pipe")
    assert "a link that leads nowhere" in refusal(tmp_path / "loop")
    assert "no such file or folder" in refusal("~nobody-of-that-name/a")
    assert "no such file or folder" in refusal("a\0b")
    assert "File name too long" in refusal("a" * 300)


def test_an_image_that_the_disk_does_not_give_is_skipped(tmp_path: Path) -> None:
    if not Path("/proc/self/mem").exists():
        pytest.skip("needs a file whose reading fails")
    folder = write_images(tmp_path, 4)
    (folder / "002.png").unlink()
    (folder / "002.png").symlink_to("/proc/self/mem")
    os.mkfifo(folder / "0025.png")
    (folder / "0026.png").mkdir()
    source = opened(folder)
    assert [frame.index for frame in source] == [0, 1, 3]
    assert "002.png: cannot be read (Input/output error)" in source.skipped[0][1]


def test_a_folder_that_cannot_be_read_is_passed_over_or_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "images", 2)
    sealed = tmp_path / "private"
    sealed.mkdir()
    allowed = os.access
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != sealed and allowed(path, mode))
    assert len(list(opened(tmp_path))) == 2
    assert "private: cannot be read (Permission denied)" in refusal(sealed)
    sealed.rename(tmp_path / "image_0")
    sealed = tmp_path / "image_0"
    assert "image_0: cannot be read (Permission denied)" in refusal(tmp_path)


def test_a_single_image_is_no_sequence(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    assert "a single image; pass the folder" in refusal(tmp_path / "000.png")


# What a user can ask for, and cannot have


@pytest.mark.parametrize("kind", ["images", "video"])
def test_a_start_beyond_the_end_is_refused(tmp_path: Path, kind: str) -> None:
    place = write_images(tmp_path / "a", 5) if kind == "images" else write_video(tmp_path / "a.avi", 5, "MJPG")
    assert "start 5 is beyond its end (5 images, the first is 0)" in refusal(place, start=5)


def test_a_start_beyond_the_last_image_of_a_cut_video_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", 40, "MJPG")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert "start 39 is beyond the last image" in refusal(path, start=39)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"stride": 0}, "stride: expected 1 or more, got 0"),
        ({"stride": -2}, "stride: expected 1 or more, got -2"),
        ({"start": -1}, "start: expected 0 or more, got -1"),
        ({"max_frames": 0}, "max_frames: expected 1 or more, got 0"),
    ],
)
def test_an_impossible_choice_of_images_is_refused(tmp_path: Path, options: dict[str, int], sentence: str) -> None:
    assert sentence in refusal(write_images(tmp_path, 2), **options)


def test_a_place_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "nowhere: no such file or folder" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("address", ["ftp://example.org/a.mp4", "file:///tmp/a.mp4", "s3://bucket/a"])
def test_an_address_of_an_unknown_kind_is_refused_with_the_known_ones(address: str) -> None:
    said = refusal(address)
    assert said.startswith(f"{address}: cannot open {address.partition(':')[0]}://; expected a folder")


def test_a_webcam_that_is_not_there_is_refused_quietly(capfd: pytest.CaptureFixture[str]) -> None:
    assert "webcam:77: cannot be opened" in refusal("webcam:77")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("spec", ["webcam:", "webcam:front", "webcam:-1"])
def test_a_webcam_without_a_number_is_refused(spec: str) -> None:
    assert "expected webcam:0, webcam:1" in refusal(spec)


def test_an_address_that_is_none_is_refused() -> None:
    assert "http://[::1: not an address" in refusal("http://anna:secret@[::1")


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_an_address_that_does_not_answer_is_refused_without_its_password(scheme: str) -> None:
    said = refusal(f"{scheme}://anna:secret@127.0.0.1:1/live")
    assert said.startswith(f"{scheme}://127.0.0.1:1/live: cannot be opened")


def test_a_device_is_no_video_and_the_way_to_name_a_camera_is_said() -> None:
    assert "/dev/null: not a file; a camera is named webcam:0" in refusal("/dev/null")


def test_a_folder_called_webcam_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "webcam", 2)
    monkeypatch.chdir(tmp_path)
    assert len(list(opened("webcam"))) == 2


# From an address


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address at which the files of a folder, and a motion JPEG stream of ten images, can be had."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(tmp_path))

        def do_GET(self) -> None:
            if not self.path.startswith("/live"):
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=cut")
            self.end_headers()
            for k in range(10):
                data = cv2.imencode(".jpg", flat(k))[1].tobytes()
                head = f"--cut\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                try:
                    self.wfile.write(head.encode() + data + b"\r\n")
                except OSError:
                    return
                time.sleep(0.02)

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_motion_jpeg_stream_is_read_live(served: str) -> None:
    source = opened(f"{served}/live")
    indices = [frame.index for frame in source]
    assert source.length is None
    assert "live stream http://127.0.0.1" in source.description
    assert indices == sorted(set(indices))
    assert len(indices) + source.dropped >= 8


def test_a_video_file_at_an_address_is_played_whole(served: str, tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", 20)
    source = opened(f"{served}/clip.mp4")
    assert [frame.index for frame in source] == list(range(20))
    assert (source.name, source.dropped) == ("clip", 0)


@pytest.mark.parametrize("stage", ["waiting for an image", "using an image"])
def test_an_interrupt_ends_the_program_at_once(tmp_path: Path, stage: str) -> None:
    write_images(tmp_path, 30)
    slow_reading = "image_sequence.read_image = lambda *given: time.sleep(0.5) or whole(*given)"
    program = f"""
        import time
        from slam.config.schema import InputConfig
        from slam.input import image_sequence
        from slam.input.open_source import open_source
        source = open_source({str(tmp_path)!r}, config=InputConfig(prefetch_frames=2))
        whole = image_sequence.read_image
        {slow_reading if stage == "waiting for an image" else ""}
        print("ready", flush=True)
        for frame in source:
            time.sleep({0 if stage == "waiting for an image" else 0.5})
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=10)
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in said


def test_prefetching_changes_nothing_but_the_time(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", 20)
    ahead, alone = list(opened(video, AHEAD)), list(opened(video, ALONE))
    assert [(f.index, f.timestamp_ns) for f in ahead] == [(f.index, f.timestamp_ns) for f in alone]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(ahead, alone, strict=True))


def test_a_camera_that_does_not_fit_is_refused_by_the_optics() -> None:
    calibration = GivenCamera(Camera.assume(640, 480, fov_deg=60), "camera.yaml")
    with pytest.raises(CameraError, match="the camera is for 640x480 images, but these are 600x480"):
        Rectifier(600, 480, calibration, ALONE)
