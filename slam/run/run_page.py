"""report.html: a run on one page, from its report, its plot and its thumbnails."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from slam.plain_text import plain
from slam.run.files import write_atomically
from slam.run.frame_thumbnails import thumbnail_path
from slam.run.next_steps import next_steps
from slam.run.run_statistics import LostEpisode
from slam.run.summary import counted, summary_rows, verdict_words
from slam.run.trajectory_plot import PLOT
from slam.web_page import facts, figure, web_page

PAGE = "report.html"
MOST_LOSSES = 60  # losses of tracking that are shown
_COLORS = {"good": "#137333", "partial": "#b06000", "poor": "#a50e0e", "failed": "#a50e0e"}


def write_run_page(folder: Path, report: Mapping[str, Any]) -> None:
    """Write the page of a run into its folder. Raises OutputError when it cannot be written.

    Args:
        report: contents of report.json, before they are made plain values.
    """
    write_atomically(folder / PAGE, run_page(folder, report))


def run_page(folder: Path, report: Mapping[str, Any]) -> str:
    """The page; see `write_run_page`."""
    name = plain(str(report["source"]["name"]))
    grade = str(report["verdict"]["grade"]) if "verdict" in report else "failed"
    color = _COLORS[grade]
    reasons = verdict_words(report["verdict"]) if "verdict" in report else str(report["reason"])
    steps = next_steps(report, folder)
    body = [
        f'<h1>{escape(name)}: <span style="color: {color}">{grade}</span></h1>',
        f"<p>{escape(plain(reasons))}</p>" if reasons != grade else "",
        f'<p class="note">{escape(plain(str(report["source"]["description"])))}</p>',
        figure((folder / PLOT).read_bytes(), "", kind="png") if (folder / PLOT).is_file() else "",
        *_summary(report),
        *_losses(folder, report.get("lost_episodes", [])),
        *_errors(report.get("errors", [])),
        "<h2>Next steps</h2>",
        facts([(step.purpose, step.command) for step in steps], code=[step.purpose for step in steps]),
        "<h2>Origin</h2>",
        facts(_origin(report)),
    ]
    return web_page(f"{name}: {grade}", body)


def _summary(report: Mapping[str, Any]) -> list[str]:
    if "frames" not in report:
        return []
    return ["<h2>Figures</h2>", facts([(name, plain(words)) for name, words in summary_rows(report)[1:]])]


def _losses(folder: Path, episodes: list[LostEpisode]) -> list[str]:
    """Every loss of tracking, with the image at which it began."""
    if not episodes:
        return []
    shown = "".join(_loss(folder, episode) for episode in episodes[:MOST_LOSSES])
    more = f"<p>And {len(episodes) - MOST_LOSSES} more.</p>" if len(episodes) > MOST_LOSSES else ""
    return ["<h2>Losses of tracking</h2>", shown, more]


def _loss(folder: Path, episode: LostEpisode) -> str:
    end = "then relocalized" if episode.found else "not relocalized"
    words = f"From frame {episode.frame_index}, {counted(episode.frames, 'frame')}, {end}: {plain(episode.reason)}"
    path = thumbnail_path(folder, episode.frame_index)
    return figure(path.read_bytes(), words, width=240) if path.is_file() else f"<p>{escape(words)}</p>"


def _errors(errors: list[Mapping[str, str]]) -> list[str]:
    if not errors:
        return []
    items = "".join(f'<li class="fault">{escape(plain(error["error"]))}</li>' for error in errors)
    return [f"<h2>Errors</h2><ul>{items}</ul>"]


def _origin(report: Mapping[str, Any]) -> dict[str, str]:
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return {
        "predictor": f"{report['predictor']['kind']} ({report['predictor']['reason']})",
        "seed": str(report["seed"]),
        "machine": f"{report['platform']}, Python {report['python']}",
        "versions": versions,
    }
