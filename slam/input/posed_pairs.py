"""Images with known poses as pairs to train on, in any layout that `slam map from-poses` reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slam.config.schema import InputConfig
from slam.input.colmap_poses import model_folder, read_points
from slam.input.posed_images import open_posed

if TYPE_CHECKING:
    from relocalizer.training.config import SourceConfig
    from relocalizer.training.pair_data import PairSet


def open_posed_pairs(name: str, source: SourceConfig) -> PairSet:
    """The pairs of a source of layout `posed`.

    Raises:
        UserError: as `open_posed`; a COLMAP model without its points; or no two images overlap enough.
    """
    from relocalizer.training.pair_selection import PairRule
    from relocalizer.training.posed_data import pairs_of_images, pairs_of_tracks

    opened = open_posed(source.root, source.poses, config=InputConfig(), camera=source.camera)
    rule, model = PairRule(source.partners), model_folder(source.poses) if source.poses is not None else None
    if model is not None and any(image.landmarks is not None and len(image.landmarks) for image in opened.images):
        return pairs_of_tracks(name, opened.images, read_points(model), rule)
    return pairs_of_images(name, opened.images, rule)
