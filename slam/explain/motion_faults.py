"""Faults of the motion between the images: dropped frames, a camera that only turns, a camera at rest."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from relocalizer.geometry import FloatArray
from slam.events import FramesSkipped, GraphOptimized, Initialized, Relocalized, ScaleUnobservable
from slam.explain.finding import Cause, Finding
from slam.explain.image_faults import Mask, black_rows, covered_rows, spans, spoiled_rows
from slam.explain.run_record import RunRecord
from slam.tracking.image_measurement import ROTATION_EVERY, ROTATION_FRAMES

# Minimum step of a jump: relative to those around it, and as a fraction of the focal length.
JUMP, JUMP_SHARE = 3.5, 0.02
IRREGULAR = 6.0  # minimum log of that ratio, relative to the usual change (log, median) from one step to the next
CUT = 0.5  # minimum size of a jump that is called a cut, as a fraction of the focal length
STEPS_AROUND = 6  # number of steps on each side that it is compared with
ISOLATED = 0.5  # maximum step right before and after a jump, relative to it: a fast hand speeds up gradually
FOLLOWED = 0.5  # minimum fraction of the tracks that were followed for their motion to be that of the image
SMOOTH = 0.75  # minimum fraction of the steps around a jump in which the tracks were followed: not single photographs
TIME_GAP = 1.8  # minimum interval of a gap, relative to the usual interval
REGULAR = 0.1  # maximum deviation (median, relative) of the intervals of a regular stream
TURNING, TURNED_SHARE = 0.8, 0.03  # minimum fraction explained by a rotation, and its size relative to the focal length
LEAST_TURN_DEG = 12.0  # minimum angle of a stretch of pure rotation that is reported


def motion_findings(record: RunRecord) -> Iterator[Finding]:
    """All faults of the motion."""
    yield from _time_gaps(record)
    yield from _jumps(record)
    yield from _pure_rotation(record)
    for event in record.of(FramesSkipped):
        last = int(record.index[-1]) if len(record) else 0
        sentence = f"{event.count} frames are missing: {event.reason}"
        cause = Cause.DROPPED_FRAMES if "faster" in event.reason else Cause.UNREADABLE_FRAMES
        yield Finding(cause=cause, first=0, last=last, sentence=sentence, figures={"count": event.count})


# --- dropped frames -----------------------------------------------------------------------------------


def _time_gaps(record: RunRecord) -> Iterator[Finding]:
    """Gaps in the times of a stream whose frames come at regular intervals."""
    intervals = np.diff(record.times_s)
    if len(intervals) < 5:
        return
    interval = float(np.median(intervals))
    if interval <= 0 or float(np.median(np.abs(intervals - interval))) > REGULAR * interval:
        return
    for row in np.flatnonzero(intervals > TIME_GAP * interval).tolist():
        missing = round(intervals[row] / interval) - 1
        text = (
            f"{missing} frames are missing: {intervals[row]:.3f} s pass between two images, {interval:.3f} s as a rule"
        )
        yield _dropped(record, row, text, missing)


def _jumps(record: RunRecord) -> Iterator[Finding]:
    """Single steps of the image that are much larger than those before and after, though the times are even."""
    steps = step_px(record)
    for row in jump_rows(record, steps).tolist():
        around = _around(steps, row)
        missing = max(1, round(steps[row] / float(np.median(around))) - 1)
        as_if = f"as if {missing} frames were missing" if steps[row] < CUT * record.focal_px else "a cut, or a long gap"
        text = (
            f"the view jumps by {steps[row]:.0f} px from one image to the next, {float(np.median(around)):.1f} px are "
            f"usual there: {as_if}"
        )
        yield _dropped(record, row - 1, text, missing)


def _dropped(record: RunRecord, row: int, text: str, missing: int) -> Finding:
    first, last = record.frames(row, row + 1)
    shown = record.keyframes_near(first, last)
    return Finding(
        cause=Cause.DROPPED_FRAMES,
        first=first,
        last=last,
        sentence=text,
        figures={"missing": missing},
        keyframes=shown,
    )


def step_px(record: RunRecord) -> FloatArray:
    """(N,) motion of the image from the previous frame to each, pixels; NaN where it is not known.

    It is what the tracks moved or, where KLT lost most of them in a large step, what the poses say, unless the map
    changed between them or the images themselves are spoiled.
    """
    angles = np.full(len(record), np.nan)
    if len(record) > 1:
        relative = np.einsum("nba,nbc->nac", record.rotations[:-1], record.rotations[1:])
        cosine = np.clip((np.trace(relative, axis1=1, axis2=2) - 1) / 2, -1, 1)
        moved = np.linalg.norm(np.diff(record.positions, axis=0), axis=1) / record.depth[1:]
        angles[1:] = np.arccos(cosine) + moved
    for event in record.events:
        if isinstance(event, GraphOptimized | Relocalized):
            row = record.row(event.frame_index)
            angles[row : row + 2] = np.nan
        elif isinstance(event, Initialized):
            row = record.row(event.frame_indices[1])
            angles[row : row + 2] = np.nan
    angles[1:][record.has_pose[1:] != record.has_pose[:-1]] = np.nan  # in another map, with another world
    moved_px, followed = record.measured["moved_px"], record.measured["followed"]
    steps = np.where(followed >= FOLLOWED, moved_px, np.fmax(moved_px, record.focal_px * angles))
    return np.where(spoiled_rows(record), np.nan, steps)


def jump_rows(record: RunRecord, steps: FloatArray) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Rows whose step from the previous frame is a jump."""
    hidden = black_rows(record) | covered_rows(record)
    intervals = np.r_[np.nan, np.diff(record.times_s)]
    gap = intervals > TIME_GAP * np.nanmedian(intervals) if len(record) > 2 else np.zeros(len(record), bool)
    with np.errstate(divide="ignore"):
        changes = np.abs(np.diff(np.log(np.where(steps > 0, steps, np.nan))))
    usual_change = float(np.nanmedian(changes)) if np.isfinite(changes).any() else 0.0
    factor = max(JUMP, float(np.exp(IRREGULAR * usual_change)))  # a camera whose steps vary anyway needs more
    followed = np.nan_to_num(record.measured["followed"])
    window = 2 * STEPS_AROUND + 1
    is_smooth = np.convolve(followed >= FOLLOWED, np.ones(window), mode="same") >= SMOOTH * window
    rows = []
    for row in range(1, len(record)):
        if not np.isfinite(steps[row]) or hidden[row] or hidden[row - 1] or gap[row]:
            continue
        around = _around(steps, row)
        if len(around) < STEPS_AROUND or not is_smooth[row]:
            continue
        if steps[row] < max(factor * float(np.median(around)), JUMP_SHARE * record.focal_px):
            continue
        neighbors = [steps[r] for r in (row - 1, row + 1) if 0 < r < len(record) and np.isfinite(steps[r])]
        if neighbors and max(neighbors) <= ISOLATED * steps[row]:
            rows.append(row)
    return np.array(rows, np.int64)


def _around(steps: FloatArray, row: int) -> FloatArray:
    """The known steps before and after a row."""
    near = np.r_[steps[max(row - STEPS_AROUND, 1) : row], steps[row + 1 : row + 1 + STEPS_AROUND]]
    return np.asarray(near[np.isfinite(near)])


# --- pure rotation ------------------------------------------------------------------------------------


def rotating_rows(record: RunRecord) -> Mask:
    """(N,) whether the camera only turns: a rotation explains the tracks over the last frames, and they moved far."""
    m = record.measured
    turned = (m["rotation_only"] >= TURNING) & (m["turned_px"] >= TURNED_SHARE * record.focal_px)
    turned &= ~(black_rows(record) | covered_rows(record))  # what is left of the image shows too little
    rotating = np.zeros(len(record), bool)
    measured = np.flatnonzero(np.isfinite(m["rotation_only"])).tolist()
    for before, row in pairwise(measured):  # one alone may be a few tracks that happen to agree
        if not (turned[before] and turned[row]):
            continue
        rotating[max(before - ROTATION_FRAMES, 0) : row + 1] = True
    return rotating


def _pure_rotation(record: RunRecord) -> Iterator[Finding]:
    m = record.measured
    held = {event.frame_index for event in record.of(ScaleUnobservable)}
    for first, last in spans(rotating_rows(record), ROTATION_EVERY):
        turned = m["turned_px"][first : last + 1]
        per_frame = float(np.nanmedian(turned)) / ROTATION_FRAMES
        angle = float(np.degrees(per_frame * (last - first) / record.focal_px))
        if angle < LEAST_TURN_DEG:
            continue
        a, b = record.frames(first, last)
        explained = float(np.nanmedian(m["rotation_only"][first : last + 1]))
        without = ", and new points got no depth" if any(a <= frame <= b + 10 for frame in held) else ""
        text = (
            f"the camera only turns, by about {angle:.0f} deg: a rotation alone explains {explained:.0%} of the tracks"
            f"{without}"
        )
        figures = {"turned_deg": angle, "explained": explained}
        shown = record.keyframes_near(a, b)
        yield Finding(cause=Cause.PURE_ROTATION, first=a, last=b, sentence=text, figures=figures, keyframes=shown)
