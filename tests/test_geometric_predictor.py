import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from relocalizer import two_view
from relocalizer.camera import Camera
from relocalizer.config import FeaturesConfig, GeometricConfig
from relocalizer.errors import CameraError
from relocalizer.features import LocalFeatures, ordinary
from relocalizer.geometry import direction_angle, rotation_angle, skew
from relocalizer.interfaces import CalibratedImage, NoEstimate, PairEstimate
from relocalizer.predictors.geometric_predictor import GeometricPredictor, relate_matches
from relocalizer.two_view import Matches, find_motion, in_front, sampson_residuals

cv2.setNumThreads(1)

CAMERA = Camera(width=640, height=480, fx=520, fy=520, cx=319.5, cy=239.5)
WIDE = Camera(width=800, height=600, fx=400, fy=420, cx=390, cy=310)
CONFIG = GeometricConfig()
PLANE = np.array([0.3, 0.1, 1.0])  # plane . point = 5


def scene(
    rng,
    *,
    baseline=0.5,
    turn=0.1,
    noise=0.5,
    outliers=0.2,
    count=300,
    relief=None,
    camera_i=CAMERA,
    camera_j=CAMERA,
):
    """Matches of points 3 to 9 deep (or on a plane with some relief), and the true rotation and direction."""
    rotation = Rotation.from_rotvec(turn * rng.standard_normal(3)).as_matrix()
    direction = rng.standard_normal(3)
    direction /= np.linalg.norm(direction)
    pixels_i = rng.uniform(0, [camera_i.width, camera_i.height], (count, 2))
    rays = np.c_[camera_i.normalized(pixels_i), np.ones(count)]
    depth = rng.uniform(3, 9, count)
    if relief is not None:
        depth = 5 / (rays @ PLANE) * (1 + relief * rng.standard_normal(count))
    points_j = (rays * depth[:, None] - baseline * direction) @ rotation
    pixels_j = camera_j.project(points_j) + noise * rng.standard_normal((count, 2))
    wrong = rng.random(count) < outliers
    pixels_j[wrong] = rng.uniform(0, [camera_j.width, camera_j.height], (wrong.sum(), 2))
    matches = Matches(pixels_i + noise * rng.standard_normal((count, 2)), pixels_j, camera_i, camera_j)
    return matches, rotation, direction


def errors_deg(estimate, rotation, direction):
    turned = rotation_angle(rotation.T @ estimate.i_from_j_rotation)
    return np.degrees(turned), np.degrees(direction_angle(direction, estimate.i_from_j_direction))


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.fixture(params=["poselib", "opencv"])
def solver(request, monkeypatch):
    """Both searches; the second is what machines without a PoseLib wheel run."""
    if request.param == "opencv":
        monkeypatch.setattr(two_view, "poselib", None)
    elif two_view.poselib is None:
        pytest.skip("PoseLib has no wheel for this machine")
    return request.param


def test_the_essential_matrix_is_zero_on_true_matches_by_hand():
    # Camera j stands one unit to the right of camera i, both look ahead; a point two units ahead of i.
    matches = Matches(np.array([[319.5, 239.5]]), np.array([[59.5, 239.5]]), CAMERA, CAMERA)
    right = np.array([1.0, 0.0, 0.0])
    assert sampson_residuals(matches, np.eye(3), right)[0] == pytest.approx(0.0, abs=1e-12)
    assert in_front(matches, np.eye(3), right).all()
    assert not in_front(matches, np.eye(3), -right).any()


def test_a_point_off_its_epipolar_line_is_off_by_as_many_pixels_in_both_images_together():
    matches = Matches(np.array([[319.5, 239.5]]), np.array([[59.5, 241.5]]), CAMERA, CAMERA)
    residual = sampson_residuals(matches, np.eye(3), np.array([1.0, 0.0, 0.0]))
    assert abs(residual[0]) == pytest.approx(2 / np.sqrt(2))


def test_residuals_are_those_of_the_fundamental_matrix_for_two_different_cameras(rng):
    matches, rotation, direction = scene(rng, camera_j=WIDE, noise=0.0, outliers=0.0)
    E = skew(direction) @ rotation
    F = np.linalg.inv(CAMERA.matrix).T @ E @ np.linalg.inv(WIDE.matrix)
    products = [np.r_[i, 1] @ F @ np.r_[j, 1] for i, j in zip(matches.pixels_i, matches.pixels_j, strict=True)]
    np.testing.assert_allclose(products, 0, atol=1e-9)
    np.testing.assert_allclose(sampson_residuals(matches, rotation, direction), 0, atol=1e-6)


@pytest.mark.usefixtures("solver")
@pytest.mark.parametrize(
    ("settings", "rotation_deg", "direction_deg"),
    [
        ({"noise": 0.0, "outliers": 0.0}, 0.01, 0.05),
        ({}, 0.3, 2.0),
        ({"outliers": 0.5}, 0.4, 3.0),
        ({"camera_j": WIDE}, 0.4, 3.0),
        ({"count": 80}, 0.6, 4.0),
    ],
)
def test_a_pose_with_parallax_is_found(rng, settings, rotation_deg, direction_deg):
    for _ in range(5):
        matches, rotation, direction = scene(rng, **settings)
        estimate = relate_matches(matches, CONFIG)
        assert isinstance(estimate, PairEstimate)
        turned, aimed = errors_deg(estimate, rotation, direction)
        assert turned < rotation_deg
        assert aimed < direction_deg


def test_sigmas_are_of_the_size_of_the_errors(rng):
    rotations, directions = [], []
    for _ in range(40):
        matches, rotation, direction = scene(rng)
        estimate = relate_matches(matches, CONFIG)
        turned, aimed = np.radians(errors_deg(estimate, rotation, direction))
        rotations.append(turned / estimate.rotation_sigma_rad / np.sqrt(3))  # three axes
        directions.append(aimed / estimate.direction_sigma_rad / np.sqrt(2))  # two
    assert 0.5 < np.sqrt(np.mean(np.square(rotations))) < 2
    assert 0.5 < np.sqrt(np.mean(np.square(directions))) < 2


def test_twice_the_noise_gives_about_twice_the_sigmas():
    quiet, loud = (scene(np.random.default_rng(5), noise=noise, outliers=0.0)[0] for noise in (0.2, 0.4))
    small, large = relate_matches(quiet, CONFIG), relate_matches(loud, CONFIG)
    assert large.rotation_sigma_rad / small.rotation_sigma_rad == pytest.approx(2, rel=0.3)
    assert large.direction_sigma_rad / small.direction_sigma_rad == pytest.approx(2, rel=0.3)


@pytest.mark.usefixtures("solver")
@pytest.mark.parametrize("settings", [{}, {"noise": 1.0}, {"outliers": 0.5}, {"camera_j": WIDE}])
def test_a_pure_rotation_is_found_and_its_direction_is_unknown(rng, settings):
    for _ in range(5):
        matches, rotation, _ = scene(rng, baseline=0.0, **settings)
        estimate = relate_matches(matches, CONFIG)
        assert estimate.i_from_j_direction is None
        assert estimate.direction_sigma_rad == pytest.approx(np.pi)
        assert np.degrees(rotation_angle(rotation.T @ estimate.i_from_j_rotation)) < 0.15
        assert estimate.direction_unknown.startswith("parallax ")
        assert "px (needs " in estimate.direction_unknown


def test_a_little_translation_does_not_bend_the_rotation_of_a_pair_without_direction(rng):
    errors = []
    for _ in range(10):
        matches, rotation, _ = scene(rng, baseline=0.05)
        estimate = relate_matches(matches, CONFIG)
        if estimate.i_from_j_direction is None:
            errors.append(np.degrees(rotation_angle(rotation.T @ estimate.i_from_j_rotation)))
    assert len(errors) >= 8
    assert np.median(errors) < 0.15  # a rotation fitted as if there were no translation is 0.34 deg off


@pytest.mark.usefixtures("solver")
def test_one_plane_leaves_two_poses_and_the_rotation_sigma_reaches_the_true_one(rng):
    without_direction = 0
    for _ in range(10):
        matches, rotation, direction = scene(rng, relief=0.0, noise=0.2)
        estimate = relate_matches(matches, CONFIG)
        turned = rotation_angle(rotation.T @ estimate.i_from_j_rotation)
        assert turned < 3 * np.sqrt(3) * estimate.rotation_sigma_rad
        if estimate.i_from_j_direction is None:
            without_direction += 1
            assert "one plane and two poses " in estimate.direction_unknown
            assert "matches less (needs " in estimate.direction_unknown
        else:
            assert errors_deg(estimate, rotation, direction)[1] < 2
    assert without_direction >= 6


def test_some_relief_on_the_plane_decides_between_the_two_poses(rng):
    known = 0
    for _ in range(10):
        matches, rotation, direction = scene(rng, relief=0.1, noise=0.3)
        estimate = relate_matches(matches, CONFIG)
        if estimate.i_from_j_direction is not None:
            known += 1
            assert errors_deg(estimate, rotation, direction)[1] < 3
    assert known >= 8


@pytest.mark.usefixtures("solver")
def test_few_matches_give_no_estimate_with_number_and_threshold(rng):
    matches, _, _ = scene(rng, count=12)
    assert relate_matches(matches, CONFIG) == NoEstimate("12 matches (needs 20)")


@pytest.mark.usefixtures("solver")
def test_matches_that_agree_with_nothing_give_no_estimate_with_number_and_threshold(rng):
    matches, _, _ = scene(rng, outliers=1.0, count=60)
    estimate = relate_matches(matches, CONFIG)
    assert isinstance(estimate, NoEstimate)
    assert "of 60 matches agree with one" in estimate.reason
    assert "(needs 20)" in estimate.reason


@pytest.mark.usefixtures("solver")
@pytest.mark.parametrize("count", [0, 1, 4, 5, 6, 8])
def test_a_handful_of_matches_never_breaks_the_solver(rng, count):
    matches, _, _ = scene(rng, count=count, outliers=0.0)
    motion = find_motion(matches, 1.5)
    assert motion is None or np.isfinite(motion.rotation).all()


@pytest.mark.usefixtures("solver")
def test_matches_all_at_one_place_give_a_value_and_no_crash():
    same = np.full((40, 2), 100.0)
    estimate = relate_matches(Matches(same, same, CAMERA, CAMERA), CONFIG)
    assert isinstance(estimate, NoEstimate) or estimate.confidence < 0.1


def test_confidence_grows_with_agreeing_matches_and_with_their_spread(rng):
    matches, _, _ = scene(rng, count=400, outliers=0.1)
    corner = (matches.pixels_i < [200, 160]).all(axis=1)
    few = np.flatnonzero(~corner)[: corner.sum()]
    everything, cornered, thin = (
        relate_matches(matches.subset(kept), GeometricConfig(min_inliers=8)).confidence
        for kept in (np.arange(len(matches)), np.flatnonzero(corner), few)
    )
    assert everything > 0.99
    assert cornered < thin < everything + 1e-12


@pytest.mark.usefixtures("solver")
def test_the_same_matches_give_the_same_bytes(rng):
    matches, _, _ = scene(rng)
    first, second = relate_matches(matches, CONFIG), relate_matches(matches, CONFIG)
    assert first.i_from_j_rotation.tobytes() == second.i_from_j_rotation.tobytes()
    assert first.i_from_j_direction.tobytes() == second.i_from_j_direction.tobytes()
    assert first.confidence == second.confidence


# Images, through detection and matching.


def texture(rng, height, width):
    canvas = np.zeros((height, width), np.float32)
    for cell in (4, 8, 16, 32):
        grid = rng.standard_normal((height // cell + 1, width // cell + 1)).astype(np.float32)
        canvas += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(128 + 35 * canvas, 0, 255).astype(np.uint8)


def photograph(rng_seed, camera, world_from_cam_rotation, center):
    """A far wall 8 units ahead and a board 4 units ahead of the world's origin, both with fixed textures."""
    rng = np.random.default_rng(rng_seed)
    shown = np.zeros((camera.height, camera.width), np.uint8)
    for distance, width, height, shift in ((8.0, 16.0, 12.0, (0.0, 0.0)), (4.0, 2.2, 1.8, (0.6, -0.3))):
        image = texture(rng, int(height * 90), int(width * 90))
        size = image.shape
        # texture pixel -> world: on the plane z = distance
        world_from_texel = np.array(
            [
                [width / size[1], 0, shift[0] - width / 2],
                [0, height / size[0], shift[1] - height / 2],
                [0, 0, distance],
            ]
        )
        shifted = world_from_texel - np.outer(center, [0, 0, 1])
        H = camera.matrix @ world_from_cam_rotation.T @ shifted
        target = (camera.width, camera.height)
        cover = cv2.warpPerspective(np.full(size, 255, np.uint8), H, target)
        warped = cv2.warpPerspective(image, H, target, flags=cv2.INTER_AREA)
        shown = np.where(cover > 128, warped, shown)
    return cv2.cvtColor(shown, cv2.COLOR_GRAY2RGB)


@pytest.fixture(scope="module")
def predictor():
    return GeometricPredictor(FeaturesConfig(max_features=800), CONFIG)


@pytest.fixture(scope="module")
def album(predictor):
    """Encoded images: straight, moved (and turned), turned only, and moved with another camera."""
    turned = Rotation.from_rotvec([0.02, -0.12, 0.03]).as_matrix()
    moved = np.array([0.5, 0.1, 0.2])
    images = {
        "straight": (CAMERA, np.eye(3), np.zeros(3)),
        "moved": (CAMERA, turned, moved),
        "turned": (CAMERA, turned, np.zeros(3)),
        "moved wide": (WIDE, turned, moved),
    }
    return {
        name: (predictor.encode([CalibratedImage(photograph(1, *pose), pose[0])])[0], *pose[1:])
        for name, pose in images.items()
    }


@pytest.mark.parametrize("name", ["moved", "moved wide"])
def test_images_of_a_scene_with_depth_give_rotation_and_direction(predictor, album, name):
    [estimate] = predictor.relate([(album["straight"][0], album[name][0])])
    center = album[name][2]
    turned, aimed = errors_deg(estimate, album[name][1], center / np.linalg.norm(center))
    assert turned < 0.2
    assert aimed < 2.0
    assert estimate.confidence > 0.9
    assert estimate.inliers > 50


def test_images_of_a_turn_give_the_rotation_alone(predictor, album):
    [estimate] = predictor.relate([(album["straight"][0], album["turned"][0])])
    assert estimate.i_from_j_direction is None
    assert np.degrees(rotation_angle(album["turned"][1].T @ estimate.i_from_j_rotation)) < 0.1


@pytest.mark.parametrize("names", [("straight", "moved"), ("straight", "turned"), ("moved", "moved wide")])
def test_both_directions_of_a_pair_are_the_same_evidence(predictor, album, names):
    i, j = album[names[0]][0], album[names[1]][0]
    forth, back = predictor.relate([(i, j), (j, i)])
    back = back.reversed()
    np.testing.assert_allclose(forth.i_from_j_rotation, back.i_from_j_rotation, atol=1e-12)
    if forth.i_from_j_direction is not None:
        np.testing.assert_allclose(forth.i_from_j_direction, back.i_from_j_direction, atol=1e-12)
    assert (forth.confidence, forth.inliers) == (back.confidence, back.inliers)
    assert forth.direction_unknown == back.direction_unknown


def test_an_image_and_itself_are_one_place_without_direction(predictor, album):
    [estimate] = predictor.relate([(album["straight"][0], album["straight"][0])])
    assert rotation_angle(estimate.i_from_j_rotation) < 1e-6
    assert estimate.i_from_j_direction is None
    assert estimate.direction_unknown == "parallax 0.0 px (needs 1.5)"


def test_images_of_two_places_give_no_estimate(predictor, album):
    elsewhere = predictor.encode([CalibratedImage(photograph(2, CAMERA, np.eye(3), np.zeros(3)), CAMERA)])[0]
    [estimate] = predictor.relate([(album["straight"][0], elsewhere)])
    assert isinstance(estimate, NoEstimate)
    assert "(needs 20)" in estimate.reason


def test_a_blank_image_gives_no_estimate(predictor, album):
    blank = predictor.encode([CalibratedImage(np.zeros((480, 640, 3), np.uint8), CAMERA)])[0]
    assert predictor.relate([(album["straight"][0], blank)]) == [NoEstimate("0 matches (needs 20)")]


def test_the_moved_image_is_described_as_more_similar_than_another_place(predictor, album):
    elsewhere = predictor.encode([CalibratedImage(photograph(2, CAMERA, np.eye(3), np.zeros(3)), CAMERA)])[0]
    straight, moved, other = (
        predictor.describe(encoded) for encoded in (album["straight"][0], album["moved"][0], elsewhere)
    )
    assert straight @ moved > straight @ other + 0.1


def test_points_smaller_than_an_ordinary_search_finds_do_not_change_how_a_place_is_described(predictor, album, rng):
    found = album["straight"][0].features
    tiny = rng.random((300, 128)).astype(np.float32)
    tiny /= np.linalg.norm(tiny, axis=1, keepdims=True)
    more = LocalFeatures(
        np.concatenate([found.pixels, rng.uniform(0, 480, (300, 2)).astype(np.float32)]),
        np.concatenate([found.descriptors, tiny]),
        np.concatenate([found.scales, np.full(300, 2.0, np.float32)]),
    )
    described = predictor.describe(predictor.encode_features(more, CAMERA))
    assert described @ predictor.describe(album["straight"][0]) > 1 - 1e-6


def test_an_ordinary_search_finds_no_point_too_small_to_describe_a_place(album):
    found = album["straight"][0].features
    assert len(ordinary(found, FeaturesConfig())) == len(found)


def test_features_found_before_give_the_same_as_the_image(predictor, album):
    encoded = album["straight"][0]
    again = predictor.encode_features(encoded.features, CAMERA)
    viewed = predictor.encode([CalibratedImage(np.zeros((480, 640, 3), np.uint8), CAMERA, encoded.features)])[0]
    assert again.order == viewed.order == encoded.order
    assert viewed.features is encoded.features


def test_no_pairs_give_no_estimates(predictor):
    assert predictor.relate([]) == []
    assert predictor.encode([]) == []


def test_a_view_without_a_camera_is_refused_with_what_to_do(predictor):
    with pytest.raises(CameraError, match=r"came without a camera; it needs the intrinsics, so pass a camera.yaml"):
        predictor.encode([CalibratedImage(np.zeros((8, 8, 3), np.uint8))])


def test_a_distorted_camera_is_refused_with_what_to_do(predictor):
    distorted = Camera(width=8, height=8, fx=5, fy=5, cx=4, cy=4, model="radtan", distortion=(0.1, 0.0, 0.0, 0.0))
    with pytest.raises(CameraError, match=r"got model radtan; undistort it by relocalizer.Undistorter first"):
        predictor.encode([CalibratedImage(np.zeros((8, 8, 3), np.uint8), distorted)])


def test_encoded_values_cannot_be_changed(album):
    with pytest.raises(AttributeError):
        album["straight"][0].features = LocalFeatures(*(np.zeros(0, np.float32),) * 3)
