from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from pydantic import BaseModel

from slam.config.schema import SlamConfig

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted([*(ROOT / "slam").rglob("*.py"), *(ROOT / "relocalizer").rglob("*.py")])

# Which files may import a heavy or side-effecting library; the same table stands in docs/architecture.md.
ALLOWED = {
    "torch": ("relocalizer/network/", "relocalizer/reloc3r_predictor.py"),
    "faiss": ("relocalizer/retrieval.py",),
    "gtsam_unstable": ("slam/refinement.py",),
    "gtsam": ("slam/optimizer.py", "slam/refinement.py"),
    "rerun": ("slam/rerun_drawing.py", "slam/rerun_viewer.py"),
    "typer": ("slam/cli/",),
    "rich": ("slam/console.py",),
    "poselib": ("relocalizer/two_view.py",),
    "slam": ("slam/",),
}
HEAVY = ("torch", "gtsam", "faiss", "rerun")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """Every node, function bodies included, but what only type checkers see."""
    for child in ast.iter_child_nodes(node):
        if not is_type_checking(child):
            yield child
            yield from walk(child)


def imports(path: Path, nodes: Callable[[ast.AST], Iterator[ast.AST]] = walk) -> set[str]:
    """Full names of all imported modules, and of the names imported from them.

    `nodes` is `ast.walk` to count also what only type checkers see.
    """
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    found: set[str] = set()
    for node in nodes(syntax(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("library", ALLOWED)
def test_a_library_is_imported_only_in_its_files(library):
    guilty = [
        name_of(path)
        for path in FILES
        if any(name.split(".")[0] == library for name in imports(path))
        and not name_of(path).startswith(ALLOWED[library])
    ]
    assert guilty == []


def test_modules_import_one_another_without_cycles():
    """What only type checkers see counts: two modules that need each other's types are one module."""
    modules = {module_of(path): path for path in FILES}
    graph = {name: (imports(path, ast.walk) & modules.keys()) - {name} for name, path in modules.items()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(syntax(path)) if isinstance(node, ast.Call))


@pytest.mark.parametrize("name", ["print", "exit", "quit", "sys.exit", "os._exit"])
def test_only_the_command_line_prints_and_exits(name):
    guilty = [name_of(path) for path in FILES if any(ast.unparse(call.func) == name for call in calls(path))]
    assert [name for name in guilty if not name.startswith("slam/cli/")] == []


@pytest.mark.parametrize("name", ["eval", "exec", "pickle.load", "pickle.loads", "yaml.unsafe_load", "os.system"])
def test_data_is_never_run_as_code(name):
    assert [name_of(path) for path in FILES if any(ast.unparse(call.func) == name for call in calls(path))] == []


def test_arrays_and_checkpoints_are_loaded_without_pickle():
    for path in FILES:
        for call in calls(path):
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            if ast.unparse(call.func) == "np.load":
                assert keywords.get("allow_pickle") == "False", f"{name_of(path)}:{call.lineno}"
            if ast.unparse(call.func) == "torch.load":
                assert keywords.get("weights_only") == "True", f"{name_of(path)}:{call.lineno}"


def test_yaml_files_are_loaded_safely():
    """`yaml.load` stands once, with the stricter child of the safe loader."""
    found = [
        (name_of(path), ast.unparse(call.args[1]))
        for path in FILES
        for call in calls(path)
        if ast.unparse(call.func) == "yaml.load"
    ]
    assert found == [("slam/settings.py", "_Loader")]


def test_nothing_is_imported_by_wildcard():
    for path in FILES:
        assert not any(name.endswith(".*") for name in imports(path)), name_of(path)


# Where an error of any kind is caught and kept: for the consumer of a thread, for a run's report, or shown at once.
KEEP_ERRORS = {
    "slam/cli/__init__.py",
    "slam/live.py",
    "slam/pipeline.py",
    "slam/recorded_run.py",
    "slam/reporter.py",
    "slam/rerun_viewer.py",
}


def test_no_error_is_caught_unseen():
    """A handler for everything must raise again, here or in another thread."""
    for path in FILES:
        for node in ast.walk(syntax(path)):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else "BaseException"
                if caught in ("Exception", "BaseException") and name_of(path) not in KEEP_ERRORS:
                    assert isinstance(node.body[-1], ast.Raise), f"{name_of(path)}:{node.lineno}"


def test_every_function_is_annotated():
    for path in FILES:
        for node in ast.walk(syntax(path)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            assert not bare, f"{name_of(path)}:{node.lineno} {node.name}: {bare}"
            assert node.returns is not None, f"{name_of(path)}:{node.lineno} {node.name} has no return type"


def test_every_public_module_has_a_docstring():
    bare = [name_of(path) for path in FILES if path.name != "__main__.py" and not ast.get_docstring(syntax(path))]
    assert bare == []


def test_no_module_is_named_after_nothing():
    vague = {"utils", "common", "misc", "helpers", "base", "types"}
    assert [name_of(path) for path in FILES if path.stem in vague] == []
    assert [name_of(path) for path in FILES if path.stem in sys.stdlib_module_names] == []


def fields_of(section: BaseModel) -> Iterator[tuple[str, str]]:
    for name in type(section).model_fields:
        below = getattr(section, name)
        if not isinstance(below, BaseModel) or type(below).model_fields:
            yield type(section).__name__, name
        if isinstance(below, BaseModel):
            yield from fields_of(below)


def test_every_setting_is_read_somewhere():
    read = {
        node.attr
        for path in FILES
        if path.name not in ("config.py", "settings.py")
        for node in ast.walk(syntax(path))
        if isinstance(node, ast.Attribute)
    }
    assert [f"{section}.{name}" for section, name in fields_of(SlamConfig()) if name not in read] == []


def test_importing_the_packages_loads_no_heavy_library():
    code = f"import sys, slam, relocalizer; print(sorted(set({HEAVY!r}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", ["slam", "relocalizer"])
def test_every_public_name_of_a_package_can_be_had(package):
    module = __import__(package)
    for name in module.__all__:
        assert getattr(module, name).__name__ == name


def test_every_entry_point_leads_somewhere():
    for group in ("console_scripts", "reloc3r_slam.predictors"):
        for point in entry_points(group=group):
            if point.dist is not None and point.dist.name == "reloc3r-slam":
                assert callable(point.load())
