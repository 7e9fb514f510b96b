"""Loops that are not true, told to the linker of a running system as if geometry had spoken for them.

Two kinds: strangers, each wrong in its own way, and clusters, in which a whole stretch of the path is taken for another
place and every loop agrees with the next, as in a corridor that looks like another.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from relocalizer.absolute_pose import PoseFit
from relocalizer.geometry import Similarity, exp_so3, rotation_angle
from slam.graph import Edge, EdgeKind
from slam.linking import Linker, Verified
from slam.localization import FeatureMatches, Localised
from slam.tracks import Tracks

CLUSTER = 4  # loops of one mistaken place
SIGMAS = np.array([0.005, 0.005, 0.005, 0.01, 0.01, 0.01, 0.03])  # of a true loop; lengths as a share of the depth
FALSE_DEG, FALSE_SHARE = 25.0, 0.5  # a loop is false when off by this angle, or by this share of the depth


@dataclass(eq=False)
class FalseLoops:
    """Wraps a linker's `close_loops`: from the chosen keyframes on it believes to see other places too.

    Args:
        at: at which newest keyframes to lie; for clusters, the keyframe where each begins.
        clustered: how; see above.
    """

    linker: Linker
    at: frozenset[int]
    clustered: bool
    rng: np.random.Generator
    told: set[tuple[int, int]] = field(default_factory=set)
    _mistake: tuple[int, int, Similarity] | None = None  # first old keyframe, newest keyframe so far, false from true

    def install(self) -> None:
        true_loops, true_look = self.linker.close_loops, self.linker._second_look

        def close_loops(k: int) -> bool:
            lied = any(self.linker._close_if_believed(loop) for loop in self._lies(k))
            return true_loops(k) or lied

        def second_look(c: int, k: int) -> Verified | None:
            if self.clustered and (c, k) in self.told and self._mistake is not None:
                return self._seen(c, k - 1, self._mistake[2])
            return true_look(c, k)

        setattr(self.linker, "close_loops", close_loops)  # noqa: B010
        setattr(self.linker, "_second_look", second_look)  # noqa: B010

    def _lies(self, k: int) -> list[Verified]:
        graph = self.linker._mapper.graph
        if k in self.at and (c := self._another_place(k)) is not None:
            wobble = Similarity(exp_so3(self.rng.normal(0, 0.15, 3)), self._depth(c) * self.rng.normal(0, 0.1, 3))
            seen_from = graph.world_from_keyframe[c] @ wobble
            self._mistake = (c, k, seen_from @ graph.world_from_keyframe[k].inverse())
            return [self._seen(c, k, self._mistake[2])]
        if self.clustered and self._mistake and 0 < k - self._mistake[1] < CLUSTER:
            return [self._seen(self._mistake[0] + (k - self._mistake[1]) % 2, k, self._mistake[2])]
        return []

    def _another_place(self, k: int) -> int | None:
        """An old keyframe that k is surely not at."""
        graph = self.linker._mapper.graph
        here = graph.world_from_keyframe[k]
        for c in self.rng.permutation(max(k - 12, 0)).tolist():
            there = graph.world_from_keyframe[c]
            away = np.linalg.norm(there.translation - here.translation)
            turned = np.degrees(rotation_angle(there.rotation.T @ here.rotation))
            if turned > FALSE_DEG or away > FALSE_SHARE * self._depth(c) * there.scale:
                return int(c)
        return None

    def _depth(self, c: int) -> float:
        """Median depth of what a keyframe sees, in its own units."""
        mapper = self.linker._mapper
        ids = mapper.landmarks.observed[c].ids
        points = mapper.landmarks.points_world(ids[mapper.landmarks.has_place(ids)], mapper.graph)
        return float(np.median(mapper.graph.world_from_keyframe[c].inverse().apply(points)[:, 2]))

    def _seen(self, c: int, k: int, false_from_true: Similarity) -> Verified:
        """The loop c-k of a map in which k is where the mistake puts it, with a true loop's noise."""
        mapper = self.linker._mapper
        graph, landmarks = mapper.graph, mapper.landmarks
        self.told.add((c, k))
        noise = self.rng.normal(0, SIGMAS)
        sigmas = SIGMAS * np.repeat([1.0, self._depth(c), 1.0], [3, 3, 1])
        believed = graph.world_from_keyframe[c].inverse() @ false_from_true @ graph.world_from_keyframe[k]
        error = Similarity(exp_so3(noise[:3]), self._depth(c) * noise[3:6], float(np.exp(noise[6])))
        i_from_j = believed @ error
        old = landmarks.observed[c].ids[landmarks.has_place(landmarks.observed[c].ids)]
        count = min(int(self.rng.integers(30, 120)), len(old), len(graph.keyframes[k].features))
        feature = self.rng.choice(len(graph.keyframes[k].features), count, replace=False)
        matches = FeatureMatches(
            Tracks(self.rng.choice(old, count, replace=False), graph.keyframes[k].features.pixels[feature]), feature
        )
        fit = PoseFit((graph.world_from_keyframe[c] @ i_from_j).rigid, np.ones(count, bool), np.eye(6))
        edge = Edge(i=c, j=k, i_from_j=i_from_j, sigmas=sigmas, kind=EdgeKind.LOOP, inliers=count)
        return Verified(edge, Localised(fit, matches, Tracks.none()))


def where_to_lie(keyframes: int, count: int, *, clustered: bool, rng: np.random.Generator) -> frozenset[int]:
    """Keyframes, not the first twenty, at which `count` false loops begin: one each, or a cluster each."""
    starts = -(-count // CLUSTER) if clustered else count
    return frozenset(int(k) for k in rng.choice(np.arange(20, keyframes - 4), starts, replace=False))
