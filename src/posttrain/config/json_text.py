"""JSON as the value of a flag, and values as messages show them."""

import json
from typing import Any

from posttrain.errors import UserError


def read_json(text: str, called: str) -> Any:
    """What a JSON text holds: no key twice, and no NaN.

    Args:
        text: of the user.
        called: what an error message calls the flag.

    Raises:
        UserError: it is not JSON, or holds what no flag takes.
    """

    def refuse(word: str) -> Any:
        raise UserError(f"{called}: {show(text)} is not JSON ({word} is no number there)")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise UserError(f"{called}: {show(text)} names {show(key)} twice; leave one of them out")
            found[key] = value
        return found

    try:
        return json.loads(text, parse_constant=refuse, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise UserError(f"{called}: {show(text)} is not JSON ({error})") from None
    except RecursionError:
        raise UserError(f"{called}: {show(text)} is nested too deep") from None
    except UserError:
        raise
    except ValueError:  # Python reads no number of thousands of digits
        raise UserError(f"{called}: {show(text)} holds a number that is too large") from None


def show(raw: Any) -> str:
    """A value for a message, cut off where it is long."""
    if isinstance(raw, str) and len(raw) > 80:
        return repr(raw[:77]) + "..."
    try:
        text = repr(raw)
    except ValueError:  # a whole number of more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= 80 else text[:77] + "..."
