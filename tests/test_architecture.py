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
    "torch": (
        "relocalizer/network/",
        "relocalizer/predictors/reloc3r_predictor.py",
        "relocalizer/training/",
        "slam/benchmarks/torch_chunks.py",
    ),
    "ray": ("slam/workers/ray_cluster.py",),
    "faiss": ("relocalizer/retrieval.py", "relocalizer/vlad.py"),
    "gtsam": ("slam/loop_closing/gtsam_pose_graph.py",),
    "rerun": ("slam/viz/",),
    "typer": ("slam/cli/",),
    "rich": ("slam/cli/text_tables.py",),
    "poselib": ("relocalizer/two_view.py",),
    "av": ("slam/input/video_decoding.py", "slam/run/run_video.py"),
    "rosbags": ("slam/input/ros_bag.py",),
    "starlette": ("slam/serve/",),
    "uvicorn": ("slam/serve/",),
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
    """What only type checkers see counts: two modules that need each other's types are one module.

    The packages themselves do not count: their public names are fetched when they are used.
    """
    modules = {module_of(path): path for path in FILES if module_of(path) not in ("slam", "relocalizer")}
    graph = {name: (imports(path, ast.walk) & modules.keys()) - {name} for name, path in modules.items()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


# --- layers --------------------------------------------------------------------------------------------

# Folders and top modules of slam, each importing only those before it; the diagram is in docs/architecture.md.
LAYERS = [
    "plain_text", "process_memory", "progress", "stopwatch", "web_page", "predictor_checks", "config",
    "evaluation", "map", "events", "input", "tracking", "mapping", "result", "relocalization", "event_publisher",
    "loop_closing", "components", "sessions", "keyframe_processor", "background_mapping", "frame_processor",
    "photos", "system", "run", "explain", "workers", "viz", "bench", "benchmarks", "serve", "cli", "__main__",
]  # fmt: skip


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def upward_imports(root: Path, layers: list[str]) -> list[str]:
    """Imports within slam that do not lead to a layer below, those for type checkers included."""
    found = []
    for path in sorted((root / "slam").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        here = room_of(".".join(parts))
        if here == "__init__":  # the public names of the whole package
            continue
        for name in sorted(imports_of(path, root)):
            there = room_of(name)
            if not name.startswith("slam.") or there == here or there.startswith("__version"):
                continue
            if there not in layers or here not in layers:
                found.append(f"{here} -> {there}: not among the layers")
            elif layers.index(there) > layers.index(here):
                found.append(f"{path.relative_to(root).as_posix()} -> {name}")
    return found


def imports_of(path: Path, root: Path) -> set[str]:
    return {
        (f"slam.{alias.name}" if node.module == "slam" else f"{node.module}")
        if isinstance(node, ast.ImportFrom)
        else alias.name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }


def test_each_layer_imports_only_those_below_it() -> None:
    assert upward_imports(ROOT, LAYERS) == []


@pytest.mark.parametrize(
    "line",
    ["from slam.b.x import y", "from slam import b", "import slam.b.x", "if TYPE_CHECKING:\n    from slam.b import x"],
)
def test_an_import_against_the_order_is_found(tmp_path: Path, line: str) -> None:
    for name in ("a", "b"):
        (tmp_path / "slam" / name).mkdir(parents=True)
    (tmp_path / "slam" / "b" / "x.py").write_text("from slam.a import y\n")
    assert upward_imports(tmp_path, ["a", "b"]) == []
    (tmp_path / "slam" / "a" / "y.py").write_text(line + "\n")
    [found] = upward_imports(tmp_path, ["a", "b"])
    assert found.startswith("slam/a/y.py -> slam.b")


# --- the map and its writers ---------------------------------------------------------------------------

# Names under which the tables of the map are reached, and methods of dict, list and set that change their object.
MAP_TABLES = {"graph", "_graph", "landmarks", "_landmarks", "lenses", "lens_evidence"}
CHANGES_OF_CONTAINERS = {
    "add", "append", "clear", "discard", "extend", "insert", "pop", "popitem", "remove", "setdefault", "sort", "update",
}  # fmt: skip


def chain(node: ast.expr) -> list[str]:
    """Names of an expression of attributes and subscripts, from its root: of `a.b[c].d`, a, b and d."""
    match node:
        case ast.Name():
            return [node.id]
        case ast.Attribute():
            return [*chain(node.value), node.attr]
        case ast.Subscript():
            return chain(node.value)
    return []


def targets_of(node: ast.AST) -> list[ast.expr]:
    """Expressions that a statement assigns to or deletes, tuples taken apart."""
    match node:
        case ast.Assign() | ast.Delete():
            found = node.targets
        case ast.AugAssign() | ast.AnnAssign():
            found = [node.target]
        case _:
            return []
    return [one for target in found for one in (target.elts if isinstance(target, ast.Tuple) else [target])]


def changing_methods(path: Path, class_name: str) -> set[str]:
    """Methods of a class that assign to its attributes or to what they hold, or call another one that does."""
    [of_class] = [n for n in ast.walk(syntax(path)) if isinstance(n, ast.ClassDef) and n.name == class_name]
    methods = {n.name: list(ast.walk(n)) for n in of_class.body if isinstance(n, ast.FunctionDef)}
    found: set[str] = set()
    while True:
        more = {
            name
            for name, nodes in methods.items()
            for node in nodes
            if any(chain(target)[0:1] == ["self"] for target in targets_of(node))
            or (isinstance(node, ast.Call) and (called := chain(node.func))[0:1] == ["self"]
                and called[-1] in found | CHANGES_OF_CONTAINERS)
        }  # fmt: skip
        if more == found:
            return found
        found = more


def methods_that_change_the_map() -> set[str]:
    of_graph = changing_methods(ROOT / "slam/map/keyframe_graph.py", "KeyframeGraph")
    of_landmarks = changing_methods(ROOT / "slam/map/landmarks.py", "LandmarkMap")
    return (of_graph | of_landmarks) - {"__init__", "shared_with"}  # the second only writes to its own scratch space


def is_inside_map(expression: ast.expr, aliases: set[str]) -> bool:
    """Whether an expression reaches the graph or the landmarks themselves, or something that they hold."""
    names = chain(expression)
    return bool(names) and (names[0] in aliases or bool(MAP_TABLES & set(names)))


def aliases_in(function: ast.AST) -> set[str]:
    """Local names for a part of the graph or of the landmarks, as in `observed = slam_map.landmarks.observed`."""
    found: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                paired = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
                pairs = zip(target.elts, node.value.elts, strict=False) if paired else [(target, node.value)]
                found |= {a.id for a, b in pairs if isinstance(a, ast.Name) and is_inside_map(b, found)}
    return found


def writes_to_map(source: str) -> list[str]:
    """Statements of a source file that change the graph or the landmarks other than through `SlamMap`."""
    found, tree, changing = [], ast.parse(source), methods_that_change_the_map()
    for function in [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]:
        aliases = aliases_in(function)
        for node in ast.walk(function):
            held = [t.value for t in targets_of(node) if isinstance(t, ast.Attribute | ast.Subscript)]
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                receiver, name = node.func.value, node.func.attr
                of_table = chain(receiver)[-1:] and chain(receiver)[-1] not in MAP_TABLES
                if name in changing or (name in CHANGES_OF_CONTAINERS and of_table):
                    held.append(receiver)
            if any(is_inside_map(one, aliases) for one in held):
                found.append(ast.unparse(node))
    return found


def test_only_the_map_changes_its_graph_and_its_landmarks() -> None:
    outside = [path for path in FILES if name_of(path).startswith("slam/") and "slam/map/" not in name_of(path)]
    found = {name_of(path): writes_to_map(path.read_text(encoding="utf-8")) for path in outside}
    assert {name: writes for name, writes in found.items() if writes} == {}


@pytest.mark.parametrize(
    "line",
    [
        "self._map.landmarks.observed[k] = tracks",
        "slam_map.landmarks.feature_tracks[k][rows] = ids",
        "slam_map.landmarks.anchor[ids] += 1",
        "slam_map.graph.metric[0] = 'a ruler'",
        "slam_map.graph.keyframes = {}",
        "del slam_map.graph.edges[1, 2]",
        "slam_map.graph.set_edge(edge)",
        "slam_map.graph.metric.pop(0)",
        "result.graph.scale_to_meters(0, 2.0, 'a ruler')",
        "self._landmarks.remove_points(ids)",
        "slam_map.landmarks.merge(kept, gone)",
        "graph, landmarks = slam_map.graph, slam_map.landmarks; landmarks.start(pixels, descriptors, image)",
        "rows = slam_map.landmarks.feature_tracks[k]; rows[0] = -1",
        "a, graph.segment_of[k] = pair",
        "self._map.lens_evidence[0] = evidence",
    ],
)
def test_a_write_past_the_map_is_found(line: str) -> None:
    [found] = writes_to_map(f"def change(self, slam_map, graph, result):\n    {line}\n")
    assert found in line


@pytest.mark.parametrize(
    "line",
    [
        "slam_map.set_edge(edge)",
        "self._landmarks = slam_map.landmarks",
        "tracks = slam_map.landmarks.observed[k].where(keep)",
        "poses = dict(graph.world_from_keyframe); poses[0] = pose",
        "graph.add(factor)",  # of GTSAM
    ],
)
def test_reading_the_map_is_no_write(line: str) -> None:
    assert writes_to_map(f"def read(self, slam_map, graph):\n    {line}\n") == []


# --- sizes ---------------------------------------------------------------------------------------------

FILE_LINES, CLASS_LINES, FUNCTION_LINES, PARAMETERS = 400, 250, 40, 6
GEOMETRY = "numbers of one geometric problem, most of them by keyword; a class would only rename them"
SWITCHES = "settings of one search, all by keyword, each with a default that callers keep"
EXCEPTIONS: dict[str, str] = {
    "relocalizer/absolute_pose.py:optimize_pose(8)": GEOMETRY,
    "relocalizer/averaging.py:_accepted(7)": GEOMETRY,
    "relocalizer/guided_matching.py:match_along_lines(9)": GEOMETRY,
    "relocalizer/network/benchmark.py:_ready(7)": SWITCHES,
    "relocalizer/predictors/reloc3r_predictor.py:__init__(7)": SWITCHES,
    "relocalizer/predictors/reloc3r_predictor.py:random(7)": SWITCHES,
    "relocalizer/scale.py:fit_length(7)": GEOMETRY,
    "slam/evaluation/plot.py:_draw_line(7)": "passes matplotlib's options on",
    "slam/input/open_source.py:open_source(7)": SWITCHES,
    "slam/run/record_run.py:record_run(7)": SWITCHES,
}


def oversized() -> Iterator[str]:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > FILE_LINES:
            yield f"{name_of(path)}"
        for node in ast.walk(syntax(path)):
            if isinstance(node, ast.ClassDef) and node.end_lineno - node.lineno > CLASS_LINES:
                yield f"{name_of(path)}:{node.name}"
            if isinstance(node, ast.FunctionDef):
                first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
                if node.end_lineno - first.lineno + 1 > FUNCTION_LINES:
                    yield f"{name_of(path)}:{node.name}"
                count = len([*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs])
                count -= bool(node.args.args) and node.args.args[0].arg in ("self", "cls")
                if count > PARAMETERS and not name_of(path).startswith("slam/cli/"):  # options of the command line
                    yield f"{name_of(path)}:{node.name}({count})"


def test_files_classes_and_functions_are_of_a_readable_size() -> None:
    found = set(oversized())
    assert found - EXCEPTIONS.keys() == set()
    assert EXCEPTIONS.keys() - found == set(), "no exception any more"


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
    assert found == [("slam/config/loading.py", "_Loader")]


def test_nothing_is_imported_by_wildcard():
    for path in FILES:
        assert not any(name.endswith(".*") for name in imports(path)), name_of(path)


# Where an error of any kind is caught and kept: for the consumer of a thread, for a run's report, or shown at once.
KEEP_ERRORS = {
    "slam/background_mapping.py",
    "slam/benchmarks/item_evaluation.py",
    "slam/cli/__init__.py",
    "slam/event_publisher.py",
    "slam/input/live_stream.py",
    "slam/input/prefetch.py",
    "slam/run/recorded_run.py",
    "slam/run/runner.py",
    "slam/viz/recording_output.py",
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
        if path.parent.name != "config" and path.name != "config.py"
        for node in ast.walk(syntax(path))
        if isinstance(node, ast.Attribute)
    }
    assert [f"{section}.{name}" for section, name in fields_of(SlamConfig()) if name not in read] == []


def test_importing_the_packages_loads_no_heavy_library():
    code = f"import sys, slam, relocalizer; print(sorted(set({HEAVY!r}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_every_entry_point_leads_somewhere():
    for point in entry_points(group="console_scripts"):
        if point.dist is not None and point.dist.name == "reloc3r-slam":
            assert callable(point.load())
