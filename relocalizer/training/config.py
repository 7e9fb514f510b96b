"""Settings of a training: typed, bounded, with defaults; the defaults are the published recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from relocalizer.config import Section
from relocalizer.errors import ConfigError
from relocalizer.network.model import Architecture

Layout = Literal[
    "map", "posed", "co3d", "scannetpp", "arkitscenes", "blendedmvs", "megadepth", "dl3dv", "realestate10k"
]
Tune = Literal["all", "decoder", "head", "confidence"]


class SourceConfig(Section):
    """A source of pairs."""

    layout: Layout = Field(description="What the folder holds: a map or run, posed images, or a public data set.")
    root: Path = Field(description="The folder.")
    split: Literal["train", "test"] = Field("train", description="Part of a public data set.")
    poses: Path | None = Field(None, description="Poses of `posed` images: a trajectory, a COLMAP model or a list.")
    camera: Path | None = Field(None, description="Calibration of `posed` images.")
    partners: int = Field(12, ge=1, le=1000, description="Maximum number of pairs per image; maps and posed images.")


class ArchitectureConfig(Section):
    """Sizes of a network with random weights; the defaults are the released ones."""

    patch_size: int = Field(16, ge=1, le=64)
    enc_embed_dim: int = Field(1024, ge=4, le=8192)
    enc_depth: int = Field(24, ge=1, le=128)
    enc_num_heads: int = Field(16, ge=1, le=128)
    dec_embed_dim: int = Field(768, ge=4, le=8192)
    dec_depth: int = Field(12, ge=1, le=128)
    dec_num_heads: int = Field(12, ge=1, le=128)

    def sizes(self) -> Architecture:
        """Raises ConfigError when the heads do not fit the widths."""
        try:
            return Architecture(**self.model_dump())
        except ValueError as error:
            raise ConfigError(f"architecture: {error}") from None


class TrainingConfig(Section):
    """A training."""

    start: str = Field("random", min_length=1, description="Checkpoint of Reloc3r or DUSt3R, or random.")
    architecture: ArchitectureConfig = Field(default_factory=ArchitectureConfig)
    tune: Tune = Field("decoder", description="What is trained; decoder is all but the blocks of the encoder.")
    data: dict[str, SourceConfig] = Field(default_factory=dict, description="Sources by name.")
    mix: str = Field("", description="Pairs of an epoch: N @ NAME, N * NAME or NAME, joined by +. Empty: all once.")
    held_out: dict[str, SourceConfig] = Field(
        default_factory=dict, description="Sources to evaluate on. None: a part of `data` is held out."
    )
    hold_out_by: Literal["time", "sequence"] = Field("time", description="How `data` is split.")
    hold_out_share: float = Field(0.2, gt=0, lt=1, description="Share of `data` that is held out.")
    evaluation_pairs: int = Field(1000, ge=1, le=10**6, description="Maximum number of held-out pairs.")
    evaluate_every: int = Field(1, ge=1, le=10**6, description="Epochs between two evaluations.")
    resolutions: tuple[tuple[int, int], ...] = Field(
        (), description="(width, height), one per batch. None: the size of the start that fits most images."
    )
    epochs: int = Field(100, ge=1, le=10**6)
    batch: int = Field(256, ge=1, le=10**6, description="Pairs per step, of all processes together.")
    accumulate: int = Field(1, ge=1, le=10**4, description="Parts into which a process divides its pairs of a step.")
    lr: float = Field(1e-5, gt=0, le=1, description="Peak learning rate.")
    min_lr: float = Field(1e-7, ge=0, le=1, description="Learning rate at the end.")
    warmup_epochs: float = Field(5.0, ge=0, le=10**6)
    weight_decay: float = Field(0.05, ge=0, le=1)
    betas: tuple[float, float] = Field((0.9, 0.95))
    clip: float = Field(0.0, ge=0, le=1e6, description="Maximum norm of a gradient; 0 is no clipping, as published.")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Of the transformer's products."
    )
    angles: Literal["clamped", "exact"] = Field("clamped", description="Form of the angles in the loss.")
    jitter: bool = Field(True, description="Change the colors of each view at random.")
    cache: Literal["none", "disk"] = Field("none", description="Keep the results of frozen parts on disk.")
    cache_gb: float = Field(20.0, gt=0, le=1e6, description="Maximum size of the cache, of all processes together.")
    cache_dtype: Literal["float16", "float32"] = Field("float16", description="Precision of the cache.")
    jitter_variants: int = Field(4, ge=1, le=1000, description="Fixed jitters per view with a cache.")
    max_skipped: int = Field(20, ge=0, le=10**6, description="Steps that are not finite before the training stops.")
    save_every: int = Field(0, ge=0, le=10**9, description="Steps between two saved states; 0 is once an epoch.")
    log_every: int = Field(10, ge=1, le=10**6, description="Steps between two lines of log.jsonl.")
    workers: int = Field(4, ge=1, le=256, description="Threads that read images.")
    seed: int = Field(0, ge=0, lt=2**63)
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 or mps.")

    @model_validator(mode="after")
    def _fits(self) -> TrainingConfig:
        patch = self.architecture.patch_size
        for width, height in self.resolutions:
            if width < height or height < patch or (self.start == "random" and (width % patch or height % patch)):
                raise ValueError(f"resolutions: {width} x {height}: expected width >= height and multiples of {patch}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("betas: expected two numbers from 0 to below 1")
        if self.tune == "all" and self.cache == "disk":
            raise ValueError("cache: disk keeps the results of frozen parts, and tune: all freezes none")
        return self


def read_config(path: Path) -> TrainingConfig:
    """The settings of a YAML file; relative roots of data start from the current folder.

    Raises:
        ConfigError: one line for all problems.
    """
    return checked_config(read_yaml(path), str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError when it cannot be read, or is none."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(data or {}, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines")
    return dict(data or {})


def checked_config(values: dict[str, Any], origin: str) -> TrainingConfig:
    """Validated settings; `origin` names their source in errors. Raises ConfigError."""
    try:
        return TrainingConfig.model_validate(values)
    except ValidationError as error:
        problems = [_explain(problem["loc"], problem["msg"]) for problem in error.errors()]
        raise ConfigError(f"{origin}: {'; '.join(problems)}") from None


def dump_config(config: TrainingConfig) -> str:
    """The settings as YAML; reading it gives the same settings."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _explain(where: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    if message == "Extra inputs are not permitted":
        message = "unknown key"
    dotted = ".".join(str(part) for part in where)
    return f"{dotted}: {message}" if dotted else message


def adaptation(maps: Sequence[Path], tune: Tune) -> dict[str, Any]:
    """Settings for fine-tuning on maps, on top of which others are laid: short, with what is frozen kept on disk."""
    rates = {"all": 1e-5, "decoder": 1e-5, "head": 1e-4, "confidence": 1e-3}
    return {
        "tune": tune,
        "data": {f"map{number}": {"layout": "map", "root": str(path)} for number, path in enumerate(maps, 1)},
        "epochs": 10,
        "batch": 8,
        "lr": rates[tune],
        "min_lr": rates[tune] / 100,
        "warmup_epochs": 0.5,
        "cache": "disk" if tune in ("decoder", "head") else "none",
    }


def parse_changes(overrides: Sequence[str]) -> dict[str, Any]:
    """The settings in texts of the form key.path=value. Raises ConfigError."""
    changes: dict[str, Any] = {}
    for text in overrides:
        dotted, equals, value = text.partition("=")
        names = dotted.strip().split(".")
        try:
            layer = yaml.safe_load(value)
        except yaml.YAMLError:
            layer = value
        if not equals or not all(names):
            raise ConfigError(f"--set {text}: expected key.path=value, as in --set lr=1e-5")
        for name in reversed(names):
            layer = {name: layer}
        changes = merged(changes, layer)
    return changes


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with those `above` on top; sections are merged key by key."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        both = isinstance(value, Mapping) and isinstance(old, Mapping)
        result[key] = merged(old, value) if both else value  # type: ignore[arg-type]
    return result
