"""Settings of the relocalizer's parts: typed, bounded, with their defaults."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A group of settings. Unknown keys are errors; values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FeaturesConfig(Section):
    """Local features of a keyframe."""

    max_features: int = Field(1200, ge=50, le=10000, description="Local features kept per keyframe.")
    detection_scale: float = Field(
        0.7,
        ge=0.25,
        le=1,
        description="Points are looked for in the image shrunk by this; smaller is faster.",
    )


class GeometricConfig(Section):
    """Two-view pose from local features."""

    match_ratio: float = Field(
        0.8,
        gt=0,
        le=1,
        description="A match must be nearer than this share of the distance to the second nearest.",
    )
    epipolar_px: float = Field(
        1.5, gt=0, le=20, description="Largest distance of an inlier from its epipolar line, pixels."
    )
    min_parallax_px: float = Field(
        1.5,
        ge=0,
        le=100,
        description="Less motion than this beyond the rotation leaves the direction unknown, pixels.",
    )
    min_inliers: int = Field(20, ge=8, le=10000, description="Fewer agreeing matches give no estimate.")


class AveragingConfig(Section):
    """One pose from what several known views say of it."""

    rotation_gate_deg: float = Field(
        3.0, gt=0, le=90, description="A rotation this near to the average agrees whatever its sigma, degrees."
    )
    direction_gate_deg: float = Field(
        6.0, gt=0, le=90, description="A direction this near to the average agrees whatever its sigma, degrees."
    )
    max_relative_sigma: float = Field(
        0.4, gt=0, le=10, description="A position less certain than this share of its distance is called unknown."
    )


class PosedImagesConfig(Section):
    """A map from images whose poses are known."""

    min_distance: float = Field(
        0.0, ge=0, description="An image nearer than this to a kept one, and no more turned, is left out; 0 keeps all."
    )
    min_angle_deg: float = Field(
        10.0, ge=0, le=180, description="An image turned by more than this from all near ones is kept, degrees."
    )
    partners: int = Field(12, ge=1, le=100, description="Images that each one is matched to, at growing ranks.")
    max_angle_deg: float = Field(
        60.0, gt=0, le=180, description="Images that look farther apart than this are not matched, degrees."
    )
    match_ratio: float = Field(
        0.8, gt=0, le=1, description="A match must be nearer than this share of the distance to the second nearest."
    )
    min_matches: int = Field(12, ge=1, le=10000, description="Pairs with fewer matches that fit the poses say nothing.")
    epipolar_px: float = Field(3.0, gt=0, le=100, description="A match fits within this of its epipolar lines, pixels.")
    max_error_px: float = Field(3.0, gt=0, le=100, description="An observation fits within this of its point, pixels.")
    min_parallax_deg: float = Field(
        1.0, gt=0, le=30, description="Least angle between two rays of a landmark, degrees."
    )
    min_observers: int = Field(2, ge=2, le=100, description="Images that must see a landmark.")


class RelocalizerConfig(Section):
    """One image located in a map (slam relocalize)."""

    candidates: int = Field(8, ge=1, le=100, description="Keyframes an image is related to.")
    pool: int = Field(100, ge=1, le=1000, description="Retrieved keyframes that the candidates are chosen from.")
    min_separation: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Candidates lie farther apart than this share of the scene's depth, or are turned by 5 degrees.",
    )
    covisible_keyframes: int = Field(
        6, ge=0, le=100, description="Keyframes that see the same landmarks, searched as well."
    )
    match_ratio: float = Field(
        0.85, gt=0, le=1, description="A match must be nearer than this share of the distance to the second nearest."
    )
    noise_px: float = Field(1.2, gt=0, le=20, description="Standard deviation of a local feature, pixels.")
    search_radius_px: float = Field(
        10.0, ge=0, le=100, description="Landmarks are looked for this far from where a first pose puts them, pixels."
    )
    min_similarity: float = Field(
        0.8, gt=0, lt=1, description="Inner product of two descriptors, at least, to be called the same point there."
    )
    min_inliers: int = Field(12, ge=4, le=1000, description="Landmarks that must agree with a pose.")
    min_cells: int = Field(4, ge=1, le=48, description="Of the image's 8 x 6 cells, those that must hold some.")
    max_rival_share: float = Field(
        0.7, gt=0, le=1, description="A second place with this share of the landmarks of the first makes both doubtful."
    )
    max_disagreement_deg: float = Field(
        8.0, gt=0, le=180, description="Angle between the averaged pose and that of the landmarks, at most, degrees."
    )
    min_views: int = Field(3, ge=2, le=100, description="Keyframes that must agree with a pose without landmarks.")
    min_confidence: float = Field(0.5, ge=0, le=1, description="A pose less likely to be right is not given.")
    averaging: AveragingConfig = AveragingConfig()
