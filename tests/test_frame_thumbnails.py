"""Thumbnails of the frames in which something happened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import pytest
from test_rerun_viewer import frame_event

from relocalizer.errors import OutputError
from slam.bench.recording_cost import RecordingMeter
from slam.events import Event, FrameProcessed
from slam.map.frame_measurement import FrameMeasurement
from slam.map.tracking_status import TrackingState
from slam.run.frame_thumbnails import MOST, FrameThumbnails, thumbnail_path
from slam.run.run_folder import RunFolder

CALM = FrameMeasurement(gain=1.0, changed=0.0, fineness=0.6)


def shown(
    k: int, measurement: FrameMeasurement = CALM, state: TrackingState = TrackingState.TRACKING
) -> FrameProcessed:
    return replace(frame_event(k), measurement=measurement, state=state)


def test_the_first_frame_of_a_loss_and_abrupt_changes_are_kept(tmp_path: Path) -> None:
    thumbnails = FrameThumbnails(RunFolder(tmp_path))
    lost = [shown(k, state=TrackingState.LOST) for k in (3, 4)]
    brighter = shown(6, replace(CALM, gain=1.5))
    blurred, sharp_again = shown(8, replace(CALM, fineness=0.3)), shown(9)
    for event in [shown(1), shown(2), *lost, shown(5), brighter, shown(7), blurred, sharp_again]:
        thumbnails(event)
    assert sorted(path.name for path in (tmp_path / "thumbnails").iterdir()) == [
        "000003.jpg",
        "000006.jpg",
        "000008.jpg",
    ]
    image = cv2.imread(str(thumbnail_path(tmp_path, 3)))
    assert image is not None
    assert image.shape == (240, 320, 3)


def test_a_calm_run_has_no_thumbnails_and_a_wild_one_not_many(tmp_path: Path) -> None:
    calm = FrameThumbnails(RunFolder(tmp_path))
    for k in range(20):
        calm(shown(k))
    assert not (tmp_path / "thumbnails").exists()
    for k in range(3 * MOST):
        calm(shown(k, replace(CALM, changed=0.9)))
    assert len(list((tmp_path / "thumbnails").iterdir())) == MOST


def test_a_folder_that_cannot_be_written_is_an_error_of_the_observer(tmp_path: Path) -> None:
    (tmp_path / "thumbnails").write_text("a file in its place")
    thumbnails = FrameThumbnails(RunFolder(tmp_path))
    with pytest.raises(OutputError, match="thumbnails: cannot be written"):
        thumbnails(shown(1, state=TrackingState.LOST))


def test_the_cost_of_a_recording_is_that_of_the_calls_of_its_viewer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = 100 << 20

    def keep(event: Event) -> None:
        nonlocal memory
        memory += 2 << 20

    monkeypatch.setattr("slam.bench.recording_cost.resident_bytes", lambda: memory)
    meter = RecordingMeter(keep)
    for k in range(20):
        meter(frame_event(k))
    record = tmp_path / "run.rrd"
    record.write_bytes(bytes(300_000))
    cost = meter.cost(record, run_wall_s=10.0)
    assert (cost.frames, cost.bytes, cost.mb_per_100_frames) == (20, 300_000, pytest.approx(1.5))
    assert 0 < cost.share < 0.5
    assert cost.memory_growth_mb == 40
