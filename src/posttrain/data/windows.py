"""Windows of a stream: rows that were read together, and where among all they stand."""

from dataclasses import dataclass, field
from typing import Any

TokenRow = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where a window begins.

    Args:
        first: number of its first row, among all that the stream gives out.
        passes: how often the data has been read to its end before.
        rows_read: rows of the data read before, in this pass.
        counts: of all windows before.
        dropped: first places of rows left out in them, by the name of the count.
    """

    first: int = 0
    passes: int = 0
    rows_read: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Window:
    """Some rows, and what was known when they had been read.

    Args:
        place: where they begin.
        rows: in tokens.
        after: where the next window begins.
        notes: what the user is to be told of all rows so far.
        lengths_of_parts: of the tables that are read, by their fingerprints.
    """

    place: Place
    rows: list[TokenRow]
    after: Place
    notes: list[str]
    lengths_of_parts: dict[str, Any]
