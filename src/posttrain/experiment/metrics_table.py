"""The metrics of a pipeline as tables that fit a terminal: a row a metric, a column a stage.

`dvc metrics show` prints a row a file and a column a metric, which for dozens of metrics is wider than any terminal.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import yaml

from posttrain.config.yaml_files import FastLoader
from posttrain.errors import UserError

Number = int | float


def read_metrics(folder: Path) -> dict[str, dict[str, Number]]:
    """Read `<stage>.json` files of flat metrics.

    Args:
        folder: Where they lie.

    Returns:
        The metrics of each stage, keyed by the file's name without its ending.

    Raises:
        UserError: There are none, since no stage has run yet.
    """
    metrics = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    if not metrics:
        raise UserError(f"{folder}/ holds no metrics yet: `make pipeline` runs the stages that write them")
    return metrics


def tables(metrics: dict[str, dict[str, Number]], stage_order: list[str]) -> str:
    """Lay metrics out as text.

    Args:
        metrics: Flat metrics by stage. `evaluate_sft` is the run on `sft` of the stage `evaluate`, and stands as column
            `sft` in a table of its own; all other stages share the first table.
        stage_order: Names of stages in the order of their columns; others follow by name.

    Returns:
        Tables, one below the other, each with a title line. A metric's `…_low` and `…_high` stand in its own cell:
        `0.62 [0.588 0.649]`.
    """

    def place(name: str) -> tuple[int, str]:
        return (stage_order.index(name) if name in stage_order else len(stage_order), name)

    grouped: dict[str, dict[str, dict[str, Number]]] = {}
    for name, values in metrics.items():
        stage, _, item = name.partition("_")
        title, column = (stage, item) if item else ("stages", stage)
        grouped.setdefault(title, {})[column] = values
    titles = sorted(grouped, key=lambda title: (title != "stages", place(title)))
    return "\n\n".join(
        _table(title, {column: grouped[title][column] for column in sorted(grouped[title], key=place)})
        for title in titles
    )


def _table(title: str, columns: dict[str, dict[str, Number]]) -> str:
    texts = [_texts(values) for values in columns.values()]
    names = list(dict.fromkeys(name for column in texts for name in column))
    cells = [[column.get(name, "") for column in texts] for name in names]
    left = max(map(len, [title, *names]))
    widths = [max(len(head), *(len(row[i]) for row in cells)) for i, head in enumerate(columns)]
    lines = [(title, list(columns)), ("-" * left, ["-" * width for width in widths]), *zip(names, cells, strict=True)]
    return "\n".join(
        "  ".join([head.ljust(left), *(cell.rjust(width) for cell, width in zip(row, widths, strict=True))]).rstrip()
        for head, row in lines
    )


def _texts(values: dict[str, Number]) -> dict[str, str]:
    """The text of each metric, its interval behind it where it has one."""
    texts = {}
    for name in without_ends(values):
        ends = [values[end] for end in _ends(name) if end in values]
        texts[name] = _format(values[name]) + (f" [{' '.join(f'{end:.3g}' for end in ends)}]" if len(ends) == 2 else "")
    return texts


def without_ends(names: Iterable[str]) -> list[str]:
    """Names of metrics, each once, but for the ends of intervals: `x_low` and `x_high` where there is `x`."""
    names = dict.fromkeys(names)
    inside = {end for name in names for end in _ends(name) if all(end in names for end in _ends(name))}
    return [name for name in names if name not in inside]


def _ends(name: str) -> tuple[str, str]:
    return f"{name}_low", f"{name}_high"


def _format(value: Number) -> str:
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def main() -> None:
    """Print the tables of the folder named on the command line, columns in the order of ./dvc.yaml."""
    try:
        metrics = read_metrics(Path(sys.argv[1]))
    except UserError as error:
        print(f"posttrain: error: {error}", file=sys.stderr)
        sys.exit(2)
    stages = yaml.load(Path("dvc.yaml").read_text(encoding="utf-8"), FastLoader)["stages"]
    print(tables(metrics, list(stages)))


if __name__ == "__main__":
    main()
