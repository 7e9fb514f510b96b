"""Checkpoints load strictly and safely, and an unusable one says why."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from relocalizer.errors import DeviceError, WeightsError
from relocalizer.network import weights
from relocalizer.network.model import Architecture, Reloc3r
from relocalizer.network.precision import choose_device, onednn_keeps_float32, onednn_products
from relocalizer.network.weights import load_model, random_model, verify
from relocalizer.predictors import checkpoints

CONFIG: dict[str, Any] = {
    "img_size": 224,
    "patch_size": 4,
    "enc_embed_dim": 64,
    "enc_depth": 1,
    "enc_num_heads": 1,
    "dec_embed_dim": 64,
    "dec_depth": 2,
    "dec_num_heads": 1,
    "mlp_ratio": 2,
    "norm_im2_in_dec": True,
    "pos_embed": "RoPE100",
}
ARCHITECTURE = Architecture(**{key: value for key, value in CONFIG.items() if key != "pos_embed"}, rotary_base=100.0)


@pytest.fixture
def model() -> Reloc3r:
    return random_model(ARCHITECTURE, seed=1)


@pytest.fixture
def state(model: Reloc3r) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HUB_OFFLINE", "HUGGINGFACE_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(folder: Path, state: dict[str, Tensor], config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    return folder


def poses(model: Reloc3r) -> Tensor:
    images = torch.linspace(-1, 1, 2 * 3 * 8 * 12).view(2, 1, 3, 8, 12)
    with torch.no_grad():
        return torch.cat(model(images[0], images[1].flip(-1)))


def same_poses(one: Reloc3r, other: Reloc3r) -> bool:
    # Mapped tensors lie at other addresses, and products at other addresses differ in their last bits.
    return torch.allclose(poses(one), poses(other), atol=1e-5)


def test_a_saved_folder_loads_to_the_same_poses(model: Reloc3r, state: Any, tmp_path: Path) -> None:
    loaded = load_model(write(tmp_path, state))
    assert loaded.architecture == ARCHITECTURE
    assert not loaded.training
    assert same_poses(loaded, model)


def test_a_safetensors_file_alone_gives_its_sizes(model: Reloc3r, state: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save_file(state, path)
    loaded = load_model(path)
    assert loaded.architecture == replace(ARCHITECTURE, img_size=None)
    assert same_poses(loaded, model)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_training_checkpoint_loads_from_its_entry_model(
    model: Reloc3r, state: Any, tmp_path: Path, legacy: bool
) -> None:
    import argparse

    path = tmp_path / "checkpoint-224.pth"
    content = {"model": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert same_poses(load_model(path), model)


def test_a_plain_state_dict_in_a_pth_loads(model: Reloc3r, state: Any, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "224.pth")
    assert same_poses(load_model(tmp_path / "224.pth"), model)


def test_sixteen_bit_files_are_read_as_float32(state: Any, tmp_path: Path) -> None:
    loaded = load_model(write(tmp_path, {key: value.bfloat16() for key, value in state.items()}))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_sixteen_bit_products_leave_norms_and_head_in_float32(state: Any, tmp_path: Path) -> None:
    loaded = load_model(write(tmp_path, state), dtype=torch.bfloat16)
    dtypes = {key: value.dtype for key, value in loaded.state_dict().items()}
    assert dtypes["enc_blocks.0.attn.qkv.weight"] == dtypes["decoder_embed.bias"] == torch.bfloat16
    assert dtypes["enc_norm.weight"] == dtypes["pose_head.proj.weight"] == torch.float32


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_converted_part_by_part_are_those_of_the_file_and_let_it_go(
    state: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(weights, "CONVERTED_BYTES", 20_000)
    save_file(state, tmp_path / "some.safetensors")
    torch.save(state, tmp_path / "some.pth")
    loaded = load_model(tmp_path / f"some.{suffix}", dtype=torch.bfloat16).state_dict()
    assert loaded.keys() == state.keys()
    for key, value in loaded.items():
        assert torch.equal(value, state[key].to(value.dtype)), key
        assert value.untyped_storage().nbytes() == value.nbytes, f"{key} is a part of the mapped file"


def test_missing_tensors_are_counted_and_the_first_is_named(state: Any, tmp_path: Path) -> None:
    for key in ("dec_blocks.1.norm_y.weight", "dec_blocks.1.norm_y.bias"):
        del state[key]
    with pytest.raises(WeightsError, match=r"2 tensors missing, first 'dec_blocks\.1\.norm_y\.weight'"):
        load_model(write(tmp_path, state))


def test_a_checkpoint_of_another_network_is_recognized(state: Any, tmp_path: Path) -> None:
    other = {key: value for key, value in state.items() if not key.startswith("pose_head")}
    other["dec_blocks2.0.norm1.weight"] = torch.zeros(64)
    with pytest.raises(WeightsError, match=r"looks like DUSt3R or MASt3R, expected a Reloc3r checkpoint"):
        load_model(write(tmp_path, other))


def test_a_vision_transformer_without_config_is_recognized(tmp_path: Path) -> None:
    torch.save({"cls_token": torch.zeros(1), "blocks.0.norm1.weight": torch.zeros(8)}, tmp_path / "vit.pth")
    with pytest.raises(WeightsError, match=r"no patch_embed\.proj\.weight.*a plain vision transformer"):
        load_model(tmp_path / "vit.pth")


def test_sizes_that_differ_from_the_config_are_named(state: Any, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"'enc_blocks\.0\.mlp\.fc1\.weight' is \(128, 64\) where \(256, 64\)"):
        load_model(write(tmp_path, state, CONFIG | {"mlp_ratio": 4}))


def test_extra_tensors_are_left_out_with_a_warning(
    state: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state["mask_token"] = torch.zeros(3)
    with caplog.at_level(logging.WARNING):
        load_model(write(tmp_path, state))
    assert "1 tensors are not used, first 'mask_token'" in caplog.text


def test_a_truncated_safetensors_file_is_refused(state: Any, tmp_path: Path) -> None:
    path = write(tmp_path, state) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"not a whole safetensors file .*fetch it again"):
        load_model(tmp_path)


def test_a_page_saved_as_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("<!doctype html><title>404</title>")
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        load_model(tmp_path)


class _Harmful:
    """Runs a command when it is unpickled by a loader that trusts it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.target}",))


def test_a_pth_holding_objects_is_refused_and_not_run(state: Any, tmp_path: Path) -> None:
    torch.save({"model": state, "extra": _Harmful(tmp_path / "ran")}, tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match=r"holds Python objects .*is refused"):
        load_model(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("keep", [0, 300])
def test_a_truncated_pth_is_refused(state: Any, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "cut.pth"
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"cut\.pth"):
        load_model(path)


def test_a_pth_without_named_tensors_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2, 3], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="expected named tensors"):
        load_model(tmp_path / "list.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(state: Any, tmp_path: Path, value: float) -> None:
    state["dec_blocks.1.mlp.fc2.weight"][3, 5] = value
    with pytest.raises(WeightsError, match=r"'dec_blocks\.1\.mlp\.fc2\.weight' holds NaN or infinity"):
        load_model(write(tmp_path, state))


def test_whole_numbers_are_no_weights(state: Any, tmp_path: Path) -> None:
    state["enc_norm.bias"] = torch.zeros(64, dtype=torch.int64)
    with pytest.raises(WeightsError, match=r"'enc_norm\.bias' holds torch\.int64"):
        load_model(write(tmp_path, state))


def test_a_size_given_by_side_is_its_longer_side(state: Any, tmp_path: Path) -> None:
    assert load_model(write(tmp_path, state, CONFIG | {"img_size": [384, 512]})).architecture.img_size == 512


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"enc_depth": -1}, "enc_depth: expected a positive number, got -1"),
        ({"patch_size": "16"}, "patch_size: expected a positive number, got '16'"),
        ({"pos_embed": "cosine"}, "pos_embed: expected RoPE and its base, such as RoPE100, got 'cosine'"),
        ({"dec_num_heads": 7}, "width 64 does not split into 7 heads"),
    ],
)
def test_a_config_that_cannot_be_is_explained(
    state: Any, tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(WeightsError, match=sentence):
        load_model(write(tmp_path, state, CONFIG | change))


def test_a_config_that_is_no_json_is_refused(state: Any, tmp_path: Path) -> None:
    write(tmp_path, state)
    (tmp_path / "config.json").write_text("{img_size: 224")
    with pytest.raises(WeightsError, match="not a readable JSON file"):
        load_model(tmp_path)


def test_an_empty_config_means_the_released_sizes(state: Any, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"tensors missing, first 'enc_blocks\.1\."):
        load_model(write(tmp_path, state, {}))


def test_an_empty_folder_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"holds neither model\.safetensors nor pytorch_model\.bin"):
        load_model(tmp_path)


@pytest.mark.parametrize("source", ["./weights", "/no/such/model.safetensors", "reloc3r", "a/b/c"])
def test_a_path_that_is_not_there_is_not_taken_for_a_hub_id(source: str) -> None:
    with pytest.raises(WeightsError, match="no such file or folder"):
        load_model(source)


def test_a_file_of_unknown_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.npz").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"expected a file ending in \.safetensors"):
        load_model(tmp_path / "weights.npz")


def cached(cache: Path, state: dict[str, Tensor], hub_id: str) -> Path:
    folder = cache / f"models--{hub_id.replace('/', '--')}"
    write(folder / "snapshots" / "abc", state)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    return folder


def test_a_cached_checkpoint_loads_by_name_and_by_hub_id_without_the_network(
    model: Reloc3r, state: Any, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(own_cache, state, "siyan824/reloc3r-224")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for source in ("reloc3r-224", "siyan824/reloc3r-224"):
        assert same_poses(load_model(source), model)
    assert checkpoints.locate("reloc3r-512") is None


def test_offline_and_not_cached_says_size_license_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError) as caught:
        load_model("reloc3r-512")
    for part in ("siyan824/reloc3r-512", "1.71 GB", "CC BY-NC-SA 4.0", "slam weights fetch reloc3r-512", "folder"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_the_hub_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=r"pip install 'reloc3r-slam\[reloc3r\]'"):
        checkpoints.fetch("reloc3r-512")


def test_no_network_is_one_sentence_after_size_and_license_were_said(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    # In a process of its own: the hub's client reads its address when it is imported.
    code = (
        "from relocalizer.predictors.checkpoints import fetch\n"
        "from relocalizer.errors import WeightsError\n"
        "try: fetch('reloc3r-224', announce=print)\n"
        "except WeightsError as error: print(error)\n"
    )
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": str(tmp_path / "cache")}
    root = str(Path(checkpoints.__file__).parents[2])
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True, timeout=60
    )
    announced, sentence = run.stdout.splitlines()
    assert "1.71 GB, license CC BY-NC-SA 4.0" in announced
    assert "the hub gave nothing" in sentence
    assert "check the network" in sentence


def test_verify_reports_hash_and_sizes(state: Any, tmp_path: Path) -> None:
    report = verify(write(tmp_path, state))
    assert report.tensors == len(state)
    assert report.parameters == sum(value.numel() for value in state.values())
    assert report.sha256 == checkpoints.sha256_of(tmp_path / "model.safetensors")
    assert report.architecture.img_size == 224


def test_verify_finds_a_cached_file_whose_bytes_changed(state: Any, own_cache: Path) -> None:
    folder = cached(own_cache, state, "siyan824/reloc3r-224")
    weights = folder / "snapshots" / "abc" / "model.safetensors"
    blob = folder / checkpoints.sha256_of(weights)
    weights.rename(blob)
    weights.symlink_to(blob)
    assert verify("reloc3r-224").sha256 == blob.name
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(WeightsError, match="delete the file and fetch it again"):
        verify("reloc3r-224")


def test_verify_needs_weights_that_are_here() -> None:
    with pytest.raises(WeightsError, match="reloc3r-512 is not on this machine"):
        verify("reloc3r-512")


def test_random_weights_follow_their_seed() -> None:
    one, again, other = (random_model(ARCHITECTURE, seed=seed) for seed in (1, 1, 2))
    assert same_poses(one, again)
    assert not same_poses(one, other)


def test_a_seed_of_more_than_64_bits_gives_weights_too() -> None:
    assert same_poses(random_model(ARCHITECTURE, seed=2**80 + 5), random_model(ARCHITECTURE, seed=2**80 + 5))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_asked_for_and_absent_is_explained(state: Any, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"device cuda: this machine has 0 CUDA devices.*--set predictor\.device=cpu"):
        load_model(write(tmp_path, state), device="cuda")


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:x"])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(DeviceError, match="expected auto, cpu, cuda, cuda:N or mps"):
        choose_device(name)


def test_the_choice_of_library_for_products_ends_with_its_block_even_by_an_error() -> None:
    before = torch.get_float32_matmul_precision()

    def fail_inside() -> None:
        with onednn_products():
            assert torch.get_float32_matmul_precision() == "medium"
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert torch.get_float32_matmul_precision() == before
    with onednn_products(enabled=False):
        assert torch.get_float32_matmul_precision() == before


def test_a_library_that_drops_digits_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = torch.nn.functional.linear

    def rounding(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if torch.get_float32_matmul_precision() == "medium" and x.dtype == torch.float32:
            x, weight = x.bfloat16().float(), weight.bfloat16().float()
        return exact(x, weight, bias)

    monkeypatch.setattr("relocalizer.network.precision.F.linear", rounding)
    assert not onednn_keeps_float32()
