"""Results of another SLAM system for docs/results: its trajectories evaluated as `slam eval` does.

    python docs/peer_results.py ORB-SLAM3 FOLDER --truth SEQUENCES --truth sequences --out docs/results/orbslam3.json

FOLDER holds `NAME-1.txt`, `NAME-2.txt`, ...: what repeated runs of the other system wrote for the sequence NAME, in TUM
format, empty where it made no map; the run with the median error is shown. Beside each may lie `NAME-1.json` with
`frames` and `cpu_s_total` (CPU seconds of the run). Runs `NAME-fastN` fed the images without pauses: their CPU time is
preferred. `SEQUENCES/NAME/groundtruth.txt` is the truth.

Other systems are measured, never imported: they run in an environment of their own, which docs/benchmarks.md describes.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relocalizer.errors import UserError
from slam.benchmarks.session import machine
from slam.benchmarks.slam_evaluation import TOLERANCE_S
from slam.evaluation.metrics import Evaluation, evaluate
from slam.evaluation.pose_files import open_poses

COLUMNS = ("sequence", "frames", "coverage, %", "Sim(3), all frames", "rotation, deg", "CPU ms/frame", "runs")
PACED, FAST = "-[0-9].txt", "-fast[0-9].json"


@dataclass(frozen=True)
class PeerRun:
    """A run of the other system: number of frames and poses, and its errors if there are any."""

    frames: int
    poses: int
    errors: Evaluation | None

    @property
    def ate(self) -> float:
        """ATE after Sim(3) alignment; infinite without one."""
        return math.inf if self.errors is None else self.errors.ate_sim3.rmse


def run_of(trajectory: Path, truth: Path | None) -> PeerRun:
    """The evaluation of a trajectory file beside which lies its JSON file."""
    frames = int(json.loads(trajectory.with_suffix(".json").read_text(encoding="utf-8"))["frames"])
    try:
        estimate = open_poses(trajectory).trajectory
    except UserError:  # no pose in it
        return PeerRun(frames, 0, None)
    try:
        errors = truth and evaluate(estimate, open_poses(truth).trajectory, max_difference_s=TOLERANCE_S)
    except UserError:  # fewer poses than an alignment needs
        errors = None
    return PeerRun(frames, len(estimate), errors or None)


def row_of(name: str, folder: Path, truths: Sequence[Path]) -> list[Any]:
    """The median run of a sequence, and the smallest and the largest error of all."""
    truth = next((root / name / "groundtruth.txt" for root in truths if (root / name).is_dir()), None)
    truth = truth if truth is not None and truth.is_file() else None
    runs = [run_of(path, truth) for path in sorted(folder.glob(f"{name}{PACED}"))]
    runs.sort(key=lambda run: (run.ate, -run.poses))
    shown = runs[len(runs) // 2]
    errors = [run.ate for run in runs]
    spread = f"{len(runs)}, {errors[0]:.4g} to {errors[-1]:.4g}" if math.isfinite(errors[-1]) else f"{len(runs)}"
    rotation = shown.errors and shown.errors.orientation_deg
    return [
        name, shown.frames, round(100 * shown.poses / shown.frames, 1), None if shown.errors is None else shown.ate,
        rotation.rmse if rotation else None, _cpu_ms(name, folder, shown.frames), spread,
    ]  # fmt: skip


def _cpu_ms(name: str, folder: Path, frames: int) -> float | None:
    files = sorted(folder.glob(f"{name}{FAST}")) or sorted(folder.glob(f"{name}-[0-9].json"))
    seconds = [json.loads(path.read_text(encoding="utf-8")).get("cpu_s_total") for path in files]
    known = [value for value in seconds if value is not None]
    return 1e3 * statistics.median(known) / frames if known else None


def peer_results(system: str, folder: Path, truths: Sequence[Path]) -> dict[str, Any]:
    """Contents of a results file of another system."""
    names = sorted({path.name[: -len("-1.txt")] for path in folder.glob(f"*{PACED}")})
    note = "Median of the runs at the sequence's own rate; coverage: frames with a pose in its largest map."
    table = {
        "title": system,
        "columns": COLUMNS,
        "rows": [row_of(name, folder, truths) for name in names],
        "note": note,
    }
    here = machine().partition(", ")[2]  # without the platform
    session = {"command": f"{system}, median of the runs of each sequence", "commit": "", "machine": here}
    return {"title": system, "system": system, "tables": [table], "sessions": [session]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--truth", type=Path, action="append", required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    values = peer_results(given.system, given.folder, given.truth)
    given.out.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
