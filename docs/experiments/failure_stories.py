"""The runs and screenshots of docs/debugging.md: faults put into the bundled clip, run, explained and photographed.

    python docs/experiments/failure_stories.py --out STORIES                  # runs all stories, a minute each
    python docs/experiments/failure_stories.py --out STORIES --only blur      # one of them
    python docs/experiments/failure_stories.py --out STORIES --screenshots docs/debugging

The last takes the screenshots of the runs that are there, in headless Chromium (needs Playwright and Chromium; half a
minute each), and writes them as JPEG files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import chromium  # noqa: E402
import faults  # noqa: E402

from relocalizer.images import Image  # noqa: E402
from slam.cli import main as slam_command  # noqa: E402
from slam.events import Event, FrameProcessed, Initialized, KeyframeAdded  # noqa: E402
from slam.run.replay import open_replay  # noqa: E402
from slam.viz import recording_output  # noqa: E402
from slam.viz.layout import blueprint  # noqa: E402
from slam.viz.rerun_viewer import RerunViewer  # noqa: E402

CLIP = ROOT / "sequences" / "room_loop"


class Story(NamedTuple):
    """A clip, the options of its run, and the tab and frame of its screenshot."""

    name: str
    tab: str
    images: Callable[[list[Image]], list[Image]]
    frames: int = 180
    focal: float = 1.0
    options: tuple[str, ...] = ()
    last: int | None = None  # last frame shown


def as_it_is(images: list[Image]) -> list[Image]:
    return images


def every_second(images: list[Image]) -> list[Image]:
    """The whole clip at half the frame rate, which ends where it began."""
    return images[::2]


def low_texture(images: list[Image]) -> list[Image]:
    """The camera looks at a bare wall for a while."""
    wall = cv2.GaussianBlur(images[100], (0, 0), 60)
    return faults.changed(images, range(100, 140), lambda image, k: np.asarray(wall, np.uint8))


def elsewhere_after_the_dark(images: list[Image]) -> list[Image]:
    """The camera is carried in the dark to a place that the map does not know."""
    return [*images[:100], *(np.zeros_like(images[0]) for _ in range(8)), *images[220:290]]


def image_of_the_start(images: list[Image]) -> list[Image]:
    """Half of the view is a screen that shows the beginning of the clip."""
    half = images[0].shape[1] // 2

    def change(image: Image, k: int) -> Image:
        shown = image.copy()
        shown[:, :half] = images[k - 130][:, :half]
        return shown

    return faults.changed(images, range(130, 156), change)


STORIES = (
    Story("blur", "Tracking", partial(faults.blur_burst, frames=range(100, 112)), last=110),
    Story("pure_rotation", "Tracking", partial(faults.pure_rotation, frames=range(100, 150)), last=149),
    Story("aliasing", "Loops", image_of_the_start),
    Story("refused_true_loop", "Loops", every_second, 420, options=("--set", "loop_closing.min_inliers=600"), last=194),
    Story("accepted_false_loop", "Graph", image_of_the_start, options=("--set", "loop_closing.robust=false"), last=155),
    Story("wrong_intrinsics", "Graph", as_it_is, focal=1.2),
    Story("low_texture", "Plots", low_texture),
    Story("exposure_jump", "Plots", partial(faults.exposure_jump, frames=range(100, 130))),
    Story("dropped_frames", "Plots", partial(faults.frames_dropped, frames=range(100, 112))),
    Story("relocalization_refused", "Relocalization", elsewhere_after_the_dark, 290, last=110),
)


class Settled:
    """Whether the page has all data: something is drawn, and it stays as it is."""

    def __init__(self) -> None:
        self._before: np.ndarray | None = None
        self._same = 0

    def __call__(self, image: Image) -> bool:
        drawn = image[80:760].astype(float)
        same = self._before is not None and float(np.abs(drawn - self._before).mean()) < 0.2
        self._same = self._same + 1 if same else 0
        self._before = drawn
        return self._same >= 3 and float(drawn.std()) > 20


def run(story: Story, out: Path) -> None:
    """Make the clip of a story, run it, and print its explanation."""
    clip = faults.read_clip(CLIP / "video.mp4", story.frames)
    source = out / "clips" / story.name
    faults.write_images(source, story.images(clip), CLIP / "camera.yaml", focal=story.focal)
    for command in (
        ["run", str(source), "-o", str(out / story.name), "-q", "--fail-under", "poor", *story.options],
        ["explain", str(out / story.name), "--html", str(out / f"{story.name}.html")],
    ):
        try:
            slam_command(command)
        except SystemExit as ended:
            print(f"{story.name}: exit code {ended.code}", file=sys.stderr)


def frame_of(event: Event) -> int:
    """The frame of an event; a very late one for the end of the run."""
    match event:
        case FrameProcessed():
            return event.frame.index
        case KeyframeAdded():
            return event.keyframe.frame_index
        case Initialized():
            return event.frame_indices[1]
    return getattr(event, "frame_index", sys.maxsize)


def photograph(story: Story, out: Path, folder: Path) -> None:
    """Take the screenshot of a story: its tab, with the run shown up to its last frame."""
    recording_output.blueprint = partial(blueprint, story.tab)
    replay = open_replay(out / story.name)
    viewer = RerunViewer(record=None, view="web", ground_truth=None, title=story.name, camera=replay.camera)
    try:
        for event in replay.events():
            if story.last is None or frame_of(event) <= story.last:
                viewer(event)
                viewer.catch_up()
        screenshot = folder / f"{story.name}.png"
        chromium.screenshot(viewer.url, screenshot, Settled())
        image = cv2.imread(str(screenshot))
        assert image is not None
        cv2.imwrite(str(screenshot.with_suffix(".jpg")), image, [cv2.IMWRITE_JPEG_QUALITY, 70])
        screenshot.unlink()
    finally:
        viewer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--only", choices=[story.name for story in STORIES], action="append", help="one of the stories")
    parser.add_argument("--screenshots", type=Path, help="take screenshots of the runs in --out, into this folder")
    arguments = parser.parse_args()
    for story in STORIES:
        if arguments.only and story.name not in arguments.only:
            continue
        if arguments.screenshots is None:
            run(story, arguments.out)
        else:
            arguments.screenshots.mkdir(exist_ok=True)
            photograph(story, arguments.out, arguments.screenshots)


if __name__ == "__main__":
    main()
