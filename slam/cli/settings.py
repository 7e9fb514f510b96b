"""`slam config`: the effective settings."""

from __future__ import annotations

from typing import Annotated

import typer

from slam.cli.options import AsJson, ConfigFiles, Overrides, Preset


def config_command(
    preset: Preset = None,
    config: ConfigFiles = [],  # noqa: B006 - typer copies it
    overrides: Overrides = [],  # noqa: B006
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print a reference of all settings in Markdown.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print the effective settings with comments; the output is a valid file for --config.

    Examples:

      slam config > mine.yaml

      slam config --preset fast --set seed=3
    """
    from slam.config.loading import configuration_page, dump_config, load_config, preset_file

    if markdown:
        print(configuration_page(), end="")
        return
    settings = load_config([*([preset_file(preset)] if preset else []), *config], overrides)
    print(settings.model_dump_json(indent=2) + "\n" if as_json else dump_config(settings), end="")
