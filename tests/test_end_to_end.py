"""Real images through the whole pipeline: the bundled sequence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from whole_runs import ate, play

from relocalizer.camera import load_camera
from slam.config.schema import InputConfig, SlamConfig
from slam.evaluation.trajectory import Trajectory
from slam.evaluation.trajectory_files import read_tum
from slam.events import EdgeAccepted, Initialized
from slam.input.frame_source import FrameSource
from slam.input.open_source import open_source
from slam.map.frames import Frame
from slam.map.keyframe_graph import EdgeKind
from slam.run.runner import run
from slam.system import Slam

ROOT = Path(__file__).parents[1]
BUNDLED = ROOT / "sequences" / "room_loop"


@pytest.fixture(scope="module")
def bundled():
    return play(BUNDLED)


def test_every_frame_of_the_bundled_room_has_a_pose(bundled):
    outcome, events = bundled
    [begun] = [e for e in events if isinstance(e, Initialized)]
    after = np.arange(begun.frame_indices[0], outcome.frames)
    assert np.array_equal(np.intersect1d(outcome.result.frame_indices, after), after)


def test_the_bundled_room_is_mapped_to_a_hundredth_of_the_path(bundled):
    outcome, _ = bundled
    truth = read_tum(BUNDLED / "groundtruth.txt")
    assert ate(outcome.result.trajectory, BUNDLED) < 0.01 * truth.length


def test_the_loop_of_the_bundled_room_is_found_and_true(bundled):
    outcome, events = bundled
    truth = read_tum(BUNDLED / "groundtruth.txt")
    keyframes = outcome.result.graph.keyframes
    loops = [e.edge for e in events if isinstance(e, EdgeAccepted) and e.edge.kind is EdgeKind.LOOP]
    assert loops
    for edge in loops:
        a, b = (truth.world_from_cam[keyframes[k].frame_index] for k in (edge.i, edge.j))
        true = np.linalg.inv(a) @ b
        angle = np.arccos(np.clip((np.trace(true[:3, :3].T @ edge.i_from_j.rotation) - 1) / 2, -1, 1))
        assert np.degrees(angle) < 2.0


def test_a_video_without_a_camera_tells_its_focal_length():
    outcome, _ = play(BUNDLED / "video.mp4", max_frames=150)
    given, truth = load_camera(BUNDLED / "camera.yaml"), read_tum(BUNDLED / "groundtruth.txt")
    assert outcome.result.lens.has_corrections
    assert outcome.result.camera.fx == pytest.approx(given.fx, rel=0.01)  # 554 is assumed, a fifth too long
    length = Trajectory(truth.timestamps_ns[:150], truth.world_from_cam[:150]).length
    assert ate(outcome.result.trajectory, BUNDLED) < 0.005 * length


def test_a_camera_file_that_is_right_stays(bundled):
    outcome, _ = bundled
    assert not outcome.result.lens.has_corrections
    assert outcome.result.camera == load_camera(BUNDLED / "camera.yaml")


class Distorted:
    """A source whose images a lens bends that its camera does not know."""

    def __init__(self, source: FrameSource, radial: tuple[float, float]) -> None:
        self._source, self._radial = source, radial

    def __getattr__(self, name: str) -> object:
        return getattr(self._source, name)

    def __iter__(self) -> Iterator[Frame]:
        camera, none = self._source.camera, np.eye(3)
        size, lens = (camera.width, camera.height), np.array([*self._radial, 0.0, 0.0])
        x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
        seen = np.stack([x, y], axis=-1).reshape(-1, 1, 2).astype(np.float32)
        at = cv2.undistortPoints(seen, camera.matrix, lens, R=none, P=camera.matrix).reshape(size[1], size[0], 2)
        for frame in self._source:
            yield replace(frame, image=cv2.remap(frame.image, at[..., 0], at[..., 1], cv2.INTER_LINEAR))


def test_a_lens_that_the_camera_file_does_not_know_is_found():
    source = Distorted(open_source(str(BUNDLED), config=InputConfig(), max_frames=150), (-0.03, 0.0))
    result = run(source, Slam.create(SlamConfig())).result
    truth = read_tum(BUNDLED / "groundtruth.txt")
    length = Trajectory(truth.timestamps_ns[:150], truth.world_from_cam[:150]).length
    assert ate(result.trajectory, BUNDLED) < 0.003 * length
    found = result.lens.calibration(source.calibration)
    assert found.model == "radtan"
    at_the_side = np.array([[0.55, 0.0]])  # of the corner the images say little
    true = replace(source.camera, model="radtan", distortion=(-0.03, 0.0, 0.0, 0.0))
    assert found.distorted(at_the_side) == pytest.approx(true.distorted(at_the_side), abs=0.5)


def test_the_same_frames_give_the_same_bytes():
    first, second = (play(BUNDLED, max_frames=90)[0].result.trajectory for _ in range(2))
    assert first.world_from_cam.tobytes() == second.world_from_cam.tobytes()
