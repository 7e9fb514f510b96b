"""Checks of the installation: libraries, devices, viewer and weights, each with a fix.

Libraries are imported in a separate process, because importing a broken one may terminate the process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

from relocalizer import pytorch
from relocalizer.errors import WeightsError
from relocalizer.predictors import plugins
from relocalizer.predictors.checkpoints import LICENSE, RELEASED, Released, locate, published_sha256, sha256_of
from slam.cli.threads import BLAS_THREADS, CHOSEN_BY_USER

_TRY_TIMEOUT_S = 60  # maximum time of a check in a separate process, seconds
# (import name, distribution, whether SLAM needs it)
_LIBRARIES = (
    ("numpy", "numpy", True),
    ("scipy", "scipy", True),
    ("cv2", "opencv-python-headless", True),
    ("gtsam", "gtsam", True),
    ("faiss", "faiss-cpu", True),
    ("rerun", "rerun-sdk", False),
    ("pydantic", "pydantic", True),
    ("yaml", "PyYAML", True),
    ("PIL", "pillow", True),
    ("av", "av", True),
    ("poselib", "poselib", False),
    ("torch", "torch", False),
    ("safetensors", "safetensors", False),
    ("huggingface_hub", "huggingface-hub", False),
    ("starlette", "starlette", False),
    ("uvicorn", "uvicorn", False),
    ("python_multipart", "python-multipart", False),
    ("pillow_heif", "pillow-heif", False),
    ("rosbags", "rosbags", False),
    ("ray", "ray", False),
    ("matplotlib", "matplotlib", False),
    ("openvino", "openvino", False),
    ("onnx", "onnx", False),
    ("onnxruntime", "onnxruntime", False),
)
# The modules that make each extra of pyproject.toml.
EXTRAS = {
    "viewer": ("rerun",),
    "reloc3r": ("torch", "safetensors", "huggingface_hub"),
    "serve": ("starlette", "uvicorn", "python_multipart"),
    "eval": ("matplotlib",),
    "heif": ("pillow_heif",),
    "ros": ("rosbags",),
    "ray": ("ray",),
    "openvino": ("torch", "safetensors", "huggingface_hub", "openvino"),
    "onnx": ("torch", "safetensors", "huggingface_hub", "onnx", "onnxruntime", "onnxscript"),
}
_OPTIONAL_FIX = {
    "gtsam": "pip install gtsam; it has no wheel for Windows, where slam run needs WSL",
    "rerun": "optional, for --view, --record and slam view: pip install 'reloc3r-slam[viewer]'",
    **dict.fromkeys(EXTRAS["reloc3r"], "optional, for Reloc3r: pip install 'reloc3r-slam[reloc3r]'"),
    **dict.fromkeys(EXTRAS["serve"], "optional, for slam serve: pip install 'reloc3r-slam[serve]'"),
    "pillow_heif": "optional, for HEIC images: pip install pillow-heif",
    "rosbags": "optional, for ROS bags: pip install rosbags",
    "ray": "optional, for --ray, work on a cluster: pip install 'reloc3r-slam[ray]'",
    "poselib": "optional: pip install poselib (where it has a wheel)",
    "matplotlib": "optional, for slam eval --plot: pip install 'reloc3r-slam[eval]'",
    "openvino": "optional, for Reloc3r on a CPU (predictor.backend): pip install 'reloc3r-slam[openvino]'",
    "onnx": "optional, for slam weights export --format onnx: pip install 'reloc3r-slam[onnx]'",
    "onnxruntime": "optional, checks what slam weights export writes: pip install 'reloc3r-slam[onnx]'",
}
_TORCH_DEVICES = """
import json, torch
cuda = torch.cuda.is_available()
print(json.dumps({
    "cuda": torch.cuda.get_device_name(0) if cuda else "",
    "built_for_cuda": torch.version.cuda or "",
    "mps": torch.backends.mps.is_available(),
    "threads": torch.get_num_threads(),
}))
"""
_FAISS_DEVICES = """
import json, faiss
gpus = faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0
print(json.dumps({"gpus": gpus}))
"""


@dataclass(frozen=True, slots=True)
class Check:
    """Result of one check. `needed`: SLAM does not run if it fails. `fix`: how to fix it, empty if ok."""

    name: str
    ok: bool
    finding: str
    fix: str = ""
    needed: bool = True

    @property
    def severity(self) -> str:
        return "ok" if self.ok else "MISSING" if self.needed else "note"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def examine(*, hash_weights: bool = False) -> list[Check]:
    """All checks, in the order of display.

    Args:
        hash_weights: compute the hash of cached weights and compare it with the hub's, which takes seconds per file.
            Otherwise the hub's hash is shown.
    """
    return [
        _python(),
        Check("platform", True, f"{platform.platform()}, {os.cpu_count()} cores"),
        *(_library(*library) for library in _LIBRARIES),
        _extras(),
        _blas_threads(),
        *_devices(),
        _faiss(),
        _viewer(),
        *(_weights(released, hash_weights) for released in RELEASED.values()),
        *_plugins(),
        *(_location(name) for name in ("slam", "relocalizer")),
    ]


def _plugins() -> list[Check]:
    """One check per installed predictor of another distribution."""
    checks = []
    for name, point in plugins.installed().items():
        module, _, function = point.value.partition(":")
        answer = _try(f"from {module} import {function}")
        fix = "" if answer.ok else f"its distribution is broken: {answer.text}"
        checks.append(Check(f"predictor {name}", answer.ok, point.value, fix, needed=False))
    return checks


def _python() -> Check:
    ok = (3, 11) <= sys.version_info[:2] < (3, 14)
    fix = "" if ok else "make an environment with Python 3.11, 3.12 or 3.13"
    return Check("python", ok, f"{platform.python_version()} at {sys.executable}", fix)


def _library(module: str, distribution: str, needed: bool) -> Check:
    try:
        installed = version(distribution)
    except PackageNotFoundError:
        others = packages_distributions().get(module, []) if needed else []
        if not others:
            fix = _OPTIONAL_FIX.get(module, f"pip install {distribution}")
            return Check(module, False, "not installed", fix, needed)
        installed = f"{version(others[0])} ({others[0]})"
    answer = _try(f"import {module}")
    if answer.ok:
        return Check(module, True, installed, needed=needed)
    fix = _import_fix(module, distribution)
    return Check(module, False, f"{installed}, but importing fails: {answer.text}", fix, needed)


def _extras() -> Check:
    """Which extras are installed."""
    there = [name for name, modules in EXTRAS.items() if all(importlib.util.find_spec(module) for module in modules)]
    absent = [name for name in EXTRAS if name not in there]
    finding = f"installed: {', '.join(there) or 'none'}" + (f"; not installed: {', '.join(absent)}" if absent else "")
    fix = f"optional: pip install 'reloc3r-slam[{absent[0]}]' brings one of them" if absent else ""
    return Check("extras", True, finding, fix, needed=False)


def _import_fix(module: str, distribution: str) -> str:
    if module == "faiss":
        return (
            "faiss-cpu and faiss-gpu must never be together: pip uninstall -y faiss-cpu faiss-gpu, "
            "then install one of them again"
        )
    if module == "cv2":
        return "pip uninstall -y opencv-python opencv-python-headless, then pip install opencv-python-headless"
    return f"pip install --force-reinstall {distribution}"


@dataclass(frozen=True, slots=True)
class _Answer:
    ok: bool
    text: str


def _try(code: str) -> _Answer:
    """Run Python code in a separate process: its output, or the last line of its error message."""
    command = [sys.executable, "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TRY_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return _Answer(False, f"no answer within {_TRY_TIMEOUT_S} s")
    if done.returncode == 0:
        return _Answer(True, done.stdout.strip())
    lines = done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"]
    return _Answer(False, lines[-1])


def _blas_threads() -> Check:
    name = next((name for name in CHOSEN_BY_USER if name in os.environ), None)
    finding = f"{name}={os.environ[name]}" if name else "those that the library chooses"
    return Check("BLAS threads", True, f"{finding} (NumPy and SciPy; {BLAS_THREADS} sets them, 1 is fastest for slam)")


def _devices() -> Iterator[Check]:
    if not pytorch.is_installed():
        fix = f"optional, for Reloc3r: {pytorch.HOW_TO_INSTALL}"
        yield Check("device", True, "CPU (without PyTorch, auto runs the geometric predictor)", fix, needed=False)
        return
    answer = _try(_TORCH_DEVICES)
    if not answer.ok:
        fix = f"pip install --force-reinstall torch, or {pytorch.HOW_TO_INSTALL}"
        yield Check("device", False, f"torch does not answer: {answer.text}", fix, needed=False)
        return
    found = json.loads(answer.text)
    if found["cuda"]:
        yield Check("device", True, f"CUDA: {found['cuda']} (auto runs reloc3r)")
    elif found["mps"]:
        yield Check("device", True, "Apple MPS (auto runs reloc3r-224)")
    else:
        yield Check("device", True, f"CPU, {found['threads']} threads (auto runs the geometric predictor)")
    if shutil.which("nvidia-smi") and not found["cuda"]:
        build = f"CUDA {found['built_for_cuda']}" if found["built_for_cuda"] else "the CPU only"
        fix = "install the PyTorch build for your CUDA version (pytorch.org, Get Started) and check the driver"
        yield Check("cuda", False, f"an NVIDIA driver is here, but torch is built for {build}", fix, needed=False)


def _faiss() -> Check:
    answer = _try(_FAISS_DEVICES)
    if not answer.ok:
        return Check("faiss device", False, "faiss cannot be asked", _import_fix("faiss", "faiss-cpu"))
    gpus = json.loads(answer.text)["gpus"]
    if gpus:
        return Check("faiss device", True, f"GPU build, {gpus} found")
    return Check(
        "faiss device",
        True,
        "CPU build; enough for any live map (for the GPU: pip uninstall -y faiss-cpu FIRST, then pip install "
        "'faiss-gpu>=1.15'; never both)",
    )


def _viewer() -> Check:
    found = shutil.which("rerun") or shutil.which("rerun", path=str(Path(sys.executable).parent))
    if found:
        return Check("viewer", True, found)
    fix = "pip install 'reloc3r-slam[viewer]' puts `rerun` beside python"
    return Check("viewer", False, "no `rerun` command found", fix, needed=False)


def _weights(released: Released, hash_it: bool) -> Check:
    try:
        found = locate(released.hub_id)
    except WeightsError as error:
        return Check(released.name, False, str(error), "remove what is there and fetch it again", needed=False)
    if found is None:
        finding = f"not cached ({released.terms}); optional, slam weights fetch {released.name} brings it"
        return Check(released.name, True, finding, needed=False)
    published = published_sha256(found)
    digest = sha256_of(found.weights) if hash_it else published
    if hash_it and published not in (None, digest):
        fix = f"delete {found.weights.resolve()}, then slam weights fetch {released.name}"
        return Check(released.name, False, "its bytes are not those that the hub gave", fix, needed=False)
    source = "" if hash_it else " by the hub (--hash computes it)"
    known = f"sha256 {digest[:16]}...{source}" if digest else "sha256 with --hash"
    size = f"{found.weights.stat().st_size / 1e9:.2f} GB"
    return Check(released.name, True, f"{found.weights}, {size}, {known}, license {LICENSE}", needed=False)


def _location(name: str) -> Check:
    """Check that the import name, a common word, is not shadowed by another project's package."""
    spec = importlib.util.find_spec(name)
    folder = Path(spec.origin).parent if spec and spec.origin else None
    ours = Path(__file__).resolve().parents[2] / name
    if folder is not None and folder.resolve() == ours:
        return Check(f"package {name}", True, str(folder))
    fix = f"another package named {name} hides ours; remove it, or use a clean environment"
    return Check(f"package {name}", False, str(folder or "not found"), fix)
