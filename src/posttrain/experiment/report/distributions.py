"""Distributions over the held-out problems (lengths, reward scores), and what divergence bought (KL against reward)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from posttrain.experiment.report.curves import points
from posttrain.experiment.report.figures import PALETTE, Choice, Figure, Option, as_plain, figure_of, interval, rounded
from posttrain.experiment.report.gather import Gathered, Group, Result

_BINS = 40
_KL = re.compile(r"kl_to_(?!.*(_low|_high|_per_token)$)(.+)")
_GAINS = {"reward_score": "mean reward score", "exact_match": "exact match"}
_ROW = 132  # pixels of a model's histogram
# Right and wrong answers: by colour and by pattern.
_SIDES = (("right", True, PALETTE[2], ""), ("wrong", False, PALETTE[1], "/"))


def histogram_figure(gathered: Gathered, name: str, title: str) -> Figure | None:
    """Histograms of a field of the answers, a model below the other, right and wrong ones on top of each other.

    Args:
        name: the field, such as "num_tokens" or "reward_score".
        title: of the axis.

    Returns:
        the figure, an experiment at a time; None where no answer has that field.
    """
    groups = gathered.groups(lambda one: _fields(gathered.answers.get(one.name, {}), name))
    models = gathered.in_order({model for group in groups for model in group.value})
    if not models:
        return None
    edges = _edges([value for group in groups for rows in group.value.values() for value, _ in rows])
    drawing = make_subplots(rows=len(models), cols=1, shared_xaxes=True, vertical_spacing=0.25 / len(models))
    for group in groups:
        for place, model in enumerate(models):
            for label, side, colour, pattern in _SIDES:
                values = [value for value, correct in group.value.get(model, []) if correct is side]
                counts, _ = np.histogram(values, edges)
                drawing.add_bar(
                    x=rounded(((edges[:-1] + edges[1:]) / 2).tolist()),
                    y=[int(count) for count in counts],
                    width=float(f"{edges[1] - edges[0]:.6g}"),
                    name=label,
                    legendgroup=label,
                    showlegend=place == 0,
                    marker={"color": colour, "pattern": {"shape": pattern, "solidity": 0.35, "size": 6}},
                    meta={"experiment": group.names[0]},
                    hovertemplate=f"{as_plain(model)}, {label}: %{{y}} answers about %{{x}}<extra></extra>",
                    row=place + 1,
                    col=1,
                )
    drawing.update_layout(barmode="stack", bargap=0)
    for place, model in enumerate(models):
        drawing.update_yaxes(title={"text": as_plain(model)}, row=place + 1, col=1, nticks=4)
    drawing.update_xaxes(title={"text": title}, row=len(models), col=1)
    drawing.update_layout(legend={"traceorder": "normal"})
    choice = Choice("experiment", "experiment", [Option(group.names[0], group.label) for group in groups])
    about = f"Histograms of {title} of the greedy answers of {', '.join(models)}, right and wrong answers apart."
    return figure_of(f"histogram-{name.replace('_', '-')}", drawing, about, [choice], height=80 + _ROW * len(models))


def exact_match_figure(gathered: Gathered) -> Figure | None:
    """Exact match of each model and experiment with its interval, a line a model."""
    found = _distinct(gathered, "exact_match")
    models = gathered.in_order({model for chosen in found for model, _ in chosen})
    if not models:
        return None
    drawing = go.Figure()
    apart = 0.6 / len(found)
    for place, (one, chosen) in enumerate(zip(gathered.experiments, found, strict=True)):
        drawing.add_scatter(
            x=rounded([metrics["exact_match"] for _, metrics in chosen]),
            y=rounded([models.index(model) + (place - (len(found) - 1) / 2) * apart for model, _ in chosen]),
            error_x=_bars([interval(metrics, "exact_match") for _, metrics in chosen]),
            text=[as_plain(model) for model, _ in chosen],
            hovertemplate="%{text}: %{x:.1%}",
            mode="markers",
            name=as_plain(one.name),
            showlegend=bool(chosen) and len(found) > 1,
            marker=_marker(place),
        )
    drawing.update_xaxes(title={"text": "exact match, with 95% interval"}, tickformat=".3~p")
    ticks = {"tickvals": list(range(len(models))), "ticktext": [as_plain(model) for model in models]}
    drawing.update_yaxes(range=[len(models) - 0.5, -0.5], zeroline=False, showgrid=False, **ticks)
    height = 100 + len(models) * max(34, 16 * len(found))
    about = "Exact match of each model and experiment, with its interval; the table below has the numbers."
    return figure_of("exact-match", drawing, about, height=height)


def divergence_figure(gathered: Gathered) -> Figure | None:
    """A point a model and experiment: KL from the reference, and what it gained; with 95% intervals both ways."""
    found = {gain: _distinct(gathered, gain) for gain in _GAINS}
    found = {gain: chosen for gain, chosen in found.items() if any(chosen)}
    kls = [kl for chosen in found.values() for of_one in chosen for _, metrics in of_one if (kl := kl_name(metrics))]
    if not kls:
        return None
    drawing = go.Figure()
    for gain, chosen in found.items():
        for place, (one, of_one) in enumerate(zip(gathered.experiments, chosen, strict=True)):
            pairs = [(metrics, kl_name(metrics)) for _, metrics in of_one]  # of the reference itself: none, and 0
            drawing.add_scatter(
                x=rounded([metrics[name] if name else 0.0 for metrics, name in pairs]),
                y=rounded([metrics[gain] for _, metrics in of_one]),
                error_x=_bars([interval(metrics, name) if name else None for metrics, name in pairs]),
                error_y=_bars([interval(metrics, gain) for _, metrics in of_one]),
                text=[as_plain(model) for model, _ in of_one],
                textposition="bottom right",
                mode="markers+text",
                name=as_plain(one.name),
                showlegend=bool(of_one) and len(chosen) > 1,
                cliponaxis=False,
                marker=_marker(place),
                meta={"gain": gain},
            )
    reference = kls[0].removeprefix("kl_to_")
    drawing.update_xaxes(title={"text": f"KL from {as_plain(reference)}, nats a completion"}, rangemode="tozero")
    choice = Choice("gain", "against", [Option(name, _GAINS[name]) for name in found], axis="y")
    about = f"Divergence of each model from {reference} against its mean reward score or exact match."
    return figure_of("kl-against-reward", drawing, about, [choice])


def path_figure(gathered: Gathered) -> tuple[Figure, list[str]] | None:
    """How KL and reward moved together in training, of the stages that log both.

    Returns:
        the figure, and the stages with a reward that log no KL; None where none logs both.
    """
    drawing, without, with_both = go.Figure(), [], []
    for stage in gathered.trained:
        groups: list[Group] = gathered.groups(lambda one, name: one.curves.get(name) or None, stage)
        rewarded = [group for group in groups if any("reward" in row for row in group.value)]
        for group in rewarded:
            rows = [row for row in group.value if "kl" in row and "reward" in row]
            if not rows:
                continue
            with_both.append(stage)
            drawing.add_scatter(
                x=points(rows, "kl")[1],
                y=points(rows, "reward")[1],
                text=[f"step {row['step']:g}" for row in rows],
                hovertemplate="%{text}: KL %{x}, reward %{y}",
                mode="lines+markers",
                name=as_plain(f"{stage}, {group.label}"),
                line={
                    "color": PALETTE[group.place % len(PALETTE)],
                    "width": 1.5,
                    "dash": "dot" if len(with_both) % 2 == 0 else "solid",
                },
                marker={"size": 6, "symbol": _symbol(len(with_both) - 1)},
            )
        if rewarded and stage not in with_both:
            without.append(stage)
    if not with_both:
        return None
    drawing.update_xaxes(
        title={"text": "KL from the reference, nats a token, as logged in training"}, rangemode="tozero"
    )
    drawing.update_yaxes(title={"text": "mean reward of what was sampled"})
    drawing.update_layout(showlegend=True)  # of a single stage, too
    about = f"Reward against KL over the training of {', '.join(dict.fromkeys(with_both))}."
    return figure_of("kl-path", drawing, about), without


def kl_name(metrics: Mapping[str, float]) -> str | None:
    """The name of a model's divergence among its metrics, "kl_to_sft"; None for the reference itself."""
    return next((name for name in metrics if _KL.fullmatch(name)), None)


def _fields(answers: Mapping[str, Sequence[Result]], name: str) -> dict[str, list[tuple[float, bool]]] | None:
    found = {
        model: [(float(row[name]), bool(row["correct"])) for row in rows if row.get(name) is not None]
        for model, rows in answers.items()
    }
    return {model: rows for model, rows in found.items() if rows} or None


def _edges(values: Sequence[float]) -> np.ndarray:
    low, high = min(values), max(values)
    if all(value == int(value) for value in values):  # tokens: every bin holds as many whole numbers
        width = max(1, -(-int(high - low + 1) // _BINS))
        return np.arange(low - 0.5, high + width + 0.5, width)
    return np.linspace(low, high if high > low else low + 1.0, _BINS + 1)


def _of(metrics: Mapping[str, dict[str, float]], model: str) -> dict[str, float]:
    return metrics.get(f"evaluate_{model}", {})


def _distinct(gathered: Gathered, name: str) -> list[list[tuple[str, dict[str, float]]]]:
    """Of each experiment, the models with a metric that no earlier experiment has with the very same metrics."""
    found: list[list[tuple[str, dict[str, float]]]] = [[] for _ in gathered.experiments]
    for model in gathered.models:
        for group in gathered.groups(lambda one, model: _of(one.metrics, model) or None, model):
            if name in group.value:
                found[group.place].append((model, group.value))
    return found


def _bars(ends: Sequence[tuple[float, float] | None]) -> dict[str, object]:
    pairs = [pair or (0.0, 0.0) for pair in ends]
    up, down = rounded([pair[0] for pair in pairs]), rounded([pair[1] for pair in pairs])
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1, "width": 3}


def _marker(place: int) -> dict[str, object]:
    return {"size": 10, "color": PALETTE[place % len(PALETTE)], "symbol": _symbol(place)}


def _symbol(place: int) -> str:
    return ("circle", "diamond", "square", "triangle-up", "cross", "x", "star", "triangle-down", "hexagon")[place % 9]
