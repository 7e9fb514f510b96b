"""Rotations, angles and similarities, over the whole range: near identity and near half a turn too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import RigidTransform, Rotation

from relocalizer.geometry import (
    FloatArray,
    Similarity,
    align_points,
    apply_inverse,
    direction_angle,
    exp_so3,
    exp_so3_of_each,
    frozen_array,
    identity,
    log_so3,
    nearest_rotation,
    product,
    quaternion_xyzw_from_rotation,
    quaternion_xyzw_of,
    rigid,
    rotation_angle,
    rotation_from_quaternion_wxyz,
    rotation_from_quaternion_xyzw,
    rotation_matrix,
    skew,
    stack_matrices,
    translation_of,
)


def holds_for(*strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The test holds for whatever the strategies draw; the same draws each time."""
    return lambda test: settings(max_examples=60, deadline=None, derandomize=True)(given(*strategies)(test))


ROUNDING = 1e-12  # of a handful of float64 operations on numbers near one

finite = st.floats(-10.0, 10.0, allow_subnormal=False)
vectors = arrays(np.float64, 3, elements=finite)
scales = st.floats(0.01, 100.0)


@st.composite
def units(draw: st.DrawFn) -> FloatArray:
    v = draw(vectors.filter(lambda v: np.linalg.norm(v) > 1e-3))
    return np.asarray(v / np.linalg.norm(v))


# Everyday angles, angles where arccos of the trace loses half the digits, and angles where the axis nearly flips.
angles = st.one_of(
    st.floats(0.0, np.pi),
    st.floats(0.0, 1e-7),
    st.floats(np.pi - 1e-7, np.pi),
    st.sampled_from([0.0, 1e-7, 1e-12, np.pi / 2, np.pi - 1e-7, np.pi]),
)


@st.composite
def rotation_vectors(draw: st.DrawFn) -> FloatArray:
    return np.asarray(draw(angles) * draw(units()))


@st.composite
def rotations(draw: st.DrawFn) -> FloatArray:
    return exp_so3(draw(rotation_vectors()))


@st.composite
def rigids(draw: st.DrawFn) -> RigidTransform:
    return rigid(draw(rotations()), draw(vectors))


@st.composite
def similarities(draw: st.DrawFn) -> Similarity:
    return Similarity(draw(rotations()), draw(vectors), draw(scales))


# Rotations


@holds_for(rotation_vectors())
def test_exp_gives_a_rotation(omega: FloatArray) -> None:
    R = exp_so3(omega)
    assert np.allclose(R @ R.T, np.eye(3), atol=ROUNDING)
    assert np.linalg.det(R) == pytest.approx(1.0, abs=ROUNDING)


@holds_for(rotation_vectors(), st.floats(1e-9, 10.0))
def test_exp_is_that_of_scipy(omega: FloatArray, stretch: float) -> None:
    expected = Rotation.from_rotvec(stretch * omega).as_matrix()
    assert np.allclose(exp_so3(stretch * omega), expected, rtol=0.0, atol=1e-13)
    assert np.allclose(exp_so3_of_each(stretch * omega[None])[0], expected, rtol=0.0, atol=1e-13)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_exp_of_what_is_not_finite_is_not_finite_either(value: float) -> None:
    assert np.isnan(exp_so3([0.1, value, 0.0])).all()


@holds_for(rotation_vectors())
def test_exp_undoes_log(omega: FloatArray) -> None:
    R = exp_so3(omega)
    assert np.allclose(exp_so3(log_so3(R)), R, atol=1e-9)


@holds_for(angles, units())
def test_log_undoes_exp_up_to_the_sign_at_half_a_turn(angle: float, axis: FloatArray) -> None:
    back = log_so3(exp_so3(angle * axis))
    tolerance = 1e-9 if angle < np.pi - 1e-6 else 1e-6
    sign = -1.0 if angle > np.pi - 1e-6 and back @ axis < 0 else 1.0
    assert np.allclose(sign * back, angle * axis, atol=tolerance)


@holds_for(units())
def test_log_of_a_tiny_rotation_keeps_its_digits(axis: FloatArray) -> None:
    assert np.allclose(log_so3(exp_so3(1e-7 * axis)), 1e-7 * axis, atol=1e-15)


@holds_for(angles, units())
def test_rotation_angle_is_the_angle_it_was_made_with(angle: float, axis: FloatArray) -> None:
    assert rotation_angle(exp_so3(angle * axis)) == pytest.approx(angle, abs=1e-14 + 4e-16 * angle + 5e-15)


@holds_for(rotations(), rotations(), rotations())
def test_the_angle_between_rotations_does_not_depend_on_the_frame(A: FloatArray, B: FloatArray, C: FloatArray) -> None:
    between = rotation_angle(A.T @ B)
    assert rotation_angle((C @ A).T @ (C @ B)) == pytest.approx(between, abs=1e-7)
    assert rotation_angle((A @ C).T @ (B @ C)) == pytest.approx(between, abs=1e-7)


@holds_for(rotations(), rotations())
def test_rotation_angles_obey_the_triangle_inequality(A: FloatArray, B: FloatArray) -> None:
    assert rotation_angle(A @ B) <= rotation_angle(A) + rotation_angle(B) + 1e-7


@holds_for(vectors, vectors)
def test_skew_is_the_cross_product(v: FloatArray, w: FloatArray) -> None:
    assert np.allclose(skew(v) @ w, np.cross(v, w), atol=1e-12)
    assert np.array_equal(skew(v).T, -skew(v))


@holds_for(rotations(), arrays(np.float64, (3, 3), elements=st.floats(-1e-3, 1e-3)))
def test_nearest_rotation_is_a_rotation_and_near(R: FloatArray, noise: FloatArray) -> None:
    nearest = nearest_rotation(R + noise)
    assert np.allclose(nearest @ nearest.T, np.eye(3), atol=ROUNDING)
    assert np.linalg.det(nearest) > 0
    assert np.linalg.norm(nearest - R - noise) <= np.linalg.norm(noise) + ROUNDING  # R itself is a candidate


@holds_for(rotations())
def test_nearest_rotation_leaves_a_rotation_alone(R: FloatArray) -> None:
    assert np.allclose(nearest_rotation(R), R, atol=ROUNDING)


def test_nearest_rotation_never_mirrors() -> None:
    assert np.linalg.det(nearest_rotation(np.diag([1.0, 1.0, -0.5]))) == pytest.approx(1.0)


@holds_for(rotations())
def test_quaternions_come_back_in_either_order(R: FloatArray) -> None:
    x, y, z, w = quaternion_xyzw_from_rotation(R)
    assert np.allclose(rotation_from_quaternion_xyzw([x, y, z, w]), R, atol=ROUNDING)
    assert np.allclose(rotation_from_quaternion_wxyz([w, x, y, z]), R, atol=ROUNDING)


@holds_for(rigids())
def test_the_quaternion_of_one_transform_is_that_of_scipy(a_from_b: RigidTransform) -> None:
    expected = a_from_b.rotation.as_quat(canonical=True)
    found = np.array(quaternion_xyzw_of(a_from_b))
    # At half a turn w is zero but for rounding, and either sign is canonical.
    sign = -1.0 if abs(expected[3]) < ROUNDING and found @ expected < 0 else 1.0
    assert np.allclose(sign * found, expected, atol=ROUNDING)


@holds_for(rotations())
def test_written_quaternions_have_length_one_and_a_w_that_is_not_negative(R: FloatArray) -> None:
    q = quaternion_xyzw_from_rotation(R)
    assert np.linalg.norm(q) == pytest.approx(1.0, abs=ROUNDING)
    assert q[3] >= 0


@holds_for(rotations(), st.floats(0.01, 100.0), st.sampled_from([-1.0, 1.0]))
def test_neither_sign_nor_length_of_a_quaternion_matters(R: FloatArray, length: float, sign: float) -> None:
    q = quaternion_xyzw_from_rotation(R)
    assert np.allclose(rotation_from_quaternion_xyzw(sign * length * q), R, atol=ROUNDING)


# Directions


@holds_for(angles, units(), vectors, scales, scales)
def test_direction_angle_is_the_angle_turned(
    angle: float, axis: FloatArray, other: FloatArray, length_a: float, length_b: float
) -> None:
    across = np.cross(axis, other)
    if np.linalg.norm(across) < 1e-3:
        return
    across /= np.linalg.norm(across)
    turned = np.cos(angle) * across + np.sin(angle) * np.cross(axis, across)
    assert direction_angle(length_a * across, length_b * turned) == pytest.approx(angle, abs=1e-14)


def test_direction_angle_of_opposite_and_of_equal_vectors() -> None:
    assert direction_angle([1, 2, 3], [2, 4, 6]) == pytest.approx(0.0, abs=1e-15)
    assert direction_angle([1, 2, 3], [-1, -2, -3]) == pytest.approx(np.pi, abs=1e-15)
    assert direction_angle([1, 0, 0], [0, 5, 0]) == pytest.approx(np.pi / 2)


# Rigid transforms


@holds_for(rigids(), vectors)
def test_rigid_maps_a_point_by_rotation_then_translation(a_from_b: RigidTransform, p_b: FloatArray) -> None:
    expected = rotation_matrix(a_from_b) @ p_b + translation_of(a_from_b)
    assert np.allclose(a_from_b.apply(p_b), expected, atol=1e-11)


@holds_for(rigids(), rigids())
def test_matrices_of_products_are_products_of_matrices(a_from_b: RigidTransform, b_from_c: RigidTransform) -> None:
    stacked = stack_matrices([a_from_b, b_from_c, a_from_b * b_from_c])
    assert np.allclose(stacked[0] @ stacked[1], stacked[2], atol=1e-10)


@holds_for(rigids(), arrays(np.float64, (5, 3), elements=finite))
def test_apply_inverse_is_applying_the_inverse(a_from_b: RigidTransform, points_a: FloatArray) -> None:
    assert np.allclose(apply_inverse(a_from_b, points_a), a_from_b.inv().apply(points_a), atol=1e-10)


@holds_for(rotations(), vectors, st.floats(-1e-6, 1e-6))
def test_a_matrix_that_is_no_rotation_is_made_one(R: FloatArray, t: FloatArray, off: float) -> None:
    made = rotation_matrix(rigid(R + off, t))
    assert np.allclose(made @ made.T, np.eye(3), atol=1e-13)
    assert np.allclose(made, R, atol=1e-5)


def test_identity_moves_nothing() -> None:
    assert np.array_equal(identity().as_matrix(), np.eye(4))


def test_no_transforms_are_an_empty_stack() -> None:
    assert stack_matrices([]).shape == (0, 4, 4)


# Similarities: the axioms of a group, and of its action on points


@holds_for(similarities(), vectors)
def test_a_similarity_scales_turns_and_shifts(a_from_b: Similarity, p_b: FloatArray) -> None:
    expected = a_from_b.scale * (a_from_b.rotation @ p_b) + a_from_b.translation
    assert np.allclose(a_from_b.apply(p_b), expected, rtol=1e-12, atol=1e-10)


@holds_for(similarities(), similarities(), vectors)
def test_composing_similarities_is_applying_one_after_the_other(
    a_from_b: Similarity, b_from_c: Similarity, p_c: FloatArray
) -> None:
    assert np.allclose((a_from_b @ b_from_c).apply(p_c), a_from_b.apply(b_from_c.apply(p_c)), rtol=1e-9, atol=1e-8)


@holds_for(similarities(), similarities(), similarities())
def test_composing_similarities_is_associative(A: Similarity, B: Similarity, C: Similarity) -> None:
    left, right = (A @ B) @ C, A @ (B @ C)
    assert np.allclose(left.rotation, right.rotation, atol=1e-12)
    assert np.allclose(left.translation, right.translation, rtol=1e-9, atol=1e-8)
    assert left.scale == pytest.approx(right.scale, rel=1e-12)


@holds_for(similarities(), vectors)
def test_the_inverse_similarity_brings_points_back(a_from_b: Similarity, p_b: FloatArray) -> None:
    assert np.allclose(a_from_b.inverse().apply(a_from_b.apply(p_b)), p_b, atol=1e-9)


@holds_for(similarities())
def test_a_similarity_times_its_inverse_is_the_identity(a_from_b: Similarity) -> None:
    assert (a_from_b @ a_from_b.inverse()).is_close(Similarity.identity(), atol=1e-9)


@holds_for(rigids(), scales)
def test_a_similarity_keeps_the_rigid_pose_it_was_made_from(a_from_b: RigidTransform, scale: float) -> None:
    similarity = Similarity.from_rigid(a_from_b, scale)
    assert np.allclose(similarity.rigid.as_matrix(), a_from_b.as_matrix(), atol=1e-12)
    assert similarity.scale == scale


@holds_for(similarities(), rigids())
def test_a_frame_hanging_off_a_keyframe_is_stretched_with_it(
    world_from_keyframe: Similarity, keyframe_from_frame: RigidTransform
) -> None:
    pose = world_from_keyframe.compose_rigid(keyframe_from_frame)
    full = world_from_keyframe @ Similarity.from_rigid(keyframe_from_frame)
    assert np.allclose(translation_of(pose), full.translation, rtol=1e-12, atol=1e-10)
    assert np.allclose(rotation_matrix(pose), full.rotation, atol=1e-12)


@holds_for(similarities(), arrays(np.float64, (2, 4, 3), elements=finite))
def test_a_similarity_maps_points_of_any_leading_shape(a_from_b: Similarity, points: FloatArray) -> None:
    mapped = a_from_b.apply(points)
    assert mapped.shape == (2, 4, 3)
    assert np.allclose(mapped[1, 2], a_from_b.apply(points[1, 2]), rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_a_similarity_refuses_a_scale_that_is_not_positive(scale: float) -> None:
    with pytest.raises(ValueError, match="scale: expected a positive number"):
        Similarity(np.eye(3), np.zeros(3), scale)


def test_similarities_that_differ_in_one_part_are_not_close() -> None:
    one = Similarity.identity()
    assert not one.is_close(Similarity(np.eye(3), np.zeros(3), 1.1))
    assert not one.is_close(Similarity(np.eye(3), np.array([0.1, 0, 0])))
    assert not one.is_close(Similarity(exp_so3([0.1, 0, 0]), np.zeros(3)))


# Alignment

spread_points = arrays(np.float64, (8, 3), elements=finite, unique=True).filter(
    lambda p: np.linalg.svd(p - p.mean(axis=0), compute_uv=False)[1] > 0.1
)


@holds_for(similarities(), spread_points)
def test_align_points_finds_the_similarity_that_made_them(a_from_b: Similarity, points_b: FloatArray) -> None:
    found = align_points(a_from_b.apply(points_b), points_b)
    assert np.allclose(found.apply(points_b), a_from_b.apply(points_b), rtol=1e-7, atol=1e-7)
    assert found.scale == pytest.approx(a_from_b.scale, rel=1e-7)
    assert np.linalg.det(found.rotation) == pytest.approx(1.0)


@holds_for(rotations(), vectors, spread_points)
def test_align_points_without_scale_finds_the_rigid_motion(R: FloatArray, t: FloatArray, points_b: FloatArray) -> None:
    found = align_points(points_b @ R.T + t, points_b, with_scale=False)
    assert found.scale == 1.0
    assert np.allclose(found.rotation, R, atol=1e-6)


@holds_for(spread_points, arrays(np.float64, (8, 3), elements=st.floats(-0.5, 0.5)), similarities())
def test_no_other_similarity_fits_better_than_align_points(
    points_b: FloatArray, noise: FloatArray, nudge: Similarity
) -> None:
    points_a = points_b + noise
    best = align_points(points_a, points_b)
    step = Similarity(exp_so3(1e-3 * log_so3(nudge.rotation)), 1e-3 * nudge.translation, nudge.scale**1e-3)

    def squared(fit: Similarity) -> float:
        return float(((points_a - fit.apply(points_b)) ** 2).sum())

    assert squared(best) <= squared(step @ best) + 1e-9


def test_align_points_turns_a_mirror_image_no_further_than_a_rotation_can() -> None:
    points = np.array([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]])
    found = align_points(points * [1, 1, -1], points)
    assert np.linalg.det(found.rotation) == pytest.approx(1.0)


def test_align_points_refuses_too_few_and_unequal_points() -> None:
    with pytest.raises(ValueError, match=r"N >= 3, got \(2, 3\) and \(2, 3\)"):
        align_points(np.zeros((2, 3)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"got \(4, 3\) and \(5, 3\)"):
        align_points(np.zeros((4, 3)), np.zeros((5, 3)))


@pytest.mark.parametrize("place", [(0.0, 0.0, 0.0), (0.1, 0.2, 0.3), (1e4 / 3, -7e3 / 11, 0.7)])
def test_align_points_refuses_points_that_are_all_at_one_place(place: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="at one place"):
        align_points(np.arange(30.0).reshape(10, 3), np.tile(place, (10, 1)))


# Arrays that do not change


def test_a_frozen_array_is_a_copy_that_cannot_be_written() -> None:
    original = np.zeros(3)
    frozen = frozen_array("it", original, (3,))
    original[0] = 1.0
    assert frozen[0] == 0.0
    with pytest.raises(ValueError, match="read-only"):
        frozen[0] = 1.0


def test_a_frozen_array_says_which_shape_it_wanted() -> None:
    with pytest.raises(ValueError, match=r"poses: expected shape \(N, 4, 4\), got \(4, 4\)"):
        frozen_array("poses", np.eye(4), (None, 4, 4))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_frozen_array_refuses_what_is_not_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="it: holds NaN or infinity"):
        frozen_array("it", [0.0, bad], (2,))


def test_a_product_is_that_of_the_operator_and_its_rotation_stays_one():
    step = rigid(exp_so3([0.3, -0.2, 0.1]), [0.1, 0.2, -0.3])
    fast, slow = identity(), identity()
    for _ in range(300):
        fast, slow = product(fast, step), slow * step
    np.testing.assert_allclose(fast.as_matrix(), slow.as_matrix(), atol=1e-11)
    R = rotation_matrix(fast)
    np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-13)


def test_a_matrix_that_is_hardly_a_rotation_becomes_one():
    R = rotation_matrix(rigid(exp_so3([0.3, -0.2, 0.1]) + 1e-6, [1.0, 2.0, 3.0]))
    np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-14)
