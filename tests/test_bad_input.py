"""Everything a person can get wrong: one line that says what to do, and exit code 2."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from slam.config.loading import dump_config
from slam.config.schema import SlamConfig
from slam.evaluation.trajectory_files import read_tum

SLAM = [sys.executable, "-m", "slam"]


@pytest.fixture
def refused(slam_command, tmp_path, monkeypatch):
    """Run a command that must be refused; gives its one line."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> str:
        ended = slam_command(*arguments)
        assert ended.code == 2, ended
        assert ended.complaint.startswith("slam: ")
        assert "Traceback" not in ended.err
        assert ended.out == ""
        return ended.complaint.removeprefix("slam: ")

    return call


def write_tum_folder(folder: Path, stamps: list[str]) -> Path:
    (folder / "rgb").mkdir(parents=True)
    lines = []
    for k, stamp in enumerate(stamps):
        cv2.imwrite(str(folder / "rgb" / f"{k}.png"), np.full((60, 80, 3), k, np.uint8))
        lines.append(f"{stamp} rgb/{k}.png")
    (folder / "rgb.txt").write_text("\n".join(lines) + "\n")
    return folder


def write_video(path: Path, frames: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 30, (160, 120))
    noise = np.random.default_rng(1).integers(0, 255, (120, 400, 3), dtype=np.uint8)
    for k in range(frames):
        writer.write(np.ascontiguousarray(noise[:, 2 * k % 200 :][:, :160]))
    writer.release()
    return path


# --- sources ---------------------------------------------------------------------------------------------


def test_a_missing_folder(refused):
    assert "nowhere" in refused("run", "nowhere")


def test_an_empty_folder(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty" in refused("run", "empty")


def test_a_folder_without_images(refused, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("hello")
    assert "notes" in refused("run", "notes")


def test_a_file_that_is_no_video(refused, tmp_path):
    (tmp_path / "letter.mp4").write_text("dear reader")
    assert "letter.mp4" in refused("run", "letter.mp4")


def test_a_video_of_no_bytes(refused, tmp_path):
    (tmp_path / "none.mp4").touch()
    assert "none.mp4" in refused("run", "none.mp4")


def test_a_video_cut_off_before_its_index(refused, tmp_path):
    whole = write_video(tmp_path / "whole.mp4", 60).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    assert "cut.mp4" in refused("run", "cut.mp4")


def test_a_sequence_of_one_image(refused, tmp_path, images, straight_slam):
    straight_slam()
    for path in sorted(images.iterdir())[1:]:
        path.unlink()
    assert "1 " in refused("run", "images")


def test_timestamps_that_go_back(refused, tmp_path):
    write_tum_folder(tmp_path / "desk", ["1.0", "1.1", "1.05", "1.2"])
    assert "rgb.txt" in refused("run", "desk")


def test_images_that_change_their_size(slam_command, tmp_path, images, straight_slam):
    straight_slam()
    cv2.imwrite(str(images / "00006.png"), np.zeros((90, 100, 3), np.uint8))
    ended = slam_command("run", images, "-o", tmp_path / "out")
    if ended.code == 0:  # the odd one is left out, with a count
        assert "1 unreadable" in ended.out
    else:
        assert ended.code == 2
        assert "00006.png" in ended.complaint


def test_a_camera_file_that_is_missing(refused, images):
    assert "none.yaml" in refused("run", "images", "--camera", "none.yaml")


def test_a_camera_of_another_image_size(refused, tmp_path, images):
    camera = tmp_path / "camera.yaml"
    camera.write_text("width: 640\nheight: 360\nfx: 500\nfy: 500\ncx: 320\ncy: 180\n")
    said = refused("run", "images", "--camera", "camera.yaml")
    assert "640" in said
    assert "160" in said


@pytest.mark.parametrize("damage", [b"", b"not an image", None], ids=["empty", "text", "cut off"])
def test_a_damaged_image_in_the_middle_is_left_out_with_a_count(tmp_path, images, slam_command, straight_slam, damage):
    straight_slam()
    bad = images / "00006.png"
    bad.write_bytes(bad.read_bytes()[:2000] if damage is None else damage)
    ended = slam_command("run", images, "-o", tmp_path / "out")
    assert ended.code == 0, ended.err
    assert "1 unreadable" in ended.out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["frames"] == 11
    assert [skipped["name"] for skipped in report["skipped"]] == ["00006.png"]


# --- settings and arguments ------------------------------------------------------------------------------


def test_an_unknown_key_in_a_file(refused, tmp_path, images):
    (tmp_path / "mine.yaml").write_text("tracks:\n  max_trcks: 3\n")
    assert refused("run", "images", "-c", "mine.yaml") == (
        "mine.yaml: tracks.max_trcks: unknown key; did you mean 'tracks.max_tracks'?"
    )
    assert not (tmp_path / "runs").exists()


def test_weights_for_a_predictor_that_takes_none(refused, images):
    said = refused("run", "images", "--predictor", "geometric", "--weights", "folder")
    assert "the geometric predictor takes none" in said


def test_weights_that_are_not_there(refused, images, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    said = refused("run", "images", "--predictor", "reloc3r-224", "-o", "out")
    assert "reloc3r-224" in said
    assert "CC BY-NC-SA 4.0" in said
    assert "no-such" in refused("run", "images", "--predictor", "reloc3r-224", "--weights", "./no-such")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run"], "Missing"),
        (["rum", "x"], "Did you mean 'run'?"),
        (["run", "images", "--stride", "0"], "stride"),
        (["run", "images", "--max-frames", "1"], "max-frames"),
        (["run", "images", "--predictor", "orb"], "orb"),
        (["run", "images", "--maxframes", "3"], "--maxframes"),
        (["eval", "none.txt", "none.txt"], "none.txt"),
        (["convert", "none.txt", "some.kitti"], "none.txt"),
    ],
    ids=" ".join,
)
def test_a_wrong_argument(refused, images, arguments, said):
    assert said in refused(*arguments)


def test_convert_overwrites_nothing(refused, tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("1.0 0 0 0 0 0 0 1\n")
    assert "b.txt: is there already" in refused("convert", "a.txt", "b.txt")


# --- places to write -------------------------------------------------------------------------------------


def test_an_output_folder_that_holds_something(refused, tmp_path, images):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "trajectory.txt").write_text("precious")
    assert "out: is there already and not empty" in refused("run", "images", "-o", "out")
    assert (tmp_path / "out" / "trajectory.txt").read_text() == "precious"


def test_an_output_folder_below_a_file(refused, tmp_path, images):
    (tmp_path / "file").touch()
    assert "a file stands where a folder is needed" in refused("run", "images", "-o", "file/out")


def test_an_output_folder_that_cannot_be_written(refused, tmp_path, images):
    sealed = tmp_path / "sealed"
    sealed.mkdir(mode=0o500)
    target = Path("/proc/slam-out") if os.geteuid() == 0 else sealed / "out"
    if not target.parent.is_dir():
        pytest.skip("root, and no /proc to refuse it")
    assert f"{target}: cannot be written (" in refused("run", "images", "-o", target)


@pytest.mark.parametrize(("name", "said"), [("old.rrd", "is there already"), ("film.mp4", "ends in .rrd")])
def test_a_recording_that_exists_or_has_another_suffix(refused, tmp_path, images, name, said):
    (tmp_path / name).touch()
    assert said in refused("run", "images", "--record", name)


def slam_process(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [*SLAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, **options)  # type: ignore[call-overload, no-any-return]


def test_a_disk_that_fills_up_while_writing(tmp_path, endless):
    """A limit on file sizes makes the log's writes fail just as a full disk does."""
    limit = len(dump_config(SlamConfig()).encode()) + 500

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    out = tmp_path / "out"
    ended = slam_process("run", endless, "-o", out, "--max-frames", 100, preexec_fn=limit_files)
    assert ended.returncode == 2, ended.stderr
    assert (
        f"EventLog raised an error and receives no further events: {out / 'events.jsonl'}: cannot be written ("
        in ended.stderr
    )
    assert ": cannot be written (" in ended.stderr.strip().splitlines()[-1]
    assert "Traceback" not in ended.stderr
    report = json.loads((out / "report.json").read_text())
    assert report["frames"] == 100
    assert {Path(error["error"].partition(":")[0]).name for error in report["errors"]} == {"events.jsonl", "thumbnails"}


def test_a_disk_that_is_really_full(tmp_path, images):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = 'mount -t tmpfs -o size=12k none "$0" && '
    alone = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*alone, mount + "true", disk], capture_output=True, check=False).returncode
    ):
        pytest.skip("no small disk can be mounted here")
    command = [*alone, mount + 'exec "$@"', disk, *SLAM, "run", str(images), "-o", disk / "out"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 2, ended.stderr
    assert "No space left on device" in ended.stderr.strip().splitlines()[-1]
    assert "Traceback" not in ended.stderr


# --- interruption ----------------------------------------------------------------------------------------


@pytest.fixture
def endless(tmp_path, images) -> Path:
    """The same twelve images, there and back, four thousand times."""
    folder = tmp_path / "endless"
    folder.mkdir()
    there = sorted(images.iterdir())
    back_and_forth = [*there, *there[-2:0:-1]]
    for k in range(4000):
        (folder / f"{k:05d}.png").symlink_to(back_and_forth[k % len(back_and_forth)])
    return folder


def started_run(source: Path, out: Path, *, frames: int = 30) -> subprocess.Popen[str]:
    """A run in another process that has some frames behind it."""
    command = [*SLAM, "run", str(source), "-o", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log, patience = out / "events.jsonl", time.monotonic() + 600
    while not log.exists() or log.read_text().count("FrameProcessed") < frames:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < patience, "the run does not get going"
        time.sleep(0.02)
    return process


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=["Ctrl-C", "terminate", "closed terminal"]
)
def test_an_interrupted_run_leaves_a_readable_folder(tmp_path, endless, number):
    process = started_run(endless, tmp_path / "out")
    process.send_signal(number)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "(interrupted)" in out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["status"] == "interrupted"
    assert 30 <= report["frames"] < 4000
    if report["tracked"]:
        assert len(read_tum(tmp_path / "out" / "trajectory.txt")) == report["tracked"]
    last = json.loads((tmp_path / "out" / "events.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["interrupted"]) == ("RunFinished", True)


def test_a_run_that_is_to_outlive_its_terminal_does(tmp_path, images):
    """As `nohup` asks for: SIGHUP is ignored by who starts the run."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = started_run(images, tmp_path / "out", frames=1)
    finally:
        signal.signal(signal.SIGHUP, before)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=600)
    assert process.returncode == 1  # nothing to see in these images
    assert json.loads((tmp_path / "out" / "report.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("closed", ["both", "stdout", "stderr"])
def test_who_stops_reading_the_words_does_not_end_the_run(tmp_path, images, closed):
    """As `slam run ... 2>&1 | head -1` does."""
    reader, writer = os.pipe()
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    streams |= dict.fromkeys(["stdout", "stderr"] if closed == "both" else [closed], writer)
    command = [*SLAM, "run", str(images), "-o", str(tmp_path / "out")]
    process = subprocess.Popen(command, text=True, **streams)
    os.close(writer)
    if closed != "stdout":
        os.read(reader, 1)
    os.close(reader)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 1, err  # nothing to see in these images
    assert "Traceback" not in (err or "")
    assert json.loads((tmp_path / "out" / "report.json").read_text())["status"] == "finished"


def test_a_killed_run_leaves_whole_lines_and_says_that_it_was_running(tmp_path, endless):
    process = started_run(endless, tmp_path / "out")
    process.kill()
    process.communicate(timeout=600)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["status"] == "running"
    for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines():
        json.loads(line)
