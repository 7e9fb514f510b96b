from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from conftest import write_images
from map_samples import small_map
from safetensors.torch import save_file
from typer.main import get_command

from relocalizer.calibration_windows import FocalChange
from relocalizer.camera import Camera, load_camera
from relocalizer.errors import MapError, OutputError
from relocalizer.intrinsics_correction import CorrectionStep, IntrinsicsCorrection
from relocalizer.maps.map_writer import save_map
from relocalizer.maps.reference_map import Provenance
from relocalizer.network.model import Architecture
from relocalizer.network.weights import random_model
from relocalizer.predictors.checkpoints import RELEASED
from slam import __version__
from slam.cli import app
from slam.cli.text_tables import state_line
from slam.components import predictor_choice
from slam.components.predictor_choice import choose_predictor
from slam.config.loading import load_config
from slam.config.schema import SlamConfig
from slam.evaluation.trajectory import Trajectory
from slam.evaluation.trajectory_files import read_tum, write_tum
from slam.map.lens_evidence import LensEvidence, LensState
from slam.run import runner
from slam.run.run_statistics import RunStatistics


def write_truth(path, times_ns):
    poses = np.tile(np.eye(4), (len(times_ns), 1, 1))
    poses[:, 0, 3] = np.arange(len(times_ns)) * 0.5
    poses[:, 1, 3] = np.arange(len(times_ns)) % 3 * 0.1
    write_tum(path, Trajectory(np.array(times_ns), poses))
    return path


def test_help_loads_no_heavy_library():
    code = (
        "import sys\n"
        "from slam.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'numpy', 'scipy', 'torch', 'gtsam', 'faiss', 'rerun', 'cv2', 'rich', 'pydantic', 'yaml'}\n"
        "print('loaded', sorted(heavy & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded []"


def blas_threads_of(before="", **environment):
    """OPENBLAS_NUM_THREADS in a process of the command line when NumPy is there, after the code `before`."""
    code = (
        "import os\nfrom slam.cli import main\n"
        + before
        + "\ntry:\n    main(['config'])\nexcept SystemExit:\n    pass\n"
        "print('THREADS', os.environ.get('OPENBLAS_NUM_THREADS'))\n"
    )
    kept = {k: v for k, v in os.environ.items() if not k.endswith("NUM_THREADS")} | environment
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=kept)
    return done.stdout.splitlines()[-1].removeprefix("THREADS ")


def test_the_command_line_keeps_the_linear_algebra_to_one_thread():
    assert blas_threads_of() == "1"


@pytest.mark.parametrize("name", ["OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"])
def test_the_threads_that_the_environment_asks_for_stay(name):
    assert blas_threads_of(**{name: "3"}) == ("3" if name == "OPENBLAS_NUM_THREADS" else "None")


def test_a_process_that_uses_numpy_already_keeps_its_environment():
    assert blas_threads_of("import numpy") == "None"


def test_importing_the_packages_leaves_the_environment_alone():
    code = "import os, slam, relocalizer, slam.cli\nprint(os.environ.get('OPENBLAS_NUM_THREADS'))"
    kept = {k: v for k, v in os.environ.items() if not k.endswith("NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=kept)
    assert done.stdout.strip() == "None"


def test_doctor_tells_the_threads_of_the_linear_algebra(monkeypatch):
    from slam.cli import installation_checks as doctor

    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "5")
    assert "OPENBLAS_NUM_THREADS=5" in doctor._blas_threads().finding


def test_help_lists_the_verbs_there_are(slam_command):
    ended = slam_command("--help")
    assert ended.code == 0
    listed = [line.split()[0] for line in ended.out.split("Commands:")[1].splitlines() if line.strip()]
    assert listed == [
        "run", "relocalize", "serve", "calibrate", "view", "explain", "plot", "bench", "benchmark", "train", "eval",
        "config", "convert", "doctor", "map", "data", "weights",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "verb",
    [
        "run",
        "relocalize",
        "calibrate",
        "view",
        "explain",
        "bench",
        "benchmark",
        "train",
        "eval",
        "config",
        "convert",
        "doctor",
        "data",
        "weights",
    ],
)
def test_the_help_of_every_verb_has_an_example(slam_command, verb):
    ended = slam_command(verb, "--help")
    assert ended.code == 0
    assert f"    slam {verb}" in ended.out


def commands_of(command, words=()):
    if not hasattr(command, "commands"):
        return [(words, command)]
    return [found for name, below in command.commands.items() for found in commands_of(below, (*words, name))]


@pytest.mark.parametrize(("words", "command"), commands_of(get_command(app)))
def test_every_example_of_a_help_stands_on_one_line(slam_command, words, command):
    examples = [line.strip() for line in inspect.getdoc(command.callback).splitlines() if line.startswith("  slam ")]
    assert examples
    shown = [line.strip() for line in slam_command(*words, "--help").out.splitlines()]
    assert set(examples) <= set(shown)


@pytest.mark.parametrize(("words", "command"), commands_of(get_command(app)))
def test_help_names_what_an_option_takes_and_not_its_type_in_the_program(slam_command, words, command):
    shown = slam_command(*words, "--help").out
    assert re.findall(r"^  -.*<(?:str|path|list|int|float)[^|>]*>", shown, re.MULTILINE) == []
    assert re.search(r"^Usage:.*[{\[][a-z]", shown) is None


@pytest.mark.parametrize("words", [(), ("map",), ("data",), ("weights",)])
def test_what_a_verb_does_is_listed_to_the_end(slam_command, words):
    assert "..." not in slam_command(*words, "--help").out.split("Commands:")[1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["run"], "Missing argument 'SOURCE'. (slam run --help shows what there is)"),
        (["map", "export", "m", "--format", "pl"], "Invalid value for '--format': 'pl' is not one of 'colmap',"),
        (["map", "export", "m", "--format", "pl"], "(slam map export --help shows what there is)"),
        (["mapp"], "No such command 'mapp'. Did you mean 'map'? (slam --help shows what there is)"),
    ],
)
def test_a_mistake_in_the_words_is_named_with_the_help_that_tells_more(slam_command, words, sentence):
    ended = slam_command(*words)
    assert ended.code == 2
    assert sentence in ended.complaint


def test_no_arguments_show_the_help(slam_command):
    ended = slam_command()
    assert ended.code == 2
    assert "Commands:" in ended.out


def test_version_is_printed(slam_command):
    assert slam_command("--version").out == f"reloc3r-slam {__version__}\n"


def test_python_dash_m_slam_is_the_same_command():
    done = subprocess.run([sys.executable, "-m", "slam", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"reloc3r-slam {__version__}\n"


def test_a_run_leaves_a_whole_run_folder(tmp_path, images, slam_command, straight_slam):
    straight_slam()
    ended = slam_command("run", images, "--out", tmp_path / "out")
    assert ended.code == 0, ended.err
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "config.yaml", "events.jsonl", "report.json", "trajectory.txt", "keyframes.txt", "trajectory_online.txt",
        "frames.csv", "trajectory.png", "report.html",
    }  # fmt: skip
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["status"], report["frames"], report["tracked"]) == ("finished", 12, 10)
    assert report["coverage_after_start"] == 1.0
    assert report["stage_ms"]["track"] == {"p50": 6.5, "p95": 11.45}
    assert len(read_tum(tmp_path / "out" / "trajectory.txt")) == 10


def test_a_run_says_what_it_reads_assumes_and_uses(tmp_path, images, slam_command, straight_slam):
    straight_slam()
    said = slam_command("run", images, "-o", tmp_path / "out", "--predictor", "geometric").err
    assert "12 images" in said
    assert "focal length 139 px assumed" in said
    assert "predictor: geometric (as asked)" in said


def test_a_run_ends_with_a_summary_and_the_next_command(tmp_path, images, slam_command, straight_slam):
    straight_slam(lost=(7, 8))
    out = slam_command("run", images, "-o", tmp_path / "out").out
    assert "8 (66.7 %; 80.0 % since initialization)" in out
    assert "1 time, 2 frames (first: dark)" in out
    run = tmp_path / "out"
    assert f"report: {run / 'report.html'}" in out.splitlines()
    assert [line for line in out.splitlines() if line.startswith("next: ")] == [
        f"next: slam explain {run}", f"next: slam view {run}",
    ]  # fmt: skip


KNOWN = LensEvidence(LensState.KNOWN, 1.1, 0.01)


def camera_file(folder):
    path = folder / "given.yaml"
    path.write_text("width: 160\nheight: 120\nfx: 150\nfy: 150\ncx: 79.5\ncy: 59.5\n")
    return path


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (True, "focal length 165.0 px, +- 1.0 %, found in the footage (150.0 given)"),
        (False, "focal length 152.4 px, +- 1.0 %, found in the footage (138.6 assumed)"),
    ],
)
def test_a_run_says_the_focal_length_it_found_and_the_one_it_began_with(
    given, said, tmp_path, images, slam_command, straight_slam
):
    camera = load_camera(camera_file(tmp_path)) if given else Camera.assume(160, 120, fov_deg=60.0)
    straight_slam(lens=IntrinsicsCorrection().then(CorrectionStep(focal_ratio=(1.1, 1.1)), camera), lens_evidence=KNOWN)
    more = ("--camera", tmp_path / "given.yaml") if given else ("--one-pass",)
    assert said in said_of_camera(slam_command("run", images, "-o", tmp_path / "out", *more))
    assert not load_camera(tmp_path / "out" / "camera.yaml").assumed


def said_of_camera(ended):
    """The summary's words, whichever way the lines were broken."""
    return " ".join(ended.out.split())


def test_a_focal_length_that_is_not_known_is_called_a_guess_everywhere(tmp_path, images, slam_command, straight_slam):
    lens = IntrinsicsCorrection().then(CorrectionStep((1.1, 1.1), is_guess=True), Camera.assume(160, 120, fov_deg=60.0))
    straight_slam(lens=lens, lens_evidence=LensEvidence(LensState.GUESS, 1.1, 0.2, "one plane"))
    said = said_of_camera(slam_command("run", images, "-o", tmp_path / "out"))
    assert "focal length 152.4 px is a guess, +- 20.0 % (138.6 assumed): this footage does not determine it" in said
    assert "found" not in said.split("camera focal")[1].split("speed")[0]
    assert load_camera(tmp_path / "out" / "camera.yaml").assumed
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["lens"]["state"], report["lens"]["has_calibration"]) == ("guess", True)
    assert report["camera"]["assumed"]
    assert any("the focal length is a guess" in reason for reason in report["verdict"]["reasons"])


@pytest.mark.parametrize(
    ("evidence", "said"),
    [
        (LensEvidence(LensState.GUESS, reason="one plane"), "focal length 138.6 px is a guess (assumed)"),
        (
            LensEvidence(LensState.CONTRADICTED, 1.3, 0.01, "the footage wants another"),
            "focal length 138.6 px as given, but the footage wants another",
        ),
        (
            LensEvidence(LensState.CONTRADICTED, 1.2, 0.1, "it changes", FocalChange(0.3, 0.02, 80, 120)),
            "the focal length changes by +30 % (+- 2 %) between frames 80 and 120",
        ),
    ],
)
def test_a_run_says_what_speaks_against_its_camera(evidence, said, tmp_path, images, slam_command, straight_slam):
    straight_slam(lens_evidence=evidence)
    ended = slam_command("run", images, "-o", tmp_path / "out")
    assert said in said_of_camera(ended)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["lens"]["state"] == evidence.state
    assert evidence.findings[0].reason in report["verdict"]["reasons"]
    assert not (tmp_path / "out" / "camera.yaml").exists()


def test_the_focal_lengths_a_run_says_are_those_of_the_images_that_went_in(tmp_path, slam_command, straight_slam):
    large = write_images(tmp_path / "large", 12, width=320, height=240)
    shrunk = load_camera(camera_file(tmp_path))
    (tmp_path / "large" / "camera.yaml").write_text(shrunk.resized(320, 240).to_yaml())
    straight_slam(
        lens=IntrinsicsCorrection().then(CorrectionStep((1.1, 1.1), (-0.03, 0.0)), shrunk), lens_evidence=KNOWN
    )
    out = said_of_camera(slam_command("run", large, "-o", tmp_path / "out", "--set", "input.max_side_px=160"))
    found = load_camera(tmp_path / "out" / "camera.yaml")
    assert f"focal length {found.mean_focal:.1f} px, +- 1.0 %, found in the footage (300.0 given)" in out
    assert found.mean_focal == pytest.approx(330.0, abs=0.1)


def test_a_run_that_found_distortion_alone_says_no_focal_length(tmp_path, images, slam_command, straight_slam):
    camera = camera_file(tmp_path)
    straight_slam(lens=IntrinsicsCorrection().then(CorrectionStep(radial=(-0.03, 0.0)), load_camera(camera)))
    out = slam_command("run", images, "-o", tmp_path / "out", "--camera", camera).out
    assert "at the corners beyond the calibration, now corrected; see camera.yaml" in out
    assert "focal length" not in out


def test_the_json_of_a_run_is_its_report(tmp_path, images, slam_command, straight_slam):
    straight_slam()
    ended = slam_command("run", images, "-o", tmp_path / "out", "--json", "--quiet")
    assert json.loads(ended.out) == json.loads((tmp_path / "out" / "report.json").read_text())
    assert ended.err == ""


def test_quiet_says_nothing_when_all_is_well(tmp_path, images, slam_command, straight_slam):
    straight_slam()
    ended = slam_command("run", images, "-o", tmp_path / "out", "--quiet")
    assert (ended.code, ended.out, ended.err) == (0, "", "")


def test_without_out_the_first_free_number_is_taken(tmp_path, images, slam_command, straight_slam, monkeypatch):
    straight_slam()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "images-1").mkdir(parents=True)
    assert slam_command("run", images).code == 0
    assert (tmp_path / "runs" / "images-2" / "report.json").exists()


def test_the_saved_configuration_repeats_the_run(tmp_path, images, slam_command, straight_slam):
    straight_slam()
    slam_command("run", images, "-o", tmp_path / "a", "--seed", 9, "--set", "features.max_features=800")
    saved = load_config([tmp_path / "a" / "config.yaml"])
    assert (saved.seed, saved.features.max_features, saved.predictor.kind) == (9, 800, "geometric")
    slam_command("run", images, "-o", tmp_path / "b", "--config", tmp_path / "a" / "config.yaml")
    assert (tmp_path / "a" / "config.yaml").read_bytes() == (tmp_path / "b" / "config.yaml").read_bytes()


def test_a_run_that_never_began_a_map_ends_with_1_and_the_reason(tmp_path, images, slam_command, straight_slam):
    straight_slam(waits=100)
    ended = slam_command("run", images, "-o", tmp_path / "out")
    assert ended.code == 1
    assert ended.complaint == ("slam: the run is failed: no map was initialized in 12 frames: too little parallax")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["verdict"]["grade"] == "failed"


def test_a_run_lost_right_after_the_start_ends_with_1(tmp_path, images, slam_command, straight_slam):
    straight_slam(lost=range(3, 12))
    ended = slam_command("run", images, "-o", tmp_path / "out")
    assert ended.code == 1
    assert "lost right after the map was initialized (dark)" in ended.complaint


@pytest.mark.parametrize("is_there", [False, True])
def test_a_run_that_cannot_start_leaves_no_folder(tmp_path, images, slam_command, monkeypatch, is_there):
    def broken(config, *, observers=(), **_):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("slam.system.Slam.create", broken)
    if is_there:
        (tmp_path / "out").mkdir()
    ended = slam_command("run", images, "-o", tmp_path / "out")
    assert ended.code == 70
    assert "Traceback" in ended.err
    assert "internal error: ZeroDivisionError: a bug" in ended.complaint
    assert (tmp_path / "out").exists() == is_there
    assert not is_there or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("lost", "options", "grade", "code"),
    [
        ((), (), "partial", 0),  # 10 of 12 frames, as the map begins with the third
        ((), ("--fail-under", "good"), "partial", 1),
        (range(5, 12), (), "poor", 1),
        (range(5, 12), ("--fail-under", "poor"), "poor", 0),
    ],
)
def test_the_verdict_decides_the_exit_code(tmp_path, images, slam_command, straight_slam, lost, options, grade, code):
    straight_slam(lost=lost)
    ended = slam_command("run", images, "-o", tmp_path / "out", *options)
    assert ended.code == code
    verdict = json.loads((tmp_path / "out" / "report.json").read_text())["verdict"]
    assert verdict["grade"] == grade
    assert any(line.startswith(f"verdict       {grade}: ") for line in ended.out.splitlines())
    assert verdict["reasons"][0] in " ".join(ended.out.split())
    assert (ended.complaint == f"slam: the run is {grade}: {'; '.join(verdict['reasons'])}") == bool(code)


def test_start_stride_and_max_frames_select_frames(tmp_path, images, slam_command, straight_slam):
    straight_slam(waits=0)
    arguments = ("--start", 2, "--stride", 3, "--max-frames", 3)
    slam_command("run", images, "-o", tmp_path / "out", *arguments)
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
    distorted_pixels = read_tum(truth).world_from_cam.copy()
    distorted_pixels[:, 2, 3] += np.linspace(0, 4, 30) ** 2
    write_tum(tmp_path / "distorted.txt", Trajectory(np.arange(30) * 10**8, distorted_pixels))
    ended = slam_command("eval", tmp_path / "distorted.txt", truth, "--max-ate", 0.01)
    assert ended.code == 1
    assert "is above --max-ate 0.01" in ended.complaint
    assert slam_command("eval", tmp_path / "distorted.txt", truth, "--max-ate", 100).code == 0


def test_times_that_a_format_does_not_have_are_assumed_aloud(tmp_path, slam_command):
    truth = write_truth(tmp_path / "truth.txt", [k * 10**8 for k in range(30)])
    assert "assumed" not in slam_command("convert", truth, tmp_path / "poses.kitti").err
    sentence = f"{tmp_path / 'poses.kitti'}: KITTI's format has no times; 10 poses a second assumed"
    assert sentence in slam_command("convert", tmp_path / "poses.kitti", tmp_path / "again.txt").err


def test_eval_overwrites_no_plot(tmp_path, slam_command):
    truth = write_truth(tmp_path / "truth.txt", [k * 10**8 for k in range(30)])
    (tmp_path / "errors.png").write_text("mine")
    ended = slam_command("eval", truth, truth, "--plot", tmp_path / "errors.png")
    assert ended.code == 2
    assert ended.complaint.endswith("errors.png: is there already; choose another name or remove it")
    assert (tmp_path / "errors.png").read_text() == "mine"


@pytest.mark.parametrize(
    ("place", "sentence"),
    [("no/such.txt", "there is no folder {}/no; make it first"), ("file/x.txt", "{}/file is a file where a folder is")],
)
def test_an_output_that_cannot_be_made_is_refused_before_anything_is_read(tmp_path, slam_command, place, sentence):
    (tmp_path / "file").touch()
    ended = slam_command("relocalize", tmp_path / "no map", "no image", "--out", tmp_path / place)
    assert ended.code == 2
    assert sentence.format(tmp_path) in ended.complaint
    assert slam_command("convert", tmp_path / "no path", tmp_path / place).complaint == ended.complaint


def test_a_map_is_refused_before_anything_is_computed_when_a_file_is_in_its_way(tmp_path, slam_command):
    (tmp_path / "file").touch()
    for verb in (["from-poses", "images"], ["merge", "a", "b"], ["export", "a"]):
        ended = slam_command("map", *verb, "-o", tmp_path / "file" / "below" / "map")
        assert ended.code == 2
        assert f"{tmp_path}/file is a file where a folder is needed; choose another place" in ended.complaint


def test_a_recording_without_a_folder_is_refused_before_the_run_folder_is_made(tmp_path, images, slam_command):
    ended = slam_command("run", images, "-o", tmp_path / "out", "--record", tmp_path / "no" / "run.rrd")
    assert ended.code == 2
    assert ended.complaint.endswith(f"there is no folder {tmp_path}/no; make it first")
    assert not (tmp_path / "out").exists()


def test_a_recording_may_go_into_the_run_folder_that_is_not_there_yet(tmp_path, images, slam_command, straight_slam):
    straight_slam()
    out = tmp_path / "new" / "out"
    ended = slam_command("run", images, "-o", out, "--record", out / "run.rrd")
    assert ended.code == 0, ended.err
    assert (out / "run.rrd").stat().st_size > 0


def test_a_verb_that_ctrl_c_ended_says_so(slam_command, monkeypatch):
    def interrupted(given):
        raise KeyboardInterrupt

    monkeypatch.setattr("slam.workers.localization.query_images", interrupted)
    ended = slam_command("relocalize", "map", "images")
    assert ended.code == 130
    assert ended.complaint == "slam: interrupted"


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
    from slam.cli import installation_checks as doctor

    check = doctor._library("surely_not_there", "surely-not-there", True)
    assert (check.ok, check.finding, check.fix) == (False, "not installed", "pip install surely-not-there")
    assert check.severity == "MISSING"


def test_doctor_survives_a_library_that_kills_its_process():
    from slam.cli import installation_checks as doctor

    answer = doctor._try("import os; os._exit(11)")
    assert (answer.ok, answer.text) == (False, "ended with code 11")


def auto(card, *, has_weights=True, settings=()):
    """What `auto` becomes on a machine with this card."""
    return choose_predictor(load_config([], settings), lambda: card, lambda source: has_weights)


def test_auto_takes_a_network_only_with_an_accelerator():
    kinds = {card: auto(card).kind for card in ("cuda", "small-cuda", "mps", "")}
    assert kinds == {"cuda": "reloc3r-512", "small-cuda": "reloc3r-224", "mps": "reloc3r-224", "": "geometric"}
    assert "--predictor geometric takes local features instead" in auto("cuda").reason


@pytest.mark.parametrize(
    ("card", "network"), [("cuda", "reloc3r-512"), ("small-cuda", "reloc3r-224"), ("mps", "reloc3r-224")]
)
def test_auto_takes_local_features_where_the_networks_weights_are_not_here_and_says_how_to_get_them(card, network):
    choice = auto(card, has_weights=False)
    assert choice.kind == "geometric"
    assert f"slam weights fetch {network}" in choice.reason


def test_auto_takes_the_network_whose_weights_were_named():
    assert auto("cuda", settings=["predictor.weights=here.safetensors"]).kind == "reloc3r-512"


def test_the_first_run_on_a_machine_with_a_card_works_without_weights(
    tmp_path, images, slam_command, straight_slam, monkeypatch, hub_cache
):
    straight_slam()
    monkeypatch.setattr("slam.components.predictor_choice.find_accelerator", lambda: "cuda")
    ended = slam_command("run", images, "-o", tmp_path / "out")
    assert ended.code == 0, ended.err
    assert "predictor: geometric (auto: there is a CUDA card, but the weights of reloc3r-512" in ended.err


def test_weights_are_never_fetched_unasked(tmp_path, images, slam_command, monkeypatch, hub_cache):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("relocalizer.predictors.checkpoints._download", lambda hub_id: pytest.fail("fetched"))
    ended = slam_command("run", images, "-o", tmp_path / "out", "--predictor", "reloc3r-224")
    assert ended.code == 2
    assert "slam weights fetch reloc3r-224" in ended.complaint
    assert not (tmp_path / "out").exists()


def test_a_predictor_that_was_asked_for_is_taken():
    choice = choose_predictor(load_config([], ["predictor.kind=geometric"]), lambda: "cuda")
    assert (choice.kind, choice.reason) == ("geometric", "as asked")


RANDOM_MAP = Provenance(predictor="reloc3r-224 (RANDOM WEIGHTS: poses mean nothing)", descriptor="reloc3r-224-gem")


def test_a_map_of_random_weights_is_refused_before_others_are_fetched():
    with pytest.raises(MapError, match="made with random weights, which mean nothing; add --random-weights"):
        predictor_choice.with_predictor_of(RANDOM_MAP, SlamConfig())
    again = predictor_choice.with_predictor_of(RANDOM_MAP, load_config([], ["predictor.random_weights=true"]))
    assert again.predictor.kind == "reloc3r-224"


def test_images_are_not_located_in_a_map_of_random_weights(tmp_path, slam_command):
    save_map(tmp_path / "map", small_map(provenance=RANDOM_MAP))
    write_images(tmp_path / "images", 1)
    ended = slam_command("relocalize", tmp_path / "map", tmp_path / "images" / "00000.png")
    assert ended.code == 2
    assert "only those of geometric, reloc3r-512, reloc3r-224 can be asked here" in ended.complaint


def test_the_state_line_speaks_of_loops_only_when_there_are_some():
    statistics = RunStatistics(keyframes=1)
    assert state_line(statistics, 50, 2.0) == "initializing, 25.0 fps, 1 keyframe"
    statistics.loops_accepted = 2
    assert state_line(statistics, 50, 2.0).endswith("1 keyframe, 2 loops")


TINY = Architecture(enc_embed_dim=32, enc_depth=1, enc_num_heads=2, dec_embed_dim=24, dec_depth=1, dec_num_heads=2)


@pytest.fixture
def tiny_network(monkeypatch):
    monkeypatch.setattr("relocalizer.predictors.reloc3r_predictor.Architecture", lambda: TINY)


@pytest.mark.usefixtures("tiny_network")
def test_a_run_with_random_weights_says_everywhere_that_its_poses_mean_nothing(tmp_path, images, slam_command):
    out = tmp_path / "out"
    ended = slam_command("run", images, "-o", out, "--predictor", "reloc3r-224", "--random-weights")
    assert "WARNING: random weights: the poses mean nothing" in ended.err
    assert ended.complaint.startswith("slam: the run is failed: random weights: the poses mean nothing")
    assert "RANDOM WEIGHTS: THE POSES MEAN NOTHING" in ended.out
    report = json.loads((out / "report.json").read_text())
    assert report["predictor"]["kind"] == "reloc3r-224"
    assert report["predictor"]["random_weights"]
    assert report["frames"] == 12
    assert (report["verdict"]["grade"], ended.code) == ("failed", 1)


def test_the_pose_of_random_weights_is_of_no_use_even_when_a_map_was_made(
    tmp_path, images, slam_command, straight_slam
):
    straight_slam()
    flags = ("--predictor", "reloc3r-512", "--random-weights")
    ended = slam_command("run", images, "-o", tmp_path / "out", *flags)
    assert (ended.code, ended.complaint) == (
        1, "slam: the run is failed: random weights: the poses mean nothing, only the cost is real"
    )  # fmt: skip
    saved = load_config([tmp_path / "out" / "config.yaml"])
    assert saved.predictor.random_weights  # fed back, the run is not taken for one with trained weights


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--random-weights",), "predictor.random_weights: the geometric predictor takes none; add --predictor "),
        (("--weights", "x.pth"), "predictor.weights: the geometric predictor takes none; add --predictor "),
    ],
)
def test_weights_are_refused_by_the_geometric_predictor(tmp_path, images, slam_command, flags, sentence):
    ended = slam_command("run", images, "-o", tmp_path / "out", "--predictor", "geometric", *flags)
    assert ended.code == 2
    assert sentence in ended.complaint
    assert not (tmp_path / "out").exists()


def test_weights_of_a_file_and_random_ones_exclude_each_other(tmp_path, images, slam_command):
    flags = ("--predictor", "reloc3r-224", "--random-weights", "--weights", "x.pth")
    ended = slam_command("run", images, "-o", tmp_path / "out", *flags)
    assert ended.code == 2
    assert "predictor.weights names x.pth too; leave one of them out" in ended.complaint


@pytest.fixture
def page(monkeypatch):
    """A viewer that serves nothing; what happened to it, in order, with `wait` where Ctrl-C is waited for."""
    happened: list[str] = []

    class Page:
        url, problem = "http://127.0.0.1:9090/", ""

        def __init__(self, **options):
            self.url = Page.url if options["view"] == "web" else ""
            happened.append("opened")

        def __call__(self, event):
            pass

        def close(self):
            happened.append("closed")

    monkeypatch.setattr("slam.viz.rerun_viewer.RerunViewer", Page)
    monkeypatch.setattr("slam.run.runner.wait_for_stop_signal", lambda: happened.append("wait"))
    return happened


def test_the_page_is_named_at_the_start_and_stays_after_the_run(tmp_path, images, slam_command, straight_slam, page):
    straight_slam()
    ended = slam_command("run", images, "-o", tmp_path / "out", "--view", "web")
    assert page == ["opened", "wait", "closed"]
    assert "watch at http://127.0.0.1:9090/" in ended.err
    assert ended.complaint == "the run is shown at http://127.0.0.1:9090/ until Ctrl-C"
    assert ended.code == 0


@pytest.mark.parametrize("flags", [("--view", "web", "--no-wait"), ("--record", "run.rrd")])
def test_without_a_page_or_with_no_wait_a_run_ends_at_once(tmp_path, images, slam_command, straight_slam, page, flags):
    straight_slam()
    assert slam_command("run", images, "-o", tmp_path / "out", *flags).code == 0
    assert page == ["opened", "closed"]


def test_a_run_that_ctrl_c_ended_does_not_wait_for_another(
    tmp_path, images, slam_command, straight_slam, page, monkeypatch
):
    straight_slam()
    whole = runner.run
    monkeypatch.setattr(runner, "run", lambda *a, **options: replace(whole(*a, **options), interrupted=True))
    assert slam_command("run", images, "-o", tmp_path / "out", "--view", "web").code == 130
    assert page == ["opened", "closed"]


def test_a_viewer_that_cannot_start_leaves_no_folder(tmp_path, images, slam_command, monkeypatch):
    def broken(**options):
        raise OutputError("no viewer here")

    monkeypatch.setattr("slam.viz.rerun_viewer.RerunViewer", broken)
    ended = slam_command("run", images, "-o", tmp_path / "out", "--view", "web")
    assert (ended.code, ended.complaint) == (2, "slam: no viewer here")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_waiting_ends_by_ctrl_c_and_by_sigterm_and_leaves_their_handlers(number):
    before = signal.getsignal(number)

    def tell():
        while signal.getsignal(number) == before:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=tell, daemon=True).start()
    runner.wait_for_stop_signal()
    assert signal.getsignal(number) == before


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty cache of the hub; nothing may be fetched into it."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "hub"


def in_cache(cache, content, digest):
    """A published checkpoint as the hub's client lays it down: the file is named by its hash."""
    folder = cache / "models--siyan824--reloc3r-512"
    for part in ("refs", "blobs", "snapshots/abc"):
        (folder / part).mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "blobs" / digest).write_bytes(content)
    (folder / "snapshots" / "abc" / "model.safetensors").symlink_to(folder / "blobs" / digest)


def test_weights_where_tells_cache_size_and_license(hub_cache, slam_command):
    ended = slam_command("weights", "where")
    assert ended.code == 0
    assert ended.out.splitlines() == [
        f"cache: {hub_cache}",
        *(
            f"{name} (1.71 GB, license CC BY-NC-SA 4.0 (no commercial use)): not here; slam weights fetch {name}"
            for name in ("reloc3r-512", "reloc3r-224")
        ),
    ]


def test_weights_where_gives_the_file_in_json(hub_cache, slam_command):
    in_cache(hub_cache, b"tensors", "a" * 64)
    weights = json.loads(slam_command("weights", "where", "--json").out)["weights"]
    assert weights["reloc3r-512"]["path"].endswith("snapshots/abc/model.safetensors")
    assert weights["reloc3r-224"]["path"] is None


def test_weights_fetch_offline_is_one_line_with_size_and_license(hub_cache, slam_command):
    ended = slam_command("weights", "fetch", "reloc3r-512")
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1
    assert "1.71 GB, license CC BY-NC-SA 4.0" in ended.err
    assert "HF_HUB_OFFLINE forbids fetching; unset it" in ended.err


def test_weights_fetch_says_size_and_license_before_it_fetches(hub_cache, slam_command, monkeypatch, capsys):
    pytest.importorskip("huggingface_hub", reason="the hub extra is not installed")
    said_before = []

    def download(hub_id):
        said_before.append(capsys.readouterr().err)
        in_cache(hub_cache, b"tensors", "a" * 64)
        return hub_cache / "models--siyan824--reloc3r-512" / "snapshots" / "abc"

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("relocalizer.predictors.checkpoints._download", download)
    ended = slam_command("weights", "fetch", "reloc3r-512")
    assert "1.71 GB, license CC BY-NC-SA 4.0 (no commercial use)" in said_before[0]
    assert ended.complaint == "fetched; next: slam weights verify reloc3r-512"
    assert ended.out.strip().endswith("snapshots/abc/model.safetensors")
    assert slam_command("weights", "fetch", "reloc3r-512").complaint == "it was here already"
    assert len(said_before) == 1


def test_weights_verify_reads_a_checkpoint_and_gives_its_hash(tmp_path, slam_command):
    sizes = Architecture(enc_embed_dim=64, enc_depth=1, enc_num_heads=1, dec_embed_dim=64, dec_depth=1, dec_num_heads=1)
    file = tmp_path / "tiny.safetensors"
    save_file({key: value.clone() for key, value in random_model(sizes).state_dict().items()}, file)
    ended = slam_command("weights", "verify", file, "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert slam_command("weights", "verify", file).out.startswith(f"good: {file}: Reloc3r")


def test_weights_verify_of_what_is_not_here_tells_how_to_fetch_it(hub_cache, slam_command):
    ended = slam_command("weights", "verify", "reloc3r-224")
    assert ended.code == 2
    assert ended.complaint == "slam: weights: reloc3r-224 is not on this machine; slam weights fetch reloc3r-224"


def test_doctor_shows_the_hash_the_hub_gave_without_reading_the_weights(hub_cache):
    from slam.cli import installation_checks as doctor

    in_cache(hub_cache, b"anything", "c0ffee" * 10 + "beef")
    check = doctor._weights(RELEASED["reloc3r-512"], False)
    assert check.ok
    assert "sha256 c0ffeec0ffeec0ff... by the hub (--hash computes it)" in check.finding


def test_doctor_with_hash_finds_damaged_weights(hub_cache):
    from slam.cli import installation_checks as doctor

    in_cache(hub_cache, b"not what was published", "c0ffee" * 10 + "beef")
    check = doctor._weights(RELEASED["reloc3r-512"], True)
    assert (check.ok, check.finding) == (False, "its bytes are not those that the hub gave")
    assert check.fix.endswith("then slam weights fetch reloc3r-512")


def test_doctor_with_hash_confirms_whole_weights(hub_cache):
    from slam.cli import installation_checks as doctor

    digest = hashlib.sha256(b"whole").hexdigest()
    in_cache(hub_cache, b"whole", digest)
    check = doctor._weights(RELEASED["reloc3r-512"], True)
    assert check.ok
    assert f"sha256 {digest[:16]}..., license" in check.finding


def test_after_a_run_of_no_use_the_next_step_is_to_look_at_it(tmp_path, images, slam_command, straight_slam):
    straight_slam(waits=100)
    out = slam_command("run", images, "-o", tmp_path / "out").out
    assert out.splitlines()[-1] == f"next: slam run {images} --record out.rrd"
