"""How far a task is: a bar that redraws itself on a terminal, a line now and then in a log."""

from __future__ import annotations

import io

from slam.progress import TaskProgress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_log_gets_a_line_every_two_seconds():
    log, clock = io.StringIO(), Clock()
    progress = TaskProgress(log, clock=clock)
    for done in range(51):
        clock.now = 0.1 * done
        progress("images", done, 100)
    progress.close()
    assert log.getvalue().splitlines() == ["20/100 images, 8 s left", "40/100 images, 6 s left"]


def test_a_terminal_gets_one_line_that_is_wiped_at_the_end():
    screen, clock = Terminal(), Clock()
    progress = TaskProgress(screen, clock=clock)
    progress("pairs", 0, 10)
    clock.now = 1.0
    progress("pairs", 5, 10)
    progress.close()
    assert screen.getvalue().split("\r\x1b[K")[-2:] == ["[############............] 5/10 pairs, 1 s left", ""]


def test_a_terminal_shows_a_task_when_it_begins_for_its_first_step_may_take_long():
    screen, clock = Terminal(), Clock()
    progress = TaskProgress(screen, clock=clock)
    progress("pairs", 10, 10)
    progress("rounds", 0, 3)
    assert screen.getvalue().split("\r\x1b[K")[-1] == "[........................] 0/3 rounds"


def test_a_count_without_an_end_has_a_state_alone():
    log, clock = io.StringIO(), Clock()
    progress = TaskProgress(log, clock=clock)
    progress("frames", 1, None, "tracking")
    clock.now = 2.0
    progress("frames", 50, None, "tracking, 25.0 fps")
    assert log.getvalue() == "50 frames, tracking, 25.0 fps\n"


def test_a_line_is_cut_where_the_terminal_ends(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    screen, clock = Terminal(), Clock()
    progress = TaskProgress(screen, clock=clock)
    progress("frames", 0, 10)
    clock.now = 1.0
    progress("frames", 5, 10, "tracking, 25.0 fps, 40 keyframes, 2 loops, lost 3 times")
    assert len(screen.getvalue().split("\r\x1b[K")[-1]) == 59


def test_a_line_that_is_said_stays_on_a_terminal():
    screen, clock = Terminal(), Clock()
    progress = TaskProgress(screen, clock=clock)
    progress.say("camera assumed")
    assert screen.getvalue() == "\r\x1b[Kcamera assumed\n"


def test_a_new_task_is_timed_from_its_own_beginning():
    log, clock = io.StringIO(), Clock()
    progress = TaskProgress(log, clock=clock)
    progress("images", 1, 10)
    clock.now = 100.0
    progress("pairs", 0, 10)
    clock.now = 103.0
    progress("pairs", 3, 10)
    assert log.getvalue() == "3/10 pairs, 7 s left\n"
