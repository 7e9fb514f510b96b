"""Settings of the relocalizer package: typed, bounded, with their defaults."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A group of settings. Unknown keys are errors; values are frozen after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FeaturesConfig(Section):
    """Local features of a keyframe."""

    max_features: int = Field(1200, ge=50, le=10000, description="Local features kept per keyframe.")
    detection_scale: float = Field(
        0.7,
        ge=0.25,
        le=1,
        description="Scale of the image in which keypoints are detected; smaller is faster.",
    )


class GeometricConfig(Section):
    """Two-view pose from local features."""

    match_ratio: float = Field(
        0.8,
        gt=0,
        le=1,
        description="Maximum ratio of the descriptor distances to the nearest and the second nearest neighbor.",
    )
    epipolar_px: float = Field(
        1.5, gt=0, le=20, description="Maximum distance of an inlier from its epipolar line, pixels."
    )
    min_parallax_px: float = Field(
        1.5,
        ge=0,
        le=100,
        description="Minimum parallax after removing the rotation for the direction to be estimated, pixels.",
    )
    min_inliers: int = Field(20, ge=8, le=10000, description="Minimum number of inlier matches of a pair.")


class AveragingConfig(Section):
    """Averaging of relative poses to several known views."""

    rotation_gate_deg: float = Field(
        3.0, gt=0, le=90, description="Minimum inlier threshold of a rotation, degrees; 3 sigmas if that is larger."
    )
    direction_gate_deg: float = Field(
        6.0, gt=0, le=90, description="Minimum inlier threshold of a direction, degrees; 3 sigmas if that is larger."
    )
    max_relative_sigma: float = Field(
        0.4, gt=0, le=10, description="Maximum standard deviation of a position, as a fraction of its distance."
    )
    min_confidence: float = Field(
        0.5, ge=0, le=1, description="Minimum confidence of an averaged pose that is returned without landmarks."
    )


class PosedImagesConfig(Section):
    """Mapping from images with known poses."""

    min_distance: float = Field(
        0.0, ge=0, description="Minimum distance between kept images with similar viewing directions; 0 keeps all."
    )
    min_angle_deg: float = Field(
        10.0, ge=0, le=180, description="Minimum angle to all nearby kept images for an image to be kept, degrees."
    )
    partners: int = Field(
        12, ge=1, le=100, description="Number of images that each image is matched to, at growing ranks of similarity."
    )
    max_angle_deg: float = Field(
        60.0, gt=0, le=180, description="Maximum angle between the viewing directions of matched images, degrees."
    )
    match_ratio: float = Field(
        0.8,
        gt=0,
        le=1,
        description="Maximum ratio of the descriptor distances to the nearest and the second nearest neighbor.",
    )
    min_matches: int = Field(
        12, ge=1, le=10000, description="Minimum number of matches of a pair that are consistent with the poses."
    )
    epipolar_px: float = Field(
        3.0, gt=0, le=100, description="Maximum distance of a match from its epipolar lines, pixels."
    )
    max_error_px: float = Field(3.0, gt=0, le=100, description="Maximum reprojection error of an observation, pixels.")
    min_parallax_deg: float = Field(
        1.0, gt=0, le=30, description="Minimum angle between two rays of a landmark, degrees."
    )
    min_observers: int = Field(2, ge=2, le=100, description="Minimum number of images that observe a landmark.")


class RelocalizationConfig(Section):
    """Relocalization of an image in a map: after tracking loss (slam run), and in a stored map (slam relocalize)."""

    candidates: int = Field(8, ge=1, le=100, description="Number of candidate keyframes related to an image.")
    pool: int = Field(
        100, ge=1, le=1000, description="Number of retrieved keyframes from which the candidates are chosen."
    )
    min_separation: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Minimum distance between candidates within 5 degrees of rotation, as a fraction of scene depth.",
    )
    covisible_keyframes: int = Field(
        6, ge=0, le=100, description="Number of covisible keyframes whose landmarks are matched by projection as well."
    )
    match_ratio: float = Field(
        0.85,
        gt=0,
        le=1,
        description="Maximum ratio of the descriptor distances to the nearest and the second nearest neighbor.",
    )
    search_radius_px: float = Field(
        10.0, ge=0, le=100, description="Search radius around projected landmarks in guided matching, pixels."
    )
    min_similarity: float = Field(
        0.8, gt=0, lt=1, description="Minimum inner product of matching descriptors in guided matching."
    )
    min_inliers: int = Field(12, ge=4, le=1000, description="Minimum number of inlier landmarks of a pose.")
    min_cells: int = Field(
        4, ge=1, le=48, description="Minimum number of the image's 8 x 6 cells that contain inliers."
    )
    max_rival_share: float = Field(
        0.7, gt=0, le=1, description="Maximum inlier count of a pose at a second place, relative to the best pose."
    )
    max_disagreement_deg: float = Field(
        8.0, gt=0, le=180, description="Maximum angle between the averaged pose and the landmark pose, degrees."
    )
    min_views: int = Field(
        3,
        ge=2,
        le=100,
        description="Minimum number of consistent keyframes for a pose without landmarks, and to reject one with them.",
    )
    min_confidence: float = Field(0.9, ge=0, le=1, description="Minimum confidence of a pose from landmarks.")
    averaging: AveragingConfig = AveragingConfig()
