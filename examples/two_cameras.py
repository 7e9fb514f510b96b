"""Two cameras in one map: the second one finds itself in the map of the first, and extends it.

python examples/two_cameras.py phone.mp4 drone.mp4 --cameras phone.yaml drone.yaml --out runs/both

Each camera has its own calibration; without --cameras it is estimated from its images. Their clocks need not agree.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from relocalizer import load_map
from slam import RunReport, record_run


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs=2, help="videos or folders of images")
    parser.add_argument("--cameras", nargs=2, default=(None, None), help="camera.yaml of each")
    parser.add_argument("--out", type=Path, default=Path("runs/two_cameras"), help="folder of the two runs")
    given = parser.parse_args(arguments)

    first = record_run(given.sources[0], out=given.out / "first", camera=given.cameras[0])
    say("first", first)
    if not first.has_map:
        raise SystemExit("no map, so there is nothing to continue; see the reasons above")
    second = record_run(
        given.sources[1], out=given.out / "second", camera=given.cameras[1], start_map=first.folder / "map"
    )
    say("second", second)
    if not second.values["map"]["poses_in_map"]:
        print("the second camera was not found in the map of the first; do they see the same place?")

    both = load_map(second.folder / "map")  # one map: the keyframes of both, each with its camera
    for number in range(len(both.sessions)):
        rows = (both.session_of_keyframe == number).nonzero()[0]
        sizes = {f"{both.camera_of(row).width}x{both.camera_of(row).height}" for row in rows}
        segments = sorted({int(both.keyframes.segment[row]) for row in rows})
        print(f"session {number}: {len(rows)} keyframes, images of {', '.join(sorted(sizes))}, segments {segments}")
    print(f"{len(both.landmarks)} landmarks in {second.folder / 'map'}")


def say(name: str, run: RunReport) -> None:
    print(f"{name}: {run.tracked} of {run.frames} frames, {run.verdict}")


if __name__ == "__main__":
    main()
