"""Opening of the data that a configuration names, and their split into a part to train on and a part held out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from relocalizer.errors import CameraError, ConfigError
from relocalizer.network.model import Architecture
from relocalizer.predictors.preprocessing import TRAINED_SIZES, Variant, nearest_size
from relocalizer.training.config import SourceConfig, TrainingConfig
from relocalizer.training.pair_data import Mixture, PairSet, Share, expect_apart, parse_mixture
from relocalizer.training.pair_selection import PairRule
from relocalizer.training.posed_data import Split, pairs_of_map, split
from relocalizer.training.public_layouts import open_public

OpenPosed = Callable[[str, SourceConfig], PairSet]

SAMPLED_VIEWS = 200  # number of views of a set whose cameras decide the size of the images


def open_split(config: TrainingConfig, open_posed: OpenPosed | None) -> tuple[Mixture, Mixture]:
    """The mixtures to train on and to evaluate on.

    Args:
        open_posed: opens sources of posed images, of which the layouts are known outside of this package.

    Raises:
        TrainingError: data that cannot be used, or an image in both parts.
        ConfigError: no data, or posed images where they cannot be opened.
        MapError: as `load_map`.
    """
    if not config.data:
        raise ConfigError("data: nothing to train on; name at least one source, or use --from-maps")
    sets = {name: open_source(name, source, open_posed) for name, source in config.data.items()}
    shares = parse_mixture(config.mix, list(sets))
    if config.held_out:
        parts = Split(list(sets.values()), [open_source(n, s, open_posed) for n, s in config.held_out.items()])
        expect_apart(parts.training, parts.held_out)
    else:
        parts = split(list(sets.values()), config.hold_out_by, config.hold_out_share)
    training = dict(zip(sets, parts.training, strict=False))
    kept = [share for share in shares if share.name in training]  # others are sequences held out as a whole
    held_out = {part.name: part for part in parts.held_out}
    return Mixture(training, kept), Mixture(held_out, [Share(name) for name in held_out])


def open_source(name: str, source: SourceConfig, open_posed: OpenPosed | None) -> PairSet:
    """The pairs of a source. Raises as `open_split`."""
    if source.layout == "map":
        return pairs_of_map(source.root, PairRule(source.partners))
    if source.layout == "posed":
        if open_posed is None:
            raise ConfigError(
                f"data.{name}: layout posed is read by slam train alone (also: torchrun -m slam train CONFIG.yaml); "
                "or make a map of it with slam map from-poses"
            )
        return open_posed(name, source)
    return open_public(source.layout, source.root, source.split)


def image_sizes(config: TrainingConfig, architecture: Architecture, mixture: Mixture) -> list[tuple[int, int]]:
    """Sizes (width, height) of the images: as configured, or the size of the start that crops most of them least.

    Raises:
        ConfigError: a size does not fit the patches, or neither the settings nor the start tell one.
    """
    if config.resolutions:
        patch = architecture.patch_size
        for width, height in config.resolutions:
            if width % patch or height % patch:
                raise ConfigError(f"resolutions: {width} x {height} are no multiples of the patch size {patch}")
        return list(config.resolutions)
    if architecture.img_size not in TRAINED_SIZES:
        raise ConfigError("resolutions: the start does not tell the size of its images; name at least one")
    variant: Variant = 224 if architecture.img_size == 224 else 512
    counts = Counter(size for part in mixture.sets for size in _nearest_sizes(part, variant))
    if not counts:
        raise ConfigError("resolutions: no image fits a size of the start; name at least one")
    return [min(counts, key=lambda size: (-counts[size], size))]


def image_side(sizes: Sequence[tuple[int, int]]) -> int | None:
    """The network that images of these sizes train, 224 or 512; None for another one."""
    longest = max(width for width, _ in sizes)
    return longest if longest in TRAINED_SIZES else None


def data_fingerprint(mixtures: Sequence[Mixture]) -> str:
    """A hash of all pairs and of the identities of some images, to notice data that changed."""
    digest = hashlib.sha256()
    for part in (part for mixture in mixtures for part in mixture.sets):
        digest.update(f"{part.name} {len(part)}".encode() + np.ascontiguousarray(part.pairs).tobytes())
        for number in (int(part.pairs[0, 0]), int(part.pairs[-1, 1])):
            digest.update(part.identity(number).encode())
    return digest.hexdigest()


def described(mixture: Mixture) -> Mapping[str, int]:
    """Number of pairs of each set."""
    return {part.name: len(part) for part in mixture.sets}


def _nearest_sizes(part: PairSet, variant: Variant) -> list[tuple[int, int]]:
    views = np.unique(part.pairs)
    chosen = views[np.unique(np.linspace(0, len(views) - 1, min(SAMPLED_VIEWS, len(views))).astype(int))]
    found = []
    for number in chosen.tolist():
        try:
            found.append(nearest_size(part.view(number).camera, variant))
        except CameraError:
            continue  # such a view is left out and named when it is read
    return found
