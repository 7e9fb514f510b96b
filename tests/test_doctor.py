"""What `slam doctor` says of libraries that a run can do without."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest

from slam.cli import installation_checks as doctor


@pytest.mark.parametrize(
    ("module", "use"),
    [
        ("openvino", "for Reloc3r on a CPU (predictor.backend): pip install 'reloc3r-slam[openvino]'"),
        ("onnx", "for slam weights export --format onnx: pip install 'reloc3r-slam[onnx]'"),
        ("onnxruntime", "checks what slam weights export writes: pip install 'reloc3r-slam[onnx]'"),
    ],
)
def test_a_library_for_an_extra_is_a_note_that_names_the_extra_and_its_use(monkeypatch, module, use):
    def absent(distribution):
        raise PackageNotFoundError(distribution)

    monkeypatch.setattr(doctor, "version", absent)
    [asked] = [library for library in doctor._LIBRARIES if library[0] == module]
    check = doctor._library(*asked)
    assert (check.severity, check.finding, check.fix) == ("note", "not installed", f"optional, {use}")
