"""The camera of stored footage, estimated before the run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import ExifTags
from PIL import Image as pillow
from textured_walk import FOCAL_PX, FRAMES, HEIGHT, WALLS, WIDTH, poses, rendered, textures, write_clip, write_walk

from relocalizer.calibration_pairs import ViewPair
from relocalizer.calibration_windows import FocalStretch
from relocalizer.camera import Camera
from relocalizer.config import FeaturesConfig
from relocalizer.features import LocalFeatures, detect_features
from relocalizer.image_headers import focal_length_35mm
from relocalizer.images import Image
from relocalizer.intrinsics_correction import CorrectionStep
from slam.config.schema import InputConfig, SlamConfig
from slam.evaluation.verdict import Grade
from slam.input.frame_source import FrameSource, RereadableSource
from slam.input.kept_frames import Kept
from slam.input.mask import Mask
from slam.input.open_source import open_source
from slam.input.rectification import GivenCamera
from slam.map.lens_evidence import LensEvidence, LensState
from slam.mapping.lens_examination import LensFinding
from slam.run.calibration_pass import CalibrationPass, zoom_with_given_camera
from slam.run.camera_before_run import calibrate_first
from slam.run.record_run import record_run
from slam.run.summary import summary_rows

CONFIG = SlamConfig()


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of a walk through a textured room."""
    return write_walk(tmp_path_factory.mktemp("walk") / "images")


def calibrated(source: FrameSource, config: SlamConfig = CONFIG) -> tuple[FrameSource, CalibrationPass]:
    new, calibration = calibrate_first(source, config)
    assert calibration is not None
    return new, calibration


@pytest.fixture(scope="module")
def found(walk: Path) -> tuple[FrameSource, CalibrationPass]:
    return calibrated(open_source(walk))


# The estimate


def test_the_focal_length_of_a_clip_is_known_before_its_run(found: tuple[FrameSource, CalibrationPass]) -> None:
    source, calibration = found
    assert calibration.is_used
    assert calibration.evidence.state is LensState.KNOWN
    assert abs(np.log(calibration.focal_px / FOCAL_PX)) < 2.0 * calibration.focal_sigma < 0.06
    assert source.camera.mean_focal == pytest.approx(calibration.focal_px)
    assert source.camera.assumed
    assert next(iter(source)).camera == source.camera
    assert source.length == FRAMES


def test_the_estimate_is_stated_with_its_uncertainty(found: tuple[FrameSource, CalibrationPass]) -> None:
    source, calibration = found
    assert f"{calibration.pairs} image pairs before the run (assumed: 346)" in source.description
    assert f"focal length {calibration.focal_px:.0f} px +- {100 * calibration.focal_sigma:.1f} %" in source.description


def test_a_video_gives_what_its_images_give(walk: Path, tmp_path: Path) -> None:
    path = tmp_path / "walk.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 30.0, (WIDTH, HEIGHT))
    writer.set(cv2.VIDEOWRITER_PROP_QUALITY, 95)
    for image in sorted(walk.iterdir()):
        writer.write(cv2.imread(str(image)))
    writer.release()
    source, calibration = calibrated(open_source(path, stride=2))
    assert calibration.focal_px == pytest.approx(FOCAL_PX, rel=0.06)
    assert [frame.index for frame in source] == list(range(0, FRAMES, 2))


def test_random_access_gives_the_images_of_the_iteration(walk: Path, tmp_path: Path) -> None:
    path = tmp_path / "walk.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 30.0, (WIDTH, HEIGHT))
    for image in sorted(walk.iterdir())[:12]:
        writer.write(cv2.imread(str(image)))
    writer.release()
    for source in (open_source(walk, start=1, stride=2, max_frames=5), open_source(path, start=1, stride=2)):
        images = [frame.image for frame in source]
        fresh = source.with_calibration(GivenCamera(source.camera, "the same"))  # type: ignore[attr-defined]
        with fresh.random_access() as read:
            for position in (3, 1, 4, 0):
                np.testing.assert_array_equal(read(position), images[position])


def test_groups_that_overlap_share_their_images(walk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten groups of three images are wanted; and those that are found no nearer than a gap are searched once."""
    searched: list[tuple[int, ...]] = []

    def counted(gray: Image, config: FeaturesConfig, mask: Mask | None = None) -> LocalFeatures:
        searched.append(gray.shape)
        assert config.max_features <= 600
        return detect_features(gray, config, mask)

    monkeypatch.setattr("slam.run.pair_sampling.detect_features", counted)
    _, calibration = calibrated(open_source(walk))
    assert calibration.pairs >= 24
    assert len(searched) <= 24


@pytest.mark.parametrize("first_sigma", [0.1, None])
def test_an_uncertain_estimate_is_made_again_with_images_in_between(
    walk: Path, monkeypatch: pytest.MonkeyPatch, first_sigma: float | None
) -> None:
    """So is one that is none, because another focal length explains the first images as well."""
    given: list[list[tuple[int, int]]] = []

    def uncertain(pairs: list[ViewPair], camera: Camera) -> LensFinding:
        given.append([(pair.first, pair.second) for pair in pairs])
        sigma = first_sigma if len(given) == 1 else 0.02
        return LensFinding(LensEvidence(LensState.KNOWN, 0.5, sigma), CorrectionStep((0.5, 0.5)))

    monkeypatch.setattr("slam.run.calibration_pass.examine_assumed", uncertain)
    _, calibration = calibrated(open_source(walk))
    first, second = given
    assert second[: len(first)] == first
    assert len(second) == len(set(second)) == calibration.pairs > 1.3 * len(first)
    assert calibration.focal_sigma == 0.02


# A zoom

ZOOMED = (FocalStretch(0, 19, 346.0, 0.01), FocalStretch(24, 39, 520.0, 0.01), FocalStretch(45, 59, 348.0, 0.01))
UNKNOWN = LensEvidence(LensState.GUESS, reason="none")


@pytest.fixture
def finds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An examination that finds a zoom in enough pairs; the numbers of pairs that it was given."""
    given: list[int] = []

    def examined(pairs: list[ViewPair], camera: Camera) -> LensFinding:
        given.append(len(pairs))
        inside = [any(s.first <= pair.first <= pair.second <= s.last for s in ZOOMED[::2]) for pair in pairs]
        if all(inside):
            return LensFinding(LensEvidence(LensState.KNOWN, 0.5, 0.02), CorrectionStep((0.5, 0.5)))
        return LensFinding(UNKNOWN, is_uneven=True) if len(given) < 3 else LensFinding(UNKNOWN, stretches=ZOOMED)

    def sampled(*_: object, shift: float = 0.0, **__: object) -> list[ViewPair]:
        firsts = [5 * n + round(4 * shift) for n in range(1, 11)]
        return [ViewPair(first, first + 2, np.zeros((0, 2)), np.zeros((0, 2))) for first in firsts]

    monkeypatch.setattr("slam.run.calibration_pass.examine_assumed", examined)
    monkeypatch.setattr("slam.run.calibration_pass.sampled_pairs", sampled)
    return given


def test_of_a_zoom_the_frames_of_one_focal_length_are_kept(walk: Path, finds: list[int]) -> None:
    source, calibration = calibrated(open_source(walk))
    assert len(finds) == 4
    assert finds[0] < finds[1] < finds[2] > finds[3]
    assert calibration.is_used
    assert calibration.focal_px == pytest.approx(173.2, abs=0.1)
    assert [frame.index for frame in source] == [*range(20), *range(45, 60)]
    assert source.length == 35
    [finding] = calibration.findings
    assert finding.grade is Grade.PARTIAL
    said = (
        "the focal length changes by +50 % (+- 1 %), from 346 to 520 px, between frames 19 and 24: "
        "frames 0 to 19 and 45 to 59 are tracked, the other 25 of 60 are left out"
    )
    assert finding.reason == said
    assert said in source.description


def test_frames_that_are_kept_are_read_by_their_position_among_them(walk: Path, finds: list[int]) -> None:
    source, _ = calibrated(open_source(walk))
    assert isinstance(source, RereadableSource)
    again = source.with_calibration(GivenCamera(source.camera, "the same"))
    frames = list(again)
    assert again.length == len(frames) == 35
    with source.random_access() as read:
        np.testing.assert_array_equal(read(20), frames[20].image)


@pytest.mark.usefixtures("finds")
def test_a_zoom_with_hardly_a_constant_part_leaves_out_nothing(walk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = (FocalStretch(0, 4, 346.0, 0.01), FocalStretch(50, 54, 520.0, 0.01))
    monkeypatch.setattr(
        "slam.run.calibration_pass.examine_assumed", lambda pairs, camera: LensFinding(UNKNOWN, stretches=short)
    )
    source, calibration = calibrated(open_source(walk))
    assert source.length == FRAMES
    assert calibration.findings == ()
    assert not calibration.is_used


def test_with_a_given_camera_the_part_with_its_focal_length_is_kept(walk: Path, finds: list[int]) -> None:
    given = GivenCamera(replace(Camera.assume(WIDTH, HEIGHT, fov_deg=60.0), fx=520.0, fy=520.0, assumed=False), "given")
    source = open_source(walk)
    assert isinstance(source, RereadableSource)
    source = source.with_calibration(given)
    assert isinstance(source, RereadableSource)
    finds.extend([0, 0])  # all pairs are examined at once
    zoom = zoom_with_given_camera(source, CONFIG)
    assert zoom is not None
    assert zoom.kept == (Kept(24, 39),)


@pytest.mark.slow
def test_a_zoom_is_found_before_the_run(walk: Path, tmp_path: Path) -> None:
    def enlarged(image: Image) -> Image:
        center = (1.0 - 1.5) * np.array([WIDTH - 1, HEIGHT - 1]) / 2
        return np.asarray(cv2.warpAffine(image, np.array([[1.5, 0, center[0]], [0, 1.5, center[1]]]), (WIDTH, HEIGHT)))

    images = [cv2.imread(str(path)) for path in sorted(walk.iterdir())]
    zoomed = [enlarged(image) if n >= 36 else image for n, image in enumerate(images)]
    source, calibration = calibrated(open_source(write_clip(tmp_path / "zoom", zoomed)))
    assert calibration.zoom is not None
    [kept] = calibration.zoom.kept
    assert kept.first == 0
    assert 25 < kept.last < 36
    assert abs(np.log(calibration.focal_px / FOCAL_PX)) < 2.0 * calibration.focal_sigma < 0.06
    assert calibration.zoom.change.share == pytest.approx(0.5, abs=0.05)
    assert source.length == kept.last + 1


# No estimate


def test_a_still_clip_keeps_the_assumption_and_says_why(tmp_path: Path) -> None:
    still = rendered(textures(len(WALLS)), *poses(1)[0])
    source = open_source(write_clip(tmp_path / "still", [still] * 8))
    same, calibration = calibrated(source)
    assert same is source
    assert not calibration.is_used
    assert "show no parallax, or one plane" in calibration.sentence
    assert calibration.sentence.endswith(": 346 px assumed")


def test_a_plane_keeps_the_assumption_and_says_why(tmp_path: Path) -> None:
    [wall] = textures(1)
    images = [rendered([wall], *pose) for pose in poses(30)]
    source = open_source(write_clip(tmp_path / "plane", images))
    same, calibration = calibrated(source)
    assert same is source
    assert "show no parallax, or one plane" in calibration.sentence


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_images_give_no_estimate(count: int, walk: Path, tmp_path: Path) -> None:
    images = [cv2.imread(str(path)) for path in sorted(walk.iterdir())[:count]]
    _, calibration = calibrated(open_source(write_clip(tmp_path / "few", images)))
    assert not calibration.is_used
    assert calibration.evidence.reason


# Sources without the pass


def test_a_given_camera_is_not_estimated(walk: Path, tmp_path: Path) -> None:
    (tmp_path / "camera.yaml").write_text(f"width: {WIDTH}\nheight: {HEIGHT}\nfx: 160\nfy: 160\ncx: 199.5\ncy: 149.5\n")
    source = open_source(walk, camera=tmp_path / "camera.yaml")
    assert calibrate_first(source, CONFIG) == (source, None)


def test_the_setting_turns_it_off(walk: Path) -> None:
    source = open_source(walk)
    config = CONFIG.model_copy(update={"input": InputConfig(calibrate_first=False)})
    assert calibrate_first(source, config) == (source, None)


def test_a_source_that_is_read_once_is_not_calibrated() -> None:
    class Live:
        camera = Camera.assume(WIDTH, HEIGHT, fov_deg=60.0)

        def __iter__(self) -> None:
            raise AssertionError("no image may be taken before the run")

    live = Live()
    assert calibrate_first(live, CONFIG) == (live, None)  # type: ignore[arg-type]


# The run


def test_a_run_begins_with_the_estimate_and_reports_it(walk: Path, tmp_path: Path) -> None:
    report = record_run(open_source(walk, stride=2), out=tmp_path / "run").values
    before = report["lens"]["before_run"]
    assert (before["is_used"], before["state"]) == (True, "known")
    assert report["lens"]["focal_px"]["start"] == pytest.approx(before["focal_px"])
    assert before["assumed_px"] == pytest.approx(346.4, abs=0.1)
    assert report["lens"]["state"] == "known"
    assert report["lens"]["focal_px"]["final"] == pytest.approx(FOCAL_PX, rel=0.03)
    assert report["coverage"] > 0.9
    words = dict(summary_rows(report))["camera"]
    assert f"({before['focal_px']:.1f} estimated before the run, 346.4 assumed)" in words


def test_a_run_that_learns_nothing_more_keeps_what_was_known_before() -> None:
    assert LensEvidence.before_run(0.02, "one plane") == LensEvidence(LensState.KNOWN, 1.0, 0.02)
    assert LensEvidence.before_run(0.08, "one plane") == LensEvidence(LensState.GUESS, 1.0, 0.08, "one plane")


# The Exif data


def test_the_focal_length_in_the_exif_data_is_the_assumption(tmp_path: Path) -> None:
    exif = pillow.Exif()
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.FocalLengthIn35mmFilm: 26}
    for number in range(2):
        pillow.new("RGB", (400, 300), (90, 90, 90)).save(tmp_path / f"{number}.jpg", exif=exif)
    source = open_source(tmp_path)
    assert source.camera.mean_focal == pytest.approx(26 / 43.27 * 500, rel=1e-6)
    assert source.camera.assumed
    assert "focal length 300 px assumed from the Exif data (26 mm for 35 mm film)" in source.description
    assert open_source(tmp_path, config=InputConfig(calibrate_first=False)).camera.mean_focal == pytest.approx(
        346.4, abs=0.1
    )


@pytest.mark.parametrize("value", [0, 5000])
def test_an_implausible_focal_length_in_the_exif_data_is_ignored(value: int, tmp_path: Path) -> None:
    exif = pillow.Exif()
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.FocalLengthIn35mmFilm: value}
    pillow.new("RGB", (64, 48)).save(tmp_path / "0.jpg", exif=exif)
    assert focal_length_35mm(tmp_path / "0.jpg") is None
