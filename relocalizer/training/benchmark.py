"""Speed of the training on this machine: pairs per second, time spent waiting for data, and the gain of the cache.

All ways run in one process after each other, over the same pairs, so their ratios hold under any load.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from relocalizer.camera import Camera
from relocalizer.images import Image, decode_image, encode_jpeg
from relocalizer.network.model import Reloc3r
from relocalizer.training.config import TrainingConfig, Tune
from relocalizer.training.initialization import Start
from relocalizer.training.pair_data import Mixture, PairSet, View, parse_mixture
from relocalizer.training.pair_loader import ReadAhead
from relocalizer.training.processes import Processes
from relocalizer.training.session import workplace
from relocalizer.training.trainer import Interval, Trainer

MADE_UP = (640, 480)  # width and height of the images where none are given
WAYS: tuple[tuple[Tune, str], ...] = (("decoder", "none"), ("decoder", "disk"), ("head", "none"), ("head", "disk"))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSpeed:
    """Speed of one way of training.

    Attributes:
        cache: "none", or "disk": the results of the frozen part are on disk, as from the second epoch on.
        pairs_per_s: pairs per second of wall time.
        waiting_share: share of the time in which the network waits for images or for the cache.
        gain: ratio of the time without a cache to this one; of CPU time on a CPU, which depends less on other load.
        cached_bytes: size of the cache per pair.
    """

    tune: str
    cache: str
    pairs_per_s: float
    waiting_share: float
    gain: float
    cached_bytes: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_training(
    model: Reloc3r, size: tuple[int, int], *, device: torch.device, steps: int, batch: int, pairs: PairSet | None = None
) -> list[TrainingSpeed]:
    """Speed of training the decoder and the head, each without and with a cache. The weights are changed.

    Args:
        size: (width, height) of the network's images.
        steps: measured steps of each way; one more comes before, to warm up, or to fill the cache.
        pairs: what is trained on; by default random images in memory, as JPEG.
    """
    data = pairs or made_up_pairs(steps * batch)
    found: list[TrainingSpeed] = []
    without_cache_s = 0.0
    for tune, cache in WAYS:
        config = TrainingConfig(
            tune=tune, cache=cache, batch=batch, epochs=2, mix=f"{steps * batch} @ data", warmup_epochs=0.0,
            jitter_variants=1, resolutions=(size,), device=str(device), start="given", max_skipped=steps * 2,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            speed, waiting, cost_s, size_bytes = _measured(model, data, config, Path(folder), device)
        without_cache_s = cost_s if cache == "none" else without_cache_s
        found.append(
            TrainingSpeed(
                tune=tune,
                cache=cache,
                pairs_per_s=speed,
                waiting_share=waiting,
                gain=without_cache_s / cost_s,
                cached_bytes=size_bytes // (steps * batch),
            )
        )
    return found


def made_up_pairs(count: int) -> PairSet:
    """Pairs of random images, JPEG in memory, with cameras beside each other."""
    rng = np.random.default_rng(0)
    width, height = MADE_UP
    camera = Camera.assume(width, height, fov_deg=60.0)
    files = [encode_jpeg(_random_image(rng), 90) for _ in range(2 * count)]

    def view(k: int) -> View:
        pose = np.eye(4)
        pose[0, 3] = 0.1 * k
        return View(
            name=f"image {k}",
            identity=str(k),
            read=lambda: decode_image(files[k], f"image {k}"),
            camera=camera,
            world_from_cam=pose,
        )

    return PairSet(
        name="random images",
        pairs=np.arange(2 * count).reshape(-1, 2),
        view=view,
        identity=str,
        has_direction=np.ones(count, bool),
    )


def _measured(
    model: Reloc3r, data: PairSet, config: TrainingConfig, folder: Path, device: torch.device
) -> tuple[float, float, float, int]:
    """(pairs per second, share of waiting, cost in seconds, bytes in the cache)."""
    mixture = Mixture({"data": data}, parse_mixture(config.mix, ["data"]))
    own, start = Processes(0, 1, device), Start(model, "given", "")
    place = workplace(config, folder, own, start, (mixture, mixture, list(config.resolutions)))
    trainer, ahead = Trainer(config, place), ReadAhead(place.loader, config.workers)
    steps = trainer.steps_per_epoch
    before = steps if config.cache == "disk" else 1  # the first epoch fills the cache
    for pairs in ahead(trainer.requests(0, before)):
        trainer.take_step(pairs, Interval())
    _synchronize(device)
    ahead.waited_s = trainer.fetched_s = 0.0
    started, cpu_started = time.perf_counter(), time.process_time()
    for pairs in ahead(trainer.requests(steps, 2 * steps)):
        trainer.take_step(pairs, Interval())
    _synchronize(device)
    elapsed = time.perf_counter() - started
    cost_s = time.process_time() - cpu_started if device.type == "cpu" else elapsed
    # With a cache the frozen part is read from it, without one it is computed.
    waiting = ahead.waited_s + (trainer.fetched_s if config.cache == "disk" else 0.0)
    size_bytes = sum(path.stat().st_size for path in folder.rglob("data.bin"))
    return steps * config.batch / elapsed, waiting / elapsed, cost_s, size_bytes


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _random_image(rng: np.random.Generator) -> Image:
    coarse = rng.integers(0, 256, (MADE_UP[1] // 16, MADE_UP[0] // 16, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, MADE_UP, interpolation=cv2.INTER_CUBIC), dtype=np.uint8)
