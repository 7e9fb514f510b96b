"""Many images in one map, in batches; a line of CSV for each: pose and confidence, or the reason why there is none.

python examples/batch_relocalization.py runs/desk photos/ photos/camera.yaml > poses.csv
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from relocalizer import CalibratedImage, NotFound, Relocalizer, Undistorter, load_camera, read_image
from relocalizer.geometry import quaternion_xyzw_from_rotation
from relocalizer.images import IMAGE_SUFFIXES

COLUMNS = ("image", "x", "y", "z", "qx", "qy", "qz", "qw", "segment", "confidence", "inliers", "reason")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("map", type=Path, help="map folder, or a run folder with a map")
    parser.add_argument("images", type=Path, help="folder of images, all of one size")
    parser.add_argument("camera", type=Path, help="camera.yaml of these images")
    parser.add_argument("--batch", type=int, default=16, help="images in memory at a time")
    given = parser.parse_args(arguments)

    relocalizer, undistort = Relocalizer.open(given.map), Undistorter(load_camera(given.camera))
    paths = sorted(path for path in given.images.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    lines, found, started = csv.writer(sys.stdout), 0, perf_counter()
    lines.writerow(COLUMNS)
    for start in range(0, len(paths), given.batch):
        batch = paths[start : start + given.batch]
        views = [CalibratedImage(undistort(read_image(path)), undistort.camera) for path in batch]
        for path, outcome in zip(batch, relocalizer.locate_many(views), strict=True):
            if isinstance(outcome, NotFound):
                lines.writerow([path.name, *[""] * 10, outcome.reason])
                continue
            found += 1
            position = outcome.world_from_cam.translation.round(6).tolist()
            turn = quaternion_xyzw_from_rotation(outcome.world_from_cam.rotation.as_matrix()).round(6).tolist()
            confidence = round(outcome.confidence, 3)
            lines.writerow([path.name, *position, *turn, outcome.segment, confidence, outcome.inliers, ""])
    each_ms = 1e3 * (perf_counter() - started) / max(len(paths), 1)
    print(f"{found} of {len(paths)} images found, {each_ms:.0f} ms an image", file=sys.stderr)


if __name__ == "__main__":
    main()
