"""Where a run lies on the earth, read from its report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from slam.result import Georeference
from slam.run.report import REPORT


def georeference_of(run_folder: Path) -> Georeference | None:
    """Where the map of a run lies on the earth; None if its scale is not from a GPS track, or for a map alone."""
    try:
        units = json.loads((run_folder / REPORT).read_text(encoding="utf-8"))["units"]
        found = units["georeference"]
        if found is None:
            return None
        return Georeference(
            latitude_deg=float(found["latitude_deg"]),
            longitude_deg=float(found["longitude_deg"]),
            height_m=float(found["height_m"]),
            enu_from_world=np.array(found["enu_from_world"], dtype=np.float64).reshape(4, 4),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
