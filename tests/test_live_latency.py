"""`slam bench --live`: a file fed as a camera would, the age of the poses and what was dropped."""

from __future__ import annotations

import gc
import json
import sys

import cv2
import numpy as np
import pytest
from oracle import FRAME_NS, OracleWorld, room_path, room_points
from test_live import FakeCamera, live
from test_run_failures import OracleSource, oracle_build

from relocalizer.errors import SequenceError
from slam.bench.live_latency import AgeMeter, PacedCapture, live_stream, measure_live
from slam.config.schema import SlamConfig
from slam.input.live_stream import with_mapping_thread
from slam.run.live_threads import SWITCH_INTERVAL_S, shared_by_tracking_and_mapping

FRAMES = 40


@pytest.fixture(scope="module")
def world() -> OracleWorld:
    made = OracleWorld(room_path(240)[:FRAMES], room_points(np.random.default_rng(3), 1000))
    made.descriptors[:] = np.abs(made.descriptors)  # as a map can keep them
    return made


def test_images_do_not_come_before_their_time(world) -> None:
    for fps, interval in ((None, FRAME_NS), (500.0, 2_000_000)):
        capture = PacedCapture(OracleSource(world), fps)
        while len(capture.arrived_ns) < 6:
            assert capture.read()[0]
        since_first = np.array(capture.arrived_ns) - capture.arrived_ns[0]
        assert (since_first >= np.arange(6) * interval - 1000).all()
        assert capture.timestamps_ns == [k * FRAME_NS for k in range(6)]


def test_the_last_image_is_followed_by_none(world) -> None:
    capture = PacedCapture(OracleSource(world), 1e6)
    assert [capture.read()[0] for _ in range(FRAMES + 1)] == [True] * FRAMES + [False]
    assert capture.fps > 0


def test_a_file_is_followed_as_a_camera_would_be(world, monkeypatch) -> None:
    monkeypatch.setattr("slam.system.Slam.create", oracle_build(world))
    found = measure_live(SlamConfig(), OracleSource(world), 20.0)
    assert (found.images, found.reason, found.interrupted) == (FRAMES, "", False)
    assert found.frames + found.dropped == FRAMES
    assert 0 <= found.dropped_tracking <= found.dropped
    assert 2 < found.tracked <= found.frames
    ages = list(found.age_ms.values())
    assert list(found.age_ms) == ["p50", "p95", "p99", "max"]
    assert ages[0] > 0
    assert ages == sorted(ages)
    # Poses are compared with the ground truth by the file's times, not by those at which the images came.
    assert found.ate is not None
    assert found.ate < 0.01 * world.ground_truth.length
    json.loads(json.dumps(found.to_dict(), allow_nan=False))


def test_without_a_pose_there_is_no_age_and_nothing_was_dropped_after_one() -> None:
    meter = AgeMeter([])
    assert meter.percentiles() == {}
    assert meter.dropped_since_first_pose(10) == 0


def test_a_live_stream_is_no_file_to_be_fed_as_one() -> None:
    stream = live(FakeCamera())
    with pytest.raises(SequenceError, match="a camera is measured by `slam run`"):
        live_stream(stream, None)
    stream.close()


def test_only_a_live_stream_is_mapped_live_unless_the_configuration_says_otherwise(
    world,
) -> None:
    stream, _ = live_stream(OracleSource(world), None)
    asked = SlamConfig.model_validate({"tracking": {"mapping_thread": "fixed"}})
    assert with_mapping_thread(SlamConfig(), stream).tracking.mapping_thread == "live"
    assert with_mapping_thread(asked, stream) == asked
    assert with_mapping_thread(SlamConfig(), OracleSource(world)) == SlamConfig()
    stream.close()


def test_only_a_live_stream_shares_the_processor_with_the_mapping_and_only_meanwhile(world) -> None:
    before, frozen = (sys.getswitchinterval(), cv2.getNumThreads()), gc.get_freeze_count()
    stream, _ = live_stream(OracleSource(world), None)
    with shared_by_tracking_and_mapping(stream):
        assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL_S)
        assert cv2.getNumThreads() == max(1, before[1] // 2)
        assert gc.get_freeze_count() > frozen
    stream.close()
    assert gc.get_freeze_count() == frozen
    assert (sys.getswitchinterval(), cv2.getNumThreads()) == before
    with shared_by_tracking_and_mapping(OracleSource(world)):
        assert (sys.getswitchinterval(), cv2.getNumThreads()) == before


def test_the_command_prints_ages_and_what_was_dropped(images, slam_command, straight_slam) -> None:
    straight_slam()
    ended = slam_command("bench", images, "--live", "--rate", 20)
    assert ended.code == 0
    rows = {line[:14].strip(): line for line in ended.out.splitlines()}
    assert "12 at " in rows["images"]
    assert " ms p99" in rows["age of a pose"]
    assert "after the first pose" in rows["dropped"]
    assert "feeding 12 images at 20 per second" in ended.err
    found = json.loads(slam_command("bench", images, "--live", "--rate", 20, "--json").out)
    assert (found["images"], found["frames"] + found["dropped"], found["ate"]) == (12, 12, None)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--rate", 30], "--rate is the rate of --live"),
        (["--live", "--ablation"], "--live measures one run over a SOURCE, without --ablation, --perturb and --record"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(images, slam_command, options, complaint) -> None:
    ended = slam_command("bench", images, *options)
    assert ended.code == 2
    assert complaint in ended.complaint
