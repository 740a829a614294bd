"""The stage graph: which stage needs which, what became of each, and the drawing of it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import networkx
import plotly.graph_objects as go
import yaml

from posttrain.config.yaml_files import FastLoader
from posttrain.experiment.report.figures import PALETTE, Figure, as_plain, figure_of
from posttrain.experiment.report.gather import Gathered
from posttrain.experiment.revisions import Experiment

_INSERTED = re.compile(r"\$\{([\w.]+)\}")
# State → sign, palette entry, whether it stands out, and what it means.
STATES = {
    "up to date": ("●", 2, False, "as dvc.lock says, nothing to do"),
    "changed": ("◆", 1, True, "`make pipeline` would run it, or fetch it from the cache"),
    "never run": ("○", 5, False, "no entry in dvc.lock"),
    "frozen": ("■", 7, True, "kept as it is, by `frozen` in dvc.yaml"),
    "recorded": ("●", 0, False, "has an entry in dvc.lock; whether files are still as then was not looked at"),
}


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml; of one with a matrix, an item.

    Args:
        name: such as "dpo" or "evaluate@dpo".
        cmd: its command.
        deps, outs: paths; source files are left out of deps.
        frozen: whether it stays as it is.
    """

    name: str
    cmd: str
    deps: list[str] = field(default_factory=list)
    outs: list[str] = field(default_factory=list)
    frozen: bool = False


@dataclass(frozen=True)
class StageRow:
    """What the table below the graph says of a stage: name, state, why, seconds of training, and its outputs."""

    name: str
    state: str
    reasons: list[str]
    seconds: float | None
    outs: list[tuple[str, str]]


def stages_of(one: Experiment) -> list[Stage]:
    """The stages, by dvc.yaml where there is one, and by dvc.lock, which has real paths of those that ran."""
    defined = yaml.load(one.file("dvc.yaml") or "{}", FastLoader) or {}
    found = {stage.name: stage for stage in _defined(defined.get("stages") or {}, one.params)}
    for name, entry in one.lock.get("stages", {}).items():
        known = found.get(name)
        if known is not None or not defined:
            deps, outs = ([str(each["path"]) for each in entry.get(kind, [])] for kind in ("deps", "outs"))
            found[name] = Stage(name, str(entry.get("cmd", "")), _data(deps), outs, known is not None and known.frozen)
    return list(found.values())


def dependencies(stages: list[Stage]) -> networkx.DiGraph:
    """Stage → stage that reads what it writes; an edge that others imply is left out (transitive reduction)."""
    graph = networkx.DiGraph()
    graph.add_nodes_from(stage.name for stage in stages)
    for maker, reader in itertools.permutations(stages, 2):
        if any(_is_inside(dep, out) or _is_inside(out, dep) for dep in reader.deps for out in maker.outs):
            graph.add_edge(maker.name, reader.name)
    return networkx.transitive_reduction(graph) if networkx.is_directed_acyclic_graph(graph) else graph


def table_of_stages(gathered: Gathered) -> list[StageRow]:
    """A row a stage of the first experiment, in an order in which they can run."""
    one = gathered.first
    stages = {stage.name: stage for stage in stages_of(one)}
    graph = dependencies(list(stages.values()))
    is_tree = networkx.is_directed_acyclic_graph(graph)
    order = networkx.lexicographical_topological_sort(graph, list(stages).index) if is_tree else list(stages)
    locked = one.lock.get("stages", {})
    rows = []
    for name in order:
        state, reasons = _state(stages[name], locked, gathered.status)
        outs = [(str(out["path"]), _size(out.get("size", 0))) for out in locked.get(name, {}).get("outs", [])]
        seconds = one.metrics.get(name.replace("@", "_"), {}).get("train_runtime")
        rows.append(StageRow(name, state, reasons, seconds, outs))
    return rows


def what_ran(gathered: Gathered) -> list[tuple[str, list[str]]]:
    """Of each stage, in a word an experiment, whether it ran for it or was taken as it was for the first one."""
    base = gathered.first.lock.get("stages", {})
    names = list(dict.fromkeys(name for one in gathered.experiments for name in one.lock.get("stages", {})))
    return [
        (name, [_compared(base.get(name), one.lock.get("stages", {}).get(name)) for one in gathered.experiments[1:]])
        for name in names
    ]


def graph_figure(gathered: Gathered, rows: list[StageRow]) -> Figure:
    """The drawing, from above to below: networkx lays out a line a generation, plotly draws."""
    stages = stages_of(gathered.first)
    graph = dependencies(stages)
    place = networkx.multipartite_layout(graph, subset_key=_layers(graph), align="horizontal")
    commands = {stage.name: stage.cmd for stage in stages}
    xs = [float(x) for x, _ in place.values()] or [0.0]
    ys = [float(-y) for _, y in place.values()] or [0.0]
    spread, depth = max(xs) - min(xs) or 1.0, len(set(ys))
    edge = 0.2 * (max(ys) - min(ys)) / max(1, depth - 1)  # of a box, from its middle
    drawing = go.Figure()
    for start, end in sorted(graph.edges):
        (x, y), (to_x, to_y) = place[start], place[end]
        drawing.add_annotation(
            {"x": float(to_x), "y": edge - float(to_y), "ax": float(x), "ay": -edge - float(y), "text": ""}
            | {"xref": "x", "yref": "y", "axref": "x", "ayref": "y", "arrowhead": 2, "arrowwidth": 1.2, "opacity": 0.6}
        )
    for row in rows:  # above the arrows, on the paper's own colour
        sign, colour, dash, _ = STATES[row.state]
        drawing.add_annotation(
            {"x": float(place[row.name][0]), "y": float(-place[row.name][1]), "showarrow": False}
            | {"text": f"{sign} {as_plain(row.name)}", "hovertext": _told(row, commands[row.name]), "borderpad": 5}
            | {"bordercolor": PALETTE[colour], "borderwidth": 2 if dash else 1, "name": "box"}
        )
    # A figure without a trace has no axes to stand on.
    drawing.add_scatter(x=xs, y=ys, mode="markers", marker={"opacity": 0}, hoverinfo="skip", showlegend=False)
    drawing.update_xaxes(visible=False, range=[min(xs) - 0.16 * spread, max(xs) + 0.16 * spread], fixedrange=True)
    drawing.update_yaxes(visible=False, fixedrange=True)
    drawing.update_layout(height=40 + 72 * depth, dragmode=False, margin={"l": 4, "r": 4, "t": 4, "b": 4})
    about = "Stage graph: " + "; ".join(f"{row.name} {row.state}" for row in rows)
    return figure_of("stages", drawing, about, wide=True)


def _layers(graph: networkx.DiGraph) -> dict[int, list[str]]:
    """The stages in lines from above to below, each line in an order in which few arrows cross: a stage below the
    middle of those that it needs (the barycentre heuristic of Sugiyama, Tagawa and Toda, 1981)."""
    layers: dict[int, list[str]] = {}
    middle: dict[str, float] = {}
    for layer, names in enumerate(networkx.topological_generations(graph)):
        above = {name: sorted(middle[maker] for maker in graph.predecessors(name)) for name in names}
        centre = {name: sum(places) / len(places) if places else 0.0 for name, places in above.items()}
        layers[layer] = sorted(names, key=lambda name: (centre[name], name))
        middle |= {name: (place + 0.5) / len(layers[layer]) for place, name in enumerate(layers[layer])}
    return layers


def _defined(stages: Mapping[str, Any], params: Mapping[str, Any]) -> Iterator[Stage]:
    for name, stage in stages.items():
        matrix = {key: _inserted(values, params) for key, values in (stage.get("matrix") or {}).items()}
        for chosen in itertools.product(*matrix.values()) if matrix else [()]:
            values = {**params, "item": dict(zip(matrix, chosen, strict=True))}
            suffix = "@" + "-".join(map(str, chosen)) if matrix else ""
            deps, outs = (
                [str(_inserted(_path(each), values)) for each in stage.get(kind) or []] for kind in ("deps", "outs")
            )
            outs += [
                str(_inserted(_path(each), values)) for kind in ("metrics", "plots") for each in stage.get(kind) or []
            ]
            yield Stage(
                name + suffix,
                str(_inserted(stage.get("cmd", ""), values)),
                _data(deps),
                outs,
                bool(stage.get("frozen")),
            )


def _path(entry: Any) -> str:
    return str(next(iter(entry))) if isinstance(entry, dict) else str(entry)


def _inserted(value: Any, params: Mapping[str, Any]) -> Any:
    """A value of dvc.yaml with its `${section.key}` put in; what is not known stays as it is."""
    if not isinstance(value, str):
        return value
    whole = _INSERTED.fullmatch(value)
    if whole:
        return _looked_up(whole, params)
    return _INSERTED.sub(lambda found: str(_looked_up(found, params)), value)


def _looked_up(found: re.Match[str], params: Mapping[str, Any]) -> Any:
    value: Any = params
    for key in found[1].split("."):
        if not isinstance(value, Mapping) or key not in value:
            return found[0]
        value = value[key]
    return value


def _data(paths: list[str]) -> list[str]:
    return [path for path in paths if not path.endswith(".py")]


def _is_inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")


def _state(stage: Stage, locked: Mapping[str, Any], status: dict[str, list[str]] | None) -> tuple[str, list[str]]:
    if stage.frozen:
        return "frozen", []
    if stage.name not in locked:
        return "never run", []
    if status is None:
        return "recorded", []
    reasons = status.get(stage.name, [])
    return ("changed" if reasons else "up to date"), reasons


def _told(row: StageRow, cmd: str) -> str:
    """What the pointer shows."""
    lines = [*row.reasons[:6], cmd]
    lines += [f"trained {row.seconds:,.0f} s"] if row.seconds is not None else []
    lines += [f"{path}  {size}" for path, size in row.outs]
    return f"<b>{as_plain(row.name)}</b>: {row.state}<br>" + "<br>".join(map(as_plain, lines))


def _compared(base: Mapping[str, Any] | None, own: Mapping[str, Any] | None) -> str:
    if own is None:
        return "not there"
    if own == base:
        return "cached"
    made = [
        {out["path"]: out.get("md5") for out in (entry or {}).get("outs", []) if not _is_figures(str(out["path"]))}
        for entry in (base, own)
    ]
    return "ran, same output" if made[0] == made[1] and made[0] else "ran"


def _is_figures(path: str) -> bool:
    """Metrics and plots hold timings, which no two runs share."""
    return path.startswith(("metrics/", "plots/"))


def _size(size: float) -> str:
    """Bytes, in KiB, MiB or GiB."""
    unit, divisor = next(
        ((unit, 2**power) for unit, power in (("GiB", 30), ("MiB", 20)) if size >= 2**power), ("KiB", 2**10)
    )
    return f"{size / divisor:,.1f} {unit}"
