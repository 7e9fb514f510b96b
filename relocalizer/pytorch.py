"""Whether PyTorch is there, which only the network Reloc3r needs and a default installation leaves out."""

from __future__ import annotations

from importlib.util import find_spec

from relocalizer.errors import ConfigError

HOW_TO_INSTALL = "pip install 'reloc3r-slam[reloc3r]'"


def is_installed() -> bool:
    """Whether PyTorch can be imported, without importing it."""
    try:
        return find_spec("torch") is not None
    except ValueError:  # a module that was put in its place has no specification
        return False


def expect_installed(what: str) -> None:
    """Raises ConfigError, with what to do, when `what` is asked for and PyTorch is not installed."""
    if not is_installed():
        raise ConfigError(f"{what} needs PyTorch, which is not installed: {HOW_TO_INSTALL}")
