"""What the network costs on this machine, beside a naive use of it measured in the same run.

The naive way encodes both pictures for every pair, writes attention matrices out, and runs the two sides of the
decoder one after the other. Speed does not depend on the weights, so random ones do.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from relocalizer.network.model import Reloc3r, Tokens, use_explicit_attention
from relocalizer.network.precision import onednn_keeps_float32, onednn_products

KEYFRAMES = 10
PAIRS_AT_A_TIME = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkTimes:
    """Median wall and CPU seconds of each piece of work, and what the naive way takes for it.

    Attributes:
        encode_s: one picture.
        decode_s: one pair of encoded pictures, both ways.
        edge_s: a new picture against an encoded keyframe.
        relocalize_s: a new picture against ten encoded keyframes.
        naive_pair_s: two pictures, nothing remembered; ten keyframes cost ten of it.
        edge_ratio, relocalize_ratio: how many times as long the naive way takes, by CPU seconds, which other
            work on the machine disturbs less than wall time; by wall time on a GPU.
        pose_difference: largest difference of a pose entry between the two ways.
        peak_bytes: most memory the process had so far.
    """

    width: int
    height: int
    device: str
    dtype: str
    onednn: bool
    threads: int
    encode_s: float
    decode_s: float
    edge_s: float
    relocalize_s: float
    naive_pair_s: float
    edge_ratio: float
    relocalize_ratio: float
    pose_difference: float
    peak_bytes: int

    def as_dict(self) -> dict[str, float | int | str | bool]:
        """Plain values, for a table or JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Taken:
    wall_s: float
    cpu_s: float
    poses: list[tuple[Tensor, Tensor]]


def measure_network(model: Reloc3r, size: tuple[int, int], *, repeats: int = 3) -> NetworkTimes:
    """Time a model on pictures of a size (width, height); a few naive pairs and ten candidates, `repeats` times.

    At 512 x 384 and one repeat this takes about a minute of two CPU cores.
    """
    device = model.enc_norm.weight.device
    onednn = device.type == "cpu" and onednn_keeps_float32()
    pictures = _pictures(size, device)
    # Naive and remembered work take turns, so that both see the machine in the same state.
    runs: dict[str, list[_Taken]] = {"encode": [], "decode": [], "edge": [], "relocalize": [], "naive": []}
    with torch.inference_mode():
        with onednn_products(onednn):
            keyframe, query = model.encode(pictures[0]), model.encode(pictures[1])
        for _ in range(repeats):
            runs["naive"].append(_timed(lambda: [_naive_pair(model, *pictures)], device))
            with onednn_products(onednn):
                runs["encode"].append(_timed(lambda: _encoded(model, pictures[1]), device))
                runs["decode"].append(_timed(lambda: [model.decode(keyframe, query)], device))
                runs["edge"].append(_timed(lambda: [_edge(model, keyframe, pictures[1])], device))
                runs["relocalize"].append(_timed(lambda: _relocalize(model, keyframe, pictures[1]), device))
    cost = {name: _median(taken, wall=device.type != "cpu") for name, taken in runs.items()}
    wall = {name: _median(taken, wall=True) for name, taken in runs.items()}
    naive, edge = runs["naive"][0].poses[0], runs["edge"][0].poses[0]
    return NetworkTimes(
        width=size[0],
        height=size[1],
        device=str(device),
        dtype=str(model.decoder_embed.weight.dtype).removeprefix("torch."),
        onednn=onednn,
        threads=torch.get_num_threads(),
        encode_s=wall["encode"],
        decode_s=wall["decode"],
        edge_s=wall["edge"],
        relocalize_s=wall["relocalize"],
        naive_pair_s=wall["naive"],
        edge_ratio=cost["naive"] / cost["edge"],
        relocalize_ratio=KEYFRAMES * cost["naive"] / cost["relocalize"],
        pose_difference=max(float((a - b).abs().max()) for a, b in zip(naive, edge, strict=True)),
        peak_bytes=_peak_bytes(),
    )


def _pictures(size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    shape = (2, 1, 3, size[1], size[0])
    first, second = torch.rand(shape, generator=torch.Generator().manual_seed(0)).mul(2).sub(1).to(device)
    return first, second


def _encoded(model: Reloc3r, picture: Tensor) -> list[tuple[Tensor, Tensor]]:
    model.encode(picture)
    return []


def _edge(model: Reloc3r, keyframe: Tokens, picture: Tensor) -> tuple[Tensor, Tensor]:
    return model.decode(keyframe, model.encode(picture))


def _relocalize(model: Reloc3r, keyframe: Tokens, picture: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The keyframe stands for ten: what is computed does not depend on what they show."""
    query = model.encode(picture)
    together = KEYFRAMES if query.features.device.type != "cpu" else PAIRS_AT_A_TIME
    sides = [Tokens(t.features.expand(together, -1, -1), t.grid) for t in (keyframe, query)]
    return [model.decode(*sides) for _ in range(KEYFRAMES // together)]


def _naive_pair(model: Reloc3r, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    use_explicit_attention(model)
    try:
        tokens = model.encode(first), model.encode(second)
        raw1, raw2 = model.decode_raw(*tokens, sides_together=False)
        return raw1.pose(), raw2.pose()
    finally:
        use_explicit_attention(model, explicit=False)


def _timed(work: Callable[[], list[tuple[Tensor, Tensor]]], device: torch.device) -> _Taken:
    wall, cpu = time.perf_counter(), time.process_time()
    poses = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return _Taken(time.perf_counter() - wall, time.process_time() - cpu, poses)


def _median(taken: list[_Taken], *, wall: bool) -> float:
    return statistics.median(t.wall_s if wall else t.cpu_s for t in taken)


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
