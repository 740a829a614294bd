"""Mistakes in single rows, collected over the whole data set and reported together."""

import json
from dataclasses import dataclass, field
from typing import Any

from posttrain.errors import UserError

_SHOWN = 3  # places named for each mistake
_PAGE = "troubleshooting.md#data"


class RowError(Exception):
    """A row cannot be used.

    Args:
        headline: the mistake in a few words, the same for all rows that have it.
        detail: what is wrong in this row, and the way out.
        page: where docs/ tells more of it, if that is another place than for most.
    """

    def __init__(self, headline: str, detail: str, page: str | None = None):
        super().__init__(f"{headline}: {detail}")
        self.headline = headline
        self.detail = detail
        self.page = page


@dataclass
class Problems:
    """The mistakes of a data set: for each headline how often, the first places, and the first detail."""

    found: dict[str, tuple[int, list[str], str]] = field(default_factory=dict)
    page: str | None = None  # of the first mistake that has one

    def __bool__(self) -> bool:
        return bool(self.found)

    def add(self, place: str, error: RowError) -> None:
        """Note a mistake."""
        self.page = self.page or error.page
        count, places, detail = self.found.get(error.headline, (0, [], error.detail))
        self.found[error.headline] = (count + 1, places + [place] * (len(places) < _SHOWN), detail)

    def update(self, other: "Problems") -> None:
        """Take the mistakes of later rows over."""
        self.page = self.page or other.page
        for headline, (count, places, detail) in other.found.items():
            own_count, own_places, own_detail = self.found.get(headline, (0, [], detail))
            self.found[headline] = (own_count + count, (own_places + places)[:_SHOWN], own_detail)

    def raise_if_any(self, name: str, rows: str) -> None:
        """Report all mistakes at once.

        Args:
            name: of the data set.
            rows: how many were looked at, in words: "12 rows".

        Raises:
            UserError: there is at least one.
        """
        if not self.found:
            return
        total = sum(count for count, _, _ in self.found.values())
        lines = [f"{name}: {total:,} of {rows} cannot be used"]
        for headline, (count, places, detail) in self.found.items():
            more = f" and {count - len(places):,} more" if count > len(places) else ""
            lines.append(f"{headline} ({', '.join(places)}{more}): {detail}")
        raise UserError("\n".join(lines), self.page or _PAGE)


def row_as_text(value: Any, limit: int = 100) -> str:
    """A value as JSON on one line, cut to `limit` characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else text[:limit] + "…"
