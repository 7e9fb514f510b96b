"""The whole system, told false loops as if geometry had spoken for them."""

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
from slam.mapping.gtsam_bundle_adjuster import GtsamBundleAdjuster
from slam.system import Slam

KEYFRAMES = 50  # of the walk, about
SEEN_AGAIN = 40  # keyframe from which the walk sees its beginning
LOOKED_CLOSER = (
    r"looked at closer, (\d+ landmarks agree, \d+ needed|chi-square [\d.]+ from where they put it, limit 22\.5)"
)


@dataclass(frozen=True, eq=False)
class Told:
    """What came of a run that was told `false` loops: those accepted, and why the others were not.

    `believed` are the false ones accepted, `refused` those that the image itself spoke against.
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
) -> Told:
    """A walk around a room and on, so that its end sees its beginning, with `count` false loops on the way.

    Not before keyframe `first`. With a `slip` they are off by it from the truth; `deceived` images speak for them.
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
            adjuster=GtsamBundleAdjuster(),
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
    return Told(
        ate,
        accepted={(e.i, e.j) for e in edges},
        believed={(e.i, e.j) for e in edges if liar.is_lie(e)},
        rejected={(e.i, e.j): e.reason for e in events if isinstance(e, EdgeRejected)},
        refused=liar.refused,
        false=liar.told,
    )


@pytest.fixture(scope="module")
def clean():
    return walk()


@pytest.mark.parametrize("clustered", [False, True])
def test_false_loops_twice_as_many_as_true_ones_change_nothing(clean, clustered):
    told = walk(4, clustered=clustered, deceived=True)
    assert len(told.false) >= 4
    assert clean.accepted
    assert told.accepted == clean.accepted
    assert told.ate == pytest.approx(clean.ate, rel=0.1)
    assert all("limit" in told.rejected[key] or "contradict" in told.rejected[key] for key in told.false)


@pytest.mark.parametrize(
    ("slip", "clustered"), [(Slip(length=0.1), True), (Slip(degrees=3.0), True), (Slip(degrees=10.0), False)]
)
def test_loops_that_are_a_little_false_are_refused_when_looked_at_closer(clean, slip, clustered):
    told = walk(4, clustered=clustered, slip=slip, first=SEEN_AGAIN)
    assert told.false
    assert not told.believed
    assert told.ate == pytest.approx(clean.ate, rel=0.1)
    assert all(re.fullmatch(LOOKED_CLOSER, told.refused[key]) for key in told.false)


def test_a_pose_that_recognition_got_wrong_is_no_loop(clean, monkeypatch):
    def turned(*args, **options):
        found = estimate_pose(*args, **options)
        if isinstance(found, PoseRejected):
            return found
        wrong = found.fit.world_from_cam * rigid(exp_so3([0.0, np.radians(3.0), 0.0]), np.zeros(3))
        return replace(found, fit=replace(found.fit, world_from_cam=wrong))

    monkeypatch.setattr("slam.loop_closing.loop_verifier.estimate_pose", turned)
    told = walk()
    assert clean.accepted <= told.rejected.keys()
    assert not told.accepted
    assert all(re.search(LOOKED_CLOSER, told.rejected[key]) for key in clean.accepted)


def test_followed_without_question_false_loops_wreck_the_map(clean):
    told = walk(4, robust=False, deceived=True)
    assert told.false <= told.believed
    assert told.ate > 10 * clean.ate
