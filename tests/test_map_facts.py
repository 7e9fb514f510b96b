"""What a map holds, in numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from map_samples import small_map

from relocalizer.maps.map_facts import facts_of
from relocalizer.maps.reference_map import Session


def test_a_path_goes_through_the_keyframes_in_time_whatever_their_ids():
    m = small_map()  # its keyframes stand 0.1 apart on a line
    order = [2, 0, 1, 3]
    table = replace(m.keyframes, translations=m.keyframes.translations[order], timestamps_ns=np.array(order) * 10**9)
    [part] = facts_of(replace(m, keyframes=table))["segments"]
    assert part["path_length"] == pytest.approx(0.3)
    assert part["sessions"] == 1


def test_the_way_from_one_session_to_the_next_is_no_part_of_the_path():
    m = small_map()
    translations = np.array([[0, 0, 0], [1, 0, 0], [50, 0, 0], [52, 0, 0]], dtype=float)
    m = replace(m, keyframes=replace(m.keyframes, translations=translations), sessions=(Session(0, 0), Session(6, 4)))
    [part] = facts_of(m)["segments"]
    assert (part["path_length"], part["sessions"]) == (pytest.approx(3.0), 2)
