"""A comparison as text for a terminal, as Markdown, or as JSON."""

import json
import math
from collections.abc import Callable

from posttrain.experiment.comparison.compare import Comparison, Difference, method_of
from posttrain.experiment.comparison.directions import SPEED, is_chief
from posttrain.experiment.comparison.sides import Side
from posttrain.experiment.tables import MISSING, Table, cell, markdown_table, text_table

Part = Table | list[str]  # a list: lines of text


def as_text(comparison: Comparison, all_metrics: bool) -> str:
    """Tables for a terminal."""
    parts = parts_of(comparison, all_metrics)
    left = max((len(row[0]) for part in parts if isinstance(part, Table) for row in [part.head, *part.rows]), default=0)
    return "\n\n".join(text_table(part, left) if isinstance(part, Table) else "\n".join(part) for part in parts)


def as_markdown(comparison: Comparison, all_metrics: bool) -> str:
    """Tables for an issue or a page."""
    return "\n\n".join(
        markdown_table(part) if isinstance(part, Table) else "\n".join(f"- {line.strip()}" for line in part)
        for part in parts_of(comparison, all_metrics)
    )


def as_json(comparison: Comparison, all_metrics: bool) -> str:
    """All metrics, with numbers in full; null where there is none."""
    metrics = [
        {
            "stage": one.stage,
            "metric": one.metric,
            "a": one.a,
            "b": one.b,
            "difference": None if one.a is None or one.b is None else one.b - one.a,
            "low": one.interval.low if one.interval else None,
            "high": one.interval.high if one.interval else None,
            "ratio": one.ratio.difference if one.ratio else None,
            "num_rows": one.num_rows,
            "verdict": one.verdict,
        }
        for one in comparison.differences
    ]
    content = {
        "a": _described(comparison.a),
        "b": _described(comparison.b),
        "unit": comparison.unit.name.lower(),
        "params": {name: {"a": a, "b": b} for name, (a, b) in comparison.params.items()},
        "inputs": comparison.inputs,
        "metrics": metrics,
        "same": comparison.same,
        "notes": [*comparison.notes, *method_of(comparison)],
    }
    return json.dumps(content, indent=1, ensure_ascii=False, default=str)


FORMATS: dict[str, Callable[[Comparison, bool], str]] = {"text": as_text, "md": as_markdown, "json": as_json}


def parts_of(comparison: Comparison, all_metrics: bool) -> list[Part]:
    """What is shown, in order.

    Args:
        comparison: what there is to say.
        all_metrics: those that only help to look for reasons, too.
    """
    parts: list[Part] = [[f"A  {_title(comparison.a)}", f"B  {_title(comparison.b)}"]]
    params = [[name, *map(cell, values)] for name, values in comparison.params.items()]
    parts.append(Table(["params that differ", "A", "B"], params) if params else ["The params are the same."])
    if comparison.inputs:
        parts.append(["Beside the params, these differ:", *(f"  {line}" for line in comparison.inputs)])
    shown = [one for one in comparison.differences if all_metrics or _is_shown(one)]
    for stage in dict.fromkeys(one.stage for one in shown if not one.is_speed):
        rows = [_row(one) for one in shown if one.stage == stage and not one.is_speed]
        parts.append(Table([stage.replace("_", " ", 1), "A", "B", "B − A", "95% interval", ""], rows))
    fast = sorted((one for one in shown if one.is_speed), key=lambda one: SPEED.index(one.metric))
    speed = [_speed_row(one) for one in fast]
    if speed:
        parts.append(Table(["speed and memory", "A", "B", "B / A", "95% interval", ""], speed))
    if comparison.same:
        parts.append([f"The same figures on both sides, speed aside: {', '.join(comparison.same)}."])
    hidden = len(comparison.differences) - len(shown)
    more = [f"{hidden} other metric{'s' * (hidden > 1)}: --all"] if hidden else []
    notes = [*comparison.notes, *method_of(comparison), *more]
    return [*parts, notes] if notes else parts


def _is_shown(one: Difference) -> bool:
    if one.is_speed or is_chief(one.stage, one.metric):
        return True
    return one.stage.startswith("evaluate_") and one.a != one.b  # a count of rows that is not the same


def _row(one: Difference) -> list[str]:
    difference = MISSING if one.a is None or one.b is None else f"{one.b - one.a:+.3g}"
    has_interval = one.interval is not None and one.verdict != "same"
    interval = f"{one.interval.low:+.3g} to {one.interval.high:+.3g}" if one.interval and has_interval else ""
    return [one.metric, cell(one.a), cell(one.b), difference, interval, one.verdict]


def _speed_row(one: Difference) -> list[str]:
    ratio = f"{one.ratio.difference:.3g}" if one.ratio else MISSING
    has_interval = one.ratio is not None and not math.isnan(one.ratio.low)
    interval = f"{one.ratio.low:.3g} to {one.ratio.high:.3g}" if one.ratio and has_interval else ""
    return [f"{one.stage} {one.metric}", cell(one.a), cell(one.b), ratio, interval, one.verdict]


def _title(side: Side) -> str:
    if len(side.experiments) > 1:
        return f"{side.name}: {', '.join(one.name for one in side.experiments)}"
    commit = side.first.revision
    return side.name if commit is None or commit.startswith(side.name) else f"{side.name} ({commit[:7]})"


def _described(side: Side) -> list[dict[str, str | None]]:
    return [{"name": one.name, "revision": one.revision} for one in side.experiments]
