"""Metric scale of a finished run: from a measured distance, markers, a GPS track, depth images, or the ground truth.

The scale of monocular SLAM is unobservable from the images. A scale reference determines it; poses, keyframes and
landmarks of the finished run are scaled by the same factor.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from relocalizer.errors import ConfigError
from relocalizer.geometry import MAX_COORDINATE, FloatArray, Similarity
from relocalizer.images import Image
from slam.evaluation.alignment import MATCHES_NEEDED, associate, fit_similarity
from slam.evaluation.trajectory import Trajectory
from slam.map.slam_map import SlamMap
from slam.result import SlamResult, Units
from slam.sessions.depth_scale import DepthFolder
from slam.sessions.gps_scale import GpsTrack, parse_gps_track
from slam.sessions.marker_scale import MarkerSize
from slam.sessions.scale_estimate import FinishedMap, ScaleEstimate
from slam.sessions.scale_estimate import ScaleError as ScaleError

EXPECTED = (
    "frames:A:B=METERS (a known distance between two frames), marker:DICTIONARY:METERS (side of ArUco or AprilTag "
    "markers), gps:FILE or gps:FILE@SECONDS (CSV or GPX), depth:FOLDER (RGB-D data set), or groundtruth:METERS "
    "(evaluation only)"
)
MIN_DISTANCE = 1e-4  # minimum distance between two frames to determine the scale, as a fraction of the path's length
MATCH_S = 0.02  # maximum time difference between a frame and its ground truth, seconds
_NUMBER = r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+"


@dataclass(frozen=True, slots=True)
class KnownDistance:
    """Scale reference: the camera centers of two frames (indices in the source, from 0) are `meters` apart."""

    frame_a: int
    frame_b: int
    meters: float

    @property
    def spec(self) -> str:
        """The reference as an argument of `--scale-from`."""
        return f"frames:{self.frame_a}:{self.frame_b}={self.meters:g}"

    @property
    def source(self) -> str:
        """Source of the metric scale, in words."""
        return f"{self.meters:g} m given between frames {self.frame_a} and {self.frame_b}"

    def expect(self, ground_truth: Trajectory | None) -> None:
        """Check that the source has the ground truth that this reference needs, which is none."""

    def measure(self, finished: FinishedMap) -> ScaleEstimate:
        """The scale of the largest segment. Raises ScaleError if the frames do not determine it."""
        return ScaleEstimate(self.meters / _distance(finished.result, self))


@dataclass(frozen=True, slots=True)
class GroundTruthPrefix:
    """Scale reference: the first `meters` of the ground truth's path, so that errors after them are not fitted.

    For evaluation only.
    """

    meters: float

    @property
    def spec(self) -> str:
        """The reference as an argument of `--scale-from`."""
        return f"groundtruth:{self.meters:g}"

    @property
    def source(self) -> str:
        """Source of the metric scale, in words."""
        return f"the first {self.meters:g} m of the ground truth, for evaluation only"

    def expect(self, ground_truth: Trajectory | None) -> None:
        """Check that the source has ground truth. Raises ScaleError otherwise."""
        if ground_truth is None:
            raise ScaleError(
                f"--scale-from {self.spec}: this source has no ground truth; "
                "expected a data set that brings one, or frames:A:B=METERS"
            )

    def measure(self, finished: FinishedMap) -> ScaleEstimate:
        """The scale of the largest segment. Raises ScaleError if the ground truth does not determine it."""
        return ScaleEstimate(_scale_of_prefix(finished.result.trajectory, self, finished.ground_truth))


ScaleReference = KnownDistance | GroundTruthPrefix | MarkerSize | GpsTrack | DepthFolder


def parse_scale_reference(text: str) -> ScaleReference | None:
    """The scale reference given by the argument of `--scale-from`; None for an empty text.

    Raises:
        ConfigError: the text has none of the forms in `EXPECTED`, names a frame twice, or the distance is not positive.
    """
    if not text:
        return None
    reference: ScaleReference
    if distance := re.fullmatch(rf"frames:([0-9]{{1,12}}):([0-9]{{1,12}})=({_NUMBER})", text):
        reference = KnownDistance(int(distance[1]), int(distance[2]), float(distance[3]))
        if reference.frame_a == reference.frame_b:
            raise ConfigError(f"--scale-from {text}: names frame {reference.frame_a} twice; expected two frames")
    elif prefix := re.fullmatch(rf"groundtruth:({_NUMBER})", text):
        reference = GroundTruthPrefix(float(prefix[1]))
    elif marker := re.fullmatch(rf"marker:(\w+):({_NUMBER})(?::([0-9]{{1,6}}))?", text):
        reference = MarkerSize(marker[1], float(marker[2]), None if marker[3] is None else int(marker[3]))
    elif text.removeprefix("gps:") not in ("", text):
        return parse_gps_track(text.removeprefix("gps:"))
    elif text.removeprefix("depth:") not in ("", text):
        return DepthFolder(Path(text.removeprefix("depth:")).expanduser())
    else:
        raise ConfigError(f"--scale-from {text}: expected {EXPECTED}")
    if not 0.0 < reference.meters < np.inf:
        raise ConfigError(f"--scale-from {text}: expected a distance of more than 0 m")
    return reference


def in_meters(
    result: SlamResult,
    slam_map: SlamMap,
    reference: ScaleReference,
    ground_truth: Trajectory | None,
    image: Callable[[int], Image] | None = None,
) -> SlamResult:
    """The result with lengths in meters; the map is scaled in place, so a map saved afterwards is metric too.

    Only the largest segment becomes metric: the scales of all other segments are unrelated to it.

    Args:
        image: the undistorted image of a keyframe, which markers need.

    Raises:
        ScaleError: the frames have no pose, are in different segments or at one place, or the ground truth is
            missing or too short.
        ValueError: the units of the map are not those of the result, because it was scaled before.
    """
    estimate = reference.measure(FinishedMap(result, slam_map, ground_truth, image))
    meters_per_unit, source = estimate.meters_per_unit, estimate.source_in_words(reference.source)
    name = "meters" if result.segment in slam_map.graph.metric else "map units"
    if name != result.units.name:
        raise ValueError(f"in_meters: the result is in {result.units.name}, but its map is in {name}")
    scaling = Similarity(np.eye(3), np.zeros(3), meters_per_unit)
    try:
        slam_map.scale_to_meters(result.segment, meters_per_unit, source)
    except ValueError as error:
        reason = f"{meters_per_unit:.3g} m per map unit, and a map has to stay below {MAX_COORDINATE:g} m"
        raise ScaleError(f"--scale-from {reference.spec}: {reason}; check the distance") from error
    return replace(
        result,
        trajectory=result.trajectory.transformed(scaling),
        keyframe_trajectory=result.keyframe_trajectory.transformed(scaling),
        online=result.online.transformed(scaling),
        landmark_points=scaling.apply(result.landmark_points),
        units=Units("meters", source, meters_per_unit, estimate.georeference),
    )


def _distance(result: SlamResult, reference: KnownDistance) -> float:
    """Distance between the camera centers of the two frames, map units."""
    a, b = (_position(result, frame, reference) for frame in (reference.frame_a, reference.frame_b))
    distance = float(np.linalg.norm(b - a))
    if distance <= MIN_DISTANCE * result.trajectory.length:
        raise ScaleError(
            f"--scale-from {reference.spec}: frames {reference.frame_a} and {reference.frame_b} are at one place in "
            "the map; name two that the camera moved between"
        )
    return distance


def _position(result: SlamResult, frame: int, reference: KnownDistance) -> FloatArray:
    """Camera center (3,) of a frame, map units. Raises ScaleError if it has no pose in the largest segment."""
    row = np.flatnonzero(result.frame_indices == frame)
    if len(row):
        return np.asarray(result.trajectory.positions[row[0]])
    for n, indices in enumerate(result.segment_frame_indices, start=2):
        if frame in indices:
            raise ScaleError(
                f"--scale-from {reference.spec}: frame {frame} is in part {n} of the map, which is not connected to "
                f"the first; {_choice(result)}"
            )
    raise ScaleError(f"--scale-from {reference.spec}: frame {frame} has no pose; {_choice(result)}")


def _choice(result: SlamResult) -> str:
    """The frames to choose from, for an error message."""
    indices = result.frame_indices
    if len(indices) == 0:
        return "no frame has one"
    return f"name two of the {len(indices)} frames from {indices[0]} to {indices[-1]} that have one in the first part"


def _scale_of_prefix(estimate: Trajectory, reference: GroundTruthPrefix, truth: Trajectory | None) -> float:
    """Meters per map unit, by the similarity between the beginnings of both paths."""
    reference.expect(truth)
    assert truth is not None
    if not truth.has_times:
        raise ScaleError(
            f"--scale-from {reference.spec}: the ground truth has no times, so it is unknown which of its poses "
            "belong to which frames"
        )
    i, j = associate(estimate.timestamps_ns, truth.timestamps_ns, max_difference_s=MATCH_S)
    if len(i) < MATCHES_NEEDED:
        raise ScaleError(f"--scale-from {reference.spec}: {len(i)} poses have a ground truth, {MATCHES_NEEDED} needed")
    lengths = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(truth.positions[j], axis=0), axis=1))])
    if lengths[-1] < reference.meters:
        raise ScaleError(
            f"--scale-from {reference.spec}: the ground truth of the tracked frames is {lengths[-1]:.3g} m long; "
            "give a smaller number"
        )
    count = max(MATCHES_NEEDED, 1 + int(np.searchsorted(lengths, reference.meters)))
    truth_from_map = fit_similarity(truth.world_from_cam[j[:count]], estimate.world_from_cam[i[:count]])
    if truth_from_map is None:
        raise ScaleError(
            f"--scale-from {reference.spec}: the map does not move as the ground truth does there; give a larger number"
        )
    return truth_from_map.scale
