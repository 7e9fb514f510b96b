"""Videos of many codecs and containers, with pixels that are not square, of two fields, and of more than 8 bits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from relocalizer.camera import Camera
from relocalizer.images import Image
from slam.input.frame_source import RereadableSource
from slam.input.open_source import open_source
from slam.input.rectification import MapCameras
from slam.input.video_decoding import VideoReader
from slam.input.video_restoration import are_interlaced, first_field, is_combed

WIDTH, HEIGHT = 96, 64


def flat(k: int) -> Image:
    """An image of one gray that tells its number."""
    return np.full((HEIGHT, WIDTH, 3), 20 + 5 * k, np.uint8)


def number_of(image: Image) -> int:
    return round((float(np.median(image)) - 20) / 5)


def write_video(
    path: Path,
    images: Iterable[np.ndarray],
    codec: str,
    *,
    pixels: str = "yuv420p",
    format: str = "rgb24",
    aspect: Fraction | None = None,
    times_ms: Sequence[int] | None = None,
    is_marked_interlaced: bool = False,
) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=20, options={"g": "8"} if codec == "libx264" else {})
        stream.pix_fmt = pixels
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if is_marked_interlaced:
            stream.codec_context.flags |= 0x40000 | 0x20000000  # AV_CODEC_FLAG_INTERLACED_DCT and _ME
        for k, image in enumerate(images):
            if k == 0:
                stream.height, stream.width = image.shape[:2]
            frame = av.VideoFrame.from_ndarray(image, format=format)
            if times_ms is not None:
                frame.time_base, frame.pts = Fraction(1, 1000), times_ms[k]
                stream.codec_context.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


KINDS = [
    ("a.mp4", "libsvtav1", "yuv420p"), ("a.ts", "libx264", "yuv420p"), ("a.m2ts", "libx264", "yuv420p"),
    ("a.mpg", "mpeg2video", "yuv420p"), ("a.wmv", "wmv2", "yuv420p"), ("a.flv", "flv", "yuv420p"),
    ("a.gif", "gif", "gray"), ("a.mov", "prores_ks", "yuv422p10le"), ("a.mp4", "libx265", "yuv420p"),
    ("a.mkv", "ffv1", "yuv420p"), ("a.h264", "libx264", "yuv420p"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "codec", "pixels"), KINDS)
def test_videos_of_many_codecs_give_their_images_at_their_times(
    tmp_path: Path, name: str, codec: str, pixels: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no encoder {codec}")
    path = write_video(tmp_path / name, (flat(k) for k in range(20)), codec, pixels=pixels)
    capfd.readouterr()
    frames = list(source := open_source(path))
    assert capfd.readouterr().err == ""
    assert [number_of(frame.image) for frame in frames] == list(range(20))
    if name != "a.h264":  # a stream without a container has no times
        assert np.allclose([frame.timestamp_ns for frame in frames], np.arange(20) * 50_000_000, atol=1_000_000)
    assert source.skipped == []
    again = list(open_source(path))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(frames, again, strict=True))


@pytest.mark.parametrize(("name", "codec", "pixels"), KINDS)
@pytest.mark.parametrize("start", [0, 3])
def test_single_images_are_those_of_the_iteration(
    tmp_path: Path, name: str, codec: str, pixels: str, start: int
) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no encoder {codec}")
    source = open_source(write_video(tmp_path / name, (flat(k) for k in range(40)), codec, pixels=pixels), start=start)
    assert isinstance(source, RereadableSource)
    if not source.can_be_reread:
        pytest.skip("its number of images is unknown")
    with source.random_access() as read:
        images = [read(k) for k in (0, 1, 30, 29, 5, 36, 3)]
    found = [None if image is None else number_of(image) - start for image in images]
    assert found == [0, 1, 30, 29, 5, 36, 3]


def test_single_images_are_found_beyond_the_distance_that_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slam.input.video.GRABBED_FRAMES", 4)
    source = open_source(write_video(tmp_path / "a.mp4", (flat(k) for k in range(40)), "libx264"))
    assert isinstance(source, RereadableSource)
    with source.random_access() as read:
        images = [read(k) for k in (39, 0, 12, 31, 32, 7, 40)]
    assert [None if image is None else number_of(image) for image in images] == [39, 0, 12, 31, 32, 7, None]


def test_times_of_a_variable_rate_are_exact(tmp_path: Path) -> None:
    times_ms = [0, 33, 70, 100, 233, 266, 300, 1001]
    path = write_video(tmp_path / "a.mkv", (flat(k) for k in range(8)), "libx264", times_ms=times_ms)
    assert [frame.timestamp_ns for frame in open_source(path)] == [time * 1_000_000 for time in times_ms]


# Pixels that are not square


def wide_ramp() -> Image:
    return np.repeat(np.tile(np.linspace(0, 250, WIDTH).astype(np.uint8), (HEIGHT, 1))[..., None], 3, axis=2)


def test_pixels_that_are_not_square_are_stretched_and_that_is_said(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [wide_ramp()] * 3, "libx264", aspect=Fraction(4, 3))
    source = open_source(path)
    assert [frame.image.shape for frame in source] == [(HEIGHT, 128, 3)] * 3
    assert "pixels that are not square, so stretched from 96x64 to 128x64" in source.description
    assert (source.camera.width, source.camera.height) == (128, HEIGHT)


def test_narrow_pixels_are_stretched_along_the_other_side(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [wide_ramp()] * 3, "libx264", aspect=Fraction(1, 2))
    assert next(iter(open_source(path))).image.shape == (128, WIDTH, 3)


@pytest.mark.parametrize(("width", "expected"), [(96, 96), (128, 128), (192, 96), (256, 128)])
def test_a_known_camera_says_whether_it_is_of_the_stored_or_of_the_stretched_images(
    tmp_path: Path, width: int, expected: int
) -> None:
    path = write_video(tmp_path / "a.mp4", [wide_ramp()] * 3, "libx264", aspect=Fraction(4, 3))
    height = HEIGHT * width // expected
    camera = Camera(width=width, height=height, fx=80.0, fy=100.0, cx=(width - 1) / 2, cy=(height - 1) / 2)
    (tmp_path / "lens.yaml").write_text(camera.to_yaml())
    for source in (open_source(path, camera=tmp_path / "lens.yaml"), open_source(path, map_cameras=[camera])):
        assert next(iter(source)).image.shape == (HEIGHT, expected, 3)
    assert MapCameras((camera,)).of(expected, HEIGHT) is not None


# Two fields


def scene(shift: float) -> Image:
    """A smooth pattern, shifted to the right."""
    x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    pattern = 128 + 60 * np.sin((x - shift) / 4.0) + 50 * np.cos((x - shift) / 7.0 + y / 9.0)
    return np.repeat(pattern.astype(np.uint8)[..., None], 3, axis=2)


def woven(k: int, speed: float) -> Image:
    """The even rows of one time, the odd rows of half a period later."""
    image = scene(speed * k)
    image[1::2] = scene(speed * (k + 0.5))[1::2]
    return image


@pytest.mark.parametrize("is_marked", [True, False])
def test_of_an_interlaced_video_one_field_is_used_and_that_is_said(tmp_path: Path, is_marked: bool) -> None:
    images = (woven(k, 6.0) for k in range(30))
    path = write_video(tmp_path / "a.mp4", images, "libx264", is_marked_interlaced=is_marked)
    source = open_source(path)
    assert "interlaced, so every second row is used" in source.description
    for k, frame in enumerate(source):
        assert np.abs(frame.image.astype(int) - scene(6.0 * k)).mean() < 4  # the fields differ by 20 and more


def test_an_interlaced_video_that_begins_at_rest_is_noticed_by_its_mark(tmp_path: Path) -> None:
    images = (woven(k, 6.0 if k >= 40 else 0.0) for k in range(80))
    path = write_video(tmp_path / "a.mp4", images, "libx264", is_marked_interlaced=True)
    assert "interlaced" in open_source(path).description


@pytest.mark.parametrize("is_marked", [True, False])
def test_a_progressive_video_keeps_its_rows(tmp_path: Path, is_marked: bool) -> None:
    images = (scene(6.0 * k) for k in range(30))
    path = write_video(tmp_path / "a.mp4", images, "libx264", is_marked_interlaced=is_marked)
    assert "interlaced" not in open_source(path).description


def test_noise_is_not_taken_for_fields() -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (120, 160, 3), np.uint8) for _ in range(20)]
    assert not are_interlaced(noise)
    assert is_combed(woven(3, 6.0))
    assert not is_combed(noise[0][:3])


@pytest.mark.parametrize("height", [1, 2, 3, 7, 8])
def test_a_field_keeps_its_rows_and_the_size_of_the_image(height: int) -> None:
    image = np.repeat(np.arange(0, 10 * height, 10, dtype=np.uint8)[:, None, None], 3, axis=2).repeat(4, axis=1)
    field = first_field(image)
    assert field.shape == image.shape
    assert np.array_equal(field[::2], image[::2])
    inner = slice(1, height - 1, 2)
    assert np.array_equal(field[inner], image[inner])  # a linear ramp is interpolated exactly


# More than 8 bits


@pytest.mark.parametrize(("pixels", "scale"), [("gray16le", 1), ("gray10le", 64)])
def test_a_deep_gray_video_is_stretched_by_one_range(tmp_path: Path, pixels: str, scale: int) -> None:
    ramp = np.tile(np.linspace(7500, 8100, WIDTH), (HEIGHT, 1))
    images = [ramp.astype(np.uint16), (0.5 * (ramp + 7500)).astype(np.uint16)]
    path = write_video(tmp_path / "a.mkv", images, "ffv1", pixels=pixels, format="gray16le")
    source = open_source(path)
    first, second = (frame.image for frame in source)
    assert np.abs(first[0, :, 0] - np.linspace(0, 255, WIDTH)).max() < 3 + scale
    assert np.abs(second[0, :, 0] - np.linspace(0, 127.5, WIDTH)).max() < 3 + scale
    assert "more than 8 bits, of which" in source.description


# Damage


def test_packets_that_cannot_be_decoded_are_skipped_and_keep_their_number(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", (flat(k) for k in range(20)), "mjpeg", pixels="yuvj420p")
    data = bytearray(path.read_bytes())
    starts = [k for k in range(len(data) - 3) if data[k : k + 3] == b"\xff\xd8\xff"]
    data[starts[7] : starts[8] - 16] = bytes(starts[8] - 16 - starts[7])
    path.write_bytes(data)
    source = open_source(path)
    frames = list(source)
    assert [number_of(frame.image) for frame in frames] == [frame.index for frame in frames]
    assert [frame.index for frame in frames] == [k for k in range(20) if k != 7]
    assert source.skipped == [("a frame 7", "cannot be decoded")]


def test_a_reader_begins_again_without_opening_the_file_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", (flat(k) for k in range(10)), "libx264")
    opened = []
    whole = av.open
    monkeypatch.setattr("av.open", lambda *given, **options: opened.append(given) or whole(*given, **options))
    reader = VideoReader(str(path), "a")
    assert len(list(reader.frames())) == 10
    assert len(opened) == 2
    assert len(list(reader.frames())) == 10
    assert len(opened) == 3
    reader.close()
    reader.close()
