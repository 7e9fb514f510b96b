"""The recording of the bundled run, read back, and as it is seen in a browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import chromium
import cv2
import numpy as np
import pytest
from test_rerun_viewer import column, rerun_command, sentences

from relocalizer.geometry import Similarity
from relocalizer.images import Image
from relocalizer.maps.map_reader import load_map
from slam.cli import main
from slam.evaluation.trajectory_files import read_tum
from slam.events import Event, LoopExamined
from slam.map.edge_residuals import residuals_at
from slam.map.keyframe_graph import Edge, EdgeKind
from slam.run.replay import open_replay
from slam.viz import recording_output
from slam.viz.layout import TABS, blueprint
from slam.viz.rerun_viewer import RerunViewer

pytestmark = pytest.mark.slow

FRAMES = 420
MOST_MB_PER_100_FRAMES = 2.0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """The folder of a whole run, with its recording in it. Read only."""
    folder = tmp_path_factory.mktemp("runs") / "room"
    clip = root / "sequences" / "room_loop"
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "run",
                str(clip),
                "-o",
                str(folder),
                "-q",
                "--record",
                str(folder / "room.rrd"),
                "--predictor",
                "geometric",
            ]
        )
    assert not ended.value.code
    return folder


@pytest.fixture(scope="module")
def replayed(run: Path) -> list[Event]:
    return list(open_replay(run).events())


def test_its_size_is_bounded(run: Path) -> None:
    assert (run / "room.rrd").stat().st_size <= MOST_MB_PER_100_FRAMES * 1e6 * FRAMES / 100
    assert rerun_command("rrd", "verify", str(run / "room.rrd")).returncode == 0


def test_the_camera_is_where_the_live_trajectory_has_it(run: Path) -> None:
    live = read_tum(run / "trajectory_online.txt")
    rows = column(run / "room.rrd", "/world/camera", "Transform3D:translation")
    assert len(rows) > 400
    at = {round(t * 30 / 1e9): position for t, position in zip(live.timestamps_ns, live.positions, strict=True)}
    for frame, [translation] in rows:
        np.testing.assert_allclose(translation, at[frame], atol=1e-5)


def test_the_final_path_is_that_of_the_trajectory(run: Path) -> None:
    path = read_tum(run / "trajectory.txt")
    [(_, strips)] = column(run / "room.rrd", "/world/trajectory/final", "LineStrips3D:strips")
    np.testing.assert_allclose(np.concatenate([np.array(strip) for strip in strips]), path.positions, atol=1e-5)


def test_the_residuals_are_those_of_the_graph_in_the_map(run: Path) -> None:
    saved = load_map(run / "map")
    table, poses = saved.edges, {k: saved.keyframes.world_from_keyframe(row) for k, row in saved.row_of.items()}
    edges = [
        Edge(
            i=int(table.i[n]), j=int(table.j[n]), sigmas=table.sigmas[n], evidence_fraction=float(table.shares[n]),
            i_from_j=Similarity(table.rotations[n], table.translations[n], float(table.scales[n])),
            kind=EdgeKind.LOOP if table.is_loop[n] else EdgeKind.ODOMETRY,
        )
        for n in range(len(table.i))
    ]  # fmt: skip
    found = residuals_at(edges, table.weights, poses)
    expected = {tuple(ends): value for ends, value in zip(found.ends.tolist(), found.squared.tolist(), strict=True)}
    for kind in ("odometry", "loop"):
        entity = f"/world/graph/after/{kind}"
        drawn = [column(run / "room.rrd", entity, name)[-1][1] for name in ("keyframe_i", "keyframe_j", "chi_square")]
        assert len(drawn[0]) == sum(edge.kind.value == kind for edge in edges)
        for i, j, squared in zip(*drawn, strict=True):
            assert squared == pytest.approx(expected[i, j], rel=0.02, abs=1e-3)


def test_every_loop_candidate_has_its_panel(run: Path, replayed: list[Event]) -> None:
    examined = [event for event in replayed if isinstance(event, LoopExamined)]
    tables = [text[0] for _, text in column(run / "room.rrd", "/loops/table", "TextDocument:text")]
    assert len(tables) == len(examined) >= 1
    assert sum("**accepted**" in table for table in tables) == sum(event.is_accepted for event in examined) >= 1
    assert len(column(run / "room.rrd", "/loops/pair", "EncodedImage:blob")) == len(examined)
    strips = column(run / "room.rrd", "/loops/pair/inliers", "LineStrips2D:strips")
    assert max(len(lines) for _, lines in strips) >= 30
    assert any("loop 0 - " in sentence and "accepted" in sentence for sentence in sentences(run / "room.rrd"))


def test_what_is_shown_of_a_finished_run_is_what_was_recorded_live(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.rrd"
    with pytest.raises(SystemExit):
        main(["view", str(run), "--record", str(again)])
    for entity, component in (
        ("/loops/table", "TextDocument:text"),
        ("/predictor/rotation/map", "Scalars:scalars"),
        ("/keyframes/criteria/parallax", "Scalars:scalars"),
        ("/relocalization/table", "TextDocument:text"),
        ("/plots/time_ms/all", "Scalars:scalars"),
        ("/plots/memory_mb", "Scalars:scalars"),
        ("/plots/depth/scale_sigma", "Scalars:scalars"),
    ):
        live, replayed = column(run / "room.rrd", entity, component), column(again, entity, component)
        assert len(live) == len(replayed), entity
        assert [t for t, _ in live] == [t for t, _ in replayed]


# --- in a browser -------------------------------------------------------------------------------------


@pytest.fixture
def served(run: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Serve the run with one of the tabs open; returns the address of the page."""
    if reason := chromium.why_no_browser():
        pytest.skip(reason)
    viewers: list[RerunViewer] = []

    def serve(tab: str) -> str:
        monkeypatch.setattr(recording_output, "blueprint", partial(blueprint, tab))
        replay = open_replay(run)
        viewer = RerunViewer(record=None, view="web", ground_truth=None, title="room", camera=replay.camera)
        viewers.append(viewer)
        for event in replay.events():
            viewer(event)
        return viewer.url

    yield serve
    for viewer in viewers:
        viewer.close()


def is_green(image: Image) -> np.ndarray:
    """Where the color of an inlier is."""
    red, green, blue = (image[..., channel].astype(int) for channel in range(3))
    return (green > 150) & (green > red + 70) & (green > blue + 70)


def test_the_loops_panel_shows_two_images_and_their_matches(served: Callable[[str], str], tmp_path: Path) -> None:
    assert "Loops" in TABS
    image = chromium.screenshot(served("Loops"), tmp_path / "loops.png", lambda image: is_green(image).sum() > 1500)
    rows = np.flatnonzero(is_green(image).any(axis=1))
    left = image[rows[0] : rows[-1], 40:350].astype(float)
    right = image[rows[0] : rows[-1], 400:710].astype(float)
    assert left.std() > 25
    assert right.std() > 25
    assert np.abs(left - right).mean() > 10  # not the same image twice


def test_the_live_panel_shows_the_map_and_the_image(served: Callable[[str], str], tmp_path: Path) -> None:
    def is_drawn(image: Image) -> bool:
        world = cv2.cvtColor(image[80:, : image.shape[1] // 2], cv2.COLOR_RGB2HSV)
        return bool(((world[..., 1] > 100) & (world[..., 2] > 120)).sum() > 2000)

    image = chromium.screenshot(served("Live"), tmp_path / "live.png", is_drawn)
    assert image[80:, image.shape[1] // 2 :].astype(float).std() > 20
