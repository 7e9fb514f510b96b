"""What `slam bench` measures and says."""

from __future__ import annotations

import importlib
import json

import pytest

from relocalizer.network.model import Architecture

TINY = Architecture(enc_embed_dim=32, enc_depth=1, enc_num_heads=2, dec_embed_dim=24, dec_depth=1, dec_num_heads=2)


@pytest.fixture
def tiny_network(monkeypatch):
    """The network and its images so small that measuring takes no time."""
    importlib.import_module("relocalizer.network.benchmark")  # what it imports needs the class that is replaced next
    monkeypatch.setattr("relocalizer.network.model.Architecture", lambda: TINY)
    monkeypatch.setattr("relocalizer.predictors.preprocessing.TRAINED_SIZES", {224: ((48, 32),), 512: ((64, 48),)})


def test_a_run_is_measured_by_stage_and_as_a_whole(images, slam_command, straight_slam):
    straight_slam()
    ended = slam_command("bench", images, "--json")
    cost = json.loads(ended.out)
    assert (ended.code, cost["frames"], cost["tracked"], cost["predictor"]) == (0, 12, 10, "geometric")
    # The stand-in says that tracking took 1, 2, ..., 12 ms.
    assert cost["stages"]["track"] == {"frames": 12, "p50_ms": 6.5, "p95_ms": 11.45, "total_s": 0.078}
    assert list(cost["stages"])[:2] == ["read", "frame"]
    assert cost["stages"]["frame"]["frames"] == 12
    assert cost["live_fps"] >= cost["fps"] > 0
    assert cost["peak_memory_mb"] > 10


def test_a_measured_run_prints_tables_and_leaves_nothing(tmp_path, images, slam_command, straight_slam, monkeypatch):
    straight_slam()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    out = slam_command("bench", images).out
    assert "12, 10 of them tracked" in out
    [track] = [line.split() for line in out.splitlines() if line.startswith("track")]
    assert track == ["track", "12", "6.5", "11.4", "0.1"]
    assert list((tmp_path / "here").iterdir()) == []


def test_no_more_frames_are_measured_than_asked_for(images, slam_command, straight_slam):
    straight_slam()
    ended = slam_command("bench", images, "--max-frames", 5, "--json")
    assert json.loads(ended.out)["frames"] == 5
    assert "measuring 5 frames" in ended.err


def test_the_progress_of_a_measured_run_is_reported(images, slam_command, straight_slam, monkeypatch):
    monkeypatch.setattr("slam.progress.LINE_EVERY_S", 0.0)
    straight_slam()
    ended = slam_command("bench", images, "--max-frames", 5)
    assert "5/5 frames, 0 s left" in ended.err


def test_a_measured_run_without_a_map_says_so_and_ends_with_1(images, slam_command, straight_slam):
    straight_slam(waits=100)
    ended = slam_command("bench", images)
    assert ended.code == 1
    assert ended.complaint == (
        "slam: these are times of a run that is not usable: no map was initialized in 12 frames: too little parallax"
    )


def test_without_a_source_the_geometric_predictor_has_nothing_to_measure(slam_command):
    ended = slam_command("bench", "--predictor", "geometric")
    assert ended.code == 2
    assert "bench: nothing to measure; give a SOURCE, or --predictor reloc3r-224" in ended.complaint


@pytest.mark.usefixtures("tiny_network")
@pytest.mark.parametrize(("predictor", "size"), [("reloc3r-224", (48, 32)), ("reloc3r-512", (64, 48))])
def test_the_network_is_measured_at_its_size_beside_the_naive_way(slam_command, predictor, size):
    ended = slam_command("bench", "--predictor", predictor, "--random-weights", "--repeats", 1, "--json")
    times = json.loads(ended.out)
    assert ended.code == 0
    assert (times["predictor"], times["width"], times["height"], times["repeats"]) == (predictor, *size, 1)
    assert times["random_weights"]
    assert times["pose_difference"] < 1e-4
    assert [way["precision"] for way in times["ways"]][:3] == ["float32", "bfloat16", "int8-dynamic"]
    for way in times["ways"]:
        assert min(way[part] for part in ("encode_s", "decode_s", "edge_s", "relocalize_s", "ready_s")) > 0


@pytest.mark.usefixtures("tiny_network")
def test_of_the_network_the_way_that_was_asked_for_is_measured_alone(slam_command):
    options = ("--predictor", "reloc3r-224", "--random-weights", "--repeats", 1, "--json")
    ended = slam_command("bench", *options, "--set", "predictor.precision=bfloat16")
    [way] = json.loads(ended.out)["ways"]
    assert (way["backend"], way["precision"]) == ("torch", "bfloat16")


@pytest.mark.usefixtures("tiny_network")
def test_a_seed_of_more_than_64_bits_is_a_seed_of_weights_too(slam_command):
    options = ("--predictor", "reloc3r-224", "--random-weights", "--repeats", 1, "--json")
    ended = slam_command("bench", *options, "--set", "predictor.precision=float32", "--seed", 2**64)
    assert ended.code == 0


def test_a_precision_the_backend_does_not_have_is_one_line(slam_command):
    options = ("--predictor", "reloc3r-224", "--random-weights", "--set", "predictor.backend=openvino")
    ended = slam_command("bench", *options, "--set", "predictor.precision=int8-dynamic")
    assert ended.code == 2
    assert ended.complaint == "slam: precision: OpenVINO computes in float32 or bfloat16, not in int8-dynamic"


def test_the_table_of_the_network_sets_ten_naive_pairs_against_ten_keyframes(slam_command, monkeypatch):
    way = {
        "backend": "torch", "precision": "float32", "encode_s": 0.7, "decode_s": 0.6, "edge_s": 1.3,
        "relocalize_s": 6.5, "edge_cpu_s": 2.6, "relocalize_cpu_s": 13.0, "edge_ratio": 2.9, "relocalize_ratio": 6.1,
        "rotation_deg": 2e-4, "direction_deg": 1e-4, "ready_s": 2.0,
    }  # fmt: skip
    times = {
        "predictor": "reloc3r-224", "random_weights": True, "repeats": 3, "keyframes": 10, "width": 224,
        "height": 224, "device": "cpu", "onednn": True, "threads": 2, "naive_pair_s": 3.9, "naive_pair_cpu_s": 7.7,
        "pose_difference": 1.1e-6, "peak_bytes": 2 << 30, "peak_bytes_all": 5 << 30, "chosen": "torch float32 on cpu",
        "ways": [way, {**way, "backend": "openvino", "edge_ratio": 3.3}],
    }  # fmt: skip
    monkeypatch.setattr("slam.bench.cost.measure_predictor", lambda config, *, repeats: times)
    out = slam_command("bench", "--predictor", "reloc3r-224", "--random-weights").out
    rows = {line[:16].strip(): line.split() for line in out.splitlines()}
    assert rows["naive"][1:4] == ["3.900", "1.0", "39.00"]
    assert rows["torch float32"][2:] == ["0.700", "0.600", "1.300", "2.9", "6.50", "6.1", "0.0002", "0.0001", "2.0"]
    assert rows["openvino float32"][5] == "3.3"
    assert "random weights" in out
    assert "2048 MB with the first way, 5120 MB with all of them" in out


def test_trained_weights_that_are_not_here_are_one_line(tmp_path, slam_command, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ended = slam_command("bench", "--predictor", "reloc3r-224")
    assert ended.code == 2
    assert "siyan824/reloc3r-224 (1.71 GB, license CC BY-NC-SA 4.0" in ended.complaint


def test_the_training_is_measured_with_and_without_a_cache(slam_command, tiny_network):
    ended = slam_command("bench", "--training", "--predictor", "reloc3r-224", "--random-weights", "--json")
    assert ended.code == 0, ended.complaint
    found = json.loads(ended.out)
    assert [(one["tune"], one["cache"]) for one in found] == [
        ("decoder", "none"), ("decoder", "disk"), ("head", "none"), ("head", "disk")
    ]  # fmt: skip
    assert all(one["pairs_per_s"] > 0 and 0 <= one["waiting_share"] <= 1 for one in found)
    # Half-precision tokens of two images of 3 x 2 patches: 32 wide after the encoder, 24 after the decoder.
    assert [one["cached_bytes"] for one in found] == [0, 2 * 6 * 32 * 2, 0, 2 * 6 * 24 * 2]
    table = slam_command("bench", "--training", "--predictor", "reloc3r-224", "--random-weights", "--repeats", 1).out
    assert "waiting for data" in table
    refused = slam_command("bench", "--training", "--predictor", "geometric")
    assert (refused.code, "needs --predictor reloc3r-224" in refused.complaint) == (2, True)
