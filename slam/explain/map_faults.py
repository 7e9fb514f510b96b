"""Faults of the map: losses of tracking, weak beginnings, drift of the scale, similar places, a wrong focal length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from slam.events import (
    EdgeAccepted,
    GraphOptimized,
    Initialized,
    KeyframeAdded,
    LoopExamined,
    Relocalized,
    TrackingLost,
)
from slam.explain.finding import Cause, Finding
from slam.explain.image_faults import blurred_rows
from slam.explain.run_record import RunRecord
from slam.loop_closing.pose_graph import LOOP_LIMIT
from slam.map.keyframe_graph import EdgeKind
from slam.map.lens_evidence import UNDETERMINED_SIGMA, LensState
from slam.map.tracking_status import TrackingState

REACH = 3  # maximum distance of a fault from the first lost frame for it to be the cause of a loss, frames
FAST_SHARE = 0.08  # motion from frame to frame that is fast, as a fraction of the focal length
SHORT_MAP = 30  # maximum age at which the loss of a map is due to its beginning, frames
WEAK_PARALLAX_DEG, WEAK_LANDMARKS = 1.0, 80  # of a weak initial pair
LEADING = 10  # minimum number of frames without a pose before the first that is reported
DRIFT = 0.05  # minimum change of the scale by loops that is reported, relative
BENT_CHI_SQUARE = 1000.0  # minimum squared residual of an edge that the rest of the map contradicts
ALIKE_LANDMARKS = 20  # minimum number of landmarks that agree with a refused loop for its places to look alike
SAME_FOCAL = 0.02  # maximum relative difference of a focal length that is not what contradicts a calibration
NEAR_LOOP = 3  # maximum distance of both ends from those of an accepted loop of the same place, keyframes
ALIKE_GATES = ("chi-square", "guided matching", "contradict")  # gates that refuse places that only look alike

# Causes of a loss, the most certain first.
CAUSES = (
    Cause.BLACKOUT,
    Cause.COVERED_LENS,
    Cause.REPEATED_TEXTURE,
    Cause.DROPPED_FRAMES,
    Cause.EXPOSURE_JUMP,
    Cause.BLUR,
    Cause.PURE_ROTATION,
    Cause.FEW_FEATURES,
)


def map_findings(record: RunRecord, faults: Sequence[Finding]) -> Iterator[Finding]:
    """All faults of the map; `faults` are those of the images and of the motion, which may be their causes."""
    yield from _losses(record, faults)
    yield from _initialization(record)
    yield from _start(record, faults)
    yield from _unjoined(record)
    yield from _scale_drift(record)
    yield from _similar_places(record)
    yield from _unfitting_loops(record)
    yield from _focal_length(record)


# --- losses -------------------------------------------------------------------------------------------


def _losses(record: RunRecord, faults: Sequence[Finding]) -> Iterator[Finding]:
    for event in record.of(TrackingLost):
        first, last, how = _episode(record, event.frame_index)
        because = causes_of_loss(record, first, last, faults)
        why = " and ".join(cause.value for cause in because)
        cause = f"because of {why}" if why else f"no cause was seen in the images ({event.reason})"
        count = record.row(last) - record.row(first) + 1
        yield Finding(
            cause=Cause.LOSS,
            first=first,
            last=last,
            sentence=f"tracking was lost for {count} frame{'s' * (count != 1)}, {how}: {cause}",
            figures={"frames": count},
            because=because,
            keyframes=record.keyframes_near(first, last),
        )


def _episode(record: RunRecord, lost_at: int) -> tuple[int, int, str]:
    """First and last lost frame of a loss, and how it ended."""
    ends = [(e.frame_index, "until the camera was relocalized") for e in record.of(Relocalized)]
    ends += [(e.frame_indices[1], "until a new map was initialized") for e in record.of(Initialized)]
    later = sorted(end for end in ends if end[0] > lost_at)
    if not later:
        return lost_at, int(record.index[-1]), "to the end"
    return lost_at, int(record.index[max(record.row(later[0][0]) - 1, 0)]), later[0][1]


def causes_of_loss(record: RunRecord, first: int, last: int, faults: Sequence[Finding]) -> tuple[Cause, ...]:
    """What caused a loss: faults at its first frame; otherwise a fast motion before it."""
    at = [fault for fault in faults if fault.first - REACH <= first <= fault.last + REACH]
    found = [cause for cause in CAUSES if any(fault.cause is cause for fault in at)]
    if found:
        return tuple(found[:2])
    row = record.row(first)
    before = slice(max(row - REACH, 0), row + 1)
    moved = record.measured["moved_px"][before]
    if np.isfinite(moved).any() and float(np.nanmax(moved)) > FAST_SHARE * record.focal_px:
        return (Cause.FAST_MOTION,)
    return (Cause.BLUR,) if blurred_rows(record)[before].any() else ()


# --- beginnings ---------------------------------------------------------------------------------------


def _initialization(record: RunRecord) -> Iterator[Finding]:
    lost = sorted(event.frame_index for event in record.of(TrackingLost))
    for event in record.of(Initialized):
        first, second = event.frame_indices
        ended = next((frame for frame in lost if second < frame <= second + SHORT_MAP), None)
        weak = event.parallax_deg < WEAK_PARALLAX_DEG or event.landmarks < WEAK_LANDMARKS
        if not weak and ended is None:
            continue
        text = f"the map initialized from frames {first} and {second} is weak: {event.landmarks} landmarks, "
        text += f"parallax {event.parallax_deg:.2f} deg"
        text += "" if ended is None else f"; tracking was lost {ended - second} frames later"
        yield Finding(
            cause=Cause.WEAK_INITIALIZATION,
            first=first,
            last=second,
            sentence=text,
            figures={"landmarks": event.landmarks, "parallax_deg": event.parallax_deg},
            keyframes=record.keyframes_near(first, second, 2),
        )


def _start(record: RunRecord, faults: Sequence[Finding]) -> Iterator[Finding]:
    """Frames without a pose before the first that has one."""
    if not len(record) or not record.has_pose.any():
        return (yield from _nothing(record, faults))
    leading = int(np.argmax(record.has_pose))
    if leading < LEADING:
        return
    first, last = record.frames(0, leading - 1)
    text = f"the first {leading} frames have no pose: {_commonest_reason(record, leading)}"
    because = _causes_within(faults, first, last) or _rest_of(record, leading)
    yield Finding(
        cause=Cause.ROLLING_START, first=first, last=last, sentence=text, figures={"frames": leading}, because=because
    )


def _nothing(record: RunRecord, faults: Sequence[Finding]) -> Iterator[Finding]:
    if not len(record):
        return
    first, last = record.frames(0, len(record) - 1)
    because = _causes_within(faults, first, last) or _rest_of(record, len(record))
    text = f"no map was initialized: {_commonest_reason(record, len(record))}"
    yield Finding(cause=Cause.ROLLING_START, first=first, last=last, sentence=text, because=because)


def _commonest_reason(record: RunRecord, count: int) -> str:
    """The reason of the most frames; numbers in it are of the last of them."""
    waiting = [
        r for r, s in zip(record.reasons[:count], record.states[:count], strict=True) if s != TrackingState.TRACKING
    ]
    kinds = Counter("".join(letter for letter in reason if not letter.isdigit()) for reason in waiting if reason)
    if not kinds:
        return "they were not in the part of the path that was kept"
    kind = kinds.most_common(1)[0][0]
    return [r for r in waiting if "".join(letter for letter in r if not letter.isdigit()) == kind][-1]


def _causes_within(faults: Sequence[Finding], first: int, last: int) -> tuple[Cause, ...]:
    """The causes that cover most of a range of frames."""
    shares = {fault.cause: min(fault.last, last) - max(fault.first, first) + 1 for fault in faults}
    found = [cause for cause in CAUSES if shares.get(cause, 0) >= 0.3 * (last - first + 1)]
    return tuple(found[:2])


def _rest_of(record: RunRecord, count: int) -> tuple[Cause, ...]:
    return (Cause.STILL_CAMERA,) if record.rests[:count].mean() > 0.5 else ()


def _unjoined(record: RunRecord) -> Iterator[Finding]:
    others = [int(count) for count in record.report.get("other_segments") or () if count]
    if not others or not len(record):
        return
    outside = np.flatnonzero(record.is_tracking & ~record.has_pose)
    first, last = (
        record.frames(int(outside[0]), int(outside[-1])) if len(outside) else record.frames(0, len(record) - 1)
    )
    sizes = f"{', '.join(map(str, others))} frames"
    text = (
        f"the path is in {1 + len(others)} segments that no loop joins; the smaller have {sizes}, in units of their own"
    )
    yield Finding(cause=Cause.UNJOINED_MAPS, first=first, last=last, sentence=text, figures={"frames": sum(others)})


# --- map ----------------------------------------------------------------------------------------------


def _scale_drift(record: RunRecord) -> Iterator[Finding]:
    """Change of the keyframes' scales by loops, between the live pose and the final one, within one part of the map."""
    loops = [e.edge for e in record.of(EdgeAccepted) if e.edge.kind is EdgeKind.LOOP]
    drifts = [_drift_of(record, part) for part in _parts(record)]
    if not loops or not drifts:
        return
    drift, low, high = max(drifts, key=lambda found: found[0])
    if drift < DRIFT:
        return
    first, last = sorted((low.keyframe.frame_index, high.keyframe.frame_index))
    text = f"the scale drifted by {drift:.0%} between these frames, and loops ({len(loops)}) corrected it"
    shown = (low.keyframe.id, high.keyframe.id)
    yield Finding(
        cause=Cause.SCALE_DRIFT, first=first, last=last, sentence=text, figures={"drift": drift}, keyframes=shown
    )


def _parts(record: RunRecord) -> list[list[KeyframeAdded]]:
    """The keyframes, in parts that begin where a map was initialized; parts have own units until they are joined."""
    parts: list[list[KeyframeAdded]] = []
    for event in record.events:
        if isinstance(event, Initialized):
            parts.append([])
        elif isinstance(event, KeyframeAdded) and event.keyframe.id in record.final_scales:
            parts[-1:] = [[*(parts[-1] if parts else []), event]]
    return [part for part in parts if len(part) >= 2]


def _drift_of(record: RunRecord, part: Sequence[KeyframeAdded]) -> tuple[float, KeyframeAdded, KeyframeAdded]:
    """The largest relative change of the scale between two keyframes of a part, and these two."""
    ratio = np.log([record.final_scales[e.keyframe.id] / e.world_from_keyframe.scale for e in part])
    low, high = int(np.argmin(ratio)), int(np.argmax(ratio))
    return float(np.expm1(ratio[high] - ratio[low])), part[low], part[high]


def _similar_places(record: RunRecord) -> Iterator[Finding]:
    """Refused loops that many landmarks support and that do not fit the map, though none near them was accepted."""
    frame_of = {e.keyframe.id: e.keyframe.frame_index for e in record.of(KeyframeAdded)}
    examined = record.of(LoopExamined)
    accepted = [(e.i, e.j) for e in examined if e.is_accepted]
    alike = []
    for event in examined:
        failed = next((gate for gate in event.gates if not gate.passed), None)
        if event.is_accepted or failed is None or not any(name in failed.name for name in ALIKE_GATES):
            continue
        landmarks = max((g.value for g in event.gates if "landmarks" in g.name), default=0.0)
        near = any(abs(event.i - i) <= NEAR_LOOP and abs(event.j - j) <= NEAR_LOOP for i, j in accepted)
        if landmarks >= ALIKE_LANDMARKS and not near:
            alike.append((landmarks, event))
    if not alike:
        return
    landmarks, best = max(alike, key=lambda found: found[0])
    text = f"{len(alike)} loops with {ALIKE_LANDMARKS} landmarks or more were refused: their places look alike, "
    text += f"and do not fit the map. The strongest: keyframes {best.i} and {best.j}, {landmarks:.0f} landmarks; "
    text += best.reason
    yield Finding(
        cause=Cause.SIMILAR_PLACES,
        first=min(frame_of.get(event.i, event.frame_index) for _, event in alike),
        last=max(event.frame_index for _, event in alike),
        sentence=text,
        figures={"loops": len(alike), "landmarks": landmarks},
        keyframes=(best.i, best.j),
    )


def _unfitting_loops(record: RunRecord) -> Iterator[Finding]:
    """The closed loop that the rest of the map contradicts most, right after it was closed or at the end."""
    frame_of = {e.keyframe.id: e.keyframe.frame_index for e in record.of(KeyframeAdded)}
    worst: tuple[float, int, int] = (BENT_CHI_SQUARE, -1, -1)
    for event in record.of(GraphOptimized):
        if event.after is None or not len(event.after):
            continue
        edges = event.after
        loops = edges.where(edges.is_loop & (edges.weights > 0))
        closed = event.before is not None  # by a loop, which deforms the odometry if it is false
        square = float(max(edges.squared.max() if closed else 0.0, loops.squared.max(initial=0.0)))
        if len(loops) and square > worst[0]:
            i, j = loops.ends[int(np.argmax(loops.squared))].tolist()
            worst = (square, i, j)
    square, i, j = worst
    if i < 0:
        return
    text = (
        f"the loop of keyframes {i} and {j} does not fit the map: residuals of chi-square {square:.0f}, {LOOP_LIMIT:g} "
    )
    text += "are allowed to a loop. It is false, or the path between its ends is"
    ends = sorted((frame_of.get(i, 0), frame_of.get(j, 0)))
    yield Finding(
        cause=Cause.UNFITTING_LOOP,
        first=ends[0],
        last=ends[1],
        sentence=text,
        figures={"chi_square": square},
        keyframes=(i, j),
    )


def _focal_length(record: RunRecord) -> Iterator[Finding]:
    lens, reprojection = record.report.get("lens") or {}, record.report.get("reprojection_px") or 0.0
    focal, sigma = lens.get("focal_px") or {}, lens.get("focal_sigma")
    if not len(record) or not focal:
        return
    first, last = record.frames(0, len(record) - 1)
    start, wanted = float(focal.get("start") or 0.0), float(focal.get("wanted") or 0.0)
    if lens.get("state") == LensState.CONTRADICTED:
        text = f"the given calibration does not fit: {lens['reason']}"
        if wanted and abs(wanted / start - 1.0) > SAME_FOCAL:
            text = (
                f"the given focal length of {start:.0f} px does not fit: the images want {wanted:.0f} px "
                f"(+- {100 * (sigma or 0.0):.1f} %), {abs(wanted / start - 1):.0%} "
                f"{'less' if wanted < start else 'more'}; {lens['reason']}"
            )
        figures = {"given_px": start, "wanted_px": wanted, "reprojection_px": reprojection}
        yield Finding(cause=Cause.WRONG_FOCAL_LENGTH, first=first, last=last, sentence=text, figures=figures)
    elif lens.get("state") == LensState.GUESS and (sigma is None or sigma >= UNDETERMINED_SIGMA):
        text = f"the focal length is a guess ({start:.0f} px), and the images do not determine it: {lens['reason']}"
        yield Finding(
            cause=Cause.UNKNOWN_FOCAL_LENGTH, first=first, last=last, sentence=text, figures={"assumed_px": start}
        )
