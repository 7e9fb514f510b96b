"""A run folder: what a run leaves on disk, written so that a crash or Ctrl-C leaves something readable."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relocalizer.camera import Camera
from relocalizer.errors import OutputError
from relocalizer.maps.map_writer import save_map
from slam.evaluation.trajectory import Trajectory
from slam.evaluation.trajectory_files import write_tum
from slam.run.files import replacing, write_atomically
from slam.run.report import REPORT, report_text

if TYPE_CHECKING:
    from relocalizer.maps.reference_map import ReferenceMap
    from slam.result import SlamResult


logger = logging.getLogger(__name__)
CONFIG = "config.yaml"
CAMERA = "camera.yaml"
TRAJECTORY, KEYFRAMES, ONLINE = "trajectory.txt", "keyframes.txt", "trajectory_online.txt"
MAP, KEYFRAMES_ON_THE_WAY = "map", ".keyframes"


def next_run_folder(parent: Path, name: str) -> Path:
    """The first of name-1, name-2, ... below `parent` that does not exist."""
    number = 1
    while os.path.lexists(parent / f"{name}-{number}"):
        number += 1
    return parent / f"{name}-{number}"


class RunFolder:
    """Writes the files of one run. Make one with `create`."""

    def __init__(self, path: Path, *, is_new: bool = False) -> None:
        self.path = path
        self._is_new = is_new

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """A new or empty folder.

        Raises:
            OutputError: it holds something already, or cannot be made or written.
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
        """Take back a folder in which nothing was started; a recording that is in it goes too."""
        for path in self.path.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        if self._is_new:
            with suppress(OSError):
                self.path.rmdir()

    def write_config(self, text: str) -> None:
        """The effective settings. Raises OutputError when the disk refuses."""
        write_atomically(self.path / CONFIG, text)

    def write_report(self, report: Mapping[str, Any]) -> None:
        """Replace report.json in one step. Raises OutputError when the disk refuses."""
        write_atomically(self.path / REPORT, report_text(report))

    def write_trajectory(self, name: str, trajectory: Trajectory, *, note: str = "") -> None:
        """Replace one trajectory file in one step. Raises OutputError when the disk refuses."""
        with replacing(self.path / name) as temporary:
            write_tum(temporary, trajectory, note=note)

    def result_files(self, result: SlamResult, calibration: Camera) -> list[tuple[str, Callable[[], None]]]:
        """The final trajectories, as (file name, what writes it): every frame, keyframes, live poses, other segments.

        With them goes a camera.yaml when more is known of the lens than `calibration`, of the source's own images,
        and a camera can say it.
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
            (name, partial(self.write_trajectory, name, trajectory, note=said))
            for name, trajectory, said in trajectories
        ]
        found = result.lens.calibration(calibration)
        if result.lens.has_corrections and found is not None and not found.assumed:
            files.append((CAMERA, partial(write_atomically, self.path / CAMERA, found.to_yaml())))
        return files

    def write_map(self, reference_map: ReferenceMap) -> None:
        """Write `map/`, whole or not at all. Raises OutputError when the disk refuses."""
        save_map(self.path / MAP, reference_map)
