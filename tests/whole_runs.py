"""A folder of images run through the whole pipeline, and its error against the ground truth beside it."""

from __future__ import annotations

from pathlib import Path

from slam.config.schema import InputConfig, SlamConfig
from slam.evaluation.metrics import evaluate
from slam.evaluation.trajectory import Trajectory
from slam.evaluation.trajectory_files import read_tum
from slam.events import Event
from slam.input.open_source import open_source
from slam.run.runner import RunOutcome, run
from slam.system import Slam


def play(folder: Path, *, max_frames: int | None = None, seed: int = 0) -> tuple[RunOutcome, list[Event]]:
    events: list[Event] = []
    source = open_source(str(folder), config=InputConfig(), max_frames=max_frames)
    return run(source, Slam.create(SlamConfig(seed=seed), observers=[events.append])), events


def ate(trajectory: Trajectory, folder: Path) -> float:
    return evaluate(trajectory, read_tum(folder / "groundtruth.txt")).ate_sim3.rmse
