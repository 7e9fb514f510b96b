"""Exported files give PyTorch's numbers, or are not there; OpenVINO behind the predictor gives its poses."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from relocalizer.errors import ConfigError, OutputError, WeightsError
from relocalizer.geometry import direction_angle, rotation_angle
from relocalizer.interfaces import CalibratedImage, PairEstimate
from relocalizer.network import export
from relocalizer.network.export import ExportReport, export_checkpoint, export_network
from relocalizer.network.layers import Grid
from relocalizer.network.model import Architecture, Reloc3r
from relocalizer.network.openvino_network import OpenVinoNetwork
from relocalizer.network.weights import load_model, random_model
from relocalizer.predictors.reloc3r_predictor import Reloc3rPredictor

TINY = Architecture(enc_embed_dim=32, enc_depth=1, enc_num_heads=2, dec_embed_dim=24, dec_depth=1, dec_num_heads=2)
SIZE = (64, 48)  # (width, height)
PARITY = os.environ.get("RELOC3R_PARITY")
NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}


def skip_without(format: str) -> Any:
    absent = [name for name in NEEDED[format] if find_spec(name) is None]
    return pytest.mark.skipif(bool(absent), reason=f"the {format} extra is not installed: no {', '.join(absent)}")


FORMATS = [pytest.param(format, marks=skip_without(format)) for format in NEEDED]


@pytest.fixture
def model() -> Reloc3r:
    return random_model(TINY, seed=4)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What `export_network` wrote of `model`, made once."""
    made: dict[str, ExportReport] = {}

    def of(format: str) -> ExportReport:
        if format not in made:
            folder = tmp_path_factory.mktemp("exported") / "new"
            made[format] = export_network(random_model(TINY, seed=4), folder, format=format, size=SIZE)
        return made[format]

    return of


def images(batch: int, size: tuple[int, int] = SIZE, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, size[1], size[0], generator=generator).mul(2).sub(1)


def run_files(folder: Path, format: str, images_i: Tensor, images_j: Tensor) -> dict[str, np.ndarray]:
    """What somebody does who has the description, the two files and a runtime."""
    [described] = folder.glob(f"{format}-*.json")
    about = json.loads(described.read_text())
    run = _run_onnx if format == "onnx" else _run_openvino
    encoder = folder / about["encoder"]["file"]
    tokens = [run(encoder, {"images": images.numpy()})["tokens"] for images in (images_i, images_j)]
    return run(folder / about["decoder"]["file"], dict(zip(about["decoder"]["inputs"], tokens, strict=True)))


def _run_onnx(path: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(zip([port.name for port in session.get_outputs()], session.run(None, inputs), strict=True))


def _run_openvino(path: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    answers = compiled(inputs)
    return {port.any_name: answers[port].copy() for port in compiled.outputs}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_files_give_the_networks_raw_poses_for_any_number_of_pairs(
    model: Reloc3r, exported: Any, format: str, batch: int
) -> None:
    first, second = images(batch, seed=8), images(batch, seed=9)
    answer = run_files(exported(format).files[0].parent, format, first, second)
    with torch.no_grad():
        j_from_i, i_from_j = model.decode_raw(model.encode(first), model.encode(second))
    for name, raw in (("j_from_i", j_from_i), ("i_from_j", i_from_j)):
        np.testing.assert_allclose(answer[f"{name}_translation"], raw.translation, atol=1e-5)
        np.testing.assert_allclose(answer[f"{name}_rotation9"], raw.rotation9, atol=1e-5)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.skipif(PARITY is None, reason="RELOC3R_PARITY names no folder with reference values")
def test_the_files_give_the_reference_values(tmp_path: Path, format: str) -> None:
    folder = Path(PARITY or "") / "tiny-512"
    golden = np.load(folder / "golden.npz", allow_pickle=False)
    export_checkpoint(folder, tmp_path, format=format, size=(128, 96))
    first, second = (
        torch.stack([torch.from_numpy(golden[f"landscape_b2/img{view}_{i}"]).permute(2, 0, 1) for i in range(2)])
        .div(127.5)
        .sub(1)
        for view in (1, 2)
    )
    answer = run_files(tmp_path, format, first, second)
    for name, view in (("j_from_i", 1), ("i_from_j", 2)):
        np.testing.assert_allclose(answer[f"{name}_translation"], golden[f"landscape_b2/raw_t{view}"], atol=2e-5)
        np.testing.assert_allclose(answer[f"{name}_rotation9"], golden[f"landscape_b2/raw_r{view}"], atol=2e-5)


@pytest.mark.parametrize("format", FORMATS)
def test_the_report_names_the_files_and_how_equal_they_are(exported: Any, format: str) -> None:
    report = exported(format)
    folder = report.files[0].parent
    assert sorted(report.files) == sorted(folder.iterdir())
    assert report.checks[0].precision == "float32"
    assert report.checks[0].rotation_deg < 0.01
    assert report.checks[0].direction_deg < 0.01
    assert "float32: raw values differ by" in str(report)
    assert json.loads((folder / f"{format}-64x48.json").read_text())["width"] == 64


@pytest.mark.parametrize("format", FORMATS)
def test_files_of_another_network_are_not_left_behind(
    model: Reloc3r, tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, encoder_program = random_model(TINY, seed=5), export.encoder_program
    monkeypatch.setattr(export, "encoder_program", lambda _, grid: encoder_program(other, grid))
    with pytest.raises(OutputError, match=rf"the {format} files answer otherwise than PyTorch \(float32: .*nothing"):
        export_network(model, tmp_path, format=format, size=SIZE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["encoder-64x48.xml", "decoder-64x48.xml", "openvino-64x48.json"])
def test_files_that_are_there_are_not_replaced_and_nothing_is_computed(
    model: Reloc3r, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(export, "import_module", lambda name: export)  # stands for a library that is there
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match=rf"export: .*{name}: is there already; choose another folder or remove it"):
        export_network(model, tmp_path, format="openvino", size=SIZE)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]


@skip_without("openvino")
def test_a_network_that_answers_no_numbers_is_not_exported(model: Reloc3r, tmp_path: Path) -> None:
    with torch.no_grad():
        model.pose_head.fc_t.bias[0] = torch.nan
    with pytest.raises(OutputError, match="raw values differ by nan"):
        export_network(model, tmp_path, format="openvino", size=SIZE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", FORMATS)
def test_a_folder_that_cannot_be_made_is_named(model: Reloc3r, tmp_path: Path, format: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"export: .*file/out: cannot be written \(Not a directory\)"):
        export_network(model, tmp_path / "file" / "out", format=format, size=SIZE)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", [(60, 48), (64, 0), (-16, 48)])
def test_sizes_that_are_not_whole_patches_are_refused(
    model: Reloc3r, tmp_path: Path, format: str, size: tuple[int, int]
) -> None:
    with pytest.raises(ConfigError, match=rf"size: {size[0]} x {size[1]}: both sides must be multiples of 16"):
        export_network(model, tmp_path, format=format, size=size)


@pytest.mark.parametrize(("trained", "size"), [(224, (224, 224)), (512, (512, 384)), (None, (512, 384))])
def test_the_usual_size_follows_what_the_network_was_trained_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: int | None, size: tuple[int, int]
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(export, "import_module", lambda name: export)
    monkeypatch.setattr(export, "load_model", lambda source, **_: random_model(replace(TINY, img_size=trained)))
    monkeypatch.setattr(export, "export_network", lambda model, folder, **options: asked.append(options))
    export_checkpoint("some", tmp_path, format="onnx")
    assert asked == [{"format": "onnx", "size": size}]


def test_an_unknown_format_is_refused_before_weights_are_searched_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="format: expected onnx or openvino, got 'tflite'"):
        export_checkpoint("no-such-weights", tmp_path, format="tflite")


@pytest.mark.parametrize(("format", "module"), [("onnx", "onnxscript"), ("openvino", "openvino")])
def test_an_extra_that_is_missing_is_named(
    tmp_path: Path, format: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NEEDED[format]:
        monkeypatch.setitem(sys.modules, name, export)  # stands for a library that is there
    monkeypatch.setitem(sys.modules, module, None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=rf"{module} is not installed; do `pip install 'reloc3r-slam\[{format}\]'`"):
        export_checkpoint("reloc3r-224", tmp_path, format=format)


@pytest.mark.parametrize("format", FORMATS)
def test_weights_that_are_not_there_leave_no_folder(tmp_path: Path, format: str) -> None:
    with pytest.raises(WeightsError, match="no such file or folder"):
        export_checkpoint(tmp_path / "none.safetensors", tmp_path / "out", format=format)
    assert not (tmp_path / "out").exists()


@skip_without("openvino")
def test_openvino_does_not_report_to_its_makers(exported: Any) -> None:
    exported("openvino")
    reporter = sys.modules["openvino.tools.ovc.telemetry_utils"].tm  # type: ignore[attr-defined]
    assert reporter.__name__ == "openvino.tools.ovc.telemetry_stub"


@skip_without("openvino")
def test_openvino_decodes_images_of_different_sizes(model: Reloc3r) -> None:
    network, wide, tall = OpenVinoNetwork(model), images(2), images(2, (48, 64))
    found = network.decode_raw(network.encode(wide), network.encode(tall))
    first = network.encode(wide)
    kept = first.features.clone()
    network.encode(wide.flip(-1))
    assert first.grid == Grid(rows=3, columns=4)
    assert torch.equal(first.features, kept), "the next image changed what was answered before"
    with torch.no_grad():
        expected = model.decode_raw(model.encode(wide), model.encode(tall))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.translation, theirs.translation, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.rotation9, theirs.rotation9, atol=1e-5, rtol=0)


@skip_without("openvino")
@pytest.mark.parametrize(("precision", "allowed_deg"), [("auto", 0.01), ("bfloat16", 5.0)])
def test_a_predictor_on_openvino_gives_the_poses_of_one_on_pytorch(precision: Any, allowed_deg: float) -> None:
    rng = np.random.default_rng(7)
    views = [CalibratedImage(rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)) for _ in range(3)]
    answers: list[list[PairEstimate]] = []
    for backend, chosen in (("torch", "float32"), ("openvino", precision)):
        predictor = Reloc3rPredictor.random(
            "reloc3r-224", seed=4, architecture=TINY, device="cpu", backend=backend, precision=chosen
        )
        a, b, c = predictor.encode(views)
        found = predictor.relate([(a, b), (b, c), (c, a)])
        answers.append([answer for answer in found if isinstance(answer, PairEstimate)])
    assert [len(found) for found in answers] == [3, 3]
    for one, other in zip(*answers, strict=True):
        assert one.i_from_j_direction is not None
        assert other.i_from_j_direction is not None
        turned = rotation_angle(one.i_from_j_rotation.T @ other.i_from_j_rotation)
        assert np.degrees(turned) < allowed_deg
        assert np.degrees(direction_angle(one.i_from_j_direction, other.i_from_j_direction)) < allowed_deg


@skip_without("openvino")
def test_a_loaded_predictor_on_openvino_keeps_the_models_float32_weights(tmp_path: Path) -> None:
    weights = saved(tmp_path / "weights")
    predictor = Reloc3rPredictor.load("reloc3r-224", weights=weights, backend="openvino", precision="bfloat16")
    views = [CalibratedImage(np.random.default_rng(1).integers(0, 256, (224, 224, 3), dtype=np.uint8))]
    [ours] = predictor.encode(views)
    exact = Reloc3rPredictor(load_model(weights), "reloc3r-224")
    [theirs] = exact.encode(views)
    similarity = float(predictor.describe(ours) @ exact.describe(theirs))
    assert 0.999 < similarity <= 1.0 + 1e-6


@skip_without("openvino")
def test_openvino_is_not_asked_for_float16() -> None:
    with pytest.raises(ConfigError, match="precision: OpenVINO computes in float32 or bfloat16, not in float16"):
        Reloc3rPredictor.random("reloc3r-224", architecture=TINY, backend="openvino", precision="float16")


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ConfigError, match="backend: expected one of auto, torch, openvino, got 'tensorrt'"):
        Reloc3rPredictor.random("reloc3r-224", architecture=TINY, backend="tensorrt")  # type: ignore[arg-type]


def test_openvino_runs_on_the_cpu_alone() -> None:
    with pytest.raises(ConfigError, match="backend openvino: runs on the CPU, not on cuda"):
        Reloc3rPredictor.load("reloc3r-224", backend="openvino", device="cuda")


def saved(folder: Path) -> Path:
    """A tiny checkpoint as the released ones are laid out."""
    folder.mkdir()
    save_file(random_model(TINY, seed=4).state_dict(), folder / "model.safetensors")
    sizes = {name: getattr(TINY, name) for name in TINY.__dataclass_fields__} | {"img_size": 224}
    (folder / "config.json").write_text(json.dumps({name: sizes[name] for name in sizes if name != "rotary_base"}))
    return folder


@skip_without("openvino")
def test_the_command_line_names_the_files_it_wrote_and_how_equal_they_are(slam_command: Any, tmp_path: Path) -> None:
    source, out = saved(tmp_path / "weights"), tmp_path / "out"
    ended = slam_command("weights", "export", source, "--format", "openvino", "--out", out, "--size", "64x48")
    assert ended.code == 0
    assert sorted(ended.out.split()) == sorted(str(path) for path in out.iterdir())
    assert "against PyTorch, float32: raw values differ by" in ended.err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--format", "tflite"], "format: expected onnx or openvino, got 'tflite'"),
        (["--format", "onnx", "--size", "512"], "--size: expected width x height such as 512x384, got 512"),
    ],
)
def test_the_command_line_refuses_what_it_cannot_write(
    slam_command: Any, tmp_path: Path, options: list[str], sentence: str
) -> None:
    ended = slam_command("weights", "export", "reloc3r-224", *options, "--out", tmp_path / "out")
    assert ended.code == 2
    assert sentence in ended.err
    assert not (tmp_path / "out").exists()
