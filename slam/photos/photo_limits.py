"""What can be mapped as photos without an order: stored images, as many as memory holds."""

from __future__ import annotations

from relocalizer.errors import ConfigError, SequenceError
from slam.input.frame_source import FrameSource

# The features and the compressed image of a photo take about 1 MB, and all are kept until the photos are mapped.
MAX_PHOTOS = 2000


def expect_photos(source: FrameSource, *, localize_only: bool = False) -> None:
    """Check that a source can be mapped as photos.

    Raises:
        ConfigError: `localize_only`, which makes no map.
        SequenceError: it is a live stream, or has more than `MAX_PHOTOS` images.
    """
    if localize_only:
        raise ConfigError("--photos maps photos, and --localize-only makes no map; slam relocalize locates photos")
    if source.length is None:
        raise SequenceError(f"{source.name}: photos are mapped when all are read, and this source has no end")
    if source.length > MAX_PHOTOS:
        stride = -(-source.length // MAX_PHOTOS)
        raise SequenceError(
            f"{source.name}: {source.length} images; at most {MAX_PHOTOS} are mapped as photos without an order: "
            f"choose some with --stride {stride}, or map them in their order, without --photos"
        )
