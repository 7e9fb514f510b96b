"""SLAM under trouble of every kind: a short run with each kind at least once, and a long one that is asked for.

    pytest -m soak tests/test_torture.py

runs for SLAM_SOAK_MINUTES (30) or SLAM_SOAK_FRAMES (200000), whatever comes first, from scenario SLAM_SOAK_SEED on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache

import cv2
import numpy as np
import pytest
from invariants import Witness, check_live, check_map, check_result
from torture import HANDS, Failed, Scenario, Tally, torture
from torture_world import Trouble

from relocalizer.camera import Camera
from relocalizer.images import Image
from relocalizer.predictors.geometric_predictor import GeometricPredictor
from relocalizer.retrieval import FaissRetriever
from slam.components.assembly import Components
from slam.config.schema import SlamConfig
from slam.loop_closing.gtsam_pose_graph import GtsamOptimizer
from slam.map.frames import Frame
from slam.mapping.schur_bundle_adjuster import SchurBundleAdjuster
from slam.system import Slam
from slam.tracking.klt import KltTracker

FIRST, MOST = 168, 24  # one in whose deck all kinds have occasion to strike; see below
DECK = range(FIRST, FIRST + HANDS)  # scenarios to which all kinds of trouble are dealt


@cache
def played(seed: int) -> Scenario:
    scenario = Scenario(seed)
    scenario.play()
    return scenario


@pytest.mark.parametrize("seed", DECK)
def test_nothing_is_raised_and_what_must_hold_holds(seed):
    assert played(seed).tally.frames > 0


def test_every_kind_of_trouble_came():
    """Further scenarios help out where a kind had no occasion in the first ones, as after a change of the code."""
    tally = Tally()
    for seed in range(FIRST, FIRST + MOST):
        tally.add(played(seed).tally)
        missing = [kind for kind in Trouble if not tally.happened[kind]]
        if seed >= DECK[-1] and not missing:
            break
    assert missing == []


def test_a_scenario_gives_the_same_bytes_again():
    first, second = played(DECK[5]), Scenario(DECK[5])
    second.play()
    assert first.tally.happened == second.tally.happened
    assert first.digest.digest() == second.digest.digest()


def test_a_scenario_that_fails_says_what_was_dealt_where_it_was_and_how_to_see_it_again(monkeypatch):
    def fail(slam, frame):
        raise KeyError(frame.index)

    monkeypatch.setattr(Slam, "step", fail)
    with pytest.raises(Failed, match=r"scenario 1 \([A-Z_, ]+\), run 1, frame 0: KeyError\(0\)") as failed:
        torture(1, 1)
    assert "again: python tests/torture.py --seed 1 --frames 1" in str(failed.value)


# Real parts


def images_of_all_kinds(rng: np.random.Generator) -> Iterator[Image]:
    """A walk past two walls, the nearer one below, with images in between that show little or nothing of it."""
    walls = [cv2.resize(rng.integers(0, 256, (60, 160), dtype=np.uint8), None, fx=4, fy=4) for _ in range(2)]
    height, width, x = 120, 160, 0
    dots = np.zeros((height, width), np.uint8)
    dots[rng.integers(0, height, 30), rng.integers(0, width, 30)] = 255
    strange = [
        rng.integers(0, 256, (height, width), dtype=np.uint8),
        np.zeros((height, width), np.uint8),
        np.full((height, width), 255, np.uint8),
        np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1)),
        np.kron(np.indices((15, 20)).sum(axis=0) % 2 * 255, np.ones((8, 8))).astype(np.uint8),
        dots,
        rng.integers(0, 256, (1, 1), dtype=np.uint8),
        rng.integers(0, 256, (2, 3), dtype=np.uint8),
        rng.integers(0, 256, (24, 32), dtype=np.uint8),
        np.zeros((0, 0), np.uint8),
    ]
    for gray in strange:
        for _ in range(6):
            x += 3
            near, far = walls[0][:60, x : x + width], walls[1][:60, x // 3 : x // 3 + width]
            yield np.repeat(np.vstack([far, near])[:, :, None], 3, axis=2)
        yield np.repeat(gray[:, :, None], 3, axis=2)


def test_the_real_tracker_and_predictor_bear_images_of_all_kinds():
    config, witness = SlamConfig(), Witness()
    sections = {
        "features": {"max_features": 300},
        "initialization": {"min_landmarks": 15, "min_confirming": 15, "min_parallax_px": 5.0, "min_parallax_deg": 0.3},
        "bundle_adjustment": {"window": 3, "final": "always", "final_rounds": 1},
        "tracking": {"restart_after": 2},
    }
    config = config.model_copy(update={n: getattr(config, n).model_copy(update=u) for n, u in sections.items()})
    slam = Slam(
        config,
        Components(
            predictor=GeometricPredictor(config.features, config.predictor.geometric),
            tracker=KltTracker(config.tracks, config.features),
            retriever=FaissRetriever(),
            optimizer=GtsamOptimizer(),
            adjuster=SchurBundleAdjuster(),
        ),
        observers=[witness],
    )
    for index, image in enumerate(images_of_all_kinds(np.random.default_rng(4))):
        height, width = image.shape[:2]
        camera = Camera.assume(max(width, 1), max(height, 1), fov_deg=60)
        slam.step(Frame(index=index, timestamp_ns=index * 10**7, image=image, camera=camera))
        check_live(slam)
    result = slam.finish()
    check_map(slam)
    check_result(result, slam.saved_map())
    assert witness.kinds["KeyframeAdded"] > 5
    assert witness.kinds["TrackingLost"] > 2


@pytest.mark.soak
def test_nothing_is_raised_for_a_long_time(capsys):
    minutes = float(os.environ.get("SLAM_SOAK_MINUTES", "30"))
    frames = int(os.environ.get("SLAM_SOAK_FRAMES", "200000"))
    seed = int(os.environ.get("SLAM_SOAK_SEED", "100000"))
    with capsys.disabled():
        tally = torture(seed, frames, seconds=60 * minutes)
        print(tally)
    assert tally.frames > 0
