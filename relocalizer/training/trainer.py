"""The training loop: steps, evaluation, log and saved states. A resumed training ends with the same bits."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relocalizer.errors import ConfigError, TrainingError
from relocalizer.training.config import TrainingConfig
from relocalizer.training.evaluation import Evaluation, Evaluator
from relocalizer.training.loss import PairLosses, pair_losses
from relocalizer.training.output_files import JsonLines, write_state, write_weights
from relocalizer.training.pair_data import Batch, Mixture, epoch_batches
from relocalizer.training.pair_loader import LoadedPair, PairLoader, ReadAhead, Request
from relocalizer.training.pair_network import PairInputs, PairNetwork
from relocalizer.training.processes import Processes
from relocalizer.training.schedule import LearningRate, adamw

Progress = Callable[[str, int, int, str], None]  # (name of the task, steps done, number of steps, state)

LOG = "log.jsonl"
ANGLES = ("rotation1_deg", "rotation2_deg", "direction1_deg", "direction2_deg")
STATE_FORMAT = 2
SMALLEST_SCALE = 2.0**-10  # scale of float16 losses below which a step that is not finite counts as one

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Position:
    """What a training remembers besides weights and moments."""

    step: int = 0
    best: float = float("inf")
    skipped: int = 0
    before: dict[str, Any] = field(default_factory=dict)
    best_evaluation: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Workplace:
    """What a trainer works with.

    Attributes:
        network: the network on its device, with frozen parts frozen.
        loader, held_out_loader: of the pairs to train on and to evaluate on.
        sizes: (width, height) of the images, one of which is drawn for each batch.
        metadata: origin and terms of the weights, stored beside them.
    """

    network: PairNetwork
    inputs: PairInputs
    mixture: Mixture
    loader: PairLoader
    held_out_loader: PairLoader
    evaluator: Evaluator
    sizes: Sequence[tuple[int, int]]
    processes: Processes
    folder: Path
    metadata: dict[str, Any]


@dataclass(slots=True)
class Interval:
    """Sums since the last line of the log."""

    sums: Tensor = field(default_factory=lambda: torch.zeros(7, dtype=torch.float64))
    started: float = field(default_factory=time.perf_counter)
    waited_s: float = 0.0


class Trainer:
    """Trains a network; owns the optimizer and the position in the training."""

    def __init__(self, config: TrainingConfig, place: Workplace) -> None:
        """Raises ConfigError if the processes do not divide the batch, TrainingError with fewer pairs than a batch."""
        self._config, self._place = config, place
        share, rest = divmod(config.batch, place.processes.count * config.accumulate)
        if rest or not share:
            raise ConfigError(
                f"batch: {config.batch} pairs do not divide into {place.processes.count} processes times "
                f"accumulate: {config.accumulate}"
            )
        self._optimizer = adamw(place.network, weight_decay=config.weight_decay, betas=config.betas)
        self._scaler = torch.amp.GradScaler(
            place.processes.device.type, enabled=config.precision == "float16" and place.processes.device.type == "cuda"
        )
        self._batches = lru_cache(maxsize=2)(
            lambda epoch: epoch_batches(place.mixture, epoch, config.batch, len(place.sizes))
        )
        self.steps_per_epoch = len(self._batches(0))
        self._rate = LearningRate(
            peak=config.lr, final=config.min_lr, warmup_epochs=config.warmup_epochs, epochs=config.epochs
        )
        self._parallel = place.processes.wrapped(place.network)
        self.position = Position()
        self.fetched_s = 0.0  # time in which the frozen part was computed or read from the cache

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self._config.epochs

    def run(self, *, until: int | None = None, on_progress: Progress | None = None) -> Position:
        """Train from the current position to the end, or until a step.

        Raises:
            TrainingError: too many steps were not finite, or too many pairs in a row are broken.
            OutputError: a file cannot be written; the saved states stay.
        """
        config, place = self._config, self._place
        end = self.steps if until is None else until
        first = self.position.step
        log = (
            JsonLines(place.folder / LOG, keep=lambda line: line["step"] <= first) if place.processes.is_first else None
        )
        if first == 0:
            self._evaluate(log)
            self.save()
        ahead = ReadAhead(place.loader, config.workers)
        interval = Interval()
        for pairs in ahead(self.requests(first, end)):
            self.take_step(pairs, interval)
            step = self.position.step
            interval.waited_s, ahead.waited_s = interval.waited_s + ahead.waited_s, 0.0
            if on_progress is not None:
                on_progress("steps", step, self.steps, _words(interval))
            if step % config.log_every == 0 or step == self.steps:
                self._write(log, self._line(interval))
                interval = Interval()
            if step % self.steps_per_epoch == 0:
                self._end_epoch(log)
            elif config.save_every and step % config.save_every == 0:
                self.save()
        return self.position

    # --- one step -------------------------------------------------------------------------------------

    def requests(self, first: int, end: int) -> Iterator[list[Request]]:
        """This process's pairs of each step."""
        count, rank = self._place.processes.count, self._place.processes.rank
        own = self._config.batch // count
        for step in range(first, end):
            epoch, number = divmod(step, self.steps_per_epoch)
            batch: Batch = self._batches(epoch)[number]
            rows = range(rank * own, (rank + 1) * own)
            size, position = self._place.sizes[batch.resolution], number * self._config.batch
            items = [(int(a), int(b)) for a, b in batch.items[rows.start : rows.stop]]
            yield [Request(item, size, epoch, position + row) for row, item in zip(rows, items, strict=True)]

    def take_step(self, pairs: Sequence[LoadedPair], interval: Interval) -> None:
        """One step of the optimizer on this process's pairs; adds its losses to the interval."""
        rate = self._rate.at(self.position.step / self.steps_per_epoch)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        found = [self._backward(part, is_last=is_last) for part, is_last in self._parts(pairs)]
        self._scaler.unscale_(self._optimizer)
        trained = [p for group in self._optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(trained, self._config.clip or float("inf"))
        totals = self._place.processes.sum(_totals(found))
        if bool(norm.isfinite()) and bool(totals.isfinite().all()):
            self._scaler.step(self._optimizer)
            interval.sums += totals
        else:
            self._skip(pairs, found, totals)
        if self._scaler.is_enabled():
            self._scaler.update()
        self.position.step += 1

    def _parts(self, pairs: Sequence[LoadedPair]) -> list[tuple[Sequence[LoadedPair], bool]]:
        count = self._config.accumulate
        size = len(pairs) // count
        return [(pairs[k * size : (k + 1) * size], k == count - 1) for k in range(count)]

    def _backward(self, pairs: Sequence[LoadedPair], *, is_last: bool) -> PairLosses:
        place = self._place
        with place.processes.without_averaging(self._parallel, only_if=not is_last):
            started = time.perf_counter()
            groups = place.inputs.groups(pairs)
            self.fetched_s += time.perf_counter() - started
            raw1, raw2 = self._parallel(groups)
            losses = pair_losses(raw1, raw2, place.inputs.targets(pairs), self._config.angles)
            # Gradients are averaged over the processes, each of which has a part of the batch.
            loss = losses.loss.sum() * place.processes.count / self._config.batch
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return losses

    def _skip(self, pairs: Sequence[LoadedPair], found: Sequence[PairLosses], totals: Tensor) -> None:
        """Leave out a step whose loss or gradient is not finite, and name its pairs; too many end the training."""
        is_overflow = self._scaler.is_enabled() and self._scaler.get_scale() > SMALLEST_SCALE
        if is_overflow and bool(totals.isfinite().all()):
            return  # the scale of a float16 loss is found by halving it until nothing overflows
        self.position.skipped += 1
        finite = torch.cat([losses.loss.detach().isfinite().cpu() for losses in found]).tolist()
        guilty = [pair.name for pair, good in zip(pairs, finite, strict=True) if not good]
        is_loss = not bool(totals.isfinite().all())
        names = "; ".join(guilty if is_loss else [pair.name for pair in pairs]) or "pairs of another process"
        what = "loss" if is_loss else "gradient"
        _log.warning("step %d is skipped, its %s is not finite: %s", self.position.step, what, names)
        if self.position.skipped > self._config.max_skipped:
            raise TrainingError(
                f"step {self.position.step}: {self.position.skipped} steps were not finite, {self._config.max_skipped} "
                f"are allowed (max_skipped); the last: {names}; lower the learning rate, or set clip: 1.0"
            )

    # --- what is written ------------------------------------------------------------------------------

    def _end_epoch(self, log: JsonLines | None) -> None:
        epoch = self.position.step // self.steps_per_epoch
        if epoch % self._config.evaluate_every == 0 or epoch == self._config.epochs:
            self._evaluate(log)
        self.save()

    def _evaluate(self, log: JsonLines | None) -> None:
        """Evaluate, and keep the weights if they are the best so far.

        The median loss decides, as published: in a mean a few pairs that are wrong altogether outweigh all others.
        """
        place, position = self._place, self.position
        found: Evaluation = place.evaluator(place.network, place.inputs, place.held_out_loader, self._config.angles)
        self._write(log, {"step": position.step, "epoch": self._epoch, "held_out": found.as_dict()})
        if position.step == 0:
            position.before = found.as_dict()
        elif found.median_loss < position.best:
            position.best, position.best_evaluation = found.median_loss, found.as_dict()
            self._write_weights(place.folder)

    @property
    def _epoch(self) -> float:
        return self.position.step / self.steps_per_epoch

    def _line(self, interval: Interval) -> dict[str, Any]:
        elapsed = time.perf_counter() - interval.started
        pairs = float(interval.sums[5])
        # Without a finite step there is nothing to average.
        loss = float(interval.sums[0]) / pairs if pairs else None
        angles = _mean_angles_deg(interval.sums) if pairs else [None] * 4
        return {
            "step": self.position.step,
            "epoch": round(self._epoch, 6),
            "lr": self._optimizer.param_groups[0]["lr"],
            "loss": loss,
            **dict(zip(ANGLES, angles, strict=True)),
            "pairs_per_s": pairs / elapsed,
            "waiting_share": interval.waited_s / elapsed,
            "skipped": self.position.skipped,
            "broken": len(self._place.loader.broken),
        }

    def _write(self, log: JsonLines | None, line: dict[str, Any]) -> None:
        if log is not None:
            log.write(line)

    def _write_weights(self, folder: Path) -> None:
        if self._place.processes.is_first:
            model = self._place.network.model
            metadata = {**self._place.metadata, "step": self.position.step, "held_out": self.position.best_evaluation}
            write_weights(folder, model.architecture, model.state_dict(), metadata)

    def save(self) -> None:
        """Write the last weights and the state from which `restore` continues."""
        self._write_weights(self._place.folder / "last")
        if self._place.processes.is_first:
            write_state(self._place.folder, self.position.step, self.state())
        self._place.processes.wait()

    def state(self) -> dict[str, Any]:
        """All that determines the rest of the training, in types that are read without running code."""
        position = self.position
        return {
            "format": STATE_FORMAT,
            "model": self._place.network.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "random": torch.get_rng_state(),
            "position": {name: getattr(position, name) for name in Position.__slots__},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state. Raises TrainingError when it is of another network or version."""
        try:
            if state["format"] != STATE_FORMAT:
                raise TrainingError(f"a state of format {state['format']}, this program reads {STATE_FORMAT}")
            self._place.network.model.load_state_dict(state["model"])
            self._optimizer.load_state_dict(state["optimizer"])
            self._scaler.load_state_dict(state["scaler"])
            torch.set_rng_state(state["random"])
            self.position = Position(**state["position"])
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise TrainingError(f"a state of another training ({str(error).splitlines()[0]})") from None


def _totals(found: Sequence[PairLosses]) -> Tensor:
    """Sums (7,) float64: loss, the four angles, pairs, pairs with a direction."""
    loss = torch.cat([losses.loss.detach() for losses in found]).double().cpu()
    angles = torch.cat([losses.angles() for losses in found], dim=1).double().cpu()
    with_direction = (angles[2] > 0).sum().double()
    counts = torch.stack([loss.new_tensor(len(loss)), with_direction])
    return torch.cat([loss.sum()[None], angles.sum(dim=1), counts])


def _mean_angles_deg(sums: Tensor) -> list[float]:
    """Means of rotation 1 and 2, direction 1 and 2, degrees; of directions over the pairs that have one."""
    counts = torch.stack([sums[5], sums[5], sums[6], sums[6]]).clamp(min=1.0)
    return [float(value) for value in torch.rad2deg(sums[1:5] / counts)]


def _words(interval: Interval) -> str:
    pairs = max(float(interval.sums[5]), 1.0)
    rotation1, rotation2, direction1, direction2 = _mean_angles_deg(interval.sums)
    speed = pairs / max(time.perf_counter() - interval.started, 1e-9)
    return (
        f"loss {float(interval.sums[0]) / pairs:.3f}, R {rotation1:.1f} {rotation2:.1f}, "
        f"t {direction1:.1f} {direction2:.1f} deg, {speed:.1f} pairs/s"
    )
