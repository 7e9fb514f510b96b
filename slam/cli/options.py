"""What the verbs share: options, exit codes, and how they speak to the person at the terminal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from relocalizer.errors import ConfigError, OutputError
from relocalizer.predictors import plugins
from slam.plain_text import plain

if TYPE_CHECKING:
    from slam.components.predictor_choice import PredictorChoice
    from slam.config.schema import SlamConfig
    from slam.input.frame_source import FrameSource
    from slam.run.calibration_pass import CalibrationPass

UNUSABLE, USER_ERROR, INTERRUPTED = 1, 2, 130
INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h

# Sections of settings that a run uses; the relocalizer is `slam relocalize`'s.
SECTIONS = (
    "seed", "input", "features", "predictor", "tracks", "initialization", "tracking", "keyframes", "landmarks",
    "bundle_adjustment", "loop_closing", "relocalization", "metric_scale",
)  # fmt: skip

ViewerMode = Literal["none", "spawn", "web"]
Format = Literal["tum", "kitti", "euroc"]

ConfigFiles = Annotated[
    list[Path],
    typer.Option("-c", "--config", metavar="FILE", help="YAML file with settings; may be repeated, later files win."),
]
Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="One setting; may be repeated, wins over files."),
]
PredictorName = Annotated[
    str | None,
    typer.Option(
        "--predictor",
        metavar="NAME",
        help=f"Estimates the relative pose of two images: auto, {', '.join(plugins.known())}. Default: auto.",
        show_default=False,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option("--weights", metavar="WEIGHTS", help="Reloc3r checkpoint: a folder, a file or a Hugging Face id."),
]
RandomWeights = Annotated[
    bool,
    typer.Option("--random-weights", help="Reloc3r without trained weights: real cost, poses that mean nothing."),
]
CameraFile = Annotated[
    Path | None,
    typer.Option("--camera", metavar="FILE", help="camera.yaml with the intrinsics of these images."),
]
MaskImage = Annotated[
    Path | None,
    typer.Option(
        "--mask",
        metavar="IMAGE",
        help="What is black in this image is ignored, what is white is used: a car's bonnet, a display's text, the own "
        "robot. Of the images' size or shape, as COLMAP's masks. camera.yaml takes rectangles: "
        "ignore: [[left, top, right, bottom], ...], pixels.",
        show_default=False,
    ),
]
Stride = Annotated[int, typer.Option("--stride", metavar="N", min=1, help="Use every N-th frame.")]
Start = Annotated[int, typer.Option("--start", metavar="N", min=0, help="Skip this many frames at the beginning.")]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", min=0, help="Seed of every random choice.")]
ScaleFrom = Annotated[
    str | None,
    typer.Option(
        "--scale-from",
        metavar="ANCHOR",
        help="Make lengths meters. frames:A:B=METRES: so far apart are the camera's places in frames A and B. "
        "groundtruth:METRES: the scale of the first so many meters of ground truth, for evaluation only.",
        show_default=False,
    ),
]
Refine = Annotated[
    Literal["final", "none"] | None,
    typer.Option(
        "--refine",
        help="Refine the whole map once more at the end: final always, none never. "
        "Default: when it costs less than the run did.",
        show_default=False,
    ),
]
Times = Annotated[
    Path | None,
    typer.Option(
        "--times",
        metavar="FILE",
        help="Times of poses that have none (KITTI): a time in seconds a line.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def complain(message: str) -> None:
    say("slam: " + " ".join(message.split()))


def say(line: str) -> None:
    """To the person at the terminal; results alone go to standard output."""
    print(line, file=sys.stderr, flush=True)


def expect_new(path: Path, *, option: str = "", makes_folders: bool = False) -> None:
    """Refuse a file or folder to be made that cannot be, before anything is computed for it.

    Args:
        option: to be named in the sentence, as `--record`.
        makes_folders: folders above it that are missing will be made.

    Raises:
        OutputError: it is there already, or the folder it goes to is missing, is a file, or cannot be written to.
    """
    name = f"{option} {path}".strip()
    if os.path.lexists(path):
        raise OutputError(f"{name}: is there already; choose another name or remove it")
    folder = path.parent
    while makes_folders and not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    if not os.path.lexists(folder):
        raise OutputError(f"{name}: there is no folder {folder}; make it first")
    if not folder.is_dir():
        raise OutputError(f"{name}: {folder} is a file where a folder is needed; choose another place")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{name}: nothing can be written to {folder}; choose another place")


def load_settings(
    files: list[Path],
    overrides: list[str],
    flags: list[str],
    *,
    verb: str,
    sections: Collection[str] = SECTIONS,
    quiet: bool = False,
) -> SlamConfig:
    """The settings that a verb uses; those that it does not are refused, or said where a file has them.

    Args:
        flags: options that are settings, as `flags_of` gives them.
        sections: that the verb uses.

    Raises:
        ConfigError: settings that do not fit, or are set for nothing.
    """
    from slam.config.loading import expect_used, load_config

    config = load_config(files, [*overrides, *flags])
    unused = expect_used(config, overrides, verb, sections)
    if unused and not quiet:
        say(f"not used by {verb}: {', '.join(unused)}")
    return config


def flags_of(
    *,
    predictor: str | None,
    weights: str | None,
    random_weights: bool,
    seed: int | None,
    scale_from: str | None = None,
    refine: Literal["final", "none"] | None = None,
    mask: Path | None = None,
) -> list[str]:
    """Options that are settings, as overrides; they win over --set.

    Raises:
        ConfigError: `weights` is a path that is no text, which settings cannot hold.
    """
    if weights and plain(weights) != weights:
        raise ConfigError(f"--weights {weights}: settings hold plain UTF-8 alone; rename it, or make a link to it")
    flags = [f"predictor.kind={predictor}"] if predictor else []
    flags += [f"predictor.weights={json.dumps(weights)}"] if weights else []
    flags += ["predictor.random_weights=true"] if random_weights else []
    flags += [f"input.mask={json.dumps(str(mask))}"] if mask else []
    flags += [f"metric_scale.scale_from={json.dumps(scale_from)}"] if scale_from else []
    flags += [f"bundle_adjustment.final={'always' if refine == 'final' else 'never'}"] if refine else []
    return flags + ([f"seed={seed}"] if seed is not None else [])


def introduce(
    say: Callable[[str], None],
    config: SlamConfig,
    frames: FrameSource,
    choice: PredictorChoice,
    calibration: CalibrationPass | None = None,
) -> None:
    """State what is run, and why the camera of the source could not be estimated where that was tried."""
    from slam.components.predictor_choice import RANDOM_WEIGHTS

    say(frames.description)
    if calibration is not None and not calibration.is_used:  # the description of the source states one that is used
        say(calibration.sentence)
    say(f"predictor: {choice.kind} ({choice.reason})")
    if config.predictor.random_weights:
        say(f"WARNING: {RANDOM_WEIGHTS}")
