"""Whether Rerun is there, which only the viewer and recordings need and a default installation leaves out."""

from __future__ import annotations

from importlib.util import find_spec

from relocalizer.errors import ConfigError

HOW_TO_INSTALL = "pip install 'reloc3r-slam[viewer]'"


def is_installed() -> bool:
    """Whether Rerun can be imported, without importing it."""
    return find_spec("rerun") is not None


def expect_installed(what: str) -> None:
    """Raises ConfigError, with what to do, when `what` is asked for and Rerun is not installed."""
    if not is_installed():
        raise ConfigError(f"{what} needs Rerun, which is not installed: {HOW_TO_INSTALL}")
