"""False loops for the loop closer of a running system, as if geometric verification had confirmed them.

Two kinds: independent ones, and clusters, in which an interval of the path is matched to another place and the loops
are consistent with one another (perceptual aliasing), as in a corridor that looks like another.

Without a `Slip` the false pose is at another place. With one the place is correct and the pose is displaced by the slip
from the ground truth, as on a floor of tiles or before shelves of equal parts, which is plausible.

A false loop is consistent in itself: at least 30 features that are matched to old landmarks lie at the projections of
those under the false pose, all over the image, and its covariance is that of a true loop with these landmarks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from relocalizer.absolute_pose import PoseFit
from relocalizer.features import occupied_cells
from relocalizer.geometry import FloatArray, Similarity, align_points, exp_so3, rotation_angle
from relocalizer.pose_from_matches import EstimatedPose, FeatureMatches, PoseRejected
from slam.evaluation.trajectory import Trajectory
from slam.loop_closing.edge_information import covisible_enough
from slam.loop_closing.loop_closer import LoopCloser
from slam.loop_closing.loop_verifier import Verified
from slam.map.keyframe_graph import Edge, EdgeKind

CLUSTER = 4  # loops of one mistaken place
TRIES = 5
LOG_SCALE_SIGMA = 0.045  # of a true loop
LANDMARKS = (30, 120)  # minimum and maximum number of landmarks of a false loop, limited to those near a feature
NEAR_PX, PIXEL_NOISE = 60.0, 1.0
FALSE_DEG, FALSE_SHARE = 25.0, 0.5  # another place is off by this angle, or by this share of the depth
MIN_GAP = 12  # minimum number of keyframes between the ends of a false loop
AROUND = 8  # number of keyframes on each side that determine the unit of length
MENDED = 0.5  # maximum ratio of the error after guided matching to that before for a corrected loop
PLAUSIBLE = 3  # number of old keyframes with the largest overlap, of which one is the place of a displaced loop


@dataclass(frozen=True, slots=True)
class Slip:
    """By how much a loop is off from the truth, in the truth's unit and in degrees, each in a random direction."""

    length: float = 0.0
    degrees: float = 0.0

    def draw(self, rng: np.random.Generator) -> FloatArray:
        """(4, 4) true_from_false: pose of the false camera in the true one."""
        slip = np.eye(4)
        slip[:3, :3] = exp_so3(np.radians(self.degrees) * direction(rng))
        slip[:3, 3] = self.length * direction(rng)
        return slip


def direction(rng: np.random.Generator) -> FloatArray:
    along = rng.normal(size=3)
    return np.asarray(along / np.linalg.norm(along))


@dataclass(frozen=True, slots=True, eq=False)
class Mistake:
    """Keyframe `k` is matched to the place of `c`; `seen_from` gives the false relative pose of any two keyframes."""

    c: int
    k: int
    seen_from: Callable[[int, int], Similarity]  # (c, k) to the false c_from_k


@dataclass(eq=False)
class FalseLoops:
    """Wraps `close_loops` of a loop closer, which gets false loops at the chosen keyframes.

    Args:
        at: newest keyframes that get a false loop; for clusters, the keyframe at which each begins.
        clustered: clusters instead of independent loops.
        slip: displacement from the ground truth; None for another place.
        truth: ground truth of the run, needed with a slip.
        cluster: loops of one mistaken place.
        min_gap: minimum number of keyframes between the ends of a false loop.
        landmarks: minimum and maximum number of landmarks of a false loop.
        deceived: the image confirms the false loop in guided matching too, which is skipped.
    """

    loop_closer: LoopCloser
    at: frozenset[int]
    clustered: bool
    rng: np.random.Generator
    slip: Slip | None = None
    truth: Trajectory | None = None
    cluster: int = CLUSTER
    deceived: bool = False
    min_gap: int = MIN_GAP
    landmarks: tuple[int, int] = LANDMARKS
    lies: list[Edge] = field(default_factory=list)
    refused: dict[tuple[int, int], str] = field(default_factory=dict)  # by the image, and why
    mended: list[Edge] = field(default_factory=list)  # slips that the image has put right
    _mistake: Mistake | None = None
    _due: int = 0

    @property
    def injected(self) -> set[tuple[int, int]]:
        return {(edge.i, edge.j) for edge in self.lies}

    def is_lie(self, edge: Edge) -> bool:
        """Whether this is a false edge; a true loop may connect the same keyframes."""
        return any(edge is lie for lie in self.lies)

    def install(self) -> None:
        true_loops, true_look = self.loop_closer.close_loops, self.loop_closer._second_look

        def close_loops(k: int) -> bool:
            standing = [loop for lie in self._lies(k) if (loop := self._standing(lie)) is not None]
            lied = any(self.loop_closer._close_if_accepted(loop) for loop in standing)
            return true_loops(k) or lied

        def second_look(c: int, k: int) -> Verified | None:
            if self.clustered and (c, k) in self.injected:
                before = self.loop_closer._map.before(k)
                lie = None if before is None or before <= c else self._injected(c, before)
                return None if lie is None else self._standing(lie)
            return true_look(c, k)

        setattr(self.loop_closer, "close_loops", close_loops)  # noqa: B010
        setattr(self.loop_closer, "_second_look", second_look)  # noqa: B010

    def _standing(self, lie: Verified) -> Verified | None:
        """The false loop after guided matching, which is skipped for deceived images; None if it is rejected."""
        if self.deceived:
            return lie
        borne_out = self.loop_closer._verifier._refine_pose(lie)
        if isinstance(borne_out, PoseRejected):
            self.refused[lie.edge.i, lie.edge.j] = borne_out.reason
            self.loop_closer._reject(lie.edge.i, lie.edge.j, borne_out.reason, borne_out.landmarks)
            return None
        if self.slip and self._off(borne_out.edge, self.slip) <= MENDED * self._off(lie.edge, self.slip):
            self.mended.append(borne_out.edge)
        else:
            self.lies.append(borne_out.edge)
        return borne_out

    def _off(self, edge: Edge, slip: Slip) -> float:
        """Error of a loop: in the unit of the ground truth, or in degrees if the slip is an angle."""
        true = np.linalg.inv(self._true_pose(edge.i)) @ self._true_pose(edge.j)
        if slip.length:
            return float(np.linalg.norm(edge.i_from_j.translation * self._unit(edge.i) - true[:3, 3]))
        return float(np.degrees(rotation_angle(true[:3, :3].T @ edge.i_from_j.rotation)))

    def _lies(self, k: int) -> list[Verified]:
        """False loops due at keyframe k; one that is impossible there is made at the next keyframe that allows it."""
        if self.clustered and self._mistake and 0 < k - self._mistake.k < self.cluster:
            injected = self._injected(self._mistake.c + (k - self._mistake.k) % 2, k)
            return [injected] if injected is not None else []
        self._due += k in self.at
        for _ in range(TRIES if self._due else 0):
            self._mistake = self._begin(k)
            if self._mistake is not None and (injected := self._injected(self._mistake.c, k)) is not None:
                self._due -= 1
                return [injected]
        self._mistake = None
        return []

    def _begin(self, k: int) -> Mistake | None:
        return self._elsewhere(k) if self.slip is None else self._slipped(k, self.slip)

    def _elsewhere(self, k: int) -> Mistake | None:
        graph = self.loop_closer._map.graph
        c = self._another_place(k)
        if c is None:
            return None
        wobble = Similarity(exp_so3(self.rng.normal(0, 0.15, 3)), self._depth(c) * self.rng.normal(0, 0.1, 3))
        false_from_true = graph.world_from_keyframe[c] @ wobble @ graph.world_from_keyframe[k].inverse()

        def seen_from(c: int, k: int) -> Similarity:
            return graph.world_from_keyframe[c].inverse() @ false_from_true @ graph.world_from_keyframe[k]

        return Mistake(c, k, seen_from)

    def _slipped(self, k: int, slip: Slip) -> Mistake | None:
        c = self._same_place(k)
        if c is None:
            return None
        world_from_k = self._true_pose(k)
        false_from_true = world_from_k @ slip.draw(self.rng) @ np.linalg.inv(world_from_k)

        def seen_from(c: int, k: int) -> Similarity:
            step = np.linalg.inv(self._true_pose(c)) @ false_from_true @ self._true_pose(k)
            unit_c, unit_k = self._unit(c), self._unit(k)
            return Similarity(step[:3, :3], step[:3, 3] / unit_c, unit_k / unit_c)

        return Mistake(c, k, seen_from)

    def _another_place(self, k: int) -> int | None:
        """An old keyframe at another place than k."""
        graph = self.loop_closer._map.graph
        here = graph.world_from_keyframe[k]
        for c in self.rng.permutation(self._old(k)).tolist():
            if not len(self._placed(c)):  # as happens in a map that false loops have deformed
                continue
            there = graph.world_from_keyframe[c]
            away = np.linalg.norm(there.translation - here.translation)
            turned = np.degrees(rotation_angle(there.rotation.T @ here.rotation))
            if turned > FALSE_DEG or away > FALSE_SHARE * self._depth(c) * there.scale:
                return int(c)
        return None

    def _same_place(self, k: int) -> int | None:
        """An old keyframe that overlaps with k, one of the best few that are not covisible with it."""
        old = self._old(k)
        connected = covisible_enough(self.loop_closer._map, k, old)
        free = [c for c in old if c not in connected and (c, k) not in self.loop_closer._map.graph.edges]
        if not free:
            return None
        here = self._true_pose(k)

        def apart(c: int) -> float:
            there = self._true_pose(c)
            away = float(np.linalg.norm(there[:3, 3] - here[:3, 3])) / (self._depth(c) * self._unit(c))
            return away + 2.0 * float(rotation_angle(there[:3, :3].T @ here[:3, :3]))

        return int(self.rng.choice(sorted(free, key=apart)[:PLAUSIBLE]))

    def _old(self, k: int) -> list[int]:
        return [c for c in self.loop_closer._map.graph.keyframes if c < k - self.min_gap]

    def _true_pose(self, k: int) -> FloatArray:
        assert self.truth is not None
        stamp = self.loop_closer._map.graph.keyframes[k].timestamp_ns
        return self.truth.world_from_cam[int(np.abs(self.truth.timestamps_ns - stamp).argmin())]

    def _unit(self, c: int) -> float:
        """The truth's unit in keyframe c's own, by the path around it."""
        poses = self.loop_closer._map.graph.world_from_keyframe
        near = [k for k in range(c - AROUND, c + AROUND + 1) if k in poses]
        truth = np.array([self._true_pose(k)[:3, 3] for k in near])
        return align_points(truth, np.array([poses[k].translation for k in near])).scale * poses[c].scale

    def _depth(self, c: int) -> float:
        """Median depth of the landmarks of a keyframe, in its own units."""
        slam_map = self.loop_closer._map
        points = slam_map.landmarks.points_world(self._placed(c), slam_map.graph)
        return float(np.median(slam_map.graph.world_from_keyframe[c].inverse().apply(points)[:, 2]))

    def _placed(self, c: int) -> NDArray[np.int64]:
        landmarks = self.loop_closer._map.landmarks
        ids = landmarks.observed[c].ids
        return ids[landmarks.is_triangulated(ids)]

    def _injected(self, c: int, k: int) -> Verified | None:
        """The false loop c-k with the noise of a true one; None with too few landmarks in the image."""
        assert self._mistake is not None
        graph = self.loop_closer._map.graph
        if c not in graph.keyframes or c >= k:  # a merged map has no keyframe of every number
            return None
        believed = self._mistake.seen_from(c, k)
        landmarks = self._near_features(c, k, graph.world_from_keyframe[c] @ believed)
        if len(landmarks) < self.landmarks[0]:
            return None
        found = self._found(landmarks, graph.world_from_keyframe[c] @ believed)
        keyframe = graph.keyframes[k]
        cells = occupied_cells(keyframe.features.pixels[found.matches.feature], keyframe.camera)
        if cells < self.loop_closer._config.min_cells:
            return None
        sigmas = np.array(self.loop_closer._verifier.loop_edge(c, k, found).sigmas)
        sigmas[6] = LOG_SCALE_SIGMA
        noise = self.rng.normal(0, sigmas)
        i_from_j = believed @ Similarity(exp_so3(noise[:3]), noise[3:6] / believed.scale, float(np.exp(noise[6])))
        found = self._found(landmarks, graph.world_from_keyframe[c] @ i_from_j)
        edge = Edge(i=c, j=k, i_from_j=i_from_j, sigmas=sigmas, kind=EdgeKind.LOOP, inliers=len(landmarks))
        self.lies.append(edge)
        return Verified(edge, found)

    def _seen_from(self, k: int, ids: NDArray[np.int64], world_from_k: Similarity) -> FloatArray:
        """Pixels (N, 2) of landmarks in keyframe k at a pose; far outside where they lie behind it."""
        slam_map = self.loop_closer._map
        in_cam = np.asarray(world_from_k.rigid.inv().apply(slam_map.landmarks.points_world(ids, slam_map.graph)))
        pixels = slam_map.graph.keyframes[k].camera.project(np.where(in_cam[:, 2:] > 0, in_cam, [1e6, 1e6, 1.0]))
        return np.where(in_cam[:, 2:] > 0, pixels, 1e6)

    def _near_features(self, c: int, k: int, world_from_k: Similarity) -> dict[int, int]:
        """Landmarks of c and the feature of k that each lies next to, seen from the false pose; the nearest first."""
        keyframe, ids = self.loop_closer._map.graph.keyframes[k], self._placed(c)
        away, feature = cKDTree(keyframe.features.pixels).query(self._seen_from(k, ids, world_from_k))
        nearest = [n for n in np.argsort(away, kind="stable") if away[n] < NEAR_PX]
        most, pairs = int(self.rng.integers(*self.landmarks)), {}
        for n in nearest:
            pairs.setdefault(int(feature[n]), int(ids[n]))
        return {landmark: f for f, landmark in [*pairs.items()][:most]}

    def _found(self, landmarks: dict[int, int], world_from_k: Similarity) -> EstimatedPose:
        """The pose that the features of a keyframe, matched to these landmarks, seem to confirm."""
        ids, feature = np.array([*landmarks]), np.array([*landmarks.values()])
        fit = PoseFit(world_from_k.rigid, np.ones(len(ids), bool), np.eye(6))
        return EstimatedPose(fit, FeatureMatches(ids, feature))


def where_to_lie(
    keyframes: int, count: int, *, clustered: bool, rng: np.random.Generator, cluster: int = CLUSTER, first: int = 20
) -> frozenset[int]:
    """Keyframes, from `first` on, at which `count` false loops begin: one each, or a cluster each."""
    starts = -(-count // cluster) if clustered else count
    return frozenset(int(k) for k in rng.choice(np.arange(first, keyframes - cluster), starts, replace=False))
