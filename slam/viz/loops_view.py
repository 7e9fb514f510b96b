"""Loop candidates in Rerun: both images with their matches, and the tests as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence

import rerun as rr

from slam.events import LoopExamined
from slam.map.frame_measurement import Gate
from slam.viz.canvas import INLIER, OUTLIER, WAITING, Canvas
from slam.viz.thumbnails import KeyframeThumbnails, log_pair

TIMELINE = "loop"  # number of the candidate, so that each of them can be looked at, several in a frame too
MOST = 3_000  # maximum number of candidates whose thumbnails are sent; of refused ones each second, third, ... beyond


class LoopsView:
    """Shows every loop candidate, accepted or refused."""

    def __init__(self, canvas: Canvas, thumbnails: KeyframeThumbnails) -> None:
        self._canvas = canvas
        self._thumbnails = thumbnails
        self._count = 0
        for name, color in (("similarity", WAITING), ("accepted", INLIER), ("refused", OUTLIER)):
            canvas.recording.log(f"loops/plots/{name}", rr.SeriesPoints(colors=color, names=name), static=True)

    def show(self, event: LoopExamined) -> None:
        """Show a candidate."""
        log = self._canvas.recording.log
        self._canvas.set_frame(event.frame_index)
        self._canvas.recording.set_time(TIMELINE, sequence=self._count)
        self._count += 1
        log("loops/table", rr.TextDocument(self._table(event), media_type="text/markdown"))
        log("loops/plots/similarity", rr.Scalars(event.gates[0].value if event.gates else math.nan))
        landmarks = max((gate.value for gate in event.gates if "landmarks" in gate.name), default=0.0)
        log(f"loops/plots/{'accepted' if event.is_accepted else 'refused'}", rr.Scalars(landmarks))
        if event.is_accepted or self._count <= MOST or self._count % (1 + self._count // MOST) == 0:
            self._show_thumbnails(event)
        self._canvas.recording.disable_timeline(TIMELINE)

    def _show_thumbnails(self, event: LoopExamined) -> None:
        left, right = self._thumbnails.get(event.i), self._thumbnails.get(event.j)
        if left is not None and right is not None:
            log_pair(self._canvas, "loops/pair", left, right, event.matches)

    def _table(self, event: LoopExamined) -> str:
        verdict = "**accepted**" if event.is_accepted else f"**refused**: {event.reason}"
        inliers = int(event.matches.is_inlier.sum())
        return (
            f"### Keyframe {event.j} at the place of keyframe {event.i}: {verdict}\n\n{gate_table(event.gates)}\n\n"
            f"{len(event.matches)} matches drawn, {inliers} agree with the pose. "
            f"Left: keyframe {event.i}, right: keyframe {event.j}.\n"
        )


def gate_table(gates: Sequence[Gate]) -> str:
    """The tests as a table in Markdown: value, limit, verdict."""
    rows = [
        f"| {g.name} | {_number(g.value)} | {_number(g.limit)} | {'passed' if g.passed else 'FAILED'} |" for g in gates
    ]
    return "\n".join(["| test | value | limit | verdict |", "|---|--:|--:|---|", *rows])


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4g}"
