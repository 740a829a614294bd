"""JSON as data files and columns hold it, read strictly: what Python's reader loses, or cannot read, is told."""

import json
from collections.abc import Mapping
from typing import Any

MAX_DEPTH = 100  # lists and mappings within each other; templates, Arrow and the writers of JSON recurse


class BrokenJSON(ValueError):
    """Text that is not JSON, or of which something would be lost.

    Args:
        message: what is wrong, in a few words.
        position: the character at which, where that is known.
    """

    def __init__(self, message: str, position: int | None = None):
        super().__init__(message)
        self.position = position


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in mapping if names.count(name) > 1)
        raise BrokenJSON(f"the key {shortened(twice)!r} stands twice in one object; only one of its values could count")
    return mapping


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def parse_json(text: str) -> Any:
    """The value of a JSON text. NaN and Infinity are read, as Python writes them.

    Raises:
        BrokenJSON: it is none, an object has a key twice, a number has more digits than Python reads, or lists and
            mappings stand more than MAX_DEPTH deep in each other.
    """
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise BrokenJSON(_reason(error), error.pos) from error
    except RecursionError:
        raise _too_deep() from None
    except BrokenJSON:
        raise
    except ValueError as error:
        raise BrokenJSON("a number has more digits than can be read") from error
    if text.count("[") + text.count("{") > MAX_DEPTH:
        _check_depth(value)
    return value


def _reason(error: json.JSONDecodeError) -> str:
    """What is wrong, where Python's words for it are of little help: a text that was cut off, or is no JSON inside."""
    if error.msg.startswith("Unterminated string"):
        return "the text that begins there has no end; was it cut off?"
    if error.msg.startswith("Invalid control character"):
        letter = error.doc[error.pos]
        if letter in "\r\n":
            return "the line ends in the middle of a text; was it cut off?"
        return f"{letter!r} stands in a text, where JSON writes {json.dumps(letter)[1:-1]}"
    return error.msg


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH + 1:
            raise _too_deep()
        inner = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [item for items in inner for item in items if isinstance(item, dict | list)]


def _too_deep() -> BrokenJSON:
    return BrokenJSON(f"lists and mappings stand more than {MAX_DEPTH} deep in each other")


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
