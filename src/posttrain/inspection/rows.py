"""What can be said of rows without a tokenizer: columns, the formats that they fit, duplicates."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from posttrain.data.build import check_rows
from posttrain.data.problems import Problems
from posttrain.data.readers import Row
from posttrain.data.sources import Source
from posttrain.data.tokenised import Options


@dataclass
class Sample:
    """The rows that are looked at.

    Args:
        name: of the data set.
        rows: the first ones.
        is_whole: there are no others.
    """

    name: str
    rows: list[Row]
    is_whole: bool


def read_sample(source: Source, num_rows: int | None) -> Sample:
    """Read the first rows of a source; None reads all."""
    rows = list(islice(source.rows(), None if num_rows is None else num_rows + 1))
    is_whole = num_rows is None or len(rows) <= num_rows
    return Sample(source.name, rows[:num_rows], is_whole)


@dataclass
class Column:
    """A column.

    Args:
        kinds: how many values are of which kind; a missing one is of none.
        num_empty: values that are there and hold nothing: "" or white space, [] or {}.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    num_empty: int = 0


def describe_columns(rows: Sequence[Row]) -> dict[str, Column]:
    """Each column by name, in the order in which they turn up."""
    columns: dict[str, Column] = {}
    for row in rows:
        for name, value in row.columns.items():
            column = columns.setdefault(name, Column())
            if value is not None:
                column.kinds[kind_of(value)] += 1
                column.num_empty += not (value.strip() if isinstance(value, str) else value or value in (0, False))
    return columns


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    if isinstance(value, list):
        if value and all(isinstance(item, dict) and {"role", "from"} & item.keys() for item in value):
            roles = dict.fromkeys(str(item.get("role") or item.get("from")) for item in value)
            return f"messages of {', '.join(roles)}"
        items = {kind_of(item) for item in value}
        return f"list of {items.pop()}" if len(items) == 1 else "list"
    names = {bool: "true/false", int: "number", float: "number", str: "text", dict: "mapping"}
    return names.get(type(value), type(value).__name__)


@dataclass
class Fit:
    """How rows fit the formats of a kind of training.

    Args:
        rows: those that do.
        problems: of the others.
        num_others: how many those are.
    """

    rows: list[Row]
    problems: Problems
    num_others: int


def fit_of(rows: Sequence[Row], kind: str, options: Options) -> Fit:
    """Try every row with the parser that training uses.

    Args:
        rows: to look at.
        kind: "sft", "preference", "reward" or "prompts".
        options: of the method.
    """
    fit = Fit([], Problems(), 0)
    for row in rows:
        of_row = Problems()
        check_rows([row], kind, options, of_row)
        if of_row:
            fit.problems.update(of_row)
            fit.num_others += 1
        else:
            fit.rows.append(row)
    return fit


def duplicates(rows: Sequence[Row], column: str | None = None) -> list[tuple[str, str]]:
    """Rows that say the same as an earlier one.

    Args:
        rows: to look at.
        column: compare this one alone; None = all.

    Returns:
        (place, place of the earlier one) each.
    """
    first: dict[int, str] = {}
    found = []
    for row in rows:
        content = row.columns if column is None else row.columns.get(column)
        key = hash(json.dumps(content, sort_keys=True, ensure_ascii=False, default=str))
        if key in first:
            found.append((row.place, first[key]))
        else:
            first[key] = row.place
    return found


# What columns of well-known data sets are called that hold what one of posttrain's columns holds.
_OTHER_NAMES = {
    "prompt": ("question", "instruction", "query", "problem", "input"),
    "completion": ("answer", "response", "output", "solution", "target"),
    "chosen": ("accepted", "preferred", "chosen_response", "winner"),
    "rejected": ("dispreferred", "rejected_response", "loser"),
    "messages": ("conversation", "dialog", "dialogue", "turns", "chat"),
    "text": ("content", "document", "body"),
}


def likely_columns(columns: Iterable[str]) -> dict[str, str]:
    """Columns of posttrain that others look like.

    Args:
        columns: of the data.

    Returns:
        posttrain's name → the data's, where the latter is a name that other data sets use for it.
    """
    lower = {name.lower(): name for name in columns}
    found: dict[str, str] = {}
    for own, others in _OTHER_NAMES.items():
        near = next((lower[other] for other in others if other in lower), None)
        if own not in lower and near is not None and near not in found.values():
            found[own] = near
    return found
