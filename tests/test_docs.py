"""The documentation: its commands run, its links lead somewhere, its navigation has every page.

A block of commands is run unless a comment before it says why not:

    <!-- only parsed: REASON -->                     nothing of the block is run
    <!-- only parsed with WORD, WORD: REASON -->     lines in which one of these regular expressions matches are not run

Such lines are still parsed by the command that they name. Commands run in a folder that has the files they name: a
short clip of the bundled sequence, a run of it, a map, a photograph.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import pytest
import yaml
from typer.main import get_command

from slam.cli import app, main

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "configs" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
BLOCK = re.compile(r"(?:^ *<!-- only parsed(?: with (?P<words>[^:]*))?: (?P<why>[^>]*) -->\n+)?"
                   r"^ *```(?P<language>\w*)\n(?P<lines>.*?)^ *```", re.M | re.S)  # fmt: skip
SHELL = ("", "sh", "bash")  # languages of blocks of commands
SLOW = {"run", "bench", "benchmark", "calibrate", "train", "doctor"}
CLIP_FRAMES = 40
OUTPUTS = ("-o", "--out", "--record", "--html", "--plot", "--preview", "--video")


@dataclass(frozen=True)
class Command:
    """A command of a page; `why_not` is the reason why it is only parsed, empty when it is run."""

    page: str
    text: str
    why_not: str

    @property
    def words(self) -> list[str]:
        """The words of the command, without a file or another command that its output goes to."""
        return list(itertools.takewhile(lambda word: word not in (">", ">>", "|"), shlex.split(self.text)))


def commands_of(page: Path) -> Iterator[Command]:
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        if block["language"] not in SHELL:
            continue
        words = [word.strip() for word in (block["words"] or "").split(",") if word.strip()]
        for line in block["lines"].splitlines():
            text = re.split(r"\s#", line.strip())[0].strip()
            if text.startswith("slam "):
                marked = block["why"] and (not words or any(re.search(word, text) for word in words))
                yield Command(page.name, text, block["why"] if marked else "")


def all_commands() -> list[Command]:
    """Each command once, and as one that is run if it is run on any page."""
    found: dict[str, Command] = {}
    for command in itertools.chain.from_iterable(map(commands_of, PAGES)):
        if command.text not in found or not command.why_not:
            found[command.text] = command
    return list(found.values())


RUN = [command for command in all_commands() if not command.why_not]


def test_many_commands_are_run():
    assert len(RUN) > len(all_commands()) / 3
    assert {"slam explain runs/desk", "slam plot runs/desk -o desk.png"} <= {command.text for command in RUN}


def test_every_line_that_begins_with_slam_is_a_command():
    """Also behind a block of another language, whose end is no beginning."""
    for page in PAGES:
        fenced = "".join(re.findall(r"^ *```.*?^ *```", page.read_text(encoding="utf-8"), re.M | re.S))
        lines = {re.split(r"\s#", line)[0].strip() for line in re.findall(r"^ *(slam [a-z].*)$", fenced, re.M)}
        assert {command.text for command in commands_of(page)} == lines, page.name


@pytest.mark.parametrize("command", all_commands(), ids=lambda command: command.text)
def test_a_command_parses(command: Command) -> None:
    found: Any = get_command(app)
    _, *arguments = command.words
    while hasattr(found, "commands"):
        verb, *arguments = arguments
        assert verb in found.commands, f"{command.page}: no such verb"
        found = found.commands[verb]
    found.make_context(found.name, arguments)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the commands name."""
    folder = tmp_path_factory.mktemp("world")
    room = ROOT / "sequences" / "room_loop"
    camera = (room / "camera.yaml").read_text()
    for name in ("sequences", "configs", "docs"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("camera.yaml", "phone.yaml", "images/camera.yaml"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(camera)
    shutil.copy(room / "groundtruth.txt", folder)
    clip = clip_of(room / "video.mp4", folder / "film.mp4")
    for name in ("room", "second_visit", "flat_day", "flat_night"):
        shutil.copy(clip, folder / f"{name}.mp4")
    poses = [line for line in (room / "groundtruth.txt").read_text().splitlines() if not line.startswith("#")]
    (folder / "poses.txt").write_text("\n".join(poses[:CLIP_FRAMES]) + "\n")
    times = [line.split()[0] for line in poses]
    with av.open(str(clip)) as video:
        for k, frame in enumerate(video.decode(video=0)):
            if k % 5 == 0:
                frame.to_image().save(folder / "images" / f"{times[k]}.jpg", quality=92)
    shutil.copy(folder / "images" / f"{times[20]}.jpg", folder / "photo.jpg")
    run_slam(folder, ["run", "film.mp4", "--camera", "camera.yaml", "--preset", "fast", "-q", "-o", "runs/desk"])
    for name in ("room", "desk-1", "desk-2", "monday", "tuesday", "trial", "flat-day", "flat-night"):
        shutil.copytree(folder / "runs" / "desk", folder / "runs" / name)
    shutil.copytree(folder / "runs" / "desk" / "map", folder / "maps" / "shop")
    return folder


def clip_of(source: Path, target: Path, frames: int = CLIP_FRAMES) -> Path:
    """The first frames of a video, without decoding them."""
    with av.open(str(source)) as video, av.open(str(target), "w") as clip:
        stream = video.streams.video[0]
        copied = clip.add_stream_from_template(stream)
        for packet in itertools.islice(video.demux(stream), frames):
            packet.stream = copied
            clip.mux(packet)
    return target


def run_slam(folder: Path, arguments: list[str]) -> int:
    before = Path.cwd()
    os.chdir(folder)
    try:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
    finally:
        os.chdir(before)
    return int(ended.value.code or 0)


def run_in_copy(command: Command, world: Path, folder: Path) -> None:
    """Run a command in a copy of the world from which its outputs are removed."""
    shutil.copytree(world, folder, copy_function=os.link, symlinks=True, dirs_exist_ok=True)
    _, *arguments = command.words
    for option, path in itertools.pairwise(arguments):
        if option in OUTPUTS and (folder / path).is_dir():
            shutil.rmtree(folder / path)
        elif option in OUTPUTS and "--force" not in arguments:
            (folder / path).unlink(missing_ok=True)
    assert run_slam(folder, arguments) == 0, f"{command.page}: {command.text}"


def is_slow(command: Command) -> bool:
    return command.words[1] in SLOW


@pytest.mark.parametrize("command", [c for c in RUN if not is_slow(c)], ids=lambda command: command.text)
def test_a_command_runs(command: Command, world: Path, tmp_path: Path) -> None:
    run_in_copy(command, world, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in RUN if is_slow(c)], ids=lambda command: command.text)
def test_a_long_command_runs(command: Command, world: Path, tmp_path: Path) -> None:
    run_in_copy(command, world, tmp_path)


@pytest.mark.slow
def test_the_tutorial_runs_from_its_first_command_to_its_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the files that a reader has, two videos and a photograph, and with what the commands before have made."""
    clip_of(ROOT / "sequences" / "room_loop" / "video.mp4", tmp_path / "film.mp4", frames=180)
    clip_of(ROOT / "sequences" / "room_revisit" / "video.mp4", tmp_path / "second_visit.mp4")
    with av.open(str(tmp_path / "film.mp4")) as video:
        next(itertools.islice(video.decode(video=0), 90, None)).to_image().save(tmp_path / "photo.jpg", quality=92)
    said = {}
    for command in commands_of(ROOT / "docs" / "tutorial.md"):
        if not command.why_not:
            assert run_slam(tmp_path, command.words[1:]) == 0, command.text
            said[command.text] = capsys.readouterr().out
    assert re.search(r"^photo\.jpg: position .* map units, confidence ", said["slam relocalize runs/room photo.jpg"])
    for name in ("runs/room/report.html", "runs/room/trajectory.png", "room_nerfstudio/transforms.json", "room.ply"):
        assert (tmp_path / name).is_file()
    second = json.loads((tmp_path / "runs" / "second" / "report.json").read_text())
    assert second["map"]["found_at_frame"] >= 0


def test_a_merged_map_is_described_in_json(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(world / "runs" / name) for name in ("monday", "tuesday")]
    assert run_slam(tmp_path, ["map", "merge", *runs, "-o", "office", "--json", "-q"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["map"] == "office"
    assert described["overlaps"] > 0
    assert described["counts"]["keyframes"] > 0


@pytest.mark.slow
def test_a_map_of_posed_images_is_described_in_json(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(world / "images"), str(world / "poses.txt")]
    assert run_slam(tmp_path, ["map", "from-poses", *given, "-o", "shop", "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["keyframes"] == CLIP_FRAMES // 5


# --- links ---------------------------------------------------------------------------------------------


def without_code(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```|`[^`\n]*`", "", text, flags=re.M | re.S)


def anchors_of(page: Path) -> set[str]:
    """Anchors of the headings, as GitHub and MkDocs make them."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S), re.M
    )
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]*)\)", without_code(page.read_text(encoding="utf-8"))):
        path, _, anchor = target.partition("#")
        there = page if not path else page.parent / path
        assert there.exists(), f"{page.name}: {target}"
        if anchor and there.suffix == ".md":
            assert anchor in anchors_of(there), f"{page.name}: {target}"


class _Yaml(yaml.SafeLoader):
    """Of mkdocs.yml; tags of MkDocs are read as text."""


_Yaml.add_multi_constructor("!", lambda loader, suffix, node: suffix)


def test_the_navigation_of_the_site_has_every_page_once():
    def pages_of(entry: Any) -> Iterator[str]:
        for value in entry.values() if isinstance(entry, dict) else entry:
            yield from [value] if isinstance(value, str) else pages_of(value)

    listed = list(pages_of(yaml.load((ROOT / "mkdocs.yml").read_text(), _Yaml)["nav"]))
    generated = {"index.md"} | {page for page in listed if page.startswith("reference/")}
    assert len(listed) == len(set(listed))
    assert set(listed) - generated == {page.name for page in (ROOT / "docs").glob("*.md")}


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="MkDocs is not installed: make site")
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed: make site")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path)))
    assert "FrameProcessed" in (tmp_path / "reference" / "events.html").read_text(encoding="utf-8")
