"""Every tunable: typed, bounded, documented, with its default here. YAML files hold only differences."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from relocalizer.config import FeaturesConfig, GeometricConfig, RetrievalConfig, Section


class InputConfig(Section):
    assumed_fov_deg: float = Field(
        60.0, gt=10, lt=150, description="Angle of view across the longer side when no camera is given, degrees."
    )
    max_side_px: int = Field(
        960, ge=160, le=4096, description="Larger pictures are shrunk so that their longer side has this many pixels."
    )
    prefetch_frames: int = Field(8, ge=0, le=256, description="Pictures read ahead by the reading thread.")


class PredictorConfig(Section):
    kind: Literal["auto", "geometric", "reloc3r-512", "reloc3r-224"] = Field(
        "auto", description="Who estimates the pose of a pair of pictures."
    )
    geometric: GeometricConfig = GeometricConfig()


class SlamConfig(Section):
    """The whole configuration of a run."""

    seed: int = Field(0, ge=0, description="Seed of every random choice; the same seed gives the same bytes.")
    input: InputConfig = InputConfig()
    features: FeaturesConfig = FeaturesConfig()
    predictor: PredictorConfig = PredictorConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
