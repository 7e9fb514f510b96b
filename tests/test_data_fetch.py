"""Downloads of data sets from a server of the test: resumed, verified, unpacked, and explained when they fail."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from slam.benchmarks.benchmark_error import BenchmarkError
from slam.benchmarks.data_catalog import CATALOG, DataSet, RemoteFile
from slam.benchmarks.data_fetch import LOCK, fetch, unpack
from slam.benchmarks.suites import SUITES

CONTENT = bytes(range(256)) * 400


class Server:
    """Serves one file; `breaks_after` ends an answer early, `knows_ranges` allows to resume in the middle."""

    def __init__(self) -> None:
        self.content, self.breaks_after, self.knows_ranges = CONTENT, 0, True
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.headers.get("Range") or "all")
                found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
                start = int(found[1]) if found and server.knows_ranges else 0
                if start and start >= len(server.content):
                    self.send_error(416)
                    return
                rest = server.content[start:]
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(rest)))
                self.end_headers()
                self.wfile.write(rest[: server.breaks_after] if server.breaks_after else rest)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/file.bin"


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def one_file(url: str, size_bytes: int = 0, sha256: str = "") -> DataSet:
    file = RemoteFile("sub/file.bin", url, size_bytes, sha256)
    return DataSet(title="A file", license="CC0", size="0.1 MB", layout=("sub/file.bin",), files=(file,))


def test_a_file_is_fetched_after_its_license_is_said_and_a_lock_remembers_it(tmp_path, server):
    said: list[str] = []
    data = one_file(server.address, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    [path] = fetch(data, tmp_path, announce=lambda line: said.append(f"{line} {len(server.asked)}"))
    assert said == ["A file (0.1 MB); license: CC0 0"]
    assert path.read_bytes() == CONTENT
    lock = json.loads((tmp_path / LOCK).read_text())["sub/file.bin"]
    assert lock == {
        "url": server.address, "size_bytes": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()
    }  # fmt: skip
    fetch(data, tmp_path, announce=said.append)
    assert server.asked == ["all"]


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_download_that_broke_off_is_resumed(tmp_path, server, knows_ranges):
    server.breaks_after, server.knows_ranges = 30_000, knows_ranges
    data = one_file(server.address)
    with pytest.raises(BenchmarkError, match=r"the same command resumes"):
        fetch(data, tmp_path, announce=lambda line: None)
    assert not (tmp_path / "sub/file.bin").exists()
    assert (tmp_path / "sub/file.bin.part").stat().st_size == 30_000
    server.breaks_after = 0
    [path] = fetch(data, tmp_path, announce=lambda line: None)
    assert path.read_bytes() == CONTENT
    assert server.asked == ["all", "bytes=30000-"]
    assert not (tmp_path / "sub/file.bin.part").exists()


def test_a_download_that_was_complete_but_not_renamed_is_taken(tmp_path, server):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/file.bin.part").write_bytes(CONTENT)
    [path] = fetch(one_file(server.address), tmp_path, announce=lambda line: None)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("size_bytes", "sha256", "sentence"),
    [(5, "", "expected 5 as published"), (0, "0" * 64, "expected 0000000000000000... as published")],
)
def test_a_file_that_is_not_the_published_one_is_refused(tmp_path, server, size_bytes, sha256, sentence):
    with pytest.raises(BenchmarkError, match=re.escape(sentence)):
        fetch(one_file(server.address, size_bytes, sha256), tmp_path, announce=lambda line: None)
    assert not (tmp_path / LOCK).exists()


def test_a_file_that_changed_since_the_first_download_is_refused(tmp_path, server):
    data = one_file(server.address)
    [path] = fetch(data, tmp_path, announce=lambda line: None)
    path.unlink()
    server.content = CONTENT[:-1] + b"x"
    with pytest.raises(BenchmarkError, match=r"of the first download, in fetched\.json"):
        fetch(data, tmp_path, announce=lambda line: None)


def test_without_a_connection_one_line_says_what_to_do(tmp_path):
    with pytest.raises(BenchmarkError, match=r"no connection .*put the file at") as raised:
        fetch(one_file("http://127.0.0.1:1/file.bin"), tmp_path, announce=lambda line: None)
    assert "\n" not in str(raised.value)


def test_an_answer_that_is_an_error_is_one_line(tmp_path, server):
    server.content = b""
    (tmp_path / "sub").mkdir()
    with pytest.raises(BenchmarkError, match="404"):
        fetch(one_file(_missing(server)), tmp_path, announce=lambda line: None)


def _missing(server: Server) -> str:
    handler = server.http.RequestHandlerClass
    handler.do_GET = lambda self: self.send_error(404)  # type: ignore[attr-defined]
    return server.address


def test_what_has_no_address_is_described(tmp_path, slam_command):
    ended = slam_command("data", "fetch", "kitti", "--out", tmp_path)
    assert ended.code == 2
    assert "KITTI odometry: no plain address" in ended.complaint
    assert "CC BY-NC-SA" in ended.complaint
    described = slam_command("data", "describe", "kitti")
    assert described.code == 0
    assert "poses/NN.txt" in described.out
    assert slam_command("data", "describe", "none").code == 2


def test_every_suite_is_described_and_every_address_is_complete():
    assert set(SUITES) <= set(CATALOG)
    for name, data in CATALOG.items():
        assert data.license, name
        assert data.layout, name
        assert data.files or data.source, name
        for file in data.files:
            assert re.fullmatch(r"https?://[\w.-]+/\S+", file.url)
            assert not file.sha256 or re.fullmatch(r"[0-9a-f]{64}", file.sha256)
            assert not Path(file.name).is_absolute()


def test_archives_are_unpacked_with_those_in_them(tmp_path):
    (tmp_path / "frame.txt").write_text("pose")
    with zipfile.ZipFile(tmp_path / "seq-01.zip", "w") as archive:
        archive.write(tmp_path / "frame.txt", "seq-01/frame.txt")
    with zipfile.ZipFile(tmp_path / "chess.zip", "w") as archive:
        archive.write(tmp_path / "seq-01.zip", "chess/seq-01.zip")
    with tarfile.open(tmp_path / "desk.tgz", "w:gz") as archive:
        archive.add(tmp_path / "frame.txt", "desk/frame.txt")
    unpack(tmp_path / "chess.zip")
    unpack(tmp_path / "desk.tgz")
    assert (tmp_path / "chess/seq-01/frame.txt").read_text() == "pose"
    assert (tmp_path / "desk/frame.txt").read_text() == "pose"


def test_an_archive_that_leads_out_of_its_folder_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "frame.txt").write_text("pose")
    with tarfile.open(tmp_path / "in/desk.tgz", "w:gz") as archive:
        archive.add(tmp_path / "frame.txt", "../outside.txt")
    with pytest.raises(BenchmarkError, match="cannot be unpacked"):
        unpack(tmp_path / "in/desk.tgz")
    assert not (tmp_path / "outside.txt").exists()
    (tmp_path / "in/x.zip").write_bytes(b"no archive")
    with pytest.raises(BenchmarkError, match="cannot be unpacked"):
        unpack(tmp_path / "in/x.zip")
