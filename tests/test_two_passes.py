"""The second pass of a run, with the camera that the first pass found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Ended
from textured_walk import FOCAL_PX, HEIGHT, WIDTH, write_walk

from relocalizer.calibration_windows import FocalChange
from relocalizer.camera import Camera
from relocalizer.maps.map_reader import load_map
from slam.benchmarks.slam_suite import _facts
from slam.config.schema import InputConfig, SlamConfig
from slam.evaluation.trajectory_files import read_tum
from slam.evaluation.verdict import Grade
from slam.input.frame_source import FrameSource, RereadableSource
from slam.input.kept_frames import Kept
from slam.input.open_source import open_source
from slam.map.frames import Frame
from slam.map.lens_evidence import LensEvidence, LensState
from slam.run.calibration_pass import USED_SIGMA
from slam.run.estimated_camera import EstimatedCamera
from slam.run.record_run import record_run
from slam.run.recorded_run import RunReport
from slam.run.two_pass_recorder import is_worse
from slam.run.zoom import Zoom

WITHOUT_ESTIMATE = SlamConfig(input=InputConfig(calibrate_first=False))  # the first pass tracks with 346 px
SHORT = 24  # frames of a run whose estimate of the camera does not matter
RESULTS = {
    "trajectory.txt",
    "trajectory.png",
    "trajectory_online.txt",
    "keyframes.txt",
    "map",
    "report.json",
    "events.jsonl",
    "config.yaml",
}


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of a walk through a textured room."""
    return write_walk(tmp_path_factory.mktemp("walk") / "images")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def read(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return loaded


# The decision


def found(focal_px: float, *, tracked_px: float = 346.0, corner: float = 0.0, **evidence: Any) -> EstimatedCamera:
    camera = replace(Camera.assume(WIDTH, HEIGHT, fov_deg=60.0), fx=focal_px, fy=focal_px)
    known = LensEvidence(**{"state": LensState.KNOWN, "focal_ratio": 1.0, "focal_sigma": 0.01, **evidence})
    return EstimatedCamera(camera, tracked_px, known, corner)


@pytest.mark.parametrize(
    ("camera", "whole", "broken"),
    [
        (found(170.0), True, True),
        (found(346.0), False, False),
        (found(346.0 * 1.022), False, True),
        (found(346.0 * 1.04, focal_sigma=0.05), False, False),  # within what is known
        (found(346.0, corner=0.05), True, True),
        (found(346.0, corner=0.02), False, True),
        (found(170.0, focal_sigma=None), False, False),
        (found(170.0, focal_sigma=1.1 * USED_SIGMA), False, False),
    ],
)
def test_a_pass_is_worth_it_where_the_camera_changed_by_more_than_it_is_uncertain(camera, whole, broken):
    assert camera.is_worth_a_pass(is_broken=False) is whole
    assert camera.is_worth_a_pass(is_broken=True) is broken


def report(grade: Grade, coverage: float, status: str = "finished") -> RunReport:
    values = {"status": status, "coverage": coverage, "verdict": {"grade": grade, "reasons": []}}
    return RunReport(folder=Path(), values=values, failures=(), is_complete=True, last_frame_index=9)


def test_a_second_pass_must_not_be_worse_than_the_first():
    first = report(Grade.PARTIAL, 0.8)
    assert not is_worse(report(Grade.PARTIAL, 0.79), first)
    assert not is_worse(report(Grade.GOOD, 1.0), first)
    assert is_worse(report(Grade.PARTIAL, 0.7), first)
    assert is_worse(report(Grade.POOR, 0.9), first)
    assert is_worse(report(Grade.GOOD, 1.0, "interrupted"), first)
    assert is_worse(first, report(Grade.GOOD, 0.8))
    assert not is_worse(first, report(Grade.GOOD, 0.8), first_is_partial=True)


# The run


def test_the_frames_are_tracked_again_with_the_camera_that_was_found(
    walk: Path, tmp_path: Path, slam_command: Callable[..., Ended]
):
    out = tmp_path / "run"
    ended = slam_command("run", walk, "-o", out, "--record", out / "a.rrd", "--set", "input.calibrate_first=false")
    assert ended.code == 0, ended.err
    assert names(out) >= RESULTS | {"first_pass"}
    assert names(out / "first_pass") >= RESULTS
    assert "second_pass" not in names(out)
    first, second = read(out / "first_pass"), read(out)
    assert first["first_pass"] is None
    assert first["lens"]["focal_px"]["start"] == pytest.approx(346.4, abs=0.1)
    assert second["lens"]["focal_px"]["start"] == pytest.approx(first["lens"]["focal_px"]["final"])
    assert second["lens"]["focal_px"]["final"] == pytest.approx(FOCAL_PX, rel=0.03)
    assert second["first_pass"]["reason"].startswith(f"focal length {first['lens']['focal_px']['final']:.0f} px")
    assert second["first_pass"]["coverage"] == first["coverage"]
    assert second["status"] == "finished"
    assert second["coverage"] >= first["coverage"]
    assert load_map(out).cameras[0].mean_focal == pytest.approx(FOCAL_PX, rel=0.03)
    assert len(read_tum(out / "trajectory.txt")) == second["tracked"]
    assert ": the frames are tracked again (not with --one-pass)" in ended.err
    assert "was not kept" not in ended.err
    assert names(out) >= {"a.rrd", "a.first_pass.rrd"}
    summary = f"{first['verdict']['grade']}, {100 * first['coverage']:.1f} % tracked, in first_pass/"
    assert summary in " ".join(ended.out.split())


@pytest.fixture
def always_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every camera that is found is worth a second pass."""
    monkeypatch.setattr(EstimatedCamera, "is_worth_a_pass", lambda self, is_broken: True)


def few(walk: Path, **options: Any) -> FrameSource:
    return open_source(walk, max_frames=SHORT, **options)


@pytest.mark.usefixtures("always_again")
def test_a_second_pass_is_made_unless_the_camera_is_given(walk: Path, tmp_path: Path):
    out = record_run(few(walk), config=WITHOUT_ESTIMATE, out=tmp_path / "two").folder
    assert names(out) & {"first_pass", "second_pass"}
    camera = tmp_path / "camera.yaml"
    camera.write_text(replace(Camera.assume(WIDTH, HEIGHT, fov_deg=60.0), assumed=False).to_yaml())
    out = record_run(few(walk, camera=camera), out=tmp_path / "given").folder
    assert names(out) & {"first_pass", "second_pass"} == set()


def test_the_frames_of_a_given_focal_length_are_tracked_again_without_a_zoom(
    walk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    zoom = Zoom(FocalChange(0.5, 0.02, 17, 20), (Kept(0, 17),), SHORT)
    monkeypatch.setattr(LensEvidence, "may_change", True)
    monkeypatch.setattr("slam.run.two_pass_recorder.zoom_with_given_camera", lambda source, config: zoom)
    camera = tmp_path / "camera.yaml"
    given = replace(Camera.assume(WIDTH, HEIGHT, fov_deg=60.0), fx=FOCAL_PX, fy=FOCAL_PX, assumed=False)
    camera.write_text(given.to_yaml() + "ignore: [[0, 0, 20, 20]]\n")
    result = record_run(few(walk, camera=camera), out=tmp_path / "run")
    assert (result.frames, result.status) == (18, "finished")
    assert str(zoom) in result.verdict.reasons
    assert (result.left_out, result.frames) == (SHORT - 18, 18)
    assert _facts(result)["coverage"] == result.tracked / SHORT  # every frame of a sequence counts
    assert "first_pass" in names(result.folder)
    first = read(result.folder / "first_pass")
    assert first["frames"] == SHORT
    assert first["camera"] == read(result.folder)["camera"]
    assert first["masked_share"] == read(result.folder)["masked_share"] > 0.0


@pytest.mark.usefixtures("always_again")
def test_the_command_line_may_forbid_the_second_pass(walk: Path, tmp_path: Path, slam_command: Callable[..., Ended]):
    out = tmp_path / "one"
    options = ("--one-pass", "--max-frames", str(SHORT), "--set", "input.calibrate_first=false", "-q")
    ended = slam_command("run", walk, "-o", out, *options)
    assert ended.code == 0, ended.err
    assert names(out) & {"first_pass", "second_pass"} == set()


class FailingAfterwards:
    """A source whose images, read with another camera, end in an exception."""

    def __init__(self, source: RereadableSource, error: BaseException) -> None:
        self._source, self._error = source, error
        self.can_be_reread, self.random_access = True, source.random_access

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def __iter__(self) -> Iterator[Frame]:
        return iter(self._source)

    def with_calibration(self, calibration: Any) -> FrameSource:
        again, error = self._source.with_calibration(calibration), self._error

        class Failing:
            def __getattr__(self, name: str) -> Any:
                return getattr(again, name)

            def __iter__(self) -> Iterator[Frame]:
                for number, frame in enumerate(again):
                    if number == SHORT // 2:
                        raise error
                    yield frame

        return Failing()  # type: ignore[return-value]


@pytest.mark.usefixtures("always_again")
@pytest.mark.parametrize(
    ("error", "status", "code"), [(RuntimeError("boom"), "failed", 70), (KeyboardInterrupt(), "interrupted", 130)]
)
def test_a_second_pass_that_does_not_end_well_leaves_the_first(
    walk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slam_command: Callable[..., Ended],
    error: BaseException, status: str, code: int,
):  # fmt: skip
    source = few(walk)
    assert isinstance(source, RereadableSource)
    monkeypatch.setattr("slam.input.open_source.open_source", lambda *a, **o: FailingAfterwards(source, error))
    out = tmp_path / "run"
    ended = slam_command("run", walk, "-o", out, "--set", "input.calibrate_first=false")
    assert ended.code == code, ended.err
    assert f"the second pass was not kept, its files are in {out / 'second_pass'} (it was {status})" in ended.err
    assert (read(out)["status"], read(out / "second_pass")["status"]) == ("finished", status)
    assert names(out) >= RESULTS
