"""Two sides laid beside each other: parameters, inputs, and every metric with its difference and a verdict."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.errors import UserError
from posttrain.experiment.comparison.directions import SPEED, direction
from posttrain.experiment.comparison.inputs import changed_inputs, changed_params, not_yet_run
from posttrain.experiment.comparison.result_values import ByRow, as_rows, values_of
from posttrain.experiment.comparison.sides import Side, Unit, is_seed
from posttrain.experiment.comparison.statistics import (
    LEAST_ROWS,
    NUM_RESAMPLES,
    Interval,
    Rows,
    bootstrap_differences,
    paired_t,
    welch_t,
)
from posttrain.experiment.metrics_table import without_ends


@dataclass(frozen=True)
class Difference:
    """A metric of a stage on both sides.

    Args:
        stage: as metrics/<stage>.json.
        metric: its name there.
        a: its value, or its mean over seeds; None where a side does not have it.
        b: the same of the other side.
        interval: of b - a; None where nothing says how far that is noise.
        ratio: of the speed and memory of a stage: b / a (over seeds the geometric mean), and its interval, whose ends
            are NaN where there is none.
        num_rows: over which the interval is; None over seeds.
    """

    stage: str
    metric: str
    a: float | None
    b: float | None
    interval: Interval | None = None
    ratio: Interval | None = None
    num_rows: int | None = None

    @property
    def is_speed(self) -> bool:
        return self.metric in SPEED

    @property
    def verdict(self) -> str:
        """What is to be made of the difference, in a word or two."""
        if self.a is None or self.b is None:
            return f"only in {'B' if self.a is None else 'A'}"
        if self.interval is None:
            return "same" if self.a == self.b else "no interval"
        if self.interval == (0, 0, 0):
            return "same"
        ends, middle = (self.ratio or self.interval), (1 if self.ratio else 0)
        if ends.low <= middle <= ends.high:
            return "within noise"
        way = direction(self.stage, self.metric)
        return {0: "differs", 1: "better", -1: "worse"}[way * (1 if self.interval.difference > 0 else -1)]


@dataclass(frozen=True)
class Comparison:
    """All that there is to say about two sides.

    Args:
        a: one side.
        b: the other one.
        unit: what intervals are over.
        params: those that differ, (a, b) by name; seeds that make the repetitions are left out.
        inputs: lines about code and data that differ.
        differences: of all metrics, stage by stage.
        same: stages whose figures, speed and memory aside, are all the same; these are not among the differences.
        notes: what a reader has to know beside.
    """

    a: Side
    b: Side
    unit: Unit
    params: dict[str, tuple[Any, Any]]
    inputs: list[str]
    differences: list[Difference] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def compare(a: Side, b: Side, unit: Unit) -> Comparison:
    """Compare two sides.

    Args:
        a: the one that differences are counted from.
        b: the other one.
        unit: what intervals are over.
    """
    params = changed_params(a.first, b.first)
    if unit is not Unit.ROWS:
        params = {key: values for key, values in params.items() if not is_seed(key)}
    found = Comparison(a, b, unit, params, changed_inputs(a.first, b.first))
    for name, side in (("A", a), ("B", b)):
        stale = not_yet_run(side.first)
        if stale:
            told = ", ".join(f"{key} {before} → {now}" for key, (before, now) in stale.items())
            found.notes.append(f"{name}: the figures are of before params.yaml was changed ({told}): `dvc repro`")
        old = dict.fromkeys(stage for experiment in side.experiments for stage in experiment.stale)
        if old:
            found.notes.append(
                f"{name}: not run again after what they read had changed, and left out: {', '.join(old)}"
            )
    for stage in _stages(a, b):
        differences = _stage(a, b, unit, stage, found.notes)
        speed = [one for one in differences if one.is_speed and one.verdict != "same"]
        if all(one.verdict == "same" for one in differences if not one.is_speed):
            found.same.append(stage)
            differences = speed
        found.differences.extend(differences)
    if not found.differences and not found.same:
        raise UserError(f"neither {a.name} nor {b.name} has metrics: no stage has run there")
    return found


def _stages(a: Side, b: Side) -> list[str]:
    """Stages that have metrics, evaluations first, in the order in which they run."""
    both = [experiment for side in (b, a) for experiment in side.experiments]
    order = [stage.replace("@", "_") for experiment in both for stage in experiment.lock.get("stages", {})]
    stages = dict.fromkeys([*order, *(stage for experiment in both for stage in experiment.metrics)])
    with_metrics = [stage for stage in stages if any(stage in experiment.metrics for experiment in both)]
    return sorted(with_metrics, key=lambda stage: not stage.startswith("evaluate_"))


def _stage(a: Side, b: Side, unit: Unit, stage: str, notes: list[str]) -> list[Difference]:
    metrics = without_ends([*a.first.metrics.get(stage, {}), *b.first.metrics.get(stage, {})])
    if unit is Unit.ROWS and stage.startswith("evaluate_"):
        return _over_rows(a, b, stage, metrics, notes)
    return [_over_seeds(stage, metric, a.values(stage, metric), b.values(stage, metric), unit) for metric in metrics]


def _over_seeds(stage: str, metric: str, left: Sequence[float], right: Sequence[float], unit: Unit) -> Difference:
    """A metric without values of its own a row: what varies is the seed, where there are several."""
    a, b = (math.fsum(values) / len(values) if values else None for values in (left, right))
    if a is None or b is None:
        return Difference(stage, metric, a, b)
    over = {Unit.SAME_SEEDS: paired_t, Unit.OTHER_SEEDS: welch_t}.get(unit)
    interval = over(left, right) if over else None
    ratio = None
    if metric in SPEED and min(*left, *right) > 0:
        ratio = Interval(b / a, math.nan, math.nan)
        if over:
            logs = over([math.log(value) for value in left], [math.log(value) for value in right])
            ratio = Interval(*(math.exp(value) for value in logs))
    return Difference(stage, metric, a, b, interval, ratio)


def _over_rows(a: Side, b: Side, stage: str, metrics: Sequence[str], notes: list[str]) -> list[Difference]:
    """The metrics of an evaluation, with intervals over the rows of both results files where these are here."""
    stated = [side.first.metrics.get(stage, {}) for side in (a, b)]
    found = {metric: Difference(stage, metric, stated[0].get(metric), stated[1].get(metric)) for metric in metrics}
    if stated[0] == stated[1] or not all(stated):
        return list(found.values())
    try:
        results = [side.first.results(stage.removeprefix("evaluate_")) for side in (a, b)]
    except UserError as error:
        notes.append(f"{stage} stands without intervals: {error}")
        return list(found.values())
    for (ids, others), group in _grouped(metrics, results).items():
        sides = [(as_rows(left, ids), as_rows(right, others or ids)) for left, right in group.values()]
        wrong = _contradiction(list(group), sides, stated) if len(ids) == _num_rows(group) else ""
        if wrong or len(ids) < LEAST_ROWS:
            notes.append(f"{stage} stands without intervals: {wrong or f'{len(ids)} rows are too few'}")
            continue
        if others or len(ids) < _num_rows(group):
            shared = f"the {len(ids):,} rows that both have" if not others else "different rows, so nothing is paired"
            notes.append(f"{stage}: {', '.join(group)} over {shared}")
        intervals = bootstrap_differences(sides, paired=not others)
        for metric, (left, right), interval in zip(group, sides, intervals, strict=True):
            found[metric] = Difference(stage, metric, left.value, right.value, interval, num_rows=len(ids))
    return list(found.values())


Group = dict[str, tuple[ByRow, ByRow]]


def _grouped(
    metrics: Sequence[str], results: Sequence[Sequence[Mapping[str, Any]]]
) -> dict[tuple[tuple[str, ...], tuple[str, ...]], Group]:
    """Metrics over the same rows together: the ids that both sides have; where there are none, those of either."""
    groups: dict[tuple[tuple[str, ...], tuple[str, ...]], Group] = {}
    for metric in metrics:
        left, right = (values_of(metric, rows) for rows in results)
        if left and right:
            shared = tuple(name for name in left if name in right)
            key = (shared, ()) if shared else (tuple(left), tuple(right))
            groups.setdefault(key, {})[metric] = (left, right)
    return groups


def _num_rows(group: Group) -> int:
    return max(len(values) for sides in group.values() for values in sides)


def _contradiction(
    metrics: Sequence[str], sides: Sequence[tuple[Rows, Rows]], stated: Sequence[Mapping[str, float]]
) -> str:
    """Where a results file does not give the metric that stands beside it: one of them is of another run."""
    for number, name in enumerate("AB"):
        for metric, rows in zip(metrics, sides, strict=True):
            said, value = stated[number].get(metric, math.nan), rows[number].value
            if not math.isclose(said, value, rel_tol=1e-6, abs_tol=1e-9):
                return f"in {name}, the results give {metric} {value:.6g}, and the metrics say {said:.6g}"
    return ""


def method_of(comparison: Comparison) -> list[str]:
    """How the intervals were made, and what they do not tell: lines for the foot of the page."""
    judged = [difference for difference in comparison.differences if difference.interval is not None]
    over_rows = sorted({difference.num_rows for difference in judged if difference.num_rows is not None}, reverse=True)
    lines = []
    if over_rows:
        counts = " or ".join(f"{number:,}" for number in over_rows)
        lines.append(
            f"95% intervals: bootstrap over the held-out rows ({counts}), {NUM_RESAMPLES:,} draws. They tell what "
            "other rows might change, not what other seeds might: for that, compare several seeds a side (A=x-0,x-1)."
        )
    elif comparison.unit in (Unit.SAME_SEEDS, Unit.OTHER_SEEDS):
        lines.append(f"95% {comparison.unit.value} (Student's t, {_counts(comparison)} runs).")
    elif comparison.unit is Unit.NONE:
        lines.append(comparison.unit.value[0].upper() + comparison.unit.value[1:] + ".")
    if any(difference.verdict == "no interval" for difference in comparison.differences):
        lines.append("no interval: one run a side, and no values a row; repeat it with other seeds to see its noise.")
    if len(judged) >= 10:
        lines.append(f"Of {len(judged)} intervals, about {round(len(judged) / 20) or 1} would leave out 0 by chance.")
    return lines


def _counts(comparison: Comparison) -> str:
    return f"{len(comparison.a.experiments)} and {len(comparison.b.experiments)}"
