"""Train relocalizer/vocabulary.npz from images this project made itself.

    python docs/experiments/train_vocabulary.py VIDEO... --out relocalizer/vocabulary.npz

VIDEO are the bundled sequences. To their frames come images drawn here (fractal noise and polygons), so that
the words are not those of one room. No image of anybody else goes in, so the file has this project's license.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from relocalizer.config import FeaturesConfig
from relocalizer.features import detect_features
from relocalizer.images import Image
from relocalizer.vlad import Vocabulary, train_vocabulary

WORDS, DIMENSIONS, SEED = 64, 64, 0
DRAWN_IMAGES, EVERY_NTH_FRAME = 40, 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    images = [*drawn_images(np.random.default_rng(SEED))]
    for video in arguments.videos:
        images.extend(frames(video))
    descriptors = [detect_features(image, FeaturesConfig()).descriptors for image in images]
    vocabulary = train_vocabulary(descriptors, words=WORDS, dimensions=DIMENSIONS, seed=SEED)
    save(arguments.out, vocabulary)
    print(f"{len(images)} images, {sum(map(len, descriptors))} descriptors -> {arguments.out}")


def frames(video: Path) -> Iterator[Image]:
    """Every n-th frame, gray."""
    capture, index = cv2.VideoCapture(str(video)), 0
    if not capture.isOpened():
        raise SystemExit(f"{video}: not a video that can be read")
    while True:
        there, image = capture.read()
        if not there:
            return
        if index % EVERY_NTH_FRAME == 0:
            yield np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), dtype=np.uint8)
        index += 1


def drawn_images(rng: np.random.Generator) -> Iterator[Image]:
    """Gray images of noise at several scales under flat polygons, a little blurred as a lens does."""
    for _ in range(DRAWN_IMAGES):
        canvas = np.zeros((480, 640), np.float32)
        for octave in range(2, 8):
            grid = rng.standard_normal((480 // 2**octave + 1, 640 // 2**octave + 1)).astype(np.float32)
            smooth = [cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC][rng.integers(3)]
            canvas += 2 ** (0.4 * octave) * cv2.resize(grid, (640, 480), interpolation=smooth)
        for _ in range(60):
            corners = rng.integers(0, [640, 480], (4, 2)).astype(np.int32)
            corners = corners[0] + (corners - corners[0]) // 6
            cv2.fillConvexPoly(canvas, cv2.convexHull(corners), float(4 * rng.normal()))
        stretched = 255 * (canvas - canvas.min()) / np.ptp(canvas)
        yield np.asarray(cv2.GaussianBlur(stretched, (0, 0), 0.8), dtype=np.uint8)


def save(path: Path, vocabulary: Vocabulary) -> None:
    names = ("mean", "axes", "words")
    np.savez_compressed(path, **{name: getattr(vocabulary, name).astype(np.float16) for name in names})


if __name__ == "__main__":
    main()
