"""Benchmark of the network on this machine, compared with a naive use in the same run.

The naive use encodes both images for every pair, computes attention matrices explicitly, and runs the two sides of the
decoder one after the other. Random weights suffice, because the speed does not depend on them.
"""

from __future__ import annotations

import statistics
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
from relocalizer.process_memory import peak_memory_bytes

KEYFRAMES = 10  # number of candidate keyframes in a relocalization
PAIRS_AT_A_TIME = 2  # batch size on a CPU
IMAGES = 4  # number of images whose consecutive pairs measure the pose error of a runtime

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeTimes:
    """Cost of the network in one runtime: medians, wall time unless stated otherwise.

    Attributes:
        encode_s: time to encode one image.
        decode_s: time to decode one pair of encoded images in both directions.
        edge_s: time to relate a new image to an encoded keyframe; its inverse is the maximum number of keyframes per
            second.
        relocalize_s: time to relate a new image to ten encoded keyframes.
        edge_cpu_s, relocalize_cpu_s: CPU times of all threads.
        edge_ratio, relocalize_ratio: ratios of the time of the naive use, in CPU time, which depends less on other load
            than wall time; in wall time on a GPU.
        rotation_deg, direction_deg: largest change of a pose, over both directions of three pairs.
        ready_s: time from the weights to the first result, including compilation of graphs.
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
    """Cost of the naive use, and of every runtime.

    Attributes:
        naive_pair_s, naive_pair_cpu_s: time of one pair without cached encodings; ten keyframes take ten times as long.
        pose_difference: largest difference of a pose entry between the naive and the normal use of the same weights.
        peak_bytes: peak memory of the process with only the first runtime; `peak_bytes_all` with all runtimes.
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
    ways: list[RuntimeTimes]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a table or JSON."""
        return asdict(self)


@dataclass(slots=True)
class _Timings:
    """Wall and CPU times of named tasks, one value per repetition, seconds."""

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
    """Measure the network on images of a size (width, height): naive pairs and ten candidates, `repeats` times.

    The runtimes alternate, so that all run under the same load of the machine. At 512 x 384 one repetition takes up to
    half a minute per runtime on two CPU cores.

    Args:
        load: returns a new model on the CPU, with the weights of its products in the given dtype.
        ways: runtimes to be measured; the naive use computes in float32, or in float16 on CUDA.
    """
    device = device or torch.device("cpu")
    onednn = device.type == "cpu" and onednn_keeps_float32()
    model = load(torch.float16 if device.type == "cuda" else torch.float32).to(device)
    images = _images(size, device)
    timings, networks, change_deg = _Timings(), dict[Runtime, Network](), dict[Runtime, tuple[float, float]]()
    with torch.inference_mode():
        with onednn_products(onednn):
            exact = _poses(model, images)
        peak = 0
        for runtime in ways:
            networks[runtime] = _ready(load, model, runtime, device, images, timings, onednn)
            with onednn_products(onednn):
                change_deg[runtime] = _pose_change_deg(exact, _poses(networks[runtime], images))
            peak = peak or peak_memory_bytes()
        for _ in range(repeats):
            naive = timings.time("naive", device, lambda: _naive_pair(model, *images[:2]))
            for runtime, network in networks.items():
                with onednn_products(onednn):
                    _measure_once(str(runtime), network, images, device, timings)
    return NetworkTimes(
        width=size[0],
        height=size[1],
        device=str(device),
        onednn=onednn,
        threads=torch.get_num_threads(),
        naive_pair_s=timings.median_wall("naive"),
        naive_pair_cpu_s=timings.median_cpu("naive"),
        pose_difference=max(float(np.abs(a - b).max()) for a, b in zip(naive, exact[:2], strict=True)),
        peak_bytes=peak,
        peak_bytes_all=peak_memory_bytes(),
        ways=[_times_of(runtime, timings, change_deg[runtime], by_wall=device.type != "cpu") for runtime in ways],
    )


def _times_of(runtime: Runtime, timings: _Timings, change_deg: tuple[float, float], *, by_wall: bool) -> RuntimeTimes:
    encode, decode, ten = (f"{runtime} {part}" for part in ("encode", "decode", "ten"))
    cost = timings.median_wall if by_wall else timings.median_cpu
    return RuntimeTimes(
        backend=runtime.backend,
        precision=runtime.precision,
        encode_s=timings.median_wall(encode),
        decode_s=timings.median_wall(decode),
        edge_s=timings.median_wall(encode) + timings.median_wall(decode),
        relocalize_s=timings.median_wall(encode) + timings.median_wall(ten),
        edge_cpu_s=timings.median_cpu(encode) + timings.median_cpu(decode),
        relocalize_cpu_s=timings.median_cpu(encode) + timings.median_cpu(ten),
        edge_ratio=cost("naive") / (cost(encode) + cost(decode)),
        relocalize_ratio=KEYFRAMES * cost("naive") / (cost(encode) + cost(ten)),
        rotation_deg=change_deg[0],
        direction_deg=change_deg[1],
        ready_s=timings.median_wall(f"{runtime} ready"),
    )


def _images(size: tuple[int, int], device: torch.device) -> list[Tensor]:
    shape = (IMAGES, 1, 3, size[1], size[0])
    return list(torch.rand(shape, generator=torch.Generator().manual_seed(0)).mul(2).sub(1).to(device))


def _ready(
    load: Callable[[torch.dtype], Reloc3r],
    model: Reloc3r,
    runtime: Runtime,
    device: torch.device,
    images: list[Tensor],
    timings: _Timings,
    onednn: bool,
) -> Network:
    """The network in one runtime, after its first result."""
    computation = RuntimeChoice(device, runtime, {})

    def first_answer() -> Network:
        changed = runtime.precision == "int8-dynamic" or computation.dtype != model.decoder_embed.weight.dtype
        network = network_of(load(computation.dtype).to(device) if changed else model, computation)
        with onednn_products(onednn):
            _edge(network, network.encode(images[0]), images[1])
        return network

    return timings.time(f"{runtime} ready", device, first_answer)


def _measure_once(name: str, network: Network, images: list[Tensor], device: torch.device, timings: _Timings) -> None:
    keyframe = network.encode(images[0])
    query = timings.time(f"{name} encode", device, lambda: network.encode(images[1]))
    timings.time(f"{name} decode", device, lambda: _both_poses(network.decode_raw(keyframe, query)))
    # One keyframe replaces ten, because the cost does not depend on the image content.
    together = PAIRS_AT_A_TIME if device.type == "cpu" else KEYFRAMES
    sides = [Tokens(t.features.expand(together, -1, -1), t.grid) for t in (keyframe, query)]
    timings.time(
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
    """Both poses (4, 4) of all pairs of consecutive images."""
    encoded = [network.encode(image) for image in images]
    return [pose for pair in pairwise(encoded) for pose in _both_poses(network.decode_raw(*pair))]


def _both_poses(raw: tuple[RawPose, RawPose]) -> list[FloatArray]:
    return [np.asarray(pose, dtype=np.float64) for side in raw for pose in side.pose()[:1].cpu().numpy()]


def _pose_change_deg(exact: Sequence[FloatArray], found: Sequence[FloatArray]) -> tuple[float, float]:
    """Largest angle between rotations and between directions, degrees."""
    pairs = list(zip(exact, found, strict=True))
    rotation = max(rotation_angle(a[:3, :3].T @ b[:3, :3]) for a, b in pairs)
    direction = max(direction_angle(a[:3, 3], b[:3, 3]) for a, b in pairs)
    return float(np.degrees(rotation)), float(np.degrees(direction))
