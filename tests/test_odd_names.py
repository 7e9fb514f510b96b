"""Names of files that are no UTF-8, that the locale cannot spell, or that hold a line break."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from conftest import write_images

from relocalizer.errors import SequenceError
from slam.config.schema import InputConfig
from slam.input.captures import open_capture
from slam.input.open_source import open_source
from slam.plain_text import plain
from slam.run.files import write_atomically

ALONE = InputConfig(prefetch_frames=0)
LATIN = os.fsdecode(b"vid\xe9o")  # as old archives and Windows shares give it
SLAM = [sys.executable, "-m", "slam"]


def write_video(path: Path, frames: int = 6) -> Path:
    plain_path = path.parent / "plain.avi"
    writer = cv2.VideoWriter(str(plain_path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"MJPG"), 20.0, (64, 48))
    for k in range(frames):
        writer.write(np.full((48, 64, 3), 20 + 5 * k, np.uint8))
    writer.release()
    return with_current_ids(plain_path, path)


def with_current_ids(there: Path, path: Path) -> Path:
    try:
        there.rename(path)
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    return path


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """The folder for temporary files, to look at what is left there."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("given", ["the file", "its folder"])
def test_a_video_whose_name_is_no_utf8_is_read_and_leaves_nothing_behind(tmp_path, temporary, given):
    folder = tmp_path / "a"
    folder.mkdir()
    video = write_video(folder / f"{LATIN}.avi")
    source = open_source(str(video if given == "the file" else folder), config=ALONE)
    assert list(temporary.iterdir()) == []
    frames = iter(source)
    assert next(frames).index == 0
    assert list(temporary.iterdir()) == []
    assert [frame.index for frame in frames] == [1, 2, 3, 4, 5]
    source.description.encode()
    assert source.name == ("vid_o" if given == "the file" else "a")


def test_a_broken_video_of_such_a_name_is_refused_in_one_line_and_leaves_nothing_behind(tmp_path, temporary):
    video = write_video(tmp_path / f"{LATIN}.avi")
    video.write_bytes(video.read_bytes()[:40])
    with pytest.raises(SequenceError, match="the video cannot be opened"):
        open_source(str(video), config=ALONE)
    assert list(temporary.iterdir()) == []


def test_an_address_that_is_no_utf8_is_spelled_in_percents(monkeypatch):
    asked = []
    whole = cv2.VideoCapture
    monkeypatch.setattr("cv2.VideoCapture", lambda target, *options: asked.append(target) or whole())
    for address in (f"http://127.0.0.1:1/{LATIN}.mp4?a=1&b=%20", "http://127.0.0.1:1/ü.mp4"):
        assert not open_capture(address).isOpened()
    assert asked == ["http://127.0.0.1:1/vid%E9o.mp4?a=1&b=%20", "http://127.0.0.1:1/ü.mp4"]


def test_a_source_whose_name_is_as_long_as_names_may_be_is_refused_with_the_advice_to_choose_another(
    tmp_path, slam_command, straight_slam, monkeypatch
):
    straight_slam()
    monkeypatch.chdir(tmp_path)
    ended = slam_command("run", write_images(tmp_path / ("x" * 255), 3))
    assert ended.code == 2
    assert "cannot be written (File name too long); choose another folder with --out" in ended.complaint


def test_a_folder_of_such_a_name_becomes_a_run_whose_files_can_be_read(
    tmp_path, slam_command, straight_slam, monkeypatch
):
    straight_slam()
    monkeypatch.chdir(tmp_path)
    folder = with_current_ids(write_images(tmp_path / "images", 5), tmp_path / LATIN)
    (folder / os.fsdecode(b"00004\xff.png")).write_bytes(b"")
    ended = slam_command("run", folder, "--camera", camera_file(tmp_path / f"{LATIN}.yaml"))
    assert ended.code == 0, ended.err
    run = tmp_path / "runs" / "vid_o-1"
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert report["skipped"][0]["name"] == os.fsdecode(b"00004\xff.png")  # nothing is lost of a name
    assert [json.loads(line)["event"] for line in (run / "events.jsonl").read_text().splitlines()][-1] == "RunFinished"
    as_json = slam_command("run", folder, "--json")
    assert json.loads(as_json.out)["source"]["name"] == "vid_o"


def camera_file(path: Path) -> Path:
    path.write_text("width: 160\nheight: 120\nfx: 130\nfy: 130\ncx: 80\ncy: 60\n")
    return path


def test_a_name_with_a_line_break_is_one_line_in_all_that_is_said(tmp_path, slam_command, straight_slam, monkeypatch):
    straight_slam()
    monkeypatch.chdir(tmp_path)
    folder = write_images(tmp_path / "two\nlines", 5)
    ended = slam_command("run", folder)
    assert ended.code == 0, ended.err
    assert (tmp_path / "runs" / "two_lines-1").is_dir()
    assert "two\nlines" not in ended.out + ended.err


def test_text_that_cannot_be_written_is_escaped_and_reads_back(tmp_path):
    text = json.dumps({"name": LATIN, "ü": "日本"}, ensure_ascii=False)
    write_atomically(tmp_path / "a.json", text)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"name": LATIN, "ü": "日本"}


def test_plain_text_keeps_letters_of_all_scripts():
    assert plain("aus ü 日本 a-b.c") == "aus ü 日本 a-b.c"
    assert plain("a\tb\x1b[2J\x85c\u2028d\udce9") == "a_b_[2J_c_d_"


# Other locales need a process of their own


def in_locale(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    env = {**{k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))}, **environment}
    env["PYTHONPATH"] = str(Path(__file__).parents[1])
    return subprocess.run(
        [*SLAM, *map(str, arguments)], capture_output=True, timeout=120, check=False, env=env, cwd=cwd
    )


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_a_video_of_a_utf8_name_is_read_in_a_locale_without_utf8(tmp_path):
    video = write_video(tmp_path / "übung.avi", 1)
    ended = in_locale("run", video, cwd=tmp_path, **ASCII)
    assert ended.returncode == 2, ended.stderr  # one image is too few for SLAM, but it was read
    assert b"1 usable image" in ended.stderr
    assert b"Traceback" not in ended.stderr


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, ASCII], ids=["output", "all"])
def test_results_are_said_in_a_locale_that_cannot_spell_the_folder(tmp_path, environment):
    folder = write_images(tmp_path / "aus ü", 12)
    out = in_locale("run", folder, "-o", tmp_path / "läufe", cwd=tmp_path, **environment)
    assert out.returncode in (0, 1), out.stderr
    assert b"Traceback" not in out.stderr
    assert b"frames" in out.stdout
    as_json = in_locale("run", folder, "--json", "-o", tmp_path / "zweiter", cwd=tmp_path, **environment)
    assert json.loads(as_json.stdout)["frames"] == 12
    viewed = in_locale(
        "view", tmp_path / "läufe", "--record", tmp_path / "läufe" / "x.rrd", cwd=tmp_path, **environment
    )
    assert b"Traceback" not in viewed.stderr, viewed.stderr


def test_a_list_may_name_images_in_the_bytes_of_their_names(tmp_path):
    images = write_images(tmp_path / "images", 3)
    with_current_ids(images / "00001.png", images / f"{LATIN}.png")
    with_current_ids(images / "00002.png", images / "übung.png")
    names = [b"00000.png", b"vid\xe9o.png", "übung.png".encode()]
    (tmp_path / "rgb.txt").write_bytes(b"".join(b"0.%d images/%s\n" % (k, name) for k, name in enumerate(names)))
    assert [frame.index for frame in open_source(str(tmp_path), config=ALONE)] == [0, 1, 2]


def test_settings_that_name_such_a_path_are_written_and_read_back(tmp_path):
    write_atomically(tmp_path / "a.yaml", yaml.safe_dump({"weights": LATIN}))
    assert yaml.safe_load((tmp_path / "a.yaml").read_text(encoding="utf-8")) == {"weights": LATIN}


def test_everything_else_can_be_done_with_a_run_of_such_a_name(tmp_path, slam_command, monkeypatch):
    """Every verb that takes a path, with paths that are no UTF-8, as far as it gets without a map."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "truth.txt").write_text("".join(f"{k} {k} {k % 2} 0 0 0 0 1\n" for k in range(5)))
    odd = with_current_ids(Path(shutil.copy(tmp_path / "truth.txt", tmp_path / "copy.txt")), tmp_path / f"{LATIN}.txt")
    assert slam_command("eval", odd, odd, "--plot", f"{LATIN}.png").code == 0
    assert (tmp_path / f"{LATIN}.png").stat().st_size > 1000
    assert slam_command("eval", odd, odd, "--json").code == 0
    assert slam_command("convert", odd, f"{LATIN}.kitti").code == 0
    for verb in (
        ("run", f"{LATIN}2"), ("view", LATIN), ("map", "info", LATIN), ("map", "export", LATIN, "-o", f"{LATIN}3"),
        ("map", "merge", LATIN, LATIN, "-o", f"{LATIN}4"), ("map", "from-poses", LATIN, "-o", f"{LATIN}5"),
        ("relocalize", LATIN, f"{LATIN}6"), ("bench", LATIN), ("run", odd.parent, "--camera", LATIN),
        ("run", odd.parent, "--config", LATIN), ("run", odd.parent, "--map", LATIN),
        ("run", odd.parent, "--weights", LATIN, "--predictor", "reloc3r-224"),
    ):  # fmt: skip
        ended = slam_command(*verb)
        assert ended.code == 2, (verb, ended)
        assert ended.complaint.startswith("slam: "), (verb, ended)
