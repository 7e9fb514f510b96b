"""The table of all frames of a run: frames.csv, with the names of the images."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from slam.evaluation.trajectory import seconds_from_nanoseconds
from slam.events import Event, FrameLocalizedLater, FrameProcessed, RunFinished
from slam.run.files import LineFile, write_atomically
from slam.run.run_folder import RunFolder

FRAMES = "frames.csv"
COLUMNS = ("index", "timestamp", "name", "state", "keyframe", "inliers")
LOCALIZED_LATER = "localized later"  # state of a frame that was localized in the map when the run ended


class FramesTable:
    """An observer that writes one line per frame, and the table anew when frames were localized later.

    `timestamp` is in seconds, `name` the image's file, empty in a video, `keyframe` the reference keyframe, empty
    before the map began, and `inliers` the number of landmarks that agree with the pose.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._path = folder.path / FRAMES
        self._rows: dict[int, list[str]] = {}
        self._has_changed = False
        self._file = LineFile(self._path)
        self._file.write(_line(COLUMNS))

    def __call__(self, event: Event) -> None:
        match event:
            case FrameProcessed():
                self._add(event)
            case FrameLocalizedLater():
                row = self._rows[event.frame_index]
                row[3:] = [LOCALIZED_LATER, str(event.keyframe_id), str(event.inliers)]
                self._has_changed = True
            case RunFinished():
                self.close()
                if self._has_changed:
                    write_atomically(self._path, "".join(map(_line, (COLUMNS, *self._rows.values()))))

    def _add(self, event: FrameProcessed) -> None:
        frame, keyframe = event.frame, "" if event.keyframe_id < 0 else str(event.keyframe_id)
        inliers = 0 if event.world_from_cam is None else int(event.is_inlier.sum())
        time = seconds_from_nanoseconds(frame.timestamp_ns)
        row = [str(frame.index), time, frame.name, str(event.state), keyframe, str(inliers)]
        self._rows[frame.index] = row
        self._file.write(_line(row))

    def close(self) -> None:
        """Close the file; later calls do nothing. Raises OutputError when it cannot be written."""
        self._file.close()


def _line(values: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()
