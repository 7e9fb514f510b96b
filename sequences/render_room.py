"""Makes the bundled sequences: two walks with a camera through a rendered room, with exact ground truth.

    python sequences/render_room.py --out sequences

writes `room_loop/` and `room_revisit/`, each with video.mp4, groundtruth.txt (TUM: timestamp tx ty tz qx qy qz qw,
camera to world, OpenCV axes) and camera.yaml. Everything is generated: no image, model or measurement of anybody
else is used. The same seed gives the same images.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from room.paths import LOOP, REVISIT, Waypoint, handheld
from room.raster import Bytes, Floats, Pinhole, Rasteriser
from room.scene import build
from scipy.spatial.transform import Rotation

CAMERA = Pinhole(width=640, height=480, fx=465.0, fy=465.0, cx=319.5, cy=239.5)
FPS = 30
VIGNETTING = 0.1  # darkening of the corners
NOISE = 0.6  # gray levels, one sigma
H264_CRF = 14  # x264 quality; luma comes to about 40 dB (mp4v of the same size: 37 dB)


class Walk(NamedTuple):
    name: str
    waypoints: tuple[Waypoint, ...]
    frames: int
    seed: int


WALKS = (Walk("room_loop", tuple(LOOP), 420, 11), Walk("room_revisit", tuple(REVISIT), 140, 12))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("sequences"), help="folder the sequences go into")
    parser.add_argument("--seed", type=int, default=7, help="another seed furnishes another room")
    parser.add_argument("--only", choices=[w.name for w in WALKS], help="make one of them")
    parser.add_argument("--codec", choices=["h264", "mp4v"], help="h264 (the default when PyAV is installed) or mp4v")
    args = parser.parse_args()
    codec = args.codec or ("h264" if importlib.util.find_spec("av") else "mp4v")
    print(f"codec {codec}" + ("" if codec == "h264" else " (the bundled files are h264: pip install av)"))
    cv2.setNumThreads(1)
    start = time.monotonic()
    rasteriser = Rasteriser(build(args.seed), CAMERA)
    print(f"room built, {time.monotonic() - start:.0f} s")
    for walk in WALKS:
        if args.only in (None, walk.name):
            folder = args.out / walk.name
            folder.mkdir(parents=True, exist_ok=True)
            poses = handheld(walk.waypoints, walk.frames, np.random.default_rng(walk.seed))
            write_groundtruth(folder / "groundtruth.txt", poses)
            write_camera(folder / "camera.yaml", CAMERA)
            write_video(folder / "video.mp4", images(rasteriser, poses, walk.seed), codec)
            print(f"{folder}: {len(poses)} frames, {time.monotonic() - start:.0f} s")


def images(rasteriser: Rasteriser, poses: Floats, seed: int) -> Iterator[Bytes]:
    """RGB images as a small camera would take them: vignetting and a little noise, exposure fixed."""
    rng = np.random.default_rng([seed, 1])
    camera = rasteriser.camera
    x = (np.arange(camera.width) - camera.cx) / camera.fx
    y = (np.arange(camera.height) - camera.cy) / camera.fy
    radius2 = x**2 + y[:, None] ** 2
    lens = (1 - VIGNETTING * radius2 / radius2.max())[..., None].astype(np.float32)
    for pose in poses:
        rgb = rasteriser.render(pose).rgb * lens
        rgb += np.float32(NOISE) * rng.standard_normal(rgb.shape, dtype=np.float32)
        yield np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def write_groundtruth(path: Path, poses: Floats) -> None:
    quaternions = Rotation.from_matrix(poses[:, :3, :3]).as_quat(canonical=True)
    rows = np.column_stack([np.arange(len(poses)) / FPS, poses[:, :3, 3], quaternions])
    header = "timestamp tx ty tz qx qy qz qw (camera to world, meters, camera axes x right y down z forward)"
    np.savetxt(path, rows, fmt=["%.9f"] + ["%.9f"] * 7, header=header)


def write_camera(path: Path, camera: Pinhole) -> None:
    path.write_text(
        "# pixel (0, 0) is the center of the top left pixel\n"
        "model: pinhole\n"
        f"width: {camera.width}\nheight: {camera.height}\n"
        f"fx: {camera.fx}\nfy: {camera.fy}\ncx: {camera.cx}\ncy: {camera.cy}\n"
        "distortion: []\n"
    )


def write_video(path: Path, frames: Iterator[Bytes], codec: str) -> None:
    {"h264": _write_h264, "mp4v": _write_mp4v}[codec](path, frames)


def _write_h264(path: Path, frames: Iterator[Bytes]) -> None:
    av = importlib.import_module("av")

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = CAMERA.width, CAMERA.height, "yuv420p"
        stream.options = {"crf": str(H264_CRF), "preset": "slow", "threads": "1"}
        for rgb in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode(None))


def _write_mp4v(path: Path, frames: Iterator[Bytes]) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), FPS, (CAMERA.width, CAMERA.height))
    for rgb in frames:
        writer.write(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    writer.release()


if __name__ == "__main__":
    main()
