"""What each part is worth: which runs are made, and what is left of a path without its lengths."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from relocalizer.errors import ConfigError
from slam.bench.ablation import LIVE, ONE_LENGTH, PARTS, measure_parts, with_equal_steps
from slam.config.loading import load_config, walk_settings, with_overrides
from slam.config.schema import SlamConfig
from slam.evaluation.trajectory import Trajectory
from slam.evaluation.trajectory_files import write_tum
from slam.input.open_source import open_source
from slam.system import Slam


def along_x(places: Sequence[float]) -> Trajectory:
    poses = np.tile(np.eye(4), (len(places), 1, 1))
    poses[:, 0, 3] = places
    return Trajectory(np.arange(len(places)) * 10**8, poses)


def part_of(path: Trajectory, rows: Sequence[int]) -> Trajectory:
    return Trajectory(path.timestamps_ns[rows], path.world_from_cam[rows])


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, straight_slam: Callable[..., None]) -> list[SlamConfig]:
    """The configuration of every system that is built, in order; the systems are stand-ins."""
    straight_slam(waits=0)
    stand_in, configs = Slam.create, []

    def build(config: SlamConfig, **options: Any) -> Any:
        configs.append(config)
        return stand_in(config, **options)

    monkeypatch.setattr("slam.system.Slam.create", build)
    return configs


def changed(config: SlamConfig) -> dict[str, Any]:
    default = {key: value for key, _, value in walk_settings(SlamConfig())}
    return {key: value for key, _, value in walk_settings(config) if value != default[key]}


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_every_part_is_left_out_by_settings_that_differ_from_the_defaults(part):
    assert len(changed(with_overrides(SlamConfig(), part.settings))) == len(part.settings)


def test_overrides_leave_the_other_settings_of_a_configuration_alone():
    config = load_config([], ["seed=3", "loop_closing.neighbors=7", "loop_closing.candidates=2"])
    assert changed(with_overrides(config, ["loop_closing.candidates=0"])) == {
        "seed": 3,
        "loop_closing.neighbors": 7,
        "loop_closing.candidates": 0,
    }


def test_an_override_that_does_not_fit_is_reported():
    with pytest.raises(ConfigError, match=r"--set seed=-1: seed: expected an integer, at least 0, got -1"):
        with_overrides(SlamConfig(), ["seed=-1"])


def test_the_whole_runs_first_and_then_once_without_each_part(images, built):
    config = load_config([], ["seed=5"])
    rows = measure_parts(config, lambda: open_source(str(images), config=config.input))
    assert [row.name for row in rows] == ["the whole", LIVE, ONE_LENGTH, *(part.name for part in PARTS)]
    assert changed(built[0]) == {"seed": 5}
    without_loops = built[1 + [part.name for part in PARTS].index("without loops")]
    assert changed(without_loops) == {"seed": 5, "loop_closing.candidates": 0}
    assert [row.frames for row in rows] == [12] * len(rows)


def test_figures_that_cost_no_run_have_no_times(images, built):
    rows = measure_parts(SlamConfig(), lambda: open_source(str(images), config=SlamConfig().input), parts=())
    assert [(row.name, row.cpu_s is None) for row in rows] == [("the whole", False), (LIVE, True), (ONE_LENGTH, True)]


def test_errors_are_measured_where_there_is_ground_truth_only(images, built):
    def opened():
        return open_source(str(images), config=SlamConfig().input)

    without = measure_parts(SlamConfig(), opened, parts=())
    assert {row.ate_sim3 for row in without} == {None}
    times = [frame.timestamp_ns for frame in opened()]
    truth = along_x(np.arange(12) * 0.3).world_from_cam.copy()
    truth[:, 1, 3] = 0.3 * np.sin(np.arange(12))
    write_tum(images / "groundtruth.txt", Trajectory(np.array(times), truth))
    whole = measure_parts(SlamConfig(), opened, parts=())[0]
    assert whole.ate_sim3 is not None
    assert 0.1 < whole.ate_sim3 < 0.3  # the stand-in walks straight on: 0.3 x sin is what it misses


def test_without_lengths_every_step_between_keyframes_is_as_long_as_the_median_one():
    path = along_x([0, 1, 2, 4, 6, 7, 8, 8.5])
    result = SimpleNamespace(trajectory=path, keyframe_trajectory=part_of(path, [0, 2, 4, 6]))
    # Steps of 2, 4 and 2 become 2 each; the frames between are drawn along, the last one continues as its step does.
    assert with_equal_steps(result).positions[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 6.5]


def test_without_lengths_the_frames_before_the_first_keyframe_go_with_its_step():
    path = along_x([-1, 0, 4, 5, 6])
    result = SimpleNamespace(trajectory=path, keyframe_trajectory=part_of(path, [1, 2, 4]))
    assert with_equal_steps(result).positions[:, 0].tolist() == [-0.75, 0, 3, 4.5, 6]


def test_without_lengths_rotations_stay():
    path = along_x([0, 1, 3])
    turned = path.world_from_cam.copy()
    turned[1, :3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    path = Trajectory(path.timestamps_ns, turned)
    result = SimpleNamespace(trajectory=path, keyframe_trajectory=path)
    assert np.array_equal(with_equal_steps(result).world_from_cam[:, :3, :3], turned[:, :3, :3])


def test_a_path_with_one_keyframe_has_no_steps():
    path = along_x([0, 1])
    assert with_equal_steps(SimpleNamespace(trajectory=path, keyframe_trajectory=part_of(path, [0]))) is path


@pytest.mark.usefixtures("built")
def test_the_command_prints_a_row_for_each_part_and_names_its_settings(images, slam_command):
    ended = slam_command("bench", images, "--ablation")
    assert ended.code == 0, ended.err
    rows = ended.out.splitlines()
    assert rows[0].split()[:2] == ["ATE", "Sim(3)"]
    assert next(row for row in rows if row.startswith("without loops")).split()[2:6] == ["-", "-", "100.0", "%"]
    count = 1 + len(PARTS)
    assert f"run {count} of {count}: {PARTS[-1].name} (--set {PARTS[-1].settings[0]}" in ended.err


@pytest.mark.usefixtures("built")
def test_the_table_as_json_has_the_settings_of_each_row(images, slam_command):
    rows = json.loads(slam_command("bench", images, "--ablation", "--json", "--max-frames", 6).out)
    by_name = {row["name"]: row for row in rows}
    assert by_name["without loops"]["settings"] == ["loop_closing.candidates=0"]
    assert by_name["the whole"]["frames"] == 6


def test_an_ablation_of_a_system_that_makes_no_map_ends_with_1(images, slam_command, straight_slam):
    straight_slam(waits=100)
    ended = slam_command("bench", images, "--ablation")
    assert ended.code == 1
    assert ended.complaint.startswith("slam: the whole system's own result is not usable: no map was initialized in 12")


def test_an_ablation_needs_a_source(slam_command):
    ended = slam_command("bench", "--ablation")
    assert (ended.code, ended.complaint) == (2, "slam: bench: --ablation runs SLAM over a source; give a SOURCE")
