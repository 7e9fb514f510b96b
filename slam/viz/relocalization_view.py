"""Relocalization in Rerun: the frame beside the keyframe where it was found, the places tried, and why not there."""

from __future__ import annotations

import math

import numpy as np
import rerun as rr

from relocalizer.geometry import Similarity
from slam.events import RelocalizationTried
from slam.map.frames import Frame
from slam.viz.canvas import INLIER, WAITING, Canvas, screen_radius
from slam.viz.thumbnails import KeyframeThumbnails, log_pair, shrunk

EVERY = 10  # interval between two attempts in vain whose thumbnails are sent, frames
RAY = 30.0  # length of the ray of a predicted direction, in frustum depths


class RelocalizationView:
    """Shows every attempt to find a frame in the map; the thumbnails of those in vain only now and then."""

    def __init__(self, canvas: Canvas, thumbnails: KeyframeThumbnails) -> None:
        self._canvas = canvas
        self._thumbnails = thumbnails
        self._tried: RelocalizationTried | None = None
        self._last = -EVERY

    def show(self, event: RelocalizationTried, poses: dict[int, Similarity]) -> None:
        """Show the places tried; the thumbnail of the frame comes with it, in `show_thumbnail`."""
        self._tried = event
        self._canvas.recording.log("relocalization/table", rr.TextDocument(_table(event), media_type="text/markdown"))
        rays = [
            (poses[tried.keyframe_id].translation, np.array(tried.direction_world))
            for tried in event.attempts
            if tried.direction_world is not None and tried.keyframe_id in poses
        ]
        length = RAY * self._canvas.frustum_depth
        strips = np.array([(start, start + length * step) for start, step in rays], np.float32).reshape(-1, 2, 3)
        drawn = rr.LineStrips3D(strips, colors=WAITING, radii=screen_radius(1.0))
        self._canvas.recording.log("world/relocalization/directions", drawn)
        centers = [] if event.world_from_cam is None else [event.world_from_cam.translation]
        found = rr.Points3D(np.array(centers, np.float32).reshape(-1, 3), colors=INLIER, radii=screen_radius(6.0))
        self._canvas.recording.log("world/relocalization/found", found)

    def show_thumbnail(self, frame: Frame) -> None:
        """Show the frame of the last attempt beside the keyframe that it resembles most."""
        event = self._tried
        if event is None or event.frame_index != frame.index or not frame.image.size:
            return
        self._tried = None
        found = event.keyframe_id >= 0
        if not event.attempts or not (found or frame.index - self._last >= EVERY):
            return
        best = event.keyframe_id if found else max(event.attempts, key=lambda tried: tried.landmarks).keyframe_id
        thumbnail = self._thumbnails.get(best)
        if thumbnail is not None:
            self._last = frame.index
            log_pair(self._canvas, "relocalization/pair", thumbnail, shrunk(frame.image, frame.camera), event.matches)


def _table(event: RelocalizationTried) -> str:
    found = event.keyframe_id >= 0
    head = f"### Frame {event.frame_index}: " + (f"found at keyframe {event.keyframe_id}" if found else "not found")
    columns = {
        "keyframe": [str(tried.keyframe_id) for tried in event.attempts],
        "similarity": [_number(tried.similarity) for tried in event.attempts],
        "confidence": [_number(tried.confidence) for tried in event.attempts],
        "landmarks": [str(tried.landmarks) for tried in event.attempts],
        "why not": [tried.reason or "found" for tried in event.attempts],
    }
    shown = {name: cells for name, cells in columns.items() if any(cells)}  # the panel is narrow
    alignment = [*["--:"] * (len(shown) - 1), "---"]
    rows = [list(shown), alignment, *zip(*shown.values(), strict=True)]
    return "\n".join([head, "", *(f"| {' | '.join(row)} |" for row in rows)])


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"
