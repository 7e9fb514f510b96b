"""A pair predictor of your own in the place of the built-in one.

python examples/custom_predictor.py sequences/room_loop --frames 150

This one refuses pairs that turn too far. With an entry point `slam run --predictor NAME` takes it: docs/extending.md.
"""

import argparse
from dataclasses import replace
from typing import Any

import numpy as np

from relocalizer import CalibratedImage, GeometricPredictor, NoEstimate, PairEstimate
from relocalizer.geometry import rotation_angle
from slam import Slam, SlamConfig, open_source
from slam.components.assembly import assemble

LIMIT_DEG = 30  # largest rotation of a pair that is trusted, degrees


class Careful:
    """The four members of `relocalizer.PosePredictor`, around another predictor."""

    name = "careful"

    def __init__(self, inner: GeometricPredictor) -> None:
        self._inner, self.related = inner, 0

    def encode(self, views: list[CalibratedImage]) -> list[Any]:
        return self._inner.encode(views)

    def describe(self, encoded: Any) -> np.ndarray:
        return self._inner.describe(encoded)

    def relate(self, pairs: list[tuple[Any, Any]]) -> list[PairEstimate | NoEstimate]:
        self.related += len(pairs)
        return [self._checked(estimate) for estimate in self._inner.relate(pairs)]

    def _checked(self, estimate: PairEstimate | NoEstimate) -> PairEstimate | NoEstimate:
        if isinstance(estimate, NoEstimate) or rotation_angle(estimate.i_from_j_rotation) < np.radians(LIMIT_DEG):
            return estimate
        return NoEstimate(f"turned by more than {LIMIT_DEG} degrees")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="video, folder of images or data set")
    parser.add_argument("--frames", type=int, default=300, help="use at most this many")
    given = parser.parse_args(arguments)
    config = SlamConfig()
    predictor = Careful(GeometricPredictor(config.features, config.predictor.geometric))
    slam = Slam(config, replace(assemble(config), predictor=predictor))
    for frame in open_source(given.source, max_frames=given.frames):
        slam.step(frame)
    print(f"{len(slam.finish().trajectory)} frames with a pose, {predictor.related} pairs related")


if __name__ == "__main__":
    main()
