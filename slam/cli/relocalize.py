"""`slam relocalize`: relocalization of images in a map."""

from __future__ import annotations

import json
import sys
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slam.cli.options import (
    INTERRUPTED,
    UNUSABLE,
    AsJson,
    CameraFile,
    ConfigFiles,
    Jobs,
    MaskImage,
    Overrides,
    RayAddress,
    Weights,
    complain,
    expect_new,
    flags_of,
    load_settings,
    say,
    workers_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from relocalizer.confidence import ErrorBound
    from relocalizer.maps.reference_map import ReferenceMap
    from relocalizer.relocalizer import NotFound, Relocalization
    from slam.input.query_images import QueryImage
    from slam.workers.localization import LocalizedPart, OpenedQueries, QueryRequest
    from slam.workers.work import Workers

USED = ("seed", "input", "predictor", "relocalization")  # sections of the settings that this command uses


@dataclass(frozen=True, slots=True, eq=False)
class _Result:
    image: QueryImage
    outcome: Relocalization | NotFound


def relocalize(
    map: Annotated[Path, typer.Argument(metavar="MAP", help="Map folder, or a run folder with a map.")],
    images: Annotated[list[str], typer.Argument(metavar="IMAGES", help="Images, folders, or 'patterns*.jpg'.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="File for the poses in TUM format.")
    ] = None,
    config: ConfigFiles = [],  # noqa: B006 - typer copies it
    overrides: Overrides = [],  # noqa: B006
    weights: Weights = None,
    camera: CameraFile = None,
    mask: MaskImage = None,
    jobs: Jobs = 1,
    ray: RayAddress = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print only errors and results.")] = False,
    as_json: AsJson = False,
) -> None:
    """Localize single images in a map: the pose and its confidence, or the reason for a failure.

    Examples:

      slam relocalize runs/desk-1 photo.jpg

      slam relocalize maps/chess 7scenes/chess/seq-03 --out poses.txt

      slam relocalize maps/shop 'holiday/*.jpg' --camera phone.yaml --json

    The exit code is 1 if no image was localized. After Ctrl-C the results so far are printed.
    """
    if out is not None:
        expect_new(out)
    from slam.workers.localization import QueryRequest, open_queries

    flags = flags_of(predictor=None, weights=weights, random_weights=False, seed=None, mask=mask)
    settings = load_settings(config, overrides, flags, verb="slam relocalize", sections=USED, quiet=quiet)
    request = QueryRequest(
        map=str(map),
        images=images,
        camera=str(camera) if camera else "",
        config=settings.model_dump(mode="json"),
    )
    opened = open_queries(request)
    reference_map, queries = opened.reference_map, opened.queries
    if not quiet:
        say(f"{map}: {len(reference_map.keyframes)} keyframes, {len(reference_map.landmarks)} landmarks")
    parallel = None if jobs == 1 and ray is None else workers_of(jobs, ray)
    results = _localize_all(opened, request, parallel, quiet=quiet)
    found = any(_pose_of(result) for result in results)
    if out is not None and found:
        _write_poses(out, results, reference_map)
    _show(results, opened.relocalizer.bounds, map, reference_map, as_json=as_json)
    if len(results) < len(queries):
        raise typer.Exit(INTERRUPTED)
    if not found:
        complain("no image was found in the map")
        raise typer.Exit(UNUSABLE)


def _localize_all(
    opened: OpenedQueries, request: QueryRequest, workers: Workers | None, *, quiet: bool
) -> list[_Result]:
    """Localize the images in batches, until Ctrl-C; an unreadable image gives a failed result."""
    from slam.progress import TaskProgress

    progress = None if quiet else TaskProgress(sys.stderr)
    parts: dict[str, LocalizedPart] = {}
    notes: list[str] = []
    with suppress(KeyboardInterrupt):
        for item, part in _parts(opened, request, workers):
            parts[item] = part
            if progress is not None:
                for note in part.notes:
                    if note not in notes:  # each worker has it
                        progress.say(note)
                        notes.append(note)
                progress("images", sum(len(own.outcomes) for own in parts.values()), len(opened.queries))
    if progress is not None:
        progress.close()
    return [
        _Result(image, outcome)
        for item in opened.items
        if item in parts
        for image, outcome in zip(opened.of(item), parts[item].outcomes, strict=True)
    ]


def _parts(
    opened: OpenedQueries, request: QueryRequest, workers: Workers | None
) -> Iterator[tuple[str, LocalizedPart]]:
    """The outcomes of each batch, in this process or by workers."""
    from relocalizer.relocalizer import NotFound
    from slam.workers.localization import LocalizedPart, localize_part

    if workers is None:
        for item in opened.items:
            yield item, opened.localize(item)
        return
    with closing(workers(localize_part, request.to_text(), opened.items)) as finished:
        for one in finished:
            for death in one.deaths:
                say(f"restarted: {death}")
            lost = [NotFound(one.fault)] * len(opened.of(one.item))
            yield one.item, LocalizedPart(lost, ()) if one.result is None else one.result


def _pose_of(result: _Result) -> Relocalization | None:
    from relocalizer.relocalizer import Relocalization

    return result.outcome if isinstance(result.outcome, Relocalization) else None


def _write_poses(out: Path, results: list[_Result], reference_map: ReferenceMap) -> None:
    """Write the poses of the segment with the most images, since segments have separate coordinate frames."""
    import numpy as np

    from relocalizer.geometry import stack_matrices
    from slam.evaluation.trajectory import Trajectory
    from slam.evaluation.trajectory_files import write_tum

    found = [(a.image, pose) for a in results if (pose := _pose_of(a)) is not None]
    segments = Counter(pose.segment for _, pose in found)
    segment = min(segments, key=lambda s: (-segments[s], s), default=0)
    kept = [(image, pose) for image, pose in found if pose.segment == segment]
    times = np.array([image.timestamp_ns for image, _ in kept], dtype=np.int64)
    names = [str(image.path) for image, _ in kept]
    source = reference_map.provenance.scale_source if reference_map.units_of(segment) == "meters" else ""
    note = f"lengths in meters: {source}" if source else ""
    trajectory = Trajectory(times, stack_matrices([pose.world_from_cam for _, pose in kept]))
    write_tum(out, trajectory, note=note, names=names)
    left = len(found) - len(kept)
    say(f"wrote {out}: {len(kept)} poses" + (f"; {left} in other segments of the map are left out" if left else ""))


def _show(
    results: list[_Result],
    bounds: Mapping[int, ErrorBound],
    map: Path,
    reference_map: ReferenceMap,
    *,
    as_json: bool,
) -> None:
    found = [pose for result in results if (pose := _pose_of(result)) is not None]
    segments = sorted({pose.segment for pose in found} or bounds)
    if as_json:
        from relocalizer.answer_values import bound_values

        common = bound_values(bounds[segments[0]]) if len(segments) == 1 else None
        entries = [_entry(result, reference_map) for result in results]
        print(json.dumps({"map": str(map), "confidence_is_of_error_under": common, "images": entries}, indent=2))
        return
    for result in results:
        pose = _pose_of(result)
        if pose is None:
            print(f"{result.image.path}: not found: {getattr(result.outcome, 'reason', '')}")
        else:
            x, y, z = pose.world_from_cam.translation
            where = pose.bound.units + (f" in segment {pose.segment}" if len(bounds) > 1 else "")
            by = f"{pose.inliers} landmarks" if pose.how == "landmarks" else f"{len(pose.views)} keyframes"
            at = f"position {x:.3f} {y:.3f} {z:.3f} {where}"
            print(f"{result.image.path}: {at}, confidence {pose.confidence:.2f}, {by}")
    of = ", ".join(_words(bounds[s]) + (f" in segment {s}" if len(bounds) > 1 else "") for s in segments)
    print(f"{len(found)} of {len(results)} found; confidence is of an error under {of}")


def _words(bound: ErrorBound) -> str:
    return f"{bound.distance:.3g} {bound.units} and {_degrees(bound.angle_rad):g} deg"


def _degrees(angle_rad: float) -> float:
    import math

    return round(math.degrees(angle_rad), 6)


def _entry(result: _Result, reference_map: ReferenceMap) -> dict[str, Any]:
    from relocalizer.answer_values import answer_values

    head = {"image": str(result.image.path), "timestamp_ns": result.image.timestamp_ns}
    return {**head, **answer_values(result.outcome, reference_map)}
