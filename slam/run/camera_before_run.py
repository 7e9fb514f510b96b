"""The camera with which a run begins: given, or estimated from the images of the source."""

from __future__ import annotations

from slam.config.schema import SlamConfig
from slam.input.frame_source import FrameSource, RereadableSource
from slam.input.live_stream import LiveStream
from slam.input.rectification import GivenCamera
from slam.progress import Progress, no_progress
from slam.run.calibration_pass import CalibrationPass, estimate_camera
from slam.run.live_calibration import calibrate_live
from slam.run.pair_sampling import photo_pairs, sampled_pairs
from slam.run.readout_pass import correct_readout
from slam.run.zoom import without_zoom


def calibrate_first(
    source: FrameSource, config: SlamConfig, *, on_progress: Progress = no_progress
) -> tuple[FrameSource, CalibrationPass | None]:
    """The source with the camera that its own images determine, and how that was found.

    The camera remains `assumed`, because it is an estimate; a given one stays, with None, as any does when
    `config.input.calibrate_first` is false. The first images of a live stream are used up
    (`slam.run.live_calibration`). Images of stored footage are corrected for a rolling shutter
    (`slam.run.readout_pass`).

    Args:
        on_progress: called while images of a live stream are awaited.
    """
    source, calibration = _calibrated(source, config, on_progress)
    return correct_readout(source, config), calibration


def _calibrated(
    source: FrameSource, config: SlamConfig, on_progress: Progress
) -> tuple[FrameSource, CalibrationPass | None]:
    if not config.input.calibrate_first or not source.camera.assumed:
        return source, None
    if isinstance(source, LiveStream):
        return calibrate_live(source, config, on_progress=on_progress)
    if not isinstance(source, RereadableSource):
        return source, None
    if not source.can_be_reread or source.length is None:
        return source, None
    sampled = photo_pairs if config.input.unordered else sampled_pairs
    camera, calibration = estimate_camera(source, source.length, config.features, sampled=sampled)
    if not calibration.is_used:
        return source, calibration
    estimated = source.with_calibration(GivenCamera(camera, calibration.sentence))
    return without_zoom(estimated, calibration.zoom), calibration
