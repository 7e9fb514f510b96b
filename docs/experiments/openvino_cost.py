"""What OpenVINO and bfloat16 save, beside a naive use of the network measured in the same run.

    python docs/experiments/openvino_cost.py 224x224 --repeats 3
    OMP_NUM_THREADS=1 python docs/experiments/openvino_cost.py 512x384 --only "OpenVINO bfloat16"

Full size, random weights. Seconds are CPU seconds; the ways take turns, so that all see the machine in the same state.
Needs `pip install 'reloc3r-slam[openvino]'`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from relocalizer.geometry import direction_angle, rotation_angle
from relocalizer.network.model import Architecture, RawPose, Reloc3r, Tokens, use_explicit_attention, use_matmul_dtype
from relocalizer.network.openvino_network import OpenVinoNetwork
from relocalizer.network.precision import onednn_keeps_float32, onednn_products
from relocalizer.network.weights import random_model

Network = Reloc3r | OpenVinoNetwork
RawPair = tuple[RawPose, RawPose]
T = TypeVar("T")
KEYFRAMES, TOGETHER = 10, 2


def _bfloat16_model() -> Reloc3r:
    model = random_model(Architecture())
    use_matmul_dtype(model, torch.bfloat16)
    return model


WAYS: dict[str, Callable[[Reloc3r], Network]] = {
    "PyTorch float32": lambda model: model,
    "PyTorch bfloat16": lambda model: _bfloat16_model(),
    "OpenVINO float32": OpenVinoNetwork,
    "OpenVINO bfloat16": lambda model: OpenVinoNetwork(model, torch.bfloat16),
}


def naive(model: Reloc3r, first: Tensor, second: Tensor) -> RawPair:
    use_explicit_attention(model)
    try:
        return model.decode_raw(model.encode(first), model.encode(second), sides_together=False)
    finally:
        use_explicit_attention(model, explicit=False)


def edge(network: Network, keyframe: Tokens, picture: Tensor) -> RawPair:
    return network.decode_raw(keyframe, network.encode(picture))


def against_ten(network: Network, keyframe: Tokens, picture: Tensor) -> None:
    query = network.encode(picture)
    sides = [Tokens(tokens.features.expand(TOGETHER, -1, -1), tokens.grid) for tokens in (keyframe, query)]
    for _ in range(KEYFRAMES // TOGETHER):
        network.decode_raw(*sides)


def timed(work: Callable[[], T]) -> tuple[float, T]:
    start = time.process_time()
    answer = work()
    return time.process_time() - start, answer


def moved_deg(exact: RawPair, other: RawPair) -> tuple[float, float]:
    """Largest angle between rotations, and between directions, of a pair's two poses."""
    poses = [[raw.pose()[0].double().numpy() for raw in pair] for pair in (exact, other)]
    turns = [rotation_angle(a[:3, :3].T @ b[:3, :3]) for a, b in zip(*poses, strict=True)]
    aside = [direction_angle(a[:3, 3], b[:3, 3]) for a, b in zip(*poses, strict=True)]
    return float(np.degrees(max(turns))), float(np.degrees(max(aside)))


def measure(size: tuple[int, int], repeats: int, names: list[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 1, 3, size[1], size[0], generator=generator).mul(2).sub(1)
    model, onednn = random_model(Architecture()), onednn_keeps_float32()
    networks, keyframes = dict[str, Network](), dict[str, Tokens]()
    for name in names:
        networks[name] = WAYS[name](model)
        made, keyframes[name] = timed(partial(networks[name].encode, first))
        made += timed(partial(networks[name].decode_raw, keyframes[name], keyframes[name]))[0]
        print(f"{name}: first pair after {made:.1f} s")
    seconds: dict[str, list[float]] = {"naive": []}
    for _ in range(repeats):
        taken, exact = timed(partial(naive, model, first, second))
        seconds["naive"].append(taken)
        for name, network in networks.items():
            with onednn_products(onednn and name == "PyTorch float32"):
                taken, found = timed(partial(edge, network, keyframes[name], second))
                ten, _ = timed(partial(against_ten, network, keyframes[name], second))
            seconds.setdefault(f"{name} edge", []).append(taken)
            seconds.setdefault(f"{name} against ten", []).append(ten)
            turned, aside = moved_deg(exact, found)
            print(f"{name}: rotations moved by {turned:.4f} deg, directions by {aside:.4f} deg")
    pair = statistics.median(seconds["naive"])
    for name, values in seconds.items():
        pairs, median = KEYFRAMES if name.endswith("ten") else 1, statistics.median(values)
        print(f"{name:30s} {median:6.2f} s, {pairs * pair / median:5.1f} times as fast as the naive way")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", help="WxH")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", choices=WAYS)
    given = parser.parse_args()
    width, height = map(int, given.size.split("x"))
    with torch.inference_mode():
        measure((width, height), given.repeats, [given.only] if given.only else list(WAYS))


if __name__ == "__main__":
    main()
