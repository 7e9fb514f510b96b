"""The camera of stored footage, estimated before the run."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import ExifTags
from PIL import Image as pillow
from textured_walk import FOCAL_PX, FRAMES, HEIGHT, WALLS, WIDTH, poses, rendered, textures, write_clip, write_walk

from relocalizer.camera import Camera
from relocalizer.config import FeaturesConfig
from relocalizer.features import LocalFeatures, detect_features
from relocalizer.image_headers import focal_length_35mm
from relocalizer.images import Image
from relocalizer.intrinsics_correction import CorrectionStep
from relocalizer.self_calibration import ViewPair
from slam.config.schema import InputConfig, SlamConfig
from slam.input.frame_source import FrameSource
from slam.input.mask import Mask
from slam.input.open_source import open_source
from slam.input.rectification import GivenCamera
from slam.map.lens_evidence import LensEvidence, LensState
from slam.mapping.lens_examination import LensFinding
from slam.run.calibration_pass import CalibrationPass
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

    monkeypatch.setattr("slam.run.calibration_pass.detect_features", counted)
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
