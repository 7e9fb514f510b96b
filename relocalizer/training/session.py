"""A training from its settings to its folder: begin, resume, and what is left at the end."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import relocalizer
from relocalizer.errors import ConfigError, OutputError, TrainingError
from relocalizer.network.model import Reloc3r
from relocalizer.network.weights import architecture_from_config, tensors_sha256
from relocalizer.predictors.checkpoints import METADATA
from relocalizer.training.color_jitter import ColorJitter
from relocalizer.training.config import TrainingConfig, checked_config, dump_config, read_yaml
from relocalizer.training.data_sources import (
    OpenPosed,
    data_fingerprint,
    described,
    image_side,
    image_sizes,
    open_split,
)
from relocalizer.training.evaluation import Evaluator
from relocalizer.training.initialization import Start, starting_model
from relocalizer.training.output_files import newest_state, replacing
from relocalizer.training.pair_data import Mixture
from relocalizer.training.pair_loader import LoadingRule, PairLoader
from relocalizer.training.pair_network import STAGE_OF_TUNED, Autocast, PairInputs, PairNetwork
from relocalizer.training.processes import Processes, processes
from relocalizer.training.schedule import freeze
from relocalizer.training.token_cache import TokenCache
from relocalizer.training.trainer import Progress, Trainer, Workplace

CONFIG, CACHE = "config.yaml", "cache"
# Settings that change neither the weights nor what is evaluated; a resumed training may have others.
FREE = ("device", "workers", "log_every", "save_every", "cache_gb", "max_skipped", "accumulate")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """What a training gave.

    Attributes:
        before, after: evaluations of the start and of the best weights; empty in other processes than the first.
        skipped: steps that were not finite.
        broken: pairs to train on that could not be read.
        license: terms of the weights.
    """

    folder: Path
    steps: int
    before: dict[str, Any]
    after: dict[str, Any]
    skipped: int
    broken: int
    license: str


def train(
    config: TrainingConfig,
    folder: Path,
    *,
    resume: bool = False,
    open_posed: OpenPosed | None = None,
    on_progress: Progress | None = None,
    say: Callable[[str], None] = _log.info,
) -> TrainingResult:
    """Train a network into a folder: config.yaml, log.jsonl, the best weights, last/ and states/.

    Args:
        resume: continue from the newest state in the folder; the settings and the data must be the same.
        say: receives a few sentences about what is trained on what.

    Raises:
        UserError: settings, data or weights that cannot be used, or files that cannot be written.
    """
    if config.tune == "confidence":
        raise ConfigError("tune: confidence is trained by slam train --tune confidence, in one process")
    with processes(config.device) as own:
        trainer, place = open_training(config, folder, own, resume=resume, open_posed=open_posed)
        if own.is_first:
            _announce(say, config, place, trainer)
        position = trainer.run(on_progress=on_progress if own.is_first else None)
        own.wait()
        if own.is_first:
            shutil.rmtree(folder / CACHE, ignore_errors=True)
        return TrainingResult(
            folder=folder,
            steps=position.step,
            before=position.before,
            after=position.best_evaluation,
            skipped=position.skipped,
            broken=len(place.loader.broken),
            license=place.metadata["license"],
        )


def open_training(
    config: TrainingConfig,
    folder: Path,
    own: Processes,
    *,
    resume: bool = False,
    open_posed: OpenPosed | None = None,
) -> tuple[Trainer, Workplace]:
    """A trainer at the beginning, or at the newest state of the folder. Raises UserError."""
    place, state = prepare(config, folder, own, resume=resume, open_posed=open_posed)
    trainer = Trainer(config, place)
    if state is not None:
        trainer.restore(state)
    elif own.is_first:
        begin_folder(folder, config)
    own.wait()
    return trainer, place


def prepare(
    config: TrainingConfig, folder: Path, own: Processes, *, resume: bool = False, open_posed: OpenPosed | None = None
) -> tuple[Workplace, dict[str, Any] | None]:
    """The network and the data of a training, and the state to resume if there is one. Raises UserError."""
    mixture, held_out = open_split(config, open_posed)
    fingerprint = data_fingerprint([mixture, held_out])
    state = _state_to_resume(folder, config, fingerprint) if resume else None
    start = _start_of(config, folder if state is not None else None)
    sizes = image_sizes(config, start.model.architecture, mixture)
    model = start.model
    model.architecture = replace(model.architecture, img_size=image_side(sizes))
    place = workplace(config, folder, own, start, (mixture, held_out, sizes))
    place.metadata["data_sha256"] = fingerprint
    return place, state


def config_of_folder(folder: Path) -> TrainingConfig:
    """The settings of an earlier training. Raises ConfigError when there are none."""
    return checked_config(read_yaml(folder / CONFIG), str(folder / CONFIG))


def workplace(
    config: TrainingConfig,
    folder: Path,
    own: Processes,
    start: Start,
    data: tuple[Mixture, Mixture, list[tuple[int, int]]],
) -> Workplace:
    """The network on its device, frozen as configured, and all that is needed to feed it.

    Args:
        data: what is trained on, what is held out, and the sizes of the images.
    """
    mixture, held_out, sizes = data
    model = start.model.to(own.device)
    trained = freeze(model, config.tune)
    autocast = Autocast(own.device.type, getattr(torch, config.precision))
    inputs, cache = inputs_of(config, model, folder, own, autocast)
    rule = LoadingRule(
        jitter=ColorJitter() if config.jitter else None,
        variants=config.jitter_variants if cache is not None else 0,
        seed=config.seed,
    )
    return Workplace(
        network=PairNetwork(model, autocast),
        inputs=inputs,
        mixture=mixture,
        loader=PairLoader(mixture, rule, inputs.needs_pixels),
        held_out_loader=PairLoader(held_out, LoadingRule(), inputs.needs_pixels),
        evaluator=Evaluator(held_out, size=sizes[0], most=config.evaluation_pairs, processes=own),
        sizes=sizes,
        processes=own,
        folder=folder,
        metadata={
            "program": f"reloc3r-slam {relocalizer.__version__}",
            "start": start.source,
            "license": start.license,
            "tuned": config.tune,
            "trained_tensors": len(trained),
            "data": described(mixture),
            "held_out_data": described(held_out),
            "sizes": [list(size) for size in sizes],
        },
    )


def inputs_of(
    config: TrainingConfig, model: Reloc3r, folder: Path, own: Processes, autocast: Autocast
) -> tuple[PairInputs, TokenCache | None]:
    """The frozen part of the network with its cache, if there is one."""
    stage, cache = STAGE_OF_TUNED[config.tune], None
    if config.cache == "disk":
        frozen = tuple(name for name, p in model.named_parameters() if not p.requires_grad)
        cache = TokenCache(
            folder / CACHE / f"process{own.rank}",
            fingerprint=f"{stage} {config.precision} {tensors_sha256(model, frozen)}",
            bound_bytes=int(config.cache_gb * 1e9 / own.count),
            dtype=config.cache_dtype,
        )
    return PairInputs(model, stage, autocast, cache, own.device), cache


def _start_of(config: TrainingConfig, resumed: Path | None) -> Start:
    """The network to start from; when a training is resumed, one of the same sizes, whose weights are replaced."""
    if resumed is None:
        return starting_model(config.start, config.architecture.sizes(), seed=config.seed)
    path = resumed / "last" / METADATA
    try:
        terms = str(json.loads(path.read_text(encoding="utf-8"))["license"])
    except (OSError, ValueError, KeyError, TypeError):
        raise TrainingError(f"{path}: not the metadata of a training; start again elsewhere") from None
    model = Reloc3r(architecture_from_config(resumed / "last" / "config.json"))
    return Start(model, config.start, terms)


def _state_to_resume(folder: Path, config: TrainingConfig, fingerprint: str) -> dict[str, Any] | None:
    earlier = config_of_folder(folder).model_dump()
    changed = [key for key, value in config.model_dump().items() if key not in FREE and value != earlier[key]]
    if changed:
        raise ConfigError(f"{folder / CONFIG}: other settings than now ({', '.join(changed)}); resume with the same")
    state = newest_state(folder)
    if state is None:  # it was interrupted before the first one
        return None
    try:
        known = json.loads((folder / "last" / METADATA).read_text(encoding="utf-8"))["data_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise TrainingError(f"{folder / 'last' / METADATA}: not the metadata of a training") from None
    if known != fingerprint:
        raise TrainingError(f"{folder}: the data are not those of the training that is resumed; restore them")
    return state


def begin_folder(folder: Path, config: TrainingConfig) -> None:
    """Make the folder of a training, with its settings. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror}); choose another place") from None
    with replacing(folder / CONFIG) as temporary:
        temporary.write_text(dump_config(config), encoding="utf-8")


def _announce(say: Callable[[str], None], config: TrainingConfig, place: Workplace, trainer: Trainer) -> None:
    sets = ", ".join(f"{name}: {count} pairs" for name, count in place.metadata["data"].items())
    held_out = ", ".join(f"{name}: {count} pairs" for name, count in place.metadata["held_out_data"].items())
    trained = sum(p.numel() for p in place.network.parameters() if p.requires_grad)
    sizes = ", ".join(f"{width} x {height}" for width, height in place.sizes)
    say(f"start: {config.start} (license: {place.metadata['license']})")
    say(f"trained: {config.tune}, {trained:,} parameters, on {place.processes.device}, images {sizes}")
    say(f"data: {sets}; held out: {held_out}")
    say(f"{trainer.steps} steps of {config.batch} pairs in {config.epochs} epochs, {place.processes.count} process(es)")
