"""Keyframe insertion, landmark fusion and bundle adjustment."""
