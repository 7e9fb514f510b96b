"""Tracking: KLT, frame pose, keyframe policy, initialization, rotation-only tracking."""
