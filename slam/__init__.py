"""Monocular keyframe SLAM: camera trajectory and map from a video or a folder of images.

What is imported from here is the public interface; docs/api.md describes it. Importing the package loads no heavy
library: a name is imported from its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from relocalizer import __version__ as __version__

if TYPE_CHECKING:
    from slam.components.assembly import Components as Components
    from slam.config.loading import load_config as load_config
    from slam.config.schema import SlamConfig as SlamConfig
    from slam.evaluation.metrics import evaluate as evaluate
    from slam.evaluation.trajectory import Trajectory as Trajectory
    from slam.events import Event as Event
    from slam.events import Observer as Observer
    from slam.input.frame_source import FrameSource as FrameSource
    from slam.input.open_source import open_source as open_source
    from slam.map.frames import Frame as Frame
    from slam.map.tracking_status import TrackingState as TrackingState
    from slam.result import FrameResult as FrameResult
    from slam.result import SlamResult as SlamResult
    from slam.run.record_run import record_run as record_run
    from slam.run.recorded_run import RunReport as RunReport
    from slam.system import Slam as Slam

_HOMES = {
    "Components": "slam.components.assembly",
    "Event": "slam.events",
    "Frame": "slam.map.frames",
    "FrameResult": "slam.result",
    "FrameSource": "slam.input.frame_source",
    "Observer": "slam.events",
    "RunReport": "slam.run.recorded_run",
    "Slam": "slam.system",
    "SlamConfig": "slam.config.schema",
    "SlamResult": "slam.result",
    "TrackingState": "slam.map.tracking_status",
    "Trajectory": "slam.evaluation.trajectory",
    "evaluate": "slam.evaluation.metrics",
    "load_config": "slam.config.loading",
    "open_source": "slam.input.open_source",
    "record_run": "slam.run.record_run",
}

__all__ = [
    "Components",
    "Event",
    "Frame",
    "FrameResult",
    "FrameSource",
    "Observer",
    "RunReport",
    "Slam",
    "SlamConfig",
    "SlamResult",
    "TrackingState",
    "Trajectory",
    "evaluate",
    "load_config",
    "open_source",
    "record_run",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'slam' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
