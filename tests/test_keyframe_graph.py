"""Frames, keyframes, edges and the keyframe graph: contracts and rejected input."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from small_graphs import CAMERA, at, keyframe

from relocalizer.camera import Camera
from relocalizer.geometry import Similarity
from slam.map.frames import Frame
from slam.map.keyframe_graph import Edge, EdgeKind, KeyframeGraph

IMAGE = np.zeros((6, 8, 3), np.uint8)


def edge(i, j, kind=EdgeKind.ODOMETRY, sigmas=None, inliers=0):
    sigmas = np.ones(7) if sigmas is None else sigmas
    return Edge(i=i, j=j, i_from_j=at(1.0), sigmas=sigmas, kind=kind, inliers=inliers)


@pytest.fixture
def graph():
    graph = KeyframeGraph()
    for k, segment in [(0, 0), (1, 0), (2, 1), (3, 0)]:
        graph.add_keyframe(keyframe(k), at(float(k)), segment)
    return graph


# Frames


@pytest.mark.parametrize(
    ("image", "got"),
    [
        (np.zeros((6, 8), np.uint8), "(6, 8) uint8"),
        (np.zeros((6, 8, 4), np.uint8), "(6, 8, 4) uint8"),
        (np.zeros((6, 8, 3), np.float32), "(6, 8, 3) float32"),
    ],
)
def test_a_frame_accepts_only_rgb_bytes(image, got):
    with pytest.raises(ValueError, match=re.escape(f"Frame.image: expected (H, W, 3) uint8, got {got}")):
        Frame(index=0, timestamp_ns=0, image=image, camera=CAMERA)


def test_a_frame_refuses_a_camera_that_still_distorts():
    distorted = Camera(width=8, height=6, fx=5, fy=5, cx=3.5, cy=2.5, model="radtan", distortion=(0.1, 0, 0, 0))
    with pytest.raises(ValueError, match=r"Frame\.camera: images are undistorted before they become frames"):
        Frame(index=0, timestamp_ns=0, image=IMAGE, camera=distorted)


def test_the_view_of_a_frame_has_its_own_camera():
    view = Frame(index=0, timestamp_ns=0, image=IMAGE, camera=CAMERA).view
    assert view.image is IMAGE
    assert view.camera is CAMERA
    assert view.features is None


def test_frames_and_keyframes_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        Frame(index=0, timestamp_ns=0, image=IMAGE, camera=CAMERA).index = 1
    with pytest.raises(FrozenInstanceError):
        keyframe(0).id = 1


# Edges


@pytest.mark.parametrize(("i", "j"), [(2, 1), (1, 1)])
def test_an_edge_goes_from_the_older_to_the_newer_keyframe(i, j):
    with pytest.raises(ValueError, match=f"Edge: expected i < j, got {i} and {j}"):
        edge(i, j)


@pytest.mark.parametrize(
    ("sigmas", "sentence"),
    [
        (np.ones(6), "Edge.sigmas: expected shape (7), got (6,)"),
        (np.array([1, 1, 1, 1, 1, 1, np.nan]), "Edge.sigmas: holds NaN or infinity"),
        (np.array([1, 1, 1, 0.0, 1, 1, 1]), "Edge.sigmas: must be positive"),
        (np.array([1, 1, 1, 1, 1, 1, -1.0]), "Edge.sigmas: must be positive"),
    ],
)
def test_invalid_sigmas_are_refused_by_name(sigmas, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        edge(0, 1, sigmas=sigmas)


def test_the_sigmas_of_an_edge_cannot_be_written_to_nor_changed_from_outside():
    mine = np.ones(7)
    e = edge(0, 1, sigmas=mine)
    mine[:] = 5.0
    assert (e.sigmas == 1.0).all()
    with pytest.raises(ValueError, match="read-only"):
        e.sigmas[0] = 2.0


@pytest.mark.parametrize(
    ("measurement", "sentence"),
    [
        (lambda: Similarity(np.full((3, 3), np.nan), np.zeros(3)), "Similarity.rotation: holds NaN or infinity"),
        (lambda: Similarity(np.eye(3), [0.0, np.nan, 0.0]), "Similarity.translation: holds NaN or infinity"),
        (lambda: Similarity(np.eye(3), [0.0, np.inf, 0.0]), "Similarity.translation: holds NaN or infinity"),
        (
            lambda: Similarity(np.eye(3), np.zeros(3), float("nan")),
            "Similarity.scale: expected a positive number, got nan",
        ),
        (lambda: Similarity(np.eye(3), np.zeros(3), 0.0), "Similarity.scale: expected a positive number, got 0.0"),
    ],
)
def test_a_measurement_that_is_not_finite_is_refused_by_name_before_it_reaches_a_graph(measurement, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Edge(i=0, j=1, i_from_j=measurement(), sigmas=np.ones(7), kind=EdgeKind.LOOP)


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, float("nan")])
def test_an_evidence_fraction_is_positive_and_at_most_one(share):
    with pytest.raises(ValueError, match=f"Edge.evidence_fraction: expected more than 0 and at most 1, got {share}"):
        Edge(i=0, j=1, i_from_j=at(1.0), sigmas=np.ones(7), kind=EdgeKind.ODOMETRY, evidence_fraction=share)


# The graph


def test_an_id_is_taken_only_once(graph):
    with pytest.raises(ValueError, match="keyframe 1 is there already"):
        graph.add_keyframe(keyframe(1), at(9.0))
    assert graph.world_from_keyframe[1].translation[0] == 1.0


@pytest.mark.parametrize(("i", "j", "missing"), [(0, 9, 9), (7, 9, 7)])
def test_an_edge_to_an_unknown_keyframe_is_refused_by_its_id(graph, i, j, missing):
    with pytest.raises(ValueError, match=f"edge {i}-{j} names keyframe {missing}, which is not there"):
        graph.set_edge(edge(i, j))
    assert not graph.edges


FAR = [at(1e13), at(1.0, scale=1e13), at(1.0, scale=1e-13)]


@pytest.mark.parametrize("pose", FAR)
def test_what_a_map_cannot_hold_does_not_enter_the_graph(graph, pose):
    with pytest.raises(ValueError, match="pose of keyframe 4 is out of range: coordinates up to 1"):
        graph.add_keyframe(keyframe(4), pose)
    with pytest.raises(ValueError, match="pose of keyframe 1 is out of range"):
        graph.set_poses({0: at(3.0), 1: pose})
    with pytest.raises(ValueError, match="edge 0-1 is out of range"):
        graph.set_edge(replace(edge(0, 1), i_from_j=pose))
    assert [graph.world_from_keyframe[k].translation[0] for k in (0, 1)] == [0.0, 1.0]
    assert 4 not in graph.keyframes
    assert not graph.edges


def test_newer_evidence_replaces_the_edge_between_the_same_keyframes(graph):
    graph.set_edge(edge(0, 1, inliers=10))
    graph.set_edge(edge(0, 1, inliers=20))
    assert [e.inliers for e in graph.edges.values()] == [20]


def test_an_edge_has_weight_one_until_it_is_set_and_again_when_the_edge_is_replaced(graph):
    graph.set_edge(edge(0, 3, EdgeKind.LOOP))
    assert graph.weight(graph.edges[0, 3]) == 1.0
    graph.set_weights({(0, 3): 0.25})
    assert graph.weight(graph.edges[0, 3]) == 0.25
    graph.set_edge(edge(0, 3, EdgeKind.LOOP))
    assert graph.weight(graph.edges[0, 3]) == 1.0


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ({(0, 1): 0.5, (1, 3): 0.5}, "weight of edge 1-3, which is not there"),
        ({(0, 1): 1.5}, "weight of edge 0-1: expected 0 to 1, got 1.5"),
        ({(0, 1): float("nan")}, "weight of edge 0-1: expected 0 to 1, got nan"),
    ],
)
def test_invalid_weights_are_refused_and_nothing_is_set(graph, weights, sentence):
    graph.set_edge(edge(0, 1))
    with pytest.raises(ValueError, match=re.escape(sentence)):
        graph.set_weights(weights)
    assert graph.weight(graph.edges[0, 1]) == 1.0


def test_poses_of_unknown_keyframes_are_refused_and_nothing_is_set(graph):
    with pytest.raises(ValueError, match=re.escape("poses for unknown keyframes [8, 9]")):
        graph.set_poses({0: at(5.0), 9: at(1.0), 8: at(1.0)})
    assert graph.world_from_keyframe[0].translation[0] == 0.0


def test_keyframes_without_a_new_pose_stay_where_they_are(graph):
    graph.set_poses({1: at(7.0)})
    assert graph.positions()[:, 0].tolist() == [0.0, 7.0, 2.0, 3.0]


def test_edges_can_be_selected_by_kind(graph):
    graph.set_edge(edge(0, 1))
    graph.set_edge(edge(0, 3, EdgeKind.LOOP))
    assert [(e.i, e.j) for e in graph.edges_of(EdgeKind.LOOP)] == [(0, 3)]
    assert [(e.i, e.j) for e in graph.edges_of(EdgeKind.ODOMETRY)] == [(0, 1)]


def test_a_segment_lists_its_keyframes_in_order(graph):
    assert graph.segment(0) == [0, 1, 3]
    assert graph.segment(1) == [2]
    assert graph.segment(5) == []


def test_positions_are_in_order_of_id_whatever_the_order_of_adding():
    graph = KeyframeGraph()
    for k in (2, 0, 1):
        graph.add_keyframe(keyframe(k), at(float(k)))
    assert graph.positions()[:, 0].tolist() == [0.0, 1.0, 2.0]
    assert graph.last_id == 2


def test_an_empty_graph_has_no_last_keyframe_and_no_positions():
    assert KeyframeGraph().last_id == -1
    assert KeyframeGraph().positions().shape == (0, 3)


def test_two_graphs_share_nothing():
    a, b = KeyframeGraph(), KeyframeGraph()
    a.add_keyframe(keyframe(0), at(0.0))
    assert not b.keyframes


def test_edges_at_a_keyframe_are_in_order_of_the_other_end(graph):
    for pair in [(1, 3), (0, 1), (1, 2)]:
        graph.set_edge(edge(*pair))
    assert [(e.i, e.j) for e in graph.edges_at(1)] == [(0, 1), (1, 2), (1, 3)]


def test_an_edge_that_replaces_a_loop_is_no_loop_any_more(graph):
    graph.set_edge(edge(0, 1, EdgeKind.LOOP))
    graph.set_edge(edge(0, 1))
    assert graph.loops() == []
