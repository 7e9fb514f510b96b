"""The `slam` command: converts arguments to calls. The only package that prints and exits.

Heavy libraries are imported inside the commands, so that `slam --help` is fast.

Exit codes: 0 success; 1 the run was completed, but its result is not usable; 2 an error that the user can fix, with
a one-line message; 70 an internal error (a bug) with its traceback; 130 interrupted by Ctrl-C, with a readable run
folder.
"""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from relocalizer.errors import UserError
from slam.cli import (
    bench,
    benchmark,
    calibrate,
    convert,
    data,
    doctor,
    evaluation,
    explain,
    maps,
    maps_from_poses,
    plot,
    relocalize,
    run,
    serve,
    settings,
    train,
    view,
    weights,
)
from slam.cli.garbage import collect_rarely
from slam.cli.help_panels import in_panels
from slam.cli.options import INTERNAL_ERROR, INTERRUPTED, USER_ERROR, complain
from slam.cli.streams import lasting_streams
from slam.cli.threads import limit_blas_threads

app = typer.Typer(
    name="slam",
    help="Monocular visual SLAM: estimates a trajectory and a map from a video or a folder of images.\n\n"
    "Start with: slam run VIDEO_OR_FOLDER",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(short_help="Run SLAM on a video or a folder of images")(run.run)
app.command(short_help="Localize single images in a map")(relocalize.relocalize)
app.command(short_help="Serve a map over HTTP")(serve.serve)
app.command(short_help="Estimate the camera of a video or a folder")(calibrate.calibrate)
app.command(short_help="Show a finished run in Rerun")(view.view)
app.command(short_help="Explain what went wrong in a run")(explain.explain)
app.command(short_help="Draw a finished run from above")(plot.plot)
app.command(short_help="Measure the speed of a run or the network")(bench.bench)
app.command(short_help="Measure the accuracy on a public benchmark")(benchmark.benchmark)
app.command(short_help="Train Reloc3r or fine-tune it on your maps")(train.train)
app.command("eval", short_help="Evaluate a trajectory: ATE, RPE, coverage")(evaluation.evaluate_command)
app.command("config", short_help="Print the effective settings")(settings.config_command)
app.command(short_help="Convert trajectories: TUM, KITTI, EuRoC")(convert.convert)
maps.map_app.command("from-poses", short_help="Create a map from posed images")(maps_from_poses.from_poses)
app.add_typer(maps.map_app, name="map", short_help="Saved maps: show, export, merge, create")
app.add_typer(data.data_app, name="data", short_help="Data sets of the benchmarks: describe, fetch")
app.add_typer(weights.weights_app, name="weights", short_help="Reloc3r's weights: find, fetch, verify, export")
app.command(short_help="Check the installation")(doctor.doctor)
for _commands in (app, maps.map_app, data.data_app, weights.weights_app):
    in_panels(_commands)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit. `arguments` default to those of the process."""
    limit_blas_threads()
    collect_rarely()
    for stream in (sys.stdout, sys.stderr):  # characters that the terminal cannot encode are escaped
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with lasting_streams():
        code = _code_of(arguments)
    sys.exit(code)


def _code_of(arguments: Sequence[str] | None) -> int:
    """Run the command line and return its exit code."""
    try:
        code = app(args=arguments, prog_name="slam", standalone_mode=False)
        if code == INTERRUPTED:  # Typer converts the exception to an exit code
            complain("interrupted")
        return int(code or 0)
    except UserError as error:
        complain(str(error))
        return USER_ERROR
    except typer.TyperException as error:
        return _usage_error(error)
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except Exception as error:
        traceback.print_exc()
        complain(f"internal error: {type(error).__name__}: {error}; this is a bug of the program, please report it")
        return INTERNAL_ERROR


def _usage_error(error: typer.TyperException) -> int:
    message = error.format_message().replace("Value error, ", "")  # prefix of the value checks
    if "\n" in message:  # the help text, shown because there were no arguments
        print(message)
    else:
        context = getattr(error, "ctx", None)
        complain(f"{message} ({context.command_path if context else 'slam'} --help shows what there is)")
    return USER_ERROR


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        from slam import __version__

        print(f"reloc3r-slam {__version__}")
        raise typer.Exit
