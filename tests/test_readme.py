"""What the documentation tells people to type must exist."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

import relocalizer
import slam
from slam.run.report import versions

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "configs" / "README.md", *(ROOT / "docs").glob("*.md")]


def blocks(path: Path, language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)
    return [lines for found, lines in fenced if re.fullmatch(language, found)]


def commands(program: str) -> list[str]:
    """Every line of a plain code block that starts with the program, and those in back quotes in tables."""
    found = []
    for page in PAGES:
        lines = "\n".join(blocks(page, "(sh|bash)?")).splitlines()
        found += [line.split(" #")[0].strip() for line in lines if line.split(" ")[0] == program]
    return sorted(set(found))


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))


@pytest.mark.parametrize("command", commands("make"))
def test_a_documented_target_exists(command):
    assert {word for word in command.split()[1:] if "=" not in word} <= make_targets()


def test_targets_in_running_text_exist():
    for page in PAGES:
        for target in re.findall(r"`make ([a-z-]+)[^`]*`", page.read_text(encoding="utf-8")):
            assert target in make_targets(), f"{page.name}: make {target}"


@pytest.mark.parametrize("code", blocks(ROOT / "README.md", "python"))
def test_documented_python_compiles_and_imports_names_there_are(code):
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            public = {"slam": slam.__all__, "relocalizer": relocalizer.__all__}[node.module or ""]
            assert {alias.name for alias in node.names} <= set(public)


def test_files_named_in_the_architecture_exist():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    later = {"relocalizer/averaging.py"}
    for name in set(re.findall(r"`((?:slam|relocalizer)/[a-z_0-9/]+\.py)`", text)) - later:
        assert (ROOT / name).exists(), name


def test_the_version_stands_once():
    """In relocalizer/__init__.py, from which pyproject.toml reads it; a citation repeats it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"] == {"path": "relocalizer/__init__.py"}
    assert slam.__version__ == relocalizer.__version__ == versions()["reloc3r-slam"]
    assert f"\nversion: {slam.__version__}\n" in (ROOT / "CITATION.cff").read_text()
