"""All settings, typed and bounded, with their defaults and descriptions. YAML files contain only differences."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from relocalizer.config import FeaturesConfig, GeometricConfig, RelocalizationConfig, Section
from relocalizer.predictors import plugins


class InputConfig(Section):
    """Reading of images."""

    assumed_fov_deg: float = Field(
        60.0, gt=10, lt=150, description="Field of view assumed along the longer side when no camera is given, degrees."
    )
    calibrate_first: bool = Field(
        True,
        description="Estimate the focal length and distortion of a video file or folder without a camera from image "
        "pairs before the run, with the focal length in the Exif data as the assumption; false begins with "
        "assumed_fov_deg.",
    )
    second_pass: bool = Field(
        True,
        description="Track the frames of a video file or folder without a camera again when the run finds another "
        "camera than the one it tracked with.",
    )
    correct_rolling_shutter: bool = Field(
        True,
        description="Correct the images of a video file or folder for the time in which the sensor is read row by row, "
        "where quick turns of the camera show it.",
    )
    unordered: bool = Field(
        False,
        description="Map the images as photos without an order: all are matched first, and the map grows by the photo "
        "that matches it best.",
    )
    max_side_px: int = Field(
        1280, ge=160, le=4096, description="Maximum length of the longer side; larger images are shrunk to it, pixels."
    )
    mask: str = Field(
        "",
        description="Mask image with the size or aspect ratio of the source's images: black pixels are ignored, white "
        "ones used, as in COLMAP; empty uses the whole image.",
    )
    topic: str = Field("", description="Topic of the images in a ROS bag; empty takes the only one.")
    truth_topic: str = Field(
        "", description="Topic of a ROS bag with the true poses of the camera, for evaluation; empty takes none."
    )
    prefetch_frames: int = Field(
        8,
        ge=0,
        le=256,
        description="Maximum number of images read ahead by the reader thread; 0 reads in the main thread.",
    )


class PredictorConfig(Section):
    """Predictor of the relative pose of an image pair."""

    kind: str = Field("auto", description="Pair predictor; auto chooses the network when a GPU makes it fast.")
    weights: str = Field(
        "", description="Reloc3r checkpoint: a folder, a file or a Hugging Face id; empty loads the released one."
    )
    random_weights: bool = Field(
        False, description="Use Reloc3r with random weights, to measure its cost; the poses are meaningless."
    )
    device: str = Field("auto", description="Device of Reloc3r: auto, cpu, cuda, cuda:N or mps.")
    backend: Literal["auto", "torch", "openvino"] = Field(
        "torch", description="Runtime of Reloc3r; auto measures the installed ones at start and uses the fastest."
    )
    precision: Literal["auto", "float32", "bfloat16", "float16", "int8-dynamic", "fastest"] = Field(
        "auto",
        description="Precision of Reloc3r's matrix products. auto is float32 (on CUDA float16, as published); fastest "
        "measures them at start; int8-dynamic is experimental.",
    )
    geometric: GeometricConfig = GeometricConfig()

    @field_validator("kind")
    @classmethod
    def _is_known(cls, kind: str) -> str:
        names = ["auto", *plugins.known()]
        if kind not in names:
            raise ValueError(f"expected one of {', '.join(names)}, got {kind}")
        return kind


class TracksConfig(Section):
    """KLT tracking of corners."""

    max_tracks: int = Field(700, ge=50, le=5000, description="Maximum number of points tracked at a time.")
    min_distance_px: float = Field(9.0, ge=1, le=100, description="Minimum distance between tracked points, pixels.")
    window_px: int = Field(21, ge=5, le=61, description="Side length of the KLT window, pixels.")
    pyramid_levels: int = Field(4, ge=1, le=8, description="Number of KLT pyramid levels.")
    forward_backward_px: float = Field(
        0.7, gt=0, le=10, description="Maximum forward-backward error of a track, pixels."
    )
    noise_px: float = Field(0.8, gt=0.05, le=10, description="Assumed standard deviation of a tracked point, pixels.")


class InitializationConfig(Section):
    """Initialization of the map from two frames."""

    min_parallax_px: float = Field(
        24.0, gt=0, le=500, description="Minimum median motion of the tracks for a frame pair to be tried, pixels."
    )
    min_landmarks: int = Field(
        60, ge=10, le=5000, description="Minimum number of landmarks triangulated from the initial pair."
    )
    min_confirming: int = Field(
        30, ge=10, le=5000, description="Minimum number of landmarks when the pair estimate is confident."
    )
    references: int = Field(
        4, ge=1, le=20, description="Number of reference frames a new frame is matched to when KLT tracking fails."
    )
    min_landmark_parallax_deg: float = Field(
        0.3, gt=0, le=30, description="Minimum triangulation angle of a landmark of the initial pair, degrees."
    )
    min_parallax_deg: float = Field(
        1.5, gt=0, le=30, description="Minimum median triangulation angle of the initial pair, degrees."
    )


class KeyframesConfig(Section):
    """Selection of keyframes."""

    parallax_px: float = Field(
        28.0,
        gt=0,
        le=500,
        description="Median motion of the landmarks, rotation removed, at which a keyframe is inserted, pixels.",
    )
    min_survival: float = Field(
        0.6,
        gt=0,
        lt=1,
        description="Fraction of the last keyframe's landmarks still tracked below which a keyframe is inserted.",
    )
    rotation_deg: float = Field(
        12.0, gt=0, le=90, description="Rotation since the last keyframe at which one is inserted, degrees."
    )
    min_gap: int = Field(2, ge=1, le=100, description="Minimum number of frames between keyframes.")
    blur_ratio: float = Field(
        0.5, ge=0, lt=1, description="Minimum sharpness of a keyframe, relative to the median of recent frames."
    )


class TrackingConfig(Section):
    """Pose estimation of every frame."""

    min_inliers: int = Field(15, ge=6, le=1000, description="Minimum number of inlier landmarks of a pose.")
    min_inlier_ratio: float = Field(0.35, gt=0, lt=1, description="Minimum inlier ratio among the tracked landmarks.")
    look_back: int = Field(
        300,
        ge=0,
        le=10000,
        description="Maximum number of frames without a pose that are stored and relocalized at the end of the run.",
    )
    restart_after: int = Field(
        10,
        ge=1,
        le=100000,
        description="Number of lost frames after which a new map segment may be initialized.",
    )
    mapping_thread: Literal["auto", "off", "fixed", "live"] = Field(
        "auto",
        description="Insertion of keyframes in a second thread. off: tracking waits for each; fixed: the result is "
        "used a fixed number of frames later, the same on every machine; live: as soon as it is there; auto: live for "
        "a camera or stream, else off.",
    )


class LandmarksConfig(Section):
    """Landmarks of the map."""

    min_parallax_deg: float = Field(1.0, gt=0, le=30, description="Minimum triangulation angle of a landmark, degrees.")
    search_radius_px: float = Field(
        8.0, gt=0, le=100, description="Search radius around the projection of a landmark, pixels."
    )
    search_keyframes: int = Field(
        12,
        ge=0,
        le=200,
        description="Number of covisible keyframes whose landmarks are projected into a new keyframe and matched.",
    )
    min_similarity: float = Field(0.85, gt=0, lt=1, description="Minimum inner product of two matching descriptors.")


class BundleAdjustmentConfig(Section):
    """Local bundle adjustment during the run, and global bundle adjustment at its end."""

    window: int = Field(8, ge=2, le=50, description="Number of latest keyframes optimized by local bundle adjustment.")
    covisible: int = Field(
        6, ge=0, le=50, description="Maximum number of covisible keyframes added to the window with fixed poses."
    )
    max_landmarks: int = Field(
        400, ge=50, le=20000, description="Maximum number of landmarks in the window, the most observed ones."
    )
    iterations: int = Field(
        6, ge=0, le=100, description="Levenberg-Marquardt iterations per window; 0 disables local bundle adjustment."
    )
    pair_priors: bool = Field(True, description="Use the pair estimates between keyframes as priors.")
    final: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Global bundle adjustment at the end of the run; auto: unless it would take longer than the run.",
    )
    calibrate: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Refine intrinsics in the global bundle adjustment. auto: the residual distortion, and the focal "
        "length and principal point of an assumed camera; always: the focal length of a given one too; never: none.",
    )
    final_rounds: int = Field(
        3, ge=1, le=20, description="Maximum rounds of matching landmarks again and global bundle adjustment."
    )
    final_covisible: int = Field(
        40,
        ge=0,
        le=1000,
        description="Number of covisible keyframes whose landmarks are projected into each keyframe in a final round.",
    )
    final_iterations: int = Field(8, ge=1, le=200, description="Levenberg-Marquardt iterations per final round.")


class LoopClosingConfig(Section):
    """Edges of the pose graph: odometry and loops."""

    neighbors: int = Field(
        4, ge=1, le=30, description="Number of earlier keyframes that a new one gets odometry edges to."
    )
    candidates: int = Field(4, ge=0, le=50, description="Number of retrieved keyframes verified as loops.")
    min_gap: int = Field(10, ge=1, le=1000, description="Minimum number of keyframes between the two ends of a loop.")
    min_similarity: float = Field(
        0.6,
        gt=0,
        le=1,
        description="Minimum similarity of a loop candidate, relative to that between neighboring keyframes.",
    )
    suppression: int = Field(
        2, ge=0, le=100, description="Distance, in keyframes, within which only the most similar candidate is verified."
    )
    min_confidence: float = Field(
        0.1, ge=0, le=1, description="Minimum confidence of the pair estimate of a loop candidate."
    )
    min_inliers: int = Field(30, ge=8, le=1000, description="Minimum number of inlier landmarks of a loop.")
    min_cells: int = Field(
        10,
        ge=1,
        le=48,
        description="Minimum number of image cells (of 8 x 6) with inliers: a poster can occur at several places.",
    )
    single_loop_min_inliers: int = Field(
        90,
        ge=8,
        le=10000,
        description="Minimum number of inlier landmarks of a loop that is accepted without a second, consistent one.",
    )
    robust: bool = Field(
        True, description="Accept only mutually consistent loops; false accepts every verified loop (for ablation)."
    )


class MetricScaleConfig(Section):
    """Conversion of map units to meters."""

    scale_from: str = Field(
        "",
        description="frames:A:B=METERS, a known distance between two frames; marker:DICTIONARY:METERS, the side of "
        "ArUco or AprilTag markers in the scene; gps:FILE, a CSV or GPX track; depth:FOLDER, an RGB-D data set; "
        "groundtruth:METERS, for evaluation only; empty keeps map units.",
    )


class SlamConfig(Section):
    """The complete configuration. A command uses some of the sections and rejects settings of the others."""

    seed: int = Field(0, ge=0, description="Random seed; the same seed gives byte-identical results.")
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
    metric_scale: MetricScaleConfig = MetricScaleConfig()
