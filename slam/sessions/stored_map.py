"""Between the live map and the map at rest: what is kept of a run, and how a run goes on where another ended."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relocalizer.camera import Camera
from relocalizer.errors import MapError
from relocalizer.geometry import Similarity, rigid, rotation_matrix, translation_of
from relocalizer.interfaces import PosePredictor, Retriever
from relocalizer.maps.map_format import JpegImages, jpeg_of
from relocalizer.maps.reference_map import (
    EdgeTable,
    FeatureTable,
    FrameTable,
    KeyframeTable,
    LandmarkTable,
    ObservationTable,
    Provenance,
    ReferenceMap,
    Session,
    check_predictor,
    quantized,
    restore_encoding,
    restored,
)
from slam.map.frames import FrameRecord, Keyframe
from slam.map.keyframe_graph import Edge, EdgeKind, KeyframeGraph
from slam.map.landmarks import LandmarkMap
from slam.map.slam_map import SlamMap
from slam.map.tracks import Tracks
from slam.result import SlamResult, Units

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class PriorMap:
    """What a loaded map brings that the slam_map does not hold; nothing, for a run that begins in none.

    Attributes:
        keyframe_ids: names its keyframes have now, in the order of the map's rows.
        frames: its frames, hanging off those.
        jpeg: image of each keyframe, as the bytes of a JPEG file.
        sessions: its sessions, under the names its keyframes have now and the rows of `frames`.
    """

    keyframe_ids: tuple[int, ...] = ()
    frames: Sequence[FrameRecord] = ()
    jpeg: Mapping[int, Callable[[], bytes]] = field(default_factory=dict)
    sessions: tuple[Session, ...] = ()

    @property
    def last_id(self) -> int:
        """Of its keyframes; what comes after belongs to the run. -1 without any."""
        return max(self.keyframe_ids, default=-1)

    def image(self, k: int, of_the_run: Callable[[int], bytes]) -> bytes:
        """A keyframe's image, whether it is of this map or of the run that goes on in it."""
        return self.jpeg[k]() if k in self.jpeg else of_the_run(k)


# --- from the live map --------------------------------------------------------------------------------


def run_to_reference_map(
    slam_map: SlamMap,
    earlier: PriorMap,
    frames: Sequence[FrameRecord],
    provenance: Provenance,
    jpeg: Callable[[int], bytes],
) -> ReferenceMap:
    """The map at rest of a run that may have gone on in an earlier one, which is part of it.

    Args:
        frames, jpeg: of the run alone.
    """
    return to_reference_map(
        slam_map,
        [*earlier.frames, *frames],
        provenance,
        lambda k: earlier.image(k, jpeg),
        (*earlier.sessions, Session(earlier.last_id + 1, len(earlier.frames))),
    )


def to_reference_map(
    slam_map: SlamMap,
    frames: Sequence[FrameRecord],
    provenance: Provenance,
    jpeg: Callable[[int], bytes],
    sessions: tuple[Session, ...] = (Session(0, 0),),
) -> ReferenceMap:
    """The map at rest. Of the local features those on a track are kept, and tracks are numbered anew without gaps.

    Its units are those that the graph is in at this moment, segment by segment, whatever `provenance` says of them.

    Args:
        frames: all frames that hang off the map's keyframes.
        jpeg: image of a keyframe, by its id, as the bytes of a JPEG file.
    """
    graph, landmarks = slam_map.graph, slam_map.landmarks
    ids = sorted(graph.keyframes)
    cameras = tuple(dict.fromkeys(graph.keyframes[k].camera for k in ids))
    new_name = _new_names(landmarks, ids)
    sizes = [(graph.keyframes[k].camera.width, graph.keyframes[k].camera.height) for k in ids]
    return ReferenceMap(
        provenance=_in_units_of(graph, provenance),
        cameras=cameras,
        keyframes=_keyframe_table(graph, ids, cameras),
        features=_feature_table(graph, landmarks, ids, new_name),
        observations=_observation_table(landmarks, ids, new_name),
        landmarks=_landmark_table(landmarks, new_name),
        edges=_edge_table(graph),
        frames=_frame_table(frames),
        image=JpegImages(lambda row: jpeg(ids[row]), sizes),
        sessions=sessions,
    )


def _in_units_of(graph: KeyframeGraph, provenance: Provenance) -> Provenance:
    segments = set(graph.segment_of.values())
    sources = [graph.metric[segment] for segment in sorted(segments & graph.metric.keys())]
    return replace(
        provenance,
        units="meters" if sources else "map units",
        scale_source=sources[0] if sources else "",
        unanchored=tuple(sorted(segments - graph.metric.keys())) if sources else (),
    )


def _new_names(landmarks: LandmarkMap, ids: Sequence[int]) -> Ids:
    """By track id, its number among the tracks that anything refers to; -1 for the others."""
    named = [landmarks.landmark_ids()]
    for k in ids:
        named += [landmarks.observed[k].ids, landmarks.feature_tracks[k]]
    used = np.unique(np.concatenate(named))
    used = used[used >= 0]
    names = np.full(int(used.max(initial=-1)) + 1, -1, np.int64)
    names[used] = np.arange(len(used))
    return names


def _keyframe_table(graph: KeyframeGraph, ids: Sequence[int], cameras: Sequence[Camera]) -> KeyframeTable:
    keyframes, poses = [graph.keyframes[k] for k in ids], [graph.world_from_keyframe[k] for k in ids]
    row_of_camera = {camera: row for row, camera in enumerate(cameras)}
    size = len(keyframes[0].descriptor) if keyframes else 0
    return KeyframeTable(
        ids=_ids(ids),
        frame_indices=_ids(k.frame_index for k in keyframes),
        timestamps_ns=_ids(k.timestamp_ns for k in keyframes),
        camera=_ids(row_of_camera[k.camera] for k in keyframes),
        segment=_ids(graph.segment_of[k] for k in ids),
        **_stacked(poses),
        scales=np.array([pose.scale for pose in poses], dtype=np.float64),
        descriptors=np.array([k.descriptor for k in keyframes], dtype=np.float32).reshape(len(ids), size),
    )


def _feature_table(graph: KeyframeGraph, landmarks: LandmarkMap, ids: Sequence[int], new_name: Ids) -> FeatureTable:
    kept = [np.flatnonzero(landmarks.feature_tracks[k] >= 0) for k in ids]
    features = [graph.keyframes[k].features for k in ids]
    tracks = [landmarks.feature_tracks[k][rows] for k, rows in zip(ids, kept, strict=True)]
    pairs = list(zip(features, kept, strict=True))
    return FeatureTable(
        offsets=_offsets(kept),
        pixels=_joined([f.pixels[rows] for f, rows in pairs], np.zeros((0, 2), np.float32)),
        scales=_joined([f.scales[rows] for f, rows in pairs], np.zeros(0, np.float32)),
        descriptors=_joined([quantized(f.descriptors[rows]) for f, rows in pairs], np.zeros((0, 128), np.uint8)),
        landmark=_renamed(_joined(tracks, np.zeros(0, np.int64)), new_name),
    )


def _observation_table(landmarks: LandmarkMap, ids: Sequence[int], new_name: Ids) -> ObservationTable:
    seen = [landmarks.observed[k] for k in ids]
    return ObservationTable(
        offsets=_offsets(seen),
        landmark=_renamed(_joined([tracks.ids for tracks in seen], np.zeros(0, np.int64)), new_name),
        pixels=_joined([tracks.pixels for tracks in seen], np.zeros((0, 2), np.float32)),
    )


def _landmark_table(landmarks: LandmarkMap, new_name: Ids) -> LandmarkTable:
    placed = landmarks.landmark_ids()  # ascending, and so are their new names
    return LandmarkTable(
        ids=_renamed(placed, new_name),
        anchor=landmarks.anchor[placed].copy(),
        points_in_anchor=landmarks.point_in_anchor[placed].copy(),
        inverse_depth_sigma=landmarks.inverse_depth_sigma[placed].copy(),
        descriptors=quantized(landmarks.descriptor[placed]),
        colors=landmarks.color[placed].copy(),
    )


def _edge_table(graph: KeyframeGraph) -> EdgeTable:
    edges = [graph.edges[pair] for pair in sorted(graph.edges)]
    return EdgeTable(
        i=_ids(edge.i for edge in edges),
        j=_ids(edge.j for edge in edges),
        **_stacked([edge.i_from_j for edge in edges]),
        scales=np.array([edge.i_from_j.scale for edge in edges], dtype=np.float64),
        sigmas=np.array([edge.sigmas for edge in edges], dtype=np.float64).reshape(-1, 7),
        is_loop=np.array([edge.kind is EdgeKind.LOOP for edge in edges], dtype=bool),
        inliers=_ids(edge.inliers for edge in edges),
        shares=np.array([edge.evidence_fraction for edge in edges], dtype=np.float64),
        weights=np.array([graph.weight(edge) for edge in edges], dtype=np.float64),
    )


def _frame_table(frames: Sequence[FrameRecord]) -> FrameTable:
    poses = [record.keyframe_from_frame for record in frames]
    return FrameTable(
        indices=_ids(record.index for record in frames),
        timestamps_ns=_ids(record.timestamp_ns for record in frames),
        keyframe=_ids(record.keyframe_id for record in frames),
        rotations=np.array([rotation_matrix(pose) for pose in poses], dtype=np.float64).reshape(-1, 3, 3),
        translations=np.array([translation_of(pose) for pose in poses], dtype=np.float64).reshape(-1, 3),
    )


def _stacked(poses: Sequence[Similarity]) -> dict[str, NDArray[np.float64]]:
    return {
        "rotations": np.array([pose.rotation for pose in poses], dtype=np.float64).reshape(-1, 3, 3),
        "translations": np.array([pose.translation for pose in poses], dtype=np.float64).reshape(-1, 3),
    }


def _ids(values: Any) -> Ids:
    return np.array(list(values), dtype=np.int64)


def _offsets(parts: Sequence[Any]) -> Ids:
    return np.concatenate([[0], np.cumsum([len(part) for part in parts], dtype=np.int64)]).astype(np.int64)


def _joined(parts: Sequence[NDArray[Any]], nothing: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([nothing, *parts])


def _renamed(tracks: Ids, new_name: Ids) -> Ids:
    return np.asarray(new_name[tracks], dtype=np.int64)


# --- to the live map ----------------------------------------------------------------------------------


def restore(
    reference_map: ReferenceMap,
    slam_map: SlamMap,
    predictor: PosePredictor,
    retriever: Retriever | None,
    *,
    gap: int = 0,
) -> PriorMap:
    """Put a map into a slam_map, beside what is there: keyframes, tracks and segments get new names after the old ones.

    Into an empty slam_map everything goes under its own name.

    Args:
        retriever: learns the keyframes' descriptors; None leaves that to the caller.
        gap: ids left free between the keyframes that are there and the new ones.

    Raises:
        MapError: the predictor cannot read this map, or an image it needs is gone.
    """
    check_predictor(reference_map.provenance, predictor)
    graph, table = slam_map.graph, reference_map.keyframes
    first_id = graph.last_id + 1 + gap if graph.keyframes else 0
    first_segment = 1 + max(graph.segment_of.values(), default=-1)
    first_track = _restore_tracks(reference_map, slam_map.landmarks, first_id)
    for number in np.unique(table.segment).tolist():
        if reference_map.units_of(number) == "meters":
            graph.metric[number + first_segment] = reference_map.provenance.scale_source
    for row in range(len(table)):
        keyframe = _keyframe(reference_map, row, predictor, first_id)
        segment = int(table.segment[row]) + first_segment
        graph.add_keyframe(keyframe, table.world_from_keyframe(row), segment)
        _restore_observations(reference_map, row, slam_map.landmarks, keyframe.id, first_track)
        if retriever is not None:
            retriever.add(keyframe.id, keyframe.descriptor)
    _restore_edges(reference_map.edges, graph, first_id)
    ids = tuple((table.ids + first_id).tolist())
    return PriorMap(
        keyframe_ids=ids,
        frames=_frames(reference_map.frames, first_id),
        jpeg={k: _image(reference_map, row) for row, k in enumerate(ids)},
        sessions=tuple(replace(s, first_keyframe=s.first_keyframe + first_id) for s in reference_map.sessions),
    )


def _image(reference_map: ReferenceMap, row: int) -> Callable[[], bytes]:
    return lambda: jpeg_of(reference_map, row)


def _keyframe(reference_map: ReferenceMap, row: int, predictor: PosePredictor, first_id: int) -> Keyframe:
    table = reference_map.keyframes
    encoded = restore_encoding(predictor, reference_map, row)
    if row == 0 and predictor.describe(encoded).shape != table.descriptors[row].shape:
        raise MapError(
            f"map: place descriptors of {table.descriptors.shape[1]} numbers, this predictor makes "
            f"{predictor.describe(encoded).size}; make the map anew with this version"
        )
    return Keyframe(
        id=int(table.ids[row]) + first_id,
        frame_index=int(table.frame_indices[row]),
        timestamp_ns=int(table.timestamps_ns[row]),
        camera=reference_map.camera_of(row),
        encoded=encoded,
        descriptor=table.descriptors[row].astype(np.float32),
        features=reference_map.features.of(row),
    )


def _restore_tracks(reference_map: ReferenceMap, landmarks: LandmarkMap, first_id: int) -> int:
    """Names, looks and places of all tracks; the name the map's track 0 has now."""
    features, observations, table = reference_map.features, reference_map.observations, reference_map.landmarks
    highest = max(int(ids.max(initial=-1)) for ids in (features.landmark, observations.landmark, table.ids))
    new = landmarks.new_ids(highest + 1)
    first_track = int(new[0]) if len(new) else 0
    tracks, feature = np.unique(features.landmark, return_index=True)
    feature, tracks = feature[tracks >= 0], tracks[tracks >= 0]
    landmarks.descriptor[tracks + first_track] = restored(features.descriptors[feature])
    ids = table.ids + first_track
    landmarks.descriptor[ids] = restored(table.descriptors)
    landmarks.color[ids] = table.colors
    landmarks.anchor[ids] = table.anchor + first_id
    landmarks.point_in_anchor[ids] = table.points_in_anchor
    landmarks.inverse_depth_sigma[ids] = table.inverse_depth_sigma
    return first_track


def _restore_observations(
    reference_map: ReferenceMap, row: int, landmarks: LandmarkMap, k: int, first_track: int
) -> None:
    seen = reference_map.observations
    part = slice(int(seen.offsets[row]), int(seen.offsets[row + 1]))
    landmarks.observed[k] = Tracks(seen.landmark[part] + first_track, seen.pixels[part].astype(np.float32))
    named = reference_map.features.landmarks_of(row)
    landmarks.feature_tracks[k] = np.where(named >= 0, named + first_track, -1)


def _restore_edges(table: EdgeTable, graph: KeyframeGraph, first_id: int) -> None:
    for row in range(len(table.i)):
        edge = Edge(
            i=int(table.i[row]) + first_id,
            j=int(table.j[row]) + first_id,
            i_from_j=Similarity(table.rotations[row], table.translations[row], float(table.scales[row])),
            sigmas=table.sigmas[row],
            kind=EdgeKind.LOOP if table.is_loop[row] else EdgeKind.ODOMETRY,
            inliers=int(table.inliers[row]),
            evidence_fraction=float(table.shares[row]),
        )
        graph.set_edge(edge)
        if table.weights[row] < 1.0:
            graph.set_weights({(edge.i, edge.j): float(table.weights[row])})


def _frames(table: FrameTable, first_id: int) -> list[FrameRecord]:
    return [
        FrameRecord(
            index=int(table.indices[row]),
            timestamp_ns=int(table.timestamps_ns[row]),
            keyframe_id=int(table.keyframe[row]) + first_id,
            keyframe_from_frame=rigid(table.rotations[row], table.translations[row]),
        )
        for row in range(len(table.indices))
    ]


# --- units --------------------------------------------------------------------------------------------


def in_units_of_earlier(result: SlamResult) -> SlamResult:
    """The result of a run that has just ended, saying that its path is in meters when it is.

    Nothing but the map that the run began in can have made it so by then.
    """
    if result.segment not in result.graph.metric or not len(result.trajectory):
        return result
    return replace(result, units=Units("meters", "that of the map the run began in"))


def shares_world_with(result: SlamResult, keyframe_ids: Iterable[int]) -> bool:
    """Whether the path shares the world of these keyframes, as those of the map that the run began in."""
    there = {result.graph.segment_of[k] for k in keyframe_ids}
    return result.segment in there and len(result.trajectory) > 0
