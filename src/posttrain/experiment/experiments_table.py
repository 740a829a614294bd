"""All experiments as one table, a row each: `posttrain experiments`, for the eye and for pandas.

pandas.read_csv("results/experiments.csv")     # after `make experiments`
"""

import argparse
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.errors import UserError
from posttrain.experiment.command_words import Words
from posttrain.experiment.revisions import WORKSPACE, Experiment, experiment_names, flat, read_experiment

USAGE = "posttrain experiments [--format text|csv] [--output FILE]"
_DESCRIPTION = """A row an experiment: the working tree, HEAD, and all experiments of DVC. Text shows the params that
differ and the chief metrics that do; csv has a column for every metric (evaluate_dpo.exact_match) and every param that
differs."""
# What stands in a table that has room for a few columns, in this order.
_CHIEF = ("exact_match", "pass_at_1", "reward_score", "kl_to_sft", "eval_accuracy", "eval_loss")
_MOST_COLUMNS = 6


def run(words: Sequence[str]) -> int:
    """Print the table, or write it.

    Args:
        words: behind `posttrain experiments`.

    Raises:
        UserError: there is nothing to show, or the file cannot be written.
    """
    options = parse(words)
    experiments = read_all()
    if options.output is not None:
        try:
            Path(options.output).parent.mkdir(parents=True, exist_ok=True)
            Path(options.output).write_text(as_csv(experiments), encoding="utf-8")
        except OSError as error:
            raise UserError(f"--output {options.output}: cannot be written ({error.strerror})") from error
    print(as_text(experiments) if options.format == "text" else as_csv(experiments).rstrip("\n"))
    return 0


def read_all(root: Path = Path()) -> list[Experiment]:
    """The working tree, the commit that it stands on, and all experiments of DVC, newest first.

    Args:
        root: the repository.

    Raises:
        UserError: none of them has metrics.
    """
    found = [read_experiment(WORKSPACE, root)]
    for name in ["HEAD", *experiment_names(root)]:
        try:
            found.append(read_experiment(name, root))
        except UserError:  # a repository without commits, or an experiment that was removed meanwhile
            continue
    found = [experiment for experiment in found if experiment.metrics]
    if not found:
        raise UserError("there are no metrics yet: `make pipeline` runs the stages that write them")
    return found


def flat_metrics(experiment: Experiment) -> dict[str, float]:
    """All metrics by stage and name: evaluate_dpo.exact_match."""
    return {f"{stage}.{name}": value for stage, own in experiment.metrics.items() for name, value in own.items()}


def chief_columns(metrics: Sequence[Mapping[str, float]]) -> list[str]:
    """The metrics that a small table shows: of the chief ones, those that are not the same in all experiments.

    Args:
        metrics: flat metrics of each experiment.
    """
    names = [name for name in dict.fromkeys(name for own in metrics for name in own) if name.split(".")[1] in _CHIEF]
    names.sort(key=lambda name: _CHIEF.index(name.split(".")[1]))  # stages keep their order
    differing = [name for name in names if len({own.get(name) for own in metrics}) > 1]
    return (differing or names)[:_MOST_COLUMNS]


def as_csv(experiments: Sequence[Experiment]) -> str:
    """Name, commit, params that differ, and all metrics; an empty cell where an experiment has none."""
    params = [flat(experiment.params) for experiment in experiments]
    keys = _differing(params)
    metrics = [flat_metrics(experiment) for experiment in experiments]
    names = list(dict.fromkeys(name for own in metrics for name in own))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "revision", *keys, *names])
    for experiment, own, values in zip(experiments, params, metrics, strict=True):
        cells = [own.get(key) for key in keys] + [values.get(name) for name in names]
        writer.writerow([experiment.name, experiment.revision, *cells])
    return text.getvalue()


def as_text(experiments: Sequence[Experiment]) -> str:
    """Name, params that differ, and the chief metrics that do."""
    from posttrain.experiment.tables import Table, cell, text_table

    params = [flat(experiment.params) for experiment in experiments]
    metrics = [flat_metrics(experiment) for experiment in experiments]
    keys, columns = _differing(params), chief_columns(metrics)
    rows = [
        [one.name, *(cell(own.get(key)) for key in keys), *(cell(values.get(name)) for name in columns)]
        for one, own, values in zip(experiments, params, metrics, strict=True)
    ]
    return text_table(Table(["experiment", *keys, *columns], rows))


def _differing(params: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for own in params for key in own)
    return [key for key in keys if any(own.get(key) != params[0].get(key) for own in params)]


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The options; raises a UserError for what is none."""
    parser = Words(USAGE, _DESCRIPTION)
    parser.add_argument("--format", choices=("text", "csv"), default="text", help="[text]")
    parser.add_argument("--output", metavar="FILE", help="write all of it there as CSV, and print the text")
    return parser.parse_args(list(words))
