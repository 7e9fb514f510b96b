"""What makes map units meters: a distance somebody measured, or the beginning of the ground truth.

Monocular SLAM has one scale that nothing in the images tells. An anchor is a piece of knowledge from outside that
does; a finished run is stretched by it as a whole, poses, keyframes and landmarks alike.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from relocalizer.errors import ConfigError, UserError
from relocalizer.geometry import FloatArray, Similarity
from slam.evaluation.alignment import MATCHES_NEEDED, associate, fit_similarity
from slam.evaluation.trajectory import Trajectory
from slam.result import SlamResult, Units

EXPECTED = "frames:A:B=METRES (a known distance between two frames), or groundtruth:METRES (evaluation only)"
SAME_PLACE = 1e-4  # of the path's length; below it a distance between frames is rounding and noise
MATCH_S = 0.02  # ground truth further away in time than this is of another frame
_NUMBER = r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+"


class ScaleError(UserError):
    """What was to give the scale cannot give it."""


@dataclass(frozen=True, slots=True)
class KnownDistance:
    """The camera centers of two frames (numbers in the source, from 0) are `meters` apart."""

    frame_a: int
    frame_b: int
    meters: float

    @property
    def spec(self) -> str:
        return f"frames:{self.frame_a}:{self.frame_b}={self.meters:g}"

    @property
    def source(self) -> str:
        return f"{self.meters:g} m given between frames {self.frame_a} and {self.frame_b}"

    def expect(self, ground_truth: Trajectory | None) -> None:
        """Nothing is needed of the source."""


@dataclass(frozen=True, slots=True)
class GroundTruthPrefix:
    """The first `meters` of the ground truth's path give the scale; what is measured after them is honest.

    For evaluation only: whoever has ground truth needs no SLAM.
    """

    meters: float

    @property
    def spec(self) -> str:
        return f"groundtruth:{self.meters:g}"

    @property
    def source(self) -> str:
        return f"the first {self.meters:g} m of the ground truth, for evaluation only"

    def expect(self, ground_truth: Trajectory | None) -> None:
        """Raises AnchorError when the source has no ground truth."""
        if ground_truth is None:
            raise ScaleError(
                f"--scale-from {self.spec}: this source has no ground truth; "
                "expected a data set that brings one, or frames:A:B=METRES"
            )


ScaleReference = KnownDistance | GroundTruthPrefix


def parse_scale_reference(text: str) -> ScaleReference | None:
    """What `--scale-from` says; None for an empty text.

    Raises:
        ConfigError: it is none of the forms there are, names one frame twice, or a distance that is not positive.
    """
    if not text:
        return None
    anchor: ScaleReference
    if known := re.fullmatch(rf"frames:([0-9]{{1,12}}):([0-9]{{1,12}})=({_NUMBER})", text):
        anchor = KnownDistance(int(known[1]), int(known[2]), float(known[3]))
        if anchor.frame_a == anchor.frame_b:
            raise ConfigError(f"--scale-from {text}: names frame {anchor.frame_a} twice; expected two frames")
    elif beginning := re.fullmatch(rf"groundtruth:({_NUMBER})", text):
        anchor = GroundTruthPrefix(float(beginning[1]))
    else:
        raise ConfigError(f"--scale-from {text}: expected {EXPECTED}")
    if not 0.0 < anchor.meters < np.inf:
        raise ConfigError(f"--scale-from {text}: expected a distance of more than 0 m")
    return anchor


def in_meters(result: SlamResult, anchor: ScaleReference, ground_truth: Trajectory | None) -> SlamResult:
    """The result with lengths in meters; its graph is stretched in place, so that what is saved of it is metric too.

    The largest segment alone becomes metric: nothing ties the scale of other segments to it.

    Raises:
        AnchorError: the frames have no pose, lie in different segments or at one place, or the ground truth is
            missing or too short.
        ValueError: the graph is not in the units of the result any more, as it was stretched for it before.
    """
    match anchor:
        case KnownDistance():
            meters_per_unit = anchor.meters / _distance(result, anchor)
        case GroundTruthPrefix():
            meters_per_unit = _scale_of_beginning(result.trajectory, anchor, ground_truth)
    name = "meters" if result.segment in result.graph.metric else "map units"
    if name != result.units.name:
        raise ValueError(f"in_meters: the result is in {result.units.name}, but its graph is in {name}")
    stretch = Similarity(np.eye(3), np.zeros(3), meters_per_unit)
    result.graph.scale_to_meters(result.segment, meters_per_unit, anchor.source)
    return replace(
        result,
        trajectory=result.trajectory.transformed(stretch),
        keyframe_trajectory=result.keyframe_trajectory.transformed(stretch),
        online=result.online.transformed(stretch),
        landmark_points=stretch.apply(result.landmark_points),
        units=Units("meters", anchor.source, meters_per_unit),
    )


def _distance(result: SlamResult, anchor: KnownDistance) -> float:
    """Map units between the two frames' camera centers."""
    a, b = (_position(result, frame, anchor) for frame in (anchor.frame_a, anchor.frame_b))
    distance = float(np.linalg.norm(b - a))
    if distance <= SAME_PLACE * result.trajectory.length:
        raise ScaleError(
            f"--scale-from {anchor.spec}: frames {anchor.frame_a} and {anchor.frame_b} are at one place in the map; "
            "name two that the camera moved between"
        )
    return distance


def _position(result: SlamResult, frame: int, anchor: KnownDistance) -> FloatArray:
    row = np.flatnonzero(result.frame_indices == frame)
    if len(row):
        return np.asarray(result.trajectory.positions[row[0]])
    for n, indices in enumerate(result.segment_frame_indices, start=2):
        if frame in indices:
            raise ScaleError(
                f"--scale-from {anchor.spec}: frame {frame} is in part {n} of the map, which nothing ties to "
                f"the first; {_choice(result)}"
            )
    raise ScaleError(f"--scale-from {anchor.spec}: frame {frame} has no pose; {_choice(result)}")


def _choice(result: SlamResult) -> str:
    indices = result.frame_indices
    if len(indices) == 0:
        return "no frame has one"
    return f"name two of the {len(indices)} frames from {indices[0]} to {indices[-1]} that have one in the first part"


def _scale_of_beginning(estimate: Trajectory, anchor: GroundTruthPrefix, truth: Trajectory | None) -> float:
    """Meters a map unit by a similarity between the beginnings of both paths."""
    anchor.expect(truth)
    assert truth is not None
    if not truth.has_times:
        raise ScaleError(
            f"--scale-from {anchor.spec}: the ground truth has no times, so nothing tells which of its poses belong to "
            "which frames"
        )
    i, j = associate(estimate.timestamps_ns, truth.timestamps_ns, max_difference_s=MATCH_S)
    if len(i) < MATCHES_NEEDED:
        raise ScaleError(f"--scale-from {anchor.spec}: {len(i)} poses have a ground truth, {MATCHES_NEEDED} needed")
    walked = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(truth.positions[j], axis=0), axis=1))])
    if walked[-1] < anchor.meters:
        raise ScaleError(
            f"--scale-from {anchor.spec}: the ground truth of the tracked frames is {walked[-1]:.3g} m long; "
            "give a smaller number"
        )
    count = max(MATCHES_NEEDED, 1 + int(np.searchsorted(walked, anchor.meters)))
    truth_from_map = fit_similarity(truth.world_from_cam[j[:count]], estimate.world_from_cam[i[:count]])
    if truth_from_map is None:
        raise ScaleError(
            f"--scale-from {anchor.spec}: the map does not move as the ground truth does there; give a larger number"
        )
    return truth_from_map.scale
