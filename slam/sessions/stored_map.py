"""Conversion between the live map (`SlamMap`) and the stored map (`ReferenceMap`), and continuation of a stored map."""

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
    """The parts of a loaded map that `SlamMap` does not contain; empty for a run that starts without a map.

    Attributes:
        keyframe_ids: current ids of its keyframes, in the order of the stored map's rows.
        frames: its frames, stored relative to these keyframes.
        jpeg: by current keyframe id, the image as the bytes of a JPEG file.
        sessions: its sessions, in terms of current keyframe ids and rows of `frames`.
    """

    keyframe_ids: tuple[int, ...] = ()
    frames: Sequence[FrameRecord] = ()
    jpeg: Mapping[int, Callable[[], bytes]] = field(default_factory=dict)
    sessions: tuple[Session, ...] = ()

    @property
    def last_id(self) -> int:
        """Highest id of its keyframes, above which those of the run begin; -1 without keyframes."""
        return max(self.keyframe_ids, default=-1)

    def image(self, k: int, of_the_run: Callable[[int], bytes]) -> bytes:
        """The image of a keyframe of this map or of the run that continues it."""
        return self.jpeg[k]() if k in self.jpeg else of_the_run(k)


# --- from the live map to the stored map --------------------------------------------------------------


def run_to_reference_map(
    slam_map: SlamMap,
    prior_map: PriorMap,
    frames: Sequence[FrameRecord],
    provenance: Provenance,
    jpeg: Callable[[int], bytes],
) -> ReferenceMap:
    """The stored map of a run, which includes the map that the run continued.

    Args:
        frames: the frames of the run only.
        jpeg: image of a keyframe of the run, by its id, as the bytes of a JPEG file.
    """
    return to_reference_map(
        slam_map,
        [*prior_map.frames, *frames],
        provenance,
        lambda k: prior_map.image(k, jpeg),
        (*prior_map.sessions, Session(prior_map.last_id + 1, len(prior_map.frames))),
    )


def to_reference_map(
    slam_map: SlamMap,
    frames: Sequence[FrameRecord],
    provenance: Provenance,
    jpeg: Callable[[int], bytes],
    sessions: tuple[Session, ...] = (Session(0, 0),),
) -> ReferenceMap:
    """The stored map. It contains only the local features with a track, and tracks are renumbered without gaps.

    Its units are the current units of each segment in the graph; those in `provenance` are replaced.

    Args:
        frames: all frames that are stored relative to the keyframes of the map.
        jpeg: image of a keyframe, by its id, as the bytes of a JPEG file.
    """
    graph, landmarks = slam_map.graph, slam_map.landmarks
    ids = sorted(graph.keyframes)
    cameras = tuple(dict.fromkeys(graph.keyframes[k].camera for k in ids))
    new_id = _new_track_ids(landmarks, ids)
    sizes = [(graph.keyframes[k].camera.width, graph.keyframes[k].camera.height) for k in ids]
    return ReferenceMap(
        provenance=_in_units_of(graph, provenance),
        cameras=cameras,
        keyframes=_keyframe_table(graph, ids, cameras),
        features=_feature_table(graph, landmarks, ids, new_id),
        observations=_observation_table(landmarks, ids, new_id),
        landmarks=_landmark_table(landmarks, new_id),
        edges=_edge_table(graph),
        frames=_frame_table(frames),
        image=JpegImages(lambda row: jpeg(ids[row]), sizes),
        sessions=sessions,
        image_names=_names([graph.keyframes[k].name for k in ids]),
    )


def _names(names: Sequence[str]) -> tuple[str, ...]:
    """The names of the images; () if none has one."""
    return tuple(names) if any(names) else ()


def _in_units_of(graph: KeyframeGraph, provenance: Provenance) -> Provenance:
    """The provenance with the units of the graph: meters if any segment is metric."""
    segments = set(graph.segment_of.values())
    sources = [graph.metric[segment] for segment in sorted(segments & graph.metric.keys())]
    return replace(
        provenance,
        units="meters" if sources else "map units",
        scale_source=sources[0] if sources else "",
        unanchored=tuple(sorted(segments - graph.metric.keys())) if sources else (),
    )


def _new_track_ids(landmarks: LandmarkMap, ids: Sequence[int]) -> Ids:
    """By track id, the id without gaps; -1 for tracks that are neither observed nor landmarks."""
    referenced = [landmarks.landmark_ids()]
    for k in ids:
        referenced += [landmarks.observed[k].ids, landmarks.feature_tracks[k]]
    used = np.unique(np.concatenate(referenced))
    used = used[used >= 0]
    new_ids = np.full(int(used.max(initial=-1)) + 1, -1, np.int64)
    new_ids[used] = np.arange(len(used))
    return new_ids


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


def _feature_table(graph: KeyframeGraph, landmarks: LandmarkMap, ids: Sequence[int], new_id: Ids) -> FeatureTable:
    kept = [np.flatnonzero(landmarks.feature_tracks[k] >= 0) for k in ids]
    features = [graph.keyframes[k].features for k in ids]
    tracks = [landmarks.feature_tracks[k][rows] for k, rows in zip(ids, kept, strict=True)]
    pairs = list(zip(features, kept, strict=True))
    return FeatureTable(
        offsets=_offsets(kept),
        pixels=_joined([f.pixels[rows] for f, rows in pairs], np.zeros((0, 2), np.float32)),
        scales=_joined([f.scales[rows] for f, rows in pairs], np.zeros(0, np.float32)),
        descriptors=_joined([quantized(f.descriptors[rows]) for f, rows in pairs], np.zeros((0, 128), np.uint8)),
        landmark=_renumbered(_joined(tracks, np.zeros(0, np.int64)), new_id),
    )


def _observation_table(landmarks: LandmarkMap, ids: Sequence[int], new_id: Ids) -> ObservationTable:
    observed = [landmarks.observed[k] for k in ids]
    return ObservationTable(
        offsets=_offsets(observed),
        landmark=_renumbered(_joined([tracks.ids for tracks in observed], np.zeros(0, np.int64)), new_id),
        pixels=_joined([tracks.pixels for tracks in observed], np.zeros((0, 2), np.float32)),
    )


def _landmark_table(landmarks: LandmarkMap, new_id: Ids) -> LandmarkTable:
    ids = landmarks.landmark_ids()  # ascending, and so are the new ids
    return LandmarkTable(
        ids=_renumbered(ids, new_id),
        anchor=landmarks.anchor[ids].copy(),
        points_in_anchor=landmarks.point_in_anchor[ids].copy(),
        inverse_depth_sigma=landmarks.inverse_depth_sigma[ids].copy(),
        descriptors=quantized(landmarks.descriptor[ids]),
        colors=landmarks.color[ids].copy(),
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


def _joined(parts: Sequence[NDArray[Any]], empty: NDArray[Any]) -> NDArray[Any]:
    """The parts concatenated; `empty` gives the shape and type if there are none."""
    return np.concatenate([empty, *parts])


def _renumbered(track_ids: Ids, new_id: Ids) -> Ids:
    return np.asarray(new_id[track_ids], dtype=np.int64)


# --- from the stored map to the live map --------------------------------------------------------------


def restore(
    reference_map: ReferenceMap,
    slam_map: SlamMap,
    predictor: PosePredictor,
    retriever: Retriever | None,
    *,
    gap: int = 0,
) -> PriorMap:
    """Add a stored map to a live map. Keyframes, tracks and segments get new ids after the existing ones.

    In an empty live map all ids stay the same.

    Args:
        retriever: the descriptors of the keyframes are added to it; None leaves that to the caller.
        gap: number of ids left free between the existing keyframes and the new ones.

    Raises:
        MapError: the predictor cannot read this map, or an image it needs is missing.
    """
    check_predictor(reference_map.provenance, predictor)
    graph, table = slam_map.graph, reference_map.keyframes
    first_id = graph.last_id + 1 + gap if graph.keyframes else 0
    first_segment = slam_map.next_segment
    first_track = _restore_tracks(reference_map, slam_map, first_id)
    for number in np.unique(table.segment).tolist():
        if reference_map.units_of(number) == "meters":
            slam_map.mark_metric(number + first_segment, reference_map.provenance.scale_source)
    for row in range(len(table)):
        keyframe = _keyframe(reference_map, row, predictor, first_id)
        segment = int(table.segment[row]) + first_segment
        tracks, feature_tracks = _observations(reference_map, row, first_track)
        slam_map.insert_keyframe(keyframe, table.world_from_keyframe(row), segment, tracks, feature_tracks)
        if retriever is not None:
            retriever.add(keyframe.id, keyframe.descriptor)
    _restore_edges(reference_map.edges, slam_map, first_id)
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
        name=reference_map.image_name(row),
    )


def _restore_tracks(reference_map: ReferenceMap, slam_map: SlamMap, first_id: int) -> int:
    """Restore ids, descriptors and positions of all tracks; the current id of the stored track 0."""
    features, observations, table = reference_map.features, reference_map.observations, reference_map.landmarks
    highest = max(int(ids.max(initial=-1)) for ids in (features.landmark, observations.landmark, table.ids))
    descriptors, colors = np.zeros((highest + 1, 128), np.float32), np.zeros((highest + 1, 3), np.uint8)
    tracks, feature = np.unique(features.landmark, return_index=True)
    feature, tracks = feature[tracks >= 0], tracks[tracks >= 0]
    descriptors[tracks] = restored(features.descriptors[feature])
    descriptors[table.ids] = restored(table.descriptors)
    colors[table.ids] = table.colors
    new = slam_map.add_tracks(descriptors, colors)
    slam_map.add_landmarks(new[table.ids], table.points_in_anchor, table.anchor + first_id, table.inverse_depth_sigma)
    return int(new[0]) if len(new) else 0


def _observations(reference_map: ReferenceMap, row: int, first_track: int) -> tuple[Tracks, Ids]:
    """The tracks that a stored keyframe observes, and the current track id of each of its features, -1 for none."""
    table = reference_map.observations
    rows = slice(int(table.offsets[row]), int(table.offsets[row + 1]))
    tracks = Tracks(table.landmark[rows] + first_track, table.pixels[rows].astype(np.float32))
    track_ids = reference_map.features.landmarks_of(row)
    return tracks, np.where(track_ids >= 0, track_ids + first_track, -1)


def _restore_edges(table: EdgeTable, slam_map: SlamMap, first_id: int) -> None:
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
        slam_map.set_edge(edge, float(table.weights[row]))


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


def in_units_of_prior_map(result: SlamResult) -> SlamResult:
    """The result of a run that has just ended, in meters if its segment belongs to a metric map that it continued."""
    if result.segment not in result.graph.metric or not len(result.trajectory):
        return result
    return replace(result, units=Units("meters", "that of the map the run began in"))


def shares_world_with(result: SlamResult, keyframe_ids: Iterable[int]) -> bool:
    """Whether the trajectory is in the world of any of these keyframes, such as those of the continued map."""
    segments = {result.graph.segment_of[k] for k in keyframe_ids}
    return result.segment in segments and len(result.trajectory) > 0
