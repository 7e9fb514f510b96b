"""`slam map from-poses`: a map from images with known poses."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from slam.cli.options import (
    UNUSABLE,
    CameraFile,
    ConfigFiles,
    MaskImage,
    Overrides,
    PredictorName,
    RandomWeights,
    Start,
    Stride,
    Weights,
    complain,
    expect_new,
    flags_of,
    load_settings,
    say,
)

USED = ("seed", "input", "features", "predictor")  # sections of the settings that this command uses
MIN_LANDMARKS = 10  # minimum number of landmarks per image; fewer mean that poses and images do not match


def from_poses(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="Folder of images, or a dataset with poses.")],
    poses: Annotated[
        Path | None,
        typer.Argument(
            metavar="POSES",
            help="Trajectory file, COLMAP model (text) or Cambridge list. Default: the poses in IMAGES.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="MAP", help="Map folder to create.")] = Path("map"),
    config: ConfigFiles = [],  # noqa: B006 - typer copies it
    overrides: Overrides = [],  # noqa: B006
    predictor: PredictorName = None,
    weights: Weights = None,
    random_weights: RandomWeights = False,
    camera: CameraFile = None,
    mask: MaskImage = None,
    start: Start = 0,
    stride: Stride = 1,
    max_frames: Annotated[int | None, typer.Option(metavar="N", min=2, help="Maximum number of images.")] = None,
    min_distance: Annotated[
        float,
        typer.Option(metavar="LENGTH", min=0, help="Skip images closer than this to a kept image. Default: keep all."),
    ] = 0.0,
    min_angle: Annotated[
        float,
        typer.Option(
            metavar="DEGREES",
            min=0,
            max=180,
            help="With --min-distance: keep close images rotated by more than this, degrees.",
        ),
    ] = 10.0,
    units: Annotated[
        Literal["meters", "map units"] | None,
        typer.Option(help="Unit of the poses. Default: map units for COLMAP, meters for other formats."),
    ] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print only errors.")] = False,
) -> None:
    """Create a map from images with known poses, for relocalization of other images.

    Examples:

      slam map from-poses 7scenes/chess -o maps/chess

      slam map from-poses freiburg3_teddy -o maps/teddy --min-distance 0.05

      slam map from-poses Shop Shop/train.txt --camera phone.yaml -o maps/shop

      slam map from-poses images colmap/sparse/0 -o maps/garden
    """
    expect_new(out, makes_folders=True)
    from relocalizer.config import PosedImagesConfig
    from relocalizer.maps.map_from_poses import map_from_poses
    from relocalizer.maps.map_writer import save_map
    from slam.components.assembly import build_predictor
    from slam.components.predictor_choice import choose_predictor, with_predictor
    from slam.input.frame_source import Selection
    from slam.input.posed_images import open_posed
    from slam.progress import TaskProgress

    flags = flags_of(predictor=predictor, weights=weights, random_weights=random_weights, seed=None, mask=mask)
    settings = load_settings(config, overrides, flags, verb="slam map from-poses", sections=USED, quiet=quiet)
    choice = choose_predictor(settings)
    source = open_posed(
        images, poses, config=settings.input, camera=camera, selection=Selection(start, stride, max_frames)
    )
    if not quiet:
        say(source.description)
        say(f"predictor: {choice.kind} ({choice.reason})")
    progress = None if quiet else TaskProgress(sys.stderr)
    created = map_from_poses(
        source.images,
        build_predictor(with_predictor(settings, choice.kind)),
        config=PosedImagesConfig(min_distance=min_distance, min_angle_deg=min_angle),
        features=settings.features,
        units=units or source.units,
        on_progress=progress,
    )
    if progress is not None:
        progress.close()
    save_map(out, created)
    print(f"{out}: {len(created.keyframes)} keyframes, {len(created.landmarks)} landmarks, {created.provenance.units}")
    if len(created.landmarks) < MIN_LANDMARKS * len(created.keyframes):
        complain(
            f"{len(created.landmarks)} landmarks fit the poses of {len(created.keyframes)} images: "
            "are the poses and the camera those of these images?"
        )
        raise typer.Exit(UNUSABLE)
    if not quiet:
        say(f"next: slam relocalize {out} IMAGES")
