"""Statistics of a map as plain values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from relocalizer.geometry import FloatArray
from relocalizer.maps.map_format import MANIFEST, counts_of
from relocalizer.maps.map_reader import folder_of_map
from relocalizer.maps.reference_map import ReferenceMap


def facts_of(reference_map: ReferenceMap) -> dict[str, Any]:
    """Counts, segments, extent and provenance, as plain values; lengths are in the units of their segment."""
    m = reference_map
    cameras = [
        {"width": c.width, "height": c.height, "fx": c.fx, "fy": c.fy, "cx": c.cx, "cy": c.cy, "assumed": c.assumed}
        for c in m.cameras
    ]
    return {
        "predictor": m.provenance.predictor,
        "weights_sha256": m.provenance.weights_sha256,
        "descriptor": m.provenance.descriptor,
        "units": m.provenance.units,
        "scale_source": m.provenance.scale_source,
        "counts": counts_of(m),
        "loops": int(m.edges.is_loop.sum()),
        "cameras": cameras,
        "segments": [_segment(m, int(number)) for number in np.unique(m.keyframes.segment)],
    }


def _segment(m: ReferenceMap, number: int) -> dict[str, Any]:
    rows = np.flatnonzero(m.keyframes.segment == number)
    ids = m.keyframes.ids[rows]
    sessions = m.session_of_keyframe[rows]
    in_time = rows[np.lexsort((m.keyframes.timestamps_ns[rows], sessions))]
    steps = np.linalg.norm(np.diff(m.keyframes.translations[in_time], axis=0), axis=1)
    within = np.diff(m.session_of_keyframe[in_time]) == 0
    return {
        "segment": number,
        "units": m.units_of(number),
        "keyframes": len(rows),
        "frames": int(np.isin(m.frames.keyframe, ids).sum()),
        "landmarks": int(np.isin(m.landmarks.anchor, ids).sum()),
        "path_length": float(steps[within].sum()),
        "extent": _extent(m.keyframes.translations[rows]),
        "sessions": len(np.unique(sessions)),
    }


def _extent(points: FloatArray) -> list[float]:
    return [float(length) for length in np.ptp(points, axis=0)]


def size_on_disk(folder: Path) -> dict[str, int]:
    """Size of the manifest, the tables and the images of a map, bytes; 0 when there is no map."""
    found = folder_of_map(folder)
    if found is None:
        return {"manifest": 0, "tables": 0, "images": 0}
    return {
        "manifest": (found / MANIFEST).stat().st_size,
        "tables": sum(path.stat().st_size for path in found.glob("*.npz")),
        "images": sum(path.stat().st_size for path in (found / "images").glob("*.jpg")),
    }
