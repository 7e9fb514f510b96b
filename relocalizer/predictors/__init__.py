"""Pair predictors: relative pose from local features, or from the Reloc3r network."""
