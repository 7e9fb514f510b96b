"""Loop detection: retrieval of similar keyframes that are far away in the sequence."""

from __future__ import annotations

from collections.abc import Collection

from relocalizer.interfaces import Candidate, Retriever
from slam.config.schema import LoopClosingConfig
from slam.loop_closing.edge_information import covisible_enough
from slam.map.slam_map import SlamMap

QUERIES = 4  # maximum number of retrieval queries per keyframe
QUERIED = 8  # ratio of the number of results per query to the number of candidates wanted


class LoopDetector:
    """Queries the retriever for loop candidates.

    As in ORB-SLAM, a candidate must be at least nearly as similar as the neighbors of the new keyframe in the sequence,
    and must not be covisible with it.

    Attributes:
        threshold: minimum similarity in the last call of `candidates`.
    """

    def __init__(self, config: LoopClosingConfig, slam_map: SlamMap, retriever: Retriever) -> None:
        self._config = config
        self._map = slam_map
        self._retriever = retriever
        self.threshold = 0.0

    def add(self, k: int) -> None:
        """Add keyframe k to the retriever."""
        self._retriever.add(k, self._map.graph.keyframes[k].descriptor)

    def candidates(self, k: int, *, among: Collection[int] | None = None) -> list[Candidate]:
        """Loop candidates of keyframe k: similar, far from it in the sequence, and not covisible with it.

        Of candidates near each other in the sequence only the most similar is returned (non-maximum suppression).

        Args:
            among: keyframes that may be candidates; by default all.
        """
        graph, config = self._map.graph, self._config
        excluded = graph.sequence_neighbors(k, config.min_gap)
        if among is not None:
            excluded |= graph.keyframes.keys() - among
        descriptor = graph.keyframes[k].descriptor
        recent = [float(descriptor @ graph.keyframes[i].descriptor) for i in (k - 1, k - 2) if i in graph.keyframes]
        self.threshold = threshold = config.min_similarity * max(recent, default=1.0)
        chosen: list[Candidate] = []
        for _ in range(QUERIES):
            found = self._retriever.query(descriptor, QUERIED * config.candidates, excluded)
            similar = [c for c in found if c.similarity >= threshold]
            connected = covisible_enough(self._map, k, [c.key for c in similar])
            for candidate in similar:
                near = any(abs(candidate.key - other.key) <= config.suppression for other in chosen)
                if not near and candidate.key not in connected and len(chosen) < config.candidates:
                    chosen.append(candidate)
            if len(chosen) == config.candidates or not similar:
                break
            excluded |= {c.key for c in similar}
        return chosen
