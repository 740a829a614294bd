"""Answers of several models to the same problems, side by side, as a page to read."""

import json
import re
import textwrap
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from posttrain.errors import UserError
from posttrain.grading import final_answer

LINE_WIDTH = 140  # characters for all columns together
MIN_COLUMN_WIDTH = 24

Result = dict[str, Any]


def read_results(model: str) -> dict[str, Result]:
    """The results of a model on the problems, by id, in the order of the problems.

    Args:
        model: its name; results/evaluate_<model>.jsonl is read.

    Raises:
        UserError: there is no such file.
    """
    path = Path(f"results/evaluate_{model}.jsonl")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; the stage evaluate@{model} writes it") from error
    results = [json.loads(line) for line in text.split("\n") if line]
    return {result["id"]: result for result in results if "completion" in result}


def side_by_side(results: dict[str, dict[str, Result]], num_differing: int, num_agreeing: int) -> str:
    """Lay answers out.

    Args:
        results: of each model, from read_results.
        num_differing: problems to show that some models solve and others do not, from the first.
        num_agreeing: problems to show that all solve, or none.

    Returns:
        a page of Markdown, its columns aligned for a fixed-width font.

    Raises:
        UserError: the models were not evaluated on the same problems.
    """
    first, *others = results.values()
    for name, theirs in results.items():
        if theirs.keys() != first.keys():
            raise UserError(f"results/evaluate_{name}.jsonl is of other problems than the rest; run `make pipeline`")
    rows = [[first[key], *(theirs[key] for theirs in others)] for key in first]
    differing = [row for row in rows if len({result["correct"] for result in row}) > 1]
    agreeing = [row for row in rows if len({result["correct"] for result in row}) == 1]
    names = list(results)
    page = [
        "# Greedy answers side by side",
        "",
        f"{len(rows):,} held-out problems; on {len(differing):,} of them some models are right and others wrong.",
        "✓ right, ✗ wrong, … cut off at the limit of tokens.",
        "",
        *_shares(names, rows),
    ]
    for title, chosen in (
        ("Some right, some wrong", differing[:num_differing]),
        ("All right, or all wrong", agreeing[:num_agreeing]),
    ):
        page += ["", f"## {title}"]
        for row in chosen:
            page += ["", *_problem(names, row)]
    return "\n".join(page) + "\n"


def _shares(names: Sequence[str], rows: Sequence[Sequence[Result]]) -> list[str]:
    cells = [f"{sum(row[column]['correct'] for row in rows) / len(rows):.1%}" for column in range(len(names))]
    return [
        f"| | {' | '.join(names)} |",
        "|---" * (len(names) + 1) + "|",
        f"| exact match | {' | '.join(cells)} |",
    ]


def _problem(names: Sequence[str], row: Sequence[Result]) -> list[str]:
    width = max(MIN_COLUMN_WIDTH, LINE_WIDTH // len(names) - 2)
    columns = [_column(name, result, width) for name, result in zip(names, row, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    lines = [
        "  ".join(cell.ljust(size) for cell, size in zip(cells, widths, strict=True)).rstrip()
        for cells in zip_longest(*columns, fillvalue="")
    ]
    # A fence that is longer than any run of backticks in the answers.
    fence = "`" * (1 + max(2, *(len(run) for run in re.findall("`+", "\n".join(lines))), 0))
    reference = row[0]["reference"]
    number = final_answer(reference)
    return [
        f"### {row[0]['id']}",
        "",
        *_quoted(row[0]["prompt"]),
        "",
        f"Right: {reference if number is None else number}",
        "",
        fence,
        *lines,
        fence,
    ]


def _column(name: str, result: Result, width: int) -> list[str]:
    mark = ("✓" if result["correct"] else "✗") + ("" if result["ended"] else " …")
    score = f"  reward {result['reward_score']:+.2f}" if "reward_score" in result else ""
    lines = [f"{name} {mark}{score}", ""]
    for line in result["completion"].splitlines():
        lines += textwrap.wrap(line, width, subsequent_indent="  ") or [""]
    return lines


def _quoted(messages: Sequence[dict[str, str]]) -> list[str]:
    lines = []
    for message in messages:
        role = "" if len(messages) == 1 else f"{message['role']}: "
        lines += [f"> {line}".rstrip() for line in f"{role}{message['content']}".splitlines()]
    return lines
