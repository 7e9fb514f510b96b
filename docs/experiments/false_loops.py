"""How much harm false loops do: a run is told ever more of them, strangers or clusters that agree with each other.

    python docs/experiments/false_loops.py SEQUENCE [SEQUENCE ...] [--shares 0.1 0.3 0.5] [--oracle]

For every share the false loops are that part of all loops told; the true ones are those that a clean run verifies. Each
is told as if geometry had spoken for it: 30 to 120 landmarks all over the picture, a true loop's noise. False ones that
are accepted take their landmarks with them, as in life. `--oracle` runs the walk of tests/oracle.py with noisy tracks.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from false_loops import FalseLoops, where_to_lie
from oracle import OraclePredictor, OracleTracker, OracleWorld, room_path, room_points

from relocalizer.geometry import rotation_angle
from relocalizer.retrieval import FaissRetriever
from slam.config import SlamConfig
from slam.evaluate import evaluate
from slam.events import EdgeAccepted, EdgeRejected, Event, Observer
from slam.frames import Frame
from slam.graph import Edge, EdgeKind
from slam.optimizer import GtsamOptimizer
from slam.pipeline import build
from slam.refinement import GtsamRefiner
from slam.sequence import open_source
from slam.system import Slam
from slam.trajectory import Trajectory

TRUE_DEG = 5.0  # an accepted loop's rotation may be off by this from the truth


@dataclass(frozen=True, eq=False)
class Outcome:
    """One run: accuracy, loops accepted (i, j), those told falsely, true ones verified, keyframes."""

    ate: float
    coverage: float
    accepted: set[tuple[int, int]]
    told: set[tuple[int, int]]
    wrong: set[tuple[int, int]]
    verified: set[tuple[int, int]]
    keyframes: int


def start(name: str, *, robust: bool, observer: Observer) -> tuple[Slam, Iterable[Frame], Trajectory]:
    """A system, its frames, and the truth: of a sequence, or of the oracle's walk for the name 'oracle'."""
    config = SlamConfig()
    config = config.model_copy(update={"linking": config.linking.model_copy(update={"robust": robust})})
    if name != "oracle":
        source = open_source(name, config=config.input)
        assert source.ground_truth is not None, f"{name} has no ground truth"
        return build(config, observers=[observer]), source, source.ground_truth
    world = OracleWorld(room_path(), room_points(np.random.default_rng(3), 1200), pixel_noise=1.5)
    slam = Slam(
        config,
        predictor=OraclePredictor(world),
        tracker=OracleTracker(world),
        retriever=FaissRetriever(),
        optimizer=GtsamOptimizer(robust=robust),
        refiner=GtsamRefiner(),
        observers=[observer],
    )
    return slam, world.frames(), world.ground_truth


def run(name: str, count: int, keyframes: int, *, clustered: bool, robust: bool = True, seed: int = 0) -> Outcome:
    """Run with `count` false loops among the first `keyframes` keyframes."""
    events: list[Event] = []

    def remember(event: Event) -> None:
        if isinstance(event, EdgeAccepted | EdgeRejected):  # others hold pictures
            events.append(event)

    slam, frames, truth = start(name, robust=robust, observer=remember)
    rng = np.random.default_rng(seed)
    at = where_to_lie(keyframes, count, clustered=clustered, rng=rng) if count else frozenset()
    liar = FalseLoops(slam._linker, at, clustered, rng)
    liar.install()
    total = 0
    for frame in frames:
        slam.step(frame)
        total += 1
    result = slam.finish()
    edges = [e.edge for e in events if isinstance(e, EdgeAccepted) and e.edge.kind is EdgeKind.LOOP]
    accepted = {(e.i, e.j) for e in edges}
    held = {(e.i, e.j) for e in events if isinstance(e, EdgeRejected) and e.reason.startswith(("held", "left"))}
    when = {k: keyframe.timestamp_ns for k, keyframe in result.graph.keyframes.items()}
    return Outcome(
        ate=evaluate(result.trajectory, truth).ate_sim3.rmse,
        coverage=len(result.trajectory) / total,
        accepted=accepted,
        told=liar.told,
        wrong={(e.i, e.j) for e in edges if is_wrong(e, when, truth)},
        verified=(accepted | held) - liar.told,
        keyframes=len(when),
    )


def is_wrong(edge: Edge, when: dict[int, int], truth: Trajectory) -> bool:
    """Whether the truth says that a loop's rotation is off."""
    stamps = np.array([when[edge.i], when[edge.j]])
    rows = [int(np.abs(truth.timestamps_ns - stamp).argmin()) for stamp in stamps]
    a, b = truth.world_from_cam[rows]
    return bool(np.degrees(rotation_angle((np.linalg.inv(a) @ b)[:3, :3].T @ edge.i_from_j.rotation)) > TRUE_DEG)


def row(label: str, outcome: Outcome, clean: Outcome) -> str:
    right = len(outcome.accepted - outcome.told - outcome.wrong)
    precision = right / max(len(outcome.accepted), 1)
    recall = right / max(len(outcome.verified), 1)
    return (
        f"| {label} | {len(outcome.told)} | {outcome.ate:.4f} | {outcome.ate / clean.ate:.2f} | {outcome.coverage:.0%} "
        f"| {len(outcome.accepted)} | {precision:.0%} | {recall:.0%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sequences", nargs="*")
    parser.add_argument("--oracle", action="store_true")
    parser.add_argument("--shares", nargs="*", type=float, default=[0.01, 0.1, 0.3, 0.5])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name in [*arguments.sequences, *(["oracle"] if arguments.oracle else [])]:
        clean = run(name, 0, 0, clustered=False)
        print(f"\n{Path(name).name}: {len(clean.verified)} loops verified, {clean.keyframes} keyframes\n")
        print("| false loops | told | ATE | of the clean run | coverage | accepted | precision | recall |")
        print("|---|--:|--:|--:|--:|--:|--:|--:|")
        print(row("none", clean, clean), flush=True)
        for clustered in (False, True):
            for share in arguments.shares:
                count = math.ceil(share / (1 - share) * len(clean.verified))
                found = run(name, count, clean.keyframes, clustered=clustered, seed=arguments.seed)
                print(row(f"{share:.0%} {'clusters' if clustered else 'strangers'}", found, clean), flush=True)
        share = max(arguments.shares)
        count = math.ceil(share / (1 - share) * len(clean.verified))
        found = run(name, count, clean.keyframes, clustered=False, robust=False, seed=arguments.seed)
        print(row(f"{share:.0%} strangers, linking.robust=false", found, clean), flush=True)


if __name__ == "__main__":
    main()
