"""Settings of the relocalizer's parts: typed, bounded, with their defaults."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A group of settings. Unknown keys are errors; values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FeaturesConfig(Section):
    max_features: int = Field(1200, ge=50, le=10000, description="Local features kept per keyframe.")


class GeometricConfig(Section):
    """Two-view pose from local features."""


class RetrievalConfig(Section):
    """Place recognition."""
