from types import SimpleNamespace

import numpy as np
import pytest

from slam.event_publisher import EventPublisher
from slam.events import LandmarksUpdated
from slam.map.landmarks import LandmarkMap


@pytest.mark.parametrize(("keyframes", "reported"), [(50, 100), (199, 100), (900, 20)])
def test_all_landmarks_are_reported_after_every_keyframe_of_a_small_map_and_seldom_in_a_large_one(keyframes, reported):
    graph = SimpleNamespace(keyframes=dict.fromkeys(range(keyframes)), world_from_keyframe={})
    events = []
    reporter = EventPublisher([events.append], SimpleNamespace(graph=graph, landmarks=LandmarkMap()))
    for k in range(100):
        reporter.landmarks_updated_after_keyframe(k, frame_index=k)
    assert len(events) == reported
    assert all(isinstance(event, LandmarksUpdated) and np.size(event.ids) == 0 for event in events)
