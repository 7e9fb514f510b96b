"""The network's benchmark compares two ways that give the same poses."""

from __future__ import annotations

import json

import torch

from relocalizer.network.benchmark import measure_network
from relocalizer.network.layers import SelfAttention
from relocalizer.network.model import Architecture
from relocalizer.network.weights import random_model

SIZES = Architecture(enc_embed_dim=32, enc_depth=2, enc_num_heads=2, dec_embed_dim=24, dec_depth=2, dec_num_heads=2)


def test_both_ways_give_the_same_poses_and_every_part_takes_time() -> None:
    times = measure_network(random_model(SIZES), (96, 64), repeats=1)
    assert times.pose_difference < 1e-4
    parts = (times.encode_s, times.decode_s, times.edge_s, times.relocalize_s, times.naive_pair_s)
    assert all(part > 0 for part in parts)
    assert times.edge_ratio > 0
    assert times.peak_bytes > 1 << 20
    assert json.loads(json.dumps(times.as_dict()))["width"] == 96


def test_the_model_is_left_as_it_was() -> None:
    model, before = random_model(SIZES), torch.get_float32_matmul_precision()
    measure_network(model, (64, 64), repeats=1)
    assert not any(m.explicit for m in model.modules() if isinstance(m, SelfAttention))
    assert torch.get_float32_matmul_precision() == before
