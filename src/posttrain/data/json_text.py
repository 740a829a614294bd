"""Text of data files, as messages show it and limits count it."""

from collections.abc import Mapping
from typing import Any


def shortened(text: str, limit: int = 80) -> str:
    """A text without white space around it, cut to `limit` characters."""
    text = text[: 2 * limit].strip() if len(text) > 2 * limit else text.strip()
    return text if len(text) <= limit else text[:limit] + "…"


def letters_in(value: Any) -> int:
    """Characters of all text in a value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(letters_in, value)) + sum(map(letters_in, value.values()))
    return sum(map(letters_in, value)) if isinstance(value, list | tuple) else 0
