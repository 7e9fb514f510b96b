"""Makes the stress world: clips in which something goes wrong, with exact ground truth.

    python sequences/stress.py --out DIR                        # all clips of twelve seconds, less than a minute each
    python sequences/stress.py --out DIR --only blur --only fps_5
    python sequences/stress.py --out DIR --only floor           # 5,000 frames, on request only
    slam benchmark folder --data DIR --out RESULTS              # runs and judges them all

Each clip is a folder with rgb/, rgb.txt, camera.yaml and groundtruth.txt (TUM: timestamp tx ty tz qx qy qz qw, camera
to world, meters), as described in docs/stress.md. Everything is generated; the same seed gives the same images.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from scipy.spatial.transform import Rotation
from stress_world.clips import CLIPS, Clip, Shot, film

SEED = 7
JPEG_QUALITY = 95
HEADER = "timestamp tx ty tz qx qy qz qw (camera to world, meters, camera axes x right y down z forward)"


def main() -> None:
    names = [clip.name for clip in CLIPS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder the clips go into")
    parser.add_argument("--only", choices=names, action="append", metavar="NAME", help="make this one; repeatable")
    parser.add_argument("--list", action="store_true", help="print the names of the clips and what goes wrong in them")
    parser.add_argument("--seed", type=int, default=SEED, help="another seed furnishes another room")
    parser.add_argument("--frames", type=int, metavar="N", help="no more than N frames of each")
    args = parser.parse_args()
    if args.list:
        print("\n".join(f"{clip.name:18} {clip.about}{' (on request)' if clip.is_large else ''}" for clip in CLIPS))
        return
    if args.out is None:
        parser.error("--out DIR is needed")
    cv2.setNumThreads(1)
    for clip in CLIPS:
        if clip.name in args.only if args.only else not clip.is_large:
            start = time.monotonic()
            count = write(args.out / clip.name, clip, film(clip, args.seed, args.frames))
            print(f"{args.out / clip.name}: {count} frames, {time.monotonic() - start:.0f} s", flush=True)


def write(folder: Path, clip: Clip, shots: Iterable[Shot]) -> int:
    """Write a clip into a folder, which is replaced if it is there; the number of its frames."""
    if folder.exists():
        shutil.rmtree(folder)
    (folder / "rgb").mkdir(parents=True)
    names, rows = [], []
    for number, shot in enumerate(shots):
        name = f"rgb/{number:05d}.jpg"
        image = cv2.cvtColor(shot.image, cv2.COLOR_RGB2BGR)
        if not cv2.imwrite(str(folder / name), image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]):
            raise OSError(f"{folder / name}: cannot be written")
        quaternion = Rotation.from_matrix(shot.world_from_cam[:3, :3]).as_quat(canonical=True)
        names.append(f"{shot.time_s:.9f} {name}")
        rows.append([shot.time_s, *shot.world_from_cam[:3, 3], *quaternion])
    (folder / "rgb.txt").write_text("\n".join(["# timestamp filename", *names, ""]))
    (folder / "camera.yaml").write_text(clip.lens.yaml)
    np.savetxt(folder / "groundtruth.txt", np.array(rows), fmt="%.9f", header=HEADER)
    return len(names)


if __name__ == "__main__":
    main()
