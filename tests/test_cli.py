from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from slam import __version__
from slam.config import SlamConfig
from slam.console import ProgressLines, state_line
from slam.pipeline import RunStatistics, choose_predictor
from slam.settings import load_config
from slam.trajectory import Trajectory, read_tum, write_tum


def write_truth(path, times_ns):
    poses = np.tile(np.eye(4), (len(times_ns), 1, 1))
    poses[:, 0, 3] = np.arange(len(times_ns)) * 0.5
    poses[:, 1, 3] = np.arange(len(times_ns)) % 3 * 0.1
    write_tum(path, Trajectory(np.array(times_ns), poses))
    return path


def test_help_answers_at_once_and_loads_no_heavy_library():
    code = (
        "import sys\n"
        "from slam.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'numpy', 'scipy', 'torch', 'gtsam', 'faiss', 'rerun', 'cv2', 'rich', 'pydantic', 'yaml'}\n"
        "print('loaded', sorted(heavy & sys.modules.keys()))\n"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    took = time.monotonic() - started
    assert done.stdout.splitlines()[-1] == "loaded []"
    assert took < 2.0  # a fifth of a second on a quiet machine


def test_help_lists_the_verbs_there_are(slam_command):
    ended = slam_command("--help")
    assert ended.code == 0
    listed = [line.split()[0] for line in ended.out.split("Commands:")[1].splitlines() if line.strip()]
    assert listed == ["run", "bench", "eval", "config", "convert", "doctor", "weights"]


@pytest.mark.parametrize("verb", ["run", "bench", "eval", "config", "convert", "doctor", "weights"])
def test_the_help_of_every_verb_has_an_example(slam_command, verb):
    ended = slam_command(verb, "--help")
    assert ended.code == 0
    assert f"    slam {verb}" in ended.out


def test_no_arguments_show_the_help(slam_command):
    ended = slam_command()
    assert ended.code == 2
    assert "Commands:" in ended.out


def test_version_is_printed(slam_command):
    assert slam_command("--version").out == f"reloc3r-slam {__version__}\n"


def test_python_dash_m_slam_is_the_same_command():
    done = subprocess.run([sys.executable, "-m", "slam", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"reloc3r-slam {__version__}\n"


def test_a_run_leaves_a_whole_run_folder(tmp_path, pictures, slam_command, straight_slam):
    straight_slam()
    ended = slam_command("run", pictures, "--out", tmp_path / "out")
    assert ended.code == 0, ended.err
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "config.yaml", "events.jsonl", "report.json", "trajectory.txt", "keyframes.txt", "trajectory_online.txt",
    }  # fmt: skip
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["status"], report["frames"], report["tracked"]) == ("finished", 12, 10)
    assert report["coverage_after_start"] == 1.0
    assert report["stage_ms"]["track"] == {"p50": 6.5, "p95": 11.45}
    assert len(read_tum(tmp_path / "out" / "trajectory.txt")) == 10


def test_a_run_says_what_it_reads_assumes_and_uses(tmp_path, pictures, slam_command, straight_slam):
    straight_slam()
    said = slam_command("run", pictures, "-o", tmp_path / "out", "--predictor", "geometric").err
    assert "12 pictures" in said
    assert "focal length 139 px assumed" in said
    assert "predictor: geometric (as asked)" in said


def test_a_run_ends_with_a_summary_and_the_next_command(tmp_path, pictures, slam_command, straight_slam):
    straight_slam(lost=(7, 8))
    out = slam_command("run", pictures, "-o", tmp_path / "out").out
    assert "8 (66.7 %; 80.0 % since the map began)" in out
    assert "1 time, 2 frames (first: dark)" in out
    assert out.splitlines()[-1].startswith("next: slam eval ")


def test_the_json_of_a_run_is_its_report(tmp_path, pictures, slam_command, straight_slam):
    straight_slam()
    ended = slam_command("run", pictures, "-o", tmp_path / "out", "--json", "--quiet")
    assert json.loads(ended.out) == json.loads((tmp_path / "out" / "report.json").read_text())
    assert ended.err == ""


def test_quiet_says_nothing_when_all_is_well(tmp_path, pictures, slam_command, straight_slam):
    straight_slam()
    ended = slam_command("run", pictures, "-o", tmp_path / "out", "--quiet")
    assert (ended.code, ended.out, ended.err) == (0, "", "")


def test_without_out_the_first_free_number_is_taken(tmp_path, pictures, slam_command, straight_slam, monkeypatch):
    straight_slam()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "pictures-1").mkdir(parents=True)
    assert slam_command("run", pictures).code == 0
    assert (tmp_path / "runs" / "pictures-2" / "report.json").exists()


def test_the_saved_configuration_repeats_the_run(tmp_path, pictures, slam_command, straight_slam):
    straight_slam()
    slam_command("run", pictures, "-o", tmp_path / "a", "--seed", 9, "--set", "features.max_features=800")
    saved = load_config([tmp_path / "a" / "config.yaml"])
    assert (saved.seed, saved.features.max_features, saved.predictor.kind) == (9, 800, "geometric")
    slam_command("run", pictures, "-o", tmp_path / "b", "--config", tmp_path / "a" / "config.yaml")
    assert (tmp_path / "a" / "config.yaml").read_bytes() == (tmp_path / "b" / "config.yaml").read_bytes()


def test_a_run_that_never_began_a_map_ends_with_1_and_the_reason(tmp_path, pictures, slam_command, straight_slam):
    straight_slam(waits=100)
    ended = slam_command("run", pictures, "-o", tmp_path / "out")
    assert ended.code == 1
    assert ended.complaint == (
        "slam: the result is not usable: no map could be begun in 12 frames: too little parallax"
    )
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["usable"] is False


def test_a_run_lost_right_after_the_start_ends_with_1(tmp_path, pictures, slam_command, straight_slam):
    straight_slam(lost=range(3, 12))
    ended = slam_command("run", pictures, "-o", tmp_path / "out")
    assert ended.code == 1
    assert "lost right after the map was begun (dark)" in ended.complaint


def test_a_bug_shows_its_traceback_and_the_report_says_failed(tmp_path, pictures, slam_command, monkeypatch):
    def broken(config, *, observers=()):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("slam.pipeline.build", broken)
    with pytest.raises(ZeroDivisionError):
        slam_command("run", pictures, "-o", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["status"], report["reason"]) == ("failed", "a bug")


def test_start_stride_and_max_frames_select_frames(tmp_path, pictures, slam_command, straight_slam):
    straight_slam(waits=0)
    arguments = ("--start", 2, "--stride", 3, "--max-frames", 3)
    slam_command("run", pictures, "-o", tmp_path / "out", *arguments)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["frames"] == 3


def test_eval_prints_both_alignments_and_the_title(tmp_path, slam_command):
    truth = write_truth(tmp_path / "truth.txt", [k * 10**8 for k in range(30)])
    ended = slam_command("eval", truth, truth)
    assert ended.code == 0
    assert "30 poses matched within 0.02 s" in ended.out
    assert "ATE, Sim(3)" in ended.out
    assert "ATE, SE(3)" in ended.out


def test_eval_takes_a_run_folder_and_gives_json(tmp_path, slam_command):
    truth = write_truth(tmp_path / "trajectory.txt", [k * 10**8 for k in range(30)])
    ended = slam_command("eval", tmp_path, truth, "--json")
    assert json.loads(ended.out)["matched"] == 30


def test_eval_ends_with_1_above_max_ate(tmp_path, slam_command):
    truth = write_truth(tmp_path / "truth.txt", [k * 10**8 for k in range(30)])
    bent = read_tum(truth).world_from_cam.copy()
    bent[:, 2, 3] += np.linspace(0, 4, 30) ** 2
    write_tum(tmp_path / "bent.txt", Trajectory(np.arange(30) * 10**8, bent))
    ended = slam_command("eval", tmp_path / "bent.txt", truth, "--max-ate", 0.01)
    assert ended.code == 1
    assert "is above --max-ate 0.01" in ended.complaint
    assert slam_command("eval", tmp_path / "bent.txt", truth, "--max-ate", 100).code == 0


def test_config_prints_settings_that_load_back(tmp_path, slam_command):
    ended = slam_command("config", "--set", "seed=3")
    path = tmp_path / "printed.yaml"
    path.write_text(ended.out)
    assert load_config([path]) == load_config([], ["seed=3"])


def test_convert_goes_to_kitti_and_back(tmp_path, slam_command):
    truth = write_truth(tmp_path / "truth.txt", [k * 10**8 for k in range(5)])
    assert slam_command("convert", truth, tmp_path / "truth.kitti").code == 0
    assert slam_command("convert", tmp_path / "truth.kitti", tmp_path / "again.tum").code == 0
    assert np.allclose(read_tum(tmp_path / "again.tum").world_from_cam, read_tum(truth).world_from_cam)


def test_doctor_finds_this_environment_usable(slam_command):
    ended = slam_command("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(ended.out)}
    assert ended.code == 0, [check for check in checks.values() if not check["ok"]]
    assert checks["package slam"]["ok"]
    assert "CC BY-NC-SA 4.0" in checks["reloc3r-512"]["finding"]


def test_doctor_tells_how_to_fix_a_missing_library(monkeypatch):
    from slam import doctor

    check = doctor._library("surely_not_there", "surely-not-there", True)
    assert (check.ok, check.finding, check.fix) == (False, "not installed", "pip install surely-not-there")
    assert check.severity == "MISSING"


def test_doctor_survives_a_library_that_kills_its_process():
    from slam import doctor

    answer = doctor._try("import os; os._exit(11)")
    assert (answer.ok, answer.text) == (False, "ended with code 11")


def test_auto_takes_a_network_only_with_an_accelerator():
    kinds = {card: choose_predictor(SlamConfig(), lambda card=card: card).kind for card in ("cuda", "mps", "")}
    assert kinds == {"cuda": "reloc3r-512", "mps": "reloc3r-224", "": "geometric"}


def test_a_predictor_that_was_asked_for_is_taken():
    choice = choose_predictor(load_config([], ["predictor.kind=geometric"]), lambda: "cuda")
    assert (choice.kind, choice.reason) == ("geometric", "as asked")


def test_plain_progress_lines_come_at_most_every_interval():
    lines: list[str] = []
    progress = ProgressLines(lines.append, RunStatistics(), 200, every_s=0.05)
    for frame in range(1, 101):
        progress(frame)
    assert lines == []
    time.sleep(0.06)
    progress(101)
    progress(102)
    assert len(lines) == 1
    assert lines[0].startswith("101/200 frames, initialising, ")


def test_the_state_line_speaks_of_loops_only_when_there_are_some():
    statistics = RunStatistics(keyframes=1)
    assert state_line(statistics, 50, 2.0) == "initialising, 25.0 fps, 1 keyframe"
    statistics.loops_accepted = 2
    assert state_line(statistics, 50, 2.0).endswith("1 keyframe, 2 loops")
