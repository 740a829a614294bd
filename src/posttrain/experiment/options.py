"""Command lines of the commands that look at experiments: a few words, and flags with a choice or a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from posttrain.config import suggestion
from posttrain.errors import UserError

ANY: tuple[str, ...] = ()


def read_options(
    words: Sequence[str], usage: str, flags: Mapping[str, tuple[str, ...] | None]
) -> tuple[list[str], dict[str, str]]:
    """Sorts a command line.

    Args:
        words: behind the command.
        usage: its help text, whose first line is shown with a mistake.
        flags: by name without dashes, the values that each may have; ANY: any; None: it is a switch.

    Returns:
        The words that are no flags, and the flags with their values; "help" is one that every command has.

    Raises:
        UserError: a flag is not known, has no value, or another one than may be.
    """
    alone: list[str] = []
    found: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in ("-h", "--help"):
            return [], {"help": ""}
        if not word.startswith("-"):
            alone.append(word)
            continue
        name, equals, value = word.lstrip("-").replace("-", "_").partition("=")
        how = usage.splitlines()[0].lower().replace("usage: ", "usage: ")
        if name not in flags:
            raise UserError(f"{word}: no such flag{suggestion(name, flags)}; {how}")
        choices = flags[name]
        if choices is None:
            found[name] = "true"
            continue
        if not equals:
            if not rest:
                raise UserError(f"{word}: a value is missing; {how}")
            value = rest.pop(0)
        if choices and value not in choices:
            raise UserError(f"{word} {value}: wanted {' or '.join(choices)}")
        found[name] = value
    return alone, found
