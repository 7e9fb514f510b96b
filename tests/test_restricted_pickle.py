"""Pickled lists: arrays and text are read, and nothing else is ever made or called."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
from pathlib import Path

import numpy as np
import pytest

from relocalizer.restricted_pickle import DamagedPickleError, RefusedPickleError, load_restricted
from slam.benchmarks.array_files import read_array, read_arrays
from slam.benchmarks.benchmark_error import BenchmarkError


class Runs:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_dictionary_of_arrays_is_read(tmp_path: Path, protocol: int) -> None:
    data = {
        "image_paths": np.array(["a.jpg", None], dtype=object),
        "poses": [np.eye(4), None],
        "pair_infos": [((0, 1), np.float64(0.25), np.arange(8.0).reshape(4, 2))],
    }
    path = tmp_path / "scene.npz"
    path.write_bytes(pickle.dumps(data, protocol=protocol))
    found = read_arrays(path)
    assert found["image_paths"].tolist() == ["a.jpg", None]
    assert np.array_equal(found["poses"][0], np.eye(4))
    assert found["pair_infos"][0][:2] == ((0, 1), 0.25)
    assert np.array_equal(found["pair_infos"][0][2], np.arange(8.0).reshape(4, 2))


def test_an_archive_of_plain_and_of_object_arrays_is_read(tmp_path: Path) -> None:
    view = np.array({"intrinsic": np.eye(3), "pose": np.eye(4)}, dtype=object)
    np.savez(tmp_path / "meta.npz", plain=np.arange(6).reshape(2, 3), view=view)
    found = read_arrays(tmp_path / "meta.npz")
    assert np.array_equal(found["plain"], np.arange(6).reshape(2, 3))
    assert np.array_equal(found["view"].item()["intrinsic"], np.eye(3))


def test_an_array_of_lists_of_dictionaries_is_read(tmp_path: Path) -> None:
    pairs = np.empty(2, dtype=object)
    pairs[:] = [[{"query_path": "q", "db_path": "d", "query_idx": 0}], []]
    np.save(tmp_path / "pairs.npy", pairs, allow_pickle=True)
    assert read_array(tmp_path / "pairs.npy").tolist() == pairs.tolist()


@pytest.mark.parametrize("inside", ["bare", "object array"])
@pytest.mark.parametrize("what", [Runs("touch HERE"), subprocess.Popen, Path("x"), np.random.default_rng(0)])
def test_anything_else_is_refused_and_not_run(tmp_path: Path, what: object, inside: str) -> None:
    if isinstance(what, Runs):
        what.command = f"touch {tmp_path / 'ran'}"
    path = tmp_path / "list.npz"
    if inside == "bare":
        path.write_bytes(pickle.dumps({"pair_infos": [what]}))
    else:
        array = np.empty(1, dtype=object)
        array[0] = what
        np.savez(path, pairs=array)
    with pytest.raises(BenchmarkError, match="more than numbers, text and arrays"):
        read_arrays(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04 no archive",
        b"\x80\x04.",
        b"not a pickle",
        pickle.dumps([1, 2]),
        pickle.dumps({"a": np.zeros(100)})[:40],
        b"\x80\x04\x8c\x05numpy\x8c\x05dtype\x93\x8c\x01z\x85R.",
        b"\x80\x04\x8c\x05numpy\x8c\x07ndarray\x93K\x05\x85R.",
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "list.npz"
    path.write_bytes(data)
    with pytest.raises(BenchmarkError) as raised:
        read_arrays(path)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="cannot be read"):
        read_arrays(tmp_path / "none.npz")


@pytest.mark.parametrize("protocol", range(6))
def test_numbers_text_and_arrays_come_back(protocol: int) -> None:
    rows = [("scene", 3, np.arange(12, dtype=">f4").reshape(3, 4), np.asfortranarray(np.eye(3)), np.float64(0.5))]
    names = np.array([["a.jpg", "b"], ["c", "dd"]])
    found_rows, found_names = load_restricted(io.BytesIO(pickle.dumps([rows, names], protocol=protocol)))
    [found] = found_rows
    assert found[:2] == ("scene", 3)
    assert np.array_equal(found[2], rows[0][2])
    assert np.array_equal(found[3], np.eye(3))
    assert found[4] == 0.5
    assert found_names.tolist() == names.tolist()


class Built:
    """What `make` returns, made by calling `function` with `arguments`, and then given `state`."""

    def __init__(self, function, arguments, state=None) -> None:
        self.made = (function, arguments, state) if state is not None else (function, arguments)

    def __reduce__(self):
        return self.made


RECONSTRUCT = np.zeros(1).__reduce__()[0]
TYPE = np.dtype("f8")


@pytest.mark.parametrize(
    "hostile",
    [
        Built(os.getcwd, ()),
        Built(np.dtype, ("V8",)),
        Built(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1,), np.dtype("O"), False, b"12345678")),
        Built(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1,), TYPE, False, [object])),
        np.dtype("f8"),
        RECONSTRUCT,
    ],
    ids=["function", "raw type", "bytes as objects", "objects as numbers", "type", "bare function"],
)
def test_pickles_that_lie_about_arrays_are_refused(hostile: object) -> None:
    with pytest.raises(RefusedPickleError):
        load_restricted(io.BytesIO(pickle.dumps([hostile])))


def test_a_type_whose_state_says_that_numbers_are_objects_stays_one_of_numbers() -> None:
    version, order, *rest, _ = np.dtype("f8").__reduce__()[2]
    flags = 0x3F  # all that numpy knows, references to objects included
    kind = Built(np.dtype, ("f8", False, True), (version, order, *rest, flags))
    array = Built(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1,), kind, False, np.float64(0.5).tobytes()))
    [found] = load_restricted(io.BytesIO(pickle.dumps([array])))
    assert found.dtype == np.float64
    assert found.tolist() == [0.5]


def test_more_elements_than_bytes_is_damage() -> None:
    array = Built(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1 << 40,), TYPE, False, b"12345678"))
    with pytest.raises(DamagedPickleError):
        load_restricted(io.BytesIO(pickle.dumps([array])))
