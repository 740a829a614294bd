"""Parts of splits by number or share, as `datasets` writes them: train[:1000], train[10%:20%], train[-9:], a+b."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from posttrain.data.readers import Row
from posttrain.data.sources import Source, combined_digest, count_rows
from posttrain.errors import UserError

_PIECE = re.compile(r"([^\[\]+]+)(?:\[(-?[\d_]+%?)?:(-?[\d_]+%?)?\])?")


@dataclass(frozen=True)
class Bounds:
    """From where to where; "" = from the beginning, or to the end.

    Args:
        start, stop: a number of rows, from the end if negative; or a share such as "10%".
    """

    start: str = ""
    stop: str = ""

    @property
    def needs_count(self) -> bool:
        """Whether the rows have to be counted to tell."""
        return any("%" in bound or "-" in bound for bound in (self.start, self.stop))


def parse_split(text: str, where: str) -> list[tuple[str, Bounds]]:
    """The splits that a text names, and which rows of each.

    Args:
        text: such as "train[:10%]+test".
        where: the key that holds it, for the message.

    Raises:
        UserError: it is not in this notation.
    """
    found = [_PIECE.fullmatch(piece.strip()) for piece in text.split("+")]
    if not all(found):
        raise UserError(f"{where}: cannot make sense of {text!r}; write such as train, train[:1000] or train[10%:20%]")
    return [(match[1], Bounds(match[2] or "", match[3] or "")) for match in found if match]


@dataclass(frozen=True)
class Slice:
    """Some rows of a source, those that `bounds` name.

    Args:
        source: of all rows.
        bounds: from where to where.
        where: the key that says so, for messages.
    """

    source: Source
    bounds: Bounds
    where: str

    @property
    def name(self) -> str:
        return f"{self.source.name}[{self.bounds.start}:{self.bounds.stop}]"

    def rows(self, skip: int = 0) -> Iterator[Row]:
        total = count_rows(self.source) if self.bounds.needs_count else None
        start = _row(self.bounds.start or "0", total)
        stop = _row(self.bounds.stop, total) if self.bounds.stop else None
        if stop is not None and stop <= start:
            raise UserError(f"{self.where}: {self.name} holds no row")
        return itertools.islice(self.source.rows(start + skip), None if stop is None else max(0, stop - start - skip))

    def digest(self) -> str:
        return combined_digest("slice", self.source.digest(), self.bounds.start, self.bounds.stop)


def _row(bound: str, total: int | None) -> int:
    number = int(bound.rstrip("%"))
    if total is None:
        return number
    number = round(number * total / 100) if bound.endswith("%") else number
    return max(0, total + number) if number < 0 else min(number, total)
