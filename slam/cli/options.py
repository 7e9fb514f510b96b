"""Options, exit codes and messages shared by the commands."""

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
    from slam.workers.work import Workers

UNUSABLE, USER_ERROR, INTERRUPTED = 1, 2, 130
INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h

# Sections of the settings that `slam run` uses.
SECTIONS = (
    "seed", "input", "features", "predictor", "tracks", "initialization", "tracking", "keyframes", "landmarks",
    "bundle_adjustment", "loop_closing", "relocalization", "metric_scale",
)  # fmt: skip

Format = Literal["tum", "kitti", "euroc"]

ConfigFiles = Annotated[
    list[Path],
    typer.Option(
        "-c", "--config", metavar="FILE", help="YAML file with settings; repeatable, later files take precedence."
    ),
]
Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="One setting; repeatable, takes precedence over files."),
]
PredictorName = Annotated[
    str | None,
    typer.Option(
        "--predictor",
        metavar="NAME",
        help=f"Predictor of the relative pose of two images: auto, {', '.join(plugins.known())}. Default: auto.",
        show_default=False,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option("--weights", metavar="WEIGHTS", help="Reloc3r checkpoint: a folder, a file or a Hugging Face id."),
]
RandomWeights = Annotated[
    bool,
    typer.Option(
        "--random-weights", help="Reloc3r with random weights, to measure its speed; the poses are meaningless."
    ),
]
CameraFile = Annotated[
    Path | None,
    typer.Option(
        "--camera",
        metavar="FILE",
        help="Calibration of the images: camera.yaml, or a file of ORB-SLAM, OpenCV, ROS, Kalibr, EuRoC, COLMAP, "
        "nerfstudio and others.",
    ),
]
MaskImage = Annotated[
    Path | None,
    typer.Option(
        "--mask",
        metavar="IMAGE",
        help="Mask image: black regions are ignored, such as a car's hood, overlaid text or the robot itself. "
        "Same size or aspect ratio as the images, as for COLMAP. Rectangles can be set in camera.yaml: "
        "ignore: [[left, top, right, bottom], ...], pixels.",
        show_default=False,
    ),
]
Topic = Annotated[
    str | None,
    typer.Option("--topic", metavar="TOPIC", help="Topic of the images in a ROS bag.", show_default=False),
]
View = Annotated[
    str,
    typer.Option(
        "--view",
        metavar="VIEW",
        help="Live view: spawn opens the Rerun viewer; web serves a page to this machine until Ctrl-C after the run, "
        "web:0.0.0.0 to the network; connect:HOST:PORT sends to a viewer that runs already; none.",
    ),
]
Stride = Annotated[int, typer.Option("--stride", metavar="N", min=1, help="Process every N-th frame.")]
Start = Annotated[int, typer.Option("--start", metavar="N", min=0, help="Number of frames to skip at the beginning.")]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", min=0, help="Random seed.")]
ScaleFrom = Annotated[
    str | None,
    typer.Option(
        "--scale-from",
        metavar="REFERENCE",
        help="Scale the map to meters. frames:A:B=METERS: distance of the camera positions in frames A and B. "
        "marker:DICT_4X4_50:METERS: side of the ArUco or AprilTag markers in the scene. "
        "gps:FILE: a CSV or GPX track on the clock of the images. "
        "depth: the depth images of the data set. "
        "groundtruth:METERS: scale of the first METERS of the ground truth, for evaluation only.",
        show_default=False,
    ),
]
Refine = Annotated[
    Literal["final", "none"] | None,
    typer.Option(
        "--refine",
        help="Final bundle adjustment of the whole map: final always, none never. "
        "Default: if it takes less time than the run.",
        show_default=False,
    ),
]
Times = Annotated[
    Path | None,
    typer.Option(
        "--times",
        metavar="FILE",
        help="Timestamps for poses without them (KITTI): one time per line, seconds.",
        show_default=False,
    ),
]
Jobs = Annotated[
    int, typer.Option("--jobs", metavar="N", min=1, max=256, help="Number of processes that share the work.")
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Work on a Ray cluster: its address, or 'local' for one of this machine.",
        show_default=False,
    ),
]
Preset = Annotated[
    Literal["fast", "accurate"] | None,
    typer.Option(
        "--preset",
        help="Settings for slow machines and long videos, or for when time matters less. "
        "--config and --set take precedence.",
        show_default=False,
    ),
]
Photos = Annotated[
    bool,
    typer.Option("--photos", help="The images are photos without an order: they are matched first, then mapped."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def complain(message: str) -> None:
    """Print an error message to standard error, on one line."""
    say("slam: " + " ".join(message.split()))


def say(line: str) -> None:
    """Print a message to standard error; only results go to standard output."""
    print(line, file=sys.stderr, flush=True)


def expect_new(path: Path, *, option: str = "", makes_folders: bool = False) -> None:
    """Check, before any computation, that an output file or folder can be created.

    Args:
        option: name of the option for the error message, such as `--record`.
        makes_folders: whether missing parent folders will be created.

    Raises:
        OutputError: it exists already, or its parent folder is missing, is a file, or is not writable.
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
    preset: str | None = None,
) -> SlamConfig:
    """The effective settings of a command. Unused settings raise in overrides, and are reported in files.

    Args:
        flags: options converted to overrides by `flags_of`.
        sections: sections of the settings that the command uses.
        preset: name of the settings that precede `files`.

    Raises:
        ConfigError: invalid settings, or overrides that the command does not use.
    """
    from slam.config.loading import expect_used, load_config, preset_file

    first = [preset_file(preset)] if preset else []
    config = load_config([*first, *files], [*overrides, *flags])
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
    one_pass: bool = False,
    topic: str | None = None,
    photos: bool = False,
) -> list[str]:
    """Options converted to overrides of settings, which take precedence over --set.

    Raises:
        ConfigError: `weights` is a path that is not valid UTF-8, which settings cannot represent.
    """
    if weights and plain(weights) != weights:
        raise ConfigError(f"--weights {weights}: settings hold plain UTF-8 alone; rename it, or make a link to it")
    flags = [f"predictor.kind={predictor}"] if predictor else []
    flags += [f"predictor.weights={json.dumps(weights)}"] if weights else []
    flags += ["predictor.random_weights=true"] if random_weights else []
    flags += [f"input.mask={json.dumps(str(mask))}"] if mask else []
    flags += ["input.second_pass=false"] if one_pass else []
    flags += ["input.unordered=true"] if photos else []
    flags += [f"input.topic={json.dumps(topic)}"] if topic else []
    flags += [f"metric_scale.scale_from={json.dumps(scale_from)}"] if scale_from else []
    flags += [f"bundle_adjustment.final={'always' if refine == 'final' else 'never'}"] if refine else []
    return flags + ([f"seed={seed}"] if seed is not None else [])


def workers_of(jobs: int, ray: str | None) -> Workers:
    """The workers that --jobs and --ray ask for.

    Raises:
        ConfigError: Ray is not installed.
    """
    if ray is not None:
        from slam.workers.ray_cluster import on_ray

        return on_ray(ray, jobs if jobs > 1 else None)
    if jobs > 1:
        from slam.workers.processes import in_processes

        return in_processes(jobs)
    from slam.workers.work import in_this_process

    return in_this_process


def introduce(
    say: Callable[[str], None],
    config: SlamConfig,
    frames: FrameSource,
    choice: PredictorChoice,
    calibration: CalibrationPass | None = None,
) -> None:
    """Print the source, the predictor and its warning before a run, and why its camera was not estimated."""
    from slam.components.predictor_choice import RANDOM_WEIGHTS

    say(frames.description)
    if calibration is not None and not calibration.is_used:  # the description of the source states one that is used
        say(calibration.sentence)
    say(f"predictor: {choice.kind} ({choice.reason})")
    if config.predictor.random_weights:
        say(f"WARNING: {RANDOM_WEIGHTS}")
