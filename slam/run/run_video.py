"""A run as a video, from the files of its folder: each keyframe with its tracked points, beside the map so far."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image as pillow

from relocalizer.errors import OutputError
from relocalizer.images import Image
from relocalizer.maps.reference_map import ReferenceMap
from slam.events import FrameProcessed
from slam.map.image_points import TrackedPoints
from slam.run.files import replacing
from slam.run.replay import open_replay
from slam.run.top_view_image import draw_top_view
from slam.run.trajectory_plot import top_view

HEIGHT = 480  # of the video, pixels
IMAGES_PER_S = 6
LAST_S = 2.0  # how long the finished map is shown, with its loop closures
INLIER, OUTLIER = (60, 220, 90), (240, 60, 50)
MOVING_IMAGES = (".webp", ".gif")


def write_video(path: Path, folder: Path, reference_map: ReferenceMap | None, name: str) -> None:
    """Write the video of a run; the suffix of `path` is .mp4, .webp or .gif.

    Args:
        folder, reference_map, name: as for `write_plot`.

    Raises:
        OutputError: another suffix, a run without images of keyframes, or `path` cannot be written.
        TrajectoryError: as `write_plot`.
    """
    if path.suffix not in (".mp4", *MOVING_IMAGES):
        raise OutputError(f"{path}: a video's name ends in .mp4, .webp or .gif")
    images = list(video_images(folder, reference_map, name))
    if len(images) < 2:
        raise OutputError(f"{folder}: the run has no map with images of keyframes, so there is nothing to show")
    images += [images[-1]] * round(LAST_S * IMAGES_PER_S)
    with replacing(path) as temporary:
        if path.suffix == ".mp4":
            _write_mp4(temporary, images)
        else:
            _write_moving_image(temporary, images, kind=path.suffix[1:])


def video_images(folder: Path, reference_map: ReferenceMap | None, name: str) -> Iterator[Image]:
    """The images of the video, one per keyframe and the finished map at the end: RGB, all of the same even size."""
    whole = top_view(folder, reference_map, name)
    shown: Image | None = None
    for event in open_replay(folder).events():
        if isinstance(event, FrameProcessed) and event.frame.image.size and event.points is not None:
            shown = _with_points(event.frame.image, event.points)
            yield _beside(shown, draw_top_view(whole.until(event.frame.timestamp_ns), limits_of=whole))
    if shown is not None:
        yield _beside(shown, draw_top_view(whole))


def _with_points(image: Image, points: TrackedPoints) -> Image:
    """The image with the tracked points that have a landmark: inliers of the pose in green, outliers in red."""
    scale = HEIGHT / image.shape[0]
    drawn = _of_height(image)
    chosen = points.is_landmark
    for (u, v), is_inlier in zip(points.pixels[chosen] * scale, points.is_inlier[chosen], strict=True):
        color = INLIER if is_inlier else OUTLIER
        cv2.circle(drawn, (round(float(u)), round(float(v))), 2, color, -1, cv2.LINE_AA)
    return drawn


def _of_height(image: Image) -> Image:
    width = round(image.shape[1] * HEIGHT / image.shape[0] / 2) * 2
    return np.asarray(cv2.resize(image, (width, HEIGHT), interpolation=cv2.INTER_AREA), np.uint8)


def _beside(left: Image, right: Image) -> Image:
    return np.hstack([left, _of_height(right)])


def _write_mp4(path: Path, images: Sequence[Image]) -> None:
    import av

    height, width = images[0].shape[:2]
    with av.open(str(path), "w", format="mp4") as video:
        stream = video.add_stream("libx264", rate=IMAGES_PER_S)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for image in images:
            video.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        video.mux(stream.encode())


def _write_moving_image(path: Path, images: Sequence[Image], *, kind: str) -> None:
    first, *others = (pillow.fromarray(image) for image in images)
    options = {"quality": 55, "method": 4} if kind == "webp" else {}
    first.save(
        path, kind.upper(), save_all=True, append_images=others, duration=round(1000 / IMAGES_PER_S), loop=0, **options
    )
