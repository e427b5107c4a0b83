"""Plots of a cost report as inline SVG: bars, and columns over time. Small, and without scripts.

Colours are the page's (`var(--c0)` and on), so that they follow light and dark. Values are floats
here: a pixel is coarser than any money.
"""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NUM_COLORS = 8
WIDTH = 860
_LABEL_WIDTH = 220
_VALUE_WIDTH = 110
_BAR = 22
_MAX_LABEL = 32


def bars(rows: Sequence[tuple[str, float, str]], title: str) -> str:
    """Horizontal bars.

    Args:
        rows: of each bar its label, its length in any unit, and how it is written.
        title: what the plot shows, for those who cannot see it.
    """
    most = max((value for _, value, _ in rows), default=0.0) or 1.0
    room = WIDTH - _LABEL_WIDTH - _VALUE_WIDTH
    parts = []
    for index, (label, value, text) in enumerate(rows):
        y = index * _BAR
        width = max(1.0, room * max(0.0, value) / most)
        middle = y + _BAR / 2 + 4
        parts.append(
            f"<g><title>{escape(label)}: {escape(text)}</title>"
            f'<text x="{_LABEL_WIDTH - 8}" y="{middle:g}" class="end">{escape(_cut(label))}</text>'
            f'<rect x="{_LABEL_WIDTH}" y="{y + 3}" width="{width:.1f}" height="{_BAR - 6}"'
            f' fill="var(--c0)"/>'
            f'<text x="{_LABEL_WIDTH + width + 6:.1f}" y="{middle:g}">{escape(text)}</text></g>'
        )
    return _svg("".join(parts), len(rows) * _BAR + 4, title)


def stacked_columns(times: Sequence[str], series: Mapping[str, Sequence[float]], title: str) -> str:
    """A column per time, with a part for each series, and a legend.

    Args:
        times: labels, in order.
        series: by name, a value for each time; as many as `NUM_COLORS` at most.
        title: what the plot shows, for those who cannot see it.
    """
    height, left, top = 220, 70, 10
    heights = [sum(max(0.0, values[i]) for values in series.values()) for i in range(len(times))]
    step, ticks = _ticks(max(heights, default=0.0))
    most = step * ticks or 1.0
    parts = []
    for tick in range(ticks + 1):
        y = top + height - height * tick * step / most
        parts.append(
            f'<line x1="{left}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
            f'<text x="{left - 8}" y="{y + 4:.1f}" class="end">{tick * step:g}</text>'
        )
    pitch = (WIDTH - left) / max(1, len(times))
    every = max(1, math.ceil(len(times) / 10))
    for i, time in enumerate(times):
        y = float(top + height)
        for color, (name, values) in enumerate(series.items()):
            part = height * max(0.0, values[i]) / most
            y -= part
            if part:
                parts.append(
                    f'<rect x="{left + i * pitch + pitch * 0.1:.1f}" y="{y:.1f}"'
                    f' width="{pitch * 0.8:.1f}" height="{part:.1f}" fill="var(--c{color})">'
                    f"<title>{escape(time)} {escape(name)}: {values[i]:.6g}</title></rect>"
                )
        if i % every == 0:
            x = left + (i + 0.5) * pitch
            parts.append(
                f'<text x="{x:.1f}" y="{top + height + 18}" class="mid">{escape(time)}</text>'
            )
    y = top + height + 42
    for color, name in enumerate(series):
        x = left + (color % 4) * (WIDTH - left) / 4
        line = y + color // 4 * 18
        parts.append(
            f'<rect x="{x:.0f}" y="{line - 10}" width="12" height="12" fill="var(--c{color})"/>'
            f'<text x="{x + 18:.0f}" y="{line}">{escape(_cut(name, 24))}</text>'
        )
    return _svg("".join(parts), y + (len(series) - 1) // 4 * 18 + 10, title)


def _ticks(most: float) -> tuple[float, int]:
    """A round step, and how many of them cover `most`."""
    if most <= 0:
        return 1.0, 1
    rough = most / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    return step, math.ceil(most / step - 1e-9)


def _cut(text: str, length: int = _MAX_LABEL) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _svg(body: str, height: float, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{body}</svg>"
    )
