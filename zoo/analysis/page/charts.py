"""Charts as SVG that follow the colours of the page."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from zoo.analysis.page.html import Markup, element

WIDTH, HEIGHT = 460, 290
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 12, 42
COLOURS = 10


class Series(NamedTuple):
    """A line: name, x and y values, and the number of its colour. `mark` is the index of a point to mark."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int
    mark: int | None = None


class Axis(NamedTuple):
    """A title, the range of values, and a format of the ticks. `log` is the base-10 logarithmic scale."""

    title: str
    low: float
    high: float
    format: Callable[[float], str] = lambda value: f"{value:g}"
    log: bool = False

    def position(self, value: float) -> float:
        """Return the place of a value in [0, 1]; values beyond the range lie at its ends."""
        if self.log:
            low, high, value = math.log10(self.low), math.log10(self.high), math.log10(max(value, self.low))
        else:
            low, high = self.low, self.high
        return min(max((value - low) / (high - low), 0.0), 1.0) if high > low else 0.5

    def ticks(self) -> list[float]:
        """Return about five round values within the range."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            ticks = [step * 10.0**power for power in powers for step in (1, 2, 5)]
            ticks = [tick for tick in ticks if self.low <= tick <= self.high]
            return ticks if len(ticks) <= 7 else [tick for tick in ticks if math.log10(tick).is_integer()]
        span = self.high - self.low
        if span <= 0:
            return [self.low]
        raw = span / 5
        unit = 10.0 ** math.floor(math.log10(raw))
        step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [round(step * i, 12) for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def span(values: Sequence[float], *, floor: float | None = None, ceiling: float | None = None) -> tuple[float, float]:
    """Return a range that holds all values, a little wider, within the bounds."""
    low, high = min(values), max(values)
    margin = 0.04 * (high - low) or max(abs(high) * 0.05, 1e-6)
    low, high = low - margin, high + margin
    return max(low, floor) if floor is not None else low, min(high, ceiling) if ceiling is not None else high


def line_chart(
    label: str, series: Sequence[Series], x: Axis, y: Axis, *, diagonal: bool = False, vertical: float | None = None
) -> Markup:
    """Return a chart of lines with a legend.

    Args:
        label: what the chart shows, read out by screen readers.
        series: the lines.
        x: the horizontal axis.
        y: the vertical axis.
        diagonal: draw the diagonal as a guide.
        vertical: x value of a guide.
    """
    parts = _frame(x, y)
    if diagonal:
        parts.append(_line(x, y, (x.low, y.low), (x.high, y.high), "guide"))
    if vertical is not None:
        parts.append(_line(x, y, (vertical, y.low), (vertical, y.high), "guide"))
    for one in series:
        points = " ".join(
            f"{_x(x, a):.1f},{_y(y, b):.1f}" for a, b in zip(one.x, one.y, strict=True) if math.isfinite(b)
        )
        parts.append(element("polyline", points=points, class_=f"line s{one.colour % COLOURS}"))
        if one.mark is not None:
            centre = {"cx": f"{_x(x, one.x[one.mark]):.1f}", "cy": f"{_y(y, one.y[one.mark]):.1f}"}
            parts.append(element("circle", **centre, r=4.5, class_=f"f{one.colour % COLOURS}"))
    legend = [
        element("li", element("span", class_=f"key k{one.colour % COLOURS}"), one.name) for one in series if one.name
    ]
    return Markup(_svg(label, parts) + (element("ul", legend, class_="legend") if legend else ""))


def bar_chart(label: str, bars: Sequence[tuple[float, float, float, int]], x: Axis, y: Axis, **guides: bool) -> Markup:
    """Return a chart of bars, each given as (left, right, height, colour)."""
    parts = _frame(x, y)
    base = _y(y, y.low)
    for left, right, height, colour in bars:
        a, b, top = _x(x, left), _x(x, right), _y(y, min(max(height, y.low), y.high))
        shape = {"x": f"{a + 0.5:.1f}", "y": f"{top:.1f}", "width": f"{max(b - a - 1, 0.5):.1f}"}
        parts.append(element("rect", **shape, height=f"{max(base - top, 0):.1f}", class_=f"f{colour % COLOURS}"))
    if guides.get("diagonal"):
        parts.append(_line(x, y, (x.low, y.low), (x.high, y.high), "guide"))
    return _svg(label, parts)


def _frame(x: Axis, y: Axis) -> list[Markup]:
    parts = []
    bottom = HEIGHT - BOTTOM
    for tick in y.ticks():
        place = _y(y, tick)
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=f"{place:.1f}", y2=f"{place:.1f}", class_="grid"))
        parts.append(element("text", y.format(tick), x=LEFT - 7, y=f"{place + 4:.1f}", text_anchor="end"))
    for tick in x.ticks():
        parts.append(element("text", x.format(tick), x=f"{_x(x, tick):.1f}", y=bottom + 17, text_anchor="middle"))
    parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom, class_="axis"))
    parts.append(element("text", x.title, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 6, text_anchor="middle"))
    middle = (TOP + bottom) / 2
    turned = f"rotate(-90 12 {middle:g})"
    parts.append(element("text", y.title, x=12, y=middle, text_anchor="middle", transform=turned))
    return parts


def _svg(label: str, parts: Sequence[Markup]) -> Markup:
    return element("svg", parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label, class_="chart")


def _line(x: Axis, y: Axis, start: tuple[float, float], end: tuple[float, float], kind: str) -> Markup:
    ends = {"x1": _x(x, start[0]), "y1": _y(y, start[1]), "x2": _x(x, end[0]), "y2": _y(y, end[1])}
    return element("line", **{name: f"{value:.1f}" for name, value in ends.items()}, class_=kind)


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.position(value) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.position(value) * (HEIGHT - TOP - BOTTOM)
