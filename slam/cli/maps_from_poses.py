"""`slam map from-poses`: a map from images with known poses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from slam.cli.options import (
    UNUSABLE,
    AsJson,
    CameraFile,
    ConfigFiles,
    Jobs,
    MaskImage,
    Overrides,
    PredictorName,
    RandomWeights,
    RayAddress,
    Start,
    Stride,
    Weights,
    complain,
    expect_new,
    flags_of,
    load_settings,
    say,
    workers_of,
)

if TYPE_CHECKING:
    from relocalizer.maps.reference_map import ReferenceMap

USED = ("seed", "input", "features", "predictor")  # sections of the settings that this command uses
MIN_LANDMARKS = 10  # minimum number of landmarks per image; fewer mean that poses and images do not match


def from_poses(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="Folder of images, or a dataset with poses.")],
    poses: Annotated[
        Path | None,
        typer.Argument(
            metavar="POSES",
            help="Trajectory file, COLMAP model or Cambridge list. Default: the poses in IMAGES.",
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
    jobs: Jobs = 1,
    ray: RayAddress = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print only errors.")] = False,
    as_json: AsJson = False,
) -> None:
    """Create a map from images with known poses, for relocalization of other images.

    Examples:

      slam map from-poses 7scenes/chess -o maps/chess

      slam map from-poses freiburg3_teddy -o maps/teddy --min-distance 0.05

      slam map from-poses Shop Shop/train.txt --camera phone.yaml -o maps/shop

      slam map from-poses images colmap/sparse/0 -o maps/garden
    """
    expect_new(out, makes_folders=True)
    from relocalizer.maps.map_writer import save_map
    from slam.components.predictor_choice import choose_predictor, with_predictor
    from slam.progress import TaskProgress, no_progress
    from slam.workers.posed_features import PosedRequest, map_of_request

    flags = flags_of(predictor=predictor, weights=weights, random_weights=random_weights, seed=None, mask=mask)
    settings = load_settings(config, overrides, flags, verb="slam map from-poses", sections=USED, quiet=quiet)
    choice = choose_predictor(settings)
    request = PosedRequest(
        images=str(images),
        poses=str(poses) if poses else "",
        camera=str(camera) if camera else "",
        config=with_predictor(settings, choice.kind).model_dump(mode="json"),
        selection=(start, stride, max_frames),
        min_distance=min_distance,
        min_angle_deg=min_angle,
    )
    source = request.open()
    if not quiet:
        say(source.description)
        say(f"predictor: {choice.kind} ({choice.reason})")
    progress = None if quiet else TaskProgress(sys.stderr)
    created = map_of_request(
        request,
        source.images,
        None if jobs == 1 and ray is None else workers_of(jobs, ray),
        units=units or source.units,
        on_progress=progress or no_progress,
    )
    if progress is not None:
        progress.close()
    save_map(out, created)
    _report(out, created, quiet=quiet, as_json=as_json)


def _report(out: Path, created: ReferenceMap, *, quiet: bool, as_json: bool) -> None:
    """Print what the map holds. Exits with code 1 if its landmarks are too few."""
    if as_json:
        from relocalizer.maps.map_facts import facts_of

        print(json.dumps({"map": str(out), **facts_of(created)}, indent=2))
    else:
        print(
            f"{out}: {len(created.keyframes)} keyframes, {len(created.landmarks)} landmarks, {created.provenance.units}"
        )
    _expect_landmarks(len(created.landmarks), len(created.keyframes))
    if not quiet:
        say(f"next: slam relocalize {out} IMAGES")


def _expect_landmarks(landmarks: int, keyframes: int) -> None:
    """Say that a map with so few landmarks cannot be used, and end the command."""
    if landmarks < MIN_LANDMARKS * keyframes:
        complain(
            f"{landmarks} landmarks fit the poses of {keyframes} images: "
            "are the poses and the camera those of these images?"
        )
        raise typer.Exit(UNUSABLE)
