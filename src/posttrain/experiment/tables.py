"""Tables of a few columns, as text for a terminal or as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

MISSING = "–"


@dataclass
class Table:
    """A table with a head line.

    Args:
        head: its columns.
        rows: as many cells each.
        num_left: columns, from the first, that hold text and stand at the left; so does the last one if it has no head.
    """

    head: list[str]
    rows: list[list[str]] = field(default_factory=list)
    num_left: int = 1


def text_table(table: Table, first_width: int = 0) -> str:
    """The table in columns as wide as their cells.

    Args:
        table: what to show.
        first_width: the least width of the first column.
    """
    lines = [table.head, *table.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.head))]
    widths[0] = max(widths[0], first_width)

    def placed(column: int, cell: str) -> str:
        left = column < table.num_left or not table.head[column]
        return cell.ljust(widths[column]) if left else cell.rjust(max(widths[column], 8))

    return "\n".join("  ".join(placed(*entry) for entry in enumerate(line)).rstrip() for line in lines)


def markdown_table(table: Table) -> str:
    """The table with pipes."""
    rule = "|---" * table.num_left + "|---:" * (len(table.head) - table.num_left) + "|"
    return "\n".join([_markdown_row(table.head), rule, *map(_markdown_row, table.rows)])


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def cell(value: Any) -> str:
    """A value in a few letters; MISSING where there is none."""
    if value is None:
        return MISSING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
