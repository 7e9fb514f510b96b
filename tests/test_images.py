"""Images and the camera that took them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from relocalizer.camera import Camera, Undistorter, load_camera
from relocalizer.errors import CameraError, SequenceError
from relocalizer.images import Image, is_cut_off, read_image, shrink, size_within, to_gray

PINHOLE = Camera(width=640, height=480, fx=500.0, fy=510.0, cx=320.0, cy=240.0)
RADTAN = Camera(
    width=752,
    height=480,
    fx=458.654,
    fy=457.296,
    cx=367.215,
    cy=248.375,
    model="radtan",
    distortion=(-0.28340811, 0.07395907, 0.00019359, 1.76187114e-05),
)
FISHEYE = Camera(
    width=512,
    height=512,
    fx=190.978,
    fy=190.973,
    cx=254.932,
    cy=256.897,
    model="fisheye",
    distortion=(0.0034823894, 0.00071502654, -0.0020532361, 0.00020293676),
)
CAMERA_YAML = "width: 640\nheight: 480\nfx: 500\nfy: 510\ncx: 320\ncy: 240\n"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def image(rng: np.random.Generator) -> Image:
    """A smooth image of many colors, so that no codec can shrink it to nothing."""
    noise = rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), 2), dtype=np.uint8)


def encode(suffix: str, rgb: Image, *options: int) -> bytes:
    return cv2.imencode(suffix, rgb[..., ::-1], list(options))[1].tobytes()


# Camera


def test_a_resized_camera_projects_to_the_resized_pixel() -> None:
    # The center of the whole image is (319.5, 239.5) at 640x480 and (159.5, 119.5) at half the size.
    centered = Camera(width=640, height=480, fx=500.0, fy=500.0, cx=319.5, cy=239.5)
    half = centered.resized(320, 240)
    assert (half.fx, half.fy, half.cx, half.cy) == (250.0, 250.0, 159.5, 119.5)
    assert (half.width, half.height) == (320, 240)


def test_resizing_there_and_back_changes_nothing() -> None:
    back = PINHOLE.resized(320, 240).resized(640, 480)
    assert np.allclose(back.matrix, PINHOLE.matrix)


def test_a_cropped_camera_sees_the_same_point_further_to_the_left() -> None:
    cropped = PINHOLE.cropped(100, 40, 300, 200)
    point = np.array([[0.1, 0.2, 2.0]])
    assert np.allclose(PINHOLE.project(point) - cropped.project(point), [[100.0, 40.0]])
    assert (cropped.width, cropped.height) == (300, 200)


def test_normalized_undoes_projection() -> None:
    points = np.array([[0.3, -0.2, 2.0], [-1.0, 0.5, 4.0]])
    assert np.allclose(PINHOLE.normalized(PINHOLE.project(points)), points[:, :2] / points[:, 2:])


def test_contains_counts_the_border_pixels_in_and_the_next_out() -> None:
    pixels = np.array([[0.0, 0.0], [639.0, 479.0], [639.1, 0.0], [-0.1, 0.0], [5.0, 5.0]])
    assert PINHOLE.contains(pixels).tolist() == [True, True, False, False, True]
    assert PINHOLE.contains(pixels, margin=5.0).tolist() == [False, False, False, False, True]


def test_an_assumed_camera_spans_its_field_of_view_across_the_longer_side() -> None:
    portrait = Camera.assume(480, 640, fov_deg=90.0)
    assert portrait.fx == portrait.fy == pytest.approx(320.0)
    assert (portrait.cx, portrait.cy) == (239.5, 319.5)
    assert portrait.assumed


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"fx": 0.0}, "fx, fy must be positive"),
        ({"cx": float("nan")}, "all numbers finite"),
        ({"width": 0}, "width and height must be positive"),
        ({"model": "orthographic"}, "model must be pinhole, radtan or fisheye, got 'orthographic'"),
        ({"model": "radtan", "distortion": (0.1,)}, "radtan takes 4 or 5 or 8 distortion numbers, got 1"),
        ({"distortion": (0.1, 0.0, 0.0, 0.0)}, "pinhole takes 0 distortion numbers, got 4"),
    ],
)
def test_an_impossible_camera_is_refused(change: dict[str, object], sentence: str) -> None:
    values: dict[str, object] = {
        "width": 640,
        "height": 480,
        "fx": 500.0,
        "fy": 500.0,
        "cx": 320.0,
        "cy": 240.0,
    }
    with pytest.raises(CameraError, match=sentence):
        Camera(**(values | change))  # type: ignore[arg-type]


# camera.yaml


def test_a_camera_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    path.write_text("model: radtan\n" + CAMERA_YAML + "distortion: [0.1, -0.2, 1e-3, 0]\n")
    camera = load_camera(path)
    assert (camera.width, camera.height, camera.fx, camera.fy, camera.cx, camera.cy) == (
        640,
        480,
        500,
        510,
        320,
        240,
    )
    assert camera.model == "radtan"
    assert camera.distortion == (0.1, -0.2, 0.001, 0.0)


def test_a_camera_file_without_a_model_is_pinhole_or_radtan_by_its_distortion(tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    path.write_text(CAMERA_YAML + "distortion: []\n")
    assert load_camera(path).model == "pinhole"
    path.write_text(CAMERA_YAML + "distortion: [0.1, 0, 0, 0, 0]\n")
    assert load_camera(path).model == "radtan"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "expected lines such as 'fx: 525.0'"),
        ("just text", "expected lines such as 'fx: 525.0'"),
        (CAMERA_YAML.replace("fx: 500\n", ""), "missing fx"),
        (CAMERA_YAML + "fz: 3\n", "unknown fz"),
        (CAMERA_YAML.replace("500", "wide"), "fx: expected a number, got 'wide'"),
        (CAMERA_YAML.replace("500", "true"), "fx: expected a number, got True"),
        (CAMERA_YAML.replace("500", "[500]"), "fx: expected a number"),
        (CAMERA_YAML.replace("640", "640.5"), "width: expected a whole number of pixels, got 640.5"),
        (CAMERA_YAML.replace("500", "-500"), "fx, fy must be positive"),
        (CAMERA_YAML.replace("500", ".inf"), "all numbers finite"),
        (CAMERA_YAML + "distortion: 0.1\n", "distortion: expected a list"),
        (CAMERA_YAML + "distortion: [a, b, c, d]\n", "distortion: expected a number, got 'a'"),
        (CAMERA_YAML + "model: [radtan]\n", "model must be pinhole, radtan or fisheye"),
        ("fx: 1\nfy: [\n", "line 3: not YAML"),
        ("fx: !!python/object:os.system 1\n", "not YAML"),
    ],
)
def test_a_broken_camera_file_is_one_line_that_names_it(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "camera.yaml"
    path.write_text(text)
    with pytest.raises(CameraError) as caught:
        load_camera(path)
    assert str(caught.value).startswith(str(path))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_camera_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(CameraError, match="no such camera file"):
        load_camera(tmp_path / "camera.yaml")


def test_a_camera_file_that_is_no_text_is_said(tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(CameraError, match="not a text file"):
        load_camera(path)


def test_a_folder_in_place_of_a_camera_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(CameraError, match="cannot be read"):
        load_camera(tmp_path)


# Undistorting


def distorted_pixels(camera: Camera, points: np.ndarray) -> np.ndarray:
    zero, D = np.zeros(3), np.array(camera.distortion)
    if camera.model == "fisheye":
        return cv2.fisheye.projectPoints(points[:, None], zero, zero, camera.matrix, D)[0][:, 0]
    return cv2.projectPoints(points, zero, zero, camera.matrix, D)[0][:, 0]


T265 = Camera(
    width=848, height=800, fx=284.5091, fy=282.941856, cx=421.896335, cy=398.100316,
    model="fisheye", distortion=(-0.014216, 0.060412, -0.054711, 0.011151),
)  # fmt: skip
RATIONAL = Camera(  # a wide lens as OpenCV's rational model describes it
    width=1280, height=960, fx=520.0, fy=520.0, cx=640.0, cy=480.0,
    model="radtan", distortion=(0.5, 0.05, 0.0, 0.0, 0.001, 0.85, 0.2, 0.01),
)  # fmt: skip


@pytest.mark.parametrize("given", [RADTAN, FISHEYE, T265, RATIONAL], ids=["radtan", "fisheye", "T265", "rational"])
def test_an_undistorted_dot_lies_where_the_pinhole_camera_projects_it(given: Camera) -> None:
    undistort = Undistorter(given)
    for point in np.array([[0.0, 0.0, 1.0], [0.3, -0.2, 1.0], [-0.4, 0.3, 1.0]]):
        (x, y) = distorted_pixels(given, point[None])[0]
        rows, columns = np.mgrid[: given.height, : given.width]
        dot = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18.0)
        seen = undistort(np.repeat(dot[..., None], 3, axis=2).astype(np.uint8))[..., 0].astype(float)
        center = np.array([(seen * columns).sum(), (seen * rows).sum()]) / seen.sum()
        assert np.allclose(center, undistort.camera.project(point[None])[0], atol=0.3)


@pytest.mark.parametrize("given", [RADTAN, FISHEYE, T265, RATIONAL], ids=["radtan", "fisheye", "T265", "rational"])
def test_an_undistorted_white_image_has_no_black_border(given: Camera) -> None:
    white = np.full((given.height, given.width, 3), 255, dtype=np.uint8)
    assert Undistorter(given)(white).min() == 255


def fisheye_of(across_deg: float, size: tuple[int, int], *distortion: float) -> Camera:
    """A lens whose angle grows in proportion to the distance from the center, `across_deg` across its longer side."""
    focal = 0.5 * max(size) / np.radians(0.5 * across_deg)
    (width, height), center = size, (0.5 * (size[0] - 1), 0.5 * (size[1] - 1))
    return Camera(
        width=width, height=height, fx=focal, fy=1.003 * focal, cx=center[0], cy=center[1],
        model="fisheye", distortion=distortion or (0.0, 0.0, 0.0, 0.0),
    )  # fmt: skip


# Its polynomial has its maximum between the sides of the image and the corners.
FOLDING = Camera(
    width=640, height=480, fx=330.0, fy=330.0, cx=330.0, cy=235.0, model="radtan", distortion=(-0.13, 0.0, 0.0, 0.0)
)
WIDE = {
    "T265": T265,
    "TUM-VI": FISHEYE,
    "rational": RATIONAL,
    "folding": FOLDING,
    **{f"{across} {w}x{h}": fisheye_of(across, (w, h))
       for across in (125, 150, 173, 190, 219) for w, h in ((512, 512), (640, 480), (480, 640), (1280, 720))},
    "190 distorted": fisheye_of(190, (640, 480), -0.03, 0.01, -0.004, 0.0003),
    "cropped": fisheye_of(190, (640, 480)).cropped(60, 80, 500, 360),
    "circle inside": fisheye_of(330, (1920, 1080)),
}  # fmt: skip


@pytest.mark.parametrize("given", WIDE.values(), ids=WIDE)
def test_a_wide_lens_keeps_about_its_focal_length_and_at_most_120_degrees(given: Camera) -> None:
    camera = Undistorter(given).camera
    across = np.degrees(2 * np.arctan(0.5 * max(camera.width / camera.fx, camera.height / camera.fy)))
    assert 60 < across < 120
    assert camera.fx > 0.6 * given.fx
    assert camera.fy / camera.fx == pytest.approx(given.fy / given.fx, rel=0.35)  # OpenCV's own may stretch a radtan's


@pytest.mark.parametrize("given", [*WIDE.values(), RADTAN], ids=[*WIDE, "EuRoC"])
def test_every_pixel_of_an_undistorted_image_was_seen_by_the_lens_at_the_angle_it_stands_for(given: Camera) -> None:
    """The lens is followed from the outside: an angle that it shows twice, or not at all, would be a border smeared."""
    camera = Undistorter(given).camera
    rows, columns = np.mgrid[: camera.height : 7, : camera.width : 7]
    directions = camera.normalized(np.column_stack([columns.ravel(), rows.ravel()]))
    seen = given.distorted(directions)
    assert given.contains(seen, margin=-0.01 * given.width).all()
    nearer = given.distorted(0.98 * directions)
    center = np.array([given.cx, given.cy])
    outwards = np.linalg.norm(seen - center, axis=1) - np.linalg.norm(nearer - center, axis=1)
    assert (outwards >= 0).all()


ORDINARY = {
    "EuRoC": RADTAN,
    "TUM fr1": Camera(
        width=640, height=480, fx=517.3, fy=516.5, cx=318.6, cy=255.3,
        model="radtan", distortion=(0.2624, -0.9531, -0.0054, 0.0026, 1.1633),
    ),
    "TUM fr2": Camera(
        width=640, height=480, fx=520.9, fy=521.0, cx=325.1, cy=249.7,
        model="radtan", distortion=(0.2312, -0.7849, -0.0033, -0.0001, 0.9172),
    ),
    "raw KITTI": Camera(
        width=1392, height=512, fx=984.2439, fy=980.8141, cx=690.0, cy=233.1966,
        model="radtan", distortion=(-0.3728755, 0.2037299, 0.002219027, 0.001383707, -0.07233722),
    ),
    "GoPro": Camera(
        width=1920, height=1440, fx=900.0, fy=900.0, cx=960.0, cy=720.0,
        model="radtan", distortion=(-0.25, 0.06, 0.0, 0.0),
    ),
    "equidistant of 78 degrees": Camera(
        width=752, height=480, fx=461.6, fy=460.2, cx=362.7, cy=248.1,
        model="fisheye", distortion=(-0.0126, 0.0143, -0.0288, 0.0185),
    ),
    "equidistant of 110 degrees": Camera(
        width=720, height=540, fx=351.3140037, fy=351.489191, cx=367.8522, cy=253.840,
        model="fisheye", distortion=(-0.0369669, -0.00891789, 0.00891255, -0.00377),
    ),
}  # fmt: skip


@pytest.mark.parametrize("given", ORDINARY.values(), ids=ORDINARY)
def test_an_ordinary_lens_keeps_all_it_sees_to_the_last_bit(given: Camera) -> None:
    K, distortion, size = given.matrix, np.array(given.distortion), (given.width, given.height)
    if given.model == "fisheye":
        new_K = cv2.fisheye.estimateNewCameraMatrixForUndistortRectify(K, distortion, size, np.eye(3), balance=0.0)
    else:
        new_K, _ = cv2.getOptimalNewCameraMatrix(K, distortion, size, 0.0)
    assert np.array_equal(Undistorter(given).camera.matrix, new_K)
    assert not Undistorter(given).is_cut


def test_distortion_may_be_whole_numbers() -> None:
    given = Camera(width=512, height=512, fx=300, fy=300, cx=255, cy=255, model="fisheye", distortion=(0, 0, 0, 0))
    assert Undistorter(given).camera.model == "pinhole"


def test_the_undistorted_camera_is_pinhole_of_the_same_size() -> None:
    camera = Undistorter(RADTAN).camera
    assert (camera.model, camera.distortion, camera.width, camera.height) == ("pinhole", (), 752, 480)


def test_a_pinhole_image_is_not_touched(image: Image) -> None:
    camera = Camera.assume(64, 48, fov_deg=60)
    assert Undistorter(camera)(image) is image


def test_distortion_of_nothing_but_zeros_leaves_image_and_intrinsics_alone(image: Image) -> None:
    zeros = Camera(width=64, height=48, fx=50, fy=50, cx=30, cy=20, model="radtan", distortion=(0.0, 0.0, 0.0, 0.0))
    undistort = Undistorter(zeros)
    assert undistort(image) is image
    assert undistort.camera.model == "pinhole"
    assert np.array_equal(undistort.camera.matrix, zeros.matrix)


def test_undistorting_an_image_of_another_size_is_refused(image: Image) -> None:
    with pytest.raises(ValueError, match="expected a 752x480 image, got 64x48"):
        Undistorter(RADTAN)(image)


def test_shrinking_a_distorted_camera_before_undistorting_keeps_its_rays() -> None:
    point = np.array([[0.3, -0.2, 1.0]])
    full, half = distorted_pixels(RADTAN, point), distorted_pixels(RADTAN.resized(376, 240), point)
    assert np.allclose((full + 0.5) / 2 - 0.5, half)


# Reading


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".ppm"])
def test_a_lossless_image_comes_back_as_rgb(tmp_path: Path, image: Image, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encode(suffix, image))
    assert np.array_equal(read_image(path), image)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_a_red_image_is_red(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encode(suffix, np.full((16, 16, 3), (250, 10, 10), dtype=np.uint8)))
    assert np.abs(read_image(path).astype(int) - (250, 10, 10)).max() < 10


def test_gray_and_sixteen_bit_and_transparent_images_become_eight_bit_rgb(tmp_path: Path) -> None:
    stored = {
        "gray": np.full((8, 9), 100, dtype=np.uint8),
        "deep": np.full((8, 9), 100 * 257, dtype=np.uint16),
        "clear": np.full((8, 9, 4), 100, dtype=np.uint8),
    }
    for name, pixels in stored.items():
        path = tmp_path / f"{name}.png"
        path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
        image = read_image(path)
        assert (image.shape, image.dtype) == ((8, 9, 3), np.uint8)
        assert (image == 100).all()


def test_a_photo_taken_upright_comes_out_upright(tmp_path: Path) -> None:
    wide = np.zeros((16, 32, 3), dtype=np.uint8)
    wide[:, :16] = (255, 0, 0)  # red on the left; the tag says: turn a quarter clockwise, so red on top
    jpeg = encode(".jpg", wide)
    # TIFF header, one entry: tag 0x0112 (orientation), SHORT, 1 value, 6.
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:])
    image = read_image(path)
    assert image.shape == (32, 16, 3)
    assert image[4, 8, 0] > 200
    assert image[28, 8, 0] < 50


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tiff", ".ppm"])
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_a_cut_off_image_is_refused(tmp_path: Path, image: Image, suffix: str, share: float) -> None:
    data = encode(suffix, image)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(SequenceError) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 1)])
def test_every_proper_part_of_a_jpeg_counts_as_cut_off(image: Image, options: tuple[int, ...]) -> None:
    data = encode(".jpg", image, *options)
    assert not is_cut_off(data)
    assert all(is_cut_off(data[:length]) for length in range(2, len(data)))


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_every_proper_part_of_a_png_or_webp_counts_as_cut_off(image: Image, suffix: str) -> None:
    data = encode(suffix, image)
    assert not is_cut_off(data)
    assert all(is_cut_off(data[:length]) for length in range(12, len(data)))


def test_a_jpeg_with_something_appended_is_whole(image: Image) -> None:
    data = encode(".jpg", image)
    assert not is_cut_off(data + b"\0" * 100)
    assert not is_cut_off(data + b"a film of the same moment, as phones append it")


def test_the_end_marker_of_a_thumbnail_inside_does_not_make_a_cut_off_jpeg_whole(image: Image) -> None:
    data, thumbnail = encode(".jpg", image), encode(".jpg", image[:8, :8])
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    whole = data[:2] + segment + data[2:]
    assert not is_cut_off(whole + b"more")
    assert is_cut_off(whole[: len(whole) // 2])


def test_a_damaged_png_is_refused(tmp_path: Path, image: Image) -> None:
    data = bytearray(encode(".png", image))
    data[len(data) // 2 : len(data) // 2 + 20] = b"\x07" * 20
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(SequenceError, match="not an image that can be decoded"):
        read_image(path)


def test_an_image_that_claims_to_be_enormous_is_refused_in_one_line(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 200_000, 200_000, 8, 2, 0, 0, 0))
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b""))
    with pytest.raises(SequenceError, match="cannot be decoded") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [(b"", "an empty file"), (b"not an image at all", "not an image that can be decoded")],
)
def test_a_file_that_is_no_image_is_refused(tmp_path: Path, data: bytes, sentence: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(SequenceError, match=sentence):
        read_image(path)


def test_a_missing_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SequenceError, match=r"a\.png: cannot be read \(No such file or directory\)"):
        read_image(tmp_path / "a.png")


# Sizes


@pytest.mark.parametrize(
    ("size", "most", "expected"),
    [
        ((640, 480), 960, (640, 480)),
        ((1920, 1080), 960, (960, 540)),
        ((1080, 1920), 960, (540, 960)),
        ((1226, 370), 613, (613, 185)),
        ((5000, 1), 160, (160, 1)),
    ],
)
def test_size_within_keeps_proportions(size: tuple[int, int], most: int, expected: tuple[int, int]) -> None:
    assert size_within(*size, most) == expected


def test_shrinking_averages_blocks_and_leaves_the_right_size_alone() -> None:
    columns = np.repeat(np.array([[0, 100, 50, 150]], dtype=np.uint8), 2, axis=0)
    image = np.repeat(columns[..., None], 3, axis=2)
    assert shrink(image, 2, 1)[0, :, 0].tolist() == [50, 100]
    assert shrink(image, 4, 2) is image


def test_a_shrunk_dot_lies_where_the_resized_camera_projects_it() -> None:
    camera = Camera(width=640, height=480, fx=500.0, fy=500.0, cx=310.0, cy=250.0)
    point = np.array([[0.21, -0.13, 1.0]])
    (x, y) = camera.project(point)[0]
    rows, columns = np.mgrid[:480, :640]
    dot = (255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 200.0)).astype(np.uint8)
    seen = shrink(np.repeat(dot[..., None], 3, axis=2), 213, 160)[..., 0].astype(float)
    rows, columns = np.mgrid[:160, :213]
    center = np.array([(seen * columns).sum(), (seen * rows).sum()]) / seen.sum()
    assert np.allclose(center, camera.resized(213, 160).project(point)[0], atol=0.05)


def test_green_is_the_brightest_color_in_gray() -> None:
    pure = np.zeros((1, 3, 3), dtype=np.uint8)
    pure[0, 0, 0] = pure[0, 1, 1] = pure[0, 2, 2] = 255
    red, green, blue = to_gray(pure)[0].tolist()
    assert (red, green, blue) == (76, 150, 29)  # ITU-R BT.601


def test_a_camera_written_as_yaml_is_read_back(tmp_path):
    camera = Camera.assume(640, 480, fov_deg=70.0).refocused((1.25, 1.5))
    (tmp_path / "camera.yaml").write_text(camera.to_yaml())
    assert load_camera(tmp_path / "camera.yaml") == camera
    assert not camera.assumed
    guess = Camera.assume(640, 480, fov_deg=70.0)
    (tmp_path / "guess.yaml").write_text(guess.to_yaml())
    assert load_camera(tmp_path / "guess.yaml") == guess
    (tmp_path / "odd.yaml").write_text(guess.to_yaml().replace("true", "perhaps"))
    with pytest.raises(CameraError, match="assumed: expected true or false, got 'perhaps'"):
        load_camera(tmp_path / "odd.yaml")
    assert camera.fx / Camera.assume(640, 480, fov_deg=70.0).fx == pytest.approx(1.25)
