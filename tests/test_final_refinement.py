"""How often the whole map is refined at the end: counted, never timed."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from relocalizer.images import Camera
from relocalizer.lens import Lens, LensStep
from slam.config import RefinementConfig
from slam.final_refinement import refine_everything
from slam.refinement import GIVEN, GUESSED, LensPrior
from slam.tracks import Tracks


class CountingMapper:
    """Two segments of ten keyframes that see `seen` landmarks each; rounds are noted and change nothing."""

    def __init__(self, seen: int, *, assumed: bool = False) -> None:
        tracks = Tracks(np.arange(seen), np.zeros((seen, 2), np.float32))
        camera = replace(Camera.assume(64, 48, fov_deg=60.0), assumed=assumed)
        self.graph = SimpleNamespace(
            keyframes=dict.fromkeys(range(10), SimpleNamespace(camera=camera)),
            segment_of={k: k // 5 for k in range(10)},
            segment=lambda s: [k for k in range(10) if k // 5 == s],
        )
        self.landmarks = SimpleNamespace(
            observed=dict.fromkeys(range(10), tracks), has_place=lambda ids: np.ones(len(ids), bool)
        )
        self.lens = Lens()
        self.refined: list[int] = []
        self.calibrated: list[tuple[int, LensPrior]] = []

    def refine_all(self, segment: int, *, lens: LensPrior | None = None) -> tuple[float, float]:
        self.refined.append(segment)
        if lens is not None:
            self.calibrated.append((segment, lens))
        return 2.0 + segment, 1.0 + segment


def rounds(
    mapper: CountingMapper, *, frames: int = 100, keyframes: int = 10, may_calibrate: bool = True, **config: Any
) -> tuple[int, list[tuple[float, float, str]]]:
    told: list[tuple[float, float, str]] = []
    done = refine_everything(
        mapper,  # type: ignore[arg-type]
        RefinementConfig(**{"calibrate": "never", **config}),
        frames=frames,
        keyframes=keyframes,
        may_calibrate=may_calibrate,
        tell=lambda before, after, name: told.append((before, after, name)),
    )
    return done, told


def test_every_round_refines_every_segment_and_tells_the_largest_errors():
    mapper = CountingMapper(seen=10)
    done, told = rounds(mapper, final_rounds=2)
    assert (done, mapper.refined) == (2, [0, 1, 0, 1])
    assert told[0] == (3.0, 2.0, "final refinement, round 1 of 2 (errors: pixels)")


def test_each_round_is_announced_before_it_begins_and_no_other_is():
    """A run of ten frames pays for one of three."""
    mapper, told = CountingMapper(seen=5000), []
    refine_everything(
        mapper,  # type: ignore[arg-type]
        RefinementConfig(calibrate="never"),
        frames=10,
        keyframes=10,
        may_calibrate=True,
        tell=lambda before, after, name: None,
        on_round=lambda done, of: told.append((done, of, len(mapper.refined))),
    )
    assert told == [(0, 3, 0)]


def test_an_assumed_focal_length_is_looked_for_in_the_largest_segment_whatever_it_costs():
    mapper = CountingMapper(seen=10**6, assumed=True)
    rounds(mapper, final_rounds=1, calibrate="auto")
    assert mapper.calibrated == [(0, GUESSED), (0, GUESSED)]


@pytest.mark.parametrize(("ratio", "expected"), [(1.02, 4), (0.98, 4), (1.005, 2)])
def test_twice_the_rounds_are_for_a_focal_length_that_has_not_settled(ratio, expected):
    mapper = CountingMapper(seen=10, assumed=True)
    mapper.lens = Lens().then(LensStep((ratio, ratio)), Camera.assume(64, 48, fov_deg=60.0))
    assert rounds(mapper, final_rounds=2, calibrate="auto")[0] == expected


@pytest.mark.parametrize(
    ("assumed", "may_calibrate", "calibrate", "expected"),
    [
        (False, True, "auto", [(0, GIVEN)]),
        (False, True, "always", [(0, GUESSED), (0, GUESSED)]),
        (True, True, "auto", [(0, GUESSED), (0, GUESSED)]),
        (True, True, "never", []),
        (True, False, "auto", []),
    ],
)
def test_a_camera_is_refined_as_far_as_it_is_not_believed_when_there_is_but_one(
    assumed, may_calibrate, calibrate, expected
):
    mapper = CountingMapper(seen=10, assumed=assumed)
    rounds(mapper, final_rounds=1, may_calibrate=may_calibrate, calibrate=calibrate)
    assert mapper.calibrated == expected


def test_never_refines_nothing_and_tells_nothing():
    mapper = CountingMapper(seen=10)
    assert rounds(mapper, final="never") == (0, [])
    assert mapper.refined == []


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (0, 0),  # ten keyframes are counted at 1.5 s, a round over 50,000 observations at 1.6 s
        (10, 1),  # and each frame at 12 ms
        (200, 2),
        (10_000, 3),
    ],
)
def test_auto_stops_before_the_rounds_have_cost_more_than_the_run(frames, expected):
    assert rounds(CountingMapper(seen=5000), frames=frames)[0] == expected


def test_always_does_every_round_at_any_cost():
    assert rounds(CountingMapper(seen=5000), frames=0, final="always")[0] == 3


def test_fewer_iterations_make_a_round_cheaper():
    assert rounds(CountingMapper(seen=5000), frames=0, final_iterations=2)[0] == 3


def test_a_short_run_in_a_large_map_does_not_refine_all_of_it():
    assert rounds(CountingMapper(seen=5000), frames=30, keyframes=2)[0] == 0
    assert rounds(CountingMapper(seen=5000), frames=30, keyframes=10)[0] == 1


def test_a_camera_that_is_refined_too_makes_a_round_dearer():
    held, free = (rounds(CountingMapper(seen=5000), frames=30, calibrate=c)[0] for c in ("never", "auto"))
    assert (held, free) == (1, 0)
