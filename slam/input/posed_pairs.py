"""Images with known poses as pairs to train on, in any layout that `slam map from-poses` reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slam.config.schema import InputConfig
from slam.input.posed_images import open_posed

if TYPE_CHECKING:
    from relocalizer.training.config import SourceConfig
    from relocalizer.training.pair_data import PairSet


def open_posed_pairs(name: str, source: SourceConfig) -> PairSet:
    """The pairs of a source of layout `posed`.

    Raises:
        UserError: as `open_posed`; or no two images overlap enough.
    """
    from relocalizer.training.pair_selection import PairRule
    from relocalizer.training.posed_data import pairs_of_images

    opened = open_posed(source.root, source.poses, config=InputConfig(), camera=source.camera)
    return pairs_of_images(name, opened.images, PairRule(source.partners))
