"""Published sequences through the whole pipeline, where they are; the long ones with -m slow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from whole_runs import ate, play

SEQUENCES = os.environ.get("SLAM_SEQUENCES")
needs_sequences = pytest.mark.skipif(
    not SEQUENCES, reason="SLAM_SEQUENCES does not name the folder of published sequences"
)


@needs_sequences
@pytest.mark.parametrize(
    ("name", "limit", "coverage"),
    [
        pytest.param("7scenes_redkitchen_seq01", 0.05, 0.95, marks=pytest.mark.slow),
        ("tum_fr3_teddy_200", 0.05, 0.95),
        ("strecha_fountain_p11", 0.05, 1.0),
    ],
)
def test_published_sequences_are_followed(name, limit, coverage):
    folder = Path(str(SEQUENCES)) / name
    outcome, _ = play(folder)
    assert len(outcome.result.trajectory) >= coverage * outcome.frames
    assert ate(outcome.result.trajectory, folder) <= limit


@needs_sequences
@pytest.mark.parametrize(
    "name",
    [
        "fox_instant_ngp",
        pytest.param("rtabmap_corridor_loop", marks=pytest.mark.slow),
        pytest.param("kitti07_first160", marks=pytest.mark.slow),
    ],
)
def test_hard_sequences_run_to_the_end_and_every_lost_frame_has_a_reason(name):
    outcome, events = play(Path(str(SEQUENCES)) / name)
    from slam.events import FrameProcessed

    frames = [e for e in events if isinstance(e, FrameProcessed)]
    assert len(frames) == outcome.frames
    assert all(e.reason for e in frames if e.world_from_cam is None)
