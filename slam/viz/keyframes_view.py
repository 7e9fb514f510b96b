"""Why frames became keyframes, in Rerun: each criterion against its limit, and the similarity of all keyframes."""

from __future__ import annotations

import cv2
import numpy as np
import rerun as rr
from numpy.typing import NDArray

from slam.events import FrameProcessed, KeyframeAdded, LoopExamined
from slam.viz.canvas import INLIER, LIVE, LOOP, OPTIMIZED, OUTLIER, WAITING, Canvas

GROWTH = 0.3  # relative growth of the number of keyframes at which the heat map is sent again
LARGEST = 400  # maximum side of the heat map; of more keyframes each second, third, ... is in it
SCREEN_PX = 1.5  # radius of the marks of loops in it
COLORS = (OPTIMIZED, WAITING, LOOP, INLIER)


class KeyframesView:
    """Plots the criteria of every frame, and draws the matrix of place similarities with the loops marked in it."""

    def __init__(self, canvas: Canvas) -> None:
        self._canvas = canvas
        self._log = canvas.recording.log
        self._names: set[str] = set()
        self._descriptors: list[NDArray[np.float32]] = []
        self._rows: dict[int, int] = {}  # by keyframe id
        self._loops: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        self._sent = 0
        self._log("keyframes/criteria/limit", rr.SeriesLines(colors=LIVE, names="1: due"), static=True)
        self._log("keyframes/inserted", rr.SeriesPoints(colors=LOOP, names="keyframe inserted"), static=True)

    def show_criteria(self, event: FrameProcessed) -> None:
        """Plot how far each criterion is from its limit; a keyframe is due when one reaches 1."""
        if not event.keyframe_criteria:
            return
        for number, gate in enumerate(event.keyframe_criteria):
            path = f"keyframes/criteria/{gate.name.split(',')[0].replace(' ', '_')}"
            if path not in self._names:
                self._names.add(path)
                name = f"{gate.name} (limit {gate.limit:g})"
                self._log(path, rr.SeriesLines(colors=COLORS[number % len(COLORS)], names=name), static=True)
            # What is left of the landmarks falls to its limit, everything else rises to it.
            falls = gate.name.endswith("left")
            progress = (1.0 - gate.value) / max(1.0 - gate.limit, 1e-9) if falls else gate.value / max(gate.limit, 1e-9)
            self._log(path, rr.Scalars(progress))
        self._log("keyframes/criteria/limit", rr.Scalars(1.0))

    def add_keyframe(self, event: KeyframeAdded) -> None:
        """Add a keyframe to the plot and to the heat map."""
        self._log("keyframes/inserted", rr.Scalars(1.0))
        descriptor = event.keyframe.descriptor
        if len(descriptor) < 2:  # replayed without a map
            return
        self._rows[event.keyframe.id] = len(self._descriptors)
        self._descriptors.append(descriptor)
        if len(self._descriptors) >= (1.0 + GROWTH) * self._sent:
            self.send()

    def add_loop(self, event: LoopExamined) -> None:
        """Mark a loop candidate in the heat map."""
        if event.i in self._rows and event.j in self._rows:
            self._loops[event.is_accepted].append((self._rows[event.i], self._rows[event.j]))

    def send(self) -> None:
        """Send the heat map with the loops."""
        count = self._sent = len(self._descriptors)
        if not count:
            return
        step = max(1, -(-count // LARGEST))
        descriptors = np.array(self._descriptors[::step])
        similarity = np.clip(255.0 * descriptors @ descriptors.T, 0, 255).astype(np.uint8)
        colored = cv2.applyColorMap(similarity, cv2.COLORMAP_INFERNO)
        done, png = cv2.imencode(".png", colored)
        if done:
            self._log("keyframes/similarity", rr.EncodedImage(contents=png.tobytes(), media_type="image/png"))
        for accepted, name, color in ((True, "accepted", INLIER), (False, "refused", OUTLIER)):
            at = np.array(self._loops[accepted], np.float32).reshape(-1, 2) / step + 0.5
            self._log(f"keyframes/similarity/{name}", rr.Points2D(at, colors=color, radii=SCREEN_PX / step))
