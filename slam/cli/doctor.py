"""`slam doctor`: checks of the installation."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from slam.cli.options import UNUSABLE, AsJson


def doctor(
    hash_weights: Annotated[
        bool, typer.Option("--hash", help="Verify the hash of cached weights; takes seconds.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check the installation; each line is ok, or states how to fix it.

    Example:

      slam doctor
    """
    from slam.cli.installation_checks import examine

    checks = examine(hash_weights=hash_weights)
    if as_json:
        print(json.dumps([check.to_dict() for check in checks], indent=2))
    else:
        from slam.cli.text_tables import render

        print(render([(check.name, "ok" if check.ok else check.severity, check.finding) for check in checks]))
        for check in checks:
            if check.fix:
                print(f"{check.name}: {check.fix}")
    if any(not check.ok and check.needed for check in checks):
        raise typer.Exit(UNUSABLE)
