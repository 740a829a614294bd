"""What has been measured as one picture (SVG): a bar a cell, as a share of what the peer takes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from benchmarks.comparison.cells import NAMES, SIZES
from benchmarks.comparison.ratios import ratios
from benchmarks.comparison.tables import floor_of, in_order

_ROW, _GAP, _TOP, _LABELS, _PANEL, _BETWEEN = 15, 8, 52, 190, 300, 46
_WHOLE, _PART, _PEER = "#5aa6d6", "#1f5f8b", "#e4e7ea"


def picture(results: Mapping[str, Any]) -> str:
    """Time of a step with its floor, and peak memory with what is held before the first step, of the smaller model.

    Args:
        results: as results.json holds them.
    """
    records = [one for one in in_order(results["cells"].values()) if one["cell"]["size"] == SIZES[0]]
    bars: list[str] = []
    words: list[str] = []
    y, method = _TOP, None
    for record in records:
        cell, found = record["cell"], ratios(record)
        y += _GAP * (method not in (None, cell["method"]))
        method = cell["method"]
        tuning = NAMES.get(cell["tuning"], cell["tuning"])
        words.append(_text(_LABELS - 8, y + 11, f"{NAMES[method]}, {tuning}, {cell['precision']}", "end"))
        floor = sum(floor_of(record, results["rates"]).values())
        seconds = statistics.median(record["peer"]["seconds"])
        before = record["own"]["before"] / record["peer"]["peak"]
        shares = [
            (found["time"], floor / seconds, f"{1 / found['time']:.1f}×"),
            (found["memory"], before, f"{found['memory']:.2f}"),
        ]
        for panel, (whole, part, label) in enumerate(shares):
            bars += _bars(panel, y, whole, part)
            words.append(_text(_left(panel) + min(whole, 1.0) * _PANEL + 5, y + 10, label))
        y += _ROW
    titles = [
        ("time of a step, TRL's = 1", "dark: what the machine needs at the least"),
        ("peak memory, TRL's = 1", "dark: held before the first step"),
    ]
    for panel, (title, what) in enumerate(titles):
        x = _left(panel)
        words += [_text(x, 18, title, weight="bold"), _text(x, 34, what)]
        for mark in (0.0, 0.25, 0.5, 0.75, 1.0):
            at = x + mark * _PANEL
            bars.append(f'<line x1="{at}" x2="{at}" y1="{_TOP - 6}" y2="{y}" stroke="#fff" stroke-opacity="0.7"/>')
            words.append(_text(at, y + 13, f"{mark:g}", "middle"))
    return _svg([*bars, *words], _left(1) + _PANEL + 46, y + 22)


def _left(panel: int) -> int:
    return _LABELS + panel * (_PANEL + _BETWEEN)


def _bars(panel: int, y: int, whole: float, part: float) -> list[str]:
    """The peer's, over it the own one, and over that a part of it."""
    drawn = []
    for share, color in ((1.0, _PEER), (min(whole, 1.0), _WHOLE), (min(part, whole, 1.0), _PART)):
        size = f'width="{share * _PANEL:.1f}" height="{_ROW - 3}"'
        drawn.append(f'<rect x="{_left(panel)}" y="{y}" {size} fill="{color}"/>')
    return drawn


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{escape(text)}</text>'


def _svg(lines: Sequence[str], width: int, height: int) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="11" fill="#222">'
    )
    background = f'<rect width="{width}" height="{height}" fill="#fff"/>'
    return "\n".join([head, background, *lines, "</svg>", ""])
