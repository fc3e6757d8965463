"""Line charts as SVG: what a dashboard shows, for a page of documentation."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle
from typing import Final

WIDTH, HEIGHT, COLUMNS = 480, 250, 2
_LEFT, _TOP, _RIGHT, _BOTTOM = 52, 30, 12, 58
_COLOURS: Final = ("#3274d9", "#e0752d", "#56a64b", "#c4162a", "#8f3bb8", "#b8860b", "#0a8f8f", "#77777a")
_STEPS: Final = (1, 2, 2.5, 5, 10)

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """One panel. Times are seconds since the beginning."""

    title: str
    unit: str
    """As Grafana names it: "s", "reqps", "short"."""
    lines: Mapping[str, Points]
    """By what the legend says."""


def draw(charts: Sequence[Chart], seconds: float, marks: Mapping[float, str]) -> str:
    """Return a picture of charts, side by side. ``marks`` says what happened when."""
    rows = -(-len(charts) // COLUMNS)
    size = f'width="{WIDTH * COLUMNS}" height="{HEIGHT * rows}" viewBox="0 0 {WIDTH * COLUMNS} {HEIGHT * rows}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11" fill="#444">',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for number, chart in enumerate(charts):
        corner = f"{number % COLUMNS * WIDTH} {number // COLUMNS * HEIGHT}"
        parts += [f'<g transform="translate({corner})">', *_panel(chart, seconds, marks), "</g>"]
    return "\n".join((*parts, "</svg>", ""))


def _panel(chart: Chart, seconds: float, marks: Mapping[float, str]) -> Iterator[str]:
    width, height = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
    values = [value for points in chart.lines.values() for _, value in points if math.isfinite(value)]
    ticks = _ticks(max(values, default=1.0))

    def place(at: float, value: float) -> str:
        return f"{_LEFT + width * at / seconds:.1f} {_TOP + height * (1 - value / ticks[-1]):.1f}"

    yield f'<text x="{_LEFT}" y="18" font-size="13" font-weight="bold" fill="#222">{escape(chart.title)}</text>'
    for tick in ticks:
        yield f'<path d="M{place(0, tick)} L{place(seconds, tick)}" stroke="#e4e4e4"/>'
        y = place(0, tick).split()[1]
        yield f'<text x="{_LEFT - 6}" y="{float(y) + 4:.1f}" text-anchor="end">{_label(tick, chart.unit)}</text>'
    for at, text in marks.items():
        x = place(at, 0).split()[0]
        yield f'<path d="M{place(at, 0)} L{place(at, ticks[-1])}" stroke="#c4162a" stroke-dasharray="3 3"/>'
        yield f'<text x="{float(x) + 3:.1f}" y="{_TOP + 10}" fill="#c4162a">{escape(text)}</text>'
    for at in range(0, int(seconds) + 1, 20):
        x = place(at, 0).split()[0]
        yield f'<text x="{x}" y="{_TOP + height + 15}" text-anchor="middle">{at} s</text>'
    shown = {name: points for name, points in chart.lines.items() if any(math.isfinite(value) for _, value in points)}
    for colour, points in zip(cycle(_COLOURS), shown.values()):
        for piece in _pieces(points):
            path = " L".join(place(at, value) for at, value in piece)
            yield f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
    yield from _legend(list(shown))


def _legend(names: Sequence[str]) -> Iterator[str]:
    """Yield names in rows below a panel."""
    x, y = 8, HEIGHT - 26
    for colour, name in zip(cycle(_COLOURS), names):
        width = 28 + round(5.8 * len(name))
        if x + width > WIDTH:
            x, y = 8, y + 15
        yield f'<path d="M{x} {y} h12" stroke="{colour}" stroke-width="3"/>'
        yield f'<text x="{x + 16}" y="{y + 4}">{escape(name)}</text>'
        x += width


def _pieces(points: Points) -> Iterator[Points]:
    """Split a line where there is nothing to show."""
    piece: list[tuple[float, float]] = []
    for at, value in points:
        if math.isfinite(value):
            piece.append((at, value))
        elif piece:
            yield piece
            piece = []
    if piece:
        yield piece


def _ticks(most: float) -> list[float]:
    """Return where lines across are drawn: round numbers from 0 up to no less than ``most``."""
    rough = max(most, 1e-6) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in _STEPS if factor * power >= rough * 0.999)
    return [step * number for number in range(math.ceil(most / step - 1e-9) + 1)] if most else [0.0, step]


def _label(value: float, unit: str) -> str:
    if unit == "s" and 0 < value < 1:
        return f"{value * 1000:g} ms"
    return f"{value:g}" + {"s": " s", "reqps": "/s"}.get(unit, "")
