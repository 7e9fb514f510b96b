"""A run of a suite: one file per item, resumed after a kill, with a report."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import miniatures
import pytest
from miniatures import ThumbnailOracle, room_views, write
from typer.main import get_command

from relocalizer.errors import OutputError
from slam.benchmarks import suites
from slam.benchmarks.benchmark_run import run_benchmark
from slam.benchmarks.results_folder import ResultsFolder, file_name
from slam.benchmarks.session import session_values
from slam.benchmarks.suite import BenchmarkRequest
from slam.cli import app
from slam.cli import benchmark as command
from slam.config.schema import SlamConfig
from slam.workers.processes import in_processes
from slam.workers.work import in_this_process

ROOT = Path(__file__).parents[1]
SESSION = {
    "command": "slam benchmark", "commit": "", "predictor": "geometric", "weights_sha256": "", "machine": "",
    "python": "", "versions": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A miniature of ScanNet1500 with five scenes of one pair each."""
    root = tmp_path_factory.mktemp("scannet")
    views = miniatures.scannet_text(root, room_views(6))
    path = root / "scannet_test_pairs_with_gt.txt"
    lines = path.read_text().splitlines()
    for k in range(5):
        for j in (k, k + 1):
            source, target = root / f"scene0707_00/frame-{15 * j:06d}.jpg", root / f"scene{707 + k:04d}_00"
            target.mkdir(exist_ok=True)
            if not (target / source.name).exists():
                shutil.copy(source, target / source.name)
        lines[k] = lines[k].replace("scene0707", f"scene{707 + k:04d}")
    write(path, "\n".join(lines) + "\n")
    return root, views


@pytest.fixture
def true_poses(monkeypatch, data):
    oracle = ThumbnailOracle(data[1])
    monkeypatch.setattr("slam.components.assembly.build_predictor", lambda config: oracle)


def request(data, out: Path, **options: object) -> BenchmarkRequest:
    config = {"predictor": {"kind": "geometric"}}
    return BenchmarkRequest(suite="scannet1500", data=str(data[0]), out=str(out), config=config, **options)  # type: ignore[arg-type]


def run(data, out: Path, workers=in_this_process, **options: object):
    return run_benchmark(request(data, out, **options), workers, SESSION, lambda *_: None)


def errors_in(out: Path) -> dict[str, dict[str, str]]:
    """The rows of results.csv by pair."""
    with (out / "results.csv").open() as file:
        return {row["pair"]: row for row in csv.DictReader(file)}


def test_the_suites_of_the_help_are_those_there_are():
    assert (command.PAIRS, command.LOCALIZATION, command.SLAM) == (suites.PAIRS, suites.LOCALIZATION, suites.SLAM)


@pytest.mark.usefixtures("true_poses")
def test_a_run_leaves_a_file_per_item_tables_and_a_report(data, tmp_path):
    outcome = run(data, tmp_path / "out")
    assert (outcome.items, outcome.done, outcome.resumed) == (5, 5, 0)
    assert (outcome.faults, outcome.retried, outcome.interrupted, outcome.internal) == ((), (), False, False)
    assert len(list((tmp_path / "out/items").iterdir())) == 5
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["figures"]["auc20_plain"] == pytest.approx(100.0)
    assert results["sessions"] == [SESSION]
    assert {table["title"] for table in results["tables"]} == {"Pose AUC, %", "Published: ScanNet1500, %"}
    assert len(errors_in(tmp_path / "out")) == 5
    assert "| plain | 100 | 100 | 100 |" in (tmp_path / "out/results.md").read_text()
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("<svg") == 2
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.usefixtures("true_poses")
def test_a_run_that_was_interrupted_continues_and_nothing_is_done_twice(data, tmp_path):
    seen: list[str] = []

    def two(work, text, items):
        for one in in_this_process(work, text, items):
            if len(seen) == 2:
                raise KeyboardInterrupt
            seen.append(one.item)
            yield one

    first = run(data, tmp_path / "out", two)
    assert first.interrupted
    assert (first.done, first.items) == (2, 5)
    asked: list[str] = []

    def counted(work, text, items):
        asked.extend(items)
        return in_this_process(work, text, items)

    second = run(data, tmp_path / "out", counted)
    assert (second.done, second.resumed, second.interrupted) == (5, 2, False)
    assert sorted([*seen, *asked]) == sorted(set(seen) | set(asked))
    assert len(json.loads((tmp_path / "out/benchmark.json").read_text())["sessions"]) == 2


@pytest.mark.usefixtures("true_poses")
def test_results_of_other_settings_are_not_mixed(data, tmp_path):
    run(data, tmp_path / "out", limit=1)
    with pytest.raises(OutputError, match=r"results of other settings \(limit\)"):
        run(data, tmp_path / "out", limit=2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").touch()
    with pytest.raises(OutputError, match="no benchmark's results"):
        run(data, tmp_path / "mine")
    assert (tmp_path / "mine/file").exists()


@pytest.mark.usefixtures("true_poses")
def test_an_item_with_a_fault_is_reported_and_tried_again_when_the_data_are_mended(data, tmp_path):
    root = tmp_path / "scannet"
    shutil.copytree(data[0], root)
    lost = root / "scene0709_00/frame-000030.jpg"
    lost.rename(root / "moved.jpg")
    outcome = run((root, data[1]), tmp_path / "out")
    assert (outcome.done, outcome.items) == (4, 5)
    [fault] = outcome.faults
    assert fault.startswith("scene0709_00: ")
    assert "frame-000030.jpg" in fault
    (root / "moved.jpg").rename(lost)
    again = run((root, data[1]), tmp_path / "out")
    assert (again.done, again.resumed, again.faults) == (5, 4, ())


def test_a_bug_in_one_item_leaves_the_others(data, tmp_path, monkeypatch):
    oracle = ThumbnailOracle(data[1])
    relate, calls = oracle.relate, []

    def broken(pairs):
        calls.append(pairs)
        if len(calls) == 2:
            raise ZeroDivisionError("oh")
        return relate(pairs)

    monkeypatch.setattr(oracle, "relate", broken)
    monkeypatch.setattr("slam.components.assembly.build_predictor", lambda config: oracle)
    outcome = run(data, tmp_path / "out")
    assert outcome.done == 4
    assert outcome.internal
    assert outcome.faults == ("scene0708_00: internal error: ZeroDivisionError: oh",)
    entry = json.loads((tmp_path / "out/items/scene0708_00.json").read_text())
    assert "Traceback" in entry["internal"]


@pytest.mark.usefixtures("true_poses")
def test_progress_counts_the_items_of_this_run(data, tmp_path):
    """The time left would be wrong if items from before counted."""
    counts: list[tuple[int, int]] = []
    run_benchmark(
        request(data, tmp_path / "out"), in_this_process, SESSION, lambda done, total, *_: counts.append((done, total))
    )
    assert counts == [(k, 5) for k in range(6)]
    (tmp_path / "out/items/scene0708_00.json").unlink()
    counts.clear()
    run_benchmark(
        request(data, tmp_path / "out"), in_this_process, SESSION, lambda done, total, *_: counts.append((done, total))
    )
    assert counts == [(0, 1), (1, 1)]


def test_numbers_that_json_has_not_are_none(tmp_path):
    folder = ResultsFolder(tmp_path)
    (tmp_path / "items").mkdir()
    folder.write_item("a", {"item": "a", "values": {"errors": [1.0, float("nan"), float("inf")]}})
    assert folder.results(["a"])["a"]["values"] == {"errors": [1.0, None, None]}


def test_a_file_that_a_full_disk_cut_off_counts_as_not_there(tmp_path):
    folder = ResultsFolder(tmp_path)
    (tmp_path / "items").mkdir()
    folder.write_item("a", {"item": "a", "status": "done"})
    (tmp_path / "items/b.json").write_text('{"item": "b", "sta')
    assert folder.done(["a", "b", "c"]) == {"a"}


def test_items_have_file_names_of_their_own():
    names = ["a/b", "a_b", "a b", "ä", "..", "x" * 300, "x" * 299 + "y", "desk#2"]
    files = [file_name(name) for name in names]
    assert len(set(files)) == len(names)
    assert all(name and len(name) < 120 and "/" not in name and not name.startswith(".") for name in files)
    assert file_name("scene0707_00") == "scene0707_00"


# --- the command ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("true_poses")
def test_the_command_prints_the_tables_and_fails_by_a_limit(data, tmp_path, slam_command):
    words = ("benchmark", "scannet1500", "--data", data[0], "--out", tmp_path / "out", "--predictor", "geometric")
    ended = slam_command(*words, "--fail-below", "auc20_plain=99", "--fail-above", "rotation_median_deg=1")
    assert ended.code == 0
    assert "Pose AUC, %" in ended.out
    assert "Reloc3r-512" in ended.out
    assert "5 of 5 items (0 from before)" in ended.err
    ended = slam_command(*words, "--json")
    assert json.loads(ended.out) == json.loads((tmp_path / "out" / "results.json").read_text())
    ended = slam_command(*words, "--fail-below", "auc20_plain=100.5")
    assert ended.code == 1
    assert "5 of 5 items (5 from before)" in ended.err
    assert ended.complaint == "slam: auc20_plain is 100, below 100.5"


@pytest.mark.usefixtures("true_poses")
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("none", "--data", "."), "no suite none; there are scannet1500"),
        (("tum", "--data", "nowhere"), "no such folder; slam data describe tum"),
        (("tum", "--data", "."), "no sequence of tum below it"),
        (("scannet1500", "--data", ".", "--fail-above", "auc"), "expected FIGURE=VALUE"),
    ],
)
def test_a_mistake_is_one_line(words, sentence, slam_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = slam_command("benchmark", *words, "--predictor", "geometric", "-q")
    assert ended.code == 2
    assert sentence in ended.complaint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("true_poses")
def test_a_fault_ends_with_code_2_after_all_items(data, tmp_path, slam_command):
    root = tmp_path / "scannet"
    shutil.copytree(data[0], root)
    (root / "scene0709_00/frame-000030.jpg").unlink()
    (root / "scannet_test_pairs_with_gt.txt").open("a").write("a b c\nd e\n")
    ended = slam_command(
        "benchmark", "scannet1500", "--data", root, "--out", tmp_path / "out", "--predictor", "geometric"
    )
    assert ended.code == 2
    assert "4 of 5 items" in ended.err
    assert "line 7: 2 columns" in ended.err  # each fault has a line, also of a list, which is no item's
    assert "3 faults; the first:" in ended.complaint
    page = (tmp_path / "out/report.html").read_text()
    assert "line 6: 3 columns" in page


def test_every_option_of_the_run_is_part_of_the_identity():
    """An option that changes results and is not compared would mix results."""
    [options] = [c for name, c in get_command(app).commands.items() if name == "benchmark"]  # type: ignore[attr-defined]
    names = {parameter.name for parameter in options.params}
    in_settings = {"config", "overrides", "predictor", "weights", "random_weights", "seed"}
    without_effect = {"out", "as_json", "jobs", "ray", "fail_above", "fail_below", "quiet", "help"}
    identity = BenchmarkRequest(suite="", data="", out="").identity
    compared = names - in_settings - without_effect
    assert compared == set(identity) - {"config"}


# --- more than one process ------------------------------------------------------------------------------


def command_line(root: Path, out: Path, *more: str) -> list[str]:
    words = ["benchmark", "scannet1500", "--data", str(root), "--out", str(out), "--predictor", "geometric", "-q"]
    return [sys.executable, "-m", "slam", *words, *more]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@pytest.mark.slow
def test_processes_and_ray_give_the_same_figures_as_one_process(data, tmp_path):
    run(data, tmp_path / "one")
    run(data, tmp_path / "two", in_processes(2))
    assert errors_in(tmp_path / "one") == errors_in(tmp_path / "two")
    pytest.importorskip("ray", reason="Ray is not installed")
    subprocess.run(
        command_line(data[0], tmp_path / "ray", "--ray", "local", "--jobs", "2"),
        check=True,
        env=environment(),
        capture_output=True,
    )
    assert errors_in(tmp_path / "one") == errors_in(tmp_path / "ray")


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_killed_command_continues_where_it_was(data, tmp_path, jobs):
    out = tmp_path / "out"
    words = command_line(data[0], out, "--jobs", jobs)
    process = subprocess.Popen(words, env=environment(), stdout=subprocess.DEVNULL)
    items = out / "items"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (not items.is_dir() or len(list(items.glob("*.json"))) < 2):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path.name: path.stat().st_mtime_ns for path in items.glob("*.json")}
    assert len(before) >= 2
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=True)
    assert f"({len(before)} from before)" in done.stderr
    after = {path.name: path.stat().st_mtime_ns for path in items.glob("*.json")}
    assert len(after) == 5
    assert {name: after[name] for name in before} == before


def test_a_report_says_what_made_it(tmp_path):
    """Of random weights too, whose figures mean nothing."""
    config = SlamConfig.model_validate({"predictor": {"kind": "reloc3r-224", "random_weights": True}})
    values = session_values(["benchmark", "tum", "--data", "a folder"], config)
    assert values["command"] == "slam benchmark tum --data 'a folder'"
    assert "random weights" in values["predictor"]
    assert values["weights_sha256"] == ""
    assert "cores" in values["machine"]
    assert "numpy" in values["versions"]
    (tmp_path / "weights.safetensors").write_bytes(b"abc")
    of_file = {"predictor": {"kind": "reloc3r-224", "weights": str(tmp_path / "weights.safetensors")}}
    expected = hashlib.sha256(b"abc").hexdigest()
    assert session_values([], SlamConfig.model_validate(of_file))["weights_sha256"] == expected
