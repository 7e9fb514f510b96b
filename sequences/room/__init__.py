"""The rendered room of the bundled sequences: textures, furniture, light, rasteriser and camera paths."""
