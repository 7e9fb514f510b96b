"""The sequences of the SLAM suites, found below a root folder by name or by layout."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from relocalizer.errors import UserError
from slam.benchmarks.benchmark_error import BenchmarkError
from slam.input.dataset_layouts import LAYOUTS, image_folder, index_folder, video_folder
from slam.input.folder_listing import entries_of, is_video

TUM_FR1 = ("360", "desk", "desk2", "floor", "plant", "room", "rpy", "teddy", "xyz")
EUROC = (
    "MH_01", "MH_02", "MH_03", "MH_04", "MH_05", "V1_01", "V1_02", "V1_03", "V2_01", "V2_02", "V2_03",
)  # fmt: skip
KITTI = tuple(f"{number:02d}" for number in range(11))
SCENES = ("chess", "fire", "heads", "office", "pumpkin", "redkitchen", "stairs")
MOST_LEVELS = 4  # Depth to which sequences are searched for.
_OWN_FILES = ("camera.yaml", "groundtruth.txt")  # A folder of images or a video with one of them is a sequence.
_SPECIFIC = tuple(layout for layout in LAYOUTS if layout not in (image_folder, video_folder))


@dataclass(frozen=True, slots=True)
class Sequences:
    """Sources of a suite by name, and the published sequences that are not there."""

    paths: Mapping[str, Path]
    missing: Sequence[str] = ()


def sequences_of(suite: str, root: Path) -> Sequences:
    """The sequences of a suite below its root folder.

    Raises:
        BenchmarkError: there are none.
    """
    finders: dict[str, Callable[[Path], Sequences]] = {
        "tum": lambda folder: _named(folder, TUM_FR1, r"(?:rgbd_dataset_)?(?:freiburg|fr)1_(\w+)"),
        "euroc": lambda folder: _named(folder, EUROC, r"((?:MH|V1|V2)_\d\d)(?:_\w+)?"),
        "kitti": _kitti,
        "7scenes": _seven_scenes,
        "icl": lambda folder: Sequences({n: p for n, p in _found(folder).items() if _layout_name(p) == "ICL-NUIM"}),
        "folder": lambda folder: Sequences(_found(folder)),
    }
    found = finders[suite](root)
    if not found.paths:
        raise BenchmarkError(f"{root}: no sequence of {suite} below it; slam data describe {suite} says the layout")
    return found


def _named(root: Path, names: Sequence[str], pattern: str) -> Sequences:
    """Folders in the root or one level below it whose name contains that of a sequence."""
    found: dict[str, Path] = {}
    for path in [root, *_folders(root), *(below for folder in _folders(root) for below in _folders(folder))]:
        match = re.fullmatch(pattern, path.name)
        if match and match[1] in names:
            found.setdefault(match[1], path)
    return Sequences({n: found[n] for n in names if n in found}, [n for n in names if n not in found])


def _kitti(root: Path) -> Sequences:
    folders = [root / "sequences", root / "dataset" / "sequences", root]
    found = {n: next((f / n for f in folders if (f / n / "calib.txt").is_file()), None) for n in KITTI}
    return Sequences({n: p for n, p in found.items() if p is not None}, [n for n, p in found.items() if p is None])


def _seven_scenes(root: Path) -> Sequences:
    """The first sequence of each scene, as in the tables of reconstruction systems."""
    found = {scene: root / scene / "seq-01" for scene in SCENES}
    return Sequences({n: p for n, p in found.items() if p.is_dir()}, [n for n, p in found.items() if not p.is_dir()])


def _found(root: Path) -> dict[str, Path]:
    """Every sequence below a folder, named by its path."""
    paths = list(_below(root, 0))
    return {str(path.relative_to(root)) if path != root else path.name: path for path in paths}


def _below(folder: Path, level: int) -> Iterator[Path]:
    """The folder, if it is a sequence by its own files, else those below it, else the folder as plain images."""
    if level > MOST_LEVELS:
        return
    if any((folder / name).is_file() for name in _OWN_FILES) or _has_layout(folder, _SPECIFIC):
        yield folder
        return
    found = [path for below in _folders(folder) for path in _below(below, level + 1)]
    videos = [path for path in entries_of(folder) if is_video(path)]
    if not found and not videos and _has_layout(folder, (image_folder,)):
        found = [folder]
    yield from [*found, *videos]


def _has_layout(folder: Path, layouts: Sequence[Callable[[Path], object]]) -> bool:
    """Whether a folder has a layout; one with an error in its files counts, so that the error is reported."""
    try:
        return any(layout(folder) is not None for layout in layouts)
    except UserError:
        return True


def _layout_name(path: Path) -> str:
    try:
        return index_folder(path).layout if path.is_dir() else ""
    except UserError:
        return ""


def _folders(folder: Path) -> list[Path]:
    return [path for path in entries_of(folder) if path.is_dir()]
