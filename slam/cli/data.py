"""`slam data`: data sets of the benchmarks, described and fetched."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from slam.cli.options import AsJson, say

data_app = typer.Typer(
    help="Data sets of the benchmarks: where they are from, what they look like on disk.\n\n"
    "Examples:\n\n  slam data describe tum\n\n  slam data fetch tum-desk --out tum",
    rich_markup_mode=None,
    no_args_is_help=True,
)


@data_app.command("describe", short_help="Show source, license and layout of a data set")
def data_describe(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Suite or data set. Default: a list of all.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show where a data set is from, under which license, and what it must look like on disk.

    Examples:

      slam data describe

      slam data describe scannet1500
    """
    from dataclasses import asdict

    from slam.benchmarks.data_catalog import CATALOG
    from slam.benchmarks.data_fetch import data_set

    if as_json:
        chosen = CATALOG if name is None else {name: data_set(name)}
        print(json.dumps({key: asdict(data) for key, data in chosen.items()}, indent=2))
        return
    if name is None:
        from slam.cli.text_tables import render

        print(render([(key, data.title, "fetch" if data.files else "describe") for key, data in CATALOG.items()]))
        return
    data = data_set(name)
    print(data.title)
    print(f"license: {data.license}")
    if data.size:
        print(f"size: {data.size}")
    if data.files:
        print(f"fetch: slam data fetch {name}")
    if data.source:
        print(f"source: {data.source}")
    print("layout below --data:")
    for line in data.layout:
        print(f"  {line}")


@data_app.command("fetch", short_help="Download a data set that has a plain address")
def data_fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Data set; slam data describe lists them.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Folder of the data set.")] = Path("."),
    unpack: Annotated[bool, typer.Option("--unpack", help="Unpack the archives too, and keep them.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print only errors and results.")] = False,
) -> None:
    """Download a data set after printing its license; a download that broke off is resumed.

    Examples:

      slam data fetch tum-desk -o tum --unpack

      slam data fetch scannet1500-pairs -o scannet1500

    Files are compared with the published sizes and checksums, and with those of the first download, which are kept in
    fetched.json. Nothing is fetched by any other command.
    """
    from slam.benchmarks.data_fetch import ARCHIVES, data_set, fetch
    from slam.benchmarks.data_fetch import unpack as unpack_archive
    from slam.progress import TaskProgress, no_progress

    progress = TaskProgress(sys.stderr)
    try:
        paths = fetch(data_set(name), out, announce=say, on_progress=no_progress if quiet else progress)
    finally:
        progress.close()
    for path in paths:
        if unpack and path.name.endswith(ARCHIVES):
            say(f"unpacking {path}")
            unpack_archive(path)
        print(path)
