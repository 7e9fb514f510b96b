"""`slam serve`: answers, refusals and load, on images of the bundled room."""

from __future__ import annotations

import http.client
import json
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from map_samples import in_two_segments, small_map
from scipy.spatial.transform import RigidTransform

from relocalizer.errors import UserError
from relocalizer.maps.image_matching import PosedImage
from relocalizer.maps.map_from_poses import map_from_poses
from relocalizer.maps.map_writer import save_map
from relocalizer.maps.reference_map import ReferenceMap
from relocalizer.predictors.geometric_predictor import GeometricPredictor
from slam.config.schema import InputConfig, SlamConfig
from slam.evaluation.trajectory_files import read_tum
from slam.input.open_source import open_source

pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("python_multipart", reason="the extra serve is not installed")

from starlette.testclient import TestClient

from slam.serve.app import LOOPBACK, MOST_WAITING, MapService, make_app
from slam.serve.map_outline import map_outline
from slam.serve.server import bound_socket, make_service
from slam.serve.uploads import MAX_BODY_BYTES, Upload
from slam.serve.worker import LocalizationWorker

STEP, IMAGES = 6, 8
PNG = {"content-type": "image/png"}


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


def png_header(width: int, height: int) -> bytes:
    """A PNG file of a few bytes that says it has this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")


@dataclass(frozen=True)
class Room:
    """A map of every second image of the room, all of the images as PNG, and where they were taken."""

    map: ReferenceMap
    images: list[bytes]
    positions: np.ndarray


@pytest.fixture(scope="module")
def room(root: Path) -> Room:
    sequence = root / "sequences" / "room_loop"
    truth = read_tum(sequence / "groundtruth.txt")
    frames = list(open_source(str(sequence), config=InputConfig(prefetch_frames=0), stride=STEP, max_frames=IMAGES))
    rows = [int(np.abs(truth.timestamps_ns - frame.timestamp_ns).argmin()) for frame in frames]
    posed = [
        PosedImage(
            name=f"{k}.png",
            read=lambda frame=frame: frame.image,
            camera=frame.camera,
            world_from_cam=RigidTransform.from_matrix(truth.world_from_cam[row]),
        )
        for k, (frame, row) in enumerate(zip(frames, rows, strict=True))
        if k % 2 == 0
    ]
    settings = SlamConfig()
    predictor = GeometricPredictor(settings.features, settings.predictor.geometric)
    images = [png(cv2.cvtColor(frame.image, cv2.COLOR_RGB2BGR)) for frame in frames]
    return Room(map_from_poses(posed, predictor), images, truth.positions[rows])


@pytest.fixture(scope="module")
def client(room: Room) -> Iterator[TestClient]:
    settings = SlamConfig()
    predictor = GeometricPredictor(settings.features, settings.predictor.geometric)
    worker, service = make_service(room.map, predictor, settings, name="room", camera=None)
    with closing(worker):
        yield TestClient(make_app(service, hosts=("testserver",)))


# --- answers -------------------------------------------------------------------------------------------


def test_an_image_of_the_place_is_answered_by_its_pose(client: TestClient, room: Room) -> None:
    response = client.post("/locate", content=room.images[1], headers=PNG)
    answer = response.json()
    assert response.status_code == 200
    assert answer["found"]
    assert np.linalg.norm(np.subtract(answer["position"], room.positions[1])) < 0.02
    assert answer["confidence"] > 0.9
    assert answer["confidence_is_of_error_under"]["units"] == "meters"
    assert answer["camera"].startswith("640x480, camera of the map")


def test_a_form_with_a_camera_is_the_same(client: TestClient, room: Room, root: Path) -> None:
    calibration = (root / "sequences" / "room_loop" / "camera.yaml").read_bytes()
    files = {"image": ("any.png", room.images[1]), "camera": ("camera.yaml", calibration)}
    answer = client.post("/locate", files=files).json()
    assert answer["found"]
    assert answer["camera"] == "640x480, camera of camera"
    assert np.linalg.norm(np.subtract(answer["position"], room.positions[1])) < 0.02


def test_an_empty_camera_of_a_browser_is_none(client: TestClient, room: Room) -> None:
    answer = client.post("/locate", files={"image": ("a.png", room.images[1]), "camera": ("", b"")}).json()
    assert answer["camera"].startswith("640x480, camera of the map")


def test_an_image_of_another_place_is_an_answer_too(client: TestClient) -> None:
    response = client.post("/locate", content=png(np.full((480, 640, 3), 127, np.uint8)), headers=PNG)
    answer = response.json()
    assert response.status_code == 200
    assert (answer["found"], sorted(answer)) == (False, ["camera", "found", "reason"])
    assert answer["reason"]


def test_health_says_what_is_served(client: TestClient, room: Room) -> None:
    answer = client.get("/healthz").json()
    assert (answer["status"], answer["map"], answer["predictor"]) == ("ok", "room", "geometric")
    assert answer["keyframes"] == len(room.map.keyframes)
    assert answer["waiting"] == 0


def test_the_page_needs_nothing_from_elsewhere(client: TestClient) -> None:
    response = client.get("/")
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", response.text)
    assert "[hidden] { display: none; }" in response.text  # also where another rule has a display, as of the image


def test_the_outline_is_the_map_from_above(client: TestClient, room: Room) -> None:
    [segment] = client.get("/map").json()["segments"]
    right, ahead = np.array(segment["axes"])
    assert abs(right @ ahead) < 1e-3
    up = np.cross(right, ahead)
    assert up @ -room.map.keyframes.rotations[0][:, 1] > 0.9
    assert len(segment["keyframes"]) == len(room.map.keyframes)
    assert np.all(np.array(segment["low"]) <= np.min(segment["keyframes"], axis=0))


def test_each_segment_has_an_outline_of_its_own() -> None:
    segments = map_outline(in_two_segments(small_map(), 2.0), "two")["segments"]
    assert [(s["segment"], len(s["keyframes"])) for s in segments] == [(0, 2), (1, 2)]


# --- refusals ------------------------------------------------------------------------------------------

IMAGE = png(np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8))
JPEG = cv2.imencode(".jpg", np.full((480, 640, 3), 90, np.uint8))[1].tobytes()
CAMERA = "model: pinhole\nwidth: 640\nheight: 480\nfx: 465\nfy: 465\ncx: 319.5\ncy: 239.5\n"
BOMB = "a: &a [x, x]\n" + "\n".join(f"{b}: &{b} [*{a}, *{a}]" for a, b in pairwise("abcdefghijklmnopqrstuvwxyz"))


def body(data: bytes, kind: str = "image/png", **headers: str) -> dict[str, Any]:
    return {"content": data, "headers": {"content-type": kind, **headers}}


def form(camera: str | bytes, image: bytes = IMAGE) -> dict[str, Any]:
    return {"files": {"image": ("a.png", image), "camera": ("camera.yaml", camera)}}


def multipart(text: bytes, boundary: str = "b") -> dict[str, Any]:
    return body(text, f"multipart/form-data; boundary={boundary}")


PART = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
REFUSALS: dict[str, tuple[dict[str, Any], int, str]] = {
    # not images
    "nothing": (body(b""), 400, "the image is empty"),
    "text": (body(b"hello"), 422, "not an image that can be decoded"),
    "zeros": (body(b"\0" * 5000), 422, "not an image that can be decoded"),
    "noise": (body(np.random.default_rng(1).bytes(5000)), 422, "not an image that can be decoded"),
    "html": (body(b"<html><body>no</body></html>", "image/jpeg"), 422, "not an image that can be decoded"),
    "pdf": (body(b"%PDF-1.7\n" + b"x" * 500), 422, "not an image that can be decoded"),
    "zip": (body(b"PK\x03\x04" + b"x" * 500), 422, "not an image that can be decoded"),
    "svg": (body(b'<svg xmlns="http://www.w3.org/2000/svg"/>', "image/svg+xml"), 422, "not an image that can be"),
    "a link to large files": (
        body(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"), 422, "image: ",
    ),
    # cut off and damaged
    "half a PNG": (body(IMAGE[: len(IMAGE) // 2]), 422, "the image is cut off"),
    "half a JPEG": (body(JPEG[: len(JPEG) // 2], "image/jpeg"), 422, "the image is cut off"),
    "the start of a JPEG": (body(b"\xff\xd8\xff\xe0", "image/jpeg"), 422, "the image is cut off"),
    "the start of a PNG": (body(b"\x89PNG\r\n\x1a\n"), 422, "the image is cut off"),
    "half a HEIC": (body(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 99, "image/heic"), 422, "image: "),
    # too large, too small
    "more bytes than allowed": (body(b"\0" * (MAX_BODY_BYTES + 1)), 413, "larger than 32 MiB"),
    "more bytes than it says": (body(b"\0" * (MAX_BODY_BYTES + 1), **{"content-length": "10"}), 413, "larger than"),
    "a small file of a huge image": (body(png_header(30000, 30000)), 413, "30000x30000 pixels, of at most 50 million"),
    "an endless line": (body(png_header(2**31 - 1, 1)), 413, "pixels, of at most 50 million"),
    "one pixel": (form(CAMERA, png(np.zeros((1, 1, 3), np.uint8))), 422, "1x1 pixels, too small"),
    "a thumbnail": (form(CAMERA, png(np.zeros((12, 16, 3), np.uint8))), 422, "16x12 pixels, too small"),
    # another camera
    "another shape than the map's": (body(png(np.zeros((480, 480, 3), np.uint8))), 422, "have another shape"),
    "on its side": (body(png(np.zeros((640, 480, 3), np.uint8))), 422, "the map's cameras have another shape"),
    "the camera of another image": (form(CAMERA.replace("640", "480")), 422, "these are 640x480"),
    "a camera that is no text": (form(b"\xff\xfe\0\x01"), 422, "camera: not a text file"),
    "a camera that is no calibration": (form("hello"), 422, "camera: expected lines such as"),
    "a camera that is an image": (form(JPEG), 422, "camera: not a text file"),
    "a camera without a focal length": (form(CAMERA.replace("fx: 465\n", "")), 422, "missing fx"),
    "a focal length of a word": (form(CAMERA.replace("465", "wide")), 422, "fx: expected a number, got 'wide'"),
    "a negative focal length": (form(CAMERA.replace("465", "-465")), 422, "fx, fy must be positive"),
    "an infinite focal length": (form(CAMERA.replace("465", "1e400")), 422, "finite"),
    "an implausible focal length": (form(CAMERA.replace("465", "1")), 422, "camera: "),
    "an unknown lens": (form(CAMERA.replace("pinhole", "magic")), 422, "model must be pinhole, radtan or fisheye"),
    "too many coefficients": (form(CAMERA + "distortion: [1, 2, 3]\n"), 422, "camera: "),
    "a camera that grows": (form(BOMB + "\nfx: *z\n"), 422, "has no references such as *name"),
    "a camera nested deeply": (form("[" * 3_000), 422, "nested too deeply"),
    "a camera of XML that grows": (
        form('<?xml version="1.0"?><!DOCTYPE z [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><z>&b;</z>'),
        422, "camera: XML of another program",
    ),
    "a large camera": (form(CAMERA + "#" * 70_000), 413, "camera: larger than 64 KiB"),
    "an empty matrix": (form("camera_matrix: []\n"), 422, "camera matrix: expected 3x3 numbers"),
    # not what a request looks like
    "a form as browsers send text": (body(b"image=a.png", "application/x-www-form-urlencoded"), 415, "send the image"),
    "JSON": (body(b'{"image": "AAAA"}', "application/json"), 415, "Content-Type application/json: send the image"),
    "no content type": ({"content": IMAGE}, 415, "Content-Type missing: send the image as"),
    "compressed": (body(IMAGE, **{"content-encoding": "gzip"}), 415, "send the request without compression"),
    "a form without a boundary": (body(b"x", "multipart/form-data"), 400, "the form cannot be read: Missing boundary"),
    "a form with another boundary": (multipart(PART + IMAGE + b"\r\n--b--\r\n", "c"), 400, "the form cannot be read"),
    "a form that ends early": (multipart(PART + IMAGE[:1000]), 400, "no file in its field 'image'"),
    "an empty form": (multipart(b"--b--\r\n"), 400, "no file in its field 'image'"),
    "a form without an image": ({"files": {"camera": ("c.yaml", CAMERA)}}, 400, "no file in its field 'image'"),
    "a name in place of the image": ({"files": {"camera": ("c", CAMERA)}, "data": {"image": "a.png"}}, 400, "no file"),
    "another field": ({"files": {"photo": ("a.png", IMAGE)}}, 400, "unknown form field 'photo'; expected"),
    "two images": ({"files": [("image", ("a.png", IMAGE)), ("image", ("b.png", IMAGE))]}, 400, "more than once"),
    "many images": ({"files": [("image", ("a.png", b"x"))] * 40}, 400, "the form cannot be read: Too many files"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_answered_is_refused_with_a_sentence(client: TestClient, name: str) -> None:
    request, status, words = REFUSALS[name]
    response = client.post("/locate", **request)
    assert (response.status_code, words in response.json()["error"]) == (status, True), response.text
    assert "\n" not in response.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/locate", 405, "POST an image to /locate"),
        ("PUT", "/locate", 405, "PUT is not possible here"),
        ("DELETE", "/map", 405, "DELETE is not possible here"),
        ("POST", "/", 405, "POST is not possible here"),
        ("GET", "/../etc/passwd", 404, "there is no such page"),
        ("POST", "/pose", 404, "there is no such page"),
    ],
)
def test_what_is_not_there_is_said(client: TestClient, method: str, path: str, status: int, words: str) -> None:
    response = client.request(method, path, follow_redirects=False)
    assert (response.status_code, words in response.json()["error"]) == (status, True), response.text


def test_only_names_of_this_machine_are_answered(client: TestClient) -> None:
    assert client.get("/map", headers={"host": "elsewhere.example"}).status_code == 400
    assert {"localhost", "127.0.0.1"} <= set(LOOPBACK)


def test_an_error_of_ours_is_500_and_the_service_continues(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = TestClient(client.app, raise_server_exceptions=False)
    monkeypatch.setattr("slam.serve.map_localizer.decode_image", lambda data, name: 1 / 0)
    response = quiet.post("/locate", content=IMAGE, headers=PNG)
    assert (response.status_code, response.json()) == (
        500, {"error": "an internal error; the log of the service has its traceback"},
    )  # fmt: skip
    assert quiet.get("/healthz").json()["waiting"] == 0


def test_images_beyond_those_that_wait_are_sent_away() -> None:
    """A worker that is held up: MOST_WAITING requests wait for it, the next one is refused at once, none is lost."""
    release = threading.Event()

    class Slow:
        def prepare(self, upload: Upload) -> Upload:
            return upload

        def locate(self, upload: Upload) -> dict[str, Any]:
            release.wait(30)
            return {"found": False, "reason": str(len(upload.image))}

    with closing(LocalizationWorker(Slow)) as worker:  # type: ignore[arg-type]
        service = MapService(worker, {}, {})
        with TestClient(make_app(service, hosts=("testserver",))) as client, ThreadPoolExecutor(MOST_WAITING) as pool:
            sent = [
                pool.submit(client.post, "/locate", content=b"x" * (k + 1), headers=PNG) for k in range(MOST_WAITING)
            ]
            while client.get("/healthz").json()["waiting"] < MOST_WAITING:
                pass
            refused = client.post("/locate", content=b"x", headers=PNG)
            release.set()
            answers = [request.result() for request in sent]
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
    assert "8 images are waiting already" in refused.json()["error"]
    assert [answer.json()["reason"] for answer in answers] == [str(k + 1) for k in range(MOST_WAITING)]


def test_a_port_in_use_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"127\.0\.0\.1:{port}: cannot be listened on .*choose another --port"):
            bound_socket("127.0.0.1", port)


def test_without_the_extra_it_says_how_to_install_it(
    slam_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.startswith("slam.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    ended = slam_command("serve", "nowhere")
    assert (ended.code, ended.complaint) == (
        2, "slam: slam serve needs Starlette and uvicorn: pip install 'reloc3r-slam[serve]'",
    )  # fmt: skip


# --- under load ----------------------------------------------------------------------------------------


@pytest.fixture
def served(room: Room, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The command in a process of its own, and its port."""
    save_map(tmp_path / "map", room.map)
    command = [sys.executable, "-m", "slam", "serve", str(tmp_path / "map"), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = next(line for line in process.stderr if "serving at" in line)
        yield process, int(re.findall(r":(\d+) until", said)[0])
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0


def post(port: int, data: bytes, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("POST", "/locate", data, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def cut_off(port: int, data: bytes) -> None:
    """Promise all of an image, send half of it, and go away."""
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.sendall(b"POST /locate HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n")
        line.sendall(b"Content-Length: %d\r\n\r\n" % len(data) + data[: len(data) // 2])


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory of a process is read from /proc")
def test_two_clients_lose_nothing_and_memory_stays(served: tuple[subprocess.Popen[str], int], room: Room) -> None:
    """240 requests, every third one bad: each is answered, and the last hundred take no more memory than the first."""
    process, port = served
    bad = [(body(IMAGE[:5000]), 422), (body(png_header(30000, 30000)), 413), (body(b"x"), 422)]
    seconds: list[float] = []

    def client(number: int, first: int, last: int) -> list[bool]:
        good = []
        for k in range(first, last):
            if k % 3 == number:
                request, expected = bad[k % len(bad)]
                good.append(post(port, request["content"], request["headers"])[0] == expected)
                cut_off(port, IMAGE)
            else:
                started = time.perf_counter()
                status, answer = post(port, room.images[k % IMAGES], PNG)
                seconds.append(time.perf_counter() - started)
                good.append(status == 200 and answer["found"])
        return good

    after = []
    with ThreadPoolExecutor(2) as pool:
        for first in (0, 40, 80):
            for client_answers in pool.map(client, (0, 1), (first, first), (first + 40, first + 40)):
                assert len(client_answers) == 40
                assert all(client_answers)
            after.append(resident_mb(process.pid))
    print(f"p95 {1e3 * np.percentile(seconds, 95):.0f} ms, memory after each 80 requests {np.round(after)} MB")
    assert after[-1] < after[0] + 20
