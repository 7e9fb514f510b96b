"""What a default installation leaves out: PyTorch above all, and what is said where it is needed."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from map_samples import small_map

from relocalizer import pytorch
from relocalizer.errors import ConfigError
from relocalizer.maps.reference_map import Provenance
from relocalizer.predictors.of_map import predictor_of
from slam.bench.cost import measure_predictor
from slam.cli import installation_checks as doctor
from slam.components.predictor_choice import choose_predictor
from slam.config.loading import load_config
from slam.config.schema import SlamConfig

NEEDS = r"needs PyTorch, which is not installed: pip install 'reloc3r-slam\[reloc3r\]'$"


@pytest.fixture
def no_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytorch, "is_installed", lambda: False)


def project(root: Path) -> dict[str, Any]:
    return dict(tomllib.loads((root / "pyproject.toml").read_text())["project"])


def names_of(requirements: list[str]) -> set[str]:
    return {re.split(r"[ <>=!~;\[]", requirement)[0] for requirement in requirements}


def test_pytorch_is_not_in_a_default_installation(root: Path) -> None:
    assert names_of(project(root)["dependencies"]).isdisjoint(
        {"torch", "safetensors", "huggingface-hub", "matplotlib", "rerun-sdk", "pyarrow"}
    )
    assert {"torch", "safetensors", "huggingface-hub"} == names_of(project(root)["optional-dependencies"]["reloc3r"])


def test_doctor_knows_every_extra_and_all_that_is_in_it(root: Path) -> None:
    extras = project(root)["optional-dependencies"]
    assert doctor.EXTRAS.keys() == extras.keys() - {"dev", "docs"}  # those are for developers
    distribution_of = {module: distribution for module, distribution, _ in doctor._LIBRARIES}
    for name, modules in doctor.EXTRAS.items():
        needed = names_of(extras[name]) - {"reloc3r-slam"}
        if len(needed) < len(extras[name]):
            needed |= names_of(extras["reloc3r"])
        assert {distribution_of.get(module, module) for module in modules} == needed, name


def test_doctor_says_which_extras_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "EXTRAS", {"one": ("json",), "two": ("json", "surely_not_there")})
    check = doctor._extras()
    assert (check.ok, check.finding) == (True, "installed: one; not installed: two")
    assert check.fix == "optional: pip install 'reloc3r-slam[two]' brings one of them"


def test_doctor_without_pytorch_names_what_runs(no_pytorch: None) -> None:
    [check] = doctor._devices()
    assert (check.ok, check.finding) == (True, "CPU (without PyTorch, auto runs the geometric predictor)")
    assert check.fix.endswith("pip install 'reloc3r-slam[reloc3r]'")


def test_a_run_does_not_import_pytorch(root: Path, tmp_path: Path) -> None:
    """With an import of it made impossible: a run, and an image located in its map."""
    out, clip = tmp_path / "out", root / "sequences" / "room_loop"
    code = (
        "import sys\n"
        "class Refuses:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'safetensors', 'huggingface_hub', 'rerun', 'pyarrow'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Refuses())\n"
        "from slam import record_run, open_source\n"
        "from slam.config.schema import InputConfig\n"
        "from relocalizer import Relocalizer, NotFound\n"
        f"source = open_source({str(clip)!r}, stride=4, max_frames=16, config=InputConfig(prefetch_frames=0))\n"
        f"report = record_run(source, out={str(out)!r})\n"
        f"frame = next(iter(open_source({str(clip)!r}, max_frames=1)))\n"
        f"found = Relocalizer.open({str(out)!r}).locate(frame.image, frame.camera)\n"
        "print(report.status, report.has_map, isinstance(found, NotFound))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root)
    assert done.stdout.strip() == "finished True False", done.stderr


@pytest.mark.usefixtures("no_pytorch")
@pytest.mark.parametrize("kind", ["reloc3r-512", "reloc3r-224"])
def test_the_network_without_pytorch_says_how_to_install_it(kind: str) -> None:
    config = load_config([], [f"predictor.kind={kind}"])
    with pytest.raises(ConfigError, match=rf"^the predictor {kind} {NEEDS}"):
        choose_predictor(config)
    with pytest.raises(ConfigError, match=rf"^measuring the network {NEEDS}"):
        measure_predictor(config, repeats=1)
    made = small_map(provenance=Provenance(predictor=kind, descriptor=kind))
    with pytest.raises(ConfigError, match=rf"^this map, built with {kind}, {NEEDS}"):
        predictor_of(made)


def test_a_card_without_pytorch_is_said_and_local_features_run(no_pytorch: None) -> None:
    choice = choose_predictor(SlamConfig(), lambda: "cuda", lambda weights: True)
    assert choice.kind == "geometric"
    assert choice.reason == (
        "auto: there is a CUDA card, but PyTorch is not installed: pip install 'reloc3r-slam[reloc3r]' brings it"
    )


@pytest.mark.usefixtures("no_pytorch")
def test_commands_about_weights_say_it_too(slam_command: Any, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"0" * 100)
    for verb in (
        ["train", tmp_path / "config.yaml", "--out", tmp_path / "out"],
        ["weights", "verify", tmp_path / "model.safetensors"],
        ["weights", "export", "reloc3r-224", "--format", "onnx", "--out", tmp_path / "out"],
        ["run", tmp_path, "--predictor", "reloc3r-224", "--random-weights"],
        ["bench", "--predictor", "reloc3r-224", "--random-weights"],
    ):
        ended = slam_command(*verb)
        assert ended.code == 2
        assert re.search(NEEDS, ended.complaint), ended.complaint


def test_without_rerun_the_viewer_says_how_to_install_it(
    slam_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slam.viz.installation.is_installed", lambda: False)
    for what, verb in (
        ("--view", ["run", tmp_path, "--view", "web"]),
        ("--record", ["run", tmp_path, "--record", tmp_path / "run.rrd"]),
        ("slam view", ["view", tmp_path]),
        ("--record", ["bench", tmp_path, "--record", tmp_path / "run.rrd"]),
    ):
        ended = slam_command(*verb)
        assert ended.code == 2
        assert ended.complaint == (
            f"slam: {what} needs Rerun, which is not installed: pip install 'reloc3r-slam[viewer]'"
        )
    assert list(tmp_path.iterdir()) == []


# --- what is around the package --------------------------------------------------------------------------


def test_every_python_that_is_supported_is_tested(root: Path) -> None:
    workflow = yaml.safe_load((root / ".github" / "workflows" / "check.yml").read_text())
    named = {text.rpartition(" ")[2] for text in project(root)["classifiers"] if re.search(r"Python :: 3\.\d+$", text)}
    assert set(workflow["jobs"]["test"]["strategy"]["matrix"]["python"]) == named


def test_files_of_services_and_templates_can_be_read(root: Path) -> None:
    files = [root / "compose.yaml", *(root / ".github").rglob("*.yml")]
    assert len(files) == 6
    for path in files:
        assert isinstance(yaml.safe_load(path.read_text()), dict), path


def test_the_image_is_built_from_what_is_there(root: Path) -> None:
    sources = re.findall(r"^COPY (.*) \S+$", (root / "Dockerfile").read_text(), re.M)
    names = [name for source in sources for name in source.split()]
    assert all((root / name).exists() for name in names)
    assert {f"!{name}" for name in names} <= set((root / ".dockerignore").read_text().splitlines())
    build = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for needed in (*build["packages"], *build["force-include"]):  # without them no wheel is built
        assert needed.split("/")[0] in names, needed
