"""Local mapping: keyframe insertion, landmark fusion, bundle adjustment and intrinsics refinement."""
