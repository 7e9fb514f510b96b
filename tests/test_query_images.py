"""Images to be located: which are meant, and whose camera is theirs."""

from __future__ import annotations

import os
from dataclasses import replace

import cv2
import numpy as np
import pytest
from conftest import write_images

from relocalizer.camera import Camera
from relocalizer.errors import CameraError, SequenceError
from slam.config.schema import InputConfig
from slam.input.query_images import QueryReader, query_images

CAMERA = "width: 160\nheight: 120\nfx: 130\nfy: 130\ncx: 80\ncy: 60\n"
MAP_CAMERA = Camera(width=320, height=240, fx=250.0, fy=250.0, cx=159.5, cy=119.5)


def names(images):
    return [image.path.name for image in images]


def reader(given=None, cameras=(MAP_CAMERA,)):
    return QueryReader(given, cameras, InputConfig())


def test_a_folder_is_all_its_images_at_its_own_times(images):
    lines = [f"{0.5 * k} {k:05d}.png" for k in range(12)]
    (images / "rgb.txt").write_text("\n".join(lines))
    found = query_images([str(images)])
    assert len(found) == 12
    assert found[3].timestamp_ns == 1_500_000_000


def test_a_folder_below_the_home_keeps_its_times_too(images, monkeypatch):
    monkeypatch.setenv("HOME", str(images.parent))
    (images / "rgb.txt").write_text("\n".join(f"{0.5 * k} {k:05d}.png" for k in range(12)))
    assert query_images(["~/images"])[3].timestamp_ns == 1_500_000_000
    assert [p.path for p in query_images(["~/images/00003.png"])] == [images / "00003.png"]
    with pytest.raises(SequenceError, match=r"~nobody-of-that-name/a: no such image or folder"):
        query_images(["~nobody-of-that-name/a"])


def test_a_link_that_leads_nowhere_and_a_pipe_are_reported(tmp_path):
    (tmp_path / "a.jpg").symlink_to(".git/annex/objects/7")
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(SequenceError, match=r"a\.jpg: a link that leads nowhere \(to \.git/annex/objects/7\)"):
        query_images([str(tmp_path / "a.jpg")])
    [pipe] = query_images([str(tmp_path / "pipe.jpg")])
    with pytest.raises(SequenceError, match=r"pipe\.jpg: not a file"):
        reader().read(pipe)


def test_a_camera_that_cannot_be_is_refused_whoever_gives_it(images, tmp_path):
    swapped = CAMERA.replace("cx: 80\ncy: 60", "cx: 60\ncy: 80")
    (tmp_path / "own.yaml").write_text(swapped)
    [image] = query_images([str(images / "00000.png")])
    with pytest.raises(CameraError, match="exchanged"):
        reader(tmp_path / "own.yaml")
    with pytest.raises(CameraError, match=r"the map.*exchanged"):
        reader(cameras=(replace(MAP_CAMERA, cx=119.5, cy=159.5),)).read(image)
    (images / "camera.yaml").write_text(swapped)
    with pytest.raises(CameraError, match=r"camera\.yaml: .* exchanged"):
        query_images([str(images / "00000.png")])


def test_files_and_patterns_are_a_second_apart_in_the_order_given(images):
    found = query_images([str(images / "00007.png"), str(images / "0000[01].png")])
    assert names(found) == ["00007.png", "00000.png", "00001.png"]
    assert [image.timestamp_ns for image in found] == [0, 1_000_000_000, 2_000_000_000]


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(SequenceError, match=r"nowhere\.jpg: no such image or folder"):
        query_images([str(tmp_path / "nowhere.jpg")])


def test_a_pattern_that_finds_folders_alone_finds_no_image(images):
    with pytest.raises(SequenceError, match="no such image or folder"):
        query_images([str(images.parent / "pic*")])


def test_a_video_is_refused_with_the_verb_that_takes_it(tmp_path):
    (tmp_path / "film.mp4").write_bytes(b"\0\0\0\x20ftypisom" + b"\0" * 64)
    for place in (tmp_path, tmp_path / "film.mp4"):
        with pytest.raises(SequenceError, match="--map MAP --localize-only"):
            query_images([str(place)])


def test_the_camera_that_was_given_counts_first(images, tmp_path):
    (images / "camera.yaml").write_text(CAMERA.replace("130", "99"))
    (tmp_path / "own.yaml").write_text(CAMERA)
    [image] = query_images([str(images / "00000.png")])
    assert reader(tmp_path / "own.yaml").read(image).camera.fx == 130


def test_then_that_of_the_images_folder_or_the_one_above(tmp_path):
    folder = write_images(tmp_path / "set" / "images", 2)
    (tmp_path / "set" / "camera.yaml").write_text(CAMERA)
    for given in (folder, folder / "00000.png"):
        assert reader().read(query_images([str(given)])[0]).camera.fx == 130


def test_then_that_of_the_map_at_the_images_size_and_it_is_said(images):
    asked = reader()
    view = asked.read(query_images([str(images / "00000.png")])[0])
    assert (view.camera.width, view.camera.fx) == (160, 125.0)
    assert "camera of the map, as no other was named, scaled from 320x240" in asked.notes[0]


def test_an_image_of_another_shape_goes_without_a_camera_to_a_predictor_that_needs_none(images):
    square = (Camera(width=300, height=300, fx=250, fy=250, cx=150, cy=150),)
    asked = QueryReader(None, square, InputConfig(max_side_px=160), camera_needed=False)
    cv2.imwrite(str(images / "00000.png"), np.zeros((150, 320, 3), np.uint8))
    view = asked.read(query_images([str(images / "00000.png")])[0])
    assert (view.image.shape, view.camera) == ((75, 160, 3), None)
    assert asked.notes == [
        "00000.png: 320x150, no camera known, so compared with keyframes alone; with --camera landmarks count too"
    ]
    asked.read(query_images([str(images / "00000.png")])[0])
    assert len(asked.notes) == 1


def test_an_image_of_another_shape_than_the_maps_asks_for_a_camera(images):
    asked = reader(cameras=(Camera(width=300, height=300, fx=250, fy=250, cx=150, cy=150),))
    with pytest.raises(CameraError, match=r"160x120, and the map's cameras have another shape \(300x300\)"):
        asked.read(query_images([str(images / "00000.png")])[0])
