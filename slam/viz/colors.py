"""Color scales."""

from __future__ import annotations

import numpy as np

from relocalizer.geometry import FloatArray

# Blue, green, yellow, red: from what fits to what does not.
STOPS = np.array([[70, 110, 230], [60, 220, 90], [245, 210, 60], [235, 60, 50]], np.float64)


def ramp(values: FloatArray) -> FloatArray:
    """Colors (N, 3), 0 to 255, of values (N,) from 0 to 1; values outside are clipped, NaN counts as 0."""
    position = np.clip(np.nan_to_num(np.asarray(values, np.float64)), 0.0, 1.0) * (len(STOPS) - 1)
    at = np.arange(len(STOPS))
    return np.column_stack([np.interp(position, at, STOPS[:, channel]) for channel in range(3)]).reshape(-1, 3)
