"""The whole system, told false loops as if geometry had spoken for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from false_loops import FalseLoops, where_to_lie
from oracle import OraclePredictor, OracleTracker, OracleWorld, room_path, room_points

from relocalizer.retrieval import FaissRetriever
from slam.config import SlamConfig
from slam.evaluate import evaluate
from slam.events import EdgeAccepted, EdgeRejected, Event
from slam.graph import EdgeKind
from slam.optimizer import GtsamOptimizer
from slam.refinement import GtsamRefiner
from slam.system import Slam

KEYFRAMES = 50  # of the walk, about


@dataclass(frozen=True, eq=False)
class Told:
    """What came of a run that was told `false` loops."""

    ate: float
    accepted: set[tuple[int, int]]
    rejected: dict[tuple[int, int], str]
    false: set[tuple[int, int]]


def walk(count: int = 0, *, clustered: bool = False, robust: bool = True) -> Told:
    """A walk around a room and on, so that its end sees its beginning, with `count` false loops on the way."""
    world = OracleWorld(room_path(), room_points(np.random.default_rng(3), 4000))
    config = SlamConfig()
    config = config.model_copy(update={"linking": config.linking.model_copy(update={"robust": robust})})
    events: list[Event] = []
    slam = Slam(
        config,
        predictor=OraclePredictor(world),
        tracker=OracleTracker(world),
        retriever=FaissRetriever(),
        optimizer=GtsamOptimizer(robust=robust),
        refiner=GtsamRefiner(),
        observers=[events.append],
    )
    rng = np.random.default_rng(7)
    liar = FalseLoops(slam._linker, where_to_lie(KEYFRAMES, count, clustered=clustered, rng=rng), clustered, rng)
    liar.install()
    for frame in world.frames():
        slam.step(frame)
    ate = evaluate(slam.finish().trajectory, world.ground_truth).ate_sim3.rmse
    accepted = {(e.edge.i, e.edge.j) for e in events if isinstance(e, EdgeAccepted) and e.edge.kind is EdgeKind.LOOP}
    return Told(ate, accepted, {(e.i, e.j): e.reason for e in events if isinstance(e, EdgeRejected)}, liar.told)


@pytest.fixture(scope="module")
def clean():
    return walk()


@pytest.mark.parametrize("clustered", [False, True])
def test_false_loops_twice_as_many_as_true_ones_change_nothing(clean, clustered):
    told = walk(4, clustered=clustered)
    assert len(told.false) >= 4
    assert clean.accepted
    assert told.accepted == clean.accepted
    assert told.ate == pytest.approx(clean.ate, rel=0.1)
    assert all("limit" in told.rejected[key] or "contradict" in told.rejected[key] for key in told.false)


def test_followed_without_question_false_loops_wreck_the_map(clean):
    told = walk(4, robust=False)
    assert told.false <= told.accepted
    assert told.ate > 10 * clean.ate
