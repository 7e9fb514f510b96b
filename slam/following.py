"""A map that must not change: frames have their poses in it, and nothing else comes of them."""

from __future__ import annotations

from collections.abc import Callable

from slam.frames import Frame
from slam.front_end import FrontEnd, NotLocated
from slam.recognition import Recognised
from slam.whereabouts import Whereabouts

FEW_LEFT = 0.6  # of the landmarks recognised; with fewer left to follow, more are looked for


class Following:
    """No keyframe brings new landmarks here: when few of those recognised are left, the place is recognised anew."""

    def __init__(
        self, front_end: FrontEnd, where: Whereabouts, recognise: Callable[[Frame], Recognised | NotLocated]
    ) -> None:
        self._front_end = front_end
        self._where = where
        self._recognise = recognise
        self._few = 0

    def count(self) -> None:
        """A place was recognised: of these landmarks many should be left."""
        self._few = round(FEW_LEFT * len(self._front_end.agreeing))

    def renew(self, frame: Frame) -> None:
        """Give a frame that has a pose more landmarks to go on with, when it has few."""
        if len(self._front_end.agreeing) >= self._few:
            return
        found = self._recognise(frame)
        if isinstance(found, Recognised):
            self._where.at(found.keyframe_id)
            self._front_end.go_on_from(found.world_from_cam, found.tracks)
        self.count()
