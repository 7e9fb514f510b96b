"""Pair predictors: local features, the Reloc3r network, and those of other distributions."""
