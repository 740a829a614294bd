"""Which documents share a row, from their lengths alone; and where over-long ones are cut.

`bfd` and `bfd_split` put pieces into rows by best fit decreasing: longest first, each into the fullest row that still
has room (Fewer Truncations Improve Language Modeling, arXiv 2404.10830, section 3). `wrapped` lays documents end to end
and cuts at every `max_length` tokens. The whole data set is packed at once: the result depends on it and its order.
All is done in arrays of numbers: ten million documents take some hundred MiB and seconds.

Departure from TRL: pieces stay segments of their own with `wrapped` too, so no document sees another.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[Any]  # of whole numbers


class Pieces(NamedTuple):
    """Stretches of documents: piece i is tokens start[i] to stop[i] of document[i]; arrays (pieces,) of int32."""

    document: Numbers
    start: Numbers
    stop: Numbers

    def at(self, index: Numbers) -> "Pieces":
        """Some of them."""
        return Pieces(self.document[index], self.start[index], self.stop[index])


@dataclass(frozen=True)
class Rows:
    """Things that are laid into rows.

    Args:
        things: (things,) their numbers, row after row.
        starts: (rows + 1,) where in `things` each row begins, and where the last one ends.
    """

    things: Numbers
    starts: Numbers

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> Numbers:
        found: Numbers = self.things[self.starts[row] : self.starts[row + 1]]
        return found


def split_documents(lengths: Sequence[int] | Numbers, max_length: int) -> Pieces:
    """Cut every document into pieces of `max_length` tokens and a rest."""
    sizes = np.asarray(lengths, dtype=np.int32)
    number = -(-sizes // max_length)
    document = np.repeat(np.arange(len(sizes), dtype=np.int32), number)
    before = np.cumsum(number) - number
    start = ((np.arange(len(document)) - before[document]) * max_length).astype(np.int32)
    return Pieces(document, start, np.minimum(start + max_length, sizes[document], dtype=np.int32))


def best_fit_decreasing(lengths: Sequence[int] | Numbers, max_length: int) -> Rows:
    """Fill rows with pieces.

    Args:
        lengths: tokens of each piece, from 1 to `max_length`.
        max_length: tokens that a row can hold.

    Returns:
        The pieces of each row, ascending; rows by their first piece, so that the order of the data set is roughly kept.
    """
    sizes = np.asarray(lengths, dtype=np.int32)
    assert not len(sizes) or (sizes.min() > 0 and sizes.max() <= max_length)
    by_length = np.argsort(-sizes, kind="stable").astype(np.int32)
    row_of = np.empty(len(sizes), dtype=np.int32)
    ends = np.flatnonzero(np.diff(sizes[by_length], append=0)) + 1
    rows = _OpenRows(max_length)
    start = 0
    for end in ends.tolist():
        length = int(sizes[by_length[start]])
        while start < end:
            start += _place(by_length[start:end], length, rows, row_of)
    return by_row(row_of)


class _OpenRows:
    """Rows by how many tokens they can still take; of those that can take the same, the latest goes first."""

    def __init__(self, max_length: int):
        self.max_length, self.number = max_length, 0
        self._stacks: dict[int, array[int]] = {}
        self._rooms = 0  # bit r is set where a row has room for r: the best fit is the lowest bit from `length` up

    def best_fit(self, length: int) -> int | None:
        """The least room that suffices."""
        fitting = self._rooms >> length
        return length + (fitting & -fitting).bit_length() - 1 if fitting else None

    def take(self, room: int | None, most: int) -> Numbers:
        """So many rows with that room, or as many as there are; without one, new rows."""
        if room is None:
            self.number += most
            return np.arange(self.number - most, self.number, dtype=np.int32)
        stack = self._stacks[room]
        taken = np.array(stack[-most:][::-1], dtype=np.int32)
        del stack[-most:]
        if not stack:
            self._rooms ^= 1 << room
        return taken

    def put(self, room: int, rows: Numbers) -> None:
        """Rows that can still take so much."""
        if room and len(rows):
            self._stacks.setdefault(room, array("i")).frombytes(rows.tobytes())
            self._rooms |= 1 << room


def _place(pieces: Numbers, length: int, rows: _OpenRows, row_of: Numbers) -> int:
    """Places the first of some pieces of one length: as many as fit into rows that are alike. A row that can take
    several gets them one after the other, since with each of them it becomes the fullest one that has room.

    Returns:
        How many were placed.
    """
    found = rows.best_fit(length)
    room = rows.max_length if found is None else found
    fit = room // length
    taken = rows.take(found, -(-len(pieces) // fit))
    placed = pieces[: len(taken) * fit]
    row_of[placed] = np.repeat(taken, fit)[: len(placed)]
    full, rest = divmod(len(placed), fit)
    rows.put(room - fit * length, taken[:full])
    if rest:
        rows.put(room - rest * length, taken[full:])
    return len(placed)


def by_row(row_of: Numbers) -> Rows:
    """Things of which the row is known, each row's ascending, and rows by their first."""
    things = np.argsort(row_of, kind="stable").astype(np.int32)
    first = np.flatnonzero(np.diff(row_of[things], prepend=-1))
    counts = np.diff(first, append=len(things))
    order = np.argsort(things[first], kind="stable")  # of the rows
    starts = np.concatenate([[0], np.cumsum(counts[order])])
    within = np.arange(len(things)) - np.repeat(starts[:-1], counts[order])
    return Rows(things[np.repeat(first[order], counts[order]) + within], starts)


def wrap(lengths: Sequence[int] | Numbers, max_length: int) -> tuple[Pieces, Numbers]:
    """Lay documents end to end and cut at every `max_length` tokens.

    Returns:
        The pieces, and the row of each (pieces,), ascending; all rows but the last are full.
    """
    ends = np.cumsum(np.asarray(lengths, dtype=np.int64))
    total = int(ends[-1]) if len(ends) else 0
    stops = np.union1d(ends[ends > 0], np.arange(max_length, total, max_length))
    starts = np.concatenate([[0], stops])[:-1]
    document = np.searchsorted(ends, starts, side="right")
    before = (np.concatenate([[0], ends])[:-1])[document]
    pieces = Pieces(*(one.astype(np.int32) for one in (document, starts - before, stops - before)))
    return pieces, starts // max_length
