"""The network's benchmark compares ways that give the same poses, or poses that it says the difference of."""

from __future__ import annotations

import json

import pytest
import torch

from relocalizer.network.benchmark import NetworkTimes, measure_network
from relocalizer.network.computation import Runtime
from relocalizer.network.layers import SelfAttention
from relocalizer.network.model import Architecture, Reloc3r, use_matmul_dtype
from relocalizer.network.weights import random_model

SIZES = Architecture(enc_embed_dim=32, enc_depth=2, enc_num_heads=2, dec_embed_dim=24, dec_depth=2, dec_num_heads=2)
WAYS = [Runtime("torch", name) for name in ("float32", "bfloat16", "int8-dynamic")]


def load(dtype: torch.dtype) -> Reloc3r:
    model = random_model(SIZES)
    use_matmul_dtype(model, dtype)
    return model


@pytest.fixture(scope="module")
def times() -> NetworkTimes:
    return measure_network(load, WAYS, (96, 64), repeats=1)


def test_every_part_of_every_way_takes_time(times: NetworkTimes) -> None:
    assert [f"{way.backend} {way.precision}" for way in times.ways] == [str(way) for way in WAYS]
    for way in times.ways:
        assert min(way.encode_s, way.decode_s, way.edge_cpu_s, way.relocalize_cpu_s, way.ready_s) > 0
        assert way.relocalize_s > way.edge_s > way.encode_s
        assert min(way.edge_ratio, way.relocalize_ratio) > 0
    assert times.peak_bytes_all >= times.peak_bytes > 1 << 20
    assert json.loads(json.dumps(times.as_dict()))["ways"][1]["precision"] == "bfloat16"


def test_float32_gives_the_naive_poses_and_fewer_digits_move_them(times: NetworkTimes) -> None:
    exact, half, quarter = times.ways
    assert times.pose_difference < 1e-4
    assert exact.rotation_deg < 1e-3 < half.rotation_deg < quarter.rotation_deg < 60
    assert exact.direction_deg < 1e-3 < half.direction_deg < quarter.direction_deg < 60


def test_the_model_is_left_as_it_was() -> None:
    made: list[Reloc3r] = []

    def remembered(dtype: torch.dtype) -> Reloc3r:
        made.append(load(dtype))
        return made[-1]

    before = torch.get_float32_matmul_precision()
    measure_network(remembered, WAYS[:1], (64, 64), repeats=1)
    assert len(made) == 1
    assert not any(m.explicit for m in made[0].modules() if isinstance(m, SelfAttention))
    assert torch.get_float32_matmul_precision() == before
