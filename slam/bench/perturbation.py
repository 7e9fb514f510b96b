"""Stability: the same run on images that differ by less than anybody sees, and how far the results are apart.

The system is deterministic, so a run repeats to the last bit and says nothing about luck. Images with noise of one gray
level, images encoded again as JPEG, and a run that begins a frame later show the same to a person; results that differ
by much on them are accidents. No files are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from relocalizer.errors import TrajectoryError
from relocalizer.images import Image
from slam.bench.complete_run import CompleteRun, run_completely
from slam.config.schema import SlamConfig
from slam.evaluation.metrics import Evaluation, evaluate
from slam.input.frame_source import FrameSource, RereadableSource

if TYPE_CHECKING:
    from slam.input.rectification import GivenCamera
    from slam.map.frames import Frame

NOISE_SIGMA = 1.0  # gray levels
JPEG_QUALITY = 95  # of the first such run; one less in each later one


class Kind(StrEnum):
    """How the images of a run differ."""

    UNCHANGED = "unchanged"
    NOISE = "noise"
    JPEG = "JPEG"
    LATER = "begun later"


@dataclass(frozen=True, slots=True)
class Perturbation:
    """A kind of perturbation and how often it was used before, which decides its seed, its quality or its delay."""

    kind: Kind
    repeat: int = 0

    @property
    def name(self) -> str:
        """In words."""
        detail = {
            Kind.UNCHANGED: "",
            Kind.NOISE: f", seed {self.repeat}",
            Kind.JPEG: f", quality {self.quality}",
            Kind.LATER: f" by {self.delay} frame{'s' * (self.delay > 1)}",
        }
        return f"{self.kind}{detail[self.kind]}"

    @property
    def delay(self) -> int:
        """Number of images left out at the beginning."""
        return self.repeat + 1 if self.kind is Kind.LATER else 0

    @property
    def quality(self) -> int:
        """JPEG quality."""
        return JPEG_QUALITY - self.repeat

    def apply(self, image: Image, position: int) -> Image:
        """The image (H, W, 3) as this run sees it; `position` in the source seeds the noise."""
        if self.kind is Kind.NOISE:
            rng = np.random.default_rng([self.repeat, position])
            noisy = image + NOISE_SIGMA * rng.standard_normal(image.shape, dtype=np.float32)
            return np.asarray(np.clip(np.rint(noisy), 0, 255), np.uint8)
        if self.kind is Kind.JPEG:
            bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
            _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, self.quality])
            decoded = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), np.uint8)
            return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), np.uint8)
        return image


def perturbations(count: int) -> list[Perturbation]:
    """`count` perturbations, the kinds in turn."""
    kinds = (Kind.NOISE, Kind.JPEG, Kind.LATER)
    return [Perturbation(kinds[k % len(kinds)], k // len(kinds)) for k in range(count)]


class PerturbedSource:
    """Another source whose images are perturbed."""

    def __init__(self, source: FrameSource, perturbation: Perturbation) -> None:
        self._source, self._perturbation = source, perturbation
        self.name, self.description = source.name, source.description
        self.camera, self.calibration, self.mask = source.camera, source.calibration, source.mask
        self.length, self.ground_truth = source.length, source.ground_truth
        self.skipped, self.dropped = source.skipped, source.dropped

    def __iter__(self) -> Iterator[Frame]:
        for frame in self._source:
            yield replace(frame, image=self._perturbation.apply(frame.image, frame.index))

    @property
    def can_be_reread(self) -> bool:
        return isinstance(self._source, RereadableSource) and self._source.can_be_reread

    def random_access(self) -> AbstractContextManager[Callable[[int], Image | None]]:
        """A reader of single perturbed images by their position, as that of the source."""
        return self._random_access()

    @contextmanager
    def _random_access(self) -> Iterator[Callable[[int], Image | None]]:
        with self._rereadable().random_access() as read:

            def perturbed(position: int) -> Image | None:
                image = read(position)
                return None if image is None else self._perturbation.apply(image, position)

            yield perturbed

    def with_calibration(self, calibration: GivenCamera) -> PerturbedSource:
        """The same perturbed images read as images of another camera."""
        return PerturbedSource(self._rereadable().with_calibration(calibration), self._perturbation)

    def _rereadable(self) -> RereadableSource:
        if not isinstance(self._source, RereadableSource):
            raise TypeError(f"{self.name}: the images of this source cannot be read twice")
        return self._source

    def close(self) -> None:
        self._source.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class PerturbedRow:
    """Result of one run.

    Attributes:
        reason: why the result is unusable or could not be evaluated; empty otherwise.
        coverage: share of the frames with a pose in the largest map.
        maps: number of maps that were not joined.
        losses: number of times that tracking was lost.
        ate_sim3: RMSE in the ground truth's unit; None without ground truth.
        rotation_deg: RMSE of the orientations after the alignment; None without ground truth.
        cpu_s: CPU time of all threads, seconds.
    """

    name: str
    reason: str
    frames: int
    coverage: float
    maps: int
    keyframes: int
    loops: int
    losses: int
    ate_sim3: float | None
    rotation_deg: float | None
    cpu_s: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Spread:
    """Smallest, median and largest value of a figure, over the runs that have it."""

    least: float
    median: float
    most: float


FIGURES = ("ate_sim3", "rotation_deg", "coverage", "maps", "keyframes", "loops", "losses", "cpu_s")


def spreads(rows: Sequence[PerturbedRow]) -> dict[str, Spread]:
    """Spread of each figure over runs, without the figures that no run has."""
    found = {}
    for figure in FIGURES:
        values = [float(value) for row in rows if (value := getattr(row, figure)) is not None]
        if values:
            found[figure] = Spread(min(values), float(np.median(values)), max(values))
    return found


def measure_perturbed(
    config: SlamConfig,
    open_frames: Callable[[int], FrameSource],
    count: int,
    *,
    on_run: Callable[[str, int, int], None] | None = None,
) -> list[PerturbedRow]:
    """Run SLAM on the unchanged images and on `count` perturbations. Ctrl-C returns the rows measured so far.

    Args:
        open_frames: opens the source again for every run, with a number of images left out at its beginning.
        on_run: called before each run with its name, its number from 1, and the number of runs.

    Raises:
        UserError: as `run_completely`.
    """
    rows: list[PerturbedRow] = []
    everything = [Perturbation(Kind.UNCHANGED), *perturbations(count)]
    for number, perturbation in enumerate(everything, start=1):
        if on_run:
            on_run(perturbation.name, number, len(everything))
        run = run_completely(config, PerturbedSource(open_frames(perturbation.delay), perturbation))
        if run.outcome.interrupted:
            break
        rows.append(_row(perturbation.name, run))
    return rows


def _row(name: str, run: CompleteRun) -> PerturbedRow:
    errors, unmeasured = _errors(run)
    result = run.outcome.result
    rotation = None if errors is None or errors.orientation_deg is None else errors.orientation_deg.rmse
    return PerturbedRow(
        name=name,
        reason=run.reason or unmeasured,
        frames=run.outcome.frames,
        coverage=len(result.trajectory) / run.outcome.frames,
        maps=(len(result.trajectory) > 0) + len(result.segments),
        keyframes=len(result.keyframe_trajectory),
        loops=run.statistics.loops_accepted,
        losses=len(run.statistics.lost),
        ate_sim3=None if errors is None else errors.ate_sim3.rmse,
        rotation_deg=rotation,
        cpu_s=run.cpu_s,
    )


def _errors(run: CompleteRun) -> tuple[Evaluation | None, str]:
    """The errors of the largest map, and the reason if they cannot be computed."""
    estimate = run.outcome.result.trajectory
    if run.truth is None or not len(estimate):
        return None, ""
    try:
        return evaluate(estimate, run.truth, expected=run.outcome.expected_ns), ""
    except TrajectoryError as error:
        return None, str(error)
