"""Training curves: of a stage over the experiments, and of all stages over the share of their run."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from posttrain.experiment.report.figures import DASHES, PALETTE, Choice, Figure, Option, as_plain, figure_of, rounded
from posttrain.experiment.report.gather import Gathered, Group

Rows = list[dict[str, float]]

_FIRST_SHOWN = ("reward", "loss")  # what a reader of a stage looks at first, where it is logged
_NO_METRIC = ("step", "epoch", "num_tokens")
_EVAL = "eval_"


def curve_figure(gathered: Gathered, stage: str) -> tuple[Figure, list[Group]] | None:
    """The curves of a stage, a metric at a time: lines of training, and evaluation as markers.

    Returns:
        the figure, and which experiments have the same curves; None where no experiment has any.
    """
    groups = gathered.groups(lambda one: one.curves.get(stage) or None)
    metrics = metrics_of([row for group in groups for row in group.value])
    if not metrics:
        return None
    drawing = go.Figure()
    for group in groups:
        colour, dash = PALETTE[group.place % len(PALETTE)], DASHES[group.place % len(DASHES)]
        for metric in metrics:
            shared = {"meta": {"metric": metric}, "legendgroup": group.names[0], "name": as_plain(group.label)}
            steps, values = points(group.value, metric)
            if steps:
                drawing.add_scatter(
                    x=steps, y=values, mode="lines", line={"color": colour, "dash": dash, "width": 2}, **shared
                )
            eval_steps, eval_values = points(group.value, _EVAL + metric)
            if eval_steps:
                drawing.add_scatter(
                    x=eval_steps,
                    y=eval_values,
                    mode="markers",
                    marker={"color": colour, "size": 9, "symbol": "diamond", "line": {"width": 1}},
                    showlegend=not steps,
                    **shared | {"name": as_plain(f"{group.label}, evaluation")},
                )
    drawing.update_xaxes(title={"text": "optimizer step"}, rangemode="tozero")
    drawing.update_layout(hovermode="x unified")
    choice = Choice("metric", "metric", _options(metrics, groups), axis="y")
    about = (
        f"Training curves of {stage} over optimizer steps, by experiment: {', '.join(map(lambda g: g.label, groups))}."
    )
    return figure_of(f"curve-{_safe(stage)}", drawing, about, [choice]), groups


def stages_figure(gathered: Gathered) -> Figure | None:
    """The curves of all stages of the first experiment over the share of their run; None where fewer than two have
    any."""
    curves = {stage: gathered.first.curves[stage] for stage in gathered.trained if gathered.first.curves.get(stage)}
    counts: dict[str, int] = {}
    for rows in curves.values():
        for metric in metrics_of(rows):
            counts[metric] = counts.get(metric, 0) + 1
    shared = sorted((name for name, count in counts.items() if count > 1), key=lambda name: (name != "loss", name))
    if not shared:
        return None
    drawing = go.Figure()
    for place, (stage, rows) in enumerate(curves.items()):
        last = max(row["step"] for row in rows) or 1.0
        for metric in shared:
            steps, values = points(rows, metric)
            if steps:
                drawing.add_scatter(
                    x=rounded([step / last for step in steps]),
                    y=values,
                    mode="lines",
                    name=as_plain(stage),
                    line={"color": PALETTE[place % len(PALETTE)], "dash": DASHES[place % len(DASHES)], "width": 2},
                    meta={"metric": metric},
                )
    drawing.update_xaxes(title={"text": "share of the run"}, tickformat=".0%", rangemode="tozero")
    choice = Choice("metric", "metric", [Option(name, name) for name in shared], axis="y")
    about = f"Training curves of {', '.join(curves)} in {gathered.first.name}, over the share of each run."
    return figure_of("curve-of-all-stages", drawing, about, [choice])


def points(rows: Rows, name: str) -> tuple[list[float], list[float | None]]:
    """Steps at which something was logged, and its values."""
    chosen = [row for row in rows if name in row]
    return [row["step"] for row in chosen], rounded([row[name] for row in chosen])


def metrics_of(rows: Rows) -> list[str]:
    """Names of metrics, those of training and evaluation as one, in the order in which a reader looks at them."""
    names = {name.removeprefix(_EVAL) for row in rows for name in row} - set(_NO_METRIC)
    first = next((name for name in _FIRST_SHOWN if name in names), "")
    return sorted(names, key=lambda name: (name != first, name))


def _options(metrics: Sequence[str], groups: Sequence[Group]) -> list[Option]:
    """What changes in training first, and apart what has the same value at every step."""

    def is_still(name: str) -> bool:
        values = {row[key] for group in groups for row in group.value for key in (name, _EVAL + name) if key in row}
        return len(values) < 2

    still = [name for name in metrics[1:] if is_still(name)]
    moving = [Option(name, name) for name in metrics if name not in still]
    return moving + [Option(name, name, "the same at every step") for name in still]


def _safe(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)
