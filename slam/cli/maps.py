"""`slam map`: contents, export and merging of saved maps."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from relocalizer.errors import ConfigError, MapError
from slam.cli.options import (
    AsJson,
    ConfigFiles,
    Overrides,
    PredictorName,
    RandomWeights,
    Weights,
    expect_new,
    flags_of,
    load_settings,
    say,
)

if TYPE_CHECKING:
    from relocalizer.maps.reference_map import ReferenceMap
    from slam.config.schema import SlamConfig
    from slam.sessions.merging import MergedMap

# Sections of the settings that merging uses.
MERGING = ("seed", "features", "predictor", "tracks", "landmarks", "bundle_adjustment", "loop_closing")

ExportForm = Literal["colmap", "nerfstudio", "ply", "tum", "kitti"]
MapFolder = Annotated[Path, typer.Argument(metavar="MAP", help="Map folder, or a run folder with a map.")]

map_app = typer.Typer(help="Saved maps: show, export, merge, create.", no_args_is_help=True)


@map_app.command(short_help="Show the contents of a map")
def info(folder: MapFolder, as_json: AsJson = False) -> None:
    """Show the contents of a map, and validate all its files.

    Examples:

      slam map info runs/desk-1

      slam map info maps/desk --json
    """
    from relocalizer.maps.map_facts import facts_of, size_on_disk
    from relocalizer.maps.map_reader import load_map

    facts = {**facts_of(load_map(folder)), "bytes": size_on_disk(folder)}
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    from slam.cli.text_tables import render

    print(render(_info_rows(facts), title=str(folder)))


def _info_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    counts, size = facts["counts"], sum(facts["bytes"].values())
    weights = f", weights {facts['weights_sha256'][:12]}" if facts["weights_sha256"] else ""
    per_keyframe = f" ({size / 1e3 / counts['keyframes']:.0f} kB a keyframe)" if counts["keyframes"] else ""
    rows = [
        ("predictor", f"{facts['predictor']}{weights}"),
        ("places", f"{facts['descriptor']}, {counts['descriptor_size']} numbers"),
        ("units", _units_words(facts)),
        ("keyframes", str(counts["keyframes"])),
        ("frames", str(counts["frames"])),
        ("landmarks", f"{counts['landmarks']} ({counts['observations']} observations)"),
        ("features", f"{counts['features']} on a track"),
        ("edges", f"{counts['edges']}, {facts['loops']} of them loops"),
    ]
    for camera in facts["cameras"]:
        assumed = ", assumed" if camera["assumed"] else ""
        rows.append(("camera", f"{camera['width']}x{camera['height']}, focal length {camera['fx']:.1f} px{assumed}"))
    rows += [(f"segment {part['segment']}", _segment_words(part)) for part in facts["segments"]]
    return [*rows, ("size", f"{size / 1e6:.1f} MB{per_keyframe}")]


def _units_words(facts: dict[str, Any]) -> str:
    source = f" (scale: {facts['scale_source']})" if facts["scale_source"] else ""
    others = [str(part["segment"]) for part in facts["segments"] if part["units"] != facts["units"]]
    but = f", but for segment{'s' * (len(others) > 1)} {', '.join(others)}" if others else ""
    return f"{facts['units']}{source}{but}"


def _segment_words(part: dict[str, Any]) -> str:
    sessions = f", {part['sessions']} sessions" if part["sessions"] > 1 else ""
    extent = " x ".join(f"{length:.2f}" for length in part["extent"])
    cameras = f"cameras within {extent} {part['units']}"
    return f"{part['keyframes']} keyframes, {part['landmarks']} landmarks, {cameras}{sessions}"


@map_app.command(short_help="Export to COLMAP, nerfstudio, PLY, TUM, KITTI")
def export(
    folder: MapFolder,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="OUT", help="File to write, or folder for colmap and nerfstudio.")
    ],
    form: Annotated[ExportForm, typer.Option("--format", help="Output format.")] = "colmap",
    segment: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Segment to export. Default: the segment with the most keyframes.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        Literal["keyframes", "all"],
        typer.Option(
            "--images",
            help="With colmap and nerfstudio: the stored images of the keyframes, or all images with a pose at full "
            "size, undistorted, read again from --source.",
        ),
    ] = "keyframes",
    source: Annotated[
        str | None,
        typer.Option(
            "--source", metavar="SOURCE", help="With --images all: the source of the run.", show_default=False
        ),
    ] = None,
    up: Annotated[
        bool,
        typer.Option("--up", help="Turn the map upright: z up, or y down for colmap, as its own programs do."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Export a map: COLMAP model with images, nerfstudio transforms.json, point cloud (PLY), trajectory (TUM, KITTI).

    Examples:

      slam map export runs/desk-1 --format colmap -o desk_colmap

      slam map export runs/desk-1 --images all --source desk.mp4 --up -o splat

      slam map export runs/desk-1 --format ply -o desk.ply
    """
    expect_new(out, makes_folders=True)
    if (images == "all") != (source is not None):
        raise ConfigError("--images all reads all images again from --source SOURCE: give both or neither")
    if source is not None and form not in ("colmap", "nerfstudio"):
        raise ConfigError(f"--images all: {form} holds no images; expected --format colmap or nerfstudio")
    import numpy as np

    from relocalizer.maps.map_export import frame_numbers, segments_by_size
    from relocalizer.maps.map_reader import load_map

    loaded = load_map(folder)
    if up:
        loaded = _upright(loaded, form, segment, folder)
    written = _exported(loaded, form, out, segment, source, folder)
    for path in written:
        say(f"wrote {path}")
    if as_json:
        print(json.dumps({"format": form, "files": [str(path) for path in written]}, indent=2))
    if form == "kitti":  # KITTI files have no timestamps to identify the frames
        for path, numbers in zip(written, frame_numbers(loaded, segment), strict=True):
            if not np.array_equal(numbers, np.arange(len(numbers))):
                which = f"{len(numbers)} of the frames {numbers[0]} to {numbers[-1]}"
                say(f"{path}: its {len(numbers)} lines are {which}, so a line is no longer a frame")
    sizes = segments_by_size(loaded)
    if segment is None and len(sizes) > 1:
        chosen, *others = sizes
        say(f"segment {chosen} of {len(sizes)}; the others are not connected: --segment {others[0]} exports the next")


def _exported(
    loaded: ReferenceMap, form: ExportForm, out: Path, segment: int | None, source: str | None, folder: Path
) -> list[Path]:
    """Export a map, with the images of its keyframes or with those that are read again from a source."""
    from relocalizer.maps.map_export import export_map

    if source is None:
        return export_map(loaded, form, out, segment=segment)
    from slam.run.posed_frames import open_again, posed_images

    frames = open_again(source, folder)
    say(frames.description)
    try:
        return export_map(loaded, form, out, segment=segment, images=posed_images(loaded, frames, segment=segment))
    finally:
        frames.close()


def _upright(loaded: ReferenceMap, form: ExportForm, segment: int | None, folder: Path) -> ReferenceMap:
    """The map with the exported segment turned upright; prints what its upward direction was taken from."""
    from relocalizer.maps.upright import UpUnknown, in_east_north_up, upright
    from slam.run.georeference import georeference_of

    axis: Literal["z", "-y"] = "-y" if form == "colmap" else "z"
    place = georeference_of(folder)
    if place is not None and segment is None:
        axes = "east, down and north" if form == "colmap" else "east, north and up"
        say(
            f"x, y and z are meters {axes} of latitude {place.latitude_deg:.7f}, longitude {place.longitude_deg:.7f}, "
            f"height {place.height_m:.2f} m, from the GPS track of the run"
        )
        return in_east_north_up(loaded, place.enu_from_world, axis=axis)
    turned = upright(loaded, axis=axis, segment=segment)
    if isinstance(turned, UpUnknown):
        raise MapError(f"--up: {turned.reason}")
    say(f"up is {axis}, estimated from {turned.reason}")
    return turned.map


@map_app.command(short_help="Merge two overlapping maps")
def merge(
    first: Annotated[
        Path, typer.Argument(metavar="A", help="Map or run folder; its coordinate frame and units are kept.")
    ],
    second: Annotated[Path, typer.Argument(metavar="B", help="Map or run folder to merge into A.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="MAP", help="Map folder to create.")],
    config: ConfigFiles = [],  # noqa: B006 - typer copies it
    overrides: Overrides = [],  # noqa: B006
    predictor: PredictorName = None,
    weights: Weights = None,
    random_weights: RandomWeights = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print only errors.")] = False,
    as_json: AsJson = False,
) -> None:
    """Merge two overlapping maps, from several sessions or several cameras, into one.

    Example:

      slam map merge runs/monday runs/tuesday -o maps/office
    """
    expect_new(out, makes_folders=True)
    from relocalizer.maps.map_facts import facts_of
    from relocalizer.maps.map_reader import load_map
    from relocalizer.maps.map_writer import save_map
    from slam.components.predictor_choice import with_predictor_of

    flags = flags_of(predictor=predictor, weights=weights, random_weights=random_weights, seed=None)
    settings = load_settings(config, overrides, flags, verb="slam map merge", sections=MERGING, quiet=quiet)
    maps = load_map(first), load_map(second)
    settings = with_predictor_of(maps[0].provenance, settings)
    merged = _merged(*maps, settings, quiet)
    save_map(out, merged.map)
    if not quiet:
        apart = f"; {merged.apart} segments of {second} stay apart" if merged.apart else ""
        say(f"{len(merged.loops)} overlaps found{apart}")
    if as_json:
        print(json.dumps({"map": str(out), "overlaps": len(merged.loops), **facts_of(merged.map)}, indent=2))
        return
    counts = f"{len(merged.map.keyframes)} keyframes, {len(merged.map.landmarks)} landmarks"
    provenance = merged.map.provenance
    but = f", but for {len(provenance.unanchored)} segments" if provenance.unanchored else ""
    print(f"{out}: {counts}, {provenance.units}{but}")


def _merged(first: ReferenceMap, second: ReferenceMap, settings: SlamConfig, quiet: bool) -> MergedMap:
    from slam.components.assembly import assemble
    from slam.progress import TaskProgress, no_progress
    from slam.sessions.merging import merge_maps

    progress = TaskProgress(sys.stderr)
    try:
        return merge_maps(first, second, settings, assemble(settings), on_progress=no_progress if quiet else progress)
    finally:
        if not quiet:
            progress.close()
