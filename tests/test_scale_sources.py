"""Meters from markers in the scene and from GPS tracks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from oracle_map import build, room

from relocalizer.errors import ConfigError
from relocalizer.geometry import FloatArray, Similarity
from relocalizer.images import Image
from slam.evaluation.trajectory import Trajectory
from slam.map.frame_log import FrameLog
from slam.map.slam_map import SlamMap
from slam.map.tracks import Tracks
from slam.result import SlamResult, collect_result
from slam.sessions.depth_scale import DepthFolder
from slam.sessions.gps_scale import GpsTrack
from slam.sessions.marker_scale import MarkerSize
from slam.sessions.metric_scale import ScaleError, in_meters, parse_scale_reference

SMALLER = 0.25  # the map is this much smaller than the world
SIDE_M = 0.4
START_S = 1_700_000_000


@pytest.fixture(scope="module")
def finished() -> tuple[SlamMap, SlamResult]:
    """A map in units that are four meters long: 48 frames, every sixth a keyframe."""
    builder = build(room())
    log, world = FrameLog(), builder.world
    shrink = Similarity(np.eye(3), np.zeros(3), SMALLER)
    for index in range(48):
        pose = shrink @ Similarity.from_rigid(world.poses[index])
        if index % 6 == 0:
            builder.add(index, pose=pose)
        log.add(
            world.frame(index), pose.rigid, Tracks.none(), builder.mapper.map.graph.last_id, builder.mapper.map.graph
        )
    return builder.mapper.map, collect_result(builder.mapper.map, log)


def marker_corners(slam_map: SlamMap, *, side: float = SIDE_M, shift: float = 0.0) -> FloatArray:
    """Corners (4, 3) of a marker two meters before the first keyframe, turned a little, in the world of the map."""
    s = 0.5 * side
    square = np.array([[-s, -s, 0], [s, -s, 0], [s, s, 0], [-s, s, 0]])
    turn = np.array([[np.cos(0.4), 0, np.sin(0.4)], [0, 1, 0], [-np.sin(0.4), 0, np.cos(0.4)]])
    in_camera = square @ turn.T + np.array([shift, 0.1, 2.0])
    return slam_map.graph.world_from_keyframe[0].rigid.apply(SMALLER * in_camera)


def renderer(
    slam_map: SlamMap, markers: dict[int, Callable[[int], FloatArray]], dictionary: str = "DICT_4X4_50"
) -> Callable[[int], Image]:
    """Images of keyframes in which markers, given by their number and by their corners in each keyframe, are seen."""
    of = cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, dictionary))

    def image(k: int) -> Image:
        camera, pose = slam_map.camera_of(k), slam_map.graph.world_from_keyframe[k]
        shown = np.full((camera.height, camera.width), 200, np.uint8)
        for number, corners in markers.items():
            in_camera = (corners(k) - pose.translation) @ pose.rotation
            if in_camera[:, 2].min() <= 0.01:
                continue
            pixels = camera.project(in_camera)
            drawn = cv2.aruco.generateImageMarker(of, number, 400)
            # Corners of the marker lie at the borders of its pixels.
            edges = np.array([[-0.5, -0.5], [399.5, -0.5], [399.5, 399.5], [-0.5, 399.5]], np.float32)
            view = cv2.getPerspectiveTransform(edges, pixels.astype(np.float32))
            size = (camera.width, camera.height)
            warped = cv2.warpPerspective(drawn, view, size, flags=cv2.INTER_AREA)
            inside = cv2.warpPerspective(np.full_like(drawn, 255), view, size, flags=cv2.INTER_AREA)
            shown = np.where(inside > 127, warped, shown)
        return np.repeat(shown[..., None], 3, axis=2)

    return image


def test_a_marker_of_known_size_makes_a_map_metric(finished: tuple[SlamMap, SlamResult]) -> None:
    slam_map, _ = finished
    image = renderer(slam_map, {7: lambda k: marker_corners(slam_map)})
    estimate = MarkerSize("DICT_4X4_50", SIDE_M).measure(_of(finished, image))
    assert estimate.sigma is not None
    assert estimate.meters_per_unit == pytest.approx(1 / SMALLER, rel=0.02)
    assert abs(np.log(estimate.meters_per_unit * SMALLER)) < 4 * estimate.sigma
    assert 0 < estimate.sigma < 0.05
    assert "1 of them seen in" in estimate.evidence


def _of(finished: tuple[SlamMap, SlamResult], image: Callable[[int], Image] | None = None):
    from slam.sessions.scale_estimate import FinishedMap

    return FinishedMap(finished[1], finished[0], None, image)


@pytest.mark.parametrize("dictionary", ["DICT_APRILTAG_36h11", "DICT_5X5_250"])
def test_several_markers_are_averaged(finished: tuple[SlamMap, SlamResult], dictionary: str) -> None:
    slam_map, _ = finished
    markers = {n: lambda k, n=n: marker_corners(slam_map, shift=0.45 * (n - 2)) for n in (1, 2)}
    one = MarkerSize(dictionary, SIDE_M, 2).measure(_of(finished, renderer(slam_map, markers, dictionary)))
    both = MarkerSize(dictionary, SIDE_M).measure(_of(finished, renderer(slam_map, markers, dictionary)))
    assert both.meters_per_unit == pytest.approx(1 / SMALLER, rel=0.02)
    assert one.sigma is not None
    assert both.sigma is not None
    assert both.sigma < 1.5 * one.sigma
    assert "2 of them" in both.evidence


def test_a_sighting_that_contradicts_the_others_is_left_out(finished: tuple[SlamMap, SlamResult]) -> None:
    slam_map, _ = finished
    last = max(slam_map.graph.segment(0))
    moved = renderer(slam_map, {7: lambda k: marker_corners(slam_map, shift=0.5 if k == last else 0.0)})
    estimate = MarkerSize("DICT_4X4_50", SIDE_M).measure(_of(finished, moved))
    assert estimate.meters_per_unit == pytest.approx(1 / SMALLER, rel=0.02)


def test_markers_that_give_no_scale_are_named_with_the_reason(finished: tuple[SlamMap, SlamResult]) -> None:
    slam_map, _ = finished
    nothing = renderer(slam_map, {})
    once = renderer(slam_map, {7: lambda k: marker_corners(slam_map) if k == 0 else marker_corners(slam_map) - 1e3})
    for reference, image, sentence in (
        (MarkerSize("DICT_4X4_50", 0.1), nothing, "no keyframe sees one"),
        (MarkerSize("DICT_4X4_50", 0.1), once, "marker 7: seen in 1 keyframe, 2 needed"),
        (MarkerSize("DICT_4X4_50", 0.1), None, "the images of the keyframes were not kept"),
        (MarkerSize("DICT_9X9_7", 0.1), nothing, "OpenCV has no dictionary DICT_9X9_7"),
    ):
        with pytest.raises(ScaleError) as caught:
            reference.measure(_of(finished, image))
        assert str(caught.value).startswith(f"--scale-from {reference.spec}: ")
        assert sentence in str(caught.value)


# GPS


def write_track(
    path: Path, positions_m: FloatArray, times_ns: np.ndarray, *, noise_m: float = 0.0, seed: int = 0
) -> Path:
    """A track of places, meters to the east, north and up of a place in Zurich, with a point per time."""
    noisy = positions_m + np.random.default_rng(seed).normal(0, noise_m, positions_m.shape) if noise_m else positions_m
    latitude = 47.37 + noisy[:, 1] / 111_182.0
    longitude = 8.54 + noisy[:, 0] / (111_320.0 * np.cos(np.radians(47.37)) * 1.0018)
    rows = [
        f"{t / 1e9:.9f},{a:.10f},{o:.10f},{h:.4f}"
        for t, a, o, h in zip(times_ns, latitude, longitude, noisy[:, 2], strict=True)
    ]
    if path.suffix == ".gpx":
        points = []
        for row in rows:
            time, a, o, h = row.split(",")
            stamp = datetime.fromtimestamp(float(time), UTC).isoformat().replace("+00:00", "Z")
            points.append(f'<trkpt lat="{a}" lon="{o}"><ele>{h}</ele><time>{stamp}</time></trkpt>')
        gpx = '<?xml version="1.0"?><gpx xmlns="http://www.topografix.com/GPX/1/1"><trk><trkseg>{}</trkseg></trk></gpx>'
        path.write_text(gpx.format("".join(points)))
    else:
        path.write_text("timestamp,lat [deg],lon [deg],alt [m]\n" + "\n".join(rows) + "\n")
    return path


def drive(finished: tuple[SlamMap, SlamResult], *, at_s: float = START_S) -> tuple[SlamResult, FloatArray, np.ndarray]:
    """The result on the clock of GPS, and the true places in axes of their own, one per pose, meters."""
    from dataclasses import replace

    result = finished[1]
    times = result.trajectory.timestamps_ns - result.trajectory.timestamps_ns[0] + int(at_s * 1e9)
    turn = cv2.Rodrigues(np.array([0.3, -0.8, 1.9]))[0]
    places = result.trajectory.positions / SMALLER @ turn.T * 30  # the room becomes a quarter
    return replace(result, trajectory=Trajectory(times, result.trajectory.world_from_cam)), places, times


@pytest.mark.parametrize("suffix", [".csv", ".gpx"])
def test_a_gps_track_makes_a_map_metric(finished: tuple[SlamMap, SlamResult], tmp_path: Path, suffix: str) -> None:
    result, places, times = drive(finished)
    track = write_track(tmp_path / f"track{suffix}", places, times)
    estimate = GpsTrack(track).measure(_of((finished[0], result)))
    assert estimate.meters_per_unit == pytest.approx(30 / SMALLER, rel=2e-3)


def test_the_uncertainty_of_a_noisy_track_is_that_of_its_error(
    finished: tuple[SlamMap, SlamResult], tmp_path: Path
) -> None:
    result, places, times = drive(finished)
    pulls = []
    for seed in range(40):
        track = write_track(tmp_path / "track.csv", places, times, noise_m=2.0, seed=seed)
        estimate = GpsTrack(track).measure(_of((finished[0], result)))
        assert estimate.sigma is not None
        pulls.append(np.log(estimate.meters_per_unit * SMALLER / 30) / estimate.sigma)
    assert 0.5 < float(np.sqrt(np.mean(np.square(pulls)))) < 1.6


def test_outliers_of_a_track_are_left_out(finished: tuple[SlamMap, SlamResult], tmp_path: Path) -> None:
    result, places, times = drive(finished)
    places[7] += 300.0
    track = write_track(tmp_path / "track.csv", places, times, noise_m=0.1)
    assert GpsTrack(track).measure(_of((finished[0], result))).meters_per_unit == pytest.approx(30 / SMALLER, rel=0.02)


def test_places_between_points_of_the_track_are_interpolated(
    finished: tuple[SlamMap, SlamResult], tmp_path: Path
) -> None:
    result, places, times = drive(finished)
    track = write_track(tmp_path / "track.csv", places[::2], times[::2])
    assert GpsTrack(track).measure(_of((finished[0], result))).meters_per_unit == pytest.approx(30 / SMALLER, rel=0.05)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "an empty file"),
        ("a,b,c\n1,2,3\n", "expected a header that names time, latitude and longitude"),
        ("time,lat,lon\n1,47.0\n2,47,8\n", "line 2: expected time, latitude and longitude"),
        ("time,lat,lon\nyesterday,47.0,8.0\n", "line 2: expected time"),
        ("time,lat,lon\n1,47.0,8.0\n", "1 points; expected a track"),
        ("time,lat,lon\n1,147.0,8.0\n2,47,8\n", "expected latitudes up to 90"),
        ("<gpx><trk>", "not GPX"),
        ("<gpx></gpx>", "0 points"),
    ],
)
def test_a_track_that_is_none_is_refused_before_the_run(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "track.txt"
    path.write_text(text)
    reference = parse_scale_reference(f"gps:{path}")
    assert isinstance(reference, GpsTrack)
    with pytest.raises(ScaleError) as caught:
        reference.expect(None)
    assert str(caught.value).startswith(f"--scale-from gps:{path}: ")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_offset_of_a_track_of_another_clock_is_estimated_or_given(
    finished: tuple[SlamMap, SlamResult], tmp_path: Path
) -> None:
    result, places, times = drive(finished, at_s=0)
    track = write_track(tmp_path / "track.csv", places, times + START_S * 10**9, noise_m=0.1)
    for reference in (GpsTrack(track), parse_scale_reference(f"gps:{track}@{START_S}")):
        assert isinstance(reference, GpsTrack)
        estimate = reference.measure(_of((finished[0], result)))
        assert estimate.meters_per_unit == pytest.approx(30 / SMALLER, rel=0.02)
    estimated = GpsTrack(track).measure(_of((finished[0], result))).evidence
    assert f"set forward by {START_S}.0 s" in estimated or f"set forward by {START_S - 1}.9" in estimated
    with pytest.raises(ScaleError, match=r"0 poses are at times of the track, 6 needed; .*are both on one clock\?"):
        GpsTrack(track, offset_s=77.0).measure(_of((finished[0], result)))


def test_an_offset_that_the_paths_do_not_show_is_asked_for(
    finished: tuple[SlamMap, SlamResult], tmp_path: Path
) -> None:
    result, places, times = drive(finished, at_s=0)
    wandering = np.cumsum(np.random.default_rng(1).normal(0, 1, places.shape), axis=0)
    track = write_track(tmp_path / "track.csv", wandering, times + START_S * 10**9)
    with pytest.raises(ScaleError, match="give the seconds to add to the times of the images"):
        GpsTrack(track).measure(_of((finished[0], result)))


def test_a_track_gives_a_map_its_place_on_the_earth(finished: tuple[SlamMap, SlamResult], tmp_path: Path) -> None:
    result, places, times = drive(finished)
    track = write_track(tmp_path / "track.csv", places, times, noise_m=0.1)
    found = GpsTrack(track).measure(_of((finished[0], result))).georeference
    assert found is not None
    in_meters = result.trajectory.positions * 30 / SMALLER
    enu = in_meters @ found.enu_from_world[:3, :3].T + found.enu_from_world[:3, 3]
    north_m = np.radians(found.latitude_deg - 47.37) * 6_378_137.0
    assert np.allclose(enu[:, 1] + north_m, places[:, 1], atol=0.6)
    assert np.allclose(enu[:, 2] + found.height_m, places[:, 2], atol=0.4)


def test_a_straight_way_has_no_place_on_the_earth_as_it_may_roll(
    finished: tuple[SlamMap, SlamResult], tmp_path: Path
) -> None:
    result, _, times = drive(finished)
    line = np.linspace(0, 1, len(times))[:, None] * [1.0, 2.0, 0.1]
    matrices = np.tile(np.eye(4), (len(times), 1, 1))
    matrices[:, :3, 3] = line
    straight = replace(result, trajectory=Trajectory(times, matrices))
    track = write_track(tmp_path / "track.csv", 30 * line, times, noise_m=0.2)
    estimate = GpsTrack(track).measure(_of((finished[0], straight)))
    assert estimate.meters_per_unit == pytest.approx(30, rel=0.02)
    assert estimate.georeference is None
    assert "too straight" in estimate.evidence


def test_a_track_of_a_camera_at_rest_gives_no_scale(finished: tuple[SlamMap, SlamResult], tmp_path: Path) -> None:
    result, places, times = drive(finished)
    track = write_track(tmp_path / "b.csv", 0.0 * places, times, noise_m=3.0)
    with pytest.raises(ScaleError, match="the track does not determine the scale"):
        GpsTrack(track).measure(_of((finished[0], result)))


# Depth


def write_rgbd(folder: Path, slam_map: SlamMap, *, noise: float = 0.0) -> Path:
    """A data set of TUM's layout, with depth around the landmarks that each keyframe observes."""
    (folder / "rgb").mkdir(parents=True)
    (folder / "depth").mkdir()
    rgb, depth = [], []
    rng = np.random.default_rng(0)
    keyframes = {slam_map.graph.keyframes[k].frame_index: k for k in slam_map.graph.segment(0)}
    for index in range(48):
        time = f"{index / 10:.6f}"
        rgb.append(f"{time} rgb/{index}.png")
        camera = slam_map.camera_of(0)
        cv2.imwrite(str(folder / "rgb" / f"{index}.png"), np.full((camera.height, camera.width, 3), 90, np.uint8))
        if index not in keyframes:
            continue
        k, stored = keyframes[index], np.zeros((camera.height, camera.width), np.uint16)
        observed, pose = slam_map.landmarks.observed[k], slam_map.graph.world_from_keyframe[k]
        ids = observed.ids[np.isin(observed.ids, slam_map.landmarks.landmark_ids())]
        points = (slam_map.landmarks.points_world(ids, slam_map.graph) - pose.translation) @ pose.rotation
        error = 1.0 + noise * rng.normal(size=len(points))
        for (x, y), z in zip(np.rint(camera.project(points)).astype(int), points[:, 2] / SMALLER * error, strict=True):
            stored[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] = round(min(5000 * z, 65534))
        cv2.imwrite(str(folder / "depth" / f"{index}.png"), stored)
        depth.append(f"{index / 10 + 0.008:.6f} depth/{index}.png")
    (folder / "rgb.txt").write_text("\n".join(rgb) + "\n")
    (folder / "depth.txt").write_text("# depth maps\n" + "\n".join(depth) + "\n")
    (folder / "camera.yaml").write_text(slam_map.camera_of(0).to_yaml())
    return folder


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_depth_images_make_a_map_metric(finished: tuple[SlamMap, SlamResult], tmp_path: Path, noise: float) -> None:
    reference = DepthFolder(write_rgbd(tmp_path / "desk", finished[0], noise=noise))
    reference.expect(None)
    estimate = reference.measure(_of(finished))
    assert estimate.meters_per_unit == pytest.approx(1 / SMALLER, rel=0.01)
    assert estimate.sigma is not None
    assert estimate.sigma < 0.02
    assert "landmarks in" in estimate.evidence
    assert reference.source == "depth images of desk"


def test_a_data_set_without_depth_is_refused_before_the_run(
    tmp_path: Path, finished: tuple[SlamMap, SlamResult]
) -> None:
    folder = write_rgbd(tmp_path / "desk", finished[0])
    (folder / "depth.txt").write_text("".join(f"{100 + k} depth/{k}.png\n" for k in range(3)))
    with pytest.raises(ScaleError, match=r"no depth images; expected depth\.txt"):
        DepthFolder(folder).expect(None)
    with pytest.raises(ScaleError, match="no such file or folder"):
        DepthFolder(tmp_path / "nowhere").expect(None)


def test_depth_of_other_images_gives_no_scale(finished: tuple[SlamMap, SlamResult], tmp_path: Path) -> None:
    folder = write_rgbd(tmp_path / "desk", finished[0])
    for path in (folder / "depth").iterdir():
        cv2.imwrite(str(path), np.zeros((48, 64), np.uint16))
    with pytest.raises(ScaleError, match="0 keyframes have 10 landmarks with a depth, 2 needed"):
        DepthFolder(folder).measure(_of(finished))
    next((folder / "depth").iterdir()).write_bytes(b"")
    for path in (folder / "depth").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ScaleError, match="an empty file"):
        DepthFolder(folder).measure(_of(finished))


def test_depth_of_the_source_is_asked_for_by_one_word(
    tmp_path: Path, finished: tuple[SlamMap, SlamResult], slam_command: Callable[..., Any], straight_slam: Any
) -> None:
    straight_slam()
    folder = write_rgbd(tmp_path / "desk", finished[0])
    assert (
        "scale: depth images of desk" in slam_command("run", folder, "--scale-from", "depth", "-o", tmp_path / "a").err
    )
    (folder / "depth.txt").unlink()
    ended = slam_command("run", folder, "--scale-from", "depth", "-o", tmp_path / "b")
    assert ended.code == 2
    assert "no depth images" in ended.complaint


# All


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("marker:DICT_4X4_50:0.10", MarkerSize("DICT_4X4_50", 0.1)),
        ("marker:DICT_APRILTAG_36h11:.16:23", MarkerSize("DICT_APRILTAG_36h11", 0.16, 23)),
        ("gps:drive/track.gpx", GpsTrack(Path("drive/track.gpx"))),
        ("depth:rgbd/desk", DepthFolder(Path("rgbd/desk"))),
    ],
)
def test_references_are_read_from_their_words(text: str, reference: object) -> None:
    found = parse_scale_reference(text)
    assert found == reference
    assert found is not None
    assert parse_scale_reference(found.spec) == reference


@pytest.mark.parametrize(
    "text", ["marker:0.1", "marker:DICT_4X4_50:0", "marker:DICT_4X4_50:big", "gps:", "gps", "depth:"]
)
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--scale-from"):
        parse_scale_reference(text)


def test_the_result_says_from_what_it_is_metric_and_how_well(tmp_path: Path) -> None:
    builder = build(room())
    log, world = FrameLog(), builder.world
    shrink = Similarity(np.eye(3), np.zeros(3), SMALLER)
    for index in range(24):
        pose = shrink @ Similarity.from_rigid(world.poses[index])
        if index % 6 == 0:
            builder.add(index, pose=pose)
        log.add(
            world.frame(index), pose.rigid, Tracks.none(), builder.mapper.map.graph.last_id, builder.mapper.map.graph
        )
    slam_map = builder.mapper.map
    result = collect_result(slam_map, log)
    corners = marker_corners(slam_map)
    image = renderer(slam_map, {7: lambda k: corners})
    scaled = in_meters(result, slam_map, MarkerSize("DICT_4X4_50", SIDE_M), None, image)
    assert scaled.units.name == "meters"
    assert scaled.units.source.startswith("markers of DICT_4X4_50 with sides of 0.4 m, 1 of them seen in ")
    assert scaled.units.source.endswith(" %")
    assert slam_map.graph.metric[result.segment] == scaled.units.source
    assert len(scaled.units.source) <= 200  # what a map can hold
