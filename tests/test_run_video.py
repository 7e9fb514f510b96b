"""A run as a video; the command that writes it runs in test_docs.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image as pillow
from test_trajectory_plot import run_folder

from relocalizer.errors import OutputError
from slam.map.image_points import TrackedPoints
from slam.run import run_video
from slam.run.top_view_image import TopView, draw_top_view
from slam.run.trajectory_plot import top_view


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> TopView:
    return top_view(*run_folder(tmp_path_factory.mktemp("runs") / "run", untracked=(20, 21, 22)), "room")


def test_the_view_grows_with_time(view: TopView) -> None:
    times = np.sort(view.path_ns)
    counts = [
        (sum(map(len, part.path)), len(part.keyframes), len(part.landmarks), len(part.loops))
        for part in (view.until(int(times[k])) for k in (0, 10, 30, -1))
    ]
    assert counts == sorted(counts)
    assert [count[0] for count in counts] == [1, 11, 31, len(times)]
    assert counts[-1][1:] == (len(view.keyframes), len(view.landmarks), 0)
    assert view.until(int(times[10])).lost == []
    assert view.until(int(times[30])).lost == [3]


def test_before_the_first_pose_there_is_its_start(view: TopView) -> None:
    assert [len(piece) for piece in view.until(-1).path] == [1]


def test_all_images_have_the_axes_of_the_whole_run(view: TopView) -> None:
    whole, part = draw_top_view(view), draw_top_view(view.until(int(view.path_ns[10])), limits_of=view)
    assert np.array_equal(whole[880:900], part[880:900])  # the lower edge with its ticks
    assert not np.array_equal(whole, part)


def test_points_are_drawn_where_they_are_in_the_smaller_image() -> None:
    nan = (np.nan, np.nan)
    points = TrackedPoints(
        np.array([(200, 100), (600, 500), (1000, 900)], np.float32),
        np.array([(200, 101), (600, 540), nan], np.float32),
        np.ones(3, np.int64), np.array([True, False, False]),
    )  # fmt: skip
    drawn = run_video._with_points(np.zeros((960, 1280, 3), np.uint8), points)
    assert drawn.shape == (480, 640, 3)
    assert tuple(drawn[50, 100]) == run_video.INLIER
    assert tuple(drawn[250, 300]) == run_video.OUTLIER
    assert not drawn[440:460, 490:510].any()


@pytest.mark.parametrize("suffix", [".mp4", ".webp", ".gif"])
def test_each_format_has_every_image_and_the_last_one_longer(suffix: str, tmp_path: Path, monkeypatch: Any) -> None:
    images = [np.full((48, 64, 3), 40 * k, np.uint8) for k in range(5)]
    monkeypatch.setattr(run_video, "video_images", lambda *_: iter(images))
    path = tmp_path / f"run{suffix}"
    run_video.write_video(path, tmp_path, None, "room")
    if suffix == ".mp4":
        with av.open(str(path)) as video:
            shown = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
        assert len(shown) == len(images) + round(run_video.LAST_S * run_video.IMAGES_PER_S)
        assert abs(int(shown[3].mean()) - 120) < 8
    else:
        with pillow.open(path) as moving:
            assert moving.n_frames >= len(images)
            assert moving.info["loop"] == 0


def test_what_cannot_be_a_video_is_refused_in_one_sentence(tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(OutputError, match=r"ends in \.mp4, \.webp or \.gif"):
        run_video.write_video(tmp_path / "run.avi", tmp_path, None, "room")
    monkeypatch.setattr(run_video, "video_images", lambda *_: iter([]))
    with pytest.raises(OutputError, match="no map with images of keyframes"):
        run_video.write_video(tmp_path / "run.mp4", tmp_path, None, "room")
