"""Images of more than 8 bits, and of the formats of phones."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as pillow
from PIL import features

from relocalizer.errors import SequenceError
from relocalizer.gray_levels import GrayLevels
from relocalizer.image_headers import focal_length_35mm, image_size, size_of_encoded
from relocalizer.images import read_image
from slam.config.schema import InputConfig
from slam.input.folder_listing import is_video
from slam.input.open_source import open_source

RAMP = np.tile(np.linspace(0, 1, 64), (48, 1))


def write_sequence(folder: Path, low: float, high: float, *, dtype: type = np.uint16, suffix: str = ".png") -> Path:
    """Four images of a ramp, of which the second is half as bright; they use the values from low to high."""
    folder.mkdir()
    for k, gain in enumerate((1.0, 0.5, 1.0, 1.0)):
        cv2.imwrite(str(folder / f"{k}{suffix}"), (low + gain * RAMP * (high - low)).astype(dtype))
    return folder


@pytest.mark.parametrize(
    ("low", "high", "dtype", "suffix"),
    [
        (0, 1023, np.uint16, ".png"),
        (0, 4095, np.uint16, ".tiff"),
        (7500, 8100, np.uint16, ".png"),
        (29315, 31000, np.uint16, ".tif"),
        (20.5, 31.25, np.float32, ".tiff"),
    ],
)
def test_deep_images_are_stretched_by_one_range_for_all(
    tmp_path: Path, low: float, high: float, dtype: type, suffix: str
) -> None:
    source = open_source(write_sequence(tmp_path / "a", low, high, dtype=dtype, suffix=suffix))
    images = [frame.image for frame in source]
    assert np.abs(images[0][..., 0] - 255 * RAMP).max() < 2
    assert np.abs(images[1][..., 0] - 127.5 * RAMP).max() < 2  # the dark image stays darker than the others
    assert "more than 8 bits, of which" in source.description


def test_images_that_use_all_sixteen_bits_are_shown_as_by_a_viewer(tmp_path: Path) -> None:
    source = open_source(write_sequence(tmp_path / "a", 0, 65535))
    assert "of which 0 to 65535 are used" in source.description


def test_values_that_are_no_numbers_are_dark() -> None:
    values = np.array([[20.0, 30.0], [np.nan, np.inf]], np.float32)
    levels = GrayLevels.of([values])
    assert levels.apply(values).tolist() == [[0, 255], [0, 255]]
    assert GrayLevels.of([np.full((2, 2), np.nan)]) == GrayLevels(0.0, 1.0)


def test_deep_color_images_keep_their_colors(tmp_path: Path) -> None:
    image = np.zeros((48, 64, 3), np.uint16)
    image[:, :32] = (0, 0, 1000)  # BGR: red
    image[:, 32:] = (1000, 500, 0)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    found = read_image(tmp_path / "a.png")
    assert found[5, 5].tolist() == [255, 0, 0]
    assert found[5, 60].tolist() == [0, 128, 255]


def upright() -> pillow.Image:
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:16, :16] = 255
    return pillow.fromarray(pixels)


def turned_exif() -> bytes:
    exif = pillow.Exif()
    exif[274] = 6  # to be turned clockwise
    return exif.tobytes()


def phone_image(suffix: str) -> bytes:
    if suffix == ".heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    elif not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    data = io.BytesIO()
    upright().save(data, suffix.strip(".").upper().replace("HEIC", "HEIF"), exif=turned_exif(), quality=95)
    return data.getvalue()


@pytest.mark.parametrize("suffix", [".heic", ".avif"])
def test_images_of_phones_are_read_upright(tmp_path: Path, suffix: str) -> None:
    for k in range(2):
        (tmp_path / f"{k}{suffix}").write_bytes(phone_image(suffix))
    path = tmp_path / f"0{suffix}"
    image = read_image(path)
    assert image.shape == (64, 48, 3)
    assert image[4, -4].min() > 200
    assert image[4, 4].max() < 60
    assert image_size(path) == (48, 64)
    assert not is_video(path)
    assert len(list(open_source(tmp_path, config=InputConfig()))) == 2


@pytest.mark.parametrize("suffix", [".heic", ".avif"])
def test_a_cut_off_image_of_a_phone_is_refused(tmp_path: Path, suffix: str) -> None:
    data = phone_image(suffix)
    (tmp_path / f"0{suffix}").write_bytes(data[: len(data) // 2])
    with pytest.raises(SequenceError, match="not an image that can be decoded"):
        read_image(tmp_path / f"0{suffix}")


@pytest.mark.parametrize("suffix", [".heic", ".avif"])
def test_a_damaged_image_of_a_phone_is_refused(tmp_path: Path, suffix: str) -> None:
    """Its header is whole, its coded data are not."""
    data = phone_image(suffix)
    start = data.index(b"mdat") + 4
    (tmp_path / f"0{suffix}").write_bytes(data[:start] + bytes(len(data) - start))
    with pytest.raises(SequenceError, match="not an image that can be decoded"):
        read_image(tmp_path / f"0{suffix}")


def test_a_damaged_header_of_a_phone_has_no_size(tmp_path: Path) -> None:
    path = tmp_path / "a.avif"
    path.write_bytes(phone_image(".avif").replace(b"pitm", b"free"))  # the item that says which one is the image
    assert image_size(path) is None
    assert size_of_encoded(path.read_bytes()) is None
    assert focal_length_35mm(path) is None


def test_without_its_decoder_a_heic_image_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf\0\0\x01\xc8" + bytes(100))
    with pytest.raises(SequenceError, match=r"a\.heic: a HEIC image, which needs pillow-heif \(pip install pillow-h"):
        open_source(tmp_path)
