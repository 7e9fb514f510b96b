"""`slam explain`: what went wrong in a finished run, in which frames, why, and what would help."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slam.cli.options import AsJson, expect_new, say

if TYPE_CHECKING:
    from slam.explain.explanation import Explanation


def explain(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    as_json: AsJson = False,
    html: Annotated[
        Path | None,
        typer.Option("-o", "--html", metavar="FILE", help="Write one HTML page with images and plots, too."),
    ] = None,
) -> None:
    """Explain a finished run: what went wrong, in which frames, why, and the setting or way of filming that helps.

    It reads the files of the run folder alone. A run in which nothing was found to be wrong has no findings.

    Examples:

      slam explain runs/desk

      slam explain runs/desk --json

      slam explain runs/desk --html desk.html
    """
    from slam.explain.explanation import explain as explanation_of
    from slam.explain.html_page import html_page
    from slam.explain.run_record import read_run
    from slam.run.files import write_atomically

    if html is not None:
        expect_new(html, option="--html")
    record = read_run(run)
    explanation = explanation_of(record, run.resolve().name)
    print(json.dumps(explanation.to_dict(), indent=2) if as_json else text_of(explanation))
    if html is not None:
        page = html_page(
            explanation, record, keyframe_jpeg=_keyframe_thumbnails(run), frame_jpeg=_frame_thumbnails(run)
        )
        write_atomically(html, page)
        say(f"wrote {html}")


def text_of(explanation: Explanation) -> str:
    """The explanation as text for a terminal."""
    lines = [": ".join(filter(None, (f"{explanation.name}: {explanation.verdict}", "; ".join(explanation.reasons))))]
    marks = "".join(_mark(share) for share in explanation.coverage)
    lines += [f"frames with a pose, over time: [{marks}] of {explanation.frames}"]
    lines += [f"note: {remark}" for remark in explanation.remarks]
    for finding in explanation.findings:
        lines += ["", f"{finding.frames}: {finding.cause}", f"  {finding.sentence}"]
        lines += [f"  what would help: {finding.advice}"]
    if not explanation.findings:
        lines += ["", "nothing went wrong that was measured"]
    refused = ", ".join(f"{count} at {gate}" for gate, count in explanation.refused.items())
    refusals = f"; candidates refused: {refused}" if refused else ""
    lines += ["", f"loops: {explanation.loops_accepted} accepted{refusals}"]
    return "\n".join(lines)


def _mark(share: float) -> str:
    return "#" if share > 0.98 else "+" if share > 0.5 else "-" if share > 0 else "."


def _frame_thumbnails(run: Path) -> Callable[[int], bytes | None]:
    """Thumbnails of the few frames of a run that were kept, by frame index."""
    from slam.run.frame_thumbnails import thumbnail_path

    return lambda index: thumbnail_path(run, index).read_bytes() if thumbnail_path(run, index).is_file() else None


def _keyframe_thumbnails(run: Path) -> Callable[[int], bytes | None]:
    """Images of keyframes from the map of a run, by keyframe id."""
    from relocalizer.maps.map_format import jpeg_of
    from relocalizer.maps.map_reader import load_map
    from slam.run.run_folder import MAP

    if not (run / MAP).is_dir():
        return lambda keyframe_id: None
    saved = load_map(run / MAP)
    return lambda keyframe_id: jpeg_of(saved, saved.row_of[keyframe_id]) if keyframe_id in saved.row_of else None
