"""Mistakes in single rows, collected over the whole data set and reported together."""

import json
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from posttrain.errors import UserError

_SHOWN = 3  # places named for each mistake
_HEADLINES, _DETAIL = 8, 2000  # mistakes told, and characters of what is said of one: columns may be 10 MB of text
_PAGE = "troubleshooting.md#data"


class RowError(Exception):
    """A row cannot be used.

    Args:
        headline: the mistake in a few words, the same for all rows that have it.
        detail: what is wrong in this row, and the way out.
        page: where docs/ tells more of it, if that is another place than for most.
        is_last: every further row might take as long as this one to fail, so none is looked at.
    """

    def __init__(self, headline: str, detail: str, page: str | None = None, is_last: bool = False):
        super().__init__(f"{headline}: {detail}")
        self.headline = headline
        self.detail = detail
        self.page = page
        self.is_last = is_last


@dataclass
class Problems:
    """The mistakes of a data set: for each headline how often, the first places, and the first detail."""

    found: dict[str, tuple[int, list[str], str]] = field(default_factory=dict)
    page: str | None = None  # of the first mistake that has one

    def __bool__(self) -> bool:
        return bool(self.found)

    def add(self, place: str, error: RowError) -> None:
        """Note a mistake; raises UserError where no other is to be looked for."""
        if error.is_last:
            raise UserError(f"{place}: {error}", error.page or _PAGE) from error
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
        for headline, (count, places, detail) in list(self.found.items())[:_HEADLINES]:
            more = f" and {count - len(places):,} more" if count > len(places) else ""
            shown = detail if len(detail) <= _DETAIL else detail[:_DETAIL] + "…"
            lines.append(f"{headline} ({', '.join(places)}{more}): {shown}")
        if len(self.found) > _HEADLINES:
            lines.append(f"and {len(self.found) - _HEADLINES:,} other mistakes")
        raise UserError("\n".join(lines), self.page or _PAGE)


def row_as_text(value: Any, limit: int = 100) -> str:
    """A value as JSON on one line, cut to `limit` characters."""
    text = json.dumps(_beginning(value, limit), ensure_ascii=False, default=lambda other: str(other)[: limit + 1])
    return text if len(text) <= limit else text[:limit] + "…"


def _beginning(value: Any, limit: int) -> Any:
    """So much of a value that `limit` characters of its JSON are the same."""
    if isinstance(value, str):
        return value[: limit + 1]
    if isinstance(value, list):
        return [_beginning(item, limit) for item in value[: limit + 1]]
    if isinstance(value, dict):
        return {str(key)[: limit + 1]: _beginning(value[key], limit) for key in islice(value, limit + 1)}
    return value
