"""What came out of a sweep, as a table: a row a combination, or a row for all seeds of one."""

import math
from collections.abc import Collection, Sequence
from pathlib import Path

from posttrain.experiment.comparison.sides import is_seed
from posttrain.experiment.comparison.statistics import mean_and_half_width
from posttrain.experiment.experiments_table import chief_columns, flat_metrics
from posttrain.experiment.revisions import read_experiment
from posttrain.experiment.sweep.grid import Run
from posttrain.experiment.tables import Table, cell, text_table


def outcome(grid: Sequence[Run], failed: Collection[str], root: Path = Path()) -> str:
    """The table, and what to type next.

    Args:
        grid: all combinations.
        failed: names of those that have not come to their end.
        root: the repository.
    """
    runs = [run for run in grid if run.name not in failed]
    if not runs:
        return "no experiment has come to its end"
    metrics = [flat_metrics(read_experiment(run.name, root)) for run in runs]
    columns = chief_columns(metrics)
    varying = [key for key in grid[0].values if len({run.values[key] for run in grid}) > 1] or list(grid[0].values)
    keys = [key for key in varying if not is_seed(key)]
    has_seeds = len(keys) < len(varying)
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, run in enumerate(runs):
        # Without seeds each combination is a group of its own.
        groups.setdefault(tuple(run.values[key] for key in keys), []).append(number)
    table = Table([*keys, *(["runs"] if has_seeds else ["experiment"]), *columns], num_left=len(keys) + 1)
    for values, members in groups.items():
        cells = [
            _over_seeds([metrics[number][name] for number in members if name in metrics[number]]) for name in columns
        ]
        table.rows.append([*values, str(len(members)) if has_seeds else runs[members[0]].name, *cells])
    lines = [text_table(table), ""]
    if has_seeds:
        lines.append("mean ± half of the 95% interval over seeds (Student's t); ± – where there is one run")
        names = [",".join(runs[number].name for number in members) for members in groups.values()]
    else:
        names = [run.name for run in runs]
    first, last = (names[0], names[-1]) if len(names) > 1 else ("workspace", names[0])
    return "\n".join([*lines, f"next: posttrain compare {first} {last}"])


def _over_seeds(values: Sequence[float]) -> str:
    if not values:
        return cell(None)
    mean, half = mean_and_half_width(values)
    return f"{cell(mean)} ± {'–' if math.isnan(half) else f'{half:.2g}'}"
