"""Plausibility checks of a camera calibration.

A calibration with swapped numbers, in the wrong unit or of other images lets a run finish with a wrong trajectory.
The limits are wide: telephoto lenses, crops, anamorphic pixels, and fisheye lenses whose image circle lies inside the
image are accepted.
"""

from __future__ import annotations

import math

from relocalizer.camera import Camera
from relocalizer.errors import CameraError
from relocalizer.radial_profile import RadialProfile

MIDDLE = (0.25, 0.75)  # range of a plausible principal point, as fractions of width and height
NARROWEST_DEG = 10.0  # minimum angle of view, degrees
WIDEST_DEG = 150.0  # maximum angle of view of a pinhole or radtan camera, degrees
WIDEST_FISHEYE_DEG = 220.0  # maximum angle of view of a fisheye camera, degrees
MOST_STRETCHED = 2.5  # maximum ratio of fx and fy; anamorphic lenses squeeze images by 2
USED_DEG = 60.0  # minimum angle from the axis of a tolerated fold, degrees; undistortion crops a view beyond it
# Thresholds for swapped cx and cy: maximum distance of the swapped point from the image center, as a fraction of the
# longer side, and as a fraction of the distance of the given point.
NEAR_CENTER, MUCH_NEARER = 0.04, 0.25


def expect_plausible(camera: Camera, source: str) -> None:
    """Reject a calibration that is implausible for its images.

    Args:
        camera: the calibration as given, with its distortion.
        source: origin of the calibration, at the start of the error message.

    Raises:
        CameraError: one line with the number, the expected range, and what to do.
    """
    problem = (
        _unequal_focal_lengths(camera)
        or _impossible_angle(camera)
        or _exchanged_center(camera)
        or _center_at_the_side(camera)
        or _fold(camera)
    )
    if problem:
        raise CameraError(f"{source}: {problem}; pass --camera with one made for these images")


def _unequal_focal_lengths(camera: Camera) -> str:
    stretch = max(camera.fx / camera.fy, camera.fy / camera.fx)
    if stretch <= MOST_STRETCHED:
        return ""
    return (
        f"fx {camera.fx:.6g} and fy {camera.fy:.6g} differ by a factor of {stretch:.3g}, of one camera they are nearly "
        "equal"
    )


def _impossible_angle(camera: Camera) -> str:
    across_deg = angles_across_deg(camera)
    fisheye = camera.model == "fisheye"
    widest = WIDEST_FISHEYE_DEG if fisheye else WIDEST_DEG
    # The image circle of a fisheye lens may lie inside a wide image with black sides.
    too_wide = min(across_deg) > widest if fisheye else max(across_deg) > widest
    if not too_wide and max(across_deg) >= NARROWEST_DEG:
        return ""
    focal = f"fx {camera.fx:.6g} and fy {camera.fy:.6g}"
    return (
        f"{focal} in images of {_size(camera)} are an angle of view of {max(across_deg):.1f} degrees, expected "
        f"{NARROWEST_DEG:g} to {widest:g} with model {camera.model}; focal lengths are in pixels of the images, "
        "neither millimetres nor shares of their width"
    )


def angles_across_deg(camera: Camera) -> tuple[float, float]:
    """Horizontal and vertical angle of view of a camera, with its principal point at the image center, degrees.

    That of a fisheye follows from its model within the model's valid range; others are taken without distortion.
    """
    right, down = 0.5 * camera.width / camera.fx, 0.5 * camera.height / camera.fy
    if camera.model != "fisheye":
        return math.degrees(2 * math.atan(right)), math.degrees(2 * math.atan(down))
    profile = RadialProfile.of(camera.model, camera.distortion)
    across, along = (profile.angle_at(radius) or profile.widest for radius in (right, down))
    return math.degrees(2 * across), math.degrees(2 * along)


def _exchanged_center(camera: Camera) -> str:
    middle_x, middle_y = 0.5 * (camera.width - 1), 0.5 * (camera.height - 1)
    offset = math.hypot(camera.cx - middle_x, camera.cy - middle_y)
    swapped_offset = math.hypot(camera.cy - middle_x, camera.cx - middle_y)
    if swapped_offset >= min(MUCH_NEARER * offset, NEAR_CENTER * max(camera.width, camera.height)):
        return ""
    return (
        f"cx {camera.cx:.1f} and cy {camera.cy:.1f} are exchanged, as the center of {_size(camera)} images is near "
        f"({middle_x:.1f}, {middle_y:.1f})"
    )


def _center_at_the_side(camera: Camera) -> str:
    shares = (camera.cx / camera.width, camera.cy / camera.height)
    if all(MIDDLE[0] < share < MIDDLE[1] for share in shares):
        return ""
    return (
        f"its center ({camera.cx:.1f}, {camera.cy:.1f}) is not in the middle half of {_size(camera)} images; were "
        "they resized or cropped?"
    )


def _fold(camera: Camera) -> str:
    """The problem of a distortion that is not monotonic within the used part of the image; empty without one."""
    profile = RadialProfile.of(camera.model, camera.distortion)
    sides = (0.5 * camera.width / camera.fx, 0.5 * camera.height / camera.fy)
    reached = min(sides) if camera.model == "fisheye" else max(sides)  # a fisheye's circle may lie inside
    if profile.angle_at(reached) is not None or math.degrees(profile.widest) >= USED_DEG:
        return ""
    return (
        f"its distortion folds the image over {profile.radii[-1] * camera.fx:.0f} px from the center, inside "
        f"{_size(camera)} images; are its numbers in the order of model {camera.model} (radtan k1 k2 p1 p2 k3, "
        "fisheye k1 k2 k3 k4)?"
    )


def _size(camera: Camera) -> str:
    return f"{camera.width}x{camera.height}"
