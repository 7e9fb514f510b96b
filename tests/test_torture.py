"""SLAM under trouble of every kind: a short run with each kind at least once, and a long one that is asked for.

    pytest -m soak tests/test_torture.py

goes on for SLAM_SOAK_MINUTES (30) or SLAM_SOAK_FRAMES (200000), whatever comes first, from scenario SLAM_SOAK_SEED on.
"""

from __future__ import annotations

import os
from functools import cache

import pytest
from torture import HANDS, Failed, Scenario, Tally, torture
from torture_world import Trouble

from slam.system import Slam

FIRST = 0
DECK = range(FIRST, FIRST + HANDS)  # scenarios to which all kinds of trouble are dealt


@cache
def played(seed: int) -> Tally:
    return Scenario(seed).play()


@pytest.mark.parametrize("seed", DECK)
def test_nothing_is_raised_and_what_must_hold_holds(seed):
    assert played(seed).frames > 0


def test_every_kind_of_trouble_came():
    tally = Tally()
    for seed in DECK:
        tally.add(played(seed))
    assert [kind for kind in Trouble if not tally.happened[kind]] == []


def test_a_scenario_gives_the_same_bytes_again():
    first, second = Scenario(DECK[-1]), Scenario(DECK[-1])
    first.play()
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


@pytest.mark.soak
def test_nothing_is_raised_for_a_long_time(capsys):
    minutes = float(os.environ.get("SLAM_SOAK_MINUTES", "30"))
    frames = int(os.environ.get("SLAM_SOAK_FRAMES", "200000"))
    seed = int(os.environ.get("SLAM_SOAK_SEED", "100000"))
    with capsys.disabled():
        tally = torture(seed, frames, seconds=60 * minutes)
        print(tally)
    assert tally.frames > 0
