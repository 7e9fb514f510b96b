"""The report as a page, and its plots; opened in Chromium where that is installed."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from slam.benchmarks.html_report import cell_text, html_report
from slam.benchmarks.plots import BarPlot, LinePlot, Series, cumulative
from slam.benchmarks.result_files import csv_text
from slam.benchmarks.suite import Summary, Table

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
SESSION = {
    "command": "slam benchmark tum --data <tum>", "commit": "abc", "predictor": "geometric", "weights_sha256": "",
    "machine": "a machine", "python": "3.12", "versions": {"numpy": "2.4"},
}  # fmt: skip
SVG = "{http://www.w3.org/2000/svg}"


def spiral(turns: float = 3.0) -> Series:
    t = np.linspace(0, 2 * np.pi * turns, 5000)
    return Series("estimate", t * np.cos(t), t * np.sin(t), 0)


PLOTS = (
    LinePlot("from above", "x", "y", [Series("ground truth", spiral().x, spiral().y, None), spiral()], is_map=True),
    LinePlot(
        "shares", "deg", "share", [cumulative([1, 2, 30], "plain", up_to=10), cumulative([], "none", up_to=10, color=1)]
    ),
    BarPlot("bars <of> scenes", "m", [f"scene{k:04d}" for k in range(12)], [*(0.1 * k for k in range(11)), None]),
)


def page() -> str:
    rows = [["desk <1>", 0.01234567, None, 3], ["a scene of a long name", 12345.678, 1e-9, 4]]
    summary = Summary(
        title="A benchmark & its report",
        protocol={"alignment": "Sim(3)"},
        figures={"ate": 0.01},
        tables=[Table("Errors", ["sequence", "ATE", "KITTI", "n"], rows, "A note.")],
        plots=PLOTS,
    )
    values = {
        "done": 1,
        "items": 2,
        "seconds": 4000.0,
        "sessions": [SESSION],
        "faults": ["xyz: no <truth>"],
        "retried": ["a"],
    }
    return html_report(summary, values)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.all: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.all.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.all.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page_is_whole_and_needs_nothing_else():
    tags = Tags()
    tags.feed(page())
    assert tags.open == []
    assert tags.all.count("svg") == len(PLOTS)
    assert {"script", "img", "link", "iframe"} & set(tags.all) == set()
    assert re.findall(r'(?:src|href)="', page()) == []


def test_what_the_data_say_is_text_and_no_markup():
    assert "no &lt;truth&gt;" in page()
    assert "desk &lt;1&gt;" in page()
    assert "bars &lt;of&gt; scenes" in page()
    assert "<truth>" not in page()


def test_cells_have_four_digits():
    assert [cell_text(cell) for cell in (0.0123456, 12345.678, None, 3, "a")] == ["0.01235", "12346", "–", "3", "a"]


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.title)
def test_a_plot_is_valid_and_inside_its_frame(plot):
    root = ElementTree.fromstring(plot.svg())
    width, height = (float(value) for value in root.attrib["viewBox"].split()[2:])
    for line in root.iter(f"{SVG}polyline"):
        points = np.array([[float(v) for v in pair.split(",")] for pair in line.attrib["points"].split()])
        assert len(points) <= 600
        assert (points >= 0).all()
        assert (points <= [width, height]).all()
    assert plot.title in {text.text for text in root.iter(f"{SVG}text")}


def test_a_map_has_one_scale_on_both_axes():
    square = Series("", [0, 4, 4, 0, 0], [0, 0, 4, 4, 0])
    root = ElementTree.fromstring(LinePlot("", "x", "y", [square], is_map=True).svg())
    [line] = root.iter(f"{SVG}polyline")
    points = np.array([[float(v) for v in pair.split(",")] for pair in line.attrib["points"].split()])
    assert np.ptp(points[:, 0]) == pytest.approx(np.ptp(points[:, 1]), abs=0.2)


def test_a_line_is_interrupted_where_values_are_missing():
    root = ElementTree.fromstring(LinePlot("", "x", "y", [Series("", [0, 1, 2, 3, 4], [0, 1, np.nan, 3, 4])]).svg())
    assert len(list(root.iter(f"{SVG}polyline"))) == 2


@pytest.mark.parametrize("values", [[], [0.0], [1e-12] * 3, [-5.0, 5.0], [1e9, 1e9 + 1], [np.nan], [np.inf, 1.0]])
def test_any_values_can_be_drawn(values):
    for is_map in (False, True):
        ElementTree.fromstring(LinePlot("t", "x", "y", [Series("s", values, values)], is_map=is_map).svg())
    ElementTree.fromstring(BarPlot("t", "y", [str(k) for k in range(len(values))], values).svg())


def test_rows_become_a_table_with_all_columns():
    assert csv_text([{"a": 1, "b": None}, {"a": "x, y", "c": 0.5}]) == 'a,b,c\n1,,\n"x, y",,0.5\n'


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")
def test_chromium_shows_the_page_at_1280_pixels(tmp_path: Path) -> None:
    """All plots are drawn, nothing is wider than the window, and no text is cut off at its right edge."""
    (tmp_path / "report.html").write_text(page(), encoding="utf-8")
    shot = tmp_path / "report.png"
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,1600"]
    address = (tmp_path / "report.html").as_uri()
    subprocess.run(
        [CHROMIUM, *words, f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", address],
        check=True,
        capture_output=True,
        timeout=120,
    )
    image = cv2.imread(str(shot))
    assert image is not None
    assert image.shape[:2] == (1600, 1280)
    dark = image.min(axis=2) < 200
    assert dark[:, :12].sum() == dark[:, -12:].sum() == 0
    blue = np.abs(image.astype(int) - [0xA8, 0x5F, 0x1F]).max(axis=2) < 40  # the first color of the plots
    columns = np.flatnonzero(blue.any(axis=0))
    assert columns.min() < 640 < columns.max()  # two plots side by side
    assert blue.sum() > 5000
    red = (image[..., 2] > 120) & (image[..., :2].max(axis=2) < 60)
    assert red.sum() > 50  # the fault


def test_tables_of_committed_results_are_put_into_a_page(tmp_path, root, monkeypatch):
    values = {
        "tables": [
            {"title": "Errors", "columns": ["sequence", "ATE"], "rows": [["a|b", 0.123456], ["c", None]], "note": ""}
        ],
        "sessions": [SESSION],
    }
    (tmp_path / "tum.json").write_text(json.dumps(values))
    page = tmp_path / "results.md"
    page.write_text("Before.\n\n<!-- results: tum.json -->\nold\n<!-- end of results -->\n\nAfter.\n")
    script = runpy.run_path(str(root / "docs" / "results_tables.py"))

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["results_tables.py", str(page), *words])
        return int(script["main"]())

    assert run("--check") == 1
    assert run() == 0
    text = page.read_text()
    assert "| sequence | ATE |\n|---|--:|\n| a\\|b | 0.1235 |\n| c | – |\n" in text
    assert "`slam benchmark tum --data <tum>`, commit abc" in text
    assert text.startswith("Before.")
    assert text.endswith("After.\n")
    assert "old" not in text
    assert run("--check") == 0
