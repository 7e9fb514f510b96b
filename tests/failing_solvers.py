"""In the place of the solvers: one that fails as they do for a singular system, and one whose values are no numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import gtsam
import numpy as np

from slam.mapping.normal_equations import SingularSystemError

SINGULAR = "Indeterminant linear system detected while working near variable 7"


class SingularSystem:
    """What GTSAM says where a system has no solution; its messages have line breaks."""

    def __init__(self, *_: Any) -> None:
        pass

    def optimize(self) -> gtsam.Values:
        raise RuntimeError(SINGULAR.replace(" while", "\nwhile"))

    @staticmethod
    def solution(matrix: Any, right: Any) -> Any:
        """Of the linear system of bundle adjustment."""
        raise SingularSystemError(SINGULAR)


class NoNumbers:
    """Every second value is NaN."""

    def __init__(self, graph: gtsam.NonlinearFactorGraph, start: gtsam.Values, *_: Any) -> None:
        self._start = start

    def optimize(self) -> gtsam.Values:
        values = gtsam.Values(self._start)
        for key in list(values.keys())[::2]:
            for spoil in (_spoil_pose, _spoil_similarity, _spoil_point):
                try:
                    spoil(values, key)
                    break
                except RuntimeError:  # it is of another type
                    continue
        return values

    @staticmethod
    def solution(matrix: Any, right: Any) -> Any:
        """Of the linear system of bundle adjustment."""
        return np.where(np.arange(right.size).reshape(right.shape) % 2 == 0, np.nan, right)


@contextmanager
def solver_that(kind: type[SingularSystem | NoNumbers]) -> Iterator[None]:
    """While this lasts all systems are given to a solver of that kind."""
    with (
        patch("gtsam.LevenbergMarquardtOptimizer", kind),
        patch("slam.mapping.normal_equations._solution", kind.solution),
    ):
        yield


def _spoil_pose(values: gtsam.Values, key: int) -> None:
    values.update(key, gtsam.Pose3(values.atPose3(key).rotation(), np.full(3, np.nan)))


def _spoil_similarity(values: gtsam.Values, key: int) -> None:
    values.update(key, gtsam.Similarity3(values.atSimilarity3(key).rotation(), np.full(3, np.nan), 1.0))


def _spoil_point(values: gtsam.Values, key: int) -> None:
    values.update(key, np.nan * values.atPoint3(key))
