"""What the network costs on this machine, beside a naive use of it measured in the same run.

The naive way encodes both images for every pair, writes attention matrices out, and runs the two sides of the
decoder one after the other. Speed does not depend on the weights, so random ones do.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from relocalizer.geometry import FloatArray, direction_angle, rotation_angle
from relocalizer.network.computation import Network, Runtime, RuntimeChoice, network_of
from relocalizer.network.model import RawPose, Reloc3r, Tokens, use_explicit_attention
from relocalizer.network.precision import onednn_keeps_float32, onednn_products

KEYFRAMES = 10
PAIRS_AT_A_TIME = 2
IMAGES = 4  # related one to the next, to see how far a way moves poses

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class WayTimes:
    """What the network costs in one way of computing it: medians, wall time unless said otherwise.

    Attributes:
        encode_s: one image.
        decode_s: one pair of encoded images, both ways.
        edge_s: a new image against an encoded keyframe; one over it is how many keyframes a second the network alone
            sustains.
        relocalize_s: a new image against ten encoded keyframes.
        edge_cpu_s, relocalize_cpu_s: of all threads.
        edge_ratio, relocalize_ratio: how many times as long the naive way takes, by CPU seconds, which other
            work on the machine disturbs less than wall time; by wall time on a GPU.
        rotation_deg, direction_deg: largest change of a pose, over both poses of three pairs.
        ready_s: from weights to the first answer, graphs included.
    """

    backend: str
    precision: str
    encode_s: float
    decode_s: float
    edge_s: float
    relocalize_s: float
    edge_cpu_s: float
    relocalize_cpu_s: float
    edge_ratio: float
    relocalize_ratio: float
    rotation_deg: float
    direction_deg: float
    ready_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkTimes:
    """The naive way, and every other beside it.

    Attributes:
        naive_pair_s, naive_pair_cpu_s: two images, nothing remembered; ten keyframes cost ten of it.
        pose_difference: largest difference of a pose entry between the naive way and the same weights used well.
        peak_bytes: most memory the process had so far with the first way alone; `peak_bytes_all` with all of them.
    """

    width: int
    height: int
    device: str
    onednn: bool
    threads: int
    naive_pair_s: float
    naive_pair_cpu_s: float
    pose_difference: float
    peak_bytes: int
    peak_bytes_all: int
    ways: list[WayTimes]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a table or JSON."""
        return asdict(self)


@dataclass(slots=True)
class _Taken:
    """Wall and CPU seconds of pieces of work, a value for each repeat."""

    wall: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)

    def time(self, name: str, device: torch.device, work: Callable[[], T]) -> T:
        wall, cpu = time.perf_counter(), time.process_time()
        answer = work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.wall.setdefault(name, []).append(time.perf_counter() - wall)
        self.cpu.setdefault(name, []).append(time.process_time() - cpu)
        return answer

    def median_wall(self, name: str) -> float:
        return statistics.median(self.wall[name])

    def median_cpu(self, name: str) -> float:
        return statistics.median(self.cpu[name])


def measure_network(
    load: Callable[[torch.dtype], Reloc3r],
    ways: Sequence[Runtime],
    size: tuple[int, int],
    *,
    device: torch.device | None = None,
    repeats: int = 3,
) -> NetworkTimes:
    """Time the network on images of a size (width, height); naive pairs and ten candidates, `repeats` times.

    The ways take turns, so that all see the machine in the same state. At 512 x 384 and one repeat a way takes up to
    half a minute of two CPU cores.

    Args:
        load: the model with the weights of its products in a dtype, on the CPU, made anew in every call.
        ways: to measure; the naive way computes in float32, or in float16 on CUDA.
    """
    device = device or torch.device("cpu")
    onednn = device.type == "cpu" and onednn_keeps_float32()
    model = load(torch.float16 if device.type == "cuda" else torch.float32).to(device)
    images = _images(size, device)
    taken, networks, moved = _Taken(), dict[Runtime, Network](), dict[Runtime, tuple[float, float]]()
    with torch.inference_mode():
        with onednn_products(onednn):
            exact = _poses(model, images)
        peak = 0
        for way in ways:
            networks[way] = _ready(load, model, way, device, images, taken, onednn)
            with onednn_products(onednn):
                moved[way] = _moved_deg(exact, _poses(networks[way], images))
            peak = peak or _peak_bytes()
        for _ in range(repeats):
            naive = taken.time("naive", device, lambda: _naive_pair(model, *images[:2]))
            for way, network in networks.items():
                with onednn_products(onednn):
                    _take_turn(str(way), network, images, device, taken)
    return NetworkTimes(
        width=size[0],
        height=size[1],
        device=str(device),
        onednn=onednn,
        threads=torch.get_num_threads(),
        naive_pair_s=taken.median_wall("naive"),
        naive_pair_cpu_s=taken.median_cpu("naive"),
        pose_difference=max(float(np.abs(a - b).max()) for a, b in zip(naive, exact[:2], strict=True)),
        peak_bytes=peak,
        peak_bytes_all=_peak_bytes(),
        ways=[_times_of(way, taken, moved[way], by_wall=device.type != "cpu") for way in ways],
    )


def _times_of(way: Runtime, taken: _Taken, moved: tuple[float, float], *, by_wall: bool) -> WayTimes:
    encode, decode, ten = (f"{way} {part}" for part in ("encode", "decode", "ten"))
    cost = taken.median_wall if by_wall else taken.median_cpu
    return WayTimes(
        backend=way.backend,
        precision=way.precision,
        encode_s=taken.median_wall(encode),
        decode_s=taken.median_wall(decode),
        edge_s=taken.median_wall(encode) + taken.median_wall(decode),
        relocalize_s=taken.median_wall(encode) + taken.median_wall(ten),
        edge_cpu_s=taken.median_cpu(encode) + taken.median_cpu(decode),
        relocalize_cpu_s=taken.median_cpu(encode) + taken.median_cpu(ten),
        edge_ratio=cost("naive") / (cost(encode) + cost(decode)),
        relocalize_ratio=KEYFRAMES * cost("naive") / (cost(encode) + cost(ten)),
        rotation_deg=moved[0],
        direction_deg=moved[1],
        ready_s=taken.median_wall(f"{way} ready"),
    )


def _images(size: tuple[int, int], device: torch.device) -> list[Tensor]:
    shape = (IMAGES, 1, 3, size[1], size[0])
    return list(torch.rand(shape, generator=torch.Generator().manual_seed(0)).mul(2).sub(1).to(device))


def _ready(
    load: Callable[[torch.dtype], Reloc3r],
    model: Reloc3r,
    way: Runtime,
    device: torch.device,
    images: list[Tensor],
    taken: _Taken,
    onednn: bool,
) -> Network:
    """The network in one way, after its first answer."""
    computation = RuntimeChoice(device, way, {})

    def first_answer() -> Network:
        changed = way.precision == "int8-dynamic" or computation.dtype != model.decoder_embed.weight.dtype
        network = network_of(load(computation.dtype).to(device) if changed else model, computation)
        with onednn_products(onednn):
            _edge(network, network.encode(images[0]), images[1])
        return network

    return taken.time(f"{way} ready", device, first_answer)


def _take_turn(name: str, network: Network, images: list[Tensor], device: torch.device, taken: _Taken) -> None:
    keyframe = network.encode(images[0])
    query = taken.time(f"{name} encode", device, lambda: network.encode(images[1]))
    taken.time(f"{name} decode", device, lambda: _both_poses(network.decode_raw(keyframe, query)))
    # The keyframe stands for ten: what is computed does not depend on what they show.
    together = PAIRS_AT_A_TIME if device.type == "cpu" else KEYFRAMES
    sides = [Tokens(t.features.expand(together, -1, -1), t.grid) for t in (keyframe, query)]
    taken.time(
        f"{name} ten",
        device,
        lambda: [_both_poses(network.decode_raw(*sides)) for _ in range(KEYFRAMES // together)],
    )


def _edge(network: Network, keyframe: Tokens, image: Tensor) -> list[FloatArray]:
    return _both_poses(network.decode_raw(keyframe, network.encode(image)))


def _naive_pair(model: Reloc3r, first: Tensor, second: Tensor) -> list[FloatArray]:
    use_explicit_attention(model)
    try:
        tokens = model.encode(first), model.encode(second)
        return _both_poses(model.decode_raw(*tokens, sides_together=False))
    finally:
        use_explicit_attention(model, explicit=False)


def _poses(network: Network, images: Sequence[Tensor]) -> list[FloatArray]:
    """Both poses (4, 4) of every image and the next."""
    encoded = [network.encode(image) for image in images]
    return [pose for pair in pairwise(encoded) for pose in _both_poses(network.decode_raw(*pair))]


def _both_poses(raw: tuple[RawPose, RawPose]) -> list[FloatArray]:
    return [np.asarray(pose, dtype=np.float64) for side in raw for pose in side.pose()[:1].cpu().numpy()]


def _moved_deg(exact: Sequence[FloatArray], found: Sequence[FloatArray]) -> tuple[float, float]:
    """Largest change of a rotation and of a direction, degrees."""
    pairs = list(zip(exact, found, strict=True))
    turned = max(rotation_angle(a[:3, :3].T @ b[:3, :3]) for a, b in pairs)
    aside = max(direction_angle(a[:3, 3], b[:3, 3]) for a, b in pairs)
    return float(np.degrees(turned)), float(np.degrees(aside))


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
