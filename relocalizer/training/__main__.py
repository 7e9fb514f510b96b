"""`torchrun --nproc-per-node=N -m relocalizer.training CONFIG.yaml`: a training in several processes."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from relocalizer.errors import UserError
from relocalizer.training.config import checked_config, merged, parse_changes, read_yaml
from relocalizer.training.session import train

USER_ERROR = 2
LINE_EVERY = 10  # steps between two lines of progress

_log = logging.getLogger("training")


def main() -> int:
    """Train as the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m relocalizer.training", description=__doc__)
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml", help="settings of the training")
    parser.add_argument("-o", "--out", type=Path, default=Path("trained"), help="folder of the training")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="one setting")
    parser.add_argument("--resume", action="store_true", help="continue the training in the folder")
    given = parser.parse_args()
    is_first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(
        level=logging.INFO if is_first else logging.WARNING, format="%(message)s", stream=sys.stderr, force=True
    )
    try:
        if is_first and given.out.exists() and not given.resume:
            raise UserError(f"{given.out}: is there already; choose another name, or add --resume")
        config = checked_config(merged(read_yaml(given.config), parse_changes(given.set)), str(given.config))
        result = train(config, given.out, resume=given.resume, on_progress=_progress, say=_log.info)
    except UserError as error:
        _log.error("%s", " ".join(str(error).split()))
        return USER_ERROR
    if is_first:
        _log.info("before: %s", result.before)
        _log.info("after: %s", result.after)
        _log.info("%s: weights of %d steps, license: %s", result.folder, result.steps, result.license)
    return 0


def _progress(what: str, done: int, total: int, state: str) -> None:
    if done % LINE_EVERY == 0 or done == total:
        _log.info("%d/%d %s, %s", done, total, what, state)


if __name__ == "__main__":
    raise SystemExit(main())
