"""Loop closing: detection, verification, consistency checks and pose graph optimization."""
