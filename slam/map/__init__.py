"""The map: keyframe graph, landmarks, observations and the log of tracked frames."""
