"""Layout of the Rerun viewer: one tab per question."""

from __future__ import annotations

import rerun.blueprint as rrb

TABS = ("Live", "Tracking", "Keyframes", "Loops", "Graph", "Predictor", "Relocalization", "Plots", "Log")
BACKGROUND = [18, 20, 26]


def blueprint(active: str = "Live") -> rrb.Blueprint:
    """A new layout: the tabs of `TABS`, of which one is open."""
    tabs = (_live(), _tracking(), _keyframes(), _loops(), _graph(), _predictor(), _relocalization(), _plots(), _log())
    return rrb.Blueprint(
        rrb.Tabs(*tabs, active_tab=TABS.index(active)),
        rrb.TimePanel(expanded=False, timeline="frame"),
        collapse_panels=True,
    )


def _map(name: str, contents: list[str]) -> rrb.Spatial3DView:
    """A view of the world, with the live path up to the current time."""
    until_now = [
        rrb.VisibleTimeRange(
            timeline,
            start=rrb.TimeRangeBoundary.infinite(),
            end=rrb.TimeRangeBoundary.cursor_relative(),
        )
        for timeline in ("frame", "time")
    ]
    return rrb.Spatial3DView(
        origin="/world",
        name=name,
        contents=contents,
        overrides={"world/trajectory/live": rrb.VisibleTimeRanges(until_now)},
        background=BACKGROUND,
        line_grid=False,
    )


def _live() -> rrb.Horizontal:
    hidden = ["tracks", "ages", "residuals"]
    without_points = [f"- $origin/camera/image/{name}" for name in hidden]
    world = _map("Map", ["$origin/**", *without_points, "- $origin/graph/**", "- $origin/uncertainty"])
    uncertainty = _map(
        "Uncertainty of landmarks", ["$origin/uncertainty", "$origin/keyframes", "$origin/trajectory/optimized"]
    )
    image = rrb.Spatial2DView(
        origin="/world/camera/image", name="Image", contents=["$origin/**", "- $origin/ages", "- $origin/residuals"]
    )
    tracks = rrb.TimeSeriesView(origin="/plots/tracks", name="Tracks")
    reasons = rrb.TextLogView(origin="/log", name="Reasons")
    right = rrb.Vertical(image, tracks, reasons, row_shares=[3, 2, 2])
    return rrb.Horizontal(rrb.Tabs(world, uncertainty), right, column_shares=[3, 2], name="Live")


def _tracking() -> rrb.Horizontal:
    image = rrb.Spatial2DView(
        origin="/world/camera/image", name="Ages and residuals", contents=["$origin/**", "- $origin/tracks"]
    )
    histogram = rrb.BarChartView(origin="/tracking/residual_histogram", name="Residuals, px")
    state = rrb.TimeSeriesView(origin="/plots/state", name="State")
    measured = rrb.TimeSeriesView(origin="/plots/motion", name="Motion and residual, px")
    right = rrb.Vertical(histogram, measured, state, rrb.TextLogView(origin="/log", name="Reasons"))
    return rrb.Horizontal(image, right, column_shares=[3, 2], name="Tracking")


def _keyframes() -> rrb.Horizontal:
    criteria = rrb.TimeSeriesView(
        origin="/keyframes", name="Criteria", contents=["$origin/criteria/**", "$origin/inserted"]
    )
    similarity = rrb.Spatial2DView(origin="/keyframes/similarity", name="Similarity of keyframes, loops marked")
    covisibility = _map("Covisibility", ["$origin/keyframes", "$origin/edges/odometry"])
    return rrb.Horizontal(rrb.Vertical(criteria, covisibility), similarity, name="Keyframes")


def _loops() -> rrb.Horizontal:
    pair = rrb.Spatial2DView(origin="/loops/pair", name="Both images and their matches")
    table = rrb.TextDocumentView(origin="/loops/table", name="Tests")
    plots = rrb.TimeSeriesView(origin="/loops/plots", name="Candidates")
    return rrb.Horizontal(rrb.Vertical(pair, plots, row_shares=[3, 1]), table, column_shares=[3, 2], name="Loops")


def _graph() -> rrb.Horizontal:
    keyframes = ["$origin/keyframes", "$origin/edges/rejected"]
    after = _map("After", ["$origin/graph/after/**", "$origin/graph/covariance", *keyframes])
    before = _map("Residuals before", ["$origin/graph/before/**", *keyframes])
    table = rrb.TextDocumentView(origin="/graph/table", name="Largest residuals")
    plots = rrb.TimeSeriesView(origin="/graph/residuals", name="Largest normalized residual")
    return rrb.Horizontal(
        rrb.Tabs(after, before), rrb.Vertical(table, plots, row_shares=[2, 1]), column_shares=[3, 2], name="Graph"
    )


def _predictor() -> rrb.Horizontal:
    rotation = rrb.TimeSeriesView(origin="/predictor/rotation", name="Rotation, deg")
    direction = rrb.TimeSeriesView(origin="/predictor/direction", name="Direction, deg")
    confidence = rrb.TimeSeriesView(origin="/predictor/confidence", name="Confidence")
    matches = rrb.TimeSeriesView(origin="/predictor/matches", name="Matches")
    table = rrb.TextDocumentView(origin="/predictor/table", name="Pairs")
    return rrb.Horizontal(rrb.Vertical(rotation, direction, confidence, matches), table, name="Predictor")


def _relocalization() -> rrb.Horizontal:
    pair = rrb.Spatial2DView(origin="/relocalization/pair", name="Keyframe and frame")
    table = rrb.TextDocumentView(origin="/relocalization/table", name="Places tried")
    world = _map("Directions", ["$origin/relocalization/**", "$origin/keyframes", "$origin/trajectory/optimized"])
    return rrb.Horizontal(rrb.Vertical(pair, world), table, column_shares=[3, 2], name="Relocalization")


def _plots() -> rrb.Grid:
    titles = {
        "tracks": "Tracks", "image": "Image", "motion": "Motion and residual, px", "depth": "Depth and scale",
        "error": "Error", "time_ms": "Time, ms", "memory_mb": "Memory, MB", "state": "State",
    }  # fmt: skip
    views = [rrb.TimeSeriesView(origin=f"/plots/{name}", name=title) for name, title in titles.items()]
    return rrb.Grid(*views, name="Plots")


def _log() -> rrb.TextLogView:
    return rrb.TextLogView(origin="/log", name="Log")
