"""JSON as the value of a flag, and values as messages show them."""

from typing import Any

from posttrain.errors import UserError
from posttrain.strict_json import BrokenJSON, parse_json


def read_json(text: str, called: str) -> Any:
    """What a JSON text holds: no key twice, and no NaN.

    Args:
        text: of the user.
        called: what an error message calls the flag.

    Raises:
        UserError: it is not JSON, or holds what no flag takes.
    """
    try:
        return parse_json(text, is_finite=True)
    except BrokenJSON as error:
        where = "" if error.position is None else f" at character {error.position + 1}"
        raise UserError(f"{called}: {show(text)} is not JSON that can be taken{where}: {error}") from None


def show(raw: Any) -> str:
    """A value for a message, cut off where it is long."""
    if isinstance(raw, str) and len(raw) > 80:
        return repr(raw[:77]) + "..."
    try:
        text = repr(raw)
    except ValueError:  # a whole number of more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= 80 else text[:77] + "..."
