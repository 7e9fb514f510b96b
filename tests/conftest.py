"""What several test files share."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from relocalizer.geometry import rigid
from relocalizer.intrinsics_correction import IntrinsicsCorrection
from slam.cli import main
from slam.evaluation.trajectory import Trajectory
from slam.events import FrameProcessed, Initialized, RunFinished, TrackingLost
from slam.map.frames import Frame
from slam.map.lens_evidence import LensEvidence
from slam.map.slam_map import SlamMap
from slam.map.tracking_status import TrackingState
from slam.progress import no_progress
from slam.result import Units
from slam.sessions.metric_scale import in_meters

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """Runs started in the background inherit signals that are ignored; tests send them, so they count again."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240607)


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder that holds pyproject.toml."""
    return ROOT


def write_images(folder: Path, count: int, *, width: int = 160, height: int = 120) -> Path:
    """A folder of numbered images that slide over one textured wall; made once, the same every time."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(5).integers(0, 256, (height // 4 + 40, width // 4 + 80), dtype=np.uint8)
    wall = cv2.resize(noise, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    for k in range(count):
        left = 2 * (k % 100)
        cv2.imwrite(str(folder / f"{k:05d}.png"), wall[k % 50 : k % 50 + height, left : left + width])
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twelve small images in a folder."""
    return write_images(tmp_path / "images", 12)


class StraightSlam:
    """Stands in for the system: frame k is at (k / 10, 0, 0); the first `waits` frames have no pose.

    `lost` frames have none either; every fifth frame becomes a keyframe of nobody's interest. When all is over it has
    found `lens`, and says how far it is known.
    """

    def __init__(
        self,
        observers: Sequence[Any],
        *,
        waits: int = 2,
        lost: Sequence[int] = (),
        lens: IntrinsicsCorrection | None = None,
        lens_evidence: LensEvidence | None = None,
    ) -> None:
        self._observers, self._waits, self._lost, self._lens = observers, waits, lost, lens or IntrinsicsCorrection()
        self._lens_evidence = lens_evidence or LensEvidence()
        self._tracked: list[tuple[int, int]] = []

    def step(self, frame: Frame) -> None:
        waiting, lost = frame.index < self._waits, frame.index in self._lost
        if lost and frame.index - 1 not in self._lost:
            self._emit(TrackingLost(frame_index=frame.index, timestamp_ns=frame.timestamp_ns, reason="dark"))
        state = TrackingState.INITIALIZING if waiting else TrackingState.LOST if lost else TrackingState.TRACKING
        pose = None if waiting or lost else rigid(np.eye(3), [frame.index / 10, 0, 0])
        if pose is not None:
            self._tracked.append((frame.index, frame.timestamp_ns))
        if frame.index == self._waits:
            self._emit(Initialized(frame_indices=(0, frame.index), landmarks=80, parallax_deg=2.0))
        self._emit(
            FrameProcessed(
                frame=frame,
                state=state,
                reason="too little parallax" if waiting else "dark" if lost else "",
                world_from_cam=pose,
                keyframe_id=0,
                pixels=np.zeros((60, 2), np.float32),
                track_ids=np.arange(60),
                is_inlier=np.arange(60) < 40,
                depth=float("nan") if pose is None else 2.0,
                stage_ms={"track": 1.0 + frame.index, "pose": 2.0},
            )
        )

    def finish(self, *, interrupted: bool = False, on_progress: Callable[[str, int, int], None]) -> Any:
        on_progress("rounds of the final bundle adjustment", 0, 1)
        indices = np.array([index for index, _ in self._tracked], dtype=np.int64)
        poses = np.tile(np.eye(4), (len(indices), 1, 1))
        poses[:, 0, 3] = indices / 10
        trajectory = Trajectory(np.array([t for _, t in self._tracked], dtype=np.int64), poses)
        keyframes = Trajectory(trajectory.timestamps_ns[::5], poses[::5])
        self._emit(
            RunFinished(
                timestamps_ns=trajectory.timestamps_ns,
                frame_indices=indices,
                world_from_cam=poses,
                interrupted=interrupted,
            )
        )
        return SimpleNamespace(
            trajectory=trajectory,
            segments=[],
            segment_frame_indices=[],
            keyframe_trajectory=keyframes,
            frame_indices=indices,
            online=trajectory,
            units=Units(),
            camera=self._lens.camera if self._lens.has_corrections else None,
            lens=self._lens,
            lens_evidence=self._lens_evidence,
            segment_lens_evidence=[],
            reprojection_px=0.5,
        )

    def make_metric(self, reference: Any, ground_truth: Any) -> Any:
        return in_meters(self.finish(on_progress=no_progress), SlamMap(), reference, ground_truth)

    def abort(self) -> Any:
        return self.finish(interrupted=True, on_progress=no_progress)

    def remove_incomplete(self) -> None:
        """Nothing is half made here."""

    def publish(self, event: Any) -> None:
        self._emit(event)

    @property
    def dropped_observers(self) -> list[Any]:
        return []

    def saved_map(self) -> Any:
        return SimpleNamespace(keyframes=())

    def _emit(self, event: Any) -> None:
        for observer in self._observers:
            observer(event)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The last line of standard error."""
        return self.err.strip().splitlines()[-1] if self.err.strip() else ""


@pytest.fixture
def slam_command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run the `slam` command in this process."""

    def call(*arguments: object) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Ended(int(ended.value.code or 0), said.out, said.err)

    return call


@pytest.fixture
def straight_slam(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put `StraightSlam` in the place of the system."""

    def install(**options: Any) -> None:
        def build(config: object, *, observers: Sequence[Any] = (), **_: Any) -> StraightSlam:
            return StraightSlam(observers, **options)

        monkeypatch.setattr("slam.system.Slam.create", build)

    return install
