"""Charts as SVG, in the colours of the page that holds them, with a text for those who do not see
them. They need no library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 520, 260
LEFT, RIGHT, TOP, BOTTOM = 76, 16, 14, 46
# points of a line, at most
_POINTS = 400


@dataclass(frozen=True)
class Axis:
    """Label and scale of an axis. low, high: what it must hold, where that is not the data alone.
    share: whether its numbers are shown in per cent."""

    label: str
    log: bool = False
    low: float | None = None
    high: float | None = None
    share: bool = False


@dataclass(frozen=True)
class Rule:
    """A horizontal line at a value, with its name."""

    at: float
    name: str


def line(
    points: Sequence[tuple[float, float]], x: Axis, y: Axis, text: str, rule: Rule | None = None
) -> str:
    """A line through points. On a logarithmic axis those at 0 are left out; text: what is seen."""
    finite = [(a, b) for a, b in points if math.isfinite(b)]
    kept = [(a, b) for a, b in finite if (b > 0 or not y.log) and (a > 0 or not x.log)]
    if not kept:
        return f'<p class="note">{escape(text)} There is nothing to draw.</p>'
    kept = _thinned(kept)
    heights = [b for _, b in kept] + ([rule.at] if rule and (rule.at > 0 or not y.log) else [])
    across, up = _Scale.of([a for a, _ in kept], x, LEFT, WIDTH - RIGHT), _up(heights, y)
    path = " ".join(f"{across.place(a):.1f},{up.place(b):.1f}" for a, b in kept)
    drawn = f'<polyline points="{path}" fill="none" stroke="var(--accent)" stroke-width="2"/>'
    if len(kept) <= 30:
        dots = ((across.place(a), up.place(b)) for a, b in kept)
        dot = '<circle cx="{:.1f}" cy="{:.1f}" r="3" fill="var(--accent)"/>'
        drawn += "".join(dot.format(*each) for each in dots)
    if rule and (rule.at > 0 or not y.log):
        height = up.place(rule.at)
        drawn += (
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}" '
            'stroke="var(--bad)" stroke-dasharray="5 4"/>'
            f'<text x="{LEFT + 6}" y="{height - 5:.1f}">'
            f"{escape(rule.name)}</text>"
        )
    return _figure(drawn + _axes(across, up, x, y), text)


def bars(counts: Sequence[int], width: int, x: Axis, y: Axis, text: str) -> str:
    """Bars of counts, each of `width` whole numbers from 0."""
    low, high = -0.5, len(counts) * width - 0.5
    across = _Scale.of([low, high], Axis(x.label, low=low, high=high), LEFT, WIDTH - RIGHT)
    up = _up([0.0, *map(float, counts)], y)
    drawn, ground = "", up.place(0.0)
    for number, count in enumerate(counts):
        left = across.place(number * width - 0.5)
        right = across.place((number + 1) * width - 0.5)
        top = up.place(count)
        drawn += (
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{max(right - left - 1, 0.5):.1f}" '
            f'height="{ground - top:.1f}" fill="var(--second)"/>'
        )
    return _figure(drawn + _axes(across, up, x, y, whole=True), text)


@dataclass(frozen=True)
class _Scale:
    """How numbers from low to high are placed from `first` to `last`."""

    low: float
    high: float
    first: float
    last: float
    log: bool

    @classmethod
    def of(cls, values: Sequence[float], axis: Axis, first: float, last: float) -> _Scale:
        low = min(values) if axis.low is None else axis.low
        high = max(values) if axis.high is None else axis.high
        if axis.log:
            low, high = (low * 0.9, high * 1.1) if low == high else (low, high)
        elif low == high:
            low, high = low - 0.5, high + 0.5
        return cls(low, high, first, last, axis.log)

    def place(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.first + (value - low) / (high - low) * (self.last - self.first)

    def ticks(self, *, whole: bool = False) -> list[float]:
        """Round numbers inside, a few."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            step = max(1, len(decades) // 5)
            inside = [d for d in decades if self.low <= 10.0**d <= self.high]
            if len(inside) >= 2:
                return [10.0**d for d in inside[::step]]
            few = [f * 10.0**d for d in decades for f in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)]
            few = [value for value in few if self.low <= value <= self.high]
            return few[:: max(1, len(few) // 4)]
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / 4))
        step *= next(f for f in (1, 2, 5, 10) if (self.high - self.low) / (f * step) <= 5)
        step = max(step, 1) if whole else step
        count = math.floor(self.high / step) - math.ceil(self.low / step) + 1
        return [(math.ceil(self.low / step) + i) * step for i in range(count)]


def _up(values: Sequence[float], axis: Axis) -> _Scale:
    low = axis.low if axis.low is not None or axis.log else min(0.0, *values, 0.0)
    given = Axis(axis.label, axis.log, low, axis.high)
    return _Scale.of(values, given, HEIGHT - BOTTOM, TOP)


def _axes(across: _Scale, up: _Scale, x: Axis, y: Axis, *, whole: bool = False) -> str:
    ground = HEIGHT - BOTTOM
    lines = [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{ground}" y2="{ground}" stroke="var(--line)"/>'
    ]
    for value in across.ticks(whole=True):
        place = across.place(value)
        lines.append(
            f'<text x="{place:.1f}" y="{ground + 17}" text-anchor="middle">{_number(value, x)}'
            "</text>"
        )
    for value in up.ticks(whole=whole):
        place = up.place(value)
        lines.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}" '
            'stroke="var(--line)" stroke-width=".6"/>'
            f'<text x="{LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{_number(value, y)}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    lines.append(
        f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x.label)}</text>'
    )
    return "".join(lines)


def _figure(drawn: str, text: str) -> str:
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(text)}">'
        f"{drawn}</svg><figcaption>{escape(text)}</figcaption></figure>"
    )


def _number(value: float, axis: Axis) -> str:
    if axis.share:
        return f"{100 * value:.3g} %"
    return f"{value:,.0f}" if value == int(value) and abs(value) >= 1 else f"{value:.3g}"


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Some of the points, denser at the beginning, where most changes; with first and last."""
    count = len(points)
    if count <= _POINTS:
        return points
    places = {round(count ** (i / (_POINTS - 1))) - 1 for i in range(_POINTS)}
    return [points[place] for place in sorted(places)]
