"""Faults of the images themselves: black, covered, blurred or repeated images, jumps of the exposure, missing texture.

Every measurement is compared with what is usual around it in the same run, so that the limits are ratios.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from relocalizer.geometry import FloatArray
from slam.explain.finding import Cause, Finding
from slam.explain.run_record import RunRecord
from slam.map.tracking_status import TrackingState

Mask = NDArray[np.bool_]

BLACK_LEVEL, BLACK_SHARE = 12.0, 0.9  # maximum brightness of a black image, and minimum fraction that is black
COVERED_FLAT, COVERED_MORE = 0.5, 0.3  # minimum fraction without texture of a covered lens: absolute, and than usual
COVERED_DARKER = 0.7  # maximum brightness of a covered lens, relative to the usual one
# Or how the image changed when it was covered: minimum fraction that changed, or maximum correlation with the last one.
COVERED_CHANGE, UNLIKE = 0.25, 0.5
BLUR_SHARPNESS, BLUR_FINENESS = 0.45, 0.8  # maximum sharpness and fineness of a blurred image, relative to the usual
PHOTO_FINENESS = 0.5  # the latter for single photographs, whose scenes differ
VIDEO_FOLLOWED, VIDEO_CHANGED = 0.4, 0.25  # of a video: medians of the fractions of tracks followed, and of the change
# Blur is reported where it is stronger (relative sharpness), or where this fraction of the usual tracks broke.
STRONG_BLUR, HARM, MOST_BURSTS = 0.3, 0.7, 8  # and of more bursts than this only the number
ABRUPT_BLUR, SHORT_BURST = 0.6, 3  # or where it came from one frame to the next, by this ratio, and stayed (frames)
SAME_PLACE = 0.95  # minimum correlation of the brightness with the image before, of a blurred image of the same place
SOFT_FINENESS = 0.2  # fineness below which all images of a run are soft
GAIN, SAME_SCENE = 1.2, 0.85  # minimum factor of an exposure jump, and correlation of the images before and after
BACK = 0.35  # maximum difference of the logs of two opposite gains, relative, for the second to take the first back
REPEATED = 0.5  # minimum height of the second peak of the autocorrelation of a repeated texture
FLAT_SHARE, FEW_TRACKS = 0.6, 100.0  # of an image with too little texture
LONG = 10  # minimum length of a stretch with too little texture, frames
AROUND = 45  # half of the window over which the usual value is computed, frames
GAP = 2  # maximum gap within one stretch, frames


def spans(mask: Mask, gap: int = GAP) -> list[tuple[int, int]]:
    """First and last row of each stretch of True; stretches at most `gap` rows apart are one."""
    rows = np.flatnonzero(mask)
    if not len(rows):
        return []
    breaks = np.flatnonzero(np.diff(rows) > gap + 1)
    starts, ends = np.r_[rows[0], rows[breaks + 1]], np.r_[rows[breaks], rows[-1]]
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def usual(values: FloatArray, good: Mask, percentile: float = 70.0, around: int = AROUND) -> FloatArray:
    """(N,) the percentile of the good values around each row; of all good ones where there are none around."""
    everywhere = float(np.percentile(values[good], percentile)) if good.any() else np.nan
    found = np.full(len(values), everywhere)
    for row in range(len(values)):
        window = slice(max(row - around, 0), row + around + 1)
        near = values[window][good[window]]
        if len(near) >= 5:
            found[row] = np.percentile(near, percentile)
    return found


def is_video(record: RunRecord) -> bool:
    """Whether most images show what the one before showed, so that they can be compared with those around them."""
    followed, changed = (record.measured[name][np.isfinite(record.measured[name])] for name in ("followed", "changed"))
    return bool(len(followed) and np.median(followed) >= VIDEO_FOLLOWED and np.median(changed) <= VIDEO_CHANGED)


def black_rows(record: RunRecord) -> Mask:
    """(N,) whether an image is black."""
    m = record.measured
    return np.asarray((m["brightness"] < BLACK_LEVEL) & (m["dark"] >= BLACK_SHARE))


def covered_rows(record: RunRecord) -> Mask:
    """(N,) whether something covers most of the lens: the image lost its texture, and got darker or changed at once."""
    m, black = record.measured, black_rows(record)
    seen = np.isfinite(m["flat"]) & ~black
    flat = usual(m["flat"], seen, 50.0, 4 * AROUND)
    candidate = seen & (m["flat"] >= COVERED_FLAT) & (m["flat"] >= flat + COVERED_MORE)
    if candidate.sum() > 0.5 * seen.sum():  # the whole run has little texture
        return np.zeros(len(record), bool)
    brightness = usual(m["brightness"], seen & ~candidate, 50.0)
    darker = m["brightness"] < COVERED_DARKER * brightness
    covered = np.zeros(len(record), bool)
    for first, last in spans(candidate, 5):
        onset = slice(max(first - 2, 0), first + 2)
        changed = float(np.nan_to_num(m["changed"][onset]).max(initial=0.0))
        alike = float(np.nan_to_num(m["correlation"][onset], nan=1.0).min(initial=1.0))
        bare = first > 0 and m["flat"][first] - m["flat"][first - 1] >= COVERED_MORE  # from one image to the next
        at_once = is_video(record) and (changed >= COVERED_CHANGE or (bare and alike <= UNLIKE))
        if np.median(darker[first : last + 1]) or at_once:
            covered[first : last + 1] = True
    return covered & seen


def blurred_rows(record: RunRecord) -> Mask:
    """(N,) whether an image is much less sharp than those around it: in its finest structures most, or all at once.

    Motion along the structures of a scene hardly blurs its finest ones more; but no scene loses its sharpness from one
    image to the next and stays where it was.
    """
    m = record.measured
    seen = np.isfinite(m["sharpness"]) & ~black_rows(record) & ~covered_rows(record)
    sharpness, fineness = usual(m["sharpness"], seen), usual(m["fineness"], seen)
    limit = BLUR_FINENESS if is_video(record) else PHOTO_FINENESS
    unsharp = seen & (m["sharpness"] < BLUR_SHARPNESS * sharpness)
    blurred = unsharp & (m["fineness"] < limit * fineness)
    for first, last in spans(unsharp, 0) if is_video(record) else ():
        if first and _falls_at(record, first) and m["correlation"][first] >= SAME_PLACE:
            blurred[first : last + 1] = True
    return np.asarray(blurred)


def _falls_at(record: RunRecord, row: int) -> bool:
    """Whether the sharpness falls from one image to the next, more than with the exposure."""
    sharpness, gain = record.measured["sharpness"], record.measured["gain"][row]
    return bool(sharpness[row] < ABRUPT_BLUR * gain**2 * sharpness[row - 1])


def repeated_rows(record: RunRecord) -> Mask:
    """(N,) whether the image repeats itself, where that was measured."""
    return np.asarray(np.nan_to_num(record.measured["repetition"]) >= REPEATED) & ~black_rows(record)


def spoiled_rows(record: RunRecord) -> Mask:
    """(N,) whether points cannot be followed from the previous image because of one of the two images themselves."""
    spoiled = black_rows(record) | covered_rows(record) | blurred_rows(record) | repeated_rows(record)
    return np.asarray(spoiled | np.r_[False, spoiled[:-1]] | (np.abs(_log_gain(record)) > np.log(GAIN)))


def image_findings(record: RunRecord) -> Iterator[Finding]:
    """All faults of the images."""
    m, black, covered = record.measured, black_rows(record), covered_rows(record)
    for first, last in spans(black):
        a, b = record.frames(first, last)
        level = float(np.median(m["brightness"][first : last + 1]))
        text = f"{last - first + 1} images are black: mean gray level {level:.1f} of 255"
        yield _finding(record, Cause.BLACKOUT, a, b, text, brightness=level)
    for first, last in spans(covered, 5):
        a, b = record.frames(first, last)
        flat, level = (float(np.median(m[name][first : last + 1])) for name in ("flat", "brightness"))
        text = f"something covers the lens: {flat:.0%} of the image has no texture, mean gray level {level:.0f}"
        yield _finding(record, Cause.COVERED_LENS, a, b, text, flat=flat, brightness=level)
    yield from _blur(record)
    yield from _exposure(record, black | covered)
    yield from _repetition(record, black | covered)
    yield from _few_features(record, black | covered | blurred_rows(record))


def _blur(record: RunRecord) -> Iterator[Finding]:
    m, blurred = record.measured, blurred_rows(record)
    usual_sharpness = usual(m["sharpness"], np.isfinite(m["sharpness"]) & ~blurred)
    bursts = []
    for first, last in spans(blurred):
        ratio = float(np.median(m["sharpness"][first : last + 1] / usual_sharpness[first : last + 1]))
        is_abrupt = is_video(record) and first > 0 and last - first + 1 >= SHORT_BURST and _falls_at(record, first)
        if ratio < STRONG_BLUR or is_abrupt or _harms(record, first, last):
            bursts.append((first, last, ratio))
    if len(bursts) > MOST_BURSTS:
        a, b = record.frames(bursts[0][0], bursts[-1][1])
        count = sum(last - first + 1 for first, last, _ in bursts)
        worst = min(bursts, key=lambda burst: burst[2])
        text = f"{count} images are blurred, in {len(bursts)} places; the worst: "
        text += f"frames {record.index[worst[0]]} to {record.index[worst[1]]}, {worst[2]:.0%} of the usual sharpness"
        yield _finding(record, Cause.BLUR, a, b, text, images=count, sharpness=worst[2])
        bursts = []
    for first, last, ratio in bursts:
        text = f"{last - first + 1} images are blurred: {ratio:.0%} of the sharpness of those around them"
        yield _finding(record, Cause.BLUR, *record.frames(first, last), text, sharpness=ratio)
    fineness = m["fineness"][np.isfinite(m["fineness"]) & ~black_rows(record) & ~covered_rows(record)]
    if len(fineness) and float(np.median(fineness)) < SOFT_FINENESS:
        soft = float(np.median(fineness))
        text = f"all images are soft: {soft:.2f} of the detail of half their size is left at full size, 0.5 is usual"
        yield _finding(record, Cause.BLUR, *record.frames(0, len(record) - 1), text, fineness=soft)


def _harms(record: RunRecord, first: int, last: int) -> bool:
    """Whether the tracks broke, or tracking was lost, in a stretch of frames or right after it."""
    followed = record.measured["followed"]
    broken = HARM * float(np.nanmedian(followed)) if np.isfinite(followed).any() else 0.0
    here = slice(first, last + 2)
    lost = any(state is TrackingState.LOST for state in record.states[here])
    return lost or bool((np.nan_to_num(followed[here], nan=1.0) < broken).any())


def _exposure(record: RunRecord, hidden: Mask) -> Iterator[Finding]:
    """Jumps of the exposure; a jump and the one that takes it back are one finding."""
    log_gain = np.where(~hidden & ~np.r_[True, hidden[:-1]], _log_gain(record), 0.0)
    rows = np.flatnonzero(np.abs(log_gain) > np.log(GAIN)).tolist()
    if len(rows) > 0.2 * len(record):  # images of single views, or a flickering light
        rows = []
    while rows:
        row = rows.pop(0)
        back = next((r for r in rows if abs(log_gain[r] + log_gain[row]) < BACK * abs(log_gain[row])), None)
        rows = [r for r in rows if back is None or r > back]
        last = row if back is None else back - 1
        factor = float(np.exp(log_gain[row]))
        until = "" if back is None else f", and back at frame {record.index[back]}"
        text = f"the exposure jumps: the same scene is {factor:.2f} times as bright as one frame before{until}"
        yield _finding(record, Cause.EXPOSURE_JUMP, *record.frames(row, last), text, gain=factor)


def _log_gain(record: RunRecord) -> FloatArray:
    """(N,) log of the change of the exposure from the previous frame; 0 where they show different scenes."""
    gain, correlation = record.measured["gain"], record.measured["correlation"]
    usable = (gain > 0) & (correlation >= SAME_SCENE)
    return np.where(usable, np.log(np.where(usable, gain, 1.0)), 0.0)


def _repetition(record: RunRecord, hidden: Mask) -> Iterator[Finding]:
    value = record.measured["repetition"]
    for first, last in spans(repeated_rows(record) & ~hidden, 3):
        height = float(np.nanmax(value[first : last + 1]))
        text = f"the image repeats itself (autocorrelation {height:.2f}): its points are mistaken for one another"
        yield _finding(record, Cause.REPEATED_TEXTURE, *record.frames(first, last), text, autocorrelation=height)


def _few_features(record: RunRecord, hidden: Mask) -> Iterator[Finding]:
    flat = record.measured["flat"]
    few = ~hidden & (flat >= FLAT_SHARE) & (record.tracks < FEW_TRACKS)
    for first, last in spans(few, 5):
        if last - first + 1 < LONG:
            continue
        share, tracks = float(np.median(flat[first : last + 1])), float(np.median(record.tracks[first : last + 1]))
        text = f"{share:.0%} of the image has no texture: {tracks:.0f} points to follow"
        yield _finding(record, Cause.FEW_FEATURES, *record.frames(first, last), text, flat=share, tracks=tracks)


def _finding(record: RunRecord, cause: Cause, first: int, last: int, text: str, **figures: float) -> Finding:
    shown = record.keyframes_near(first, last)
    return Finding(cause=cause, first=first, last=last, sentence=text, figures=figures, keyframes=shown)
