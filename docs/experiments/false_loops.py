"""Effect of false loops on accuracy: a run gets more and more of them, independent or in consistent clusters.

    python docs/experiments/false_loops.py SEQUENCE [SEQUENCE ...] [--shares 0.1 0.3 0.5] [--oracle]
    python docs/experiments/false_loops.py SEQUENCE [SEQUENCE ...] --slips 0.05 0.1 0.3 --turns 3 10

The share is that of the false loops among all loops; the true ones are those that a clean run verifies. Each false loop
looks confirmed by matching: 30 to 120 landmarks at their pixels under the false pose, with a true loop's noise.
The image is still guided matching: unless it is `--deceived` altogether. False ones that are accepted take their
landmarks with them, as in life. They are at another place altogether, or with `--slips` (the truth's unit) and
`--turns` (degrees) of the right place and a pose that is off by so much.
`--oracle` runs the walk of tests/oracle.py with noisy tracks.
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

from false_loops import CLUSTER, FalseLoops, Slip, where_to_lie
from oracle import OraclePredictor, OracleTracker, OracleWorld, room_path, room_points

from relocalizer.geometry import rotation_angle
from relocalizer.retrieval import FaissRetriever
from slam.config.schema import SlamConfig
from slam.evaluation.metrics import evaluate
from slam.evaluation.trajectory import Trajectory
from slam.events import EdgeAccepted, EdgeRejected, Event, Observer
from slam.input.open_source import open_source
from slam.loop_closing.gtsam_pose_graph import GtsamOptimizer
from slam.map.frames import Frame
from slam.map.keyframe_graph import Edge, EdgeKind
from slam.mapping.schur_bundle_adjuster import SchurBundleAdjuster
from slam.system import Slam

TRUE_DEG = 5.0  # an accepted loop's rotation may be off by this from the truth


@dataclass(frozen=True, slots=True, kw_only=True)
class Lies:
    """How many false loops among the first `keyframes` keyframes, and of what kind."""

    count: int = 0
    keyframes: int = 0
    clustered: bool = False
    cluster: int = CLUSTER
    slip: Slip | None = None
    deceived: bool = False
    seed: int = 0

    def __str__(self) -> str:
        kind = "clusters" if self.clustered else "strangers"
        if self.slip is None:
            return kind
        return f"{kind} off by {f'{self.slip.length:g}' if self.slip.length else f'{self.slip.degrees:g} deg'}"


@dataclass(frozen=True, eq=False)
class Outcome:
    """One run: accuracy, number of false loops, and the loops by their ends: accepted, rejected and so on.

    Attributes:
        right, wrong: accepted; wrong are the false loops, and those that the ground truth contradicts.
        kept: of the wrong ones, those that are followed at the end.
        verified: true loops, accepted or held back.
    """

    ate: float
    coverage: float
    injected: int
    right: set[tuple[int, int]]
    wrong: set[tuple[int, int]]
    kept: set[tuple[int, int]]
    verified: set[tuple[int, int]]
    keyframes: int


def start(name: str, *, robust: bool, observer: Observer) -> tuple[Slam, Iterable[Frame], Trajectory]:
    """A system, its frames, and the truth: of a sequence, or of the oracle's walk for the name 'oracle'."""
    config = SlamConfig()
    config = config.model_copy(update={"loop_closing": config.loop_closing.model_copy(update={"robust": robust})})
    if name != "oracle":
        source = open_source(name, config=config.input)
        assert source.ground_truth is not None, f"{name} has no ground truth"
        return Slam.create(config, observers=[observer]), source, source.ground_truth
    world = OracleWorld(room_path(), room_points(np.random.default_rng(3), 1200), pixel_noise=1.5)
    slam = Slam(
        config,
        predictor=OraclePredictor(world),
        tracker=OracleTracker(world),
        retriever=FaissRetriever(),
        optimizer=GtsamOptimizer(robust=robust),
        adjuster=SchurBundleAdjuster(),
        observers=[observer],
    )
    return slam, world.frames(), world.ground_truth


def run(name: str, lies: Lies, *, robust: bool = True, say: bool = False) -> Outcome:
    events: list[Event] = []

    def remember(event: Event) -> None:
        if isinstance(event, EdgeAccepted | EdgeRejected):  # others hold images
            events.append(event)

    slam, frames, truth = start(name, robust=robust, observer=remember)
    rng = np.random.default_rng(lies.seed)
    at: frozenset[int] = frozenset()
    if lies.count:
        at = where_to_lie(lies.keyframes, lies.count, clustered=lies.clustered, rng=rng, cluster=lies.cluster)
    liar = FalseLoops(slam._loop_closer, at, lies.clustered, rng, lies.slip, truth, lies.cluster, lies.deceived)
    liar.install()
    total = 0
    for frame in frames:
        slam.step(frame)
        total += 1
    result = slam.finish()
    edges = [e.edge for e in events if isinstance(e, EdgeAccepted) and e.edge.kind is EdgeKind.LOOP]
    held = {(e.i, e.j) for e in events if isinstance(e, EdgeRejected) and e.reason.startswith(("held", "left"))}
    when = {k: keyframe.timestamp_ns for k, keyframe in result.graph.keyframes.items()}
    wrong = [edge for edge in edges if liar.is_lie(edge) or is_wrong(edge, when, truth)]
    right = {(e.i, e.j) for e in edges if not any(e is edge for edge in wrong)}
    if say:
        report(events, liar)
    return Outcome(
        ate=evaluate(result.trajectory, truth).ate_sim3.rmse,
        coverage=len(result.trajectory) / total,
        injected=len(liar.injected),
        right=right,
        wrong={(e.i, e.j) for e in wrong},
        kept={(e.i, e.j) for e in result.graph.loops() if result.graph.weight(e) > 0 and any(e is w for w in wrong)},
        verified=right | (held - liar.injected),
        keyframes=len(when),
    )


def report(events: list[Event], liar: FalseLoops) -> None:
    """What became of each loop, in order."""
    for event in events:
        if isinstance(event, EdgeAccepted) and event.edge.kind is EdgeKind.LOOP:
            edge = event.edge
            kind = "false" if liar.is_lie(edge) else "mended" if any(edge is m for m in liar.mended) else "true"
            print(f"  {kind} {edge.i}-{edge.j}: accepted, {edge.inliers} landmarks", flush=True)
        elif isinstance(event, EdgeRejected) and ("held" in event.reason or "left out" in event.reason):
            kind = "false or true" if (event.i, event.j) in liar.injected else "true"
            print(f"  {kind} {event.i}-{event.j}: {event.reason}", flush=True)
        elif isinstance(event, EdgeRejected) and "guided matching" in event.reason:
            kind = "false" if liar.refused.get((event.i, event.j)) == event.reason else "true"
            print(f"  {kind} {event.i}-{event.j}: {event.reason}", flush=True)


def is_wrong(edge: Edge, when: dict[int, int], truth: Trajectory) -> bool:
    """Whether the truth says that a loop's rotation is off."""
    stamps = np.array([when[edge.i], when[edge.j]])
    rows = [int(np.abs(truth.timestamps_ns - stamp).argmin()) for stamp in stamps]
    a, b = truth.world_from_cam[rows]
    return bool(np.degrees(rotation_angle((np.linalg.inv(a) @ b)[:3, :3].T @ edge.i_from_j.rotation)) > TRUE_DEG)


def row(label: str, outcome: Outcome, clean: Outcome) -> str:
    accepted = len(outcome.right) + len(outcome.wrong)
    precision, restore_encoding = (
        len(outcome.right) / max(accepted, 1),
        len(outcome.right) / max(len(outcome.verified), 1),
    )
    return (
        f"| {label} | {outcome.injected} | {outcome.ate:.4f} | {outcome.ate / clean.ate:.2f} | {outcome.coverage:.0%} "
        f"| {accepted} | {len(outcome.wrong)} | {len(outcome.kept)} | {precision:.0%} | {restore_encoding:.0%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sequences", nargs="*")
    parser.add_argument("--oracle", action="store_true")
    parser.add_argument("--shares", nargs="*", type=float, default=[0.01, 0.1, 0.3, 0.5])
    parser.add_argument("--slips", nargs="*", type=float, default=[], help="off by so much, in the truth's unit")
    parser.add_argument("--turns", nargs="*", type=float, default=[], help="off by so many degrees")
    parser.add_argument("--kinds", nargs="*", choices=["strangers", "clusters"], default=["strangers", "clusters"])
    parser.add_argument("--cluster", type=int, default=CLUSTER, help="loops of one mistaken place")
    parser.add_argument("--deceived", action="store_true", help="images confirm false loops in every test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--say", action="store_true", help="what became of each loop")
    arguments = parser.parse_args()
    slips = [*(Slip(length=s) for s in arguments.slips), *(Slip(degrees=t) for t in arguments.turns)] or [None]
    for name in [*arguments.sequences, *(["oracle"] if arguments.oracle else [])]:
        clean = run(name, Lies(), say=arguments.say)
        print(f"\n{Path(name).name}: {len(clean.verified)} loops verified, {clean.keyframes} keyframes\n")
        print(
            "| share | false loops | ATE | of the clean run | coverage | accepted | false | kept | precision | recall |"
        )
        print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
        print(row("none", clean, clean), flush=True)
        for share in arguments.shares:
            for slip in slips:
                for kind in arguments.kinds:
                    lies = Lies(
                        count=math.ceil(share / (1 - share) * len(clean.verified)),
                        keyframes=clean.keyframes,
                        clustered=kind == "clusters",
                        cluster=arguments.cluster,
                        slip=slip,
                        deceived=arguments.deceived,
                        seed=arguments.seed,
                    )
                    print(row(f"{share:.0%} {lies}", run(name, lies, say=arguments.say), clean), flush=True)
        if slips == [None]:
            print(row(f"{share:.0%} {lies}, linking.robust=false", run(name, lies, robust=False), clean), flush=True)


if __name__ == "__main__":
    main()
