"""The tables of README.md and docs/results.md agree with the committed results."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = sorted((ROOT / "docs" / "results").glob("*.json"))


@pytest.fixture(scope="module")
def tables() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "results_tables.py"))


def values(sequence: str, error: float | None, coverage: float) -> dict[str, Any]:
    """Results as `slam benchmark folder` writes them, of one sequence."""
    session = {"command": "slam benchmark folder", "commit": "abc", "machine": "a machine"}
    return {
        "tables": [
            {
                "title": "Absolute trajectory error",
                "columns": ["sequence", "Sim(3), all frames"],
                "rows": [[sequence, error], ["mean", error]],
                "note": "",
            },
            {
                "title": "Tracking",
                "columns": ["sequence", "frames", "coverage, %"],
                "rows": [[sequence, 420, coverage]],
                "note": "",
            },
        ],
        "sessions": [session],
    }


def test_the_pages_agree_with_the_committed_results(tables: dict[str, Any]) -> None:
    """`make results-tables` mends it."""
    for page in tables["PAGES"]:
        text = page.read_text(encoding="utf-8")
        assert text.count("<!-- results: ") == text.count("<!-- end of results -->") > 0
        assert tables["page_with_tables"](page) == text, page.name


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_committed_results_are_complete_and_name_no_machine_path(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"[\s\"'=](/(?!/)\w+/|[A-Z]:\\)", text)
    found = json.loads(text)
    assert found["tables"]
    assert found.get("done") == found.get("items")
    assert found.get("faults", []) == []


def test_every_committed_result_is_shown(tables: dict[str, Any]) -> None:
    shown = "".join(page.read_text(encoding="utf-8") for page in tables["PAGES"])
    assert [path.name for path in RESULTS if f"results/{path.name}" not in shown] == []


def test_an_overview_has_a_row_per_sequence_and_a_column_per_other_system(
    tables: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "ours.json").write_text(json.dumps(values("room_loop", 0.00312, 100.0)))
    (tmp_path / "more.json").write_text(json.dumps(values("my|desk", None, 0.0)))
    (tmp_path / "peer.json").write_text(json.dumps({"system": "Peer", **values("room_loop", 0.25, 95.51)}))
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- results: summary of ours.json more.json peer.json -->\nold\n<!-- end of results -->\nb\n")
    lines = tables["page_with_tables"](page).replace(tables["NO_BREAK"], " ").splitlines()
    assert lines[0] == "a"
    assert lines[-1] == "b"
    assert lines[3:7] == [
        "| sequence | frames | coverage | ATE | Peer |",
        "|---|--:|--:|--:|---|",
        "| bundled room | 420 | 100 % | 3.1 mm | 0.25 m at 95.5 % |",
        "| my\\|desk | 420 | 0 % | – |  |",
    ]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.0031, "m", "3.1 mm"), (0.0994, "m", "99 mm"), (0.12, "m", "0.12 m"), (0.007, "", "0.0070"), (None, "m", "–")],
)
def test_lengths_have_two_digits(tables: dict[str, Any], value: float | None, unit: str, text: str) -> None:
    assert tables["length"](value, unit).replace(tables["NO_BREAK"], " ") == text


def trajectory(factor: float, poses: int = 20) -> str:
    """A path in TUM format whose steps grow by a factor, so that no similarity aligns two of them."""
    return "".join(f"{k} {factor**k} {k * k} 0 0 0 0 1\n" for k in range(poses))


def test_of_the_runs_of_another_system_the_median_is_shown(tmp_path: Path) -> None:
    script = runpy.run_path(str(ROOT / "docs" / "peer_results.py"))
    (tmp_path / "truth" / "desk").mkdir(parents=True)
    (tmp_path / "truth" / "desk" / "groundtruth.txt").write_text(trajectory(1.0))
    runs = {"desk-1": trajectory(1.3), "desk-2": trajectory(1.1, 10), "desk-3": trajectory(1.2), "hall-1": ""}
    for name, text in runs.items():
        (tmp_path / f"{name}.txt").write_text(f"# timestamp tx ty tz qx qy qz qw\n{text}")
        (tmp_path / f"{name}.json").write_text(json.dumps({"frames": 20, "cpu_s_total": 3.0}))
    (tmp_path / "desk-fast1.json").write_text(json.dumps({"frames": 20, "cpu_s_total": 0.5}))
    table = script["peer_results"]("Peer", tmp_path, [tmp_path / "truth"])["tables"][0]
    desk, hall = (dict(zip(table["columns"], row, strict=True)) for row in table["rows"])
    assert (desk["sequence"], desk["frames"], desk["coverage, %"], desk["CPU ms/frame"]) == ("desk", 20, 100.0, 25.0)
    least, most = (float(word) for word in desk["runs"].removeprefix("3, ").split(" to "))
    assert 0 < least < desk["Sim(3), all frames"] < most
    assert (hall["coverage, %"], hall["Sim(3), all frames"]) == (0.0, None)


def test_what_is_measured_without_a_calibration_has_everything_else(tmp_path: Path) -> None:
    script = runpy.run_path(str(ROOT / "docs" / "measure_results.py"))
    for _ in range(2):  # again after a kill
        folder = script["without_calibration"]([ROOT / "sequences" / "room_loop"], tmp_path) / "room_loop"
    assert {path.name for path in folder.iterdir()} == {"video.mp4", "groundtruth.txt"}
    assert all(path.exists() for path in folder.iterdir())
