"""The SLAM suites: a run of every sequence, recorded as by `slam run`, and its errors."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from relocalizer.errors import SequenceError, UserError
from slam.benchmarks import published
from slam.benchmarks.results_folder import RUNS, file_name
from slam.benchmarks.slam_evaluation import TOLERANCE_S, evaluate_run, expect_ground_truth, unused_ground_truth
from slam.benchmarks.slam_sequences import sequences_of
from slam.benchmarks.slam_summary import NO_TRUTH, summarize_runs
from slam.benchmarks.suite import BenchmarkRequest, Cell, Result, Summary, Table
from slam.evaluation.trajectory import Trajectory
from slam.input.open_source import open_source
from slam.run.record_run import record_run
from slam.run.recorded_run import RunReport
from slam.run.summary import counted

SEED_MARK = "#"  # Between the name of a sequence and the number of its run.


@dataclass(frozen=True, slots=True, kw_only=True)
class SlamProtocol:
    """A SLAM benchmark: its name, its published rows, and whether a sequence must have a ground truth."""

    title: str
    published: Table | None = None
    needs_truth: bool = True
    note: str = ""


SLAM_SUITES: Mapping[str, SlamProtocol] = {
    "tum": SlamProtocol(title="TUM RGB-D, freiburg1", published=published.TUM),
    "euroc": SlamProtocol(title="EuRoC, left camera", published=published.EUROC, note="the camera, not the body"),
    "kitti": SlamProtocol(title="KITTI odometry", published=published.KITTI),
    "7scenes": SlamProtocol(
        title="7-Scenes, first sequence of each scene",
        published=published.SEVEN_SCENES_SLAM,
        note="KinectFusion, of the depth camera, whose own error is centimeters",
    ),
    "icl": SlamProtocol(title="ICL-NUIM"),
    "folder": SlamProtocol(title="Sequences of a folder", needs_truth=False),
}


class SlamSuite:
    """A SLAM benchmark on one data set: see `Suite`."""

    def __init__(self, request: BenchmarkRequest) -> None:
        """Raises BenchmarkError if there are no sequences."""
        self._request = request
        self._protocol = SLAM_SUITES[request.suite]
        self._sequences = sequences_of(request.suite, request.root)
        self.faults: tuple[str, ...] = ()

    def stages(self) -> Sequence[Sequence[str]]:
        names = list(self._sequences.paths)[: self._request.limit]
        return [[item for name in names for item in self._runs_of(name)]]

    def evaluate(self, item: str) -> dict[str, Any]:
        """Raises KeyboardInterrupt if Ctrl-C ended the run, so that it counts as not done."""
        name, _, number = item.partition(SEED_MARK)
        path, config = self._sequences.paths[name], self._request.settings
        seed = config.seed + (int(number) - 1 if number else 0)
        truth = self._ground_truth(path)
        folder = Path(self._request.out) / RUNS / file_name(item)
        if folder.exists():  # of a run that was killed, or failed
            shutil.rmtree(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        cpu_before = time.process_time()
        report = record_run(path, out=folder, config=config.model_copy(update={"seed": seed}))
        cpu_ms = 1e3 * (time.process_time() - cpu_before) / max(report.frames, 1)
        _raise_failure(report)
        values = {"sequence": name, "seed": seed, "cpu_ms": cpu_ms, **_facts(report)}
        if truth is None:
            values |= {"reason": NO_TRUTH, "all": None, "keyframes_errors": None}
            values |= {"plot": None, "kitti": None, "online": None}
        else:
            errors = evaluate_run(folder, truth)
            if errors["all"] is not None:  # as `slam run` reports it, of poses that were not rounded for a file
                errors["all"] = report.values["evaluation"]
            values |= {**errors, "keyframes_errors": errors["keyframes"], "keyframes": values["keyframes"]}
        skipped = report.values["skipped"]
        first = f"; the first: {skipped[0]['reason']}" if skipped else ""
        values["faults"] = [f"skipped {counted(len(skipped), 'image')}{first}"] if skipped else []
        values["faults"] += unused_ground_truth(path) if truth is None else []
        return values

    def summarize(self, results: Mapping[str, Result]) -> Summary:
        protocol = {
            "frames fed": "all",
            "poses scored": "all frames with a pose in the largest map; keyframes and live poses beside them",
            "alignment": "Umeyama with scale, Sim(3); SE(3) beside it",
            "association": f"nearest in time, one to one, at most {TOLERANCE_S:g} s",
            "ground truth": self._protocol.note or "as published",
            "intrinsics": "as published with the data set",
            "runs": f"{self._request.seeds} of each sequence, median" if self._request.seeds > 1 else "one of each",
        }
        sizes = sorted({str(result["resolution"]) for result in results.values()})
        protocol["resolution"] = ", ".join(sizes[:4]) + (", ..." if len(sizes) > 4 else "")
        summary = summarize_runs(self._protocol.title, protocol, results, self._sequences.missing)
        if self._protocol.published is None:
            return summary
        return replace(summary, tables=[*summary.tables, self._protocol.published])

    def rows(self, results: Mapping[str, Result]) -> list[dict[str, Cell]]:
        return [{"item": item, **_row(result)} for item, result in results.items()]

    def _runs_of(self, name: str) -> list[str]:
        more = [f"{name}{SEED_MARK}{number}" for number in range(2, self._request.seeds + 1)]
        return [name, *more]

    def _ground_truth(self, path: Path) -> Trajectory | None:
        """The ground truth of the source. Raises BenchmarkError if one is needed and cannot be used."""
        source = open_source(path, config=self._request.settings.input)
        source.close()
        if source.ground_truth is not None or self._protocol.needs_truth:
            expect_ground_truth(path, source.ground_truth)
        return source.ground_truth


def _raise_failure(report: RunReport) -> None:
    """Raises what ended a run early, KeyboardInterrupt after Ctrl-C."""
    if report.status == "interrupted":
        raise KeyboardInterrupt
    for failure in report.failures:
        if not isinstance(failure.error, UserError):
            raise failure.error
    if report.failures:
        raise SequenceError("; ".join(failure.sentence for failure in report.failures))


def _facts(report: RunReport) -> dict[str, Any]:
    """Figures of a run that need no ground truth."""
    values = report.values
    lost, camera = values["lost_episodes"], values["camera"]
    expected = max(report.frames + report.left_out, 1)  # every frame of a sequence counts
    return {
        "resolution": f"{camera.width}x{camera.height}",
        "frames": report.frames,
        "tracked": report.tracked,
        "coverage": report.tracked / expected,
        "posed": (report.tracked + sum(values["other_segments"])) / expected,
        "maps": (report.tracked > 0) + len(values["other_segments"]),
        "keyframes": values["keyframes"],
        "lost_episodes": len(lost),
        "lost_frames": values["lost_frames"],
        "loops": values["loops"]["accepted"],
        "fps": values["fps"],
        "wall_s": values["wall_s"],
        "verdict": str(report.verdict.grade),
        "verdict_reasons": list(report.verdict.reasons),
        "units": values["units"].get("name", ""),
        "path_length": values["path_length"],
    }


def _row(result: Result) -> dict[str, Cell]:
    """A row of results.csv."""
    errors: dict[str, Cell] = {}
    for name, key in (("all", "all"), ("keyframes", "keyframes_errors"), ("online", "online")):
        found = result[key]
        errors |= {f"ate_sim3_{name}": found and found["ate_sim3"]["rmse"]}
        errors |= {f"ate_se3_{name}": found and found["ate_se3"]["rmse"]}
    best, along = result["all"], result["kitti"]
    names = ("sequence", "seed", "frames", "tracked", "coverage", "keyframes", "lost_episodes", "lost_frames", "loops")
    added = ("posed", "maps", "cpu_ms")  # results of earlier versions have none
    return {
        **{name: result[name] for name in names},
        **{name: result.get(name) for name in added},
        **errors,
        "ate_percent": result["all"] and result["all"].get("ate_percent"),
        "scale": best and best["scale"],
        "rpe_frame_translation": best and best["rpe_frame"]["translation"]["rmse"],
        "rpe_frame_rotation_deg": best and best["rpe_frame"]["rotation_deg"]["rmse"],
        "rpe_second_translation": best and best["rpe_second"] and best["rpe_second"]["translation"]["rmse"],
        "orientation_rmse_deg": best and best["orientation_deg"] and best["orientation_deg"]["rmse"],
        "kitti_translation_percent": along and along["translation_percent"],
        "kitti_rotation_deg_per_100m": along and along["rotation_deg_per_100"],
        "fps": result["fps"],
        "verdict": result["verdict"],
        "reason": result["reason"],
    }
