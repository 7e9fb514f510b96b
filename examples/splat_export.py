"""From a video to what trainers of Gaussian splats read: images, poses, camera and points of a run.

python examples/splat_export.py sequences/room_loop --out splats/room
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from relocalizer import load_map
from relocalizer.maps.map_export import export_map
from slam import record_run

TRAINERS = {
    "nerfstudio": "ns-train splatfacto --data {folder}",
    "colmap": "point gsplat, Brush or 3DGS at {folder}",
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="video, folder of images or data set")
    parser.add_argument("--camera", help="camera.yaml of the images; estimated without one")
    parser.add_argument("--format", choices=TRAINERS, default="nerfstudio")
    parser.add_argument("--out", type=Path, default=Path("splats/scene"), help="folder to write")
    given = parser.parse_args(arguments)

    run = record_run(given.source, out=given.out / "run", camera=given.camera)
    print(f"{run.tracked} of {run.frames} frames, {run.verdict}")
    if not run.has_map:
        raise SystemExit("no map, so there is nothing to export; see the reasons above")
    scene = load_map(run.folder / "map")
    folder = given.out / given.format
    export_map(scene, given.format, folder)
    print(f"{len(scene.keyframes)} images and {len(scene.landmarks)} points in {folder}")
    print(f"next: {TRAINERS[given.format].format(folder=folder)}")


if __name__ == "__main__":
    main()
