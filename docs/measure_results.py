"""Measures what docs/results.md and README.md show, and puts it into them.

    python docs/measure_results.py [--sequences DIR] [--stress DIR] [--work DIR] [--jobs N] [--only NAME ...]

writes docs/results/NAME.json and the tables of the pages (docs/results_tables.py). Each is one `slam benchmark folder`,
which is resumed when the same command is given again at the same commit:

- bundled: the bundled sequences;
- sequences: those below DIR, in any layout that `slam run` reads;
- uncalibrated: the same images, and the bundled video, without their calibration;
- stress: clips of `python sequences/stress.py --out DIR`.

Times need a quiet machine and `--jobs 1`; accuracies do not depend on either. The results of ORB-SLAM3 are measured
with its own program; docs/peer_results.py takes them in.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from slam.benchmarks.session import commit

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
CALIBRATION = "camera.yaml"
KEPT = ("title", "system", "protocol", "figures", "tables", "items", "done", "faults")


def measure(data: Path, work: Path, jobs: int) -> dict[str, Any]:
    """The results.json of all sequences below a folder. Raises SystemExit if one could not be evaluated."""
    print(f"{data} -> {work}", flush=True)
    words = ["benchmark", "folder", "--data", str(data), "--out", str(work), "--jobs", str(jobs), "--quiet"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    ended = subprocess.run([sys.executable, "-m", "slam", *words], env=environment, stdout=subprocess.DEVNULL)
    if ended.returncode:
        raise SystemExit(ended.returncode)
    values: dict[str, Any] = json.loads((work / "results.json").read_text(encoding="utf-8"))
    return values


def keep(values: dict[str, Any], name: str, data: str) -> None:
    """Write the part of results.json that is committed, without paths of this machine.

    Args:
        data: what stands for the folder in the command.
    """
    session = values["sessions"][-1]
    system, _, machine = session["machine"].partition(", ")  # the first part is the platform with its kernel
    session |= {"command": f"slam benchmark folder --data {data}", "machine": f"{system.split('-')[0]}, {machine}"}
    kept = {key: values[key] for key in KEPT if key in values} | {"sessions": [session]}
    if name == "uncalibrated":
        kept["protocol"] = {**kept["protocol"], "intrinsics": "none given: estimated from the images"}
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(kept, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")


def without_calibration(sources: Iterable[Path], target: Path) -> Path:
    """A folder of sequences with links to everything but the calibrations."""
    for source in sources:
        folder = target / source.name
        folder.mkdir(parents=True, exist_ok=True)
        for entry in source.iterdir():
            link = folder / entry.name
            if entry.name != CALIBRATION and not link.is_symlink():
                link.symlink_to(entry.resolve())
    return target


def measure_all(given: argparse.Namespace) -> None:
    work: Path = given.work / (commit().rstrip("+")[:12] or "unknown")  # results of other versions are not mixed
    bundled = ROOT / "sequences"
    places: dict[str, tuple[Path, str]] = {"bundled": (bundled, "sequences")}
    if given.sequences is not None:
        calibrated = [folder for folder in sorted(given.sequences.iterdir()) if (folder / CALIBRATION).is_file()]
        bare = without_calibration([bundled / "room_loop", *calibrated], work / "bare")
        places |= {"sequences": (given.sequences, "SEQUENCES"), "uncalibrated": (bare, "WITHOUT_CALIBRATION")}
    if given.stress is not None:
        places |= {"stress": (given.stress, "STRESS")}
    places = {name: place for name, place in places.items() if not given.only or name in given.only}
    measured = {name: measure(data.resolve(), work / name, given.jobs) for name, (data, _) in places.items()}
    for name, values in measured.items():  # afterwards, as a changed file would stand in the commit's name
        keep(values, name, places[name][1])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=Path, default=os.environ.get("SLAM_SEQUENCES"))
    parser.add_argument("--stress", type=Path)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "results", help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[], help="bundled, sequences, uncalibrated, stress")
    given = parser.parse_args(arguments)
    given.sequences = given.sequences and Path(given.sequences)
    measure_all(given)
    subprocess.run([sys.executable, str(ROOT / "docs" / "results_tables.py")], check=True)


if __name__ == "__main__":
    main()
