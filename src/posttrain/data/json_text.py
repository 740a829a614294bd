"""Text of data files, as messages show it and limits count it."""

from collections.abc import Mapping
from typing import Any


def shortened(text: str, limit: int = 80) -> str:
    """A text without white space around it, cut to `limit` characters."""
    text = text[: 2 * limit].strip() if len(text) > 2 * limit else text.strip()
    return text if len(text) <= limit else text[:limit] + "…"


def letters_in(value: Any) -> int:
    """Characters of all text in a value."""
    total, pending = 0, [value]
    while pending:  # every row comes by here, so this is written to be quick
        one = pending.pop()
        if isinstance(one, str):
            total += len(one)
        elif isinstance(one, dict):
            pending += one
            pending += one.values()
        elif isinstance(one, list | tuple):
            pending += one
        elif not isinstance(one, int | float | None) and isinstance(one, Mapping):
            pending += [*one, *one.values()]
    return total
