"""The view graph: which photos overlap. Pairs are found by their descriptors, and verified by the pair predictor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import DisjointSet

from relocalizer.features import LocalFeatures, match_features
from relocalizer.interfaces import Encoded, NoEstimate, PairEstimate, PosePredictor
from slam.predictor_checks import relate
from slam.progress import Progress, no_progress

# Up to this number of photos every pair is compared. Above it a photo is compared with those with the most similar
# place descriptors, which miss a third of the pairs that overlap, but hardly ever all of one photo.
EXHAUSTIVE_PHOTOS = 300
RETRIEVED = 40
NEXT_IN_ORDER = 2  # number of the following files that a photo is compared with: many people walk as they take photos
COARSE_FEATURES = 300  # number of features of a photo by which it is compared, those of the largest scale
MIN_MATCHES = 5  # minimum number of coarse matches of a pair that is verified
VERIFIED = 8  # maximum number of pairs verified per photo, those with the most matches; a pair counts for both photos
ENOUGH = 5  # number of confident partners from which on a photo needs no more
MIN_CONFIDENCE = 0.1  # minimum confidence of a verified pair


@dataclass(frozen=True, slots=True)
class PhotoFeatures:
    """What a photo is matched by: its local features, the predictor's encoding, and its place descriptor (D,)."""

    features: LocalFeatures
    encoded: Encoded
    descriptor: NDArray[np.float32]


class ViewGraph:
    """Photos, by their number from 0, and the pairs of them that overlap (the scene graph of COLMAP)."""

    def __init__(
        self, estimates: Mapping[tuple[int, int], PairEstimate], counts: Mapping[tuple[int, int], int]
    ) -> None:
        """Args:
        estimates: i_from_j of the pairs (i, j), i < j, that overlap.
        counts: number of coarse matches of all pairs that were compared.
        """
        self._estimates = dict(estimates)
        self._counts: dict[int, dict[int, int]] = {}
        self._partners: dict[int, dict[int, float]] = {}
        for (i, j), count in counts.items():
            self._counts.setdefault(i, {})[j] = count
            self._counts.setdefault(j, {})[i] = count
        for (i, j), estimate in estimates.items():
            weight = estimate.confidence * (estimate.inliers or counts[i, j])
            self._partners.setdefault(i, {})[j] = weight
            self._partners.setdefault(j, {})[i] = weight

    def estimate(self, i: int, j: int) -> PairEstimate | None:
        """i_from_j of a pair that overlaps; None for any other pair."""
        if i > j:
            reverse = self._estimates.get((j, i))
            return None if reverse is None else reverse.reversed()
        return self._estimates.get((i, j))

    def partners(self, i: int) -> Mapping[int, float]:
        """The photos that overlap with photo i, each with the number of matches of the pair times its confidence."""
        return self._partners.get(i, {})

    def likeliest(self, i: int) -> list[int]:
        """The photos that may overlap with photo i: the verified ones, then those with the most matches."""
        verified, counts = self.partners(i), self._counts.get(i, {})
        return sorted(counts, key=lambda j: (-verified.get(j, 0.0), -counts[j], j))

    def pairs(self, among: Iterable[int]) -> list[tuple[int, int]]:
        """The overlapping pairs (i, j), i < j, of some photos, in descending order of the weights of `partners`."""
        members = set(among)
        found = [(i, j) for i in members for j in self.partners(i) if i < j and j in members]
        return sorted(found, key=lambda pair: (-self._partners[pair[0]][pair[1]], pair))


def build_view_graph(
    photos: Sequence[PhotoFeatures], predictor: PosePredictor, *, ratio: float, on_progress: Progress = no_progress
) -> ViewGraph:
    """The view graph of photos.

    Pairs are compared by their coarse features, and only the best of every photo are verified with all features
    (preemptive feature matching, Wu, "Towards linear-time incremental structure from motion", 2013).

    Args:
        ratio: maximum ratio of the descriptor distances to the nearest and the second nearest neighbor.
    """
    pairs = pairs_to_compare([photo.descriptor for photo in photos])
    coarse = [coarse_features(photo.features).descriptors for photo in photos]
    counts = {}
    for done, (i, j) in enumerate(pairs):
        on_progress("pairs of photos compared", done, len(pairs))
        counts[i, j] = len(match_features(coarse[i], coarse[j], ratio=ratio))
    return ViewGraph(verified_pairs(photos, counts, predictor, on_progress), counts)


def verified_pairs(
    photos: Sequence[PhotoFeatures],
    counts: Mapping[tuple[int, int], int],
    predictor: PosePredictor,
    on_progress: Progress = no_progress,
) -> dict[tuple[int, int], PairEstimate]:
    """The estimates of the pairs that overlap, among the best ones of every photo; those with the most matches first.

    A pair of two photos that have `ENOUGH` confident partners each is left out, unless it connects two components of
    the graph: the graph has the components that it has with all pairs.

    Args:
        counts: number of coarse matches of all pairs that were compared.
    """
    estimates = {}
    confident = [0] * len(photos)  # number of confident partners of each photo
    components = DisjointSet(range(len(photos)))
    best = best_pairs(counts, VERIFIED)
    for done, (i, j) in enumerate(sorted(best, key=lambda pair: (-counts[pair], pair))):
        on_progress("pairs of photos verified", done, len(best))
        if min(confident[i], confident[j]) >= ENOUGH and components.connected(i, j):
            continue
        estimate = relate(predictor, photos[i].encoded, photos[j].encoded)
        if isinstance(estimate, NoEstimate) or estimate.confidence < MIN_CONFIDENCE:
            continue
        estimates[i, j] = estimate
        components.merge(i, j)
        if estimate.is_confident:
            confident[i] += 1
            confident[j] += 1
    return estimates


def coarse_features(features: LocalFeatures) -> LocalFeatures:
    """The features of the largest scale, at most `COARSE_FEATURES`, in their order."""
    largest = np.argsort(-features.scales, kind="stable")[:COARSE_FEATURES]
    return features.where(np.isin(np.arange(len(features)), largest))


def pairs_to_compare(descriptors: Sequence[NDArray[np.float32]]) -> list[tuple[int, int]]:
    """The pairs of photos (i, j), i < j, that are worth comparing, in order.

    All pairs of a small collection; of a larger one each photo with those of the most similar place descriptors (unit
    vectors), and with its neighbors in the order of the files, as in COLMAP's vocabulary tree matching.
    """
    count = len(descriptors)
    if count <= EXHAUSTIVE_PHOTOS:
        return list(combinations(range(count), 2))
    stacked = np.stack(descriptors)
    chosen = {(i, j) for i in range(count) for j in range(i + 1, min(i + 1 + NEXT_IN_ORDER, count))}
    for i in range(count):
        similarity = stacked @ stacked[i]
        similarity[i] = -np.inf
        most_similar = np.argsort(-similarity, kind="stable")[:RETRIEVED].tolist()
        chosen |= {(min(i, j), max(i, j)) for j in most_similar}
    return sorted(chosen)


def best_pairs(counts: Mapping[tuple[int, int], int], most: int) -> list[tuple[int, int]]:
    """The pairs with enough matches that are among the `most` best ones of either photo, in order."""
    of_photo: dict[int, list[tuple[int, tuple[int, int]]]] = {}
    for pair, count in counts.items():
        for i in pair if count >= MIN_MATCHES else ():
            of_photo.setdefault(i, []).append((-count, pair))
    return sorted({pair for ranked in of_photo.values() for _, pair in sorted(ranked)[:most]})
