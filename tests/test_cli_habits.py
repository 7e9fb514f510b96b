"""Habits of command lines: help in panels, NO_COLOR, shell completion, presets, JSON, -o."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from map_samples import small_map
from typer.main import get_command

from relocalizer.errors import ConfigError
from relocalizer.maps.map_writer import save_map
from slam.cli import app
from slam.cli.help_panels import PANELS
from slam.cli.terminal import with_colored_verdict
from slam.config.loading import PRESETS, dump_config, load_config, preset_file


def commands_of(command: Any, words: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if not hasattr(command, "commands"):
        return [(words, command)]
    return [found for name, below in command.commands.items() for found in commands_of(below, (*words, name))]


COMMANDS = commands_of(get_command(app))


def options_of(command: Any) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts if option.startswith("--")}


def test_run_shows_its_options_in_panels_in_the_order_of_their_use(slam_command):
    headings = re.findall(r"^([A-Z][a-z]+):$", slam_command("run", "--help").out, re.M)
    panels = ["Arguments", "Input", "Camera", "Map", "Scale", "Output", "Viewer", "Advanced", "Options"]
    assert [heading for heading in headings if heading != "Examples"] == panels


@pytest.mark.parametrize(("words", "command"), COMMANDS)
def test_every_option_is_listed_once(slam_command, words, command):
    headings = "|".join(("Arguments", *PANELS))
    _, shown = re.split(rf"^(?:{headings}):$", slam_command(*words, "--help").out, maxsplit=1, flags=re.M)
    for option in options_of(command):
        assert len(re.findall(rf"^  (?:-\w, )?{option}\b(?!-)", shown, re.M)) == 1, option


def test_every_option_of_a_panel_is_an_option_of_some_command():
    there = set().union(*(options_of(command) for _, command in COMMANDS))
    assert {option for options in PANELS.values() for option in options} <= there


def test_an_option_of_one_letter_means_the_same_everywhere():
    letters: dict[str, set[str]] = {}
    for _, command in COMMANDS:
        for parameter in command.params:
            for option in parameter.opts:
                if re.fullmatch(r"-\w", option):
                    letters.setdefault(option, set()).update(parameter.opts[1:])
    assert letters == {"-o": {"--out", "--html", "--record"}, "-c": {"--config"}, "-q": {"--quiet"}}


def on_a_terminal(**environment: str) -> str:
    """`slam plot --help` as a terminal gets it."""
    leader, follower = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    words = [sys.executable, "-m", "slam", "plot", "--help"]
    subprocess.run(words, stdout=follower, check=True, env=kept | {"TERM": "xterm"} | environment)
    os.close(follower)
    shown = b""
    try:
        while part := os.read(leader, 65536):
            shown += part
    except OSError:  # the end, on Linux
        pass
    os.close(leader)
    return shown.decode()


def test_headings_are_bold_on_a_terminal_and_plain_with_no_color(slam_command):
    assert "\x1b[1mOutput" in on_a_terminal()
    assert "\x1b" not in on_a_terminal(NO_COLOR="1")
    assert "\x1b" not in slam_command("plot", "--help").out


SUMMARY = "runs/a\nverdict  partial: good light\nframes   good"


def test_the_verdict_is_in_color_on_a_terminal_alone(monkeypatch):
    assert with_colored_verdict(SUMMARY) == SUMMARY
    monkeypatch.setattr("slam.cli.terminal.has_colors", lambda: True)
    assert with_colored_verdict(SUMMARY) == SUMMARY.replace("partial", "\x1b[33m\x1b[1mpartial\x1b[0m")


@pytest.mark.parametrize(
    ("words", "at", "expected"), [("slam re", 1, ["relocalize"]), ("slam run --pres", 2, ["--preset"])]
)
def test_the_shell_completes_verbs_and_options(words, at, expected):
    asked = {"_SLAM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(at)}
    done = subprocess.run([sys.executable, "-c", "from slam.cli import main; main()"],
                          capture_output=True, text=True, env=os.environ | asked)  # fmt: skip
    assert done.stdout.split() == expected


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_file_of_settings_that_files_and_set_override(slam_command, name, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("tracks:\n  max_tracks: 123\n")
    preset = load_config([preset_file(name)])
    assert preset != load_config()
    assert slam_command("config", "--preset", name).out == dump_config(preset)
    shown = slam_command("config", "--preset", name, "-c", own, "--set", "features.max_features=777", "--json").out
    values = json.loads(shown)
    assert values["tracks"]["max_tracks"] == 123
    assert values["features"]["max_features"] == 777
    assert values["bundle_adjustment"]["window"] == preset.bundle_adjustment.window


def test_an_unknown_preset_is_refused_with_those_there_are(slam_command):
    ended = slam_command("run", "film.mp4", "--preset", "best")
    assert ended.code == 2
    assert "'fast', 'accurate'" in ended.complaint
    with pytest.raises(ConfigError, match="there are fast, accurate"):
        preset_file("best")


def test_an_export_and_a_conversion_say_in_json_what_they_wrote(slam_command, tmp_path):
    save_map(tmp_path / "map", small_map())
    ended = slam_command("map", "export", tmp_path / "map", "--format", "tum", "-o", tmp_path / "path.txt", "--json")
    written = json.loads(ended.out)
    assert written == {"format": "tum", "files": [str(tmp_path / "path.txt")]}
    ended = slam_command("convert", tmp_path / "path.txt", tmp_path / "path.kitti", "--json")
    converted = json.loads(ended.out)
    assert Path(converted["file"]).is_file()
    assert converted["format"] == "kitti"
    assert converted["poses"] > 0
