"""The size of an image, read from its head as reading the whole of it would."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as pillow

from relocalizer.errors import SequenceError
from relocalizer.image_headers import image_size
from relocalizer.images import read_image

FORMATS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "TIFF": ".tif", "BMP": ".bmp", "PPM": ".ppm"}
TAGGED = ("JPEG", "PNG", "WEBP", "TIFF")
ORIENTATION = 0x0112


def written(folder: Path, kind: str, orientation: int = 1, mode: str = "RGB") -> Path:
    image = pillow.fromarray(np.random.default_rng(1).integers(0, 255, (30, 40, 3), dtype=np.uint8)).convert(mode)
    exif = pillow.Exif()
    exif[ORIENTATION] = orientation
    options = {"tiffinfo": {ORIENTATION: orientation}} if kind == "TIFF" else {"exif": exif.tobytes()}
    path = folder / f"a{FORMATS[kind]}"
    image.save(path, kind, **(options if orientation != 1 else {}))
    return path


@pytest.mark.parametrize("kind", FORMATS)
def test_the_size_of_every_kind_of_image(tmp_path: Path, kind: str) -> None:
    assert image_size(written(tmp_path, kind)) == (40, 30)


@pytest.mark.parametrize("kind", TAGGED)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_that_of_the_image_as_it_is_read(tmp_path: Path, kind: str, orientation: int) -> None:
    path = written(tmp_path, kind, orientation)
    height, width = read_image(path).shape[:2]
    assert image_size(path) == (width, height)


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "CMYK"), ("JPEG", "L"), ("PNG", "RGBA"), ("PNG", "LA"), ("PNG", "P"), ("PNG", "1")]
)
def test_images_of_other_colors_are_read_as_rgb(tmp_path: Path, kind: str, mode: str) -> None:
    path = written(tmp_path, kind, mode=mode)
    assert image_size(path) == (40, 30)
    assert read_image(path).shape == (30, 40, 3)


def test_an_image_cut_off_after_its_head_still_tells_its_size(tmp_path: Path) -> None:
    path = written(tmp_path, "PNG")
    path.write_bytes(path.read_bytes()[:100])
    assert image_size(path) == (40, 30)


@pytest.mark.parametrize("data", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe1\x00\x10Exif\0\0"])
def test_a_head_that_says_nothing_gives_no_size(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.png").write_bytes(data)
    assert image_size(tmp_path / "a.png") is None


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_heads_give_a_size_or_none_and_never_an_error(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(3)
    path = written(tmp_path, kind, 6 if kind in TAGGED else 1)
    whole = path.read_bytes()
    for _ in range(200):
        damaged = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 200), 4):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        image_size(path)


def test_a_gigantic_image_is_no_error_and_no_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    for side in (12_000, 50_000):  # Pillow warns of the first and refuses the second
        head = io.BytesIO()
        pillow.new("1", (side, side)).save(head, "PNG", compress_level=1)
        (tmp_path / "a.png").write_bytes(head.getvalue()[:200])
        assert image_size(tmp_path / "a.png") == (side, side)
    assert not recwarn.list


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", tmp_path, tmp_path / "gone.png", Path("/dev/zero")):
        assert image_size(path) is None
        with pytest.raises(SequenceError, match=r"not a file|cannot be read"):
            read_image(path)
