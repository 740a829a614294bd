"""JSON read strictly: what Python's reader loses, or cannot read, is told."""

import json
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
        raise BrokenJSON(f"the key {_short(twice)!r} stands twice in one object; only one of its values could count")
    return mapping


def _no_number(word: str) -> Any:
    raise BrokenJSON(f"{word} is no number there")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)
_FINITE = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_number)


def parse_json(text: str, is_finite: bool = False) -> Any:
    """The value of a JSON text.

    Args:
        text: of a user.
        is_finite: whether NaN and Infinity, which Python writes, are refused.

    Raises:
        BrokenJSON: it is none, an object has a key twice, a number has more digits than Python reads, or lists and
            mappings stand more than MAX_DEPTH deep in each other.
    """
    try:
        value = (_FINITE if is_finite else _DECODER).decode(text)
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


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:80] + "…"
