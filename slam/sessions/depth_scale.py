"""Metric scale from the depth images of an RGB-D data set: depths of landmarks, in meters and in map units."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from relocalizer.errors import UserError
from relocalizer.geometry import FloatArray
from slam.evaluation.trajectory import Trajectory
from slam.input.depth_images import DepthImages, depth_images
from slam.map.slam_map import SlamMap
from slam.sessions.scale_estimate import LARGEST_SIGMA, FinishedMap, ScaleError, ScaleEstimate

FEWEST_LANDMARKS = 10  # minimum number of landmarks of a keyframe that have a depth
FEWEST_KEYFRAMES = 2  # minimum number of keyframes with that many landmarks


@dataclass(frozen=True, slots=True)
class DepthFolder:
    """Scale reference: the depth images of the data set in `folder`, whose images are those of the run."""

    folder: Path

    @property
    def spec(self) -> str:
        """The reference as an argument of `--scale-from`."""
        return f"depth:{self.folder}"

    @property
    def source(self) -> str:
        """Source of the metric scale, in words."""
        return f"depth images of {self.folder.name}"

    def expect(self, ground_truth: Trajectory | None) -> None:
        """Check that there are depth images. Raises ScaleError otherwise."""
        self._images()

    def measure(self, finished: FinishedMap) -> ScaleEstimate:
        """The scale of the largest segment. Raises ScaleError if the depths do not determine it.

        It is the median over the keyframes of the median ratio of their landmarks, because the depths of a keyframe
        share its errors.
        """
        images, slam_map = self._images(), finished.slam_map
        medians, landmarks = [], 0
        for k in slam_map.graph.segment(finished.result.segment):
            try:
                ratios = _log_ratios(slam_map, k, images)
            except UserError as error:
                raise ScaleError(f"--scale-from {self.spec}: {error}") from None
            if len(ratios) >= FEWEST_LANDMARKS:
                medians.append(float(np.median(ratios)))
                landmarks += len(ratios)
        if len(medians) < FEWEST_KEYFRAMES:
            raise ScaleError(
                f"--scale-from {self.spec}: {len(medians)} keyframes have {FEWEST_LANDMARKS} landmarks with a depth, "
                f"{FEWEST_KEYFRAMES} needed; are these the depth images of the images of the run?"
            )
        logs = np.array(medians)
        deviation = 1.4826 * float(np.median(np.abs(logs - np.median(logs))))
        # The median of N values has pi / 2 times the variance of their mean.
        sigma = max(deviation, 1e-6) * float(np.sqrt(0.5 * np.pi / len(medians)))
        if sigma > LARGEST_SIGMA:
            raise ScaleError(f"--scale-from {self.spec}: the depths contradict each other ({100 * deviation:.0f} %)")
        evidence = f"{landmarks} landmarks in {len(medians)} keyframes"
        return ScaleEstimate(float(np.exp(np.median(logs))), sigma, evidence)

    def _images(self) -> DepthImages:
        try:
            return depth_images(self.folder)
        except UserError as error:
            raise ScaleError(f"--scale-from {self.spec}: {error}") from None


def _log_ratios(slam_map: SlamMap, k: int, images: DepthImages) -> FloatArray:
    """Logarithms of meters per map unit, from the landmarks that a keyframe observes and that have a depth in it."""
    observed, landmarks = slam_map.landmarks.observed[k], slam_map.landmarks
    is_landmark = np.isin(observed.ids, landmarks.landmark_ids())
    points_world = landmarks.points_world(observed.ids[is_landmark], slam_map.graph)
    pose, camera = slam_map.graph.world_from_keyframe[k], slam_map.camera_of(k)
    in_map = ((points_world - pose.translation) @ pose.rotation)[:, 2]
    directions = camera.normalized(observed.pixels[is_landmark])
    in_meters = images.at(slam_map.graph.keyframes[k].frame_index, directions, camera)
    is_known = (in_map > 0) & np.isfinite(in_meters)
    return np.asarray(np.log(in_meters[is_known] / in_map[is_known]), dtype=np.float64)
