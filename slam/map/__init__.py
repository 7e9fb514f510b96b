"""The map: keyframe graph, landmarks, observations and frame log."""
