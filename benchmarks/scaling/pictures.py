"""The results as pictures (SVG), drawn by plotly in the Chromium that is there; playwright, which drives it, is one of
the development requirements."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_COLORS = ("#1f77b4", "#d95f02", "#1b9e77", "#7570b3")
# Series → what its axis says.
_GROWTH = {
    "batch": "rows a step, SFT",
    "length": "tokens of a row, SFT",
    "prompt": "tokens of a prompt, DPO",
    "group": "completions of a prompt, GRPO",
    "size": "model, SFT",
}


def growth(parts: dict[str, Any]) -> go.Figure:
    """Tokens a second, and memory beside what `posttrain plan` says, of each series."""
    series = [name for name in _GROWTH if name in parts]
    titles = [_GROWTH[name] for name in series]
    figure = make_subplots(2, len(series), subplot_titles=titles, vertical_spacing=0.12, horizontal_spacing=0.045)
    for column, name in enumerate(series, 1):
        measured, on_gpu = parts[name]["measured"], parts[name]["about"]["on_gpu"]
        clock = "seconds" if on_gpu else "processor_seconds"  # the latter whatever else a CPU does
        x = [one["value"] for one in measured]
        speed, best, worst = ([one["tokens"] / one[clock][index] for one in measured] for index in range(3))
        spread = {
            "type": "data",
            "symmetric": False,
            "array": [high - middle for high, middle in zip(best, speed, strict=True)],
            "arrayminus": [middle - low for middle, low in zip(speed, worst, strict=True)],
            "thickness": 1,
        }
        _line(figure, 1, column, x, speed, "measured", _COLORS[0], error_y=spread)
        _line(figure, 2, column, x, [one["peak"] / 2**20 for one in measured], "measured", _COLORS[0])
        planned = [one["planned_peak"] / 2**20 for one in measured]
        _line(figure, 2, column, x, planned, "planned", _COLORS[1], line={"dash": "dot", "color": _COLORS[1]})
    figure.update_xaxes(type="category")
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title="tokens a second of the processor" if not on_gpu else "tokens a second", row=1, col=1)
    figure.update_yaxes(title="peak memory, MiB", row=2, col=1)
    return _plain(figure, 250 * len(series), 520)


def shared_prefix(measured: list[dict[str, Any]]) -> go.Figure:
    """Measured gains (marks) on what the formula says (lines)."""
    figure = make_subplots(1, 2, subplot_titles=("times as fast", "times less memory"), horizontal_spacing=0.08)
    for color, prompt in zip(_COLORS, sorted({one["prompt"] for one in measured}), strict=False):
        cells = [one for one in measured if one["prompt"] == prompt]
        groups = [one["group"] for one in cells]
        for column, what in enumerate(("speed", "memory"), 1):
            line = {"mode": "lines", "line": {"color": color, "width": 1.5}, "showlegend": False}
            figure.add_scatter(x=groups, y=[one[f"{what}_predicted"] for one in cells], row=1, col=column, **line)
            figure.add_scatter(
                x=groups,
                y=[one[what] for one in cells],
                row=1,
                col=column,
                mode="markers",
                marker={"color": color, "size": 8},
                name=f"P = {prompt:,}",
                showlegend=column == 1,
            )
    figure.update_xaxes(type="log", tickvals=[1, 2, 4, 8, 16, 32, 64], title="completions of a prompt, G")
    figure.update_yaxes(type="log", tickvals=[0.5, 1, 2, 4, 8, 16])
    return _plain(figure, 900, 400, legend=-0.2)


def write(parts: dict[str, Any], folder: Path) -> None:
    """Draws what has been measured.

    Args:
        parts: of the results.
        folder: of the pictures.
    """
    figures = {"scaling_growth.svg": growth(parts)}
    if "prefix" in parts:
        figures["scaling_prefix.svg"] = shared_prefix(parts["prefix"]["measured"])
    folder.mkdir(parents=True, exist_ok=True)
    for name, drawing in _as_svg(figures).items():
        (folder / name).write_text(drawing + "\n", encoding="utf-8")


def _line(figure: go.Figure, row: int, column: int, x: list[str], y: list[float], name: str, color: str, **more: Any):
    options = {"mode": "lines+markers", "line": {"color": color}, "marker": {"size": 6}} | more
    figure.add_scatter(x=x, y=y, row=row, col=column, name=name, showlegend=row == 2 and column == 1, **options)


def _plain(figure: go.Figure, width: int, height: int, legend: float = -0.12) -> go.Figure:
    figure.update_layout(
        template="plotly_white",
        width=width,
        height=height,
        margin={"l": 60, "r": 10, "t": 40, "b": 50},
        font={"size": 11},
        legend={"orientation": "h", "y": legend, "x": 0.5, "xanchor": "center", "yanchor": "top"},
    )
    figure.update_annotations(font_size=12)
    return figure


def _as_svg(figures: dict[str, go.Figure]) -> dict[str, str]:
    from playwright.sync_api import sync_playwright

    browser = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        sys.exit(f"no browser to draw with: install one of {', '.join(_BROWSERS)}")
    found = {}
    with sync_playwright() as driver:
        page = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page()
        page.set_content("<div id='figure'></div>")
        page.add_script_tag(content=get_plotlyjs())
        for name, figure in figures.items():
            drawing = json.loads(figure.to_json())
            url = page.evaluate("figure => Plotly.toImage(figure, {format: 'svg'})", drawing)
            found[name] = unquote(url.partition(",")[2])
    return found
