"""What the documentation site has beyond the Markdown files of docs/: a hook of MkDocs, see mkdocs.yml.

- The home page is README.md.
- Files of the repository that pages link to are copied into the site.
- Pages of reference are generated from the code: command line, library, events, file formats.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.main import get_command

import relocalizer
import slam
from relocalizer.camera import Camera
from relocalizer.maps.map_format import SCHEMA
from slam import events
from slam.cli import app
from slam.run.frames_table import COLUMNS, FramesTable

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = "repository"  # folder of the site with files of the repository
LINK = re.compile(r"(\]\()(?!https?:|mailto:|#)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = {"index.md": (ROOT / "README.md").read_text(encoding="utf-8")}
    for name, text in _reference_pages().items():
        pages[f"reference/{name}.md"] = text
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    for path in sorted(_linked_outside(config)):
        if (ROOT / path).is_file():
            target = f"{REPOSITORY}/{path}"
            target = f"{target}.txt" if path.suffix in ("", ".md", ".py") else target  # shown by browsers
            files.append(File.generated(config, target, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links out of docs/ lead to the copies in the site."""
    return LINK.sub(lambda link: f"{link[1]}{_in_site(link[2], page.file.src_uri)}", markdown)


def _source_folder(page: str) -> PurePosixPath:
    """Folder of the repository from which a page's links start."""
    return PurePosixPath() if page == "index.md" else PurePosixPath("docs") / PurePosixPath(page).parent


def _in_repository(link: str, page: str) -> PurePosixPath:
    return PurePosixPath(os.path.normpath(_source_folder(page) / link))


def _in_site(link: str, page: str) -> str:
    path = _in_repository(link, page)
    if path.parts[0] == "docs":
        target = path.relative_to("docs")
    elif path == PurePosixPath("README.md"):
        target = PurePosixPath("index.md")
    else:
        target = PurePosixPath(REPOSITORY) / (f"{path}.txt" if path.suffix in ("", ".md", ".py") else path)
    return PurePosixPath(os.path.relpath(target, PurePosixPath(page).parent)).as_posix()


def _linked_outside(config: MkDocsConfig) -> set[PurePosixPath]:
    """Files of the repository, outside docs/, that README.md or a page links to."""
    docs = Path(config.docs_dir)
    texts = {"index.md": ROOT / "README.md"} | {p.relative_to(docs).as_posix(): p for p in docs.rglob("*.md")}
    return {
        path
        for page, source in texts.items()
        for link in LINK.finditer(source.read_text(encoding="utf-8"))
        if (path := _in_repository(link[2], page)).parts[0] not in ("docs", "..") and path.name != "README.md"
    }


def _reference_pages() -> dict[str, str]:
    return {
        "command-line": _command_line_page(),
        "slam": _library_page(slam, "slam"),
        "relocalizer": _library_page(relocalizer, "relocalizer"),
        "events": _events_page(),
        "file-formats": _file_formats_page(),
    }


def _command_line_page() -> str:
    parts = ["# Command line", "", "The help of every command, as `slam COMMAND --help` prints it."]
    for words, command in _commands(get_command(app), ("slam",)):
        context = command.make_context(" ".join(words), [], resilient_parsing=True)
        parts += ["", f"## {' '.join(words)}", "", "```text", context.get_help().rstrip(), "```"]
    return "\n".join(parts) + "\n"


def _commands(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield words, command
    for name, below in getattr(command, "commands", {}).items():
        yield from _commands(below, (*words, name))


def _library_page(package: Any, title: str) -> str:
    """What a package exports, for mkdocstrings."""
    homes = [f"{package._HOMES[name]}.{name}" for name in package.__all__]
    return "\n\n".join([f"# {title}", package.__doc__ or "", *(f"::: {home}" for home in homes)]) + "\n"


def _events_page() -> str:
    """All events with their fields, from `slam.events`."""
    parts = ["# Events", "", _paragraph(events), "", "`events.jsonl` of a run folder has a line per event: `event` is "
             "the name of the type, and the fields follow, arrays by their shape."]  # fmt: skip
    for kind in events.Event.__args__:
        described = _attributes(kind.__doc__ or "")
        parts += ["", f"## {kind.__name__}", "", _summary(kind.__doc__ or ""), ""]
        parts += ["| field | type | |", "|---|---|---|"]
        parts += [
            f"| `{field.name}` | `{str(field.type).replace('|', chr(92) + '|')}` | {described.get(field.name, '')} |"
            for field in dataclasses.fields(kind)
        ]
    return "\n".join(parts) + "\n"


def _file_formats_page() -> str:
    parts = ["# File formats", "", "Columns and arrays as the code writes them. [The map on disk](../map-format.md), "
             "[configuration](../configuration.md) and [the run folder](../architecture.md#a-run-folder) have the "
             "meaning.", "", "## frames.csv", "", ", ".join(f"`{name}`" for name in COLUMNS), "",
             _rest(FramesTable.__doc__ or ""), "", "## camera.yaml", ""]  # fmt: skip
    described = _attributes(Camera.__doc__ or "")
    parts += ["| key | type | |", "|---|---|---|"]
    parts += [f"| `{f.name}` | `{f.type}` | {described.get(f.name, '')} |" for f in dataclasses.fields(Camera)]
    for table, arrays in SCHEMA.items():
        parts += ["", f"## map/{table}.npz", "", "| array | type | shape |", "|---|---|---|"]
        parts += [f"| `{name}` | `{kind}` | ({', '.join(map(str, shape))}) |" for name, (kind, shape) in arrays.items()]
    return "\n".join(parts) + "\n"


def _paragraph(module: Any) -> str:
    return " ".join((module.__doc__ or "").split())


def _summary(docstring: str) -> str:
    return " ".join(docstring.split("\n\n")[0].split())


def _rest(docstring: str) -> str:
    return " ".join(" ".join(docstring.split("\n\n")[1:]).split())


def _attributes(docstring: str) -> dict[str, str]:
    """Descriptions by name from the section `Attributes:` of a docstring."""
    section = docstring.partition("Attributes:\n")[2]
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        if entry := re.match(r"^ {8}([a-z_]\w*(?:, [a-z_]\w*)*): (.*)", line):
            names = entry[1].split(", ")
            found |= dict.fromkeys(names, entry[2].strip())
        elif names and line.startswith(" " * 12):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        else:
            names = []
    return found
