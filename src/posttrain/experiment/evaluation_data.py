"""Held-out rows: problems with an answer, and pairs; read and checked before torch is imported."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from posttrain.data.readers import Row, read_rows
from posttrain.errors import UserError
from posttrain.grading import is_correct

Message = dict[str, str]


def read_problems(path: str) -> list[dict[str, Any]]:
    """Read the problems that a model has to solve.

    Args:
        path: a data file; `prompt` is a list of messages, `solution` (or `answer`) the right number or a solution that
            ends in it.

    Returns:
        rows with `id`, `prompt` and `solution`.

    Raises:
        UserError: naming the file and line of the first row that does not fit.
    """
    rows = []
    for row in read_rows(Path(path)):
        _check_messages(row, "prompt")
        solution = row.columns.get("solution", row.columns.get("answer"))
        if not isinstance(solution, str):
            raise UserError(f"{row.place}: wanted a column solution with text; the row has {', '.join(row.columns)}")
        try:
            is_correct("", solution)
        except ValueError as error:
            raise UserError(f"{row.place}: column solution: {error}") from error
        rows.append({"prompt": row.columns["prompt"], "solution": solution})
    return _with_ids(rows, "prompts")


def read_pairs(path: str) -> list[dict[str, Any]]:
    """Read pairs of a better and a worse answer.

    Args:
        path: a data file; `prompt`, `chosen` and `rejected` are lists of messages, the answers of one message each.

    Returns:
        rows with `id`, `prompt`, `chosen` and `rejected`.

    Raises:
        UserError: naming the file and line of the first row that does not fit.
    """
    rows = []
    for row in read_rows(Path(path)):
        for name in ("prompt", "chosen", "rejected"):
            _check_messages(row, name)
        for name in ("chosen", "rejected"):
            number = len(row.columns[name])
            if number != 1:
                raise UserError(f"{row.place}: column {name} holds {number} messages; wanted one, the answer")
        rows.append({name: row.columns[name] for name in ("prompt", "chosen", "rejected")})
    return _with_ids(rows, "preference")


def _check_messages(row: Row, name: str) -> None:
    value = row.columns.get(name)
    if not isinstance(value, list) or not value or not all(map(_is_message, value)):
        raise UserError(
            f"{row.place}: wanted a column {name} with a list of messages "
            f'({{"role": …, "content": …}}); the row has {", ".join(row.columns)}'
        )


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in ("role", "content"))


def _with_ids(rows: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The rows, each with an `id` made from its content: it stays with the row when others come, go or move."""
    seen: Counter[str] = Counter()
    result = []
    for row in rows:
        content = json.dumps(row, sort_keys=True, ensure_ascii=False).encode()
        name = f"{kind}/{hashlib.sha256(content).hexdigest()[:12]}"
        seen[name] += 1
        result.append({"id": name if seen[name] == 1 else f"{name}-{seen[name]}", **row})
    return result
