"""Evaluation on held-out pairs: medians and areas under the curve of the pose error, as published for ScanNet1500."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from relocalizer.errors import TrainingError
from relocalizer.training.loss import AngleForm, pair_losses
from relocalizer.training.pair_data import Ids, Mixture
from relocalizer.training.pair_loader import LoadedPair, PairLoader, Request
from relocalizer.training.pair_network import PairInputs, PairNetwork
from relocalizer.training.processes import Processes

THRESHOLDS_DEG = (5, 10, 20)
PAIRS_AT_A_TIME = {"cpu": 4}  # elsewhere 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Errors of held-out pairs.

    Attributes:
        loss: mean loss of the pairs, radians.
        rotation_deg, direction_deg: medians of the errors of 1_from_2, degrees; the direction without pairs that have
            no baseline.
        auc: area under the recall curve of the larger of both errors up to 5, 10 and 20 degrees, percent.
        broken: pairs that could not be read.
    """

    pairs: int
    loss: float
    rotation_deg: float
    direction_deg: float
    auc: tuple[float, ...]
    broken: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        areas = "/".join(f"{area:.1f}" for area in self.auc)
        return (
            f"rotation {self.rotation_deg:.2f} deg, direction {self.direction_deg:.2f} deg (medians), "
            f"AUC@5/10/20 {areas}, loss {self.loss:.3f} on {self.pairs} held-out pairs"
        )


class Evaluator:
    """Evaluates a network on a fixed choice of held-out pairs."""

    def __init__(self, held_out: Mixture, *, size: tuple[int, int], most: int, processes: Processes) -> None:
        """`size` (width, height) is that of the images; at most `most` pairs are drawn, the same each time."""
        items = held_out.epoch_items(0)
        if len(items) > most:
            items = items[np.sort(np.random.default_rng(0).permutation(len(items))[:most])]
        self.items, self._size, self._processes = items, size, processes

    def __call__(self, network: PairNetwork, inputs: PairInputs, loader: PairLoader, form: AngleForm) -> Evaluation:
        """Evaluate.

        Raises:
            TrainingError: none of the pairs can be read.
        """
        rows, broken = self._rows(network, inputs, loader, form)
        gathered = self._processes.gather([*rows.tolist(), broken])
        found = np.array([row for row in gathered if isinstance(row, list)], dtype=float)
        if len(found) == 0:
            raise TrainingError("none of the held-out pairs can be read; the log names them")
        loss, rotation, direction, known = found[:, 0], found[:, 1], found[:, 2], found[:, 3] > 0
        direction_deg = np.degrees(direction[known])
        worst = np.degrees(np.where(known, np.maximum(rotation, direction), rotation))
        return Evaluation(
            pairs=len(found),
            loss=float(loss.mean()),
            rotation_deg=float(np.median(np.degrees(rotation))),
            direction_deg=float(np.median(direction_deg)) if known.any() else float("nan"),
            auc=tuple(100 * area_under_recall(worst, limit) for limit in THRESHOLDS_DEG),
            broken=sum(row for row in gathered if isinstance(row, int)),
        )

    def _rows(
        self, network: PairNetwork, inputs: PairInputs, loader: PairLoader, form: AngleForm
    ) -> tuple[NDArray[np.float64], int]:
        """(loss, rotation error, direction error, whether that is known) of this process's pairs, and the broken."""
        own = self.items[self._processes.rank :: self._processes.count]
        at_a_time = PAIRS_AT_A_TIME.get(self._processes.device.type, 32)
        rows, broken = [np.zeros((0, 4))], 0
        for start in range(0, len(own), at_a_time):
            pairs = self._read(loader, own[start : start + at_a_time])
            broken += min(at_a_time, len(own) - start) - len(pairs)
            if pairs:
                with torch.no_grad():
                    raw1, raw2 = network(inputs.groups(pairs))
                    found = pair_losses(raw1, raw2, inputs.targets(pairs), form)
                known = np.array([pair.has_direction for pair in pairs], float)
                columns = [found.loss, found.rotation2, found.direction2]
                rows.append(np.stack([*(c.double().cpu().numpy() for c in columns), known], axis=1))
        return np.concatenate(rows), broken

    def _read(self, loader: PairLoader, items: Ids) -> list[LoadedPair]:
        requests = [Request((int(a), int(b)), self._size, 0, 0) for a, b in items]
        return [pair for request in requests if (pair := loader.load_or_none(request)) is not None]


def area_under_recall(errors: Sequence[float] | NDArray[np.float64], limit: float) -> float:
    """Area under the share of errors below a threshold, over thresholds from 0 to `limit`, in [0, 1]."""
    below = np.sort(np.asarray(errors, float))
    below = below[below < limit]
    thresholds = np.concatenate([[0.0], below, [limit]])
    recall = np.arange(len(below) + 1) / max(len(errors), 1)
    recall = np.append(recall, recall[-1])
    return float(np.trapezoid(recall, thresholds) / limit)
