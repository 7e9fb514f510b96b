"""The training loop: learning, resuming to the bit, steps that are not finite, several processes."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_world import SMALL, pair_set

from relocalizer.errors import ConfigError, OutputError, TrainingError
from relocalizer.network.model import Reloc3r
from relocalizer.network.weights import load_model
from relocalizer.training import trainer as trainer_module
from relocalizer.training.config import TrainingConfig, checked_config
from relocalizer.training.initialization import initialize
from relocalizer.training.output_files import newest_state, read_lines, write_state, write_weights
from relocalizer.training.processes import Processes
from relocalizer.training.session import open_training, train

ROOT = Path(__file__).resolve().parent.parent
ALONE = Processes(0, 1, torch.device("cpu"))
TINY = {
    "patch_size": 6, "enc_embed_dim": 16, "enc_depth": 1, "enc_num_heads": 1,
    "dec_embed_dim": 16, "dec_depth": 1, "dec_num_heads": 1,
}  # fmt: skip
SIZES = {name: getattr(SMALL, name) for name in TINY}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def settings(**changes) -> TrainingConfig:
    values = {
        "architecture": TINY,
        "tune": "all",
        "data": {"box": {"layout": "posed", "root": "."}},
        "held_out": {"other": {"layout": "posed", "root": "."}},
        "resolutions": [[48, 36]],
        "epochs": 5,
        "batch": 4,
        "lr": 1e-3,
        "min_lr": 0.0,
        "warmup_epochs": 0.5,
        "jitter": False,
        "log_every": 1,
        "workers": 1,
        "device": "cpu",
    }
    return checked_config(values | changes, "test")


def opener(pairs=8, held_out=4):
    """Sets in memory, under the names of the settings."""
    return lambda name, _: pair_set(pairs if name == "box" else held_out, seed=int(name != "box"), name=name)


def weights_of(folder):
    return load_model(folder).state_dict()


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []


def losses_in(folder):
    return [line["loss"] for line in read_lines(folder / "log.jsonl") if "loss" in line]


# --- learning -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "bound"), [(20, 3.0), pytest.param(100, 0.15, marks=pytest.mark.slow)])
def test_eight_pairs_are_learned_by_heart(steps, bound, tmp_path):
    config = settings(architecture=SIZES, batch=8, epochs=100, warmup_epochs=20, evaluate_every=100)
    trainer, _ = open_training(config, tmp_path / "t", ALONE, open_posed=opener())
    trainer.save = lambda: None  # a state after each step would cost more than the steps
    trainer.run(until=steps)
    losses = losses_in(tmp_path / "t")
    assert losses[0] > 5
    assert losses[-1] < bound
    assert read_lines(tmp_path / "t" / "log.jsonl")[1]["lr"] == 0.0


@pytest.mark.slow
def test_new_poses_of_a_known_room_are_learned(tmp_path):
    """Both halves of the loss carry over to pairs that were not trained on: 300 steps, some 55 CPU seconds."""
    config = settings(
        architecture=SIZES, batch=16, epochs=2, warmup_epochs=0.2, evaluate_every=2, evaluation_pairs=256
    )  # fmt: skip
    result = train(config, tmp_path / "t", open_posed=opener(2400, 256))
    assert result.after["direction_deg"] < 0.85 * result.after["guess_direction_deg"]
    assert result.after["rotation_deg"] < 0.9 * result.after["guess_rotation_deg"]


# --- resuming -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Ten steps without interruption, with jitter and accumulation."""
    folder = tmp_path_factory.mktemp("whole") / "t"
    result = train(settings(jitter=True, accumulate=2, save_every=1), folder, open_posed=opener())
    return folder, result


def test_a_training_leaves_the_best_and_the_last_weights_a_log_and_two_states(whole):
    folder, result = whole
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json", "config.yaml", "last", "log.jsonl", "model.safetensors", "states", "training.json"
    ]  # fmt: skip
    assert len(list((folder / "states").iterdir())) == 2
    assert result.steps == 10
    assert result.before["pairs"] == result.after["pairs"] == 4
    lines = read_lines(folder / "log.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 11))
    assert [line["step"] for line in lines if "held_out" in line] == [0, 2, 4, 6, 8, 10]
    best = min(line["held_out"]["median_loss"] for line in lines if "held_out" in line and line["step"])
    metadata = json.loads((folder / "training.json").read_text())
    assert metadata["held_out"]["median_loss"] == best == result.after["median_loss"]
    assert metadata["data"] == {"box": 8}
    assert metadata["license"] == "none: random weights"


def test_the_weights_of_the_least_median_loss_are_kept(tmp_path, monkeypatch):
    """A few held-out pairs that are wrong altogether raise the mean while all others get better."""
    losses = iter([(8.0, 8.0), (2.0, 1.5), (2.5, 0.5), (2.2, 0.9)])  # mean and median, before and after each epoch
    trainer, place = open_training(settings(epochs=3), tmp_path / "t", ALONE, open_posed=opener())
    found = place.evaluator(place.network, place.inputs, place.held_out_loader, "clamped")

    def evaluated(*_):
        mean, median = next(losses)
        return replace(found, loss=mean, median_loss=median)

    monkeypatch.setattr(type(place.evaluator), "__call__", evaluated)
    position = trainer.run()
    assert position.best_evaluation["median_loss"] == position.best == 0.5
    assert json.loads((tmp_path / "t" / "training.json").read_text())["step"] == 4


def test_an_interrupted_training_continues_to_the_same_bits(whole, tmp_path):
    config, folder = settings(jitter=True, accumulate=2, save_every=1), tmp_path / "t"
    trainer, _ = open_training(config, folder, ALONE, open_posed=opener())
    trainer.run(until=3)
    (folder / "states" / ".state-000000099.pt.part").write_bytes(b"of a kill while it was written")
    result = train(config, folder, resume=True, open_posed=opener())
    assert result.steps == 10
    for part in ("last", "."):
        assert_same(weights_of(folder / part), weights_of(whole[0] / part))
    assert losses_in(folder) == losses_in(whole[0])
    states = [newest_state(f) for f in (folder, whole[0])]
    assert states[0]["position"] == states[1]["position"]
    moments = [state["optimizer"]["state"] for state in states]
    assert all(torch.equal(moments[0][k]["exp_avg_sq"], moments[1][k]["exp_avg_sq"]) for k in moments[0])


def test_a_state_that_was_cut_off_leaves_the_one_before(whole, tmp_path):
    config, folder = settings(jitter=True, accumulate=2, save_every=1), tmp_path / "t"
    trainer, _ = open_training(config, folder, ALONE, open_posed=opener())
    trainer.run(until=5)
    newest = max((folder / "states").iterdir())
    newest.write_bytes(newest.read_bytes()[:1000])
    assert train(config, folder, resume=True, open_posed=opener()).steps == 10
    assert_same(weights_of(folder / "last"), weights_of(whole[0] / "last"))


def test_only_the_same_training_is_resumed(whole, tmp_path):
    with pytest.raises(ConfigError, match=r"other settings than now \(lr\)"):
        train(settings(jitter=True, accumulate=2, lr=2e-3), whole[0], resume=True, open_posed=opener())
    with pytest.raises(TrainingError, match="the data are not those"):
        train(settings(jitter=True, accumulate=2), whole[0], resume=True, open_posed=opener(9))
    with pytest.raises(ConfigError, match="no such configuration file"):
        train(settings(), tmp_path / "nothing", resume=True, open_posed=opener())


def test_a_full_disk_leaves_the_last_good_state(tmp_path):
    write_state(tmp_path, 1, {"value": torch.ones(10)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(OutputError, match=r"state-000000002.pt: cannot be written .* make room"):
            write_state(tmp_path, 2, {"value": torch.ones(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert [p.name for p in (tmp_path / "states").iterdir()] == ["state-000000001.pt"]
    assert torch.equal(newest_state(tmp_path)["value"], torch.ones(10))


# --- what goes wrong ----------------------------------------------------------------------------------


@pytest.fixture
def spoiled(monkeypatch):
    """Makes the loss of the pair named "box 6 and box 7" NaN."""
    original, names = trainer_module.pair_losses, []

    def losses(raw1, raw2, targets, form):
        found = original(raw1, raw2, targets, form)
        spoil = torch.tensor([torch.nan if name == "box 6 and box 7" else 0.0 for name in names.pop(0)])
        return trainer_module.PairLosses(
            found.loss + spoil,
            found.rotation1, found.rotation2, found.direction1, found.direction2,
        )  # fmt: skip

    backward = trainer_module.Trainer._backward

    def noted(self, pairs, *, is_last):
        names.append([pair.name for pair in pairs])
        return backward(self, pairs, is_last=is_last)

    monkeypatch.setattr(trainer_module, "pair_losses", losses)
    monkeypatch.setattr(trainer_module.Trainer, "_backward", noted)


def test_a_step_that_is_not_finite_is_skipped_and_its_pair_named(spoiled, tmp_path, caplog):
    result = train(settings(epochs=3), tmp_path / "t", open_posed=opener())
    assert result.skipped == 3
    assert result.steps == 6
    assert caplog.text.count("its loss is not finite: box 6 and box 7\n") == 3
    assert all(value.isfinite().all() for value in weights_of(tmp_path / "t").values())


def test_too_many_skipped_steps_end_the_training(spoiled, tmp_path):
    with pytest.raises(TrainingError, match=r"2 steps were not finite, 1 are allowed .*the last: box 6 and box 7"):
        train(settings(epochs=3, max_skipped=1), tmp_path / "t", open_posed=opener())
    assert newest_state(tmp_path / "t")["position"]["step"] == 2


def test_the_batch_must_divide_into_its_parts(tmp_path):
    with pytest.raises(ConfigError, match="batch: 4 pairs do not divide into 1 processes times accumulate: 3"):
        train(settings(accumulate=3), tmp_path / "t", open_posed=opener())
    with pytest.raises(TrainingError, match="an epoch has 8 pairs, fewer than a batch of 16"):
        train(settings(batch=16), tmp_path / "u", open_posed=opener())


@pytest.mark.parametrize("changes", [{"accumulate": 4, "workers": 4}, {"precision": "bfloat16", "clip": 0.5}], ids=str)
def test_accumulation_and_threads_change_nothing_and_precision_and_clipping_little(tmp_path, changes):
    curves = []
    for number, change in enumerate(({}, changes)):
        train(settings(epochs=1, **change), tmp_path / str(number), open_posed=opener())
        curves.append(losses_in(tmp_path / str(number)))
    bound = 0.2 if {"precision", "clip"} & changes.keys() else 1e-6
    assert np.abs(np.subtract(*curves)).max() < bound


# --- several processes --------------------------------------------------------------------------------


def definite_start():
    """(sizes, tensors) of a network whose poses are near identity and forward."""
    model = Reloc3r(settings().architecture.sizes())
    initialize(model, seed=0)
    with torch.no_grad():
        for layer, bias in ((model.pose_head.fc_rot, torch.eye(3).flatten()), (model.pose_head.fc_t, torch.eye(3)[2])):
            layer.weight.mul_(0.1)
            layer.bias.copy_(bias)
    return model.architecture, model.state_dict()


PROCESS = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, "tests")
from test_training_loop import opener, settings
from relocalizer.training.session import train
torch.set_num_threads(1)
config = settings(epochs=10, batch=4, accumulate=2, jitter=True, start=sys.argv[2])
train(config, Path(sys.argv[1]), open_posed=opener())
"""


def test_two_processes_take_the_steps_of_one(tmp_path):
    """Twenty steps; each process has half of a batch, in two parts.

    The start says "not turned, forward" with little doubt. A random one gives rotations that are hardly determined,
    whose sensitivity enlarges the rounding of products of other sizes by a thousand.
    """
    start = str(tmp_path / "start")
    write_weights(Path(start), *definite_start(), {"license": "none"})
    program = tmp_path / "program.py"
    program.write_text(PROCESS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29541"}
    environment |= {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, program, tmp_path / "two", start],
            cwd=ROOT, env=environment | {"RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True,
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    train(settings(epochs=10, batch=4, jitter=True, start=start), tmp_path / "one", open_posed=opener())
    for process in started:
        _, complaint = process.communicate(timeout=240)
        assert process.returncode == 0, complaint
    one, two = losses_in(tmp_path / "one"), losses_in(tmp_path / "two")
    assert len(one) == len(two) == 20
    assert np.abs(np.subtract(one, two)).max() < 1e-5
    a, b = weights_of(tmp_path / "one" / "last"), weights_of(tmp_path / "two" / "last")
    assert max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-3  # a step of the learning rate
