"""Which documents share a row, from their lengths alone; and where over-long ones are cut.

`bfd` and `bfd_split` put pieces into rows by best fit decreasing: longest first, each into the fullest row that still
has room (Fewer Truncations Improve Language Modeling, arXiv 2404.10830, section 3). `wrapped` lays documents end to end
and cuts at every `max_length` tokens. The whole data set is packed at once: the result depends on it and its order.

Departure from TRL: pieces stay segments of their own with `wrapped` too, so no document sees another.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Piece(NamedTuple):
    """Tokens start to stop of a document."""

    document: int
    start: int
    stop: int


def split_documents(lengths: Sequence[int], max_length: int) -> list[Piece]:
    """Cut every document into pieces of `max_length` tokens and a rest."""
    return [
        Piece(document, start, min(start + max_length, length))
        for document, length in enumerate(lengths)
        for start in range(0, length, max_length)
    ]


def best_fit_decreasing(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Fill rows with pieces.

    Args:
        lengths: tokens of each piece, from 1 to `max_length`.
        max_length: tokens that a row can hold.

    Returns:
        The pieces of each row, ascending; rows by their first piece, so that the order of the data set is roughly kept.
    """
    by_length = sorted(range(len(lengths)), key=lambda piece: -lengths[piece])
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(max_length + 1)]  # rows by how many tokens they can still take
    rooms = 0  # bit r is set where with_room[r] is not empty: the best fit is the lowest bit from `length` up
    for piece in by_length:
        length = lengths[piece]
        assert 0 < length <= max_length
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, row = max_length, len(rows)
            rows.append([])
        rows[row].append(piece)
        if room > length:
            with_room[room - length].append(row)
            rooms |= 1 << (room - length)
    return sorted(sorted(row) for row in rows)


def wrap(lengths: Sequence[int], max_length: int) -> list[list[Piece]]:
    """Lay documents end to end and cut at every `max_length` tokens.

    Returns:
        The pieces of each row; all rows but the last are full.
    """
    rows: list[list[Piece]] = []
    room = 0
    for document, length in enumerate(lengths):
        start = 0
        while start < length:
            if room == 0:
                rows.append([])
                room = max_length
            stop = min(start + room, length)
            rows[-1].append(Piece(document, start, stop))
            room -= stop - start
            start = stop
    return rows
