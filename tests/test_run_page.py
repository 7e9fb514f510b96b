"""report.html of a run, its next steps, and the skeleton that all pages share."""

from __future__ import annotations

import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.main import get_command

from relocalizer.images import encode_jpeg
from slam.cli import app
from slam.evaluation.verdict import Grade
from slam.run.frame_thumbnails import thumbnail_path
from slam.run.next_steps import next_steps
from slam.run.run_page import MOST_LOSSES, PAGE, run_page, write_run_page
from slam.run.run_statistics import LostEpisode
from slam.run.summary import summary_rows
from slam.web_page import facts, figure, web_page

RUN = {
    "source": {"name": "a <room>", "description": "a video of 300 images"},
    "verdict": {"grade": Grade.PARTIAL, "reasons": ["64 of 100 frames have a pose"]},
    "status": "finished", "reason": "", "seed": 0, "platform": "Linux", "python": "3.12",
    "versions": {"numpy": "2.4"}, "errors": [],
    "predictor": {"kind": "geometric", "reason": "as asked", "random_weights": False},
    "frames": 100, "tracked": 64, "coverage": 0.64, "coverage_after_start": 0.7, "keyframes": 9,
    "loops": {"accepted": 1, "rejected": 2}, "other_segments": [], "path_length": 2.0,
    "units": {"name": "map units", "source": "", "meters_per_unit": None, "problem": ""},
    "lens": {"has_calibration": False, "corner_px": 0.0, "assumed": False, "change": None, "focal_sigma": None,
             "state": "given", "reason": "", "before_run": None,
             "focal_px": {"start": 465.0, "final": 465.0, "wanted": None}},
    "other_lenses": [], "skipped": [], "dropped": 0, "left_out": 0, "fps": 20.0, "wall_s": 5.0, "stage_ms": {},
    "peak_memory_mb": 300.0, "evaluation": None,
    "lost_episodes": [LostEpisode(30, 10**9, "3 of 12 landmarks <needed>", 6, found=True)],
}  # fmt: skip


class Page(HTMLParser):
    """Tags, addresses and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = tmp_path / "my run"
    (run / "map").mkdir(parents=True)
    (run / "trajectory.png").write_bytes(b"\x89PNG of the path")
    thumbnail_path(run, 30).parent.mkdir()
    thumbnail_path(run, 30).write_bytes(encode_jpeg(np.zeros((20, 30, 3), np.uint8), 70))
    return run


def test_a_run_is_on_one_page_that_needs_nothing_else(folder):
    write_run_page(folder, RUN)
    page = Page((folder / PAGE).read_text(encoding="utf-8"))
    assert {"script", "link", "iframe"} & set(page.tags) == set()
    assert [source.split(",")[0] for source in page.sources] == ["data:image/png;base64", "data:image/jpeg;base64"]
    for words in ("a <room>: partial", "64 of 100 frames have a pose", "64 (64.0 %", "1 accepted, 2 rejected",
                  "From frame 30, 6 frames, then relocalized: 3 of 12 landmarks <needed>", "numpy 2.4",
                  "a video of 300 images"):  # fmt: skip
        assert words in page.text


def test_what_a_run_says_is_text_and_no_markup(folder):
    assert "<needed>" not in run_page(folder, RUN)
    assert "<room>" not in run_page(folder, RUN)


def test_a_run_without_files_or_statistics_has_a_page_with_the_reason(tmp_path):
    opening = {key: RUN[key] for key in ("source", "seed", "platform", "python", "versions", "predictor")}
    report = {**opening, "status": "failed", "reason": "Boom: no frame", "errors": [{"error": "Boom: no frame"}]}
    page = Page(run_page(tmp_path, report))
    assert "a <room>: failed" in page.text
    assert "Boom: no frame" in page.text
    assert page.sources == []


def test_many_losses_do_not_make_an_endless_page(folder):
    report = {**RUN, "lost_episodes": RUN["lost_episodes"] * (MOST_LOSSES + 7)}
    assert "And 7 more." in run_page(folder, report)


def commands(grade: Grade, folder: Path) -> list[list[str]]:
    report = {**RUN, "verdict": {"grade": grade, "reasons": []}}
    return [shlex.split(step.command) for step in next_steps(report, folder)]


def verbs(grade: Grade, folder: Path) -> list[str]:
    return [words[1] for words in commands(grade, folder)]


def test_the_next_steps_fit_the_run(folder):
    assert verbs(Grade.GOOD, folder) == ["view", "explain", "relocalize", "run", "map"]
    assert verbs(Grade.PARTIAL, folder) == ["explain", "view", "relocalize", "run", "map"]
    assert verbs(Grade.POOR, folder) == ["explain", "view"]
    (folder / "map").rmdir()
    assert verbs(Grade.GOOD, folder) == ["view", "explain"]


def test_the_next_steps_are_commands_with_their_paths_quoted(folder):
    for words in commands(Grade.GOOD, folder):
        assert any(str(folder) in word for word in words)
        found: Any = get_command(app)
        _, *arguments = words
        while hasattr(found, "commands"):
            verb, *arguments = arguments
            found = found.commands[verb]
        found.make_context("slam", arguments)


def test_a_recording_is_opened_instead_of_the_replay(folder):
    for grade in (Grade.GOOD, Grade.POOR):
        report = {**RUN, "verdict": {"grade": grade, "reasons": []}}
        shown = [step.command for step in next_steps(report, folder, viewer="rerun a.rrd")]
        usual = [step.command for step in next_steps(report, folder)]
        view = f"slam view '{folder}'"
        assert shown == ["rerun a.rrd" if command == view else command for command in usual]


def test_the_steps_after_a_second_pass_name_the_folder_it_ends_up_in(folder):
    (second := folder / "second_pass").mkdir()
    assert commands(Grade.GOOD, second)[0] == ["slam", "view", str(folder)]


def test_the_skeleton_escapes_what_is_text():
    page = web_page("<title>", [facts({"<name>": "<value>"}), figure(b"x", "<caption>"), ""])
    for word in ("title", "name", "value", "caption"):
        assert f"&lt;{word}&gt;" in page
    assert '<meta name="viewport"' in page


def test_frames_of_another_focal_length_are_counted_as_left_out() -> None:
    assert "left out" not in dict(summary_rows(RUN))
    rows = dict(summary_rows({**RUN, "left_out": 207}))
    assert rows["left out"] == "0 unreadable, 0 dropped, 207 of another focal length"
