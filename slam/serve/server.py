"""The server process: a socket, the worker and the application."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path

import uvicorn

from relocalizer.errors import UserError
from relocalizer.interfaces import PosePredictor
from relocalizer.maps.reference_map import ReferenceMap
from relocalizer.relocalizer import Relocalizer
from slam.config.schema import SlamConfig
from slam.input.rectification import read_calibration
from slam.serve.app import LOOPBACK, MapService, make_app
from slam.serve.map_localizer import MapLocalizer
from slam.serve.map_outline import map_outline
from slam.serve.worker import LocalizationWorker

MOST_CONNECTIONS = 64
IDLE_S = 10  # seconds after which a connection without a request is closed


def bound_socket(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises UserError when the address cannot be had."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UserError(f"{host}:{port}: cannot be listened on ({error.strerror}); choose another --port") from None


def make_service(
    reference_map: ReferenceMap, predictor: PosePredictor, settings: SlamConfig, *, name: str, camera: Path | None
) -> tuple[LocalizationWorker, MapService]:
    """The worker, which has to be closed, and the service in front of it.

    Raises:
        UserError: the camera or the map cannot be used.
    """
    default = read_calibration(camera) if camera is not None else None

    def make() -> MapLocalizer:
        relocalizer = Relocalizer(reference_map, predictor, config=settings.relocalization)
        needed = predictor.name == "geometric"
        return MapLocalizer(reference_map, relocalizer, settings.input, camera=default, camera_needed=needed)

    facts = {
        "map": name,
        "predictor": predictor.name,
        "keyframes": len(reference_map.keyframes),
        "landmarks": len(reference_map.landmarks),
    }
    outline = map_outline(reference_map, name)
    worker = LocalizationWorker(make)
    return worker, MapService(worker, outline, facts)


def serve_until_stopped(worker: LocalizationWorker, service: MapService, listening: socket.socket) -> None:
    """Answer requests until SIGINT or SIGTERM; requests that were accepted are answered."""
    host = str(listening.getsockname()[0])
    hosts = LOOPBACK if host in LOOPBACK else ("*",)
    config = uvicorn.Config(
        make_app(service, hosts=hosts),
        log_level="warning",
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=IDLE_S,
        server_header=False,
    )
    with closing(worker), listening:
        uvicorn.Server(config).run(sockets=[listening])
