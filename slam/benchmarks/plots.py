"""Plots of a report as inline SVG: lines and bars, without a plotting library or scripts.

An SVG scales with the page, needs no file of its own, and its text can be searched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

import numpy as np

from relocalizer.geometry import FloatArray

WIDTH, HEIGHT = 560, 360  # Of a plot, pixels.
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 30, 46  # Margins around the axes, pixels.
COLORS = ("#1f5fa8", "#c8501e", "#2f8f4e", "#8a4fa3", "#a67c00", "#3d8f93", "#b03060", "#555555")
GRAY = "#9aa0a6"
MOST_POINTS = 600  # Points of a line; more cannot be seen at this width.
TICKS = 6


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """A line through points; NaN interrupts it. `color` is an index into COLORS, None for gray."""

    label: str
    x: Sequence[float] | FloatArray
    y: Sequence[float] | FloatArray
    color: int | None = 0


@dataclass(frozen=True, slots=True, eq=False)
class LinePlot:
    """Lines over common axes; `is_map` gives both axes one scale, `from_zero` has zero on the vertical axis."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    is_map: bool = False
    from_zero: bool = True

    def svg(self) -> str:
        x = np.concatenate([np.asarray(s.x, dtype=np.float64) for s in self.series] or [np.zeros(0)])
        y = np.concatenate([np.asarray(s.y, dtype=np.float64) for s in self.series] or [np.zeros(0)])
        axes = _Axes.around(x, y, is_map=self.is_map, from_zero=self.from_zero)
        parts = [*axes.frame(self.title, self.x_label, self.y_label)]
        for series in self.series:
            color = GRAY if series.color is None else COLORS[series.color % len(COLORS)]
            width = 3.0 if series.color is None else 1.6
            parts += [
                f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="{width}"/>'
                for points in axes.polylines(_thinned(series.x), _thinned(series.y))
            ]
        return _document([*parts, *_legend(self.series, axes.pixels(x, y))], self.title)


@dataclass(frozen=True, slots=True, eq=False)
class BarPlot:
    """One bar per label, with its value; None is drawn as a missing bar."""

    title: str
    y_label: str
    labels: Sequence[str]
    values: Sequence[float | None]

    def svg(self) -> str:
        known = [value for value in self.values if value is not None and math.isfinite(value)]
        axes = replace(_Axes.around(np.array([0.0, 1.0]), np.array([0.0, *known])), has_x_ticks=False)
        slot = (WIDTH - LEFT - RIGHT) / max(len(self.values), 4)
        parts = [*axes.frame(self.title, "", self.y_label)]
        for k, (label, value) in enumerate(zip(self.labels, self.values, strict=True)):
            left, middle = LEFT + slot * k, LEFT + slot * (k + 0.5)
            if value is None or not math.isfinite(value):
                parts.append(_text(middle, HEIGHT - BOTTOM - 6, "none", anchor="middle", size=9))
            else:
                top = axes.at_y(value)
                parts.append(
                    f'<rect x="{left + 0.15 * slot:.1f}" y="{top:.1f}" width="{0.7 * slot:.1f}" '
                    f'height="{HEIGHT - BOTTOM - top:.1f}" fill="{COLORS[0]}">'
                    f"<title>{escape(label)}: {value:.4g}</title></rect>"
                )
                if slot >= 30:
                    parts.append(_text(middle, top - 4, f"{value:.3g}", anchor="middle", size=10))
            parts += _bar_label(label, middle, slot)
        return _document(parts, self.title)


Plot = LinePlot | BarPlot


def cumulative(errors: Sequence[float], label: str, *, up_to: float, color: int = 0) -> Series:
    """The fraction of errors below x, as a line from 0 to `up_to`."""
    ordered = np.sort(np.asarray(errors, dtype=np.float64))
    x = np.linspace(0.0, up_to, 201)
    return Series(label, x, np.searchsorted(ordered, x, side="right") / max(len(ordered), 1), color)


@dataclass(frozen=True, slots=True)
class _Axes:
    """Ranges of the axes, and the mapping from values to pixels."""

    x0: float
    x1: float
    y0: float
    y1: float
    has_x_ticks: bool = True

    @classmethod
    def around(cls, x: FloatArray, y: FloatArray, *, is_map: bool = False, from_zero: bool = True) -> _Axes:
        x, y = x[np.isfinite(x)], y[np.isfinite(y)]
        (x0, x1), (y0, y1) = (_range(v, has_margin=is_map) for v in (x, y))
        if is_map:
            plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
            unit = max((x1 - x0) / plot_width, (y1 - y0) / plot_height)
            middle_x, middle_y = (x0 + x1) / 2, (y0 + y1) / 2
            x0, x1 = middle_x - unit * plot_width / 2, middle_x + unit * plot_width / 2
            y0, y1 = middle_y - unit * plot_height / 2, middle_y + unit * plot_height / 2
        elif from_zero:
            y0, y1 = min(y0, 0.0), y1 + 0.08 * (y1 - min(y0, 0.0))
        return cls(x0, x1, y0, y1)

    def at_x(self, value: float) -> float:
        return LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def at_y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM)

    def pixels(self, x: FloatArray, y: FloatArray) -> FloatArray:
        """Pixels (N, 2) of points; those with NaN are left out."""
        known = np.isfinite(x) & np.isfinite(y)
        return np.array([(self.at_x(a), self.at_y(b)) for a, b in zip(x[known], y[known], strict=True)]).reshape(-1, 2)

    def polylines(self, x: FloatArray, y: FloatArray) -> list[str]:
        """Points of each uninterrupted part of a line, for SVG."""
        lines: list[list[str]] = [[]]
        for a, b in zip(x.tolist(), y.tolist(), strict=True):
            if math.isfinite(a) and math.isfinite(b):
                lines[-1].append(f"{self.at_x(a):.1f},{self.at_y(b):.1f}")
            elif lines[-1]:
                lines.append([])
        return [" ".join(line) for line in lines if line]

    def frame(self, title: str, x_label: str, y_label: str) -> list[str]:
        """Border, grid, ticks, labels and title."""
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        parts = [_text(WIDTH / 2, 18, title, anchor="middle", size=13, more='font-weight="600"')]
        for value in _ticks(self.x0, self.x1) if self.has_x_ticks else []:
            x = self.at_x(value)
            parts.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#e3e5e8"/>')
            parts.append(_text(x, bottom + 15, _number(value), anchor="middle", size=10))
        for value in _ticks(self.y0, self.y1):
            y = self.at_y(value)
            parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#e3e5e8"/>')
            parts.append(_text(LEFT - 6, y + 3.5, _number(value), anchor="end", size=10))
        parts.append(
            f'<rect x="{LEFT}" y="{TOP}" width="{right - LEFT}" height="{bottom - TOP}" fill="none" stroke="#70757a"/>'
        )
        parts.append(_text((LEFT + right) / 2, HEIGHT - 10, x_label, anchor="middle", size=11))
        middle = (TOP + bottom) / 2
        turned = f'transform="rotate(-90 14 {middle:.0f})"'
        parts.append(_text(14, middle, y_label, anchor="middle", size=11, more=turned))
        return parts


def _range(values: FloatArray, *, has_margin: bool) -> tuple[float, float]:
    if len(values) == 0:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    span = high - low
    if span <= 1e-12 * max(1.0, abs(high)):  # rounding alone
        span = max(abs(high), 1e-6)
        return low - has_margin * span / 2, low + span
    return (low - 0.05 * span, high + 0.05 * span) if has_margin else (low, high)


def _ticks(low: float, high: float) -> list[float]:
    """Round values in a range, at most about `TICKS`."""
    rough = (high - low) / TICKS
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * k for k in (1, 2, 5, 10) if unit * k >= rough)
    return [step * k for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    return f"{value:.6g}"


def _thinned(values: Sequence[float] | FloatArray) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    return array[:: -(-len(array) // MOST_POINTS)] if len(array) > MOST_POINTS else array


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 11, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" {more}>{escape(text)}</text>'


def _bar_label(label: str, middle: float, slot: float) -> list[str]:
    """The label below a bar: level if it fits, else slanted; of very many bars only the hover text remains."""
    y = HEIGHT - BOTTOM + 14
    if slot < 9:
        return []
    shown = label if len(label) <= 14 else label[:13] + "…"
    if 6.2 * len(shown) < slot:
        return [_text(middle, y, shown, anchor="middle", size=10)]
    return [_text(middle + 4, y - 4, shown, anchor="end", size=9, more=f'transform="rotate(-35 {middle:.1f} {y})"')]


def _legend(series: Sequence[Series], pixels: FloatArray) -> list[str]:
    """Labels in the corner with the fewest points (N, 2) behind them; a single line needs none."""
    labeled = [s for s in series if s.label]
    if len(labeled) < 2:
        return []
    width, height = 34 + 6.3 * max(len(s.label) for s in labeled), 15.0 * len(labeled) + 6
    lefts, tops = (LEFT + 6, WIDTH - RIGHT - 6 - width), (TOP + 6, HEIGHT - BOTTOM - 6 - height)
    corners = [(left, top) for top in tops for left in lefts]

    def covered(corner: tuple[float, float]) -> int:
        inside = (pixels >= corner) & (pixels <= np.add(corner, [width, height]))
        return int(inside.all(axis=1).sum())

    left, top = min(corners, key=covered)
    parts = [
        f'<rect x="{left:.0f}" y="{top:.0f}" width="{width:.0f}" height="{height:.0f}" fill="#ffffff" '
        'fill-opacity="0.8" stroke="#d0d3d7"/>'
    ]
    for k, s in enumerate(labeled):
        y = top + 12 + 15 * k
        color = GRAY if s.color is None else COLORS[s.color % len(COLORS)]
        line = f'x1="{left + 5:.0f}" y1="{y - 4:.0f}" x2="{left + 23:.0f}" y2="{y - 4:.0f}"'
        parts.append(f'<line {line} stroke="{color}" stroke-width="3"/>')
        parts.append(_text(left + 28, y, s.label, size=10))
    return parts


def _document(parts: Sequence[str], title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}" font-family="system-ui, sans-serif" fill="#202124">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>{"".join(parts)}</svg>'
    )
