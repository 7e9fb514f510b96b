"""What works where GTSAM and the POSIX modules of Python are missing, as on Windows; the test itself runs anywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from map_samples import small_map

from relocalizer.maps.map_writer import save_map

ROOT = Path(__file__).resolve().parent.parent
AS_ON_WINDOWS = """
import os, signal, sys
ABSENT = {"gtsam", "resource", "fcntl", "termios", "pwd", "grp"}
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
for name in ABSENT:
    sys.modules.pop(name, None)
del signal.SIGHUP, os.sysconf
from slam.cli import main
codes = []
for words in eval(sys.argv[1]):
    try:
        main(words)
    except SystemExit as ended:
        codes.append(ended.code or 0)
print(codes)
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, int], str]:
    """Exit codes of several commands by their verb, and what they printed to stderr."""
    folder = tmp_path_factory.mktemp("windows")
    save_map(folder / "map", small_map())
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    for k in range(3):
        cv2.imwrite(str(folder / f"{k}.png"), image)
    truth = "".join(f"{k} {k} {k * k} 0 0 0 0 1\n" for k in range(5))
    (folder / "truth.txt").write_text(truth)
    commands = [
        ["map", "info", "map"],
        ["convert", "truth.txt", "truth.kitti"],
        ["eval", "truth.txt", "truth.txt", "--html", "eval.html"],
        ["run", str(folder), "-o", "out"],
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", AS_ON_WINDOWS, repr(commands)],
        cwd=folder, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    codes = json.loads(done.stdout.splitlines()[-1])
    return dict(zip([words[0] for words in commands], codes, strict=True)), done.stderr


def test_maps_and_trajectories_need_no_gtsam(ended: tuple[dict[str, int], str]) -> None:
    assert {verb: ended[0][verb] for verb in ("map", "convert", "eval")} == {"map": 0, "convert": 0, "eval": 0}


def test_slam_says_that_it_needs_gtsam(ended: tuple[dict[str, int], str]) -> None:
    codes, printed = ended
    assert codes["run"] == 2
    assert "SLAM needs GTSAM, which has no wheel for Windows; use WSL, Linux or macOS" in printed
