"""`slam config`: the effective settings."""

from __future__ import annotations

from typing import Annotated

import typer

from slam.cli.options import ConfigFiles, Overrides


def config_command(
    config: ConfigFiles = [],  # noqa: B006 - typer copies it
    overrides: Overrides = [],  # noqa: B006
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print a reference of all settings in Markdown.")
    ] = False,
) -> None:
    """Print the effective settings with comments; the output is a valid file for --config.

    Examples:

      slam config > mine.yaml

      slam config -c configs/fast.yaml --set seed=3
    """
    from slam.config.loading import configuration_page, dump_config, load_config

    settings = load_config(config, overrides)
    print(configuration_page() if markdown else dump_config(settings), end="")
