"""The page: everything that was gathered, in one HTML file."""

from __future__ import annotations

import base64
import datetime
import gzip
from importlib.resources import files
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs, get_plotlyjs_version

from posttrain.experiment.report import distributions, tables
from posttrain.experiment.report.curves import curve_figure, stages_figure
from posttrain.experiment.report.gather import Gathered, Group, provenance_of
from posttrain.experiment.report.graph import STATES, graph_figure, table_of_stages, what_ran
from posttrain.experiment.report.samples import KINDS, samples_of


def render(gathered: Gathered, title: str, made: datetime.datetime) -> str:
    """Write the page.

    Args:
        gathered: what there is.
        title: of the page.
        made: when.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_text),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["number"] = lambda value: f"{value:,}"
    environment.filters["sum_of"] = lambda counts: sum(counts.values())
    shown = _content(gathered) | {
        "title": title,
        "made": f"{made:%Y-%m-%d %H:%M} UTC",
        "style": _text("page.css"),
        "script": _text("page.js"),
        "plotly": packed_plotly(),
        "plotly_version": get_plotlyjs_version(),
    }
    return environment.get_template("page.html.j2").render(shown)


def packed_plotly() -> str:
    """plotly.js, gzip in base64, which is half as long; the browser unpacks it (DecompressionStream)."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode("utf-8"), 9, mtime=0)).decode("ascii")


def _content(gathered: Gathered) -> dict[str, Any]:
    stages = table_of_stages(gathered)
    present = {row.state for row in stages}
    path = distributions.path_figure(gathered)
    return {
        "gathered": gathered,
        "summary": tables.summary(gathered),
        "exact_match": distributions.exact_match_figure(gathered),
        "parameters": tables.differing_parameters(gathered),
        "stages": stages,
        "states": [(sign, state, told) for state, (sign, _, _, told) in STATES.items() if state in present],
        "graph": graph_figure(gathered, stages) if stages else None,
        "ran": what_ran(gathered) if len(gathered.experiments) > 1 else [],
        "evaluation": tables.evaluation_tables(gathered),
        "training": tables.training_tables(gathered),
        "all_curves": stages_figure(gathered),
        "curves": _curves(gathered),
        "lengths": distributions.histogram_figure(gathered, "num_tokens", "tokens of a greedy answer"),
        "scores": distributions.histogram_figure(gathered, "reward_score", "score of the reward model"),
        "divergence": distributions.divergence_figure(gathered),
        "path": path[0] if path else None,
        "no_kl": path[1] if path else [],
        "samples": samples_of(gathered),
        "kinds": KINDS,
        "data": tables.data_rows(gathered),
        "cut": tables.cut_answers(gathered),
        "provenance": _provenance(gathered),
    }


def _curves(gathered: Gathered) -> list[tuple[str, Any, list[Group]]]:
    found = [(stage, curve_figure(gathered, stage)) for stage in gathered.trained]
    return [(stage, *figure) for stage, figure in found if figure is not None]


def _provenance(gathered: Gathered) -> list[tuple[str, list[Group]]]:
    """Of each stage that trains, what stands beside its model, and in which experiments."""
    names = [name for name in gathered.trained if any(name in one.curves for one in gathered.experiments)]
    return [(name, gathered.groups(provenance_of, name)) for name in names]


def _text(name: str) -> str:
    return files("posttrain.experiment.report").joinpath(name).read_text(encoding="utf-8")
