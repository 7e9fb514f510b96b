"""The explanation of a run as one HTML page with images, which needs no other file and no network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from relocalizer.geometry import FloatArray
from slam.explain.explanation import Explanation
from slam.explain.finding import Finding
from slam.explain.run_record import RunRecord
from slam.web_page import figure, web_page

WIDTH, HEIGHT = 960, 70  # of a plot, pixels
POINTS = 1000  # maximum number of points of a plotted line
MOST_IMAGES = 60  # maximum number of images on a page
PLOTS = (
    ("inliers", "inlier landmarks"),
    ("brightness", "mean gray level"),
    ("sharpness", "sharpness"),
    ("moved_px", "motion of the tracks, px per frame"),
    ("residual_px", "reprojection error, px"),
)
_STYLE = """
section { border-left: 4px solid #d9822b; padding: .1rem 1rem; margin: 1rem 0; background: #faf7f2 }
.figures, .axis { color: #5f6368; font-size: 13px }
svg { display: block; background: #f4f5f7; margin-bottom: .2rem; max-width: 100% }
"""


def html_page(
    explanation: Explanation,
    record: RunRecord,
    *,
    keyframe_jpeg: Callable[[int], bytes | None],
    frame_jpeg: Callable[[int], bytes | None],
) -> str:
    """The page.

    Args:
        keyframe_jpeg, frame_jpeg: the image of a keyframe and of a frame as the bytes of a JPEG file; None if there
            is none.
    """
    images = _Images(keyframe_jpeg, frame_jpeg)
    found = "".join(_finding(finding, images) for finding in explanation.findings)
    reasons = f": {escape('; '.join(explanation.reasons))}" if explanation.reasons else ""
    refused = "".join(f"<tr><td>{escape(gate)}<td>{count}" for gate, count in explanation.refused.items())
    parts = (
        f"<h1>{escape(explanation.name)}: {escape(explanation.verdict)}</h1>",
        f"<p>{explanation.frames} frames, {explanation.keyframes} keyframes{reasons}</p>",
        "".join(f"<p>Note: {escape(remark)}</p>" for remark in explanation.remarks),
        "<h2>Frames over time</h2>",
        _plots(record, explanation.findings),
        "<h2>What went wrong</h2>" if found else "<h2>Nothing went wrong that was measured</h2>",
        found,
        f"<h2>Loops</h2><p>{explanation.loops_accepted} accepted</p>",
        f"<table><tr><th>refused at<th>candidates{refused}</table>" if refused else "",
    )
    return web_page(explanation.name, parts, style=_STYLE)


class _Images:
    """Images of keyframes and frames as HTML, not more than `MOST_IMAGES` on a page."""

    def __init__(self, keyframe_jpeg: Callable[[int], bytes | None], frame_jpeg: Callable[[int], bytes | None]) -> None:
        self._keyframe_jpeg, self._frame_jpeg = keyframe_jpeg, frame_jpeg
        self._count = 0

    def of(self, finding: Finding) -> str:
        """The images of a finding: the first of its frames that there is, and its keyframes."""
        frames = range(finding.first, min(finding.last, finding.first + 3) + 1)
        first = next((self._figure(self._frame_jpeg, k, "frame") for k in frames if self._frame_jpeg(k)), "")
        return first + "".join(self._figure(self._keyframe_jpeg, k, "keyframe") for k in finding.keyframes)

    def _figure(self, jpeg: Callable[[int], bytes | None], number: int, kind: str) -> str:
        data = jpeg(number) if self._count < MOST_IMAGES else None
        if data is None:
            return ""
        self._count += 1
        return figure(data, f"{kind} {number}", width=220)


def _finding(finding: Finding, images: _Images) -> str:
    figures = ", ".join(f"{escape(name)} {value:.4g}" for name, value in finding.figures.items())
    shown = images.of(finding)
    return (
        f"<section><p><b>{escape(finding.cause)}</b>, {finding.frames}: {escape(finding.sentence)}</p>"
        f'<p class="figures">{figures}</p><p>What would help: {escape(finding.advice)}</p>{shown}</section>'
    )


def _plots(record: RunRecord, findings: Sequence[Finding]) -> str:
    if not len(record):
        return "<p>There is no frame.</p>"
    shade = "".join(_band(record, finding) for finding in findings if finding.last - finding.first < 0.8 * len(record))
    bars = _bars(record)
    plots = [f'{_svg(shade + bars, 24)}<p class="axis">frames with a pose; shaded: findings</p>']
    for name, title in PLOTS:
        values = record.inliers if name == "inliers" else record.measured[name]
        if np.isfinite(values).any():
            top = float(np.nanmax(values))
            plots.append(f'{_svg(shade + _line(values, top), HEIGHT)}<p class="axis">{title}, up to {top:.4g}</p>')
    return "".join(plots)


def _svg(content: str, height: int) -> str:
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" preserveAspectRatio="none" {size}>{content}</svg>'


def _band(record: RunRecord, finding: Finding) -> str:
    scale = WIDTH / len(record)
    left, right = record.row(finding.first) * scale, (record.row(finding.last) + 1) * scale
    return f'<rect x="{left:.1f}" y="0" width="{max(right - left, 2.0):.1f}" height="{HEIGHT}" fill="#f3cfa4"/>'


def _bars(record: RunRecord) -> str:
    """A bar under every stretch of frames with a pose."""
    edges = np.flatnonzero(np.diff(np.r_[0, record.has_pose.astype(int), 0]))
    scale = WIDTH / len(record)
    return "".join(
        f'<rect x="{a * scale:.1f}" y="14" width="{(b - a) * scale:.1f}" height="8" fill="#3d7a4d"/>'
        for a, b in edges.reshape(-1, 2).tolist()
    )


def _line(values: FloatArray, top: float) -> str:
    """A line through the known values; of each of `POINTS` parts the least and the greatest are kept."""
    step = max(1, -(-len(values) // POINTS))
    points: list[str] = []
    for start in range(0, len(values), step):
        part = values[start : start + step]
        known = part[np.isfinite(part)]
        x = start * WIDTH / len(values)
        for value in sorted({float(known.min()), float(known.max())}) if len(known) else ():
            points.append(f"{x:.1f},{2 + (HEIGHT - 4) * (1 - value / max(top, 1e-9)):.1f}")
    return f'<polyline points="{" ".join(points)}" fill="none" stroke="#2b5f9e" stroke-width="1.2"/>'
