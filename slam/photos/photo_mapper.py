"""Incremental structure from motion: the map grows from an initial pair by the photo that matches it best.

As in Schoenberger and Frahm, "Structure-from-motion revisited", 2016, on the modules of the system: a photo is
localized by the landmarks of the mapped photos that it matches, and inserted as a keyframe. Photos that nothing
connects to the map begin further segments, which loop closing joins where it can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from relocalizer.geometry import Similarity
from slam.components.modules import Modules
from slam.config.schema import SlamConfig
from slam.events import FrameLocalizedLater
from slam.map.frames import Frame, FrameObservation, InitialPair, Keyframe
from slam.map.tracks import Tracks
from slam.photos.pair_localization import MappedPartner, localize_from_pair
from slam.photos.view_graph import ViewGraph
from slam.progress import Progress, no_progress
from slam.relocalization.deferred import StoredFrame
from slam.relocalization.frame_relocalizer import RelocalizedFrame

INITIAL_PAIRS = 10  # number of pairs among which the initial pair of a segment is chosen
ENOUGH_PARALLAX_DEG = 8.0  # parallax of an initial pair beyond which only its number of tracks counts
CANDIDATES = 5  # maximum number of mapped photos in which a photo is localized at a time
JOINED = 3  # maximum number of keyframes of other segments in which a keyframe is localized
GROWTH = 1.2  # growth of a segment until its next global bundle adjustment


@dataclass(frozen=True, slots=True, eq=False)
class Photo:
    """A collected photo: its observation without pixels, and its compressed image."""

    observation: FrameObservation
    stored: StoredFrame

    def restored(self) -> FrameObservation:
        """The observation with its image."""
        return replace(self.observation, frame=self.stored.frame())


class PhotoMapper:
    """Maps photos in the order of the view graph. Every photo with a pose becomes a keyframe."""

    def __init__(self, config: SlamConfig, modules: Modules) -> None:
        self._config = config
        self._modules = modules
        self._map = modules.map
        self._photos: Sequence[Photo] = ()
        self._views = ViewGraph({}, {})
        self._number_of: dict[int, int] = {}  # by index of a frame, the number of its photo
        self._keyframe_of: dict[int, int] = {}  # by number of a photo, its keyframe, and the reverse
        self._photo_of: dict[int, int] = {}
        self._tried: dict[int, set[int]] = {}  # by number of a photo, the mapped photos in which it was not found
        self._rejected: set[tuple[int, int]] = set()  # pairs that cannot initialize a segment
        self._adjusted: dict[int, int] = {}  # by segment, its number of keyframes at the last global adjustment

    def map_photos(self, photos: Sequence[Photo], views: ViewGraph, on_progress: Progress = no_progress) -> list[Photo]:
        """Map the photos; returns those without a pose, in order."""
        self._photos = photos
        self._views = views
        self._number_of = {photo.stored.index: n for n, photo in enumerate(photos)}
        graph = self._map.graph
        self._adjusted = {segment: len(graph.segment(segment)) for segment in set(graph.segment_of.values())}
        if graph.keyframes:
            self._localize_in_map(on_progress)
        self._grow(on_progress)
        while self._begin_segment():
            self._grow(on_progress)
        return [photo for n, photo in enumerate(photos) if n not in self._keyframe_of]

    def insert(self, found: RelocalizedFrame, reason: str) -> Keyframe:
        """Insert a localized photo as a keyframe: landmarks, edges, bundle adjustment, loops."""
        graph, observation, parts = self._map.graph, found.observation, self._modules
        pose = Similarity.from_rigid(found.world_from_cam, graph.world_from_keyframe[found.keyframe_id].scale)
        keyframe = parts.mapper.insert(observation, found.tracks, pose, graph.segment_of[found.keyframe_id])
        parts.images.store(keyframe.id, observation.frame.image)
        parts.odometry_edges.relate_to_covisible(keyframe.id)
        self._adjust(keyframe.id)
        self._activate(keyframe, observation.frame, found.landmarks, reason)
        return keyframe

    def overlapping(self, k: int) -> list[int]:
        """The keyframes of other segments whose photos may overlap with that of keyframe k, the likeliest first."""
        graph = self._map.graph
        n = self._photo_of.get(k)
        if n is None:  # a keyframe of the map in which the run started
            return []
        keyframes = [self._keyframe_of[m] for m in self._views.likeliest(n) if m in self._keyframe_of]
        return [c for c in keyframes if graph.segment_of[c] != graph.segment_of[k]][:JOINED]

    def _localize_in_map(self, on_progress: Progress) -> None:
        """Insert the photos that are recognized in the map in which the run started."""
        last = self._map.graph.last_id
        for n, photo in enumerate(self._photos):
            on_progress("photos localized in the map", n, len(self._photos))
            found = self._modules.relocalizer.relocalize(photo.restored(), last)
            if isinstance(found, RelocalizedFrame):
                self._modules.events.relocalized(found, 0)
                self.insert(found, f"recognized {len(found.landmarks)} landmarks")

    # --- initialization -------------------------------------------------------------------------------

    def _begin_segment(self) -> bool:
        """Begin a segment with the best initial pair of photos without a pose; False if there is none."""
        rest = [n for n in range(len(self._photos)) if n not in self._keyframe_of]
        best, best_score, tried = None, 0.0, 0
        for pair in self._views.pairs(rest):
            if pair in self._rejected:
                continue
            if tried >= INITIAL_PAIRS and best is not None:
                break
            tried += 1
            initial = self._initial_pair(pair)
            if initial is None:
                continue
            score = len(initial.second.tracks) * min(1.0, initial.parallax_deg / ENOUGH_PARALLAX_DEG)
            if best is None or score > best_score:
                best, best_score = initial, score
        if best is None:
            return False
        self._begin(best)
        return True

    def _initial_pair(self, pair: tuple[int, int]) -> InitialPair | None:
        """The initial pair of two photos; None, and the pair is remembered, if it cannot initialize a segment."""
        first, second = (self._photos[n].restored() for n in pair)
        outcome = self._modules.initializer.pair_of(first, second)
        if isinstance(outcome, InitialPair):
            return outcome
        self._rejected.add(pair)
        return None

    def _begin(self, pair: InitialPair) -> None:
        """Insert the initial pair of a segment."""
        parts = self._modules
        keyframes = parts.mapper.begin_segment(pair)
        for keyframe, observation in zip(keyframes, (pair.first, pair.second), strict=True):
            parts.images.store(keyframe.id, observation.frame.image)
        parts.events.initialized(pair, keyframes[0].id, keyframes[1].id)
        names = ("first of the first pair", "second of the first pair")
        for keyframe, observation, name in zip(keyframes, (pair.first, pair.second), names, strict=True):
            self._activate(keyframe, observation.frame, self._map.landmarks.observed[keyframe.id], name)

    # --- growth ---------------------------------------------------------------------------------------

    def _grow(self, on_progress: Progress) -> None:
        """Localize and insert the photos that match the map, best first, until none is found any more."""
        while (n := self._next()) is not None:
            on_progress("photos", len(self._keyframe_of), len(self._photos))
            partners = self._mapped_partners(n)
            found = self._localize(self._photos[n].restored(), n, partners)
            if found is None:
                self._tried.setdefault(n, set()).update(partners)
                continue
            self.insert(found, f"recognized {len(found.landmarks)} landmarks")

    def _localize(self, observation: FrameObservation, n: int, partners: list[int]) -> RelocalizedFrame | None:
        """The pose of photo n in the map, from the landmarks of its partners or else from one of its pairs."""
        first, *others = [self._keyframe_of[m] for m in partners]
        found = self._modules.relocalizer.relocalize(observation, first, among=others)
        if isinstance(found, RelocalizedFrame):
            return found
        for m in partners:
            estimate = self._views.estimate(m, n)
            assert estimate is not None
            from_pair = localize_from_pair(self._map, observation, MappedPartner(self._keyframe_of[m], estimate))
            if from_pair is not None:
                return from_pair
        return None

    def _next(self) -> int | None:
        """The photo without a pose that has the most matches with mapped photos it was not compared with yet."""
        support = {
            n: sum(sorted(self._open(n).values())[-CANDIDATES:])
            for n in range(len(self._photos))
            if n not in self._keyframe_of
        }
        best = max(support, key=lambda n: (support[n], -n), default=None)
        return best if best is not None and support[best] else None

    def _open(self, n: int) -> dict[int, float]:
        """The mapped photos that photo n matches and was not compared with yet, with their weights."""
        tried = self._tried.get(n, set())
        partners = self._views.partners(n)
        return {m: weight for m, weight in partners.items() if m in self._keyframe_of and m not in tried}

    def _mapped_partners(self, n: int) -> list[int]:
        """The mapped photos that photo n is compared with next, those with the most matches first."""
        open_partners = self._open(n)
        return sorted(open_partners, key=lambda m: (-open_partners[m], m))[:CANDIDATES]

    def _activate(self, keyframe: Keyframe, frame: Frame, landmarks: Tracks, reason: str) -> None:
        """Log a new keyframe, add its edges and close its loops."""
        parts, k = self._modules, keyframe.id
        n = self._number_of[frame.index]
        self._keyframe_of[n], self._photo_of[k] = k, n
        parts.events.keyframe_added(keyframe, reason, frame.image)
        parts.odometry_edges.add_odometry_edges(k, self._config.bundle_adjustment.window)
        closed = parts.loop_closer.close_loops(k, among=self._possible_loops(n))
        parts.loop_detector.add(k)
        if closed:
            parts.mapper.adjustment.local_bundle_adjustment(k)
        parts.log.add(frame, self._map.pose_of(k).rigid, landmarks, k, self._map.graph)
        parts.events.publish(
            FrameLocalizedLater(
                frame_index=frame.index, timestamp_ns=frame.timestamp_ns, keyframe_id=k, inliers=len(landmarks)
            )
        )
        parts.events.landmarks_updated_after_keyframe(k, frame.index)

    def _adjust(self, k: int) -> None:
        """Global bundle adjustment of a segment that has grown by `GROWTH` since the last one, else a local one."""
        graph, adjustment = self._map.graph, self._modules.mapper.adjustment
        segment = graph.segment_of[k]
        size = len(graph.segment(segment))
        if size < GROWTH * self._adjusted.get(segment, 2):
            adjustment.local_bundle_adjustment(k)
            return
        adjustment.global_bundle_adjustment(segment)
        self._adjusted[segment] = size

    def _possible_loops(self, n: int) -> list[int]:
        """The keyframes of photos that overlap with photo n, and all of the map in which the run started."""
        partners, photo_of = self._views.partners(n), self._photo_of
        return [k for k in self._map.graph.keyframes if k not in photo_of or photo_of[k] in partners]
