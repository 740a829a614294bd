"""The tables: what matters of each model, all metrics with differences, parameters that differ, rows and tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.experiment.report.distributions import kl_name
from posttrain.experiment.report.gather import Gathered, Group
from posttrain.experiment.revisions import Experiment, flat

Metrics = Mapping[str, float]

# What tells most, of an evaluation and of a stage that trains, in this order; {ref} is the model that is compared with.
_TELLING = {
    "evaluation": [
        *("exact_match", "pass_at_1", "pass_at_4", "pass_at_8", "reward_score", "kl_to_{ref}"),
        *("preference_accuracy_vs_{ref}", "preference_accuracy_logprob", "mean_completion_length"),
        *("format_rate", "eos_rate"),
    ],
    "training": [
        *("train_loss", "eval_loss", "eval_mean_token_accuracy", "eval_accuracy", "eval_calibration_error"),
        *("eval_rewards/accuracies", "eval_rewards/margins", "eval_reward", "eval_kl", "reward", "kl"),
        *("train_runtime", "tokens_per_second", "peak_memory_mib"),
    ],
}
_SHARES = ("exact_match", "pass_at_", "format_rate", "eos_rate", "preference_accuracy", "eval_accuracy", "accuracy")
_ROW_COUNTS = "data/rows"
_DROPPED = "data/rows_dropped_"


@dataclass(frozen=True)
class Cell:
    """A number as it is shown: itself, its interval, and the difference to the first experiment."""

    text: str = ""
    interval: str = ""
    difference: str = ""


@dataclass(frozen=True)
class Table:
    """A table of numbers.

    Args:
        caption: what it shows.
        columns: their heads.
        rows: head and cells of those that tell most.
        others: of all other metrics.
    """

    caption: str
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]
    others: list[tuple[str, list[Cell]]] = field(default_factory=list)


@dataclass(frozen=True)
class DataRow:
    """What became of a stage's rows: read, kept, dropped (reason → rows), cut, tokens, tokens lost; and of whom."""

    stage: str
    experiments: str
    read: int
    kept: int
    dropped: dict[str, int]
    truncated: int
    tokens: int
    tokens_truncated: int


def summary(gathered: Gathered) -> Table | None:
    """Exact match (where there is none: the reward score) of each policy, a row an experiment."""
    models = gathered.models
    found = [_of(one, model) for one in gathered.experiments for model in models]
    name = next((name for name in ("exact_match", "reward_score") if any(name in metrics for metrics in found)), None)
    if name is None:
        return None
    rows = []
    for one in gathered.experiments:
        base = gathered.first if one is not gathered.first else None
        rows.append((one.name, [cell(name, _of(one, model), _of(base, model) if base else None) for model in models]))
    return Table(f"{name.replace('_', ' ')}, with 95% intervals", models, rows)


def evaluation_tables(gathered: Gathered) -> list[Table]:
    """With one experiment a column a policy; with several a table a policy, and a column an experiment."""
    models = gathered.models
    if len(gathered.experiments) == 1 and models:
        one = gathered.first
        return [_table("All models", models, [_of(one, model) for model in models], False, "evaluation")]
    return [
        _compared(gathered, model, gathered.groups(lambda one, name: _of(one, name) or None, model), "evaluation")
        for model in models
    ]


def training_tables(gathered: Gathered) -> list[Table]:
    """The same for the stages that train, and for those before them."""
    stages = gathered.trained
    if len(gathered.experiments) == 1 and stages:
        return [_table("All stages", stages, [_own(gathered.first, name) for name in stages], False, "training")]
    return [
        _compared(gathered, stage, gathered.groups(lambda one, name: _own(one, name) or None, stage), "training")
        for stage in stages
    ]


def differing_parameters(gathered: Gathered) -> list[tuple[str, list[str]]]:
    """Parameters that are not the same in all experiments, a value an experiment."""
    params = [flat(one.params) for one in gathered.experiments]
    names = list(dict.fromkeys(name for one in params for name in one))
    table = [(name, [_written(one[name]) if name in one else "–" for one in params]) for name in names]
    return [(name, values) for name, values in table if len(set(values)) > 1]


def data_rows(gathered: Gathered) -> list[DataRow]:
    """What each stage that trains read, and what it dropped or cut; experiments with the same counts share a row."""
    rows = []
    for stage in gathered.trained:

        def counts(one: Experiment, stage: str = stage) -> dict[str, int] | None:
            return {k: int(v) for k, v in one.metrics.get(stage, {}).items() if k.startswith("data/")} or None

        for group in gathered.groups(counts):
            count = group.value
            dropped = {name.removeprefix(_DROPPED): n for name, n in count.items() if name.startswith(_DROPPED)}
            rows.append(
                DataRow(
                    stage=stage,
                    experiments="all" if len(group.names) == len(gathered.names) else ", ".join(group.names),
                    read=count.get("data/rows_read", 0),
                    kept=count.get(_ROW_COUNTS, 0),
                    dropped=dropped,
                    truncated=count.get("data/rows_truncated", 0),
                    tokens=count.get("data/tokens", 0),
                    tokens_truncated=count.get("data/tokens_truncated", 0),
                )
            )
    return rows


def cut_answers(gathered: Gathered) -> list[tuple[str, str, int, int, int]]:
    """Model, experiment, greedy answers that were cut off, those that hold no number, and all of them."""
    found = []
    for model in gathered.models:
        for group in gathered.groups(lambda one, name: _cut(gathered.answers.get(one.name, {}).get(name)), model):
            names = "all" if len(group.names) == len(gathered.names) else ", ".join(group.names)
            found.append((model, names, *group.value))
    return found


def cell(name: str, metrics: Metrics, base: Metrics | None = None) -> Cell:
    """A metric as it is shown.

    Args:
        name: of the metric.
        metrics: that it is among, or not.
        base: of the first experiment, for the difference; None: this is the first.
    """
    if name not in metrics:
        return Cell("–")
    value, low, high = metrics[name], metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    between = "" if low is None or high is None else f"{shown(name, low)} to {shown(name, high)}"
    difference = ""
    if base is not None and name in base and value != base[name]:
        difference = shown(name, value - base[name], signed=True)
    return Cell(shown(name, value), between, difference)


def shown(name: str, value: float, signed: bool = False) -> str:
    """A number with the digits that mean something: shares as percentages, counts in full, four digits of others."""
    sign = "+" if signed else ""
    if name.startswith(_SHARES) or name.endswith(("/accuracies", "_ratio")):
        text = f"{100 * value:{sign}.1f}" + (" pts" if signed else "%")
    elif float(value).is_integer() and abs(value) < 1e15:
        text = f"{int(value):{sign},}"
    else:
        text = f"{value:{sign},.0f}" if abs(value) >= 1000 else f"{value:{sign}.4g}"
    return text.replace("-", "−") if "e" not in text else text


def _compared(gathered: Gathered, caption: str, groups: list[Group], kind: str) -> Table:
    """A column for each of the experiments in which the metrics differ."""
    everywhere = len(groups) == 1 and len(groups[0].names) == len(gathered.names)
    heads = ["all experiments"] if everywhere else [", ".join(group.names) for group in groups]
    return _table(caption, heads, [group.value for group in groups], bool(groups) and groups[0].place == 0, kind)


def _table(caption: str, heads: list[str], columns: list[Metrics], compares: bool, kind: str) -> Table:
    names = list(dict.fromkeys(name for metrics in columns for name in metrics if not name.startswith("data/")))
    ends = {f"{name}{end}" for name in names for end in ("_low", "_high")}
    names = [name for name in names if name not in ends]
    kl = next((found for metrics in columns if (found := kl_name(metrics))), "kl_to_")
    telling = [name.replace("{ref}", kl.removeprefix("kl_to_")) for name in _TELLING[kind]]

    def row(name: str) -> tuple[str, list[Cell]]:
        cells = [cell(name, one, columns[0] if compares and place else None) for place, one in enumerate(columns)]
        return name, cells

    first = [row(name) for name in telling if name in names]
    rest = [row(name) for name in sorted(names) if name not in telling]
    return Table(caption, heads, first or rest, rest if first else [])


def _of(one: Experiment, model: str) -> Metrics:
    return one.metrics.get(f"evaluate_{model}", {})


def _own(one: Experiment, stage: str) -> Metrics:
    return one.metrics.get(stage, {})


def _cut(rows: Sequence[Mapping[str, Any]] | None) -> tuple[int, int, int] | None:
    if not rows:
        return None
    return sum(not row["ended"] for row in rows), sum(not row["formatted"] for row in rows), len(rows)


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
