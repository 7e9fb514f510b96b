"""The verdict of a run follows from evidence, and every reason has its numbers."""

from __future__ import annotations

import pytest

from slam.evaluation.verdict import Evidence, Finding, Grade, judge


def evidence(**changes) -> Evidence:
    return Evidence(**{"frames": 100, "tracked": 100, "reprojection_px": 0.6, "noise_px": 0.8, **changes})


def test_a_run_that_nothing_speaks_against_is_good_without_a_word():
    verdict = judge(evidence())
    assert (verdict.grade, verdict.reasons, str(verdict)) == (Grade.GOOD, (), "good")


@pytest.mark.parametrize(
    ("changes", "grade", "reason"),
    [
        ({"tracked": 91}, Grade.GOOD, ""),
        ({"tracked": 64}, Grade.PARTIAL, "64 of 100 frames (64%) have a pose in the map"),
        (
            {"tracked": 33, "other_segments": (20, 5)},
            Grade.POOR,
            "33 of 100 frames (33%) have a pose in the largest of 3 maps",
        ),
        ({"lost_times": 1, "lost_frames": 4}, Grade.GOOD, ""),
        ({"lost_times": 9, "lost_frames": 9}, Grade.PARTIAL, "tracking was lost 9 times, for 9% of the frames"),
        ({"lost_times": 1, "lost_frames": 45}, Grade.POOR, "tracking was lost 1 time, for 45% of the frames"),
        ({"weak_frames": 30}, Grade.PARTIAL, "30% of the frames rest on fewer than 30 landmarks"),
        ({"weak_frames": 80}, Grade.POOR, "80% of the frames rest on fewer than 30 landmarks"),
        ({"moving_share": 0.3}, Grade.PARTIAL, "30% of the points are on moving objects"),
        ({"overlay_share": 0.3}, Grade.PARTIAL, "30% of the points stand still in the image while the world moves"),
        ({"unexplained_share": 0.2}, Grade.GOOD, ""),
        ({"unexplained_share": 0.6}, Grade.PARTIAL, "60% of the points with long tracks do not move as"),
        ({"unexplained_share": 0.8}, Grade.POOR, "80% of the points with long tracks do not move as"),
        ({"contradicted_keyframes": 2}, Grade.GOOD, ""),
        (
            {"contradicted_keyframes": 6},
            Grade.PARTIAL,
            "6 keyframes recognized earlier places, but the path leads elsewh",
        ),
        ({"contradicted_keyframes": 6, "loops": 1}, Grade.GOOD, ""),
        ({"outweighed": 2, "loops": 5}, Grade.PARTIAL, "whole views of earlier places were recognized"),
        ({"refuted_keyframes": 9, "loops": 2}, Grade.GOOD, ""),
        ({"refuted_keyframes": 12}, Grade.GOOD, "12 keyframes matched places where the camera was not"),
        ({"refuted_keyframes": 12, "loops": 2}, Grade.PARTIAL, "12 keyframes matched places where the camera was not"),
        ({"reprojection_px": 1.2}, Grade.PARTIAL, "landmarks miss their observations by 1.20 px where 0.8 px"),
        ({"reprojection_px": 2.0}, Grade.POOR, "landmarks miss their observations by 2.00 px where 0.8 px"),
        ({"reprojection_px": None}, Grade.PARTIAL, "the run was aborted: the map was not refined as a whole"),
    ],
)
def test_a_grade_and_its_reason(changes, grade, reason):
    verdict = judge(evidence(**changes))
    assert verdict.grade is grade
    assert len(verdict.reasons) == bool(reason)
    assert not reason or verdict.reasons[0].startswith(reason)


def test_the_gravest_reason_comes_first_and_gives_the_grade():
    notes = (Finding(Grade.POOR, "the lens is wrong"),)
    verdict = judge(evidence(tracked=80, lost_times=4, notes=notes))
    assert verdict.grade is Grade.POOR
    assert verdict.reasons[0] == "the lens is wrong"
    assert len(verdict.reasons) == 3


def test_without_a_result_nothing_else_matters():
    verdict = judge(evidence(tracked=0, no_result="no map was initialized"))
    assert str(verdict) == "failed: no map was initialized"


def test_grades_are_in_order():
    assert [grade for grade in Grade if grade.is_below(Grade.PARTIAL)] == [Grade.FAILED, Grade.POOR]
