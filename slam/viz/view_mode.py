"""Where a run is shown: nowhere, in a window, on a web page, or in a viewer that runs already."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from relocalizer.errors import ConfigError

FORMS = "none, spawn, web, web:HOST or connect:HOST:PORT"
LOOPBACK = "127.0.0.1"  # Local address, so that a run cannot be viewed from the network.
GRPC_PORT, WEB_PORT = 9876, 9090  # Rerun's default ports; any free port is used when one is taken.


class ViewKind(StrEnum):
    """How a run is shown."""

    NONE = "none"
    SPAWN = "spawn"  # A window on this machine.
    WEB = "web"  # A page served by this machine.
    CONNECT = "connect"  # A viewer that is already running, here or elsewhere.


@dataclass(frozen=True, slots=True)
class ViewMode:
    """How a run is shown, and the host and port of that."""

    kind: ViewKind
    host: str = LOOPBACK
    port: int = GRPC_PORT

    @classmethod
    def parse(cls, text: str) -> ViewMode:
        """The mode of a `--view` option.

        Raises:
            ConfigError: it has none of the forms of `FORMS`.
        """
        kind, _, address = text.partition(":")
        if kind not in list(ViewKind) or (address and kind in (ViewKind.NONE, ViewKind.SPAWN)):
            raise ConfigError(f"--view {text}: expected {FORMS}")
        if kind == ViewKind.CONNECT:
            return cls(ViewKind.CONNECT, *_host_and_port(text, address))
        return cls(ViewKind(kind), address or LOOPBACK)

    @property
    def uri(self) -> str:
        """Address of the data of this mode, as Rerun writes it."""
        return f"rerun+http://{self.host}:{self.port}/proxy"


def _host_and_port(text: str, address: str) -> tuple[str, int]:
    """From HOST, HOST:PORT or Rerun's own address."""
    plain = address.removeprefix("rerun+http://").removesuffix("/proxy")
    host, colon, port = plain.rpartition(":") if ":" in plain else (plain, "", "")
    if not host or (colon and not (port.isdigit() and 0 < int(port) < 65536)):
        raise ConfigError(f"--view {text}: expected connect:HOST:PORT, such as connect:127.0.0.1:{GRPC_PORT}")
    return host, int(port) if port else GRPC_PORT
