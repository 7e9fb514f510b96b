"""Loop detection: keyframes that look like a new one, far from it in the run."""

from __future__ import annotations

from relocalizer.interfaces import Candidate, Retriever
from slam.config.schema import LoopClosingConfig
from slam.loop_closing.edge_information import (
    covisible_enough,
)
from slam.map.slam_map import SlamMap

QUERIES, QUERIED = 4, 8  # at most so many queries a keyframe, each for so many times the candidates wanted


class LoopDetector:
    """Queries the retriever for loop candidates."""

    def __init__(self, config: LoopClosingConfig, slam_map: SlamMap, retriever: Retriever) -> None:
        self._config = config
        self._map = slam_map
        self._retriever = retriever

    def add(self, k: int) -> None:
        """Let later keyframes find this one."""
        self._retriever.add(k, self._map.graph.keyframes[k].descriptor)

    def candidates(self, k: int) -> list[Candidate]:
        """Keyframes that look like k, far from it in the run and not already tied to it by landmarks.

        Of candidates near each other in the run the most similar stands for all.
        """
        graph, config = self._map.graph, self._config
        excluded = frozenset(range(k - config.min_gap + 1, k + config.min_gap))
        descriptor = graph.keyframes[k].descriptor
        recent = [float(descriptor @ graph.keyframes[i].descriptor) for i in (k - 1, k - 2) if i in graph.keyframes]
        threshold = config.min_similarity * max(recent, default=1.0)
        chosen: list[Candidate] = []
        for _ in range(QUERIES):
            found = self._retriever.query(descriptor, QUERIED * config.candidates, excluded)
            alike = [c for c in found if c.similarity >= threshold]
            connected = covisible_enough(self._map, k, [c.key for c in alike])
            for candidate in alike:
                near = any(abs(candidate.key - other.key) <= config.suppression for other in chosen)
                if not near and candidate.key not in connected and len(chosen) < config.candidates:
                    chosen.append(candidate)
            if len(chosen) == config.candidates or not alike:
                break
            excluded |= {c.key for c in alike}
        return chosen
