"""`slam train`: training and fine-tuning of Reloc3r."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from relocalizer import pytorch
from relocalizer.errors import ConfigError
from slam.cli.options import UNUSABLE, AsJson, complain, expect_new, say

if TYPE_CHECKING:
    from relocalizer.training.config import TrainingConfig
    from relocalizer.training.session import TrainingResult

Tuned = Literal["all", "decoder", "head", "confidence"]


def train(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[CONFIG.yaml | MAPS]", help="Settings of a training; with --from-maps maps or runs."),
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Folder of the training.")] = Path("trained"),
    from_maps: Annotated[bool, typer.Option("--from-maps", help="Fine-tune on these maps or runs.")] = False,
    config: Annotated[
        Path | None, typer.Option("-c", "--config", metavar="FILE", help="With --from-maps: settings that differ.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--start",
            metavar="WEIGHTS",
            help="Weights to start from: reloc3r-512, reloc3r-224, a checkpoint of Reloc3r or DUSt3R, or random.",
            show_default=False,
        ),
    ] = None,
    tune: Annotated[
        Tuned | None,
        typer.Option(
            "--tune",
            help="What is trained. decoder: all but the blocks of the encoder; head: the pose head, also on a CPU; "
            "confidence: a head that tells how far to trust a pose, which stays the same. Default: decoder.",
            show_default=False,
        ),
    ] = None,
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="KEY.PATH=VALUE", help="One setting of the training; repeatable.")
    ] = [],  # noqa: B006 - typer copies it
    resume: Annotated[bool, typer.Option("--resume", help="Continue the training in the folder.")] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Plot of the loss and errors: .png, .pdf or .svg.")
    ] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print only errors and the result.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train Reloc3r, or fine-tune it on maps of your own place. The weights are used with --weights DIR.

    Examples:

      slam train --from-maps runs/* --start reloc3r-512 --tune head -o tuned

      slam train configs/training/paper.yaml -o trained

      slam train --resume -o trained

    On several GPUs: torchrun --nproc-per-node=8 -m slam train CONFIG.yaml. The settings are in docs/training.md.
    """
    is_first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun starts
    if is_first and not resume:
        expect_new(out, makes_folders=True)
    if is_first and plot is not None:
        from slam.evaluation.training_plot import expect_plottable

        expect_new(plot, option="--plot")
        expect_plottable(plot)
    values = {"start": start} if start else {}
    values |= {"tune": tune} if tune else {}
    settings = _settings(list(sources or []), out, from_maps=from_maps, resume=resume, config=config, values=values,
                         overrides=overrides)  # fmt: skip
    if settings.tune == "confidence":
        _train_confidence(settings, out, resume=resume, quiet=quiet, as_json=as_json)
        return
    result = _train(settings, out, resume=resume, quiet=quiet or not is_first)
    if not is_first:
        return
    if plot is not None:
        from slam.evaluation.training_plot import plot_training

        plot_training(out / "log.jsonl", plot)
        say(f"wrote {plot}")
    raise typer.Exit(_report(result, as_json=as_json, quiet=quiet))


def _settings(
    sources: list[Path],
    out: Path,
    *,
    from_maps: bool,
    resume: bool,
    config: Path | None,
    values: dict[str, Any],
    overrides: list[str],
) -> TrainingConfig:
    pytorch.expect_installed("slam train")
    from relocalizer.training.config import adaptation, checked_config, merged, parse_changes, read_yaml
    from relocalizer.training.session import config_of_folder

    if resume and not sources:
        return config_of_folder(out)
    if from_maps:
        if not sources:
            raise ConfigError("train: --from-maps needs the maps or runs to train on: slam train --from-maps runs/*")
        below = read_yaml(config) if config is not None else {}
        below = merged(adaptation(sources, values.get("tune", below.get("tune", "decoder"))), below)
        if "start" not in below | values:
            raise ConfigError("train: --start names the weights to begin with, such as reloc3r-512")
        origin = str(config or "slam train")
    else:
        if len(sources) != 1 or config is not None:
            raise ConfigError("train: expected one CONFIG.yaml, or --from-maps and maps (slam train --help)")
        below, origin = read_yaml(sources[0]), str(sources[0])
    return checked_config(merged(merged(below, values), parse_changes(overrides)), origin)


def _train(settings: TrainingConfig, out: Path, *, resume: bool, quiet: bool) -> TrainingResult:
    from relocalizer.training.session import train as run_training
    from slam.input.posed_pairs import open_posed_pairs
    from slam.progress import TaskProgress

    progress = None if quiet else TaskProgress(sys.stderr)
    try:
        return run_training(
            settings,
            out,
            resume=resume,
            open_posed=open_posed_pairs,
            on_progress=progress,
            say=(lambda line: None) if progress is None else progress.say,
        )
    except KeyboardInterrupt:
        say(f"interrupted; to continue: slam train --resume -o {out}")
        raise
    finally:
        if progress is not None:
            progress.close()


def _train_confidence(settings: TrainingConfig, out: Path, *, resume: bool, quiet: bool, as_json: bool) -> None:
    from relocalizer.training.confidence import train_confidence
    from slam.input.posed_pairs import open_posed_pairs
    from slam.progress import TaskProgress

    if resume:
        raise ConfigError("train: a confidence head is trained in one go; remove its folder and start again")
    progress = TaskProgress(sys.stderr)
    result = train_confidence(
        settings,
        out,
        open_posed=open_posed_pairs,
        on_progress=None if quiet else progress,
        say=(lambda line: None) if quiet else progress.say,
    )
    progress.close()
    if as_json:
        print(json.dumps(result.as_dict(), indent=2))
        return
    print("confidence  right  held-out pairs")
    for one in result.table:
        print(f"{one.confidence:10.3f}  {one.right:5.3f}  {one.pairs}")
    print(
        f"{result.folder}: mean squared error of the confidence {result.brier:.3f}, without the head "
        f"{result.brier_before:.3f}; {100 * result.right:.0f} % of the held-out poses are right"
    )


def _report(result: TrainingResult, *, as_json: bool, quiet: bool) -> int:
    """Print the result; returns the exit code."""
    before, after = result.before, result.after
    if as_json:
        values = {"folder": str(result.folder), "steps": result.steps, "skipped": result.skipped}
        values |= {"broken": result.broken, "license": result.license, "before": before, "after": after}
        print(json.dumps(values, indent=2))
    else:
        for name, found in (("before", before), ("after", after)):
            areas = "/".join(f"{area:.1f}" for area in found["auc"])
            print(
                f"{name}: rotation {found['rotation_deg']:.2f} deg, direction {found['direction_deg']:.2f} deg, "
                f"loss {found['median_loss']:.3f} (medians of {found['pairs']} held-out pairs), AUC@5/10/20 {areas}"
            )
        print(
            f"guess: rotation {after['guess_rotation_deg']:.2f} deg, direction {after['guess_direction_deg']:.2f} deg "
            "for a camera that did not turn and moved forward"
        )
        print(f"{result.folder}: weights of {result.steps} steps, license: {result.license}")
    if result.skipped or result.broken:
        say(f"{result.skipped} steps were not finite, {result.broken} pairs could not be used")
    if after["median_loss"] >= before["median_loss"]:
        complain("held-out pairs are not better than before: these weights are of no use")
        return UNUSABLE
    if after["rotation_deg"] > after["guess_rotation_deg"] or after["direction_deg"] > after["guess_direction_deg"]:
        say("WARNING: no better than a guess; use these weights for trying out, not for results")
    if not quiet:
        say(f"next: slam run SOURCE --predictor reloc3r-{_side(result)} --weights {result.folder}")
    return 0


def _side(result: TrainingResult) -> str:
    config = json.loads((result.folder / "config.json").read_text(encoding="utf-8"))
    return str(config.get("img_size", "512"))
