"""Cost on this machine: of a complete run per stage, or of the Reloc3r network alone. No files are written."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from relocalizer import pytorch
from slam.bench.recording_cost import RecordingCost, RecordingMeter
from slam.components import predictor_choice
from slam.config.schema import SlamConfig
from slam.input.live_stream import with_mapping_thread
from slam.run import run_verdict, runner
from slam.run.calibration_pass import set_up
from slam.run.camera_before_run import calibrate_first
from slam.run.run_statistics import RunStatistics
from slam.system import Slam

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import torch

    from slam.events import Observer
    from slam.input.frame_source import FrameSource


@dataclass(frozen=True, slots=True)
class StageCost:
    """Cost of one stage of a run: the number of frames that executed it, and its time per frame and in total."""

    frames: int
    p50_ms: float
    p95_ms: float
    total_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCost:
    """Cost of a run.

    Attributes:
        backend, precision: of Reloc3r, as configured.
        reason: why the result is unusable; empty if it is usable. The times are valid in either case.
        ready_s: time until the first frame: self-calibration, loading of weights and libraries, seconds.
        live_fps: frames per second without the final refinement; `fps` includes it.
        cpu_s: CPU time of all threads of this process, seconds; it depends less on other load than wall time.
        calibration_cpu_s: part of `cpu_s` for the self-calibration before the run, seconds.
        stages: `read` is the wait for the image, `frame` its complete processing; the others are parts of `frame`.
        peak_memory_mb: peak memory of this process so far, megabytes.
        recording: cost of the Rerun recording, part of all other times; None without one.
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
    calibration_cpu_s: float
    fps: float
    live_fps: float
    stages: dict[str, StageCost]
    peak_memory_mb: float
    recording: RecordingCost | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def measure_recorded_run(
    config: SlamConfig, source: FrameSource, record: Path, *, on_progress: Callable[[int], None] | None = None
) -> RunCost:
    """As `measure_run`, with a Rerun recording, whose cost is measured too.

    Raises:
        UserError: as `measure_run`, and if the file exists or cannot be written.
    """
    from slam.viz.rerun_viewer import RerunViewer

    viewer = RerunViewer(
        record=record, view="none", ground_truth=source.ground_truth, title=source.name, camera=source.camera
    )
    meter = RecordingMeter(viewer)
    try:
        cost = measure_run(config, source, on_progress=on_progress, observers=[meter])
    finally:
        viewer.close()
    return replace(cost, recording=meter.cost(record, cost.wall_s))


def measure_run(
    config: SlamConfig,
    source: FrameSource,
    *,
    on_progress: Callable[[int], None] | None = None,
    observers: Sequence[Observer] = (),
) -> RunCost:
    """Run SLAM over a source and return only the cost.

    Args:
        on_progress: called after each frame with the number of frames so far.
        observers: receive the events, in addition to the statistics.

    Raises:
        UserError: as `Slam.create` and `runner.run`.
    """
    statistics = RunStatistics()
    started, cpu_before = time.perf_counter(), time.process_time()
    source, calibration = calibrate_first(source, config)
    config = with_mapping_thread(config, source)
    calibration_cpu_s = time.process_time() - cpu_before
    slam = Slam.create(config, observers=[statistics, *observers], mask=source.mask)
    set_up(slam, calibration)
    ready_s, cpu_before = time.perf_counter() - started, time.process_time()
    outcome = runner.run(source, slam, on_progress=on_progress)
    outcome.raise_failure()
    cpu_s, live_s = time.process_time() - cpu_before + calibration_cpu_s, outcome.wall_s - outcome.finish_s
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
        calibration_cpu_s=calibration_cpu_s,
        fps=outcome.frames / outcome.wall_s,
        live_fps=outcome.frames / live_s,
        stages={name: _stage_cost(ms) for name, ms in times.items() if ms},
        peak_memory_mb=outcome.peak_memory_mb,
    )


def _stage_cost(milliseconds: list[float]) -> StageCost:
    p50, p95 = (float(np.percentile(milliseconds, q)) for q in (50, 95))
    return StageCost(len(milliseconds), round(p50, 3), round(p95, 3), sum(milliseconds) / 1e3)


def measure_predictor(config: SlamConfig, *, repeats: int) -> dict[str, Any]:
    """Time the configured Reloc3r network at its largest input size, compared with a naive use of it.

    With the default backend and precision, all available runtimes are measured, otherwise the configured one.

    Args:
        repeats: number of repetitions, of which every figure is the median.

    Raises:
        WeightsError: trained weights are configured and not available.
        ConfigError: PyTorch, the backend or the precision is not available on this machine.
    """
    pytorch.expect_installed("measuring the network")
    from relocalizer.network.benchmark import KEYFRAMES, measure_network
    from relocalizer.network.computation import available_runtimes, choose_computation
    from relocalizer.network.model import Architecture, Reloc3r, use_matmul_dtype
    from relocalizer.network.weights import load_model, random_model
    from relocalizer.predictors.preprocessing import TRAINED_SIZES

    requested = config.predictor
    [size, *_] = TRAINED_SIZES[224 if requested.kind == "reloc3r-224" else 512]
    chosen = choose_computation(
        device=requested.device, backend=requested.backend, precision=requested.precision, size=size
    )
    is_default = (requested.backend, requested.precision) == ("torch", "auto")

    def load(dtype: torch.dtype) -> Reloc3r:
        if not requested.random_weights:
            return load_model(requested.weights or requested.kind, dtype=dtype)
        model = random_model(Architecture(), seed=config.seed)
        use_matmul_dtype(model, dtype)
        return model

    runtimes = available_runtimes(chosen.device) if is_default else [chosen.runtime]
    times = measure_network(load, runtimes, size, device=chosen.device, repeats=repeats).as_dict()
    weights = {"predictor": requested.kind, "random_weights": requested.random_weights}
    return {**weights, "repeats": repeats, "keyframes": KEYFRAMES, "chosen": str(chosen), **times}


def measure_training_speed(config: SlamConfig, source: str | None, *, steps: int) -> list[dict[str, Any]]:
    """Speed of training the configured Reloc3r network, each way with and without a cache.

    Args:
        source: a map or a run to train on; random images without it.
        steps: measured steps of each way.

    Raises:
        UserError: there are no weights, or no map.
    """
    pytorch.expect_installed("measuring the training")
    from relocalizer.network.model import Architecture
    from relocalizer.network.precision import choose_device
    from relocalizer.network.weights import load_model, random_model
    from relocalizer.predictors.preprocessing import TRAINED_SIZES
    from relocalizer.training.benchmark import measure_training
    from relocalizer.training.posed_data import pairs_of_map

    requested = config.predictor
    [size, *_] = TRAINED_SIZES[224 if requested.kind == "reloc3r-224" else 512]
    device = choose_device(requested.device)
    if requested.random_weights:
        model = random_model(Architecture(), seed=config.seed)
    else:
        model = load_model(requested.weights or requested.kind)
    pairs = pairs_of_map(Path(source)) if source is not None else None
    batch = 32 if device.type == "cuda" else 2
    return [
        one.as_dict() for one in measure_training(model, size, device=device, steps=steps, batch=batch, pairs=pairs)
    ]
