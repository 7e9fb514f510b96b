"""Whether numbers can be the calibration of a real camera's images.

Numbers copied to the wrong place, in the wrong unit or of other images give a run that goes through, and a
trajectory that is wrong. The limits are wide: telephoto lenses and crops, anamorphic pixels and fisheye lenses whose
circle lies inside the image stay within them.
"""

from __future__ import annotations

import math

from relocalizer.camera import Camera
from relocalizer.errors import CameraError
from relocalizer.radial_profile import RadialProfile

MIDDLE = (0.25, 0.75)  # of width and height: where a principal point may be
NARROWEST_DEG = 10.0
WIDEST_DEG = 150.0  # as a pinhole camera; more needs a fisheye model
WIDEST_FISHEYE_DEG = 220.0
MOST_STRETCHED = 2.5  # fx over fy or the other way round; lenses for wide screens squeeze images by 2
USED_DEG = 60.0  # from the axis; a fold beyond it is cut away with the rest of a wide view
# cx and cy are taken for exchanged when the other way round they are so near the center, as shares of the longer side
# and of their distance from the center as they stand.
NEAR_CENTER, MUCH_NEARER = 0.04, 0.25


def expect_plausible(camera: Camera, source: str) -> None:
    """Refuse a calibration that cannot be of the images it is said to be of.

    Args:
        camera: as somebody gave it, with its distortion.
        source: who gave it; the error begins with it.

    Raises:
        CameraError: one line that names the number, what was expected, and what to do.
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
    # The circle of a fisheye lens may lie inside a wide image, whose sides are then black.
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
    """What a camera sees from side to side and from top to bottom, were its center that of its images, degrees.

    Of a fisheye by its model, as far as that can be believed; of others as if they had no distortion.
    """
    right, down = 0.5 * camera.width / camera.fx, 0.5 * camera.height / camera.fy
    if camera.model != "fisheye":
        return math.degrees(2 * math.atan(right)), math.degrees(2 * math.atan(down))
    profile = RadialProfile.of(camera.model, camera.distortion)
    across, along = (profile.angle_at(radius) or profile.widest for radius in (right, down))
    return math.degrees(2 * across), math.degrees(2 * along)


def _exchanged_center(camera: Camera) -> str:
    middle_x, middle_y = 0.5 * (camera.width - 1), 0.5 * (camera.height - 1)
    stands = math.hypot(camera.cx - middle_x, camera.cy - middle_y)
    exchanged = math.hypot(camera.cy - middle_x, camera.cx - middle_y)
    if exchanged >= min(MUCH_NEARER * stands, NEAR_CENTER * max(camera.width, camera.height)):
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
    """Where the distortion turns back before the sides of the image are reached, if what it shows is used."""
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
