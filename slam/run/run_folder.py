"""The run folder: its files, each written so that a crash or Ctrl-C leaves a readable folder."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relocalizer.camera import Camera
from relocalizer.errors import OutputError
from relocalizer.maps.map_writer import save_map
from slam.evaluation.trajectory import Trajectory
from slam.evaluation.trajectory_files import write_tum
from slam.map.lens_evidence import LensState
from slam.run.files import replacing, write_atomically
from slam.run.report import REPORT, report_text

if TYPE_CHECKING:
    from relocalizer.maps.reference_map import ReferenceMap
    from slam.result import SlamResult


logger = logging.getLogger(__name__)
CONFIG = "config.yaml"
CAMERA = "camera.yaml"
TRAJECTORY, KEYFRAMES, ONLINE = "trajectory.txt", "keyframes.txt", "trajectory_online.txt"
MAP, KEYFRAMES_ON_THE_WAY = "map", ".keyframes"  # the latter holds keyframe images during the run
FIRST_PASS, SECOND_PASS = "first_pass", "second_pass"  # folders of the pass whose files are not at the top
RECORDING = ".rrd"  # suffix of Rerun recordings, which a run folder may hold


def next_run_folder(parent: Path, name: str) -> Path:
    """The first of name-1, name-2, ... below `parent` that does not exist."""
    number = 1
    while os.path.lexists(parent / f"{name}-{number}"):
        number += 1
    return parent / f"{name}-{number}"


class RunFolder:
    """Writes the files of one run. Use `create` to make an instance."""

    def __init__(self, path: Path, *, is_new: bool = False) -> None:
        self.path = path
        self._is_new = is_new

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """Create the folder, or use an existing empty one.

        Raises:
            OutputError: it is not empty, or cannot be created or written.
        """
        is_new = not path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise OutputError(
                    f"{path}: is there already and not empty; choose another --out or remove it "
                    "(nothing is overwritten)"
                )
            probe = path / ".probe"
            probe.touch()
            probe.unlink()
        except (FileExistsError, NotADirectoryError):
            raise OutputError(f"{path}: a file stands where a folder is needed; choose another --out") from None
        except OSError as error:
            raise OutputError(
                f"{path}: cannot be written ({error.strerror}); choose another folder with --out"
            ) from None
        return cls(path, is_new=is_new)

    def discard(self) -> None:
        """Delete the contents, including a recording, and the folder if it is new, after a run failed to start."""
        for path in self.path.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        if self._is_new:
            with suppress(OSError):
                self.path.rmdir()

    def write_config(self, text: str) -> None:
        """Write the effective settings. Raises OutputError when they cannot be written."""
        write_atomically(self.path / CONFIG, text)

    def write_report(self, report: Mapping[str, Any]) -> None:
        """Replace report.json atomically. Raises OutputError when it cannot be written."""
        write_atomically(self.path / REPORT, report_text(report))

    def write_trajectory(self, name: str, trajectory: Trajectory, *, note: str = "") -> None:
        """Replace one trajectory file atomically. Raises OutputError when it cannot be written."""
        with replacing(self.path / name) as temporary:
            write_tum(temporary, trajectory, note=note)

    def result_files(
        self, result: SlamResult, calibration: Camera, *, is_estimate: bool = False
    ) -> list[tuple[str, Callable[[], None]]]:
        """(file name, writer) of the final trajectories: all frames, keyframes, live poses, other segments.

        A camera.yaml is added when the run estimated the camera, and a camera model can represent it; it says so if
        the focal length is a guess.

        Args:
            calibration: the camera of the source's images.
            is_estimate: whether that was estimated before the run.
        """
        note = result.units.note
        trajectories = [
            (TRAJECTORY, result.trajectory, note),
            (KEYFRAMES, result.keyframe_trajectory, note),
            (ONLINE, result.online, note),
        ]
        trajectories += [
            (f"trajectory_segment{number}.txt", segment, "") for number, segment in enumerate(result.segments, start=2)
        ]
        files: list[tuple[str, Callable[[], None]]] = [
            (name, partial(self.write_trajectory, name, trajectory, note=note))
            for name, trajectory, note in trajectories
        ]
        found = result.lens.calibration(calibration)
        if found is not None and (result.lens.has_corrections or is_estimate):
            camera = replace(found, assumed=result.lens_evidence.state is LensState.GUESS)
            files.append((CAMERA, partial(write_atomically, self.path / CAMERA, camera.to_yaml())))
        return files

    def replace_by_second_pass(self) -> None:
        """Move the files into `first_pass/`, and those of `second_pass/` into their place; recordings stay.

        The report is moved last: until then the folder is that of the first pass.
        """
        first, second = self.path / FIRST_PASS, self.path / SECOND_PASS
        first.mkdir()
        kept = {FIRST_PASS, SECOND_PASS, REPORT}
        for path in [p for p in self.path.iterdir() if p.name not in kept and p.suffix != RECORDING]:
            path.rename(first / path.name)
        for path in [p for p in second.iterdir() if p.name != REPORT]:
            path.rename(self.path / path.name)
        (self.path / REPORT).rename(first / REPORT)
        (second / REPORT).rename(self.path / REPORT)
        second.rmdir()

    def write_map(self, reference_map: ReferenceMap) -> None:
        """Write `map/` completely or not at all. Raises OutputError when it cannot be written."""
        save_map(self.path / MAP, reference_map)
