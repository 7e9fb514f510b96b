"""Odometry edges, loop detection, verification and closing, pose graph optimization."""
