"""`slam serve`: a map as an HTTP service."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from relocalizer.errors import UserError
from slam.cli.options import CameraFile, ConfigFiles, MaskImage, Overrides, Weights, flags_of, load_settings, say
from slam.cli.relocalize import USED


def serve(
    map: Annotated[Path, typer.Argument(metavar="MAP", help="Map folder, or a run folder with a map.")],
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on; 0.0.0.0 is reachable from outside.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65535, help="Port; 0 takes a free one.")
    ] = 8000,
    config: ConfigFiles = [],  # noqa: B006 - typer copies it
    overrides: Overrides = [],  # noqa: B006
    weights: Weights = None,
    camera: CameraFile = None,
    mask: MaskImage = None,
) -> None:
    """Serve a map over HTTP: POST an image to /locate and get its pose, or use the page in a browser.

    --camera is the camera of images that are sent without one; else it is the map's.

    Examples:

      slam serve runs/desk

      slam serve maps/shop --camera phone.yaml --port 9000

    Ctrl-C ends it.
    """
    try:
        from slam.serve.server import bound_socket, make_service, serve_until_stopped
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn", "python_multipart"):
            raise
        raise UserError("slam serve needs Starlette and uvicorn: pip install 'reloc3r-slam[serve]'") from None
    from relocalizer.maps.map_reader import load_map
    from slam.workers.localization import predictor_of_map

    flags = flags_of(predictor=None, weights=weights, random_weights=False, seed=None, mask=mask)
    settings = load_settings(config, overrides, flags, verb="slam serve", sections=USED)
    listening = bound_socket(host, port)
    with listening:
        reference_map = load_map(map)
        worker, service = make_service(
            reference_map, predictor_of_map(reference_map, settings), settings, name=map.resolve().name, camera=camera
        )
        say(f"{map}: {len(reference_map.keyframes)} keyframes, {len(reference_map.landmarks)} landmarks")
        address, bound_port = listening.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        say(f"serving at http://{shown}:{bound_port} until Ctrl-C")
        with suppress(KeyboardInterrupt):
            serve_until_stopped(worker, service, listening)
