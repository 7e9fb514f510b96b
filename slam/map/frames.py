"""Frames, their observations and records, keyframes, and the results of pose estimation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from relocalizer.camera import Camera
from relocalizer.features import LocalFeatures
from relocalizer.geometry import Similarity
from relocalizer.images import Image
from relocalizer.interfaces import CalibratedImage, Encoded, PairEstimate, PosePredictor
from slam.map.tracks import Tracks
from slam.predictor_checks import describe

# Maximum noise of the tracks where moving objects are looked for, as a fraction of the assumed noise. Between keyframes
# with moving objects the map is refined at this noise, because what moves slowly must not pass for noise.
STEADY_NOISE_RATIO = 0.375


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Frame:
    """One image of the stream, already undistorted.

    Attributes:
        index: position in the source, from 0, with gaps at skipped or dropped images.
        timestamp_ns: integer nanoseconds, strictly increasing along a stream.
        image: RGB uint8 (H, W, 3).
        camera: pinhole camera of this image.
        name: name of the image file; empty in a video or a stream.
    """

    index: int
    timestamp_ns: int
    image: Image
    camera: Camera
    name: str = ""

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            raise ValueError(f"Frame.image: expected (H, W, 3) uint8, got {self.image.shape} {self.image.dtype}")
        if self.camera.model != "pinhole":
            raise ValueError("Frame.camera: images are undistorted before they become frames")

    @property
    def view(self) -> CalibratedImage:
        return CalibratedImage(self.image, self.camera)

    def without_image(self) -> Frame:
        """A copy without the image, for frames that are already processed."""
        return replace(self, image=np.zeros((0, 0, 3), np.uint8))


@dataclass(slots=True, eq=False)
class _Encoding:
    """Encoding and place descriptor of one image, computed when first needed."""

    encoded: Encoded | None = None
    descriptor: NDArray[np.float32] | None = None
    is_usable: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class FrameObservation:
    """A frame with its local features and its tracks. It is encoded at most once.

    Attributes:
        among_moving: whether there are moving objects in the image, whose features and tracks were left out.

    Copies made by `dataclasses.replace` with other tracks share the encoding, which depends on image and features only.
    """

    frame: Frame
    features: LocalFeatures
    tracks: Tracks
    among_moving: bool = False
    _encoding: _Encoding = field(default_factory=_Encoding, repr=False)

    def encoded(self, predictor: PosePredictor) -> Encoded:
        """The predictor's encoding of the image. All calls for one frame must pass the same predictor."""
        if self._encoding.encoded is None:
            view = CalibratedImage(self.frame.image, self.frame.camera, self.features)
            [self._encoding.encoded] = predictor.encode([view])
        return self._encoding.encoded

    def descriptor(self, predictor: PosePredictor) -> tuple[NDArray[np.float32], bool]:
        """Unit vector (D,) for place recognition, and whether it is usable, as `predictor_checks.describe`."""
        if self._encoding.descriptor is None:
            self._encoding.descriptor, self._encoding.is_usable = describe(predictor, self.encoded(predictor))
        return self._encoding.descriptor, self._encoding.is_usable

    def with_features(self, features: LocalFeatures) -> FrameObservation:
        """The observation with a subset of its features; a proper subset needs a new encoding."""
        if len(features) == len(self.features):
            return self
        return FrameObservation(self.frame, features, self.tracks, self.among_moving)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FrameRecord:
    """Pose of a frame relative to its reference keyframe, in the keyframe's units, so that it follows graph updates."""

    index: int
    timestamp_ns: int
    keyframe_id: int
    keyframe_from_frame: RigidTransform


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceKeyframe:
    """The keyframe that frames are stored relative to, with its pose and its segment when they were tracked."""

    id: int
    world_from_keyframe: Similarity
    segment: int


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Keyframe:
    """A keyframe without its pose: it is constant, while the pose is part of the graph and changes.

    Attributes:
        id: 0, 1, 2, ... in order of creation.
        encoded: the pair predictor's encoding of the image (opaque).
        descriptor: unit vector (D,) float32 for place recognition.
        features: local features of the image.
        name: name of the image file; empty if it has none.
        among_moving: whether there were moving objects in the image, which are not mapped.
    """

    id: int
    frame_index: int
    timestamp_ns: int
    camera: Camera
    encoded: Encoded
    descriptor: NDArray[np.float32]
    features: LocalFeatures
    name: str = ""
    among_moving: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class TrackedPose:
    """A frame's pose and its inlier landmarks."""

    world_from_cam: RigidTransform
    landmarks: Tracks


@dataclass(frozen=True, slots=True)
class PoseNotFound:
    """No pose; `reason` is a sentence with the number and the threshold."""

    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class InitialPair:
    """Two frames that initialize a map, with the baseline scaled to a median depth of 1 map unit.

    Attributes:
        between: frames between the two, without images, and the tracks followed through them.
    """

    first: FrameObservation
    second: FrameObservation
    estimate: PairEstimate
    first_from_second: RigidTransform
    parallax_deg: float
    between: list[tuple[Frame, Tracks]]
