"""A recorded run in two passes: the frames are tracked again when the first pass found another camera.

A map that was tracked with a wrong focal length breaks more often, and its live poses are out of shape; the final
refinement mends neither. The first pass is complete, with all its files, before the second begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from relocalizer.errors import CameraError
from slam.evaluation.verdict import Grade
from slam.input.frame_source import RereadableSource
from slam.input.rectification import GivenCamera
from slam.map.lens_evidence import LensEvidence
from slam.progress import Progress, no_progress
from slam.run.calibration_pass import CalibrationPass, zoom_with_given_camera
from slam.run.recorded_run import FirstPass, RunRecorder, RunReport, RunRequest
from slam.run.run_folder import SECOND_PASS, RunFolder
from slam.run.zoom import without_zoom

if TYPE_CHECKING:
    from slam.events import Observer
    from slam.run.run_statistics import RunStatistics

WHOLE = 0.98  # minimum fraction of the frames in the largest map for it to count as unbroken
WORSE = 0.02  # minimum loss of coverage by which a second pass is worse


class TwoPassRecorder:
    """Records a run as `RunRecorder` does, with a second pass if the first one shows that it is needed.

    Attributes:
        second: report of the second pass; None without one.
    """

    def __init__(self, request: RunRequest, *, on_second_pass: Callable[[str], None] = lambda reason: None) -> None:
        """Args:
        on_second_pass: called before the second pass with its reason, one line.
        """
        self.second: RunReport | None = None
        self._request = request
        self._on_second_pass = on_second_pass
        self._recorder = RunRecorder(request)

    @property
    def statistics(self) -> RunStatistics:
        """Statistics of the current pass so far."""
        return self._recorder.statistics

    def run(
        self,
        *,
        observers: Callable[[], Sequence[Observer]] = tuple,
        on_progress: Callable[[int], None] | None = None,
        on_finishing: Progress = no_progress,
    ) -> RunReport:
        """Record one or two passes. Arguments and exceptions as for `RunRecorder.run`; `observers` is called per pass.

        Returns:
            The report of the pass whose files are in the run folder: of the second, and then those of the first are in
            `first_pass/`; but of the first if the second failed, was interrupted or is worse, and then the files of
            the second are in `second_pass/`.
        """
        first = self._recorder.run(observers=observers, on_progress=on_progress, on_finishing=on_finishing)
        again = second_request(self._request, first)
        if again is None or again.first_pass is None:
            return first
        self._on_second_pass(again.first_pass.reason)
        self._recorder = RunRecorder(again)
        self.second = self._recorder.run(observers=observers, on_progress=on_progress, on_finishing=on_finishing)
        zooms = again.calibration is not None and again.calibration.zoom is not None
        if is_worse(self.second, first, first_is_partial=zooms):
            return first
        RunFolder(first.folder).replace_by_second_pass()
        self.second = replace(self.second, folder=first.folder)
        return self.second


def second_request(request: RunRequest, first: RunReport) -> RunRequest | None:
    """The request of a second pass with the camera that the first one found, or without the frames of a zoom; None if
    there is no need for it."""
    frames, found = request.frames, first.estimated_camera
    if first.status != "finished" or request.start_map is not None or request.localize_only:
        return None
    if not request.config.input.second_pass or not isinstance(frames, RereadableSource) or not frames.can_be_reread:
        return None
    if not frames.camera.assumed:
        return _without_zoom(request, frames, first)
    if found is None or not found.is_worth_a_pass(is_broken=first.coverage < WHOLE):
        return None
    try:
        again = frames.with_calibration(GivenCamera(found.camera, found.sentence))
    except CameraError:  # not a plausible camera: the first pass stays
        return None
    return replace(
        request,
        frames=again,
        out=first.folder / SECOND_PASS,
        calibration=CalibrationPass.of_first_pass(found.camera, found.tracked_px, found.evidence),
        first_pass=FirstPass(found.sentence, first.coverage, first.verdict),
    )


def _without_zoom(request: RunRequest, frames: RereadableSource, first: RunReport) -> RunRequest | None:
    """The request of a second pass over the frames that have the given focal length, if it changes within a map.

    Maps of different cameras, one after the other, stay as they are: each has its own.
    """
    if not first.values.get("lens", {}).get("may_change"):
        return None
    zoom = zoom_with_given_camera(frames, request.config)
    if zoom is None:
        return None
    given_px = frames.calibration.mean_focal
    again = frames.with_calibration(GivenCamera(frames.calibration, "as given"))  # read from the beginning
    return replace(
        request,
        frames=without_zoom(again, zoom),
        out=first.folder / SECOND_PASS,
        calibration=CalibrationPass(given_px, given_px, 0, LensEvidence(), zoom=zoom),
        first_pass=FirstPass(str(zoom), first.coverage, first.verdict),
    )


def is_worse(second: RunReport, first: RunReport, *, first_is_partial: bool = False) -> bool:
    """Whether the files of the second pass must not take the place of those of the first.

    Args:
        first_is_partial: whether the first is partial at best, for what was found after it.
    """
    if second.status != "finished" or second.failures:
        return True
    grade = first.verdict.grade
    if first_is_partial and Grade.PARTIAL.is_below(grade):
        grade = Grade.PARTIAL
    return second.verdict.grade.is_below(grade) or second.coverage < first.coverage - WORSE
