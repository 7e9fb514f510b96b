"""Metric scale from a GPS track: the similarity between the path of the camera and the track at the same times."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from relocalizer.errors import SequenceError
from relocalizer.geometry import FloatArray, Similarity, align_points
from slam.evaluation.trajectory import Trajectory, nanoseconds_from_seconds, seconds_from_nanoseconds
from slam.input.text_rows import text_of
from slam.result import Georeference
from slam.sessions.clock_offset import OffsetUnknown, estimate_offset_s
from slam.sessions.scale_estimate import LARGEST_SIGMA, FinishedMap, ScaleError, ScaleEstimate

FEWEST_POINTS = 6  # minimum number of poses that have a place on the track
LONGEST_GAP_S = 3.0  # maximum time between two points of the track between which positions are interpolated, seconds
STRAIGHT = (
    2.0  # minimum ratio of the width of a path to its distance from the track for it to have a place on the earth
)
OUTLYING = 4.0  # ratio of an error to its median from which a point is left out
EQUATOR_M, ECCENTRICITY_2 = 6_378_137.0, 6.694379990141e-3  # semi-major axis and squared eccentricity of WGS 84
# Names of columns, in lower case and without a unit in brackets.
TIMES = ("timestamp", "time", "t", "#timestamp", "date", "utc")
LATITUDES, LONGITUDES = ("latitude", "lat"), ("longitude", "lon", "lng", "long")
HEIGHTS = ("altitude", "alt", "ele", "elevation", "height")


def parse_gps_track(text: str) -> GpsTrack:
    """The track `FILE` or `FILE@SECONDS`; a file whose name ends so is taken as it is."""
    if (given := re.fullmatch(r"(.+)@([+-]?[0-9]+(?:\.[0-9]*)?)", text)) and not Path(text).expanduser().is_file():
        return GpsTrack(Path(given[1]).expanduser(), float(given[2]))
    return GpsTrack(Path(text).expanduser())


@dataclass(frozen=True, slots=True)
class GpsTrack:
    """Scale reference: the track in a CSV or GPX file.

    Attributes:
        offset_s: seconds to be added to the times of the images to be on the clock of the track; None if both clocks
            are the same, or else for it to be estimated.
    """

    path: Path
    offset_s: float | None = None

    @property
    def spec(self) -> str:
        """The reference as an argument of `--scale-from`."""
        return f"gps:{self.path}" + ("" if self.offset_s is None else f"@{self.offset_s:g}")

    @property
    def source(self) -> str:
        """Source of the metric scale, in words."""
        return f"GPS track {self.path.name}"

    def expect(self, ground_truth: Trajectory | None) -> None:
        """Check that the track can be read. Raises ScaleError otherwise."""
        self._track()

    def measure(self, finished: FinishedMap) -> ScaleEstimate:
        """The scale of the largest segment. Raises ScaleError if the track does not determine it."""
        track, estimate = self._track(), finished.result.trajectory
        offset_s = self._offset_s(track, estimate)
        positions, has_position = track.at(estimate.timestamps_ns + round(offset_s * 1e9))
        found = _fitted(track, positions[has_position], estimate.positions[has_position])
        if found is None or found.sigma is None or found.sigma > LARGEST_SIGMA:
            known = "" if found is None or found.sigma is None else f" (to {100 * found.sigma:.0f} % only)"
            raise ScaleError(
                f"--scale-from {self.spec}: the track does not determine the scale{known}; "
                "the camera must move much farther than the error of the GPS"
            )
        if self.offset_s is None and offset_s:
            clock = f"the clock of the images set forward by {offset_s:.1f} s, by the shapes of the paths"
            return replace(found, evidence=f"{found.evidence}, {clock}")
        return found

    def _offset_s(self, track: _Track, estimate: Trajectory) -> float:
        """Seconds to be added to the times of the images. Raises ScaleError if they are not known."""
        given = self.offset_s or 0.0
        count = int(track.at(estimate.timestamps_ns + round(given * 1e9))[1].sum())
        if count >= FEWEST_POINTS:
            return given
        problem = (
            f"--scale-from {self.spec}: {count} poses are at times of the track, {FEWEST_POINTS} needed; poses "
            f"from {_span(estimate.timestamps_ns)}, track from {_span(track.times_ns)}"
        )
        if self.offset_s is not None or len(estimate) < FEWEST_POINTS:
            raise ScaleError(f"{problem}: are both on one clock?")
        found = estimate_offset_s(estimate.timestamps_ns, estimate.positions, track.times_ns, track.at)
        if isinstance(found, OffsetUnknown):
            raise ScaleError(
                f"{problem}, and their offset cannot be estimated from the paths ({found.reason}): give the seconds to "
                f"add to the times of the images, gps:{self.path}@SECONDS"
            )
        return found

    def _track(self) -> _Track:
        try:
            text = text_of(self.path)
            rows = _gpx_rows(text) if text.lstrip().startswith("<") else _csv_rows(text)
            return _Track.of(rows)
        except (SequenceError, ValueError) as error:
            reason = str(error).removeprefix(f"{self.path}: ")
            raise ScaleError(f"--scale-from {self.spec}: {reason}") from None


@dataclass(frozen=True, slots=True, eq=False)
class _Track:
    """A track.

    Attributes:
        times_ns: (N,) nanoseconds since 1970, ascending.
        positions: (N, 3) meters east, north and up of `origin`.
        origin: latitude and longitude, degrees, and height, meters (3,).
    """

    times_ns: NDArray[np.int64]
    positions: FloatArray
    origin: FloatArray

    @classmethod
    def of(cls, rows: Sequence[tuple[int, float, float, float]]) -> _Track:
        """The track of rows (time, latitude, longitude in degrees, height). Raises ValueError if they are none."""
        if len(rows) < 2:
            raise ValueError(f"{len(rows)} points; expected a track of at least two")
        ordered = dict(sorted((row[0], row[1:]) for row in rows))
        values = np.array(list(ordered.values()))
        if not np.isfinite(values).all() or (np.abs(values[:, 0]) > 90).any() or (np.abs(values[:, 1]) > 180).any():
            raise ValueError("expected latitudes up to 90 and longitudes up to 180 degrees")
        return cls(np.array(list(ordered), dtype=np.int64), _local_m(values), values.mean(axis=0))

    def at(self, times_ns: NDArray[np.int64]) -> tuple[FloatArray, NDArray[np.bool_]]:
        """Places (M, 3) at some times, interpolated, and whether the track has points near them."""
        after = np.searchsorted(self.times_ns, times_ns)
        inside = (after > 0) & (after < len(self.times_ns))
        on_point = np.isin(times_ns, self.times_ns)
        after = np.clip(after, 1, len(self.times_ns) - 1)
        gap_s = (self.times_ns[after] - self.times_ns[after - 1]) / 1e9
        seconds = (times_ns - self.times_ns[0]) / 1e9
        known_s = (self.times_ns - self.times_ns[0]) / 1e9
        positions = np.column_stack([np.interp(seconds, known_s, self.positions[:, axis]) for axis in range(3)])
        return positions, (inside & (gap_s <= LONGEST_GAP_S)) | on_point


def _local_m(values: FloatArray) -> FloatArray:
    """Meters east, north and up of the middle (N, 3), from latitude, longitude (degrees) and height, near WGS 84."""
    middle = values.mean(axis=0)
    latitude = np.radians(middle[0])
    curvature = 1.0 - ECCENTRICITY_2 * np.sin(latitude) ** 2
    north_m = EQUATOR_M * (1.0 - ECCENTRICITY_2) / curvature**1.5
    east_m = EQUATOR_M / np.sqrt(curvature) * np.cos(latitude)
    offset = values - middle
    return np.column_stack([np.radians(offset[:, 1]) * east_m, np.radians(offset[:, 0]) * north_m, offset[:, 2]])


def _fitted(whole: _Track, track: FloatArray, positions: FloatArray) -> ScaleEstimate | None:
    """The scale between positions (N, 3) of the track and positions (N, 3) in map units; None if nothing moves.

    Outlying points are left out once. Errors of GPS change slowly, so the number of independent ones follows from their
    correlation between neighbors.
    """
    kept = np.ones(len(track), dtype=bool)
    for _ in range(2):
        a, b = track[kept], positions[kept]
        spread = float(((b - b.mean(axis=0)) ** 2).sum())
        if spread <= 0 or len(a) < FEWEST_POINTS:
            return None
        track_from_map = align_points(a, b)
        errors = track - track_from_map.apply(positions)
        distances = np.linalg.norm(errors, axis=1)
        inliers = distances <= OUTLYING * max(float(np.median(distances[kept])), 1e-9)
        if (inliers | ~kept).all():
            break
        kept &= inliers
    if track_from_map.scale <= 0:
        return None
    residuals = errors[kept]
    variance = float((residuals**2).sum() / max(1, residuals.size - 7))
    power = float((residuals**2).sum())
    correlation = float((residuals[1:] * residuals[:-1]).sum() / power) if power > 0 else 0.0
    dependence = (1.0 + max(0.0, min(correlation, 0.99))) / (1.0 - max(0.0, min(correlation, 0.99)))
    sigma = float(np.sqrt(variance * dependence / spread)) / track_from_map.scale
    rms = float(np.sqrt((residuals**2).sum(axis=1).mean()))
    evidence = f"{int(kept.sum())} poses, {rms:.2g} m apart from it"
    width_m = track_from_map.scale * _width(positions[kept])
    if width_m < STRAIGHT * rms:
        straight = f"{width_m:.2g} m wide, too straight for its place on the earth"
        return ScaleEstimate(track_from_map.scale, sigma, f"{evidence}, {straight}")
    return ScaleEstimate(track_from_map.scale, sigma, evidence, _georeference(whole, track_from_map))


def _width(positions: FloatArray) -> float:
    """Root mean square (in the units of the positions (N, 3)) of the second principal coordinate of a path."""
    spread = np.linalg.svd(positions - positions.mean(axis=0), compute_uv=False)
    return float(spread[1] / np.sqrt(len(positions)))


def _georeference(track: _Track, track_from_map: Similarity) -> Georeference:
    enu_from_world = np.eye(4)
    enu_from_world[:3, :3], enu_from_world[:3, 3] = track_from_map.rotation, track_from_map.translation
    latitude, longitude, height = track.origin.tolist()
    return Georeference(latitude, longitude, height, enu_from_world)


def _csv_rows(text: str) -> list[tuple[int, float, float, float]]:
    """Rows of a table whose header names time, latitude, longitude and, if any, height."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError("an empty file; expected a track")
    separator = next((s for s in (",", ";", "\t") if s in lines[0]), " ")
    head, *table = csv.reader(lines, delimiter=separator, skipinitialspace=True)
    names = [re.sub(r"[\[(].*", "", name).strip().lower() for name in head]
    columns = [next((names.index(n) for n in known if n in names), None) for known in (TIMES, LATITUDES, LONGITUDES)]
    if None in columns:
        raise ValueError("expected a header that names time, latitude and longitude, such as timestamp,lat,lon,alt")
    height = next((names.index(n) for n in HEIGHTS if n in names), None)
    rows = []
    for number, fields in enumerate(table, start=2):
        try:
            time, latitude, longitude = (fields[column] for column in columns if column is not None)
            altitude = float(fields[height]) if height is not None and fields[height] else 0.0
            rows.append((_time_ns(time), float(latitude), float(longitude), altitude))
        except (ValueError, IndexError):
            raise ValueError(f"line {number}: expected time, latitude and longitude, got {fields}") from None
    return rows


def _gpx_rows(text: str) -> list[tuple[int, float, float, float]]:
    """The track points of a GPX file that have a time."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"not GPX ({error})") from None
    rows = []
    for point in root.iter():
        if not point.tag.endswith("trkpt"):
            continue
        values = {child.tag.rpartition("}")[2]: child.text or "" for child in point}
        if "time" in values:
            height = float(values.get("ele") or 0.0)
            rows.append((_time_ns(values["time"]), float(point.get("lat", "")), float(point.get("lon", "")), height))
    return rows


def _time_ns(text: str) -> int:
    """Nanoseconds since 1970 of a time: seconds, milliseconds or nanoseconds since 1970, or ISO 8601, UTC if unsaid."""
    text = text.strip()
    if re.fullmatch(r"[0-9]{19}", text):
        return int(text)
    if re.fullmatch(r"[0-9]{13}", text):
        return int(text) * 1_000_000
    if re.fullmatch(r"[0-9]+(?:\.[0-9]*)?", text):
        return nanoseconds_from_seconds(text)
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1_000


def _span(times_ns: NDArray[np.int64]) -> str:
    if not len(times_ns):
        return "no time"
    return f"{seconds_from_nanoseconds(int(times_ns[0]))[:-6]} to {seconds_from_nanoseconds(int(times_ns[-1]))[:-6]} s"
