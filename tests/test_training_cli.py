"""`slam train` and `python -m relocalizer.training`: what they take, say and leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from map_samples import small_map
from test_training_loop import TINY, definite_start, losses_in, opener, settings
from training_world import CAMERA, walk

from relocalizer.maps.map_writer import save_map
from relocalizer.network.weights import load_model
from relocalizer.training.output_files import write_weights
from relocalizer.training.session import train
from slam.components.predictor_choice import choose_predictor
from slam.config.loading import load_config

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a small map and settings for it."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("place")
    save_map(folder / "map", small_map(keyframes=12, landmarks=20))
    own = {
        "architecture": TINY, "resolutions": [[48, 36]], "hold_out_share": 0.4, "epochs": 2, "batch": 4, "lr": 1e-3,
        "log_every": 1, "device": "cpu", "workers": 1,
    }  # fmt: skip
    (folder / "tiny.yaml").write_text(yaml.safe_dump(own))
    whole = own | {"data": {"place": {"layout": "map", "root": str(folder / "map")}}, "tune": "all"}
    (folder / "whole.yaml").write_text(yaml.safe_dump(whole))
    return folder


def test_maps_adapt_a_network_and_it_loads(place, tmp_path, slam_command):
    out = tmp_path / "tuned"
    ended = slam_command("train", "--from-maps", place / "map", "-c", place / "tiny.yaml", "--start", "random",
                         "--tune", "decoder", "-o", out)  # fmt: skip
    assert ended.code == 0, ended.complaint
    before, after, guess, last = ended.out.strip().splitlines()
    assert before.startswith("before: rotation ")
    assert after.startswith("after: rotation ")
    assert guess.startswith("guess: rotation ")
    assert last == f"{out}: weights of {len(losses_in(out))} steps, license: none: random weights"
    assert f"next: slam run SOURCE --predictor reloc3r-512 --weights {out}" in ended.err
    assert load_model(out).architecture.patch_size == 6
    choice = choose_predictor(load_config([], ["predictor.kind=reloc3r-224", f"predictor.weights={out}"]))
    assert choice.reason.startswith("as asked; weights trained from random weights at 48 x 36: median errors ")
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert (config["tune"], config["cache"], config["epochs"]) == ("decoder", "disk", 2)


def test_a_configuration_trains_and_is_resumed(place, tmp_path, slam_command):
    out = tmp_path / "trained"
    ended = slam_command("train", place / "whole.yaml", "--set", "epochs=1", "-o", out, "-q", "--json")
    result = json.loads(ended.out)
    assert result["folder"] == str(out)
    assert set(result) == {"folder", "steps", "skipped", "broken", "license", "before", "after"}
    assert slam_command("train", place / "whole.yaml", "-o", out).complaint.endswith(
        f"{out}: is there already; choose another name or remove it"
    )
    again = slam_command("train", "--resume", "-o", out, "-q", "--json")
    assert json.loads(again.out) == result
    other = slam_command("train", place / "whole.yaml", "--resume", "-o", out)
    assert (other.code, "other settings than now (epochs)" in other.complaint) == (2, True)


def test_a_confidence_head_is_trained_on_maps(place, tmp_path, slam_command):
    start, out = tmp_path / "start", tmp_path / "out"
    train(settings(epochs=1), start, open_posed=opener())
    ended = slam_command("train", "--from-maps", place / "map", "-c", place / "tiny.yaml", "--start", start,
                         "--tune", "confidence", "-o", out)  # fmt: skip
    assert ended.code == 0, ended.complaint
    assert ended.out.startswith("confidence  right  held-out pairs\n")
    assert (out / "confidence.safetensors").is_file()


def test_weights_that_are_not_better_end_with_1(place, tmp_path, slam_command, monkeypatch):
    monkeypatch.setattr("slam.cli.train._train", lambda *_, **__: result_of(tmp_path))
    ended = slam_command("train", place / "whole.yaml", "-o", tmp_path / "out")
    assert ended.code == 1
    assert "not better than before" in ended.complaint


def result_of(folder):
    from relocalizer.training.session import TrainingResult

    found = {"rotation_deg": 1.0, "direction_deg": 2.0, "pairs": 3, "auc": (0.0, 1.0, 2.0), "median_loss": 0.5}
    found |= {"guess_rotation_deg": 20.0, "guess_direction_deg": 90.0}
    return TrainingResult(
        folder=folder, steps=1, before=found, after=found, skipped=0, broken=0, license="CC BY-NC-SA 4.0"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "expected one CONFIG.yaml, or --from-maps and maps"),
        (["--from-maps"], "--from-maps needs the maps or runs"),
        (["--from-maps", "runs"], "--start names the weights to begin with"),
        (["nothing.yaml"], "nothing.yaml: no such configuration file"),
        (["--from-maps", "nothing", "--start", "random"], "nothing: no such map or run folder"),
        (["--resume", "-o", "nothing"], "config.yaml: no such configuration file"),
        (["whole.yaml", "--set", "lr"], "--set lr: expected key.path=value"),
        (["whole.yaml", "--set", "data.place.root=nothing"], "nothing: no such map or run folder"),
        (["whole.yaml", "--set", "data.place.layout=posed"], "no poses in this folder"),
        (["whole.yaml", "--plot", "curves.txt"], "a plot is written as"),
        (["whole.yaml", "--set", "batch=10000"], "pairs, fewer than a batch of 10000"),
        (["whole.yaml", "--set", "batch=10000", "--set", "tune=decoder", "--set", "cache=disk"], "fewer than a batch"),
    ],
)
def test_what_cannot_be_is_one_line(arguments, sentence, place, tmp_path, slam_command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "whole.yaml").write_text((place / "whole.yaml").read_text())
    ended = slam_command("train", *arguments)
    assert ended.code == 2
    assert sentence in ended.complaint
    assert not (tmp_path / "trained").exists()


def test_posed_images_of_a_known_layout_train(tmp_path, slam_command, place):
    """A TUM folder: images with times, and a trajectory."""
    import cv2

    folder = tmp_path / "tum"
    (folder / "rgb").mkdir(parents=True)
    lines, rows = [], []
    for k, posed in enumerate(walk(24)):
        cv2.imwrite(str(folder / "rgb" / f"{k}.000000.png"), posed.read()[:, :, ::-1])
        lines.append(f"{k}.000000 rgb/{k}.000000.png")
        pose = posed.world_from_cam
        numbers = [*pose.translation, *pose.rotation.as_quat()]
        rows.append(" ".join([f"{k}.000000", *(f"{n:.9f}" for n in numbers)]))
    (folder / "rgb.txt").write_text("\n".join(lines) + "\n")
    (folder / "groundtruth.txt").write_text("\n".join(rows) + "\n")
    (folder / "camera.yaml").write_text(CAMERA.to_yaml())
    config = yaml.safe_load((place / "whole.yaml").read_text())
    config["data"] = {"tum": {"layout": "posed", "root": str(folder)}}
    config |= {"epochs": 1}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    ended = slam_command("train", tmp_path / "c.yaml", "-o", tmp_path / "out", "--json")
    assert ended.code in (0, 1), ended.complaint
    assert json.loads(ended.out)["before"]["pairs"] > 0


@pytest.mark.slow
def test_torchrun_starts_several_processes(place, tmp_path):
    """The command of docs/training.md, with two processes on a CPU; the loss curve is that of one."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    start = tmp_path / "start"
    write_weights(start, *definite_start(), {"license": "none"})
    base = [sys.executable, "-m"]
    several = [
        *base,
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--master-port=29547",
        "-m",
        "relocalizer.training",
    ]
    for words, out in ((several, "two"), ([*base, "relocalizer.training"], "one")):
        done = subprocess.run(
            [*words, place / "whole.yaml", "-o", tmp_path / out, "--set", f"start={start}"],
            env=environment,
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr
    one, two = losses_in(tmp_path / "one"), losses_in(tmp_path / "two")
    assert len(one) == len(two) > 5
    assert max(abs(a - b) for a, b in zip(one, two, strict=True)) < 1e-5
    done = subprocess.run(
        [*base, "relocalizer.training", place / "whole.yaml", "-o", tmp_path / "one"],
        env=environment, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == f"{tmp_path / 'one'}: is there already; choose another name, or add --resume\n"


@pytest.mark.slow
def test_a_killed_training_is_resumed_to_the_same_bits(place, tmp_path):
    """A real kill, wherever it falls."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "relocalizer.training", place / "whole.yaml"]
    command += ["--set", "epochs=40", "--set", "save_every=3", "--set", "evaluate_every=40"]
    done = subprocess.run([*command, "-o", tmp_path / "whole"], env=environment, capture_output=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for number, seconds in enumerate((4.0, 5.0, 6.0)):
        out = tmp_path / f"killed{number}"
        started = subprocess.Popen([*command, "-o", out], env=environment, stderr=subprocess.DEVNULL, cwd=ROOT)
        try:
            started.wait(seconds)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()
        if not (out / "config.yaml").is_file():
            continue  # killed before it began
        again = subprocess.run([*command, "-o", out, "--resume"], env=environment, capture_output=True, cwd=ROOT)
        assert again.returncode == 0, again.stderr
        a, b = (load_model(folder / "last").state_dict() for folder in (out, tmp_path / "whole"))
        assert all(torch.equal(a[key], b[key]) for key in a)
        assert losses_in(out) == losses_in(tmp_path / "whole")


@pytest.mark.slow
def test_the_bundled_room_adapts_a_tiny_network(tmp_path, slam_command):
    """The whole way of docs/training.md: run, train, run with the weights. Some 75 CPU seconds."""
    room = ROOT / "sequences" / "room_loop"
    assert slam_command("run", room, "--predictor", "geometric", "-o", tmp_path / "room", "-q").code == 0
    ended = slam_command("train", "--from-maps", tmp_path / "room", "-c", ROOT / "configs/training/tiny.yaml",
                         "-o", tmp_path / "tiny", "--plot", tmp_path / "curves.png", "--json", "-q")  # fmt: skip
    assert ended.code == 0, ended.complaint
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    found = json.loads(ended.out)
    after, before = found["after"], found["before"]
    assert after["direction_deg"] < 0.8 * before["direction_deg"]  # whether it beats a guess too is luck
    assert after["rotation_deg"] < 0.5 * before["rotation_deg"]
    run = slam_command("run", room, "--max-frames", 60, "--predictor", "reloc3r-224", "--weights", tmp_path / "tiny",
                       "-o", tmp_path / "used")  # fmt: skip
    assert run.code in (0, 1), run.complaint
    report = json.loads((tmp_path / "used" / "report.json").read_text())
    assert report["status"] == "finished"
