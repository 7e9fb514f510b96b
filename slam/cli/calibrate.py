"""`slam calibrate`: the camera of stored images, written as a camera.yaml."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from relocalizer.errors import OutputError
from slam.cli.options import (
    UNUSABLE,
    AsJson,
    ConfigFiles,
    Overrides,
    Start,
    Stride,
    complain,
    expect_new,
    load_settings,
    say,
)

if TYPE_CHECKING:
    from relocalizer.board_calibration import Board
    from relocalizer.camera import Camera
    from slam.config.schema import SlamConfig
    from slam.input.frame_source import RereadableSource
    from slam.run.camera_calibration import FoundCamera, NotFound

BOARD_SIDE_PX = 2048  # maximum length of the longer side of an image in which a board is searched, pixels


@dataclass(frozen=True, slots=True)
class _Outputs:
    """Files to write."""

    camera: Path
    preview: Path | None
    force: bool

    def check(self) -> None:
        """Check, before any computation, that they can be written. Raises OutputError."""
        if self.preview is not None and self.preview.suffix.lower() not in (".jpg", ".jpeg"):
            raise OutputError(f"--preview {self.preview}: expected a name that ends in .jpg")
        for path, option in ((self.camera, "-o"), (self.preview, "--preview")):
            if path is not None and not (self.force and path.is_file()):
                expect_new(path, option=option)


def calibrate(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Folder of images, dataset or video file, all of one camera.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="Camera file to write.")] = Path(
        "camera.yaml"
    ),
    board: Annotated[
        str | None,
        typer.Option(
            "--board",
            metavar="BOARD",
            help="Calibrate from a board in the images: checkerboard:COLUMNSxROWS:SQUARE with the number of inner "
            "corners, or charuco:COLUMNSxROWS:SQUARE:MARKER[:DICTIONARY] with the number of squares; lengths in "
            "meters. Default: from image pairs of any scene.",
            show_default=False,
        ),
    ] = None,
    preview: Annotated[
        Path | None,
        typer.Option(
            "--preview", metavar="JPG", help="Write the middle image, original and undistorted, side by side."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace existing output files.")] = False,
    config: ConfigFiles = [],  # noqa: B006 - typer copies it
    overrides: Overrides = [],  # noqa: B006
    stride: Stride = 1,
    start: Start = 0,
    as_json: AsJson = False,
) -> None:
    """Estimate the focal length and the distortion of a camera from its images, and write them to a camera.yaml.

    Without a board the estimate is that of slam run before its first frame. Its standard deviation tells how well it is
    known; a camera that moves through a scene with depth, and turns, determines it best.

    Examples:

      slam calibrate film.mp4 -o camera.yaml

      slam calibrate film.mp4 --board checkerboard:9x6:0.025

      slam calibrate images/ --board charuco:7x5:0.04:0.03:DICT_5X5_100

    The exit code is 1, and no file is written, if the images do not determine the camera.
    """
    from relocalizer.board_calibration import Board
    from slam.input.open_source import open_source
    from slam.run.camera_calibration import stored

    outputs = _Outputs(out, preview, force)
    outputs.check()
    settings = load_settings(config, overrides, [], verb="slam calibrate", sections=("input", "features"))
    target = None if board is None else Board.parse(board)
    side = {} if target is None else {"max_side_px": max(BOARD_SIDE_PX, settings.input.max_side_px)}
    reading = settings.input.model_copy(update={"calibrate_first": True, **side})
    images = stored(open_source(source, config=reading, start=start, stride=stride))
    say(images.description)
    try:
        raise typer.Exit(_calibrate(images, settings, target, outputs, as_json=as_json))
    finally:
        images.close()


def _calibrate(
    images: RereadableSource, config: SlamConfig, board: Board | None, outputs: _Outputs, *, as_json: bool
) -> int:
    """Calibrate, write the files, and return the exit code."""
    from relocalizer.images import encode_jpeg
    from slam.run.camera_calibration import NotFound, comparison, side_by_side, without_calibration
    from slam.run.files import write_atomically

    raw = without_calibration(images, config)
    given = None if images.calibration.assumed else images.calibration
    if given is not None:
        say(f"{images.name} has a calibration already, which is compared with the one found")
    found = _found(raw, config, board)
    if isinstance(found, NotFound):
        complain(f"{images.name}: the camera was not determined: {found.reason}; nothing was written")
        return UNUSABLE
    write_atomically(outputs.camera, found.to_yaml())
    if outputs.preview is not None:
        image = side_by_side(raw, found.camera)
        if image is None:
            raise OutputError(f"--preview {outputs.preview}: the middle image of {images.name} cannot be read")
        _write(outputs.preview, encode_jpeg(image, 90))
    if as_json:
        compared = {} if given is None else {"given_focal_px": given.mean_focal}
        print(json.dumps({**found.to_dict(), **compared, "file": str(outputs.camera)}, indent=2))
        return 0
    _print(found, given, "" if given is None else comparison(given, found))
    say(f"wrote {outputs.camera}: slam run SOURCE --camera {outputs.camera}")
    return 0


def _found(raw: RereadableSource, config: SlamConfig, board: Board | None) -> FoundCamera | NotFound:
    """The result of the calibration, with its progress on standard error."""
    from slam.progress import TaskProgress
    from slam.run.camera_calibration import calibrate_from_board, calibrate_from_pairs

    progress = TaskProgress(sys.stderr)
    try:
        if board is None:
            return calibrate_from_pairs(raw, config, on_progress=progress)
        return calibrate_from_board(raw, board, on_progress=progress)
    finally:
        progress.close()


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise OutputError(f"--preview {path}: cannot be written ({error.strerror})") from None


def _print(found: FoundCamera, given: Camera | None, compared: str) -> None:
    from relocalizer.plausible_camera import angles_across_deg
    from slam.cli.text_tables import render

    camera = found.camera
    across, along = angles_across_deg(camera)
    names = ("k1", "k2", "p1", "p2")[: len(camera.distortion)]
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in zip(names, camera.distortion, strict=True))
    model = f"radial distortion, {numbers}" if camera.distortion else "pinhole, no distortion"
    rows = [
        ("focal length", f"{camera.mean_focal:.1f} px +- {found.sigma_px:.1f} px ({100 * found.sigma:.2g} %)"),
        ("angle of view", f"{across:.1f} x {along:.1f} degrees ({camera.width}x{camera.height})"),
        ("model", model),
        ("state", found.state),
        ("estimated from", found.evidence),
    ]
    rows += [("reprojection error", f"{found.rms_px:.3f} px")] if found.rms_px is not None else []
    rows += [("given", compared)] if given is not None else []
    print(render(rows, title="camera"))
