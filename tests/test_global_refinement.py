"""How often the whole map is refined at the end: counted, never timed."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from relocalizer.camera import Camera
from relocalizer.intrinsics_correction import CorrectionStep, IntrinsicsCorrection
from slam.config.schema import BundleAdjustmentConfig
from slam.map.lens_evidence import LensEvidence, LensState
from slam.map.tracks import Tracks
from slam.mapping.bundle import CALIBRATED, FocalPrior, IntrinsicsPrior, PrincipalPrior
from slam.mapping.global_refinement import refine_map, run_cost_s
from slam.mapping.lens_examination import LensFinding


class CountingMapper:
    """Two segments of ten keyframes that see `seen` landmarks each; rounds are noted and change nothing."""

    def __init__(self, seen: int, *, assumed: bool = False) -> None:
        tracks = Tracks(np.arange(seen), np.zeros((seen, 2), np.float32))
        camera = replace(Camera.assume(64, 48, fov_deg=60.0), assumed=assumed)
        self.graph = SimpleNamespace(
            keyframes={k: SimpleNamespace(camera=camera, frame_index=k) for k in range(10)},
            segment_of={k: k // 5 for k in range(10)},
            segment=lambda s: [k for k in range(10) if k // 5 == s],
        )
        self.landmarks = SimpleNamespace(
            observed=dict.fromkeys(range(10), tracks), is_triangulated=lambda ids: np.ones(len(ids), bool)
        )
        self.lenses: dict[int, IntrinsicsCorrection] = {}
        self.lens_evidence: dict[int, LensEvidence] = {}
        self.assumed_focal_sigma: float | None = None
        self.steps: list[tuple[int, CorrectionStep]] = []
        self.refined: list[int] = []
        self.asked: list[tuple[int, int]] = []
        self.calibrated: list[tuple[int, IntrinsicsPrior]] = []

    @property
    def map(self) -> CountingMapper:
        return self

    @property
    def adjustment(self) -> CountingMapper:
        return self

    def set_lens_evidence(self, segment: int, evidence: LensEvidence) -> None:
        self.lens_evidence[segment] = evidence

    def correct_lens(self, segment: int, step: CorrectionStep) -> str:
        if max(step.radial) > 1.0:
            return "it folds"
        self.steps.append((segment, step))
        self.lenses[segment] = IntrinsicsCorrection().then(step, self.graph.keyframes[0].camera)
        return ""

    def wanted_focal_ratio(self, segment: int) -> float:
        self.asked.append((segment, len(self.refined)))
        return 0.96

    def global_bundle_adjustment(self, segment: int, *, lens: IntrinsicsPrior | None = None) -> tuple[float, float]:
        self.refined.append(segment)
        if lens is not None:
            self.calibrated.append((segment, lens))
        return 2.0 + segment, 1.0 + segment


def rounds(
    mapper: CountingMapper, *, frames: int = 100, keyframes: int = 10, may_calibrate: bool = True, **config: Any
) -> tuple[int, list[tuple[float, float, str]]]:
    reported: list[tuple[float, float, str]] = []
    done = refine_map(
        mapper,  # type: ignore[arg-type]
        BundleAdjustmentConfig(**{"calibrate": "never", **config}),
        budget_s=run_cost_s(frames=frames, keyframes=keyframes),
        may_calibrate=may_calibrate,
        notify=lambda before, after, name: reported.append((before, after, name)),
    )
    return done, reported


def test_every_round_refines_every_segment_and_tells_the_largest_errors():
    mapper = CountingMapper(seen=10)
    done, reported = rounds(mapper, final_rounds=2)
    assert (done, mapper.refined) == (2, [0, 1, 0, 1])
    assert reported[0] == (3.0, 2.0, "final refinement, round 1 of 2 (errors: pixels)")


def test_each_round_is_announced_before_it_begins_and_no_other_is():
    """A run of ten frames pays for one of three."""
    mapper, reported = CountingMapper(seen=10_000), []
    refine_map(
        mapper,  # type: ignore[arg-type]
        BundleAdjustmentConfig(calibrate="never"),
        budget_s=run_cost_s(frames=10, keyframes=10),
        may_calibrate=True,
        notify=lambda before, after, name: None,
        on_round=lambda done, of: reported.append((done, of, len(mapper.refined))),
    )
    assert reported == [(0, 3, 0)]


KNOWN = LensEvidence(LensState.KNOWN, 0.8, 0.01)
PLAIN = LensFinding(LensEvidence())
REFOCUS = LensFinding(KNOWN, CorrectionStep((0.8, 0.8)))
DISTORTED = LensFinding(LensEvidence(LensState.CALIBRATED, 1.0, 0.01), may_have_distortion=True)


@pytest.fixture
def footage(monkeypatch):
    """Says what the footage of each segment says of its camera."""

    def says(*findings):
        monkeypatch.setattr("slam.mapping.global_refinement._examine", lambda mapper, segment, *_: findings[segment])

    return says


def test_each_segment_has_a_lens_of_its_own(footage):
    footage(REFOCUS, DISTORTED)
    mapper = CountingMapper(seen=10)
    rounds(mapper, final_rounds=1, calibrate="auto")
    assert mapper.steps == [(0, REFOCUS.step)]
    (first, focal), (second, prior) = mapper.calibrated
    assert (first, focal) == (
        0,
        IntrinsicsPrior(focal=FocalPrior(mapper.graph.keyframes[0].camera.mean_focal, KNOWN.focal_sigma)),
    )
    assert (second, prior.radial_sigma, prior.focal) == (1, CALIBRATED.radial_sigma, None)
    assert prior.most_px == pytest.approx(0.025 * 40.0)  # half the diagonal of 64 x 48 is 40
    assert [mapper.map.lens_evidence[s].state for s in (0, 1)] == [LensState.KNOWN, LensState.CALIBRATED]


def test_the_principal_point_of_an_assumed_camera_is_refined(footage):
    """It is that of a given one that is held: see the segments above."""
    footage(REFOCUS, DISTORTED)
    mapper = CountingMapper(seen=10, assumed=True)
    rounds(mapper, final_rounds=1, calibrate="auto")
    for _, prior in mapper.calibrated:
        assert prior.principal == PrincipalPrior(31.5, 23.5, pytest.approx(0.0125 * 64))


def test_where_nothing_speaks_against_a_camera_it_is_held(footage):
    footage(PLAIN, PLAIN)
    mapper = CountingMapper(seen=10)
    rounds(mapper, final_rounds=1, calibrate="auto")
    assert (mapper.steps, mapper.calibrated) == ([], [])


def test_a_corrected_map_is_refined_at_any_cost(footage):
    footage(REFOCUS, PLAIN)
    assert rounds(CountingMapper(seen=10**6), frames=0, calibrate="auto")[0] == 3


def test_a_correction_that_is_no_lens_leaves_a_guess_and_says_why(footage):
    footage(LensFinding(KNOWN, CorrectionStep(radial=(2.0, 2.0))), PLAIN)
    mapper = CountingMapper(seen=10, assumed=True)
    rounds(mapper, final_rounds=1, calibrate="auto")
    assert mapper.map.lens_evidence[0] == LensEvidence(LensState.GUESS, reason="it folds")


def test_segments_that_want_different_focal_lengths_are_reported(footage):
    """Keyframes 0 to 4 and 5 to 9."""
    wants = [LensFinding(LensEvidence(LensState.CALIBRATED, ratio, 0.01)) for ratio in (1.0, 1.3)]
    footage(*wants)
    mapper = CountingMapper(seen=10)
    rounds(mapper, final_rounds=1, calibrate="auto")
    for segment in (0, 1):
        change = mapper.map.lens_evidence[segment].change
        assert change.share == pytest.approx(0.3)
        assert (change.from_frame, change.to_frame) == (4, 5)


def test_a_doubt_about_a_given_camera_is_settled_when_the_map_is_refined(footage):
    doubt = LensEvidence(LensState.CALIBRATED, 0.94, 0.02)
    footage(PLAIN, LensFinding(doubt))
    mapper = CountingMapper(seen=10)
    rounds(mapper, final_rounds=1, calibrate="auto")
    assert mapper.asked == [(1, 2)]
    assert [mapper.map.lens_evidence[s].state for s in (0, 1)] == [LensState.CALIBRATED, LensState.CONTRADICTED]


@pytest.mark.parametrize(
    ("may_calibrate", "config"), [(False, {}), (True, {"calibrate": "never"}), (True, {"final": "never"})]
)
def test_a_camera_that_may_not_be_found_is_not_examined(may_calibrate, config, footage):
    footage(REFOCUS, REFOCUS)
    mapper = CountingMapper(seen=10, assumed=True)
    rounds(mapper, final_rounds=1, may_calibrate=may_calibrate, **{"calibrate": "auto", **config})
    assert (mapper.steps, mapper.map.lens_evidence) == ([], {})


def test_never_refines_nothing_and_tells_nothing():
    mapper = CountingMapper(seen=10)
    assert rounds(mapper, final="never") == (0, [])
    assert mapper.refined == []


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (0, 0),  # ten keyframes are counted at 1.5 s, a round over 100,000 observations at 1.6 s
        (10, 1),  # and each frame at 12 ms
        (200, 2),
        (10_000, 3),
    ],
)
def test_auto_stops_before_the_rounds_have_cost_more_than_the_run(frames, expected):
    assert rounds(CountingMapper(seen=10_000), frames=frames)[0] == expected


def test_always_does_every_round_at_any_cost():
    assert rounds(CountingMapper(seen=10_000), frames=0, final="always")[0] == 3


def test_fewer_iterations_make_a_round_cheaper():
    assert rounds(CountingMapper(seen=10_000), frames=0, final_iterations=2)[0] == 3


def test_a_short_run_in_a_large_map_does_not_refine_all_of_it():
    assert rounds(CountingMapper(seen=10_000), frames=30, keyframes=2)[0] == 0
    assert rounds(CountingMapper(seen=10_000), frames=30, keyframes=10)[0] == 1


def test_distortion_that_is_searched_for_makes_a_round_dearer(footage):
    footage(DISTORTED, DISTORTED)
    held, free = (rounds(CountingMapper(seen=10_000), frames=30, calibrate=c)[0] for c in ("never", "auto"))
    assert (held, free) == (1, 0)
