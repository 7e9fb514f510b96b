"""Items in several processes: a worker that dies costs one try of one item."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import types
from pathlib import Path

import dying_items
import pytest

from relocalizer.errors import ConfigError
from slam.workers.processes import in_processes
from slam.workers.ray_cluster import on_ray

ITEMS = ["a", "die-1", "b", "die-9", "c", "die-2"]


def check(finished, folder: Path) -> None:
    """All items came back; each was begun as often as its workers died and once more, but three times at most."""
    results = {one.item: one for one in finished}
    assert sorted(results) == sorted(ITEMS)
    tries = {item: len((folder / f"{item}.tries").read_text()) for item in ITEMS}
    assert tries == {"a": 1, "b": 1, "c": 1, "die-1": 2, "die-2": 3, "die-9": 3}
    assert {item for item, one in results.items() if one.result is not None} == {*ITEMS} - {"die-9"}
    assert results["die-9"].fault == "its worker died 3 times"
    assert [len(results[item].deaths) for item in ("a", "die-1", "die-2", "die-9")] == [0, 1, 2, 3]


def test_a_worker_that_dies_is_replaced_and_its_item_begun_again(tmp_path):
    evaluated = {one.item: one for one in in_processes(2)(dying_items.work, str(tmp_path), ["a", "die-1", "b"])}
    assert all(one.result is not None for one in evaluated.values())
    assert evaluated["die-1"].deaths == ("die-1: its worker died (signal SIGKILL)",)
    assert evaluated["a"].deaths == ()


@pytest.mark.slow
def test_an_item_whose_workers_keep_dying_is_given_up(tmp_path):
    check(in_processes(2)(dying_items.work, str(tmp_path), ITEMS), tmp_path)


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them(tmp_path):
    """A worker that outlives a killed run would write to the folder that the next run uses."""
    code = (
        "import dying_items, os; from slam.workers.processes import in_processes\n"
        f"list(in_processes(1)(dying_items.work, {str(tmp_path)!r}, ['sleep']))"
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


@pytest.mark.slow
def test_a_worker_that_took_much_memory_is_replaced(tmp_path):
    processes = [one.result for one in in_processes(1, memory_mb=1.0)(dying_items.work, str(tmp_path), ["a", "b"])]
    assert processes[0] != processes[1]
    processes = [one.result for one in in_processes(1)(dying_items.work, str(tmp_path), ["a", "b"])]
    assert processes[0] == processes[1]


@pytest.mark.slow
def test_a_ray_worker_that_dies_costs_one_try(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}:{Path(__file__).parents[1]}")
    evaluated = list(on_ray("local", 2)(dying_items.work, str(tmp_path), ITEMS))
    check(evaluated, tmp_path)
    assert "die-1: its worker died (WorkerCrashedError)" in [death for one in evaluated for death in one.deaths]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999999"])
def test_an_address_where_nobody_answers_is_one_line_at_once(monkeypatch, address):
    monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))  # it is not even asked
    with pytest.raises(ConfigError, match=rf"--ray {address}: no cluster there"):
        list(on_ray(address)(dying_items.work, "", ["a"]))


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
