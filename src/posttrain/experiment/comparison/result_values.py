"""What each row of results/evaluate_<model>.jsonl adds to a metric of metrics/evaluate_<model>.json.

Summed over the rows, and divided, the values give the metric itself (a test compares); drawn again and again, its
interval.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from posttrain.experiment.comparison.statistics import Rows
from posttrain.experiment.evaluation_statistics import pass_at_k

Result = Mapping[str, Any]
Value = tuple[float, float]  # numerator and denominator
ByRow = dict[str, Value]  # by the row's id

_FIELDS = {"exact_match": "correct", "format_rate": "formatted", "eos_rate": "ended"}
_FIELDS |= {"mean_completion_length": "num_tokens", "reward_score": "reward_score"}


def values_of(metric: str, results: Iterable[Result]) -> ByRow:
    """The values of a metric, by row.

    Args:
        metric: its name, such as "pass_at_4".
        results: rows of a results file.

    Returns:
        Numerators and denominators; empty where the results do not hold what the metric is made from.
    """
    field, value = _source(metric)
    return {row["id"]: value(row[field], row) for row in results if field in row}


def _source(metric: str) -> tuple[str, Callable[[Any, Result], Value]]:
    """The field that rows have a value of, and the value from it."""
    if metric in _FIELDS:
        return _FIELDS[metric], lambda number, row: (float(number), 1.0)
    if found := re.fullmatch(r"pass_at_(\d+)", metric):
        k = int(found[1])
        return "samples_correct", lambda right, row: (pass_at_k(len(right), sum(right), k), 1.0)
    if found := re.fullmatch(r"kl_to_(.+)_per_token", metric):
        return f"samples_log_ratio_{found[1]}", lambda sums, row: (sum(sums), float(sum(row["samples_num_tokens"])))
    if found := re.fullmatch(r"kl_to_(.+)", metric):
        return f"samples_log_ratio_{found[1]}", lambda sums, row: (sum(sums) / len(sums), 1.0)
    if metric == "preference_accuracy_logprob":
        return "margin_logprob", lambda margin, row: (float(margin > 0), 1.0)
    if found := re.fullmatch(r"preference_accuracy_vs_(.+)", metric):
        return f"margin_vs_{found[1]}", lambda margin, row: (float(margin > 0), 1.0)
    return "", lambda number, row: (number, 1.0)  # a field that no row has


def as_rows(values: ByRow, ids: Sequence[str]) -> Rows:
    """The values of some rows, in their order.

    Args:
        values: of a metric, by row.
        ids: which rows.
    """
    numerators, denominators = np.array([values[name] for name in ids], dtype=np.float64).T
    return Rows(numerators, denominators)
