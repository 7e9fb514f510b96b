"""What computes the network: as asked, or what was measured to be quickest."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from relocalizer.errors import ConfigError
from relocalizer.geometry import rotation_angle
from relocalizer.interfaces import CalibratedImage, PairEstimate
from relocalizer.network import computation
from relocalizer.network.computation import (
    Runtime,
    RuntimeChoice,
    choose_computation,
    fastest,
    measure_runtimes,
    network_of,
)
from relocalizer.network.int8 import Int8Linear
from relocalizer.network.layers import Linear
from relocalizer.network.model import Architecture, use_matmul_dtype
from relocalizer.network.weights import random_model
from relocalizer.predictors.reloc3r_predictor import Reloc3rPredictor
from slam.components import assembly, predictor_choice
from slam.components.predictor_choice import PredictorChoice
from slam.config.loading import load_config

CPU = torch.device("cpu")
TINY = Architecture(enc_embed_dim=32, enc_depth=2, enc_num_heads=2, dec_embed_dim=24, dec_depth=2, dec_num_heads=2)
EXACT, BF16, HALF = Runtime("torch", "float32"), Runtime("torch", "bfloat16"), Runtime("torch", "float16")
OV, OV_BF16 = Runtime("openvino", "float32"), Runtime("openvino", "bfloat16")


@pytest.fixture
def tiny_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(computation, "PROBE", TINY)


@pytest.fixture
def with_costs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Measured times as a test says, and which ways were asked for."""
    asked: list[Runtime] = []

    def install(seconds: dict[Runtime, float], *, openvino: bool = True) -> list[Runtime]:
        def measure(ways: list[Runtime], device: torch.device, size: tuple[int, int]) -> dict[Runtime, float]:
            asked.extend(ways)
            return {way: seconds[way] for way in ways}

        monkeypatch.setattr(computation, "measure_runtimes", measure)
        monkeypatch.setattr(computation, "find_spec", lambda name: object() if openvino else None)
        return asked

    return install


def test_unasked_a_cpu_computes_exactly_and_nothing_is_measured(with_costs: Any) -> None:
    asked = with_costs({})
    chosen = choose_computation(device="cpu")
    assert (chosen.runtime, chosen.device, chosen.dtype) == (EXACT, CPU, torch.float32)
    assert asked == []
    assert str(chosen) == "torch float32 on cpu"


def test_what_is_named_is_taken_unmeasured(with_costs: Any) -> None:
    asked = with_costs({})
    assert choose_computation(device="cpu", precision="bfloat16").dtype == torch.bfloat16
    assert choose_computation(device="cpu", precision="float16").dtype == torch.float16
    assert choose_computation(backend="openvino", precision="bfloat16").runtime == OV_BF16
    assert asked == []


def test_weights_for_openvino_and_for_8_bits_are_loaded_whole() -> None:
    assert choose_computation(backend="openvino", precision="bfloat16").dtype == torch.float32
    assert choose_computation(device="cpu", precision="int8-dynamic").dtype == torch.float32


def test_fastest_measures_every_precision_and_takes_the_quickest(with_costs: Any) -> None:
    asked = with_costs({EXACT: 0.010, BF16: 0.004, HALF: 0.050})
    chosen = choose_computation(device="cpu", precision="fastest")
    assert asked == [EXACT, BF16, HALF]
    assert chosen.runtime == BF16
    measured = "torch float32 10 ms, torch bfloat16 4 ms, torch float16 50 ms"
    assert str(chosen) == f"torch bfloat16 on cpu, measured in one layer: {measured}"


def test_float16_on_a_cpu_is_taken_where_it_was_measured_to_be_quicker(with_costs: Any) -> None:
    with_costs({EXACT: 0.010, BF16: 0.020, HALF: 0.003})
    assert choose_computation(device="cpu", precision="fastest").runtime == HALF


def test_either_backend_is_measured_in_float32_alone_unless_the_precision_is_free_too(with_costs: Any) -> None:
    asked = with_costs({EXACT: 0.010, OV: 0.007, BF16: 0.006, OV_BF16: 0.002, HALF: 0.050})
    assert choose_computation(backend="auto", device="cpu").runtime == OV
    assert asked == [EXACT, OV]
    assert choose_computation(backend="auto", device="cpu", precision="fastest").runtime == OV_BF16
    assert asked[2:] == [EXACT, OV, BF16, OV_BF16, HALF]


def test_without_openvino_auto_is_pytorch(with_costs: Any) -> None:
    with_costs({}, openvino=False)
    assert choose_computation(backend="auto", device="cpu").runtime == EXACT


def test_digits_are_not_given_up_for_a_little_time() -> None:
    assert fastest({EXACT: 0.010, BF16: 0.009, HALF: 0.05}) == EXACT
    assert fastest({EXACT: 0.010, OV: 0.006, OV_BF16: 0.0055}) == OV
    assert fastest({EXACT: 0.010, OV: 0.006, OV_BF16: 0.002}) == OV_BF16


@pytest.mark.usefixtures("tiny_probe")
def test_ways_are_measured_on_a_layer_and_take_time() -> None:
    ways = [EXACT, BF16, HALF, *([OV, OV_BF16] if find_spec("openvino") else [])]
    measured = measure_runtimes(ways, CPU, (64, 48))
    assert list(measured) == ways
    assert all(0 < seconds < 10 for seconds in measured.values())


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"backend": "tensorrt"}, "backend: expected one of auto, torch, openvino, got 'tensorrt'"),
        ({"precision": "int4"}, "precision: expected one of auto, float32, bfloat16, .* got 'int4'"),
        ({"backend": "openvino", "precision": "float16"}, "OpenVINO computes in float32 or bfloat16, not in float16"),
        ({"backend": "openvino", "precision": "int8-dynamic"}, "OpenVINO computes in .* not in int8-dynamic"),
        ({"backend": "openvino", "device": "cuda"}, "backend openvino: runs on the CPU, not on cuda"),
    ],
)
def test_what_cannot_be_is_refused(asked: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        choose_computation(**asked)  # type: ignore[arg-type]


def test_the_predictor_says_what_was_measured_and_keeps_it(with_costs: Any) -> None:
    with_costs({EXACT: 0.010, BF16: 0.004, HALF: 0.050})
    said: list[str] = []
    predictor = Reloc3rPredictor.random(
        "reloc3r-224", architecture=TINY, device="cpu", precision="fastest", announce=said.append
    )
    assert said == [f"network: {predictor.computation}"]
    assert predictor.computation is not None
    assert predictor.computation.runtime == BF16


# In a run


@pytest.fixture
def asked_of_predictor(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the predictor is asked for, instead of one."""
    asked: dict[str, Any] = {}
    for name in ("random", "load"):
        monkeypatch.setattr(Reloc3rPredictor, name, lambda kind, **options: asked.update(options))
    return asked


@pytest.mark.parametrize("weights", ["predictor.random_weights=true", "predictor.weights=folder"])
def test_the_settings_reach_the_predictor(asked_of_predictor: dict[str, Any], weights: str) -> None:
    settings = ["predictor.kind=reloc3r-224", "predictor.backend=openvino", "predictor.precision=bfloat16"]
    assembly.build_predictor(load_config([], [*settings, "predictor.device=cpu", weights]))
    assert asked_of_predictor["device"] == "cpu"
    assert asked_of_predictor["backend"] == "openvino"
    assert asked_of_predictor["precision"] == "bfloat16"


def test_what_was_measured_is_decided_for_the_run_and_said(with_costs: Any) -> None:
    with_costs({EXACT: 0.010, BF16: 0.004, HALF: 0.050})
    asked = load_config([], ["predictor.kind=reloc3r-224", "predictor.precision=fastest"])
    config, choice = predictor_choice.with_runtime(asked, PredictorChoice("reloc3r-224", "as asked"))
    assert (config.predictor.backend, config.predictor.precision) == ("torch", "bfloat16")
    assert choice.reason.startswith("as asked; torch bfloat16 on cpu, measured in one layer: torch float32 10 ms")
    assert predictor_choice.with_runtime(config, choice) == (config, choice)


@pytest.mark.parametrize(("kind", "precision"), [("geometric", "fastest"), ("reloc3r-224", "auto")])
def test_without_a_network_or_a_wish_nothing_is_measured(with_costs: Any, kind: str, precision: str) -> None:
    asked = with_costs({})
    config = load_config([], [f"predictor.kind={kind}", f"predictor.precision={precision}"])
    choice = PredictorChoice(kind, "as asked")
    assert predictor_choice.with_runtime(config, choice) == (config, choice)
    assert asked == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_run_on_a_card_that_is_not_there_is_one_line(tmp_path: Path, images: Path, slam_command: Any) -> None:
    options = ("--predictor", "reloc3r-224", "--random-weights", "--set", "predictor.device=cuda")
    ended = slam_command("run", images, "-o", tmp_path / "run", *options)
    assert ended.code == 2
    assert "device cuda: this machine has 0 CUDA devices" in ended.complaint
    assert "use --set predictor.device=cpu" in ended.complaint


def test_the_report_of_a_run_says_what_computed(
    tmp_path: Path, images: Path, slam_command: Any, straight_slam: Any
) -> None:
    straight_slam()
    out = tmp_path / "run"
    slam_command(
        "run", images, "-o", out, "--predictor", "reloc3r-224", "--random-weights", "--set",
        "predictor.precision=bfloat16",
    )  # fmt: skip
    predictor = json.loads((out / "report.json").read_text())["predictor"]
    assert (predictor["backend"], predictor["precision"]) == ("torch", "bfloat16")


# 8 bits


def test_products_in_8_bits_are_near_the_exact_ones() -> None:
    generator = torch.Generator().manual_seed(3)
    exact = Linear(256, 64)
    with torch.no_grad():
        exact.weight.normal_(generator=generator)
        exact.bias.normal_(generator=generator)
    x = torch.randn(5, 7, 256, generator=generator)
    found, wanted = Int8Linear(exact)(x), exact(x)
    assert found.shape == wanted.shape
    error = (found - wanted).detach().pow(2).mean().sqrt() / wanted.detach().pow(2).mean().sqrt()
    assert 1e-4 < float(error) < 0.02


def test_an_8_bit_network_has_no_linear_layer_left_but_those_of_its_head() -> None:
    model = network_of(random_model(TINY), RuntimeChoice(CPU, Runtime("torch", "int8-dynamic"), {}))
    assert not any(isinstance(module, Linear) for module in model.modules())  # type: ignore[union-attr]
    assert sum(isinstance(module, Int8Linear) for module in model.modules()) == 1 + 2 * 4 + 2 * 8  # type: ignore[union-attr]


def test_an_8_bit_predictor_answers_near_the_exact_one_and_warns() -> None:
    rng = np.random.default_rng(7)
    views = [CalibratedImage(rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)) for _ in range(2)]
    said: list[str] = []
    rotations = []
    for precision in ("float32", "int8-dynamic"):
        predictor = Reloc3rPredictor.random(
            "reloc3r-224", seed=4, architecture=TINY, device="cpu", precision=precision, announce=said.append
        )
        a, b = predictor.encode(views)
        [answer] = predictor.relate([(a, b)])
        assert isinstance(answer, PairEstimate)
        rotations.append(answer.i_from_j_rotation)
    assert 0 < np.degrees(rotation_angle(rotations[0].T @ rotations[1])) < 20
    assert len(said) == 1
    assert said[0].startswith("WARNING: int8-dynamic: products in 8 bits move poses by about 3 degrees")


def test_8_bits_are_warned_of_in_a_run_that_announces_nothing(caplog: pytest.LogCaptureFixture) -> None:
    Reloc3rPredictor.random("reloc3r-224", architecture=TINY, device="cpu", precision="int8-dynamic")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "for trying out, not for results" in caplog.text


def test_8_bits_are_refused_beside_the_cpu() -> None:
    model = random_model(TINY)
    with pytest.raises(ConfigError, match="precision int8-dynamic: runs on the CPU, not on meta"):
        network_of(model.to("meta"), RuntimeChoice(torch.device("meta"), Runtime("torch", "int8-dynamic"), {}))


def test_16_bit_products_are_left_alone_by_the_choice() -> None:
    model = random_model(TINY)
    use_matmul_dtype(model, torch.bfloat16)
    assert network_of(model, RuntimeChoice(CPU, BF16, {})) is model
