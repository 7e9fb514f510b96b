"""What things cost on this machine: a whole run by stage, or the Reloc3r network alone. Nothing is written."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from slam.config.schema import SlamConfig
from slam.run import assembly, predictor_choice, run_verdict, runner
from slam.run.run_statistics import RunStatistics

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from slam.input.frame_source import FrameSource


@dataclass(frozen=True, slots=True)
class StageCost:
    """One stage of a run: how many frames ran it, and its milliseconds in those."""

    frames: int
    p50_ms: float
    p95_ms: float
    total_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCost:
    """What a run over some frames took.

    Attributes:
        backend, precision: of Reloc3r, as configured.
        reason: why the result is of no use; empty when it is. The times are real all the same.
        ready_s: from the configuration to a system that takes frames: weights read, libraries loaded.
        live_fps: frames a second without the last refinement; `fps` with it.
        cpu_s: of all threads of this process, less disturbed by other work on the machine than wall time.
        stages: `read` is the wait for the image, `frame` all the system does for it, the others parts of `frame`.
        peak_memory_mb: of this process so far.
    """

    source: str
    predictor: str
    random_weights: bool
    backend: str
    precision: str
    frames: int
    tracked: int
    keyframes: int
    reason: str
    interrupted: bool
    ready_s: float
    wall_s: float
    finish_s: float
    cpu_s: float
    fps: float
    live_fps: float
    stages: dict[str, StageCost]
    peak_memory_mb: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def measure_run(
    config: SlamConfig, source: FrameSource, *, on_progress: Callable[[int], None] | None = None
) -> RunCost:
    """Run SLAM over a source and keep the times alone.

    Args:
        on_progress: called after each frame with the number of frames so far.

    Raises:
        UserError: as `assembly.build` and `runner.run`.
    """
    statistics = RunStatistics()
    started = time.perf_counter()
    slam = assembly.build(config, observers=[statistics], mask=source.mask)
    ready_s, cpu_before = time.perf_counter() - started, time.process_time()
    outcome = runner.run(source, slam, on_progress=on_progress)
    outcome.raise_failure()
    cpu_s, live_s = time.process_time() - cpu_before, outcome.wall_s - outcome.finish_s
    times = {"read": outcome.read_ms, "frame": outcome.step_ms, **statistics.stage_ms}
    return RunCost(
        source=source.description,
        predictor=predictor_choice.choose_predictor(config).kind,
        random_weights=config.predictor.random_weights,
        backend=config.predictor.backend,
        precision=config.predictor.precision,
        frames=outcome.frames,
        tracked=len(outcome.result.trajectory),
        keyframes=statistics.keyframes,
        reason=run_verdict.no_result(outcome, statistics),
        interrupted=outcome.interrupted,
        ready_s=ready_s,
        wall_s=outcome.wall_s,
        finish_s=outcome.finish_s,
        cpu_s=cpu_s,
        fps=outcome.frames / outcome.wall_s,
        live_fps=outcome.frames / live_s,
        stages={name: _stage_cost(ms) for name, ms in times.items() if ms},
        peak_memory_mb=outcome.peak_memory_mb,
    )


def _stage_cost(milliseconds: list[float]) -> StageCost:
    p50, p95 = (float(np.percentile(milliseconds, q)) for q in (50, 95))
    return StageCost(len(milliseconds), round(p50, 3), round(p95, 3), sum(milliseconds) / 1e3)


def measure_predictor(config: SlamConfig, *, repeats: int) -> dict[str, Any]:
    """Time the Reloc3r network that the configuration names, at its largest size, beside a naive use of it.

    With the default backend and precision every way of computing it is measured, otherwise the one that was asked for.

    Args:
        repeats: every figure is the median of so many.

    Raises:
        WeightsError: trained weights were asked for and cannot be had.
        ConfigError: the backend or the precision cannot be had here.
    """
    from relocalizer.network.benchmark import KEYFRAMES, measure_network
    from relocalizer.network.computation import available_runtimes, choose_computation
    from relocalizer.network.model import Architecture, Reloc3r, use_matmul_dtype
    from relocalizer.network.weights import load_model, random_model
    from relocalizer.predictors.preprocessing import TRAINED_SIZES

    asked = config.predictor
    [size, *_] = TRAINED_SIZES[224 if asked.kind == "reloc3r-224" else 512]
    chosen = choose_computation(device=asked.device, backend=asked.backend, precision=asked.precision, size=size)
    by_default = (asked.backend, asked.precision) == ("torch", "auto")

    def load(dtype: torch.dtype) -> Reloc3r:
        if not asked.random_weights:
            return load_model(asked.weights or asked.kind, dtype=dtype)
        model = random_model(Architecture(), seed=config.seed)
        use_matmul_dtype(model, dtype)
        return model

    ways = available_runtimes(chosen.device) if by_default else [chosen.runtime]
    times = measure_network(load, ways, size, device=chosen.device, repeats=repeats).as_dict()
    weights = {"predictor": asked.kind, "random_weights": asked.random_weights}
    return {**weights, "repeats": repeats, "keyframes": KEYFRAMES, "chosen": str(chosen), **times}
