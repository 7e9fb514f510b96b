"""The whole system with false loops that passed geometric verification."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
from false_loops import FalseLoops, Slip, where_to_lie
from oracle import OraclePredictor, OracleTracker, OracleWorld, room_path, room_points

from relocalizer.geometry import exp_so3, rigid
from relocalizer.pose_from_matches import PoseRejected, estimate_pose
from relocalizer.retrieval import FaissRetriever
from slam.components.assembly import Components
from slam.config.schema import SlamConfig
from slam.evaluation.metrics import evaluate
from slam.events import EdgeAccepted, EdgeRejected, Event
from slam.loop_closing.gtsam_pose_graph import GtsamOptimizer
from slam.map.keyframe_graph import EdgeKind
from slam.mapping.schur_bundle_adjuster import SchurBundleAdjuster
from slam.system import Slam

KEYFRAMES = 50  # of the walk, about
SEEN_AGAIN = 40  # keyframe from which on the walk revisits its beginning
LOOKED_CLOSER = (
    r"guided matching: (\d+ landmarks agree, \d+ needed|chi-square [\d.]+ from where they put it, limit 22\.5)"
)


@dataclass(frozen=True, eq=False)
class Result:
    """Result of a run with `false` loops: the accepted loops, and the reasons of the rejected ones.

    `believed` are the accepted false loops, `refused` the false loops rejected by guided matching.
    """

    ate: float
    accepted: set[tuple[int, int]]
    believed: set[tuple[int, int]]
    rejected: dict[tuple[int, int], str]
    refused: dict[tuple[int, int], str]
    false: set[tuple[int, int]]


def walk(
    count: int = 0,
    *,
    clustered: bool = False,
    robust: bool = True,
    slip: Slip | None = None,
    deceived: bool = False,
    first: int = 20,
) -> Result:
    """A walk around a room that revisits its beginning, with `count` false loops on the way.

    They begin at keyframe `first`. With a `slip` they are displaced from the truth; `deceived` images confirm them.
    """
    world = OracleWorld(room_path(), room_points(np.random.default_rng(3), 4000))
    config = SlamConfig()
    config = config.model_copy(update={"loop_closing": config.loop_closing.model_copy(update={"robust": robust})})
    events: list[Event] = []
    slam = Slam(
        config,
        Components(
            predictor=OraclePredictor(world),
            tracker=OracleTracker(world),
            retriever=FaissRetriever(),
            optimizer=GtsamOptimizer(robust=robust),
            adjuster=SchurBundleAdjuster(),
        ),
        observers=[events.append],
    )
    rng = np.random.default_rng(7)
    at = where_to_lie(KEYFRAMES, count, clustered=clustered, rng=rng, first=first)
    liar = FalseLoops(slam._loop_closer, at, clustered, rng, slip, world.ground_truth, deceived=deceived)
    liar.install()
    for frame in world.frames():
        slam.step(frame)
    ate = evaluate(slam.finish().trajectory, world.ground_truth).ate_sim3.rmse
    edges = [e.edge for e in events if isinstance(e, EdgeAccepted) and e.edge.kind is EdgeKind.LOOP]
    return Result(
        ate,
        accepted={(e.i, e.j) for e in edges},
        believed={(e.i, e.j) for e in edges if liar.is_lie(e)},
        rejected={(e.i, e.j): e.reason for e in events if isinstance(e, EdgeRejected)},
        refused=liar.refused,
        false=liar.injected,
    )


@pytest.fixture(scope="module")
def clean():
    return walk()


@pytest.mark.parametrize("clustered", [False, True])
def test_false_loops_twice_as_many_as_true_ones_change_nothing(clean, clustered):
    result = walk(4, clustered=clustered, deceived=True)
    assert len(result.false) >= 4
    assert clean.accepted
    assert result.accepted == clean.accepted
    assert result.ate == pytest.approx(clean.ate, rel=0.1)
    assert all("limit" in result.rejected[key] or "contradict" in result.rejected[key] for key in result.false)


@pytest.mark.parametrize(
    ("slip", "clustered"), [(Slip(length=0.1), True), (Slip(degrees=3.0), True), (Slip(degrees=10.0), False)]
)
def test_loops_with_a_small_error_are_rejected_by_guided_matching(clean, slip, clustered):
    result = walk(4, clustered=clustered, slip=slip, first=SEEN_AGAIN)
    assert result.false
    assert not result.believed
    assert result.ate == pytest.approx(clean.ate, rel=0.1)
    assert all(re.fullmatch(LOOKED_CLOSER, result.refused[key]) for key in result.false)


def test_a_wrong_pose_of_the_place_gives_no_loop(clean, monkeypatch):
    def turned(*args, **options):
        found = estimate_pose(*args, **options)
        if isinstance(found, PoseRejected):
            return found
        wrong = found.fit.world_from_cam * rigid(exp_so3([0.0, np.radians(3.0), 0.0]), np.zeros(3))
        return replace(found, fit=replace(found.fit, world_from_cam=wrong))

    monkeypatch.setattr("slam.loop_closing.loop_verifier.estimate_pose", turned)
    result = walk()
    assert clean.accepted <= result.rejected.keys()
    assert not result.accepted
    assert all(re.search(LOOKED_CLOSER, result.rejected[key]) for key in clean.accepted)


def test_without_the_consistency_test_false_loops_deform_the_map(clean):
    result = walk(4, robust=False, deceived=True)
    assert result.false <= result.believed
    assert result.ate > 10 * clean.ate
