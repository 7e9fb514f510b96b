"""`slam bench --perturb`: how the images differ, and what is said about the runs."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from slam.bench.perturbation import (
    Kind,
    Perturbation,
    PerturbedRow,
    PerturbedSource,
    measure_perturbed,
    perturbations,
    spreads,
)
from slam.config.schema import SlamConfig
from slam.input.frame_source import RereadableSource
from slam.input.open_source import open_source


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(1).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def test_the_kinds_come_in_turn_and_no_two_runs_are_alike():
    found = perturbations(7)
    assert [one.kind for one in found] == [*(Kind.NOISE, Kind.JPEG, Kind.LATER) * 2, Kind.NOISE]
    assert [one.delay for one in found] == [0, 0, 1, 0, 0, 2, 0]
    assert len({one.name for one in perturbations(40)}) == 40


def test_noise_is_of_one_gray_level_and_the_same_each_time():
    gray = np.full((200, 200, 3), 128, np.uint8)
    noise = Perturbation(Kind.NOISE, 2)
    difference = noise.apply(gray, 5).astype(float) - 128
    assert difference.std() == pytest.approx(np.sqrt(1 + 1 / 12), rel=0.02)  # rounded to levels
    assert abs(difference.mean()) < 0.02
    np.testing.assert_array_equal(noise.apply(gray, 5), noise.apply(gray, 5))
    assert (noise.apply(gray, 6) != noise.apply(gray, 5)).any()
    assert (Perturbation(Kind.NOISE, 3).apply(gray, 5) != noise.apply(gray, 5)).any()


def test_an_image_encoded_again_has_its_colors_and_slightly_other_values():
    ramp = np.zeros((64, 64, 3), np.uint8)
    ramp[..., 0], ramp[..., 2] = np.arange(64)[:, None] * 3, 40
    again = Perturbation(Kind.JPEG).apply(ramp, 0)
    difference = np.abs(again.astype(int) - ramp)
    assert 0 < difference.max() < 12


def test_the_other_kinds_leave_the_image_as_it_is(image):
    for kind in (Kind.UNCHANGED, Kind.LATER):
        np.testing.assert_array_equal(Perturbation(kind).apply(image, 0), image)


def test_a_perturbed_source_reads_the_same_images_twice(images):
    opened = open_source(images)
    source = PerturbedSource(opened, Perturbation(Kind.NOISE))
    assert isinstance(source, RereadableSource)
    assert source.can_be_reread
    with source.random_access() as read:
        before = [read(k) for k in range(2)]
    frames = list(source)
    assert len(frames) == source.length
    for one, frame in zip(before, frames, strict=False):
        np.testing.assert_array_equal(one, frame.image)
    plain = next(iter(open_source(images)))
    assert (plain.image != frames[0].image).any()
    assert plain.timestamp_ns == frames[0].timestamp_ns


def row(**values: object) -> PerturbedRow:
    figures = {
        "coverage": 1.0,
        "maps": 1,
        "keyframes": 8,
        "loops": 0,
        "losses": 0,
        "ate_sim3": 0.1,
        "rotation_deg": 1.0,
    }
    return PerturbedRow(**{"name": "", "reason": "", "frames": 9, "cpu_s": 1.0, **figures, **values})  # type: ignore[arg-type]


def test_the_spread_is_over_the_runs_that_have_a_figure():
    found = spreads([row(ate_sim3=0.1), row(ate_sim3=0.4), row(ate_sim3=0.2), row(ate_sim3=None, losses=2)])
    assert (found["ate_sim3"].least, found["ate_sim3"].median, found["ate_sim3"].most) == (0.1, 0.2, 0.4)
    assert (found["losses"].least, found["losses"].median, found["losses"].most) == (0.0, 0.0, 2.0)
    assert "ate_sim3" not in spreads([row(ate_sim3=None)])


def test_each_run_begins_with_the_frame_that_its_name_says(images, straight_slam):
    straight_slam()
    delays = []

    def opened(delay: int):
        delays.append(delay)
        return open_source(images, start=delay)

    rows = measure_perturbed(SlamConfig(), opened, 3)
    assert delays == [0, 0, 0, 1]
    assert [one.frames for one in rows] == [12, 12, 12, 11]
    assert rows[0].name == "unchanged"


def test_the_runs_and_their_spread_are_printed(images, slam_command, straight_slam):
    straight_slam()
    ended = slam_command("bench", images, "--perturb", 3, "--json")
    found = json.loads(ended.out)
    assert ended.code == 0
    assert [run["name"] for run in found["runs"]] == [
        "unchanged",
        "noise, seed 0",
        "JPEG, quality 95",
        "begun later by 1 frame",
    ]
    assert found["spread"]["coverage"]["most"] <= 1
    assert "run 4 of 4: begun later by 1 frame" in ended.err
    shown = slam_command("bench", images, "--perturb", 1).out
    assert [line.split()[0] for line in shown.splitlines() if line][:3] == ["ATE", "unchanged", "noise,"]
    assert "most / median" in shown


@pytest.mark.parametrize("more", [("--ablation",), ("--record", "a.rrd")])
def test_it_is_one_measurement_at_a_time(images, slam_command, more):
    assert slam_command("bench", images, "--perturb", 2, *more).code == 2


def test_it_needs_a_source(slam_command):
    ended = slam_command("bench", "--perturb", 2)
    assert ended.code == 2
    assert "--perturb runs SLAM over a source" in ended.complaint


def test_a_run_that_ctrl_c_ended_is_not_in_the_rows(images, monkeypatch):
    stopped = SimpleNamespace(outcome=SimpleNamespace(interrupted=True))
    monkeypatch.setattr("slam.bench.perturbation.run_completely", lambda config, source: stopped)
    assert measure_perturbed(SlamConfig(), lambda delay: open_source(images), 2) == []
