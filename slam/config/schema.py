"""Every tunable: typed, bounded, documented, with its default here. YAML files hold only differences."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from relocalizer.config import FeaturesConfig, GeometricConfig, RelocalizerConfig, Section


class InputConfig(Section):
    """How images come in."""

    assumed_fov_deg: float = Field(
        60.0, gt=10, lt=150, description="Angle of view across the longer side when no camera is given, degrees."
    )
    max_side_px: int = Field(
        1280, ge=160, le=4096, description="Larger images are shrunk so that their longer side has this many pixels."
    )
    mask: str = Field(
        "",
        description="An image of the size or shape of the source's: what is black in it is ignored, what is white is "
        "used, as in COLMAP; empty masks nothing.",
    )
    prefetch_frames: int = Field(8, ge=0, le=256, description="Images read ahead by the reading thread.")


class PredictorConfig(Section):
    """Who estimates the pose of a pair of images."""

    kind: Literal["auto", "geometric", "reloc3r-512", "reloc3r-224"] = Field(
        "auto", description="The pair predictor; auto takes the network where a GPU makes it cheap."
    )
    weights: str = Field(
        "", description="Reloc3r checkpoint: a folder, a file or a Hugging Face id; empty takes the released one."
    )
    random_weights: bool = Field(
        False, description="Reloc3r with random weights: the cost is real, the poses mean nothing."
    )
    device: str = Field("auto", description="Where Reloc3r runs: auto, cpu, cuda, cuda:N or mps.")
    backend: Literal["auto", "torch", "openvino"] = Field(
        "torch", description="What computes Reloc3r; auto measures at start which is quicker, OpenVINO if installed."
    )
    precision: Literal["auto", "float32", "bfloat16", "float16", "int8-dynamic", "fastest"] = Field(
        "auto",
        description="Of Reloc3r's products. auto is float32, the exact one (on CUDA float16, as published); fastest "
        "measures at start; int8-dynamic is for trying out.",
    )
    geometric: GeometricConfig = GeometricConfig()


class TracksConfig(Section):
    """Corner tracks between images."""

    max_tracks: int = Field(700, ge=50, le=5000, description="Points followed at a time.")
    min_distance_px: float = Field(9.0, ge=1, le=100, description="Least distance between points, pixels.")
    window_px: int = Field(21, ge=5, le=61, description="Side of the window matched by KLT, pixels.")
    pyramid_levels: int = Field(4, ge=1, le=8, description="Pyramid levels of KLT.")
    forward_backward_px: float = Field(
        0.7, gt=0, le=10, description="A track that does not come back to its start within this is dropped, pixels."
    )
    noise_px: float = Field(0.8, gt=0.05, le=10, description="Standard deviation assumed of a track, pixels.")


class InitializationConfig(Section):
    """The first pair."""

    min_parallax_px: float = Field(
        24.0, gt=0, le=500, description="Median motion of the tracks before the first pair is tried, pixels."
    )
    min_landmarks: int = Field(60, ge=10, le=5000, description="Landmarks the first pair must give.")
    min_confirming: int = Field(
        30, ge=10, le=5000, description="Landmarks that suffice where matches make the pair estimate confident."
    )
    references: int = Field(
        4, ge=1, le=20, description="Earlier images that one too far off to be followed is matched to."
    )
    min_landmark_parallax_deg: float = Field(
        0.3, gt=0, le=30, description="Least angle between the rays of a landmark of the first pair, degrees."
    )
    min_parallax_deg: float = Field(
        1.5, gt=0, le=30, description="Median angle between the rays of the first pair's landmarks, degrees."
    )


class KeyframesConfig(Section):
    """When a frame is worth keeping."""

    parallax_px: float = Field(
        28.0, gt=0, le=500, description="Median motion of landmarks, without the camera's turning, pixels."
    )
    min_survival: float = Field(
        0.6, gt=0, lt=1, description="A keyframe is due when fewer than this share of its landmarks is still tracked."
    )
    rotation_deg: float = Field(12.0, gt=0, le=90, description="A keyframe is due after turning by this, degrees.")
    min_gap: int = Field(2, ge=1, le=100, description="Frames between keyframes, at least.")
    blur_ratio: float = Field(
        0.5, ge=0, lt=1, description="Frames less sharp than this share of the recent median are not kept."
    )


class TrackingConfig(Section):
    """The pose of every frame."""

    min_inliers: int = Field(20, ge=6, le=1000, description="Landmarks that must agree with a pose.")
    min_inlier_ratio: float = Field(0.35, gt=0, lt=1, description="Share of tracked landmarks that must agree.")


class LandmarksConfig(Section):
    """Points of the map."""

    min_parallax_deg: float = Field(
        1.0, gt=0, le=30, description="Least angle between rays for a point to get a place, degrees."
    )
    search_radius_px: float = Field(
        8.0, gt=0, le=100, description="Known landmarks are searched for this far from where they should be, pixels."
    )
    search_keyframes: int = Field(
        12, ge=0, le=200, description="Keyframes whose landmarks are looked for again in a new keyframe."
    )
    min_similarity: float = Field(
        0.85, gt=0, lt=1, description="Inner product of two descriptors, at least, to be called the same point."
    )


class BundleAdjustmentConfig(Section):
    """Joint refinement of recent keyframes and landmarks."""

    window: int = Field(8, ge=2, le=50, description="Keyframes refined together.")
    covisible: int = Field(
        6, ge=0, le=50, description="Further keyframes that see the same landmarks, held fixed in the window."
    )
    max_landmarks: int = Field(400, ge=50, le=20000, description="Landmarks in the window, the most seen first.")
    iterations: int = Field(6, ge=0, le=100, description="Levenberg-Marquardt iterations for a window; 0 refines none.")
    pair_priors: bool = Field(True, description="Hold refinements to the pair estimates between keyframes.")
    final: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Refine the whole map once more when the run ends; auto: while that costs less than the run did.",
    )
    calibrate: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Find what the camera file does not say of the lens in the last refinement; auto: distortion that "
        "is left, and the focal length when it was only assumed; always: the focal length too.",
    )
    final_rounds: int = Field(3, ge=1, le=20, description="Rounds of recognizing and refining the whole map.")
    final_covisible: int = Field(
        40, ge=0, le=1000, description="Keyframes whose landmarks are looked for in each keyframe in a final round."
    )
    final_iterations: int = Field(8, ge=1, le=200, description="Iterations of each final round.")


class LoopClosingConfig(Section):
    """Edges between keyframes."""

    neighbors: int = Field(4, ge=1, le=30, description="Earlier keyframes each new one is tied to.")
    candidates: int = Field(4, ge=0, le=50, description="Retrieved keyframes that are tried as loops.")
    min_gap: int = Field(10, ge=1, le=1000, description="Keyframes between the two ends of a loop, at least.")
    min_similarity: float = Field(
        0.6,
        gt=0,
        le=1,
        description="Similarity of a loop candidate, as a share of that between neighboring keyframes.",
    )
    suppression: int = Field(
        2, ge=0, le=100, description="Of candidates this many keyframes apart only the most similar is tried."
    )
    min_confidence: float = Field(
        0.1, ge=0, le=1, description="Confidence of the pair estimate below which a candidate is not looked at further."
    )
    min_inliers: int = Field(30, ge=8, le=1000, description="Landmarks that must agree with a loop.")
    min_cells: int = Field(
        10, ge=1, le=48, description="Cells of the image, of 8 by 6, in which they must lie: one poster is no place."
    )
    single_loop_min_inliers: int = Field(
        90, ge=8, le=10000, description="Landmarks with which a loop needs no second one that agrees with it."
    )
    robust: bool = Field(
        True, description="Close only loops that agree with one another and the path; false closes each, to compare."
    )


class RelocalizationConfig(Section):
    """After the camera was lost, in a run (slam run)."""

    candidates: int = Field(5, ge=1, le=50, description="Keyframes tried for each frame.")
    min_inliers: int = Field(
        40, ge=6, le=1000, description="Landmarks that must agree, found near where they should be."
    )
    min_confirming: int = Field(
        10,
        ge=6,
        le=1000,
        description="Landmarks that suffice where a confident pair estimate agrees with the pose; others need more.",
    )
    min_cells: int = Field(
        8, ge=1, le=48, description="Cells of the image, of 8 by 6, in which landmarks that agree alone must lie."
    )
    min_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of the landmarks recognized near where a pose puts them that must agree, where few.",
    )
    covisible_keyframes: int = Field(
        8, ge=0, le=100, description="Keyframes that see what a candidate sees, whose landmarks are matched as well."
    )
    search_radius_px: float = Field(
        10.0, gt=0, le=100, description="Landmarks are looked for this far from where a first pose puts them, pixels."
    )
    min_similarity: float = Field(
        0.8, gt=0, lt=1, description="Inner product of two descriptors, at least, to be called the same point there."
    )
    look_back: int = Field(
        300,
        ge=0,
        le=10000,
        description="Frames without a pose that are kept, and looked for again in the whole map when the run ends.",
    )
    restart_after: int = Field(
        10,
        ge=1,
        le=100000,
        description="Frames lost before a new segment of the map may begin, unless recognized first.",
    )


class MetricScaleConfig(Section):
    """What makes map units meters."""

    scale_from: str = Field(
        "",
        description="frames:A:B=METRES, a known distance between two frames; groundtruth:METRES, for evaluation only; "
        "empty leaves map units.",
    )


class SlamConfig(Section):
    """The whole configuration. A verb uses some of the sections, and refuses settings of the others."""

    seed: int = Field(0, ge=0, description="Seed of every random choice; the same seed gives the same bytes.")
    input: InputConfig = InputConfig()
    features: FeaturesConfig = FeaturesConfig()
    predictor: PredictorConfig = PredictorConfig()
    tracks: TracksConfig = TracksConfig()
    initialization: InitializationConfig = InitializationConfig()
    tracking: TrackingConfig = TrackingConfig()
    keyframes: KeyframesConfig = KeyframesConfig()
    landmarks: LandmarksConfig = LandmarksConfig()
    bundle_adjustment: BundleAdjustmentConfig = BundleAdjustmentConfig()
    loop_closing: LoopClosingConfig = LoopClosingConfig()
    relocalization: RelocalizationConfig = RelocalizationConfig()
    relocalizer: RelocalizerConfig = RelocalizerConfig()
    metric_scale: MetricScaleConfig = MetricScaleConfig()
