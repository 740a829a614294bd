"""Packing, on lengths alone."""

import random

import pytest

from posttrain.data.packing import Pieces, best_fit_decreasing, split_documents, wrap

RANDOM = random.Random(1)
LENGTHS = {
    "mixed": [RANDOM.randint(1, 64) for _ in range(2000)],
    "short": [RANDOM.randint(1, 5) for _ in range(500)],
    "full": [64] * 10,
    "ones": [1] * 130,
    "none": [],
}


def best_fit(lengths: list[int], max_length: int) -> list[list[int]]:
    rows = best_fit_decreasing(lengths, max_length)
    return [rows[row].tolist() for row in range(len(rows))]


def listed(pieces: Pieces) -> list[tuple[int, int, int]]:
    return list(zip(*(one.tolist() for one in pieces), strict=True))


def wrapped(lengths: list[int], max_length: int) -> list[list[tuple[int, int, int]]]:
    pieces, row_of = wrap(lengths, max_length)
    rows: list[list[tuple[int, int, int]]] = [[] for _ in range(max(row_of.tolist(), default=-1) + 1)]
    for piece, row in zip(listed(pieces), row_of.tolist(), strict=True):
        rows[row].append(piece)
    return rows


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_best_fit_places_every_piece_once_within_the_length(lengths: list[int]) -> None:
    rows = best_fit(lengths, 64)
    assert sorted(piece for row in rows for piece in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[piece] for piece in row) <= 64 for row in rows)


def one_by_one(lengths: list[int], max_length: int) -> list[list[int]]:
    """Best fit decreasing as it is told: of the rows with the least room that suffices, the one that came to have it
    last."""
    rows: list[list[int]] = []
    room: list[int] = []
    came: list[int] = []
    for step, piece in enumerate(sorted(range(len(lengths)), key=lambda piece: -lengths[piece])):
        fitting = [row for row in range(len(rows)) if room[row] >= lengths[piece]]
        row = min(fitting, key=lambda row: (room[row], -came[row]), default=len(rows))
        if row == len(rows):
            rows.append([])
            room.append(max_length)
            came.append(step)
        rows[row].append(piece)
        room[row], came[row] = room[row] - lengths[piece], step
    return sorted(sorted(row) for row in rows)


@pytest.mark.parametrize("max_length", [5, 16, 64, 1000])
def test_best_fit_is_that_of_one_piece_after_the_other(max_length: int) -> None:
    rng = random.Random(max_length)
    for longest in (max_length, max(1, max_length // 4), max(1, max_length // 20)):
        lengths = [rng.randint(1, longest) for _ in range(300)]
        assert best_fit(lengths, max_length) == one_by_one(lengths, max_length)


def test_best_fit_by_hand() -> None:
    """Length 10. Longest first: 7 opens a row (room 3), 6 another (room 4), 4 fits the second exactly, 3 the first
    exactly, 2 opens a third (room 8), 1 joins it."""
    assert best_fit([2, 7, 4, 1, 6, 3], 10) == [[0, 3], [1, 5], [2, 4]]


def test_best_fit_prefers_the_fullest_row() -> None:
    """9 and 7 leave rooms 1 and 3 of 10. The 1 fits both and goes where it leaves nothing."""
    assert best_fit([7, 9, 1], 10) == [[0], [1, 2]]


def test_best_fit_wastes_little() -> None:
    lengths = LENGTHS["mixed"]
    assert len(best_fit(lengths, 64)) <= 1.02 * sum(lengths) / 64


def test_split_covers_every_token_once() -> None:
    assert listed(split_documents([3, 10, 4], 4)) == [(0, 0, 3), (1, 0, 4), (1, 4, 8), (1, 8, 10), (2, 0, 4)]


def test_wrap_by_hand() -> None:
    assert wrapped([3, 6, 2], 4) == [[(0, 0, 3), (1, 0, 1)], [(1, 1, 5)], [(1, 5, 6), (2, 0, 2)]]


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_wrap_covers_every_token_once_and_fills_rows(lengths: list[int]) -> None:
    rows = wrapped(lengths, 50)
    tokens = [(document, place) for row in rows for document, start, stop in row for place in range(start, stop)]
    assert tokens == [(document, place) for document, length in enumerate(lengths) for place in range(length)]
    assert all(sum(stop - start for _, start, stop in row) == 50 for row in rows[:-1])
