"""Reloc3r as a pair predictor: every image is encoded once, and pairs are decoded in batches.

Encoded images are cached in half precision up to a memory limit; evicted ones are encoded again from the prepared
image, which is stored losslessly or can be reloaded. One pass gives both directions of a pair, and their disagreement
determines the uncertainty. The length of the network's translation is never used.
"""

from __future__ import annotations

import itertools
import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, cast, get_args

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relocalizer.camera import Camera
from relocalizer.errors import ConfigError, WeightsError
from relocalizer.features import LocalFeatures
from relocalizer.images import Image
from relocalizer.interfaces import CalibratedImage, Encoded, NoEstimate, PairEstimate
from relocalizer.network.computation import (
    WARNING_INT8,
    Backend,
    Network,
    Precision,
    RuntimeChoice,
    choose_computation,
    network_of,
)
from relocalizer.network.confidence_head import ConfidenceHead, confidence_beside
from relocalizer.network.layers import Grid
from relocalizer.network.model import Architecture, RawPose, Reloc3r, Tokens, rotation_margin, use_matmul_dtype
from relocalizer.network.openvino_network import OpenVinoNetwork
from relocalizer.network.precision import onednn_keeps_float32, onednn_products
from relocalizer.network.weights import load_model, random_model
from relocalizer.predictors.checkpoints import published_sha256, resolve, sha256_of
from relocalizer.predictors.pair_uncertainty import PairCalibration, TwoWayPose, estimate_of
from relocalizer.predictors.preprocessing import TRAINED_SIZES, Variant, calibrated_size, network_input, prepare

Kind = Literal["reloc3r-512", "reloc3r-224"]

CACHE_BYTES = 1 << 30  # default size of the cache, about 680 images of 512 x 384 or 2700 of 224 x 224, bytes
CACHE_DTYPE = torch.float16  # 11 bits of precision; normalized tokens do not exceed its range
GEM_POWER = 3.0  # exponent of the generalized mean (Radenovic et al. 2019): 1 is the mean, infinity the maximum
GEM_FLOOR = 1e-6  # lower bound of the pooled values
# Batch sizes by device type. On a CPU, batches beyond the size of its caches do not increase the throughput.
PAIRS_AT_A_TIME = {"cpu": 2, "cuda": 32, "mps": 8}
IMAGES_AT_A_TIME = {"cpu": 1, "cuda": 16, "mps": 4}
RANDOM_WARNING = "(RANDOM WEIGHTS: poses mean nothing)"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Reloc3rEncoded:
    """Reloc3r's encoding of an image.

    Attributes:
        key: key of its tokens in the predictor's cache.
        size: (height, width) of the prepared image.
        pixels: returns the prepared image, to encode it again after eviction.
        descriptor: unit (D,) float32, place descriptor.
    """

    key: int
    size: tuple[int, int]
    pixels: Callable[[], Image]
    descriptor: NDArray[np.float32]


class Reloc3rPredictor:
    """Pair predictor that computes relative poses with the Reloc3r network."""

    def __init__(
        self,
        model: Reloc3r,
        kind: Kind,
        *,
        calibration: PairCalibration | None = None,
        cache_bytes: int = CACHE_BYTES,
        cache_dtype: torch.dtype = CACHE_DTYPE,
        network: Network | None = None,
        computation: RuntimeChoice | None = None,
    ) -> None:
        """Prefer `load` or `random`.

        Args:
            model: the network on its device, in its precision, in evaluation mode.
            kind: determines the preprocessing and the default calibration.
            calibration: mapping from disagreement to sigmas; by default from the published errors.
            cache_bytes: maximum size of the cache of encoded images; the least recently used are evicted.
            cache_dtype: dtype of encoded images. All results are computed in this precision, so they do not depend on
                evictions. float32 reproduces the reference to the last digits.
            network: replaces the computation by `model`.
            computation: record of the choice of `model` and `network`.
        """
        self.name: str = kind
        self.descriptor = f"{kind}-gem"
        self._weights: Callable[[], str] = lambda: ""
        self._variant: Variant = 224 if kind == "reloc3r-224" else 512
        self._network = network or model
        self._patch = model.architecture.patch_size
        self._device = model.enc_norm.weight.device
        self._onednn = self._device.type == "cpu" and onednn_keeps_float32()
        self._calibration = calibration or PairCalibration.published(self._variant)
        self.computation = computation
        self._confidence: ConfidenceHead | None = None
        self._cache = _TokenCache(cache_bytes)
        self._cache_dtype = cache_dtype
        self._keys = itertools.count()

    @staticmethod
    def load(
        kind: str,
        *,
        weights: str | Path = "",
        device: str = "auto",
        precision: Precision = "auto",
        backend: Backend = "torch",
        announce: Callable[[str], None] | None = None,
    ) -> Reloc3rPredictor:
        """Load the predictor with the weights of a checkpoint.

        Args:
            kind: name of the network, which must match the checkpoint.
            weights: a path or hub id; empty is the released checkpoint. Hub ids are resolved in the hub's local cache.
            device: "auto", "cpu", "cuda", "cuda:1", "mps".
            precision: "auto" is float32, or float16 on CUDA; "fastest" measures the fastest of float32, bfloat16 and
                float16; "int8-dynamic" changes poses by degrees.
            backend: "torch", "openvino" (on the CPU), or "auto", which measures the faster one. OpenVINO compiles a
                graph for each image size at its first use, for reloc3r-224 already here because it has only one size.
            announce: called with the measurements, and with the warning about int8.

        Raises:
            ConfigError: unknown network, backend or precision, or OpenVINO is not installed or does not support it.
            WeightsError: there is no usable checkpoint, or it belongs to the other network.
            DeviceError: the device is not available.
        """
        if kind not in get_args(Kind):
            raise ConfigError(f"predictor.kind: expected {' or '.join(get_args(Kind))}, got {kind!r}")
        computation = _computation(cast(Kind, kind), device, backend, precision, announce)
        model = load_model(weights or kind, device=computation.device, dtype=computation.dtype)
        size = model.architecture.img_size
        if size is not None and f"reloc3r-{size}" != kind:
            raise WeightsError(
                f"weights: {weights or kind}: trained for {size} pixels, so not {kind}; "
                "choose another predictor or other weights"
            )
        _expect_whole_patches(model, cast(Kind, kind), str(weights or kind))
        checkpoint = resolve(weights or kind)
        confidence = confidence_beside(checkpoint, model, computation.runtime.backend, announce or _log.warning)
        network = _ready_network(model, cast(Kind, kind), computation)
        predictor = Reloc3rPredictor(model, cast(Kind, kind), network=network, computation=computation)
        predictor._confidence = confidence
        predictor._weights = lambda: published_sha256(checkpoint) or sha256_of(checkpoint.weights)
        return predictor

    @staticmethod
    def random(
        kind: Kind,
        *,
        seed: int = 0,
        device: str = "auto",
        precision: Precision = "auto",
        backend: Backend = "torch",
        architecture: Architecture | None = None,
        announce: Callable[[str], None] | None = None,
    ) -> Reloc3rPredictor:
        """The predictor with seeded random weights: real cost but meaningless poses, as stated in its name.

        Raises:
            ConfigError: as `load`.
            DeviceError: the device is not available.
        """
        computation = _computation(kind, device, backend, precision, announce)
        model = random_model(architecture or Architecture(), seed=seed)
        use_matmul_dtype(model, computation.dtype)
        network = _ready_network(model.to(computation.device), kind, computation)
        predictor = Reloc3rPredictor(model, kind, network=network, computation=computation)
        predictor.name = f"{kind} {RANDOM_WARNING}"
        predictor._weights = lambda: f"random, seed {seed}"
        return predictor

    def encode(self, views: Sequence[CalibratedImage]) -> list[Encoded]:
        """The encoding of each image, independent of its pairs.

        An image with a camera is cropped around its principal point to a training size, one without a camera around
        its center.

        Raises:
            SequenceError: an image is smaller than a patch, or not uint8.
            CameraError: a camera does not fit its image, or its principal point is near the border.
        """
        prepared = [prepare(view.image, view.camera, self._variant).pixels for view in views]
        features = self._run(prepared)
        return [self._stored(pixels, found) for pixels, found in zip(prepared, features, strict=True)]

    def restore_encoding(
        self,
        features: LocalFeatures,
        camera: Camera,
        descriptor: NDArray[np.float32],
        image: Callable[[], Image],
    ) -> Reloc3rEncoded:
        """The encoding of a keyframe of a saved map; its image is read and encoded when it is first related.

        Raises:
            CameraError: its principal point is near the border.
        """
        size = calibrated_size(camera, self._variant)

        def pixels() -> Image:
            return prepare(image(), camera, self._variant).pixels

        return self._owned(Reloc3rEncoded(next(self._keys), size[::-1], pixels, descriptor))

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the checkpoint's file, or a description of random weights; empty when unknown."""
        return self._weights()

    def relate(self, pairs: Sequence[tuple[Encoded, Encoded]]) -> list[PairEstimate | NoEstimate]:
        """For each (i, j): the pose of camera j in camera i. Pairs of equal image sizes are decoded in batches."""
        own = [(cast(Reloc3rEncoded, i), cast(Reloc3rEncoded, j)) for i, j in pairs]
        estimates: dict[int, PairEstimate | NoEstimate] = {}
        for batch in self._batches(own):
            for index, (pose, confidence) in zip(batch, self._decode([own[index] for index in batch]), strict=True):
                estimates[index] = estimate_of(pose, self._calibration, confidence)
        return [estimates[index] for index in range(len(own))]

    def describe(self, encoded: Encoded) -> NDArray[np.float32]:
        """Generalized mean of the encoder's tokens, a unit vector (enc_embed_dim,)."""
        return cast(Reloc3rEncoded, encoded).descriptor

    @property
    def cached_bytes(self) -> int:
        """Current size of the cache of encoded images, bytes."""
        return self._cache.used_bytes

    def _stored(self, pixels: Image, features: Tensor) -> Reloc3rEncoded:
        height, width = pixels.shape[:2]
        packed = _LosslessImage(pixels)
        encoded = Reloc3rEncoded(next(self._keys), (height, width), packed, _generalized_mean(features))
        self._cache.put(encoded.key, features)
        return self._owned(encoded)

    def _owned(self, encoded: Reloc3rEncoded) -> Reloc3rEncoded:
        """The same encoding; its tokens are removed from the cache when it is garbage-collected."""
        weakref.finalize(encoded, self._cache.drop, encoded.key).atexit = False
        return encoded

    def _run(self, prepared: Sequence[Image]) -> list[Tensor]:
        """Encoded tokens (N, C) of each prepared image, in the cache's precision."""
        found: dict[int, Tensor] = {}
        for batch in _grouped([pixels.shape for pixels in prepared], IMAGES_AT_A_TIME[self._device.type]):
            images = np.stack([network_input(prepared[index]) for index in batch])
            with torch.inference_mode(), onednn_products(self._onednn):
                tokens = self._network.encode(torch.from_numpy(images).to(self._device))
            found |= dict(zip(batch, tokens.features.to(self._cache_dtype).unbind(), strict=True))
        # Members of a batch share its memory; copies allow each one to be freed alone.
        return [found[index].clone() for index in range(len(prepared))]

    def _features(self, encoded: Reloc3rEncoded) -> Tensor:
        features = self._cache.get(encoded.key)
        if features is None:
            [features] = self._run([encoded.pixels()])
            self._cache.put(encoded.key, features)
        return features

    def _decode(self, pairs: Sequence[tuple[Reloc3rEncoded, Reloc3rEncoded]]) -> list[tuple[TwoWayPose, float | None]]:
        """The poses of each pair, and its confidence if there is a head for it."""
        sides = (self._tokens([pair[0] for pair in pairs]), self._tokens([pair[1] for pair in pairs]))
        with torch.inference_mode(), onednn_products(self._onednn):
            j_from_i, i_from_j = self._network.decode_raw(*sides)
            margin = torch.minimum(*(rotation_margin(raw.rotation9) for raw in (j_from_i, i_from_j)))
        forward, backward, margins = _poses(i_from_j), _poses(j_from_i), margin.cpu().numpy()
        poses = [TwoWayPose(f, b, float(m)) for f, b, m in zip(forward, backward, margins, strict=True)]
        if self._confidence is None:
            return [(pose, None) for pose in poses]
        with torch.inference_mode():
            return list(zip(poses, self._confidence.probabilities(j_from_i, i_from_j, poses), strict=True))

    def _tokens(self, side: Sequence[Reloc3rEncoded]) -> Tokens:
        features = torch.stack([self._features(encoded) for encoded in side])
        return Tokens(features.float(), self._grid(side[0]))

    def _grid(self, encoded: Reloc3rEncoded) -> Grid:
        return Grid(*(side // self._patch for side in encoded.size))

    def _batches(self, pairs: Sequence[tuple[Reloc3rEncoded, Reloc3rEncoded]]) -> Iterator[list[int]]:
        return _grouped([(i.size, j.size) for i, j in pairs], PAIRS_AT_A_TIME[self._device.type])


class _TokenCache:
    """LRU cache of tensors with a memory limit; the newest tensor is always kept."""

    def __init__(self, bound_bytes: int) -> None:
        self._bound = bound_bytes
        self._tensors: OrderedDict[int, Tensor] = OrderedDict()
        self.used_bytes = 0

    def get(self, key: int) -> Tensor | None:
        if key in self._tensors:
            self._tensors.move_to_end(key)
        return self._tensors.get(key)

    def put(self, key: int, tensor: Tensor) -> None:
        self.drop(key)
        self._tensors[key] = tensor
        self.used_bytes += tensor.nbytes
        while self.used_bytes > self._bound and len(self._tensors) > 1:
            self.drop(next(iter(self._tensors)))

    def drop(self, key: int) -> None:
        tensor = self._tensors.pop(key, None)
        self.used_bytes -= tensor.nbytes if tensor is not None else 0


class _LosslessImage:
    """Pixels (H, W, 3), RGB uint8, compressed as PNG to half of their size."""

    def __init__(self, pixels: Image) -> None:
        # RGB is stored as if it were BGR, and decoding restores the same order.
        _, self._png = cv2.imencode(".png", pixels)

    @property
    def nbytes(self) -> int:
        """Size of the compressed pixels, bytes."""
        return self._png.nbytes

    def __call__(self) -> Image:
        pixels = cv2.imdecode(self._png, cv2.IMREAD_COLOR)
        assert pixels is not None
        return np.asarray(pixels, dtype=np.uint8)


def _expect_whole_patches(model: Reloc3r, kind: Kind, weights: str) -> None:
    """Raises WeightsError if the patches of a network of another size do not divide the images of the predictor."""
    patch = model.architecture.patch_size
    for width, height in TRAINED_SIZES[224 if kind == "reloc3r-224" else 512]:
        if width % patch or height % patch:
            raise WeightsError(
                f"weights: {weights}: patches of {patch} pixels do not divide {width} x {height}, the images of "
                f"{kind}; train with patch_size 8 or 16"
            )


def _ready_network(model: Reloc3r, kind: Kind, computation: RuntimeChoice) -> Network:
    """The network of a model; with only one image size, its graphs are compiled now and not at the first frame."""
    network = network_of(model, computation)
    sizes = TRAINED_SIZES[224 if kind == "reloc3r-224" else 512]
    if isinstance(network, OpenVinoNetwork) and len(sizes) == 1:
        network.prepare(sizes[0])
    return network


def _computation(
    kind: Kind, device: str, backend: str, precision: str, announce: Callable[[str], None] | None
) -> RuntimeChoice:
    [size, *_] = TRAINED_SIZES[224 if kind == "reloc3r-224" else 512]
    computation = choose_computation(device=device, backend=backend, precision=precision, size=size)
    if announce is not None and computation.measured:
        announce(f"network: {computation}")
    if precision == "int8-dynamic":
        (announce or _log.warning)(f"WARNING: {WARNING_INT8}")
    return computation


def _grouped(sizes: Sequence[object], at_a_time: int) -> Iterator[list[int]]:
    """Batches of indices of equal sizes, of at most `at_a_time` members, in input order."""
    groups: dict[object, list[int]] = {}
    for index, size in enumerate(sizes):
        groups.setdefault(size, []).append(index)
    for members in groups.values():
        for start in range(0, len(members), at_a_time):
            yield members[start : start + at_a_time]


def _generalized_mean(features: Tensor) -> NDArray[np.float32]:
    """GeM pooling of tokens (N, C) to a unit vector (C,)."""
    with torch.inference_mode():
        pooled = features.float().clamp(min=GEM_FLOOR).pow(GEM_POWER).mean(dim=0).pow(1 / GEM_POWER)
        return np.asarray((pooled / pooled.norm()).cpu().numpy(), dtype=np.float32)


def _poses(raw: RawPose) -> NDArray[np.float64]:
    with torch.inference_mode():
        return np.asarray(raw.pose().cpu().numpy(), dtype=np.float64)
