"""`slam run` as a function of the library."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from slam.config.schema import SlamConfig
from slam.run.camera_before_run import calibrate_first
from slam.run.readout_pass import correct_readout
from slam.run.recorded_run import RunReport, RunRequest
from slam.run.two_pass_recorder import TwoPassRecorder

if TYPE_CHECKING:
    from slam.events import Observer
    from slam.input.frame_source import FrameSource


def record_run(
    source: str | Path | FrameSource,
    *,
    out: str | Path,
    config: SlamConfig | None = None,
    camera: str | Path | None = None,
    start_map: str | Path | None = None,
    localize_only: bool = False,
    observers: Sequence[Observer] = (),
) -> RunReport:
    """Run SLAM on a source and write a run folder, as `slam run` does, in one pass or two (see `TwoPassRecorder`).

    Args:
        source: argument of `open_source`, or an open source, which stays open.
        out: run folder to create.
        camera: camera.yaml of the images, for a source that is not open yet.
        start_map: folder of a map to continue.
        localize_only: localize the frames in that map without changing it.

    Returns:
        The report, also of a run that an exception ended early: `failures` contains the exceptions.

    Raises:
        UserError: the run could not be started (no run folder remains then), or the source gave too few frames.
    """
    from slam.components.predictor_choice import decide
    from slam.input.open_source import open_source

    loaded = None
    if start_map is not None:
        from relocalizer.maps.map_reader import load_map

        loaded = load_map(Path(start_map))
    config, choice = decide(SlamConfig() if config is None else config, loaded.provenance if loaded else None)
    with ExitStack() as closing:
        if isinstance(source, str | Path):
            cameras = loaded.cameras if loaded else ()
            source = open_source(source, config=config.input, camera=camera, map_cameras=cameras)
            closing.callback(source.close)
        frames, calibration = (correct_readout(source, config), None) if loaded else calibrate_first(source, config)
        request = RunRequest(
            frames=frames,
            config=config,
            choice=choice,
            out=Path(out),
            start_map=loaded,
            map_name=str(start_map or ""),
            localize_only=localize_only,
            calibration=calibration,
        )
        return TwoPassRecorder(request).run(observers=lambda: observers)
