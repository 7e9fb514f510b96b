"""The offset between the clock of a GPS track and that of the images, from the shapes of the two paths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relocalizer.geometry import FloatArray, align_points

STEP_S, FINE_STEP_S = 0.5, 0.05  # steps of the search, seconds
MAX_STEPS = 4000  # maximum number of coarse steps; longer tracks are searched in longer steps
MAX_POSES = 60  # maximum number of poses that are compared
MIN_OVERLAP = 0.8  # minimum fraction of the poses that lie on the track
APART_S = 10.0  # distance from the best offset beyond which another one must fit clearly worse
CLEARLY = 1.5  # minimum ratio of the error of the best such offset to that of the best one
MAX_ERROR = 0.1  # maximum error of the best offset, as a fraction of the extent of the path

PlacesAt = Callable[[NDArray[np.int64]], tuple[FloatArray, NDArray[np.bool_]]]


@dataclass(frozen=True, slots=True)
class OffsetUnknown:
    """No offset; `reason` is a clause with the numbers."""

    reason: str


def estimate_offset_s(
    times_ns: NDArray[np.int64], positions: FloatArray, track_ns: NDArray[np.int64], places_at: PlacesAt
) -> float | OffsetUnknown:
    """Seconds to be added to the times of the images, by which the path of the camera fits the track best.

    Args:
        times_ns, positions: (N,) and (N, 3) of the camera, map units.
        track_ns: (M,) times of the track.
        places_at: places (N, 3) on the track at some times, meters, and which of them the track covers.
    """
    rows = np.unique(np.linspace(0, len(times_ns) - 1, min(len(times_ns), MAX_POSES)).astype(int))
    seconds, sampled = (times_ns[rows] - times_ns[0]) / 1e9, positions[rows]
    start_s, lasts_s = (track_ns[0] - times_ns[0]) / 1e9, (track_ns[-1] - track_ns[0]) / 1e9
    slack_s = (1.0 - MIN_OVERLAP) * seconds[-1]
    first, last = start_s - slack_s, start_s + lasts_s - seconds[-1] + slack_s
    if last < first:
        return OffsetUnknown(f"the track lasts {lasts_s:.0f} s and the run {seconds[-1]:.0f} s")

    def error_at(offset_s: float) -> float:
        places, covered = places_at(times_ns[rows] + round(offset_s * 1e9))
        if covered.sum() < max(6, MIN_OVERLAP * len(rows)):
            return np.inf
        a, b = places[covered], sampled[covered]
        residuals = a - align_points(a, b).apply(b)
        extent = float(np.sqrt(((a - a.mean(axis=0)) ** 2).sum(axis=1).mean()))
        return float(np.sqrt((residuals**2).sum(axis=1).mean())) / max(extent, 1e-9)

    step_s = max(STEP_S, (last - first) / MAX_STEPS)
    offsets = np.arange(first, last + step_s, step_s)
    errors = np.array([error_at(offset) for offset in offsets])
    if not np.isfinite(errors).any():
        return OffsetUnknown("the track has gaps wherever the run would fit in")
    coarse = offsets[int(np.argmin(errors))]
    fine = coarse + np.arange(-step_s, step_s + FINE_STEP_S, FINE_STEP_S)
    best_s, error = min(((offset, error_at(offset)) for offset in fine), key=lambda item: item[1])
    others = errors[np.abs(offsets - best_s) > APART_S]
    second = float(others.min()) if len(others) else np.inf
    if error > MAX_ERROR or second < CLEARLY * error:
        return OffsetUnknown(
            f"the best fit leaves {error:.0%} of the extent of the path (limit {MAX_ERROR:.0%}), and another "
            f"{second:.0%}, which must be {CLEARLY:g} times as much"
        )
    return float(best_s)
