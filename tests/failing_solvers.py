"""In the place of GTSAM's solver: one that fails as GTSAM does, and one whose values are no numbers."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import gtsam
import numpy as np

SINGULAR = "Indeterminant linear system detected while working near variable 7"


class SingularSystem:
    """What GTSAM says where a system has no solution; its messages have line breaks."""

    def __init__(self, *_: Any) -> None:
        pass

    def optimize(self) -> gtsam.Values:
        raise RuntimeError(SINGULAR.replace(" while", "\nwhile"))


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


def solver_that(kind: type) -> AbstractContextManager[Any]:
    """While this lasts all systems are given to a solver of that kind."""
    return patch("gtsam.LevenbergMarquardtOptimizer", kind)


def _spoil_pose(values: gtsam.Values, key: int) -> None:
    values.update(key, gtsam.Pose3(values.atPose3(key).rotation(), np.full(3, np.nan)))


def _spoil_similarity(values: gtsam.Values, key: int) -> None:
    values.update(key, gtsam.Similarity3(values.atSimilarity3(key).rotation(), np.full(3, np.nan), 1.0))


def _spoil_point(values: gtsam.Values, key: int) -> None:
    values.update(key, np.nan * values.atPoint3(key))
