"""Maps on disk: what is saved comes back, a save is never half done, and nothing on the disk is believed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
from map_samples import CAMERA, small_map

from relocalizer.errors import MapError, OutputError
from relocalizer.maps import map_format as map_folder
from relocalizer.maps.map_format import MANIFEST, JpegImages, jpeg_of
from relocalizer.maps.map_reader import load_map
from relocalizer.maps.map_writer import save_map
from relocalizer.maps.reference_map import Provenance, ReferenceMap, Session

TABLES = ("keyframes", "features", "observations", "landmarks", "edges", "frames")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_map(tmp_path / "map", small_map())
    return tmp_path / "map"


def arrays_of(reference_map: ReferenceMap) -> dict[str, np.ndarray]:
    tables = {name: getattr(reference_map, name) for name in TABLES}
    return {f"{name}.{f.name}": getattr(table, f.name) for name, table in tables.items() for f in fields(table)}


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- there and back -----------------------------------------------------------------------------------


def test_every_array_comes_back_as_it_was(folder):
    before, after = arrays_of(small_map()), arrays_of(load_map(folder))
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert array.tobytes() == after[name].tobytes(), name
        assert array.shape == after[name].shape, name


def test_provenance_and_cameras_come_back(folder):
    before, after = small_map(), load_map(folder)
    assert after.provenance.predictor == before.provenance.predictor
    assert after.provenance.features == before.provenance.features
    assert after.provenance.scale_source == ""
    assert after.cameras == before.cameras


def test_where_meters_come_from_comes_back(tmp_path):
    metric = Provenance(predictor="geometric", descriptor="vlad", units="meters", scale_source="2 m given")
    save_map(tmp_path / "map", small_map(provenance=metric))
    assert asdict(load_map(tmp_path / "map").provenance) == asdict(metric)


def two_parts(units: str = "meters", unanchored: tuple[int, ...] = (1,)) -> ReferenceMap:
    """Keyframes 0, 3 and 6 of segment 0; 9, which most frames hang off, of segment 1."""
    m = small_map(provenance=Provenance(predictor="geometric", descriptor="vlad", units=units, unanchored=unanchored))
    return replace(m, keyframes=replace(m.keyframes, segment=np.array([0, 0, 0, 1])))


def test_segments_that_are_not_metric_come_back(tmp_path):
    save_map(tmp_path / "map", two_parts())
    loaded = load_map(tmp_path / "map")
    assert loaded.provenance.unanchored == (1,)
    assert (loaded.units_of(0), loaded.units_of(1)) == ("meters", "map units")


@pytest.mark.parametrize(
    ("units", "unanchored"),
    [("meters", (2,)), ("map units", (1,)), ("meters", (1, 1)), ("meters", (0, 1)), ("feet", ())],
)
def test_units_that_cannot_be_are_refused(tmp_path, units, unanchored):
    with pytest.raises(ValueError, match=r"units|unanchored"):
        save_map(tmp_path / "map", two_parts(units, unanchored))


@pytest.mark.parametrize("listed", ["1", [True], [0.5], [-1], {}, [[1]]])
def test_a_list_of_segments_that_is_none_is_refused(tmp_path, listed):
    save_map(tmp_path / "map", two_parts())
    rewritten(tmp_path / "map", unanchored=listed)
    assert "unanchored" in refusal(tmp_path / "map")


def old_map(folder: Path, m: ReferenceMap) -> ReferenceMap:
    """As a version wrote it that called a whole map metric for one segment of it."""
    save_map(folder, m)
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["unanchored"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    rewritten(folder)
    return load_map(folder)


def test_of_a_metric_map_of_before_the_largest_segment_of_its_first_session_is_metric(tmp_path):
    m = two_parts()
    assert old_map(tmp_path / "keyframes", m).provenance.unanchored == (1,)
    busy = replace(m, frames=replace(m.frames, keyframe=np.array([0, 3, 9, 9, 9, 9, 9, 9])))
    assert old_map(tmp_path / "frames", busy).provenance.unanchored == (0,)
    later = replace(busy, sessions=(Session(0, 0), Session(9, 2)))  # the run that came later was not anchored
    assert old_map(tmp_path / "sessions", later).provenance.unanchored == (1,)


def test_of_a_map_of_before_in_map_units_or_of_one_part_nothing_is_doubted(tmp_path):
    assert old_map(tmp_path / "units", two_parts("map units", ())).provenance.unanchored == ()
    metric = small_map(provenance=Provenance(predictor="geometric", descriptor="vlad", units="meters"))
    assert old_map(tmp_path / "one", metric).provenance.unanchored == ()


def test_a_map_of_before_that_was_noted_does_not_say_where_its_meters_come_from(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["scale_source"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    rewritten(folder, units="meters")
    assert load_map(folder).provenance.scale_source == ""


def test_sessions_come_back(tmp_path):
    m = small_map(sessions=(Session(0, 0), Session(6, 4)))
    save_map(tmp_path / "map", m)
    loaded = load_map(tmp_path / "map")
    assert loaded.sessions == m.sessions
    assert loaded.session_of_keyframe.tolist() == [0, 0, 1, 1]
    assert loaded.session_of_frame.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_in_a_map_of_before_they_were_noted_a_session_begins_where_time_goes_back(tmp_path):
    m = small_map()
    times = np.array([0, 10, 5, 15]) * 10**9
    save_map(tmp_path / "map", replace(m, keyframes=replace(m.keyframes, timestamps_ns=times)))
    manifest = json.loads((tmp_path / "map" / MANIFEST).read_text())
    del manifest["sessions"]
    (tmp_path / "map" / MANIFEST).write_text(json.dumps(manifest))
    rewritten(tmp_path / "map")
    assert load_map(tmp_path / "map").sessions == (Session(0, 0), Session(6, 4))


@pytest.mark.parametrize(
    "sessions",
    [
        [],
        [[3, 0]],
        [[0, 0], [6, 9]],
        [[0, 0], [6, 4], [3, 5]],
        [[0, 0], [6]],
        [[0, 0.5]],
        [[0, True]],
        {},
        "0",
        [[0, -1]],
    ],
)
def test_sessions_that_cannot_be_are_refused(folder, sessions):
    rewritten(folder, sessions=sessions)
    assert "sessions" in refusal(folder)


def test_a_loaded_map_is_saved_with_the_same_bytes(folder, tmp_path):
    save_map(tmp_path / "again", load_map(folder))
    assert files_of(folder) == files_of(tmp_path / "again")


def test_images_come_back_nearly_as_they_were(tmp_path):
    smooth = np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None] * np.ones((48, 1, 3), np.uint8)
    save_map(tmp_path / "map", small_map(image=lambda row: smooth))
    loaded = load_map(tmp_path / "map")
    assert np.abs(loaded.image(2).astype(int) - smooth).max() < 12


def test_a_run_folder_stands_for_its_map(folder):
    assert len(load_map(folder.parent).keyframes) == len(small_map().keyframes)


def test_a_map_without_landmarks_edges_and_frames_can_be_saved(tmp_path):
    m = small_map(keyframes=1, landmarks=0)
    save_map(tmp_path / "map", m)
    assert len(load_map(tmp_path / "map").landmarks) == 0


def test_saving_replaces_the_map_that_is_there_and_leaves_nothing_beside_it(folder):
    save_map(folder, small_map(keyframes=7))
    assert len(load_map(folder).keyframes) == 7
    assert [p.name for p in folder.parent.iterdir()] == ["map"]


def test_a_map_can_be_saved_over_the_one_it_was_loaded_from(folder):
    before = files_of(folder)
    save_map(folder, load_map(folder))
    assert files_of(folder) == before


def test_a_folder_that_is_no_map_is_not_replaced(tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "to_mother.txt").write_text("dear")
    with pytest.raises(OutputError, match="is not a map; choose another name or remove it"):
        save_map(tmp_path / "letters", small_map())
    assert (tmp_path / "letters" / "to_mother.txt").read_text() == "dear"


def test_a_map_that_breaks_a_rule_is_not_saved(tmp_path):
    m = small_map()
    turned = m.keyframes.rotations.copy()
    turned[1] *= 1.1
    with pytest.raises(ValueError, match=r"keyframes\.rotations: not rotations"):
        save_map(tmp_path / "map", replace(m, keyframes=replace(m.keyframes, rotations=turned)))
    assert not (tmp_path / "map").exists()


# --- a save that is cut off ---------------------------------------------------------------------------


def test_a_map_set_aside_by_a_save_that_was_cut_off_is_still_found(folder):
    folder.rename(folder.with_name(".map.replaced"))
    assert len(load_map(folder).keyframes) == 4


def test_the_next_save_clears_away_what_a_cut_off_one_left(folder):
    folder.rename(folder.with_name(".map.replaced"))
    (folder.parent / ".map.saving").mkdir()
    (folder.parent / ".map.saving" / "keyframes.npz").write_bytes(b"half")
    save_map(folder, small_map(keyframes=5))
    assert [p.name for p in folder.parent.iterdir()] == ["map"]
    assert len(load_map(folder).keyframes) == 5


def test_a_refusing_disk_leaves_the_old_map(folder, monkeypatch):
    def full(path: Path, data: bytes) -> dict[str, object]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("relocalizer.maps.map_writer._write_file", full)
    with pytest.raises(OutputError, match=r"cannot be written \(No space left on device\)"):
        save_map(folder, small_map(keyframes=9))
    assert len(load_map(folder).keyframes) == 4
    assert [p.name for p in folder.parent.iterdir()] == ["map"]


class Broken(Exception):
    """Anything else that goes wrong."""


@pytest.mark.parametrize(
    "error", [MapError("gone"), OutputError("gone"), KeyboardInterrupt(), Broken(), ValueError("x")]
)
@pytest.mark.parametrize("there", [True, False])
def test_whatever_breaks_a_save_off_leaves_nothing_beside_and_the_old_map(tmp_path, error, there):
    """An image that is gone or not to be read back, Ctrl-C: none of them is the disk's refusal."""

    def image(row):
        if row == 2:
            raise error
        return np.zeros((48, 64, 3), np.uint8)

    if there:
        save_map(tmp_path / "map", small_map(keyframes=3))
    with pytest.raises(type(error)):
        save_map(tmp_path / "map", small_map(image=image))
    assert [p.name for p in tmp_path.iterdir()] == ["map"] * there
    assert not there or len(load_map(tmp_path / "map").keyframes) == 3


@pytest.mark.parametrize("step", ["saving", "replaced"])
def test_ctrl_c_between_the_last_steps_leaves_a_map_and_nothing_half_done(folder, monkeypatch, step):
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if target.name == {"saving": "map", "replaced": ".map.replaced"}[step]:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_map(folder, small_map(keyframes=9))
    monkeypatch.undo()
    assert len(load_map(folder).keyframes) == 4
    assert not (folder.parent / ".map.saving").exists()


def test_a_refused_last_step_puts_the_old_map_back_in_its_place(folder, monkeypatch):
    rename = Path.rename

    def refusing(path: Path, target: Path) -> Path:
        if path.name == ".map.saving":
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refusing)
    with pytest.raises(OutputError, match="Input/output error"):
        save_map(folder, small_map(keyframes=9))
    assert [p.name for p in folder.parent.iterdir()] == ["map"]
    assert len(load_map(folder).keyframes) == 4


KILL_FIFTY_SAVES = """
import os, random, signal, sys, time
from pathlib import Path
from map_samples import small_map
from relocalizer.maps.map_reader import load_map
from relocalizer.maps.map_writer import save_map

folder, maps, moments = Path(sys.argv[1]), [small_map(keyframes=3 + k) for k in range(4)], random.Random(0)
for trial in range(50):
    saver = os.fork()
    if saver == 0:
        while True:
            for reference_map in maps:
                save_map(folder, reference_map)
    time.sleep(moments.uniform(0.001, 0.1))
    os.kill(saver, signal.SIGKILL)
    os.waitpid(saver, 0)
    assert 3 <= len(load_map(folder).keyframes) <= 6
    print(trial, flush=True)
"""


def test_a_save_killed_at_any_of_fifty_moments_leaves_a_readable_map(folder):
    """A killed process leaves files as they are at that moment; what a power cut adds is what fsync is for."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILL_FIFTY_SAVES, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.split() == [str(trial) for trial in range(50)]


# --- what must not be believed ------------------------------------------------------------------------


def rewritten(folder: Path, **changes: object) -> None:
    """Change the manifest and make its checksum fit, as somebody with bad intentions would."""
    manifest = json.loads((folder / MANIFEST).read_text()) | changes
    manifest["checksum"] = map_folder.checksum_of(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def relisted(folder: Path, name: str) -> None:
    """Make the manifest list a changed file as it is now."""
    import hashlib

    data = (folder / name).read_bytes()
    files = json.loads((folder / MANIFEST).read_text())["files"]
    rewritten(folder, files=files | {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}})


def with_array(folder: Path, table: str, column: str, array: np.ndarray) -> None:
    with np.load(folder / f"{table}.npz", allow_pickle=False) as old:
        arrays = {name: old[name] for name in old.files} | {column: array}
    np.savez_compressed(folder / f"{table}.npz", allow_pickle=True, **arrays)
    relisted(folder, f"{table}.npz")


def refusal(folder: Path) -> str:
    with pytest.raises(MapError) as caught:
        load_map(folder)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_a_folder_without_a_manifest_is_named_for_what_it_is(tmp_path):
    assert "not a map (manifest.json is missing); give the map folder that slam run wrote" in refusal(tmp_path)


def test_a_map_folder_that_is_not_there_is_said_to_be_missing(tmp_path):
    assert refusal(tmp_path / "maps" / "desk") == f"{tmp_path}/maps/desk: no such map or run folder"


def test_a_file_in_the_place_of_a_map_is_said_to_be_one(folder):
    said = refusal(folder / MANIFEST)
    assert said.endswith("manifest.json: a file; expected the map folder or the run folder that slam run wrote")


def test_a_run_folder_without_a_map_is_distinguished_from_any_other(tmp_path):
    (tmp_path / "report.json").touch()
    assert "a run that left no map, as one does that only localized or ended before" in refusal(tmp_path)


def test_a_newer_version_is_refused_with_what_to_do(folder):
    rewritten(folder, version=2)
    assert "a map of version 2, this program reads up to 1; update reloc3r-slam" in refusal(folder)


@pytest.mark.parametrize("version", [0, -1, "1", True, None, 1.0])
def test_a_version_that_is_no_version_is_refused(folder, version):
    rewritten(folder, version=version)
    assert "the map is damaged (version is" in refusal(folder)


def test_a_manifest_changed_by_hand_is_refused(folder):
    text = (folder / MANIFEST).read_text().replace('"fx": 60.0', '"fx": 61.0')
    (folder / MANIFEST).write_text(text)
    assert "does not match its checksum" in refusal(folder)


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "/etc/passwd", "images/../../x.jpg", "images/a.jpg", "C:\\x.npz", "keyframes.npz\0"],
)
def test_names_that_lead_out_of_the_map_are_refused(folder, name):
    files = json.loads((folder / MANIFEST).read_text())["files"]
    rewritten(folder, files=files | {name: {"bytes": 1, "sha256": "0" * 64}})
    assert "is not a file of a map" in refusal(folder)


def test_a_link_in_the_place_of_a_file_is_refused(folder, tmp_path):
    outside = tmp_path / "outside.npz"
    (folder / "edges.npz").rename(outside)
    (folder / "edges.npz").symlink_to(outside)
    assert "edges.npz is a link" in refusal(folder)


def test_a_link_in_the_place_of_the_image_folder_is_refused(folder, tmp_path):
    (folder / "images").rename(tmp_path / "elsewhere")
    (folder / "images").symlink_to(tmp_path / "elsewhere")
    assert "images: the map is damaged (it is not a folder)" in refusal(folder)


def test_a_pipe_in_the_place_of_a_file_does_not_block(folder):
    (folder / "frames.npz").unlink()
    os.mkfifo(folder / "frames.npz")
    assert "frames.npz is not a file" in refusal(folder)


def test_a_missing_file_is_named(folder):
    (folder / "images" / "000003.jpg").unlink()
    assert "images/000003.jpg is missing" in refusal(folder)


@pytest.mark.parametrize("count", ["keyframes", "features", "landmarks", "descriptor_size"])
def test_a_huge_count_is_refused_before_anything_is_allocated(folder, count):
    counts = json.loads((folder / MANIFEST).read_text())["counts"]
    rewritten(folder, counts=counts | {count: 1 << 39})
    assert "bytes of arrays" in refusal(folder)


def test_a_zip_that_unpacks_to_far_more_than_it_weighs_is_refused(folder):
    count = 400_000_000
    with zipfile.ZipFile(folder / "frames.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("indices", "timestamps_ns", "keyframe", "rotations", "translations"):
            archive.writestr(f"{name}.npy", bytes(1 << 20))
    relisted(folder, "frames.npz")
    counts = json.loads((folder / MANIFEST).read_text())["counts"]
    rewritten(folder, counts=counts | {"frames": count})
    assert "bytes of arrays" in refusal(folder)


def test_a_member_larger_than_the_manifest_says_is_refused(folder):
    with zipfile.ZipFile(folder / "edges.npz", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.npy", bytes(1 << 24))
    relisted(folder, "edges.npz")
    assert "expected the arrays i, j," in refusal(folder)


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_table_packed_in_another_way_is_refused(folder, packing):
    with np.load(folder / "edges.npz", allow_pickle=False) as table:
        arrays = {name: table[name] for name in table.files}
    with zipfile.ZipFile(folder / "edges.npz", "w", packing) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array)
    relisted(folder, "edges.npz")
    assert "is packed in a way a map never is" in refusal(folder)


def test_an_image_of_many_gigabytes_is_refused_before_it_is_read(folder):
    name = "images/000003.jpg"
    os.truncate(folder / name, 1 << 36)  # a hole: it takes no room on the disk and minutes to read
    files = json.loads((folder / MANIFEST).read_text())["files"]
    rewritten(folder, files=files | {name: {"bytes": 1 << 36, "sha256": "0" * 64}})
    assert "at most are read" in refusal(folder)


def test_objects_in_an_array_are_refused_and_never_unpickled(folder, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    with_array(folder, "edges", "inliers", np.array([Evil(), Evil(), Evil()], dtype=object))
    refusal(folder)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("table", "column", "array", "what"),
    [
        ("keyframes", "scales", np.ones(5), "expected shape (4,), got (5,)"),
        ("keyframes", "scales", np.ones((2, 2)), r"expected shape (4,), got (2, 2)"),
        ("keyframes", "scales", np.ones(4, np.int64), "expected type <f8, got <i8"),
        ("keyframes", "scales", np.zeros(4), "scales: expected positive numbers"),
        ("keyframes", "ids", np.array([3, 0, 6, 9]), "keyframes.ids: expected 0 or more, ascending"),
        ("keyframes", "ids", np.array([0, 3, 3, 9]), "images/000006.jpg belongs to no keyframe"),
        ("keyframes", "camera", np.array([0, 0, 1, 0]), "names a camera that is not there"),
        ("keyframes", "translations", np.full((4, 3), np.nan), "NaN"),
        ("keyframes", "rotations", np.full((4, 3, 3), np.inf), "keyframes.rotations: hold NaN or infinity"),
        ("keyframes", "rotations", np.full((4, 3, 3), 1e308), "keyframes.rotations: not rotations"),
        ("keyframes", "descriptors", np.zeros((4, 32), np.float32), "expected unit rows"),
        ("features", "landmark", np.full(48, 1 << 60), "names a track that cannot be there"),
        ("features", "offsets", np.array([0, 60, 24, 36, 48]), "features.offsets"),
        ("observations", "landmark", np.zeros(48, np.int64), "sees one track twice"),
        ("landmarks", "anchor", np.full(12, 7), "names a keyframe that is not there"),
        ("edges", "j", np.array([0, 3, 6]), "edges: expected i < j"),
        ("frames", "keyframe", np.full(8, 2), "names a keyframe that is not there"),
    ],
)
def test_arrays_that_would_mislead_are_refused(folder, table, column, array, what):
    with_array(folder, table, column, array)
    assert what in refusal(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"width": 10**9},
        {"fx": float("1e300")},
        {"fx": True},
        {"model": "fisheye"},
        {"distortion": "none"},
        {"width": -4},
    ],
)
def test_cameras_that_cannot_be_are_refused(folder, change):
    camera = json.loads((folder / MANIFEST).read_text())["cameras"][0]
    rewritten(folder, cameras=[camera | change])
    assert "cameras" in refusal(folder)


def test_an_image_of_another_size_is_refused_before_it_is_decoded():
    huge = bytes.fromhex("ffd8ffc00011080fa0138803012200021101031101ffd9")
    with pytest.raises(MapError, match="expected 64x48 pixels, got 5000x4000"):
        JpegImages(lambda row: huge, [(CAMERA.width, CAMERA.height)])(0)


def test_an_image_that_changed_after_loading_is_refused(folder):
    loaded = load_map(folder)
    (folder / "images" / "000003.jpg").write_bytes(jpeg_of(loaded, 0))
    with pytest.raises(MapError, match="does not match its checksum"):
        loaded.image(1)


def test_two_hundred_damaged_maps_are_each_refused_with_one_sentence(folder, rng):
    """Bits flipped, ends cut off, bytes added, and blocks of zeros, in every kind of file."""
    names = sorted(files_of(folder))
    for trial in range(200):
        name = names[int(rng.integers(len(names)))] if trial % 3 else MANIFEST
        path = folder / name
        good = path.read_bytes()
        bad = bytearray(good)
        match trial % 4:
            case 0:
                bad[int(rng.integers(len(bad)))] ^= 1 << int(rng.integers(8))
            case 1:
                bad = bad[: int(rng.integers(len(bad)))]
            case 2:
                bad += rng.bytes(int(rng.integers(1, 50)))
            case 3:
                start = int(rng.integers(len(bad)))
                bad[start : start + 40] = bytes(len(bad[start : start + 40]))
        path.write_bytes(bytes(bad))
        if json_equal(name, good, bytes(bad)):
            path.write_bytes(good)
            continue
        assert refusal(folder), (trial, name)
        path.write_bytes(good)
    assert len(load_map(folder).keyframes) == 4


def json_equal(name: str, good: bytes, bad: bytes) -> bool:
    """Whether a change of the manifest changed white space only."""
    if name != MANIFEST:
        return False
    try:
        return bool(json.loads(good) == json.loads(bad))
    except ValueError:
        return False


def test_two_hundred_damaged_tables_with_fitting_checksums_never_crash(folder, rng):
    """Behind the checksums every byte of a table may lie: what comes is a map that keeps the rules, or a MapError."""
    good = files_of(folder)
    refused = 0
    for trial in range(200):
        name = f"{TABLES[trial % len(TABLES)]}.npz"
        with np.load(folder / name, allow_pickle=False) as table:
            arrays = {column: np.array(table[column]) for column in table.files}
        column = sorted(arrays)[int(rng.integers(len(arrays)))]
        raw = bytearray(arrays[column].tobytes())
        for _ in range(3):
            raw[int(rng.integers(len(raw)))] ^= 1 << int(rng.integers(8))
        arrays[column] = np.frombuffer(bytes(raw), arrays[column].dtype).reshape(arrays[column].shape)
        np.savez_compressed(folder / name, **arrays)
        relisted(folder, name)
        try:
            assert np.isfinite(load_map(folder).points_world).all()
        except MapError:
            refused += 1
        for restored in (name, MANIFEST):
            (folder / restored).write_bytes(good[restored])
    assert refused > 50
