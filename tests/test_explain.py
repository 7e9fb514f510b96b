"""`slam explain`: faults put into the bundled clip are named with their frames, and a clean clip gets no complaint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import faults
import numpy as np
import pytest
from test_rerun_viewer import finished_event, keyframe_event

from relocalizer.camera import Camera
from relocalizer.geometry import Similarity
from relocalizer.images import Image
from slam.cli.explain import text_of
from slam.config.schema import SlamConfig
from slam.events import (
    EdgeAccepted,
    Event,
    FrameProcessed,
    GraphOptimized,
    Initialized,
    LoopExamined,
    Relocalized,
    TrackingLost,
)
from slam.explain.explanation import explain
from slam.explain.finding import ADVICE, Cause, Finding
from slam.explain.html_page import html_page
from slam.explain.image_faults import spans
from slam.explain.run_record import RunRecord, read_run, record_of
from slam.map.edge_residuals import EdgeResiduals
from slam.map.frame_measurement import FrameMeasurement, Gate
from slam.map.frames import Frame
from slam.map.image_points import MatchedPoints
from slam.map.keyframe_graph import Edge, EdgeKind
from slam.map.tracking_status import TrackingState
from slam.map.tracks import Tracks
from slam.tracking.image_measurement import FrameMeter, gain_between, repetition_of
from slam.tracking.klt import KltTracker

COUNT, WIDTH = 76, 320
CAMERA = Camera(width=320, height=240, fx=232.5, fy=232.5, cx=159.5, cy=119.5)
FAULTY = range(40, 55)
EMPTY: Image = np.zeros((0, 0, 3), np.uint8)


@pytest.fixture(scope="module")
def clip(root: Path) -> list[Image]:
    return faults.read_clip(root / "sequences" / "room_loop" / "video.mp4", COUNT, width=WIDTH)


def frame_of(k: int, *, step_ns: int = 33_333_333, **changes: Any) -> FrameProcessed:
    values: dict[str, Any] = {
        "state": TrackingState.TRACKING, "reason": "", "world_from_cam": None, "keyframe_id": 0,
        "pixels": np.zeros((0, 2), np.float32), "track_ids": np.arange(400), "is_inlier": np.ones(400, bool),
        "depth": np.nan, "stage_ms": {},
    }  # fmt: skip
    frame = Frame(index=k, timestamp_ns=k * step_ns, image=EMPTY, camera=CAMERA)
    return FrameProcessed(frame=frame, **{**values, **changes})


def measured(images: Sequence[Image], times: Sequence[int] | None = None) -> list[FrameProcessed]:
    """Frames as the system measures them, with tracks that are started anew every ten frames and no poses."""
    config = SlamConfig()
    tracker, meter = KltTracker(config.tracks, config.features), FrameMeter()
    events, tracks, before, next_id = [], Tracks.none(), np.zeros((0, 0), np.uint8), 0
    for k, image in enumerate(images):
        gray = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)
        meter.see(gray, tracker.sharpness(gray))
        if len(tracks):
            pixels, found = tracker.follow(before, gray, tracks.pixels, tracks.pixels)
            meter.followed(tracks.pixels, tracks.pixels, pixels, found)
            tracks = Tracks(tracks.ids, pixels).where(found)
        meter.tracked(tracks, CAMERA)
        if k % 10 == 0 or len(tracks) < 50:
            corners = cv2.goodFeaturesToTrack(gray, 120, 0.01, 8)
            corners = np.zeros((0, 2), np.float32) if corners is None else corners.reshape(-1, 2)
            new = Tracks(np.arange(next_id, next_id + len(corners)), corners)
            tracks, next_id = tracks.joined(new), next_id + len(corners)
        index = k if times is None else times[k]
        events.append(frame_of(index, measurement=meter.measurement, track_ids=tracks.ids))
        before = gray
    return events


def findings_of(events: Sequence[Event], **report: Any) -> list[Finding]:
    return list(explain(record_of(events, report, focal_px=CAMERA.mean_focal), "a run").findings)


def with_poses(frames: list[FrameProcessed]) -> list[Event]:
    return [*frames, finished(frames)]


def finished(frames: Sequence[FrameProcessed]) -> Event:
    posed = [event for event in frames if event.state is TrackingState.TRACKING]
    times = np.array([event.frame.timestamp_ns for event in posed], np.int64)
    return replace(finished_event(range(len(posed))), timestamps_ns=times)


# --- faults of the images -----------------------------------------------------------------------------


def test_a_clean_clip_gets_no_complaint(clip):
    assert findings_of(with_poses(measured(clip))) == []


@pytest.mark.parametrize("name", ["blackout", "blur", "exposure jump", "repeated texture", "covered lens"])
def test_a_fault_of_the_images_is_named_with_its_frames(clip, name):
    found = findings_of(with_poses(measured(faults.FAULTS[name](clip, FAULTY))))
    assert [finding.cause for finding in found] == [name], [f.sentence for f in found]
    assert (found[0].first, found[0].last) == (FAULTY.start, FAULTY.stop - 1)
    assert found[0].advice == ADVICE[Cause(name)]


def noise(image: Image, level: Sequence[float], sigma: float) -> Image:
    rng = np.random.default_rng(4)
    return np.clip(rng.normal(0.0, sigma, image.shape) + np.array(level), 0, 255).astype(np.uint8)


def blurred(image: Image, shape: tuple[int, int]) -> Image:
    return np.asarray(cv2.filter2D(image, -1, np.full(shape, 1.0 / (shape[0] * shape[1]), np.float32)), np.uint8)


VARIANTS: list[tuple[Cause, Any]] = [
    (Cause.BLACKOUT, lambda image: noise(image, [4, 4, 4], 3.0)),
    (Cause.BLUR, lambda image: blurred(image, (15, 1))),
    (Cause.BLUR, lambda image: blurred(image, (1, 9))),
    (Cause.BLUR, lambda image: np.asarray(cv2.GaussianBlur(image, (0, 0), 3), np.uint8)),
    (Cause.EXPOSURE_JUMP, lambda image: cv2.convertScaleAbs(image, alpha=0.5)),
    (Cause.EXPOSURE_JUMP, lambda image: cv2.convertScaleAbs(image, alpha=1.35)),
    (Cause.EXPOSURE_JUMP, lambda image: cv2.convertScaleAbs(image, alpha=1.0, beta=60)),
    (Cause.COVERED_LENS, lambda image: noise(image, [30, 30, 30], 1.5)),
    (Cause.COVERED_LENS, lambda image: noise(image, [40, 50, 170], 1.5)),
    (Cause.COVERED_LENS, lambda image: np.where((np.arange(240) > 96)[:, None, None], 18, image).astype(np.uint8)),
    (Cause.REPEATED_TEXTURE, lambda image: np.tile(cv2.resize(image, (64, 60)), (4, 5, 1))),
]


@pytest.mark.slow
@pytest.mark.parametrize("clip_name", ["room_loop", "room_revisit"])
@pytest.mark.parametrize("number", range(len(VARIANTS)))
def test_other_faults_of_the_same_kinds_are_named_too(number, clip_name, root):
    cause, change = VARIANTS[number]
    images = faults.read_clip(root / "sequences" / clip_name / "video.mp4", COUNT, width=WIDTH)
    [found] = findings_of(with_poses(measured(faults.changed(images, range(40, 52), lambda image, k: change(image)))))
    assert (found.cause, found.first, found.last) == (cause, 40, 51)


def test_a_darker_exposure_that_stays_is_one_jump(clip):
    [found] = findings_of(with_poses(measured(faults.exposure_jump(clip, range(40, COUNT), 0.6))))
    assert (found.cause, found.first, found.last) == (Cause.EXPOSURE_JUMP, 40, 40)
    assert found.figures["gain"] == pytest.approx(0.6, abs=0.03)


def test_a_camera_that_only_turns_is_named_with_its_frames(clip):
    turning = range(30, 75)
    images = faults.pure_rotation(clip[:75], turning, deg_per_frame=1.2)
    [found] = findings_of(with_poses(measured(images)))
    assert found.cause is Cause.PURE_ROTATION
    assert abs(found.first - turning.start) <= 8
    assert abs(found.last - turning.stop + 1) <= 5
    assert found.figures["turned_deg"] == pytest.approx(1.2 * 45, rel=0.2)


def test_dropped_frames_are_seen_in_the_motion_where_the_times_do_not_tell(clip):
    [found] = findings_of(with_poses(measured(faults.frames_dropped(clip, range(40, 46)))))
    assert (found.cause, found.first, found.last) == (Cause.DROPPED_FRAMES, 39, 40)
    assert found.figures["missing"] == pytest.approx(6, abs=2)


def test_dropped_frames_are_seen_in_the_times(clip):
    kept = [k for k in range(COUNT) if k not in range(40, 46)]
    found = findings_of(with_poses(measured([clip[k] for k in kept], kept)))
    assert [(f.cause, f.first, f.last, f.figures["missing"]) for f in found] == [(Cause.DROPPED_FRAMES, 39, 46, 6)]


def test_a_wall_without_texture_is_said_where_it_is_long(clip):
    wall = [np.full_like(clip[0], 170) for _ in range(40)]
    turned = [np.hstack([clip[39][:, k:], wall[0][:, :k]]) for k in range(16, WIDTH, 16)]
    frames = measured([*clip[:40], *turned, *wall])
    found = findings_of([replace(f, track_ids=np.arange(20)) if k > 55 else f for k, f in enumerate(frames)])
    causes = {f.cause for f in found}
    assert Cause.FEW_FEATURES in causes
    assert Cause.COVERED_LENS not in causes


def test_single_photographs_of_different_scenes_are_no_faults(clip):
    rng = np.random.default_rng(2)
    photographs = [np.roll(clip[(37 * k) % COUNT], rng.integers(20, 300, 2), axis=(0, 1)) for k in range(30)]
    assert [f.cause for f in findings_of(with_poses(measured(photographs)))] == []


def test_the_gain_is_the_factor_of_the_brightness():
    rng = np.random.default_rng(1)
    before = rng.uniform(30, 120, (6, 8)).astype(np.float32)
    gain, changed = gain_between(before, 1.5 * before)
    assert (gain, changed) == (pytest.approx(1.5, abs=0.01), 0.0)
    _, changed = gain_between(before, np.where(np.arange(8) < 5, before, 240).astype(np.float32))
    assert changed == pytest.approx(3 / 8)


def test_an_edge_alone_is_no_repetition():
    image = np.full((240, 320), 60, np.uint8)
    image[:, 160:] = 200
    assert repetition_of(image) < 0.2
    checks = np.kron(np.indices((12, 16)).sum(axis=0) % 2, np.ones((20, 20))).astype(np.uint8) * 160
    assert repetition_of(checks) > 0.8


def test_an_image_too_small_to_measure_is_left_out():
    meter = FrameMeter()
    meter.see(np.zeros((0, 0), np.uint8), 0.0)
    meter.tracked(Tracks.none(), CAMERA)
    assert np.isnan(meter.measurement.brightness)


def test_a_span_bridges_short_gaps():
    assert spans(np.array([0, 1, 1, 0, 1, 0, 0, 0, 1], bool), gap=1) == [(1, 4), (8, 8)]


# --- faults of the map --------------------------------------------------------------------------------


def a_run(lost: range = range(0), **report: Any) -> tuple[list[FrameProcessed], RunRecord]:
    """Sixty plain frames, some of them lost."""
    plain = FrameMeasurement(
        brightness=100, sharpness=900, fineness=0.6, flat=0.0, dark=0.0, gain=1.0, changed=0.0, correlation=1.0,
        followed=0.98, moved_px=5.0, surprise_px=0.5,
    )  # fmt: skip
    frames = [
        frame_of(k, measurement=plain, state=TrackingState.LOST if k in lost else TrackingState.TRACKING)
        for k in range(60)
    ]
    return frames, record_of([*frames, finished(frames)], report, focal_px=500.0)


def test_a_loss_is_reported_with_its_frames_and_its_cause():
    frames, _ = a_run(range(20, 26))
    for k in range(20, 24):
        dark = replace(frames[k].measurement, brightness=1.0, dark=1.0, sharpness=0.1, flat=1.0)  # type: ignore[type-var]
        frames[k] = replace(frames[k], measurement=dark)
    lost = TrackingLost(frame_index=20, timestamp_ns=0, reason="0 landmarks tracked, 15 needed")
    back = Relocalized(frame_index=26, timestamp_ns=0, keyframe_id=2, inliers=50, frames_lost=6)
    found = findings_of([*frames[:20], lost, *frames[20:26], back, *frames[26:], finished(frames)])
    assert [(f.cause, f.first, f.last, f.because) for f in found] == [
        (Cause.BLACKOUT, 20, 23, ()),
        (Cause.LOSS, 20, 25, (Cause.BLACKOUT,)),
    ]
    assert "until the camera was relocalized: because of blackout" in found[1].sentence
    assert found[1].advice == ADVICE[Cause.BLACKOUT]


def test_a_loss_without_a_cause_says_so():
    frames, _ = a_run(range(20, 60))
    lost = TrackingLost(frame_index=20, timestamp_ns=0, reason="9 landmarks tracked, 15 needed")
    [found] = findings_of([*frames[:20], lost, *frames[20:], finished(frames)])
    assert found.sentence == (
        "tracking was lost for 40 frames, to the end: no cause was seen in the images (9 landmarks tracked, 15 needed)"
    )


def test_a_run_of_an_older_version_that_was_killed_is_explained_as_far_as_it_goes():
    frames = [frame_of(k) for k in range(20)]
    record = record_of([*frames, finished([])], {"status": "running"}, focal_px=500.0)
    explanation = explain(record, "old")
    assert explanation.findings == ()
    assert explanation.coverage == (1.0,) * 20
    assert len(explanation.remarks) == 2
    assert "note: the run is of a version that measured no images" in text_of(explanation)


def test_a_weak_beginning_is_reported():
    frames, _ = a_run()
    weak = Initialized(frame_indices=(0, 4), landmarks=50, parallax_deg=0.6)
    [found] = findings_of([weak, *frames, finished(frames)])
    assert (found.cause, found.first, found.last) == (Cause.WEAK_INITIALIZATION, 0, 4)


def test_a_start_without_poses_is_reported_with_its_reason():
    frames, _ = a_run()
    waiting = [
        replace(f, state=TrackingState.INITIALIZING, reason=f"tracks moved {k}.0 px, 24.0 needed", camera_rests=True)
        for k, f in enumerate(frames[:30])
    ]
    [found] = findings_of([*waiting, *frames[30:], finished(frames[30:])])
    assert (found.cause, found.first, found.last, found.because) == (Cause.ROLLING_START, 0, 29, (Cause.STILL_CAMERA,))
    assert "tracks moved 29.0 px, 24.0 needed" in found.sentence


def test_a_focal_length_that_the_footage_contradicts_is_reported():
    lens = {
        "state": "contradicted", "focal_px": {"start": 600.0, "final": 600.0, "wanted": 500.0}, "focal_sigma": 0.01,
        "reason": "the footage wants a focal length 0.83 times as long",
    }  # fmt: skip
    _, record = a_run(lens=lens)
    [found] = explain(record, "a run").findings
    assert found.cause is Cause.WRONG_FOCAL_LENGTH
    assert (found.figures["given_px"], found.figures["wanted_px"]) == (600.0, 500.0)


@pytest.mark.parametrize("wanted", [None, 603.0])
def test_a_calibration_that_is_wrong_in_something_else_is_reported_without_a_focal_length(wanted: float | None):
    lens = {
        "state": "contradicted", "focal_px": {"start": 600.0, "final": 600.0, "wanted": wanted}, "focal_sigma": None,
        "reason": "the footage wants an fx of 0.75 times fy",
    }  # fmt: skip
    _, record = a_run(lens=lens)
    [found] = explain(record, "a run").findings
    assert found.cause is Cause.WRONG_FOCAL_LENGTH
    assert found.sentence == "the given calibration does not fit: the footage wants an fx of 0.75 times fy"


def loop_examined(i: int, j: int, *gates: tuple[str, float, float, bool], accepted: bool = False) -> LoopExamined:
    tests = tuple(Gate(name=n, value=v, limit=m, passed=p) for n, v, m, p in gates)
    return LoopExamined(
        frame_index=2 * j, i=i, j=j, is_accepted=accepted, reason="", gates=tests, matches=MatchedPoints.none()
    )


def test_refused_loops_are_counted_by_gate_and_places_that_look_alike_are_reported():
    frames, _ = a_run()
    keyframes = [keyframe_event(n, 2 * n) for n in range(25)]
    few = loop_examined(0, 20, ("similarity", 0.3, 0.2, True), ("points matched", 9, 15, False))
    alike = loop_examined(1, 24, ("landmarks that agree", 60, 30, True), ("chi-square from the map", 99, 24.3, False))
    record = record_of([*keyframes, few, few, alike, *frames, finished(frames)], {}, focal_px=500.0)
    explanation = explain(record, "a run")
    assert explanation.refused == {"points matched": 2, "chi-square from the map": 1}
    [found] = explanation.findings
    assert (found.cause, found.first, found.last, found.keyframes) == (Cause.SIMILAR_PLACES, 2, 48, (1, 24))
    accepted = loop_examined(2, 23, accepted=True)
    record = record_of([*keyframes, alike, accepted, *frames, finished(frames)], {}, focal_px=500.0)
    assert explain(record, "a run").findings == ()


def test_the_scale_drift_that_loops_corrected_is_reported():
    frames, _ = a_run()
    keyframes = [keyframe_event(n, 2 * n, Similarity.identity()) for n in range(20)]
    loop = Edge(i=0, j=19, i_from_j=Similarity.identity(), sigmas=np.full(7, 0.1), kind=EdgeKind.LOOP)
    poses = {n: Similarity(np.eye(3), np.zeros(3), 1.0 + 0.01 * n) for n in range(20)}
    solved = GraphOptimized(frame_index=40, world_from_keyframe=poses, error_before=1.0, error_after=0.1, cause="loop")
    begun = Initialized(frame_indices=(0, 1), landmarks=300, parallax_deg=2.0)
    events = [begun, *keyframes, EdgeAccepted(edge=loop, frame_index=38), solved, *frames, finished(frames)]
    [found] = findings_of(events)
    assert (found.cause, found.first, found.last) == (Cause.SCALE_DRIFT, 0, 38)
    assert found.figures["drift"] == pytest.approx(0.19, abs=0.001)


def test_a_loop_that_the_map_contradicts_is_reported():
    frames, _ = a_run()
    keyframes = [keyframe_event(n, 2 * n) for n in range(20)]
    ends = np.array([[0, 1], [1, 19]], np.int64)

    def solved(squared: float, weight: float) -> GraphOptimized:
        residuals = EdgeResiduals(ends, np.array([False, True]), np.array([0.4, squared]), np.array([1.0, weight]))
        return GraphOptimized(
            frame_index=40, world_from_keyframe={}, error_before=1.0, error_after=0.1, cause="", after=residuals
        )

    def found(squared: float, weight: float = 1.0) -> list[Finding]:
        return findings_of([*keyframes, solved(squared, weight), *frames, finished(frames)])

    assert found(30.0) == found(9000.0, weight=0.0) == []  # within reach, or left out by the optimizer
    [unfitting] = found(9000.0)
    assert (unfitting.cause, unfitting.first, unfitting.last) == (Cause.UNFITTING_LOOP, 2, 38)


# --- what is written ----------------------------------------------------------------------------------


def test_the_explanation_is_json_and_a_page_without_other_files(tmp_path):
    frames, _ = a_run(range(20, 26))
    lost = TrackingLost(frame_index=20, timestamp_ns=0, reason="<dark> & lost")
    record = record_of([*frames[:20], lost, *frames[20:], finished(frames)], {}, focal_px=500.0)
    explanation = explain(record, "desk")
    assert json.loads(json.dumps(explanation.to_dict()))["findings"][0]["cause"] == "tracking lost"
    jpeg = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    page = html_page(explanation, record, keyframe_jpeg=lambda k: None, frame_jpeg=lambda k: jpeg if k == 20 else None)
    assert page.count("data:image/jpeg;base64,") == 1
    assert "&lt;dark&gt; &amp; lost" in page
    assert 'src="http' not in page
    assert "href=" not in page
    assert "frames 20 to 59: tracking lost" in text_of(explanation)


# --- whole runs ---------------------------------------------------------------------------------------

RANGES = {
    "blackout": range(100, 110), "blur": range(100, 112), "exposure jump": range(100, 130),
    "dropped frames": range(100, 112), "repeated texture": range(100, 125), "pure rotation": range(100, 150),
    "covered lens": range(100, 115),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", [*RANGES, "wrong focal length", "clean"])
def test_eight_faults_in_the_bundled_clip(name, root, tmp_path, slam_command):
    """Each is named with the right frames, and nothing else but what follows from it."""
    clip = root / "sequences" / "room_loop"
    images = faults.read_clip(clip / "video.mp4", 180)
    if name in RANGES:
        images = faults.FAULTS[name](images, RANGES[name])
    focal = 1.2 if name == "wrong focal length" else 1.0
    source = faults.write_images(tmp_path / "clip", images, clip / "camera.yaml", focal=focal)
    assert slam_command("run", source, "-o", tmp_path / "run", "-q").code in (0, 1)
    found = explain(read_run(tmp_path / "run"), name).findings
    by_cause = {finding.cause: finding for finding in found}
    follow = {Cause.LOSS, Cause.UNJOINED_MAPS, Cause.WEAK_INITIALIZATION}
    if name == "pure rotation":
        follow.add(Cause.DROPPED_FRAMES)  # the clip continues where it would have been without the turn: the view jumps
    if name == "clean":
        assert found == ()
        return
    assert set(by_cause) - follow == {Cause(name)}, [f.sentence for f in found]
    first, last = by_cause[Cause(name)].first, by_cause[Cause(name)].last
    if name == "wrong focal length":
        assert by_cause[Cause(name)].figures["wanted_px"] == pytest.approx(465.0, rel=0.03)
    elif name == "dropped frames":
        assert (first, last) == (99, 100)
    else:
        slack = 8 if name == "pure rotation" else 0
        assert abs(first - RANGES[name].start) <= slack
        assert abs(last - RANGES[name].stop + 1) <= slack
    if Cause.LOSS in by_cause:
        assert by_cause[Cause.LOSS].because[0] == name
