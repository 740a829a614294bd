"""Figures of plotly as the page carries them: data and layout, and what a reader can choose to see in them.

Colours of text, lines and grids are the page's, put in by the browser, so that they follow light and dark.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go

# Told apart by people who do not see all colours, and with a contrast of 3 or more on white and on near-black.
PALETTE = ("#3579c8", "#d0642a", "#2c9670", "#a860a8", "#a88414", "#7c8492", "#d0506c", "#6f6bd0", "#1c95ad")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


@dataclass(frozen=True)
class Option:
    """One of the things to choose from.

    Args:
        value: what traces are marked with.
        label: what a reader sees.
        group: heading in the list; empty: none.
    """

    value: str
    label: str
    group: str = ""


@dataclass(frozen=True)
class Choice:
    """What a reader chooses: traces that are marked with another value are hidden.

    Args:
        name: in the marks of the traces.
        label: in front of the list.
        options: the first is shown at the start.
        axis: "y" or "x": that axis is named after what is chosen.
    """

    name: str
    label: str
    options: Sequence[Option]
    axis: str = ""

    @property
    def groups(self) -> dict[str, list[Option]]:
        """The options by their group, as they come."""
        found: dict[str, list[Option]] = {}
        for option in self.options:
            found.setdefault(option.group, []).append(option)
        return found


@dataclass(frozen=True)
class Figure:
    """A figure on the page.

    Args:
        name: its id.
        json: data, layout and choices.
        about: what is to be seen, in words.
        height: pixels.
        choices: those with more than one option.
        wide: it scrolls sideways on a narrow screen, where it would be too small to read.
    """

    name: str
    json: str
    about: str
    height: int
    choices: Sequence[Choice] = field(default_factory=list)
    wide: bool = False


def figure_of(
    name: str, drawing: go.Figure, about: str, choices: Sequence[Choice] = (), wide: bool = False, height: int = 0
) -> Figure:
    """A drawing as the page carries it.

    Args:
        name: the figure's id, of letters, digits and dashes.
        drawing: of plotly; a trace's `meta` says by the name of a choice for which value it is shown.
        about: in words, for those who do not see it.
        choices: what a reader chooses from.
        wide: see Figure.
        height: pixels; 0: that of the drawing, or 380.
    """
    drawing.update_layout(
        template=None,
        margin=drawing.layout.margin.to_plotly_json() or {"l": 64, "r": 16, "t": 40, "b": 48},
        legend={"orientation": "h", "yref": "container", "y": 1, "yanchor": "top", "x": 0, "xanchor": "left"},
        font={"size": 13},
        hoverlabel={"align": "left", "namelength": -1},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
    drawing.update_xaxes(title={"font": {"size": 13}})
    drawing.update_yaxes(title={"font": {"size": 13}})
    pixels = int(height or drawing.layout.height or 380)
    drawing.update_layout(height=pixels)
    start = {choice.name: choice.options[0].value for choice in choices}
    for trace in drawing.data:
        trace.visible = all(start.get(key, value) == value for key, value in (trace.meta or {}).items())
    for choice in choices:
        if choice.axis:
            drawing.update_layout({f"{choice.axis}axis": {"title": {"text": as_plain(choice.options[0].label)}}})
    plain = drawing.to_plotly_json()
    axes = {choice.name: choice.axis for choice in choices if choice.axis}
    text = for_script({"data": plain["data"], "layout": plain["layout"], "axes": axes})
    return Figure(name, text, about, pixels, [one for one in choices if len(one.options) > 1], wide)


def as_plain(text: str) -> str:
    """Text in which plotly, which knows some of HTML, finds nothing to obey."""
    return html.escape(text, quote=False)


def for_script(value: Any) -> str:
    """JSON that cannot end the <script> that it stands in."""
    text = json.dumps(
        value, ensure_ascii=False, separators=(",", ":"), default=_as_list, sort_keys=True, allow_nan=False
    )
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def rounded(values: Sequence[float | None]) -> list[float | None]:
    """Numbers with the six digits that a screen can show; none for what is not finite."""
    return [None if value is None or value - value != 0 else float(f"{value:.6g}") for value in values]


def interval(metrics: Mapping[str, float], name: str) -> tuple[float, float] | None:
    """What lies above and below a metric's value in its 95% interval; None where it has none."""
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    return None if low is None or high is None else (high - metrics[name], metrics[name] - low)


def _as_list(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else list(value)
