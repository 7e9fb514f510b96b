"""Items in several processes: a worker that dies costs one try of one item."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import dying_items
import pytest

from slam.benchmarks.ray_workers import on_ray
from slam.benchmarks.workers import in_processes

ITEMS = ["a", "die-1", "b", "die-9", "c", "die-2"]


def check(evaluated, folder: Path) -> None:
    """All items have a result; each was begun as often as its workers died and once more, but three times at most."""
    results = {one.item: one for one in evaluated}
    assert sorted(results) == sorted(ITEMS)
    tries = {item: len((folder / f"{item}.tries").read_text()) for item in ITEMS}
    assert tries == {"a": 1, "b": 1, "c": 1, "die-1": 2, "die-2": 3, "die-9": 3}
    assert {item for item, one in results.items() if one.result["status"] == "done"} == {*ITEMS} - {"die-9"}
    assert results["die-9"].result["faults"] == ["its worker died 3 times"]
    assert [len(results[item].deaths) for item in ("a", "die-1", "die-2", "die-9")] == [0, 1, 2, 3]


def test_a_worker_that_dies_is_replaced_and_its_item_begun_again(tmp_path):
    evaluated = {one.item: one for one in in_processes(2, dying_items.evaluate)(str(tmp_path), ["a", "die-1", "b"])}
    assert {item: one.result["status"] for item, one in evaluated.items()} == dict.fromkeys(("a", "die-1", "b"), "done")
    assert evaluated["die-1"].deaths == ("die-1: its worker died (signal SIGKILL)",)
    assert evaluated["a"].deaths == ()


@pytest.mark.slow
def test_an_item_whose_workers_keep_dying_is_given_up(tmp_path):
    check(in_processes(2, dying_items.evaluate)(str(tmp_path), ITEMS), tmp_path)


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them(tmp_path):
    """A worker that outlives a killed run would write to the folder that the next run uses."""
    code = (
        "import dying_items, os; from slam.benchmarks.workers import in_processes\n"
        f"list(in_processes(1, dying_items.evaluate)({str(tmp_path)!r}, ['sleep']))"
    )
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}"}
    run = subprocess.Popen([sys.executable, "-c", code], env=environment)
    started = tmp_path / "sleep.pid"
    _until(started.exists)
    worker = int(started.read_text())
    run.kill()
    run.wait()
    _until(lambda: not Path(f"/proc/{worker}").exists())


def _until(is_so, limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_worker_that_took_much_memory_is_replaced(tmp_path):
    evaluated = list(in_processes(1, dying_items.evaluate)(str(tmp_path), ["a", "b", "large", "c"]))
    processes = [one.result["values"]["process"] for one in evaluated]
    assert processes[0] == processes[1] == processes[2] != processes[3]
    assert not any(one.deaths for one in evaluated)


@pytest.mark.slow
def test_a_ray_worker_that_dies_costs_one_try(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}:{Path(__file__).parents[1]}")
    evaluated = list(on_ray("local", 2, dying_items.evaluate)(str(tmp_path), ITEMS))
    check(evaluated, tmp_path)
    assert "die-1: its worker died (WorkerCrashedError)" in [death for one in evaluated for death in one.deaths]


def test_without_ray_one_line_says_what_to_install(monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "ray":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(Exception, match=r"pip install 'reloc3r-slam\[ray\]'"):
        on_ray("local")
