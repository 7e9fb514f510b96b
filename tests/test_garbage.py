"""Garbage is collected rarely while the command line starts, and as usual while a run goes on."""

from __future__ import annotations

import gc

from slam.cli.garbage import OBJECTS_AT_START, collect_as_usual, collect_rarely


def test_garbage_is_collected_rarely_until_it_is_as_usual():
    collect_as_usual()  # whatever command lines other tests have run in this process
    before = gc.get_threshold()
    try:
        collect_rarely()
        assert gc.get_threshold() == (OBJECTS_AT_START, *before[1:])
        collect_as_usual()
        assert gc.get_threshold() == before
    finally:
        gc.set_threshold(*before)
